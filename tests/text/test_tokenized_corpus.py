"""A tokenized corpus on disk opens as it was written, with and without held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.text.corpus import find_corpus
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from adapt.text.tokenizer import Tokenizer


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_documents_are_kept_or_held_out(tokenizer: Tokenizer, tmp_path: Path, share: float) -> None:
    lines = [f"第{number}篇短文，讲的是天气。" for number in range(40)]
    file = tmp_path / "general.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    train, held_out = (
        open_tokenized(place) for place in tokenize_corpus(find_corpus([str(file)]), tokenizer, tmp_path / "made", share)
    )
    assert len(train.lengths_D) + len(held_out.lengths_D) == len(lines)
    assert bool(len(held_out.lengths_D)) == (share > 0)
    assert len(held_out.of_domain(0).lengths_D) == len(held_out.lengths_D)
    found = {tokenizer.decode(part.ids(i)[1:-1].tolist()) for part in (train, held_out) for i in range(len(part.lengths_D))}
    assert found == set(lines)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_same_corpus_is_written_to_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path, share: float) -> None:
    file = tmp_path / "general.txt"
    file.write_text("\n".join(f"第{number}篇短文。" for number in range(20)), encoding="utf-8")
    first, second = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for place in tokenize_corpus(find_corpus([str(file)]), tokenizer, tmp_path / name, share)
            for path in place.iterdir()
        }
        for name in ("one", "other")
    )
    assert first == second and len(first) >= 5
