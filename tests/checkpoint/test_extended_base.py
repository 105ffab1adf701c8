"""Hugging Face bases with new pieces: rows are means, old tokens' logits stay, and plain transformers opens the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapt.checkpoint.extended_base import open_extendable, write_extended
from adapt.checkpoint.hf_directory import shards_of
from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.checkpoint.weights import load_model
from adapt.core.errors import CheckpointError
from adapt.model.hf import HFModel
from adapt.text.hf_vocabulary_extension import extend_hf
from adapt.text.vocabulary_extension import Extension, ExtensionConfig
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, PREPENDED
from tests.support.merged_tokenizers import TEXTS, make_base

CONFIG = ExtensionConfig(pieces=30, min_count=5)
INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def extended_base(place: Path, base: Path) -> Extension:
    tokenizer, store, tables = open_extendable(base)
    found = extend_hf(tokenizer, TEXTS * 10, CONFIG)
    place.mkdir()
    write_extended(place, base, found, store, tables)
    return found


def stored(place: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in shards_of(place) for name, tensor in load_file(shard).items()}


def plain_logits(place: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


CASES: list[tuple[str, str, int, dict[str, Any]]] = [
    ("llama", PREPENDED, 5, {"tie_word_embeddings": True}),
    ("qwen3", BYTE_LEVEL, 100, {"tie_word_embeddings": False, "dtype": torch.bfloat16}),
    ("qwen2_moe", METASPACE, 0, {"tie_word_embeddings": False, "max_shard_size": "100KB"}),
    ("olmo2", BYTE_LEVEL, 0, {"tie_word_embeddings": True, "dtype": torch.bfloat16}),
]


@pytest.mark.parametrize(("family", "kind", "spare", "changes"), CASES)
def test_new_rows_are_means_and_all_else_is_the_base(
    tmp_path: Path, family: str, kind: str, spare: int, changes: dict[str, Any]
) -> None:
    base, place = make_base(tmp_path / "base", kind, spare, family, **changes), tmp_path / "grown"
    found, before = extended_base(place, base), stored(base)
    after, first, last = stored(place), found.first, found.first + len(found.pieces)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        grown = after[name]
        assert grown.dtype == tensor.dtype == changes.get("dtype", torch.float32)
        if name not in (INPUT, OUTPUT):
            assert torch.equal(grown, tensor)
            continue
        assert len(grown) == max(len(tensor), last) and torch.equal(grown[:first], tensor[:first])
        assert torch.equal(grown[last:], tensor[last:])
        for row, old in zip(grown[first:last], found.old_tokens, strict=True):
            mean = torch.zeros(tensor.shape[1])
            for token in old:
                mean += tensor[token].float() / len(old)
            torch.testing.assert_close(row.float(), mean, rtol=2**-8, atol=1e-6)
    old_config, config = (json.loads((one / "config.json").read_text(encoding="utf-8")) for one in (base, place))
    assert config == {**old_config, "vocab_size": max(old_config["vocab_size"], last)}
    assert (place / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


@pytest.mark.parametrize(("family", "kind", "spare", "changes"), CASES)
def test_plain_transformers_and_this_project_open_it_with_one_mind(
    tmp_path: Path, family: str, kind: str, spare: int, changes: dict[str, Any]
) -> None:
    base, place = make_base(tmp_path / "base", kind, spare, family, **changes), tmp_path / "grown"
    found = extended_base(place, base)
    own = load_model(place)
    assert isinstance(own, HFModel)
    old, new = tokenizer_of(base), tokenizer_of(place)
    other = "①２３ZQ"
    ids = new.encode_documents([other])[0]
    assert ids == old.encode_documents([other])[0]
    torch.testing.assert_close(plain_logits(place, ids)[:, : found.first], plain_logits(base, ids)[:, : found.first])
    ids = new.encode_documents(TEXTS[:1])[0]
    assert max(ids) >= found.first
    wanted = plain_logits(place, ids)
    with torch.inference_mode():
        logits = own.causal(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    theirs = AutoTokenizer.from_pretrained(str(place))
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == new.encode_documents([text])[0]
        assert theirs.decode(new.encode_documents([text])[0]) == text


def test_a_tied_table_that_is_stored_twice_grows_twice(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 1, tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, OUTPUT: tensors[INPUT].clone()}, base / "model.safetensors", metadata={"format": "pt"})
    found = extended_base(tmp_path / "grown", base)
    after = stored(tmp_path / "grown")
    assert torch.equal(after[INPUT], after[OUTPUT]) and len(after[INPUT]) == found.first + len(found.pieces)


def test_a_base_that_cannot_be_extended_is_refused_by_name(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", BYTE_LEVEL, 1, tie_word_embeddings=False)
    whole = load_file(base / "model.safetensors")
    save_file({**whole, OUTPUT: whole[OUTPUT][:-1].clone()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight has shape"):
        open_extendable(base)
    save_file({name: one for name, one in whole.items() if name != OUTPUT}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
        open_extendable(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "model_type": "cohere"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'cohere' is not served"):
        open_extendable(base)
