"""A result is taken as it is only where all that it was made from is unchanged: corpus files, rows, exports, stages' versions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import composed, in_process

from adapt.text.corpus import find_corpus
from pipelines import tokenizer
from pipelines.locations import demo_dir
from pipelines.stage import Walk
from pipelines.tokenizer import corpus_digests

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a corpus of two files that have one name, in two directories."""
    place = tmp_path / "corpus"
    lines = (demo_dir() / "corpus" / "general.txt").read_text(encoding="utf-8").splitlines()
    for name, some in (("a", lines[:160]), ("b", lines[160:])):
        (place / name).mkdir(parents=True)
        (place / name / "news.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
    return place


def digests_of(place: Path) -> dict[str, str]:
    return corpus_digests(find_corpus([f"{place}/*/news.txt"]))


def test_files_of_one_name_in_two_directories_both_count(corpus: Path) -> None:
    first = digests_of(corpus)
    assert len(first) == 2
    seen = [first]
    for name in ("a", "b"):
        (corpus / name / "news.txt").write_text(f"另一篇文章 {name}\n", encoding="utf-8")
        seen.append(digests_of(corpus))
        assert seen.count(seen[-1]) == 1


def test_the_order_of_corpus_files_counts_and_their_place_does_not(corpus: Path, tmp_path: Path) -> None:
    first = digests_of(corpus)
    assert digests_of(Path(shutil.copytree(corpus, tmp_path / "elsewhere" / "moved"))) == first
    (corpus / "a" / "news.txt").rename(corpus / "a" / "old")
    (corpus / "b" / "news.txt").rename(corpus / "a" / "news.txt")
    (corpus / "a" / "old").rename(corpus / "b" / "news.txt")
    assert sorted(digests_of(corpus).values()) == sorted(first.values())
    assert digests_of(corpus) != first


def test_a_change_of_one_of_two_files_of_a_name_trains_another_tokenizer(
    corpus: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    arguments = [f"data.corpus=['{corpus}/*/news.txt']", "tokenizer.vocab_size=2400", f"run.dir={tmp_path}/runs"]
    for changes, word in [(False, "documents"), (False, "unchanged, skipped"), (True, "documents"), (False, "unchanged, skipped")]:
        if changes:
            file = corpus / "a" / "news.txt"
            file.write_text(file.read_text(encoding="utf-8").replace("的", "地"), encoding="utf-8")
        code, text = in_process("tokenizer", arguments, monkeypatch, capsys)
        assert code == 0, text
        assert word in text
    walk = Walk(composed("tokenizer", arguments))
    assert tokenizer.plan(walk, None).key.digest() == walk.require("tokenizer").key
