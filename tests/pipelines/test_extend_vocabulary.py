"""`python -m pipelines.extend_vocabulary`: a base with more pieces that later stages take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapt.checkpoint.extended_base import open_extendable
from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.checkpoint.weights import load_model
from adapt.core.artifacts import open_artifact
from adapt.model.gpt import GPT
from adapt.text.corpus import is_held_out
from adapt.text.tokenizer import Tokenizer
from pipelines.bench.extension import grown, loss_per_character
from pipelines.config.locations import demo_dir
from tests.support.command_line import SMALL_DEMO, refused
from tests.support.hf_checkpoints import BYTE_LEVEL
from tests.support.merged_tokenizers import make_base

TEXTS = ["患者入院后行腹腔镜胆囊切除术，术后恢复良好。", "腹腔镜胆囊切除术的并发症包括胆漏和出血，术后应当观察。"]

ADAPTATION = [
    "task=demo_reviews", f"data.root={SMALL_DEMO}", "stages=[pseudo_label,continue_pretrain,evaluate]", "pseudo_label.max_rows=40",
    "pseudo_label.prompts=[reference]", "evaluate.fit_rows=20", "evaluate.splits=[dev]", "continue_pretrain.epochs=3",
    "continue_pretrain.batch_rows=8", "continue_pretrain.optimizer.lr=0.003", "gate.action=warn", "engine.threads=1",
]  # fmt: skip


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    lines = [f"{text}第{number}例。" for number in range(120) for text in TEXTS]
    (tmp_path / "medical.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "medical.txt"


def test_a_base_is_extended_and_its_old_rows_stay(
    tmp_path: Path, text_file: Path, run_here: Callable[[str, list[str]], str]
) -> None:
    base = demo_dir() / "base"
    said = run_here(
        "extend_vocabulary",
        [f"checkpoint={base}", f"data.corpus={text_file}", f"run.dir={tmp_path}/runs", "run.name=m", "extend_vocabulary.pieces=20"],
    )
    place = tmp_path / "runs" / "m" / "extend_vocabulary"
    m = open_artifact(place.resolve()).metrics
    assert m["pieces"] == 20 and m["vocab_size"] == 8020 and m["held_out"] > 0
    assert m["tokens_per_document_extended"] < 0.8 * m["tokens_per_document"]
    assert "20 new pieces, 8020 in all" in said
    old, new = load_model(base), load_model(place)
    assert isinstance(old, GPT) and isinstance(new, GPT)
    assert torch.equal(new.embedding.weight[:8000], old.embedding.weight)
    before, after = Tokenizer.load(base), Tokenizer.load(place)
    (token,) = after.encode(m["first_pieces"][0])
    expected = old.embedding.weight[torch.tensor(before.encode(m["first_pieces"][0]))].mean(dim=0)
    torch.testing.assert_close(new.embedding.weight[token], expected, rtol=2**-8, atol=1e-6)  # the base is stored in bf16
    assert all(torch.equal(one, new.state_dict()[name]) for name, one in old.state_dict().items() if name != "embedding.weight")
    from adapt.text.vocabulary_extension import ExtensionConfig, extend

    lines = text_file.read_text(encoding="utf-8").split("\n")
    twin = grown(old, extend(before, lines, ExtensionConfig(pieces=20)))
    assert loss_per_character(twin, after, TEXTS) > 0


def test_what_has_no_vocabulary_to_extend_is_refused(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    arguments = [f"data.corpus={text_file}", f"run.dir={tmp_path}/runs", "run.name=m"]
    base = [f"checkpoint={demo_dir()}/base"]
    refused(
        "extend_vocabulary",
        [*base, *arguments, "extend_vocabulary.min_count=5000"],
        ["min_count", "give more text"],
        monkeypatch,
        capsys,
    )
    refused("extend_vocabulary", [f"checkpoint={tmp_path}/hf", *arguments], [str(tmp_path)], monkeypatch, capsys)
    assert not (tmp_path / "runs" / "m").exists()


def test_a_hugging_face_base_is_extended_and_is_a_base_again(
    tmp_path: Path, text_file: Path, run_here: Callable[[str, list[str]], str]
) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 2)
    arguments = [f"data.corpus={text_file}", f"run.dir={tmp_path}/runs", "extend_vocabulary.pieces=20"]
    said = run_here("extend_vocabulary", [f"checkpoint={base}", "run.name=m", *arguments])
    place = tmp_path / "runs" / "m" / "extend_vocabulary"
    m, old, new = open_artifact(place.resolve()).metrics, tokenizer_of(base), tokenizer_of(place)
    assert m["pieces"] == 20 and m["vocab_size"] == old.vocab_size + 20 == new.vocab_size
    assert "20 new pieces" in said and m["held_out"] > 0
    held_out = [line for line in text_file.read_text(encoding="utf-8").split("\n") if is_held_out(line, 0.01)]
    for tokenizer, name in ((old, "tokens_per_document"), (new, "tokens_per_document_extended")):
        assert m[name] == sum(map(len, tokenizer.encode_documents(held_out))) / len(held_out)
    assert m["tokens_per_document_extended"] < m["tokens_per_document"]
    assert all("\u4e00" <= sign[0] <= "\u9fff" for sign in m["first_pieces"] if sign.isalpha())
    run_here("extend_vocabulary", [f"checkpoint={place}", "run.name=again", *arguments])
    assert open_artifact((tmp_path / "runs" / "again" / "extend_vocabulary").resolve()).metrics["vocab_size"] == old.vocab_size + 40


@pytest.mark.slow
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_an_extended_hugging_face_base_is_adapted(
    is_tied: bool, tmp_path: Path, text_file: Path, run_here: Callable[[str, list[str]], str]
) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 2, max_position_embeddings=256, tie_word_embeddings=is_tied)
    runs = f"run.dir={tmp_path}/runs"
    extending = [f"checkpoint={base}", f"data.corpus={text_file}", runs, "run.name=m", "extend_vocabulary.pieces=20"]
    run_here("extend_vocabulary", extending)
    extended = tmp_path / "runs" / "m" / "extend_vocabulary"
    said = run_here("run", [f"checkpoint={extended}", runs, "run.name=adapted", *ADAPTATION])
    place = tmp_path / "runs" / "adapted" / "continue_pretrain" / "demo_reviews"
    old, new = load_model(extended).state_dict(), load_model(place).state_dict()
    assert {name: tensor.shape for name, tensor in new.items()} == {name: tensor.shape for name, tensor in old.items()}
    assert not all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert tokenizer_of(place).digest == tokenizer_of(extended).digest != tokenizer_of(base).digest
    held_out = json.loads((place / "held_out.json").read_text(encoding="utf-8"))["demo_reviews"]
    for trained in ("context", "pseudo_label"):
        assert held_out["after"][trained]["value"] < held_out["before"][trained]["value"]
    assert "adapted" in said


def test_foreign_bases_that_cannot_be_extended_are_refused_in_a_line(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 2)
    open_extendable(base)  # packages are imported, and have said what they say then
    capsys.readouterr()
    arguments = [f"checkpoint={base}", f"data.corpus={text_file}", f"run.dir={tmp_path}/runs", "run.name=m"]

    def refuse(words: list[str], *others: str) -> None:
        refused("extend_vocabulary", [*arguments, *others], words, monkeypatch, capsys)

    refuse(["min_count", "give more text"], "extend_vocabulary.min_count=5000")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    refuse(["a.gguf is no directory but a file", "a Hugging Face directory"], f"checkpoint={tmp_path}/a.gguf")
    tokenizer, config = (base / "tokenizer.json").read_text(encoding="utf-8"), (base / "config.json").read_text(encoding="utf-8")
    (base / "config.json").write_text(config.replace('"llama"', '"cohere"'), encoding="utf-8")
    refuse(["'cohere' is not served"])
    (base / "config.json").write_text(config, encoding="utf-8")
    (base / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}), encoding="utf-8")
    refuse(["plain BPE", "'Unigram'"])
    (base / "tokenizer.json").unlink()
    refuse(["has no tokenizer.json"])
    (base / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (base / "delta.json").write_text("{}", encoding="utf-8")
    (base / "adapter_model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    refuse(["is a delta", "export.form=merged"])
    assert not (tmp_path / "runs" / "m").exists()
