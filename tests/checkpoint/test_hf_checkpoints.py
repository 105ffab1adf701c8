"""Hugging Face directories as checkpoints: written back as they came, told apart by content, and refused when damaged."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from adapt.checkpoint.hf_directory import open_hf_directory
from adapt.checkpoint.offload import OffloadConfig, Verify, WeightsIn
from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.checkpoint.store import open_store
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import checkpoint_files, has_weights, load_model, save_trained
from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from adapt.core.precision import Precision
from adapt.model.buffers import named_state
from adapt.model.hf import HFModel
from adapt.model.hf_families import FAMILIES
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from tests.support.hf_checkpoints import BYTE_LEVEL, add_tokenizer, make_checkpoint, make_model

FP32 = ScorerConfig(precision=Precision.FP32)


def names_in(directory: Path) -> set[str]:
    found: set[str] = set()
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as stream:
            found |= set(stream.keys())
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_weights_are_written_as_the_base_was(family: str, tied: bool, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", family, tie_word_embeddings=tied, max_shard_size="60KB")
    result = tmp_path / "result"
    result.mkdir()
    model = load_model(base)
    assert isinstance(model, HFModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save_trained(result, model, named_state(model), load_tokenizer(base, model))
    assert names_in(result) == names_in(base)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (result / name).read_bytes() == (base / name).read_bytes()
    assert has_weights(result)
    again = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict().items():
        is_state = name.endswith("e_score_correction_bias")  # of a router, and no weight
        assert torch.equal(again[name], weight if is_state else weight * 1.5), name
    (result / "tokenizer.json").write_bytes((result / "tokenizer.json").read_bytes() + b"\n")
    for opened in (open_hf_directory, load_model):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
            opened(result)


def test_many_shards_give_the_weights_of_one(tmp_path: Path) -> None:
    one = load_model(make_model(tmp_path / "one", "olmoe", 60))
    many = load_model(make_model(tmp_path / "many", "olmoe", 60, max_shard_size="5KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for (name, first), (_, second) in zip(one.named_parameters(), many.named_parameters(), strict=True):
        assert torch.equal(first, second), name


def test_weights_of_an_adapted_model_that_lost_a_bit_are_refused_unless_nothing_is_verified(tmp_path: Path) -> None:
    base, result = make_checkpoint(tmp_path / "base", "llama"), tmp_path / "result"
    result.mkdir()
    model = load_model(base)
    assert isinstance(model, HFModel)
    save_trained(result, model, model.named_parameters(), load_tokenizer(base, model))
    [shard] = result.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"safetensors: damaged \(.*has not the bytes that were written"):
        load_model(result)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(result, FP32)
    load_model(result, verify=Verify.NEVER)


def test_an_opened_directory_scores(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path, "qwen3"), FP32)
    assert opened.scorer.context_length == 96
    assert opened.model.vocab_size > opened.tokenizer.vocab_size


def test_the_digest_follows_content_and_nothing_else(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    before = open_hf_directory(base).digest
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a note", encoding="utf-8")
    assert open_hf_directory(tmp_path / "copy").digest == before
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}), encoding="utf-8")
    assert open_hf_directory(base).digest != before


def test_a_checkpoint_is_its_configuration_weights_and_tokenizer(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path, "llama")
    (base / "README.md").write_text("a note", encoding="utf-8")
    (base / "model.onnx").write_text("another form", encoding="utf-8")
    assert {file.name for file in checkpoint_files(base)} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def set_config(**changes: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (base / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")

    return change


def only_pickles(base: Path) -> None:
    for shard in base.glob("model*"):
        shard.unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def cut_a_shard(base: Path) -> None:
    shard = sorted(base.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])


def lose_a_shard(base: Path) -> None:
    sorted(base.glob("*.safetensors"))[0].unlink()


def lose_a_tensor(base: Path) -> None:
    index = base / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    last = sorted(set(content["weight_map"].values()))[-1]
    content["weight_map"] = {name: shard for name, shard in content["weight_map"].items() if shard != last}
    index.write_text(json.dumps(content), encoding="utf-8")


def break_the_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")


def lose_the_weights(base: Path) -> None:
    for shard in base.glob("model*"):
        shard.unlink()


def lose_the_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()


def add_a_tensor(base: Path) -> None:
    (base / "model.safetensors.index.json").unlink()
    other = make_model(base / "other", "llama", 1405, num_hidden_layers=3)
    shutil.move(other / "model.safetensors", base / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (only_pickles, "pickled weights only.*save_pretrained"),
        (cut_a_shard, "missing or damaged"),
        (lose_a_shard, "missing or damaged"),
        (lose_a_tensor, "is missing"),
        (add_a_tensor, "does not belong to this model"),
        (break_the_index, "no weight_map"),
        (lose_the_weights, "neither model.safetensors nor"),
        (lose_the_tokenizer, "neither tokenizer.json nor tokenizer.model"),
        (set_config(model_type="cohere"), "'cohere' is not served; there are: gemma2"),
        (set_config(model_type="qwen3_5_text"), "'qwen3_5_text' is not served: it keeps a running state"),
        (set_config(model_type="gemma3"), "'gemma3' is not served: it reads images too.*model_type gemma3_text"),
        (set_config(use_bidirectional_attention=True), "lets tokens see later ones"),
        (set_config(model_type="nothing_known"), "nothing_known"),
        (set_config(vocab_size=77), "has shape .* the model needs .77, 32."),
        (set_config(num_attention_heads="many"), "config.json"),
        (set_config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
        (
            set_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                                        "long_factor": [1.0] * 4, "original_max_position_embeddings": 48}),
            "longrope",
        ),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_directory_is_refused_in_one_line(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path, "llama", max_shard_size="60KB")
    damage(base)
    with pytest.raises(CheckpointError, match=words) as refused:
        open_checkpoint(base, FP32)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path, "llama")
    (base / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="config.json: not valid JSON"):
        open_hf_directory(base)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    base = add_tokenizer(make_model(tmp_path, "llama", 60), BYTE_LEVEL)
    with pytest.raises(CheckpointError, match="60"):
        open_checkpoint(base, FP32)


def test_a_sentencepiece_tokenizer_without_a_prefix_serves(tmp_path: Path, tokenizer: Tokenizer) -> None:
    base = make_model(tmp_path, "llama", tokenizer.vocab_size + 3)
    tokenizer.save(base)
    opened = open_checkpoint(base, FP32)
    assert opened.tokenizer.digest == tokenizer.digest
    assert [file.name for file in checkpoint_files(base) if file.name.startswith("tokenizer")] == [MODEL_FILE]


def test_a_sentencepiece_tokenizer_that_puts_a_space_first_is_refused(tmp_path: Path) -> None:
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c the of"] * 50), model_writer=made, vocab_size=20, model_type="bpe", minloglevel=2
    )
    base = make_model(tmp_path, "llama", 60)
    (base / MODEL_FILE).write_bytes(made.getvalue())
    with pytest.raises(CheckpointError, match="give a tokenizer.json"):
        open_checkpoint(base, FP32)


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_checkpoint(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install 'moe-adapt\[hf\]'") as refused:
        open_checkpoint(base, FP32)
    assert isinstance(refused.value, AdaptError)
    assert "\n" not in str(refused.value)


def mapped_file(address: int) -> str:
    """Return the file that is mapped at an address of this process, or nothing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(text, 16) for text in line.split()[0].split("-"))
        if start <= address < end:
            return line.split()[5] if len(line.split()) > 5 else ""
    return ""


