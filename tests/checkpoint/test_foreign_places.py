"""What people give as a Hugging Face model that is none yet: the sentence that helps, and that its command makes what works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from adapt.checkpoint.foreign_places import mend_of
from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.core.errors import CheckpointError
from adapt.core.precision import Precision
from adapt.scoring.scorer_config import ScorerConfig
from pipelines.stages.models import open_model_artifact
from tests.support.hf_checkpoints import make_checkpoint

FP32 = ScorerConfig(precision=Precision.FP32)


def cache_of(place: Path) -> Path:
    """Lay a model out as Hugging Face's cache does: blobs, and a snapshot of links to them."""
    root, base = place / "models--me--tiny", make_checkpoint(place / "base", "llama")
    snapshot = root / "snapshots" / "0a1b2c"
    (root / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in base.iterdir():
        shutil.copyfile(file, root / "blobs" / f"blob-of-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-of-{file.name}")
    return root


def adapter_of(place: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(make_checkpoint(place / "base", "llama"), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(place / "adapter")
    return place / "adapter"


def pickles_of(place: Path) -> Path:
    base = make_checkpoint(place / "pickles", "llama")
    torch.save(AutoModelForCausalLM.from_pretrained(base).state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    return base


def older_tokenizer_of(place: Path) -> Path:
    """Return a directory with its tokenizer as GPT-2's is published: vocab.json and merges.txt."""
    base = make_checkpoint(place / "older", "qwen2")
    Tokenizer.from_file(str(base / "tokenizer.json")).model.save(str(base))
    (base / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "unk_token": None, "bos_token": None}
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return base


def test_a_name_on_the_hub_is_told_how_to_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        open_model_artifact(Path("Qwen/Qwen3-0.6B"), "model.path")
    assert str(refused.value) == (
        "Qwen/Qwen3-0.6B: is no directory; if it is a model on the Hugging Face hub, `hf download Qwen/Qwen3-0.6B --local-dir "
        "Qwen3-0.6B` fetches it, to be given as model.path=Qwen3-0.6B"
    )
    (tmp_path / "runs").mkdir()
    for other in ("runs/base", "/models/base", "base", "../a/b", "a/b/c"):
        assert mend_of(Path(other), "checkpoint") is None


def test_a_cache_names_the_snapshot_that_works(tmp_path: Path) -> None:
    root = cache_of(tmp_path)
    for place, words in ((root, "give the snapshot in it: checkpoint="), (tmp_path, "is a Hugging Face cache with me/tiny")):
        with pytest.raises(CheckpointError, match=words):
            open_model_artifact(place)
    named = str(mend_of(root, "model.path")).rpartition("=")[2]
    assert open_checkpoint(Path(named), FP32).model.vocab_size > 300


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model.gguf"], r"holds a GGUF file; `python -m pipelines\.import_gguf source=\S+/model\.gguf output=DIR`"),
        (["model.safetensors"], r"has weights, but no config\.json"),
        (["pytorch_model.bin"], r"has weights, but no config\.json"),
    ],
)
def test_a_directory_without_a_configuration_is_told_apart(files: list[str], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=words) as refused:
        open_model_artifact(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_file_is_told_from_a_directory(tmp_path: Path) -> None:
    for name, words in (
        ("m.gguf", "but a file, in GGUF; `python -m pipelines.import_gguf"),
        ("m.safetensors", f"such as {tmp_path}"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=words):
            open_model_artifact(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "opens", "words"),
    [
        (adapter_of, open_model_artifact, "is a PEFT adapter over .*base, and no model by itself"),
        (pickles_of, lambda place: open_checkpoint(place, FP32), "holds pickled weights only, which are never loaded here"),
        (older_tokenizer_of, lambda place: open_checkpoint(place, FP32), "has neither tokenizer.json nor tokenizer.model"),
    ],
    ids=["adapter", "pickles", "older tokenizer"],
)
def test_the_command_of_a_refusal_makes_what_works(
    make: Callable[[Path], Path], opens: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    place = make(tmp_path)
    with pytest.raises(CheckpointError, match=words) as refused:
        opens(place)
    said = str(refused.value)
    assert "\n" not in said
    [command] = re.findall(r"`(python .*?)`", said)
    done = subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made = next((one for one in (Path(f"{place}-merged"), Path(f"{place}-safe")) if one.is_dir()), place)
    if make is adapter_of:
        shutil.copyfile(tmp_path / "base" / "tokenizer.json", made / "tokenizer.json")
    opened = open_checkpoint(made, FP32)
    assert opened.tokenizer.decode(opened.tokenizer.encode("好的 a")) == "好的 a"
