"""New pieces behind a tokenizer's own: they are made of old tokens, text is saved, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.text.tokenizer import Tokenizer
from adapt.text.vocabulary_extension import ExtensionConfig, _merged, extend
from pipelines.config.locations import demo_dir

DOMAIN = [
    "患者入院后行腹腔镜胆囊切除术，术后恢复良好。",
    "腹腔镜胆囊切除术的并发症包括胆漏和出血。",
    "哈哈哈哈哈哈，MRI检查未见异常。",
] * 30
CONFIG = ExtensionConfig(pieces=40, min_count=5)


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return Tokenizer.load(demo_dir() / "base")


def test_pieces_are_made_of_old_tokens_and_every_one_is_reached(base: Tokenizer) -> None:
    found = extend(base, DOMAIN, CONFIG)
    assert 20 < len(found.pieces) <= 40 and len(set(found.pieces)) == len(found.pieces)
    assert found.tokenizer.vocab_size == base.vocab_size + len(found.pieces)
    for number, (piece, old) in enumerate(zip(found.pieces, found.old_tokens, strict=True)):
        assert "".join(base.pieces(old)) == piece and len(piece) <= 8
        assert found.tokenizer.encode(piece) == [base.vocab_size + number]
    assert extend(base, DOMAIN, CONFIG).pieces == found.pieces
    assert found.tokenizer.mask_id == base.mask_id and found.tokenizer.marks == base.marks


def test_text_takes_fewer_tokens_and_comes_back_the_same(base: Tokenizer) -> None:
    own = extend(base, DOMAIN, CONFIG).tokenizer
    for text in [*DOMAIN[:3], "今天天气很好，hello ①２３\n第二行😀", ""]:
        assert own.decode(own.encode(text)) == text
        assert len(own.encode(text)) <= len(base.encode(text))
    assert len(own.encode(DOMAIN[0])) < 0.7 * len(base.encode(DOMAIN[0]))
    other = "窗外下着小雨。"
    assert own.encode(other) == base.encode(other)


def test_the_first_piece_is_the_most_frequent_pair(base: Tokenizer) -> None:
    texts = ["鹦鹉"] * 9 + ["蝴蝶"] * 7
    counts = Counter(pair for text in texts for pair in pairwise(base.encode(text)))
    found = extend(base, texts, ExtensionConfig(pieces=1, min_count=2))
    assert tuple(found.old_tokens[0]) == max(counts, key=lambda pair: (counts[pair], [-token for token in pair]))


def test_merging_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    for chosen in ([(1, 2), (3, 3)], [(2, 2)], [(4, 1), (3, 2)]):
        for _ in range(20):
            ids = draw.integers(-1, 5, 40)
            assert _merged(ids, chosen, 5).tolist() == plainly_merged(ids.tolist(), chosen)


def plainly_merged(ids: list[int], chosen: list[tuple[int, int]]) -> list[int]:
    found: list[int] = []
    place = 0
    while place < len(ids):
        pair = (ids[place], ids[place + 1]) if place + 1 < len(ids) else None
        if pair in chosen:
            found.append(5 + chosen.index(pair))
            place += 2
        else:
            found.append(ids[place])
            place += 1
    return found


def test_text_without_frequent_pairs_is_refused(base: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"extend_vocabulary\.min_count: no pair"):
        extend(base, ["每个字都不同"], CONFIG)
    with pytest.raises(ConfigError, match="no pair"):
        extend(base, [], CONFIG)