def test_weights_stay_views_of_the_mapped_files(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path, "qwen3")
    opened = open_checkpoint(base, FP32, OffloadConfig(weights=WeightsIn.MMAP))
    whole = open_checkpoint(base, FP32)
    assert isinstance(opened.model, nn.Module)
    assert isinstance(whole.model, nn.Module)
    matrices = [(name, p) for name, p in opened.model.named_parameters() if p.dim() == 2]
    assert all(mapped_file(parameter.data_ptr()).endswith(".safetensors") for _, parameter in matrices)
    other = dict(whole.model.named_parameters())
    assert all(torch.equal(parameter, other[name]) for name, parameter in opened.model.named_parameters())


def test_weights_that_cannot_stay_mapped_are_refused(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path, "qwen3")
    with pytest.raises(ConfigError, match=r"stores torch\.float32 and would be copied whole to torch\.bfloat16"):
        open_checkpoint(base, ScorerConfig(precision=Precision.BF16), OffloadConfig(weights=WeightsIn.MMAP))
    with pytest.raises(ConfigError, match=r"offload\.weights=ring: .* set offload\.weights=mmap or memory"):
        open_checkpoint(base, FP32, OffloadConfig(weights=WeightsIn.RING))


@pytest.mark.parametrize("family", ["llama", "olmoe"])
def test_a_base_in_bf16_is_written_in_bf16_again(family: str, tmp_path: Path) -> None:
    """Also where one tensor is kept exact: every tensor keeps the format that the base's file has it in."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(tmp_path / "fp32", family), dtype=torch.bfloat16)
    model.get_decoder().norm.float()
    model.save_pretrained(base)
    shutil.copyfile(tmp_path / "fp32" / "tokenizer.json", base / "tokenizer.json")
    shutil.copyfile(tmp_path / "fp32" / "tokenizer_config.json", base / "tokenizer_config.json")
    result = tmp_path / "result"
    result.mkdir()
    loaded = load_model(base)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert isinstance(loaded, HFModel)
    save_trained(result, loaded, loaded.named_parameters(), load_tokenizer(base, loaded))
    dtypes = {name: place.dtype for name, place in open_store(base).tensors.items()}
    assert {name: place.dtype for name, place in open_store(result).tensors.items()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    assert json.loads((result / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    again = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict().items():
        assert torch.equal(again[name], weight), name
