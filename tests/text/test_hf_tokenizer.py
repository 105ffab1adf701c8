"""Hugging Face tokenizers: parts join, texts come back, special tokens cannot be spelt, and broken files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from adapt.core.errors import CheckpointError
from adapt.text.hf_tokenizer import HFTokenizer
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, PREPENDED, START, TOKENIZERS, UNKNOWN, add_tokenizer, tokenizer_text

TEXTS = ["物流很快，包装也好。", "a b c", " 前后有空格 ", "第一行\n\n第二行", "龘𠮷😀", "价格：399 元", "\n", " "]


@pytest.fixture(params=TOKENIZERS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> HFTokenizer:
    return HFTokenizer.load(add_tokenizer(tmp_path, request.param))


def described(kind: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads(tokenizer_text(kind)), **changes}


def load(
    place: Path, content: dict[str, Any], settings: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> HFTokenizer:
    (place / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if settings is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if model is not None:
        (place / "config.json").write_text(json.dumps(model), encoding="utf-8")
    return HFTokenizer.load(place)


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_text_comes_back_exactly(opened: HFTokenizer, text: str) -> None:
    assert opened.decode(opened.encode(text)) == text


def test_parts_that_are_encoded_on_their_own_join_to_the_text(opened: HFTokenizer) -> None:
    assert opened.decode([i for text in TEXTS for i in opened.encode(text)]) == "".join(TEXTS)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_has_the_tokens_it_has_behind_a_line_break_in_transformers(kind: str, tmp_path: Path) -> None:
    opened = HFTokenizer.load(add_tokenizer(tmp_path, kind))
    foreign = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer_text(kind)))
    before = foreign.encode("\n", add_special_tokens=False)
    for text in ("物流很快，包装也好。", "a b c", "价格：399 元"):
        both = foreign.encode("\n" + text, add_special_tokens=False)
        assert both[: len(before)] == before
        assert opened.encode(text) == both[len(before) :]


def test_nothing_is_put_before_a_text(opened: HFTokenizer) -> None:
    assert not opened.pieces(opened.encode("好"))[0].startswith(("▁", "Ġ"))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_documents_have_the_tokens_that_transformers_gives_them(kind: str, tmp_path: Path) -> None:
    opened = HFTokenizer.load(add_tokenizer(tmp_path, kind))
    foreign = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer_text(kind)))
    expected = [foreign.encode(text, add_special_tokens=False) for text in TEXTS]
    assert opened.encode_documents(TEXTS) == expected
    assert opened.whole is not None
    for text, found, ids in zip(TEXTS, opened.whole(TEXTS), expected, strict=True):
        assert found.ids == ids
        assert max(found.ends) == len(text)


def test_no_text_can_spell_a_special_token(opened: HFTokenizer) -> None:
    text = f"{START}<s></s>{UNKNOWN}<mask>"
    ids = opened.encode(text)
    assert not {opened.bos_id, opened.eos_id, opened.pad_id, opened.unk_id} & set(ids)
    assert opened.decode(ids) == text


@pytest.mark.parametrize("kind", [PREPENDED, METASPACE])
def test_named_special_tokens_are_found(kind: str, tmp_path: Path) -> None:
    opened = HFTokenizer.load(add_tokenizer(tmp_path, kind))
    assert opened.pieces([opened.bos_id, opened.eos_id, opened.pad_id]) == ["<s>", "</s>", "</s>"]
    assert opened.unk_id == 0
    assert opened.mask_id is None


def test_a_family_without_a_document_start_starts_documents_with_its_end_mark(tmp_path: Path) -> None:
    opened = HFTokenizer.load(add_tokenizer(tmp_path, BYTE_LEVEL))
    assert opened.pieces([opened.bos_id, opened.eos_id, opened.pad_id]) == [START] * 3
    assert opened.unk_id is None


def test_special_tokens_come_from_the_model_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    content = described(PREPENDED)
    opened = load(tmp_path, content, model={"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 10**6})
    assert (opened.bos_id, opened.eos_id, opened.pad_id) == (1, 2, 2)


def test_what_is_saved_opens_as_the_same_tokenizer(opened: HFTokenizer, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    opened.save(other)
    again = HFTokenizer.load(other)
    assert again.digest == opened.digest
    assert again.encode(TEXTS[0]) == opened.encode(TEXTS[0])
    (other / "tokenizer_config.json").write_text(json.dumps({"eos_token": opened.pieces([9])[0]}), encoding="utf-8")
    assert HFTokenizer.load(other).digest != opened.digest


def test_truncation_and_padding_settings_are_not_followed(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    opened = load(tmp_path, described(BYTE_LEVEL, truncation=truncation), {"eos_token": START})
    assert opened.decode(opened.encode(TEXTS[0])) == TEXTS[0]


def test_a_prefix_that_cannot_be_switched_off_is_refused(tmp_path: Path) -> None:
    content = described(BYTE_LEVEL, normalizer={"type": "Replace", "pattern": {"Regex": "\\A好"}, "content": "x"})
    with pytest.raises(CheckpointError, match="could not be switched off"):
        load(tmp_path, content, {"eos_token": START})


def test_a_tokenizer_without_a_document_mark_is_refused(tmp_path: Path) -> None:
    content = described(BYTE_LEVEL, added_tokens=[])
    del content["model"]["vocab"][START]
    with pytest.raises(CheckpointError, match="no token to start or end a document"):
        load(tmp_path, content, {})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", "{", "tokenizer.json: not valid JSON"),
        ("tokenizer.json", "[]", "expected a JSON object"),
        ("tokenizer.json", '{"model": {"type": "Nothing"}}', "not a tokenizer"),
        ("tokenizer_config.json", "{", "not valid JSON"),
    ],
)
def test_a_damaged_file_is_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    add_tokenizer(tmp_path, BYTE_LEVEL)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        HFTokenizer.load(tmp_path)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such tokenizer"):
        HFTokenizer.load(tmp_path)
