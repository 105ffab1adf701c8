"""A SentencePiece model as a tokenizer.json: the same tokens on every text, in transformers too; what cannot be so is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from adapt.text.hf_tokenizer import TOKENIZER_FILE, HFTokenizer
from adapt.text.sentencepiece_json import PART_MARK, PROBES, first_difference, json_bytes, tokenizer_json, tokenizer_settings
from adapt.text.tokenizer import Tokenizer
from adapt.text.vocabulary_extension import ExtensionConfig, extend
from pipelines.config.locations import demo_dir
from tests.support.tiny_models import DEMO


def written(tokenizer: Tokenizer) -> HFTokenizer:
    files = {
        TOKENIZER_FILE: json_bytes(tokenizer_json(tokenizer)),
        "tokenizer_config.json": json_bytes(tokenizer_settings(tokenizer, 96)),
    }
    return HFTokenizer(files, {}, TOKENIZER_FILE, is_recorded=True)


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.load(demo_dir() / "base")


@pytest.fixture(scope="module")
def shipped_as_json(shipped: Tokenizer) -> HFTokenizer:
    return written(shipped)


def demo_texts() -> list[str]:
    texts = (DEMO / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    for task in ("demo_reviews", "demo_topics"):
        lines = (DEMO / "clue" / task / "unlabeled.json").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["sentence"] for line in lines]
    return [*texts, "\n".join(texts)[:20_000]]


def test_real_texts_have_the_same_tokens_and_come_back(shipped: Tokenizer, shipped_as_json: HFTokenizer) -> None:
    assert first_difference(shipped, shipped_as_json.encode, demo_texts()) is None
    for text in [*PROBES, *demo_texts()]:
        assert shipped_as_json.decode(shipped.encode(text)) == shipped.decode(shipped.encode(text))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=PART_MARK), max_size=40))
def test_any_text_has_the_same_tokens(shipped: Tokenizer, shipped_as_json: HFTokenizer, text: str) -> None:
    assert shipped_as_json.encode(text) == shipped.encode(text)


def test_an_extended_vocabulary_has_the_same_tokens(tokenizer: Tokenizer) -> None:
    texts = demo_texts()
    found = extend(tokenizer, texts, ExtensionConfig(pieces=60, min_count=5))
    assert len(found.pieces) > 20
    assert isinstance(found.tokenizer, Tokenizer)
    assert first_difference(found.tokenizer, written(found.tokenizer).encode, texts) is None
    assert found.tokenizer.encode(texts[-1]) != tokenizer.encode(texts[-1])


def test_a_part_mark_cuts_and_leaves_no_token(shipped: Tokenizer, shipped_as_json: HFTokenizer) -> None:
    parts = [("这家店很", "好，这句话表达的是"), ("你", "好"), ("今", "天"), ("a ", " b"), ("", "满意")]
    assert any(shipped.encode(one + other) != shipped.encode(one) + shipped.encode(other) for one, other in parts)
    for one, other in parts:
        assert shipped_as_json.encode(f"{one}{PART_MARK}{other}{PART_MARK}") == shipped.encode(one) + shipped.encode(other)


def test_transformers_starts_documents_and_takes_marks_for_text(shipped: Tokenizer, tmp_path: Path) -> None:
    written(shipped).save(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*PROBES, *demo_texts()[:50]):
        assert opened(text).input_ids == [shipped.bos_id, *shipped.encode(text)], text
    marks = (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id, opened.unk_token_id, opened.mask_token_id)
    assert marks == (shipped.bos_id, shipped.eos_id, shipped.pad_id, shipped.unk_id, shipped.mask_id)
    assert opened.model_max_length == 96
    assert opened.decode(opened("你好 a").input_ids, skip_special_tokens=True) == "你好 a"
    assert len(opened) == shipped.vocab_size


def test_a_model_that_is_no_bpe_is_found(tmp_path: Path) -> None:
    lines = "\n".join(demo_texts()[:400])
    (tmp_path / "text").write_text(lines, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "unigram"), vocab_size=2600, model_type="unigram",
        byte_fallback=True, add_dummy_prefix=False, minloglevel=2,
    )  # fmt: skip
    other = Tokenizer((tmp_path / "unigram.model").read_bytes(), "unigram")
    assert first_difference(other, written(other).encode, demo_texts()) is not None
