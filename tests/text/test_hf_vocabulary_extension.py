"""New pieces behind those of a `tokenizer.json`: made of old tokens, text is saved, other text keeps its tokens, ids stay."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapt.core.errors import CheckpointError, ConfigError
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.hf_vocabulary_extension import check_merges, extend_hf
from adapt.text.vocabulary_extension import ExtensionConfig
from tests.support.hf_checkpoints import BYTE_LEVEL, BYTE_LEVEL_SPACED, START, TOKENIZERS
from tests.support.merged_tokenizers import LATER, OTHERS, TEXTS, described

CONFIG = ExtensionConfig(pieces=60, min_count=5, max_characters=16)


def opened(content: dict[str, Any]) -> HFTokenizer:
    marks = {"eos_token": START if START in content["model"]["vocab"] else "</s>"}
    files = {"tokenizer.json": json.dumps(content).encode(), "tokenizer_config.json": json.dumps(marks).encode()}
    return HFTokenizer({**files, "vocab.json": b"{}"}, {}, "a/tokenizer.json")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_are_made_of_old_tokens_and_text_comes_back_the_same(kind: str) -> None:
    for holes in (False, True):
        base = opened(described(kind, holes))
        found = extend_hf(base, TEXTS * 10, CONFIG)
        own = found.tokenizer
        assert isinstance(own, HFTokenizer)
        assert 20 < len(found.pieces) <= 60 and found.first == base.vocab_size
        assert own.vocab_size == base.vocab_size + len(found.pieces)
        for piece, old in zip(found.pieces, found.old_tokens, strict=True):
            assert "".join(base.pieces(old)) == piece and len(old) > 1
        assert {token: own.vocabulary[token] for token in base.vocabulary} == base.vocabulary
        assert (own.bos_id, own.eos_id, own.pad_id, own.marks) == (base.bos_id, base.eos_id, base.pad_id, base.marks)
        others = [text for text in OTHERS if not any(piece in "".join(base.pieces(base.encode(text))) for piece in found.pieces)]
        assert len(others) > 2
        for text in others:
            assert own.encode(text) == base.encode(text)
            assert own.encode_documents([text]) == base.encode_documents([text])
        assert base.vocabulary[LATER] not in own.encode(f"{LATER} x")
        for text in [*TEXTS, *OTHERS]:
            assert own.decode(own.encode(text)) == base.decode(base.encode(text)) == text
            assert len(own.encode(text)) <= len(base.encode(text))
        assert sum(map(len, own.encode_documents(TEXTS))) < 0.75 * sum(map(len, base.encode_documents(TEXTS)))
        assert extend_hf(base, TEXTS * 10, CONFIG).pieces == found.pieces


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_tokens_are_those_that_a_plain_loop_over_the_merges_saves(kind: str) -> None:
    base = opened(described(kind))
    found = extend_hf(base, TEXTS * 10, CONFIG)
    assert isinstance(found.tokenizer, HFTokenizer)
    merges = found.tokenizer.description["model"]["merges"][-len(found.pieces) :]
    for text in TEXTS:
        words = [[base.pieces([token])[0] for token in word] for word in base.encode_words([text])[0]]
        for one, other in merges:
            words = [plainly_joined(word, one, other) for word in words]
        (ids,) = found.tokenizer.encode_documents([text])
        assert found.tokenizer.pieces(ids) == [piece for word in words for piece in word]


def plainly_joined(word: list[str], one: str, other: str) -> list[str]:
    joined: list[str] = []
    for piece in word:
        if joined and joined[-1] == one and piece == other:
            joined[-1] = one + other
        else:
            joined.append(piece)
    return joined


def test_words_join_with_the_space_before_them_and_never_over_one() -> None:
    for kind, space in ((BYTE_LEVEL, "Ġ"), (BYTE_LEVEL_SPACED, "Ġ"), (TOKENIZERS[2], "▁"), (TOKENIZERS[3], "▁")):
        found = extend_hf(opened(described(kind)), ["see the laparoscopic view"] * 30, CONFIG)
        assert f"{space}laparoscopic" in found.pieces
        assert not any(space in piece[1:] for piece in found.pieces)


def test_merges_keep_the_form_of_the_file_and_other_forms_of_the_vocabulary_go() -> None:
    content = described(BYTE_LEVEL)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    grown = extend_hf(opened(content), TEXTS * 10, CONFIG).tokenizer
    assert isinstance(grown, HFTokenizer)
    assert all(isinstance(merge, str) for merge in grown.description["model"]["merges"])
    assert "vocab.json" not in grown._files and grown.encode(TEXTS[0])


def test_what_has_no_merges_to_go_on_from_is_refused() -> None:
    content = described(BYTE_LEVEL)
    with pytest.raises(ConfigError, match=r"min_count: no pair"):
        extend_hf(opened(content), ["each its own"], CONFIG)
    for model, words in (
        ({"type": "Unigram", "vocab": []}, "'Unigram'"),
        ({**content["model"], "dropout": 0.1}, "dropout is set"),
        (None, "None"),
    ):
        with pytest.raises(CheckpointError, match=words):
            check_merges({"model": model}, "a/tokenizer.json")
