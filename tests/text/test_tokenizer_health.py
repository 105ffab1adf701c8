"""What a tokenizer does to texts, on planted tokenizers whose faults are known, and on real ones."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from adapt.checkpoint.vocabulary import open_tokenizer
from adapt.text.tokenizer import Tokenizer
from adapt.text.tokenizer_health import (
    Level,
    byte_findings,
    cause_of,
    findings_on,
    health_of,
    reachable_specials,
    unused_pieces,
    vocabulary_findings,
)
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, add_tokenizer
from tests.support.planted_tokenizers import LongestMatch
from tests.support.tiny_models import DEMO

CHARACTERS = "的一是不了好吃"


def test_tokens_bytes_and_used_pieces_are_counted() -> None:
    found = health_of(LongestMatch([*CHARACTERS, "好吃"]), "planted", ["好吃的", "不好葩", ""])
    assert (found.texts, found.characters, found.tokens, found.part_tokens) == (3, 6, 2 + 2 + 3, 3)
    assert found.spelt == {"葩": 1}
    assert len(found.used) == 4 + 3
    assert not found.is_spaced
    assert found.n_lost == 0
    tokenizer = LongestMatch([*CHARACTERS, "好吃"])
    assert unused_pieces(tokenizer, [found]) == tokenizer.vocab_size - 7


def test_many_bytes_are_a_warning_that_names_the_commonest_characters() -> None:
    found = health_of(LongestMatch(CHARACTERS), "planted", ["好吃"] * 20 + ["葩葩", "犟"])
    (warning,) = byte_findings(found)
    assert warning.level is Level.WARNING
    assert "18.4 %" in warning.says  # 9 of 49 tokens
    assert "葩 犟" in warning.says
    assert byte_findings(health_of(LongestMatch([*CHARACTERS, "葩", "犟"]), "planted", ["好吃", "葩犟"])) == []


def test_a_character_of_one_byte_is_no_part_of_one() -> None:
    found = health_of(LongestMatch(CHARACTERS), "planted", ["好吃\n不好\n"])
    assert (found.tokens, found.part_tokens, found.spelt) == (6, 0, {})


def test_unknown_characters_are_lost_and_said_with_an_example() -> None:
    found = health_of(LongestMatch(CHARACTERS, has_bytes=False), "planted", ["好吃", "好葩吃"])
    assert found.unknown_tokens == 1
    assert found.lost_texts == {"unknown characters": 1}
    said = [str(finding) for finding in findings_on(found)]
    assert len(said) == 2
    assert "20.0 % of the tokens are unknown (most often: 葩)" in said[0]
    assert "1 of 2 texts do not decode to themselves" in said[1] and "'好葩吃' -> '好吃'" in said[1]


def test_texts_that_a_normaliser_changes_are_lost() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz ,"
    found = health_of(LongestMatch(letters, fold=str.lower), "planted", ["all well", "Not well", "NO"])
    assert found.lost_texts == {"letters' case": 2}
    wide = health_of(LongestMatch(letters, fold=lambda text: unicodedata.normalize("NFKC", text)), "planted", ["a，b"])
    assert (wide.examples[0].text, wide.examples[0].decoded) == ("a，b", "a,b")


@pytest.mark.parametrize(
    ("text", "decoded", "cause"),
    [
        ("a  b", "a b", "white space"),
        ("A b", "a b", "letters' case"),
        ("（a）", "(a)", "width and compatibility forms"),
        ("naïve", "naive", "accents"),
        ("Naïve  ，", "naive ,", "several of case, width, accents and space"),
        ("abc", "abd", "other characters"),
    ],
)
def test_the_mildest_cause_of_a_loss_is_named(text: str, decoded: str, cause: str) -> None:
    assert cause_of(text, decoded) == cause


def test_special_tokens_that_text_spells_are_found() -> None:
    assert reachable_specials(LongestMatch(CHARACTERS)) == []
    planted = LongestMatch([*"<>|abc", "<|end|>", "[CLS]", "<b >"])
    assert reachable_specials(planted) == ["<|end|>", "[CLS]"]
    (warning,) = vocabulary_findings(planted, [])
    assert "<|end|>, [CLS]" in warning.says


def test_few_characters_a_token_are_said_by_script() -> None:
    english, letters = ["it broke after a week of use"] * 100, "abcdefghijklmnopqrstuvwxyz "
    (said,) = findings_on(health_of(LongestMatch(letters), "planted", english))
    assert "1.00 characters a token, below 2.5" in said.says
    assert findings_on(health_of(LongestMatch([*letters, "it broke ", "after ", "a week", " of use"]), "planted", english)) == []
    chinese = ["好吃的"] * 1000
    assert findings_on(health_of(LongestMatch(CHARACTERS), "planted", chinese)) == []


def test_real_tokenizers_are_looked_at_in_the_same_way(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = (DEMO / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()[:50]
    for kind in (BYTE_LEVEL, METASPACE):
        (tmp_path / kind).mkdir()
    foreign = [open_tokenizer(add_tokenizer(tmp_path / kind, kind)) for kind in (BYTE_LEVEL, METASPACE)]
    for made in (tokenizer, *foreign):
        found = health_of(made, "demo", [*lines, "𠮷𠮷"])
        assert found.n_lost == 0, made.source
        assert "𠮷" in found.spelt, made.source
        assert found.tokens == sum(len(made.encode(line)) for line in [*lines, "𠮷𠮷"])
        assert reachable_specials(made) == [], made.source
