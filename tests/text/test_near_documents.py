"""Documents near to a task's rows: n-grams against a plain reference, what is chosen, and going on after a kill."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adapt.core.errors import DataError
from adapt.core.runtime import generator_for
from adapt.text import near_documents
from adapt.text.cleaning.characters import Batch, folded
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.corpus import CorpusFile, Document, is_held_out
from adapt.text.near_documents import Choice, Chosen, CurriculumConfig, choose_documents, log_ratios, ngrams_of, pieces_of

FOOD, NEWS, LAW = "汤面菜饭咸甜辣香软脆", "股市银行基金利率涨跌盘", "第条款项规定机关职责责任"
TARGETS = [f"这家的{FOOD[i % 10]}{FOOD[(3 * i) % 10]}很{FOOD[(7 * i) % 10]}，上菜快" for i in range(60)]


def texts_of(words: str, count: int, length: int, name: str) -> list[str]:
    random = generator_for("test", name)
    return ["".join(random.choice(list(words), length)) + f"。{name}{i}" for i in range(count)]


def corpus(place: Path, **domains: list[str]) -> list[CorpusFile]:
    for name, texts in domains.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (place / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return [CorpusFile(path=place / f"{name}.jsonl", domain=name) for name in domains]


def mixed_corpus(place: Path) -> list[CorpusFile]:
    """Return food of two lengths among news and laws."""
    short, long = texts_of(FOOD, 40, 12, "short"), texts_of(FOOD, 40, 300, "long")
    return corpus(place, law=texts_of(LAW, 300, 60, "law"), food=[*short, *long], news=texts_of(NEWS, 300, 30, "news"))


def chosen(files: list[CorpusFile], work: Path, documents: int = 60, choice: Choice = Choice.NEAR, seed: int = 0) -> Chosen:
    config = CurriculumConfig(documents=documents, choice=choice)
    return choose_documents(files, TARGETS, config, seed, 0.0, None, work)


def test_ngrams_are_those_of_a_plain_reference() -> None:
    texts = ["退货 Very麻烦， very 2件", "", "!?", "ＶＥＲＹ麻烦的abc def", "好", "ab cb ba"]
    buckets_G, owners_G = ngrams_of(Batch.of(texts))
    names: dict[str, int] = {}
    for number, text in enumerate(texts):
        units = [u for part in re.findall(r"[A-Za-zＡ-Ｚ]+\d*|\d+|[\u4e00-\u9fff]", text) if (u := folded(part))]
        wanted = Counter([*units, *(f"{one} {two}" for one, two in zip(units, units[1:], strict=False))])
        found = Counter(buckets_G[owners_G == number].tolist())
        assert sorted(found.values()) == sorted(wanted.values()), text
        for ngram in wanted:
            alone = ngrams_of(Batch.of([ngram]))[0][-1]
            assert names.setdefault(ngram, int(alone)) == alone
            assert found[int(alone)] == wanted[ngram]
    assert len(set(names.values())) == len(names)


def test_a_log_ratio_is_zero_where_shares_are_equal_and_falls_to_the_priors() -> None:
    corpus_B = np.asarray([1e6, 1e6, 2e6])
    assert log_ratios(corpus_B / 1000, corpus_B) == pytest.approx(0.0, abs=1e-6)
    rich, poor, _ = log_ratios(np.asarray([8000.0, 0.0, 0.0]), corpus_B)
    assert rich == pytest.approx(np.log(4 * 8500 / 10_000), abs=1e-4)
    assert poor == pytest.approx(np.log(2000 / 10_000), abs=1e-4)


def test_documents_like_the_rows_are_chosen_whatever_their_length(tmp_path: Path) -> None:
    near = chosen(mixed_corpus(tmp_path), tmp_path / "near")
    assert near.by_domain == {"food": (60, 80), "law": (0, 300), "news": (0, 300)}
    kinds = Counter("long" if "long" in one.text else "short" for one in near.documents)
    assert min(kinds.values()) > 15, kinds
    random = chosen(mixed_corpus(tmp_path), tmp_path / "random", choice=Choice.RANDOM)
    assert 0 < random.by_domain["food"][0] < 20
    assert near.nearness[0] > random.nearness[0] and near.nearness[1] == pytest.approx(random.nearness[1])


def test_a_seed_draws_the_same_documents_and_another_draws_others(tmp_path: Path) -> None:
    files = mixed_corpus(tmp_path)
    for choice in Choice:
        one, same, other = (
            chosen(files, tmp_path / f"{choice.value} {i}", choice=choice, seed=seed) for i, seed in enumerate((0, 0, 1))
        )
        assert one == same
        assert one.documents != other.documents


def test_a_killed_choice_goes_on_to_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mixed_corpus(tmp_path)
    undisturbed = chosen(files, tmp_path / "undisturbed")
    read = near_documents.read_documents
    opened: list[str] = []
    for killed_at in (2, 4):  # while the second file is counted, and while documents of the second file are weighed

        def until(file: CorpusFile, killed_at: int = killed_at) -> object:
            opened.append(file.domain)
            if len(opened) == killed_at:
                raise KeyboardInterrupt
            return read(file)

        opened.clear()
        monkeypatch.setattr(near_documents, "read_documents", until)
        with pytest.raises(KeyboardInterrupt):
            chosen(files, tmp_path / "killed")
    opened.clear()
    monkeypatch.setattr(near_documents, "read_documents", read)
    assert chosen(files, tmp_path / "killed") == undisturbed


def test_what_is_held_out_or_shares_a_passage_with_evaluation_texts_is_not_chosen(tmp_path: Path) -> None:
    files = mixed_corpus(tmp_path)
    free = chosen(files, tmp_path / "free")
    stolen = free.documents[5].text
    index = EvaluationIndex.of_texts({"dev": [stolen]}, 24, 10)
    found = choose_documents(files, TARGETS, CurriculumConfig(documents=60), 0, 0.3, index, tmp_path / "kept out")
    assert stolen in {one.text for one in free.documents} - {one.text for one in found.documents}
    assert not any(is_held_out(one.text, 0.3) for one in found.documents)
    assert any(is_held_out(one.text, 0.3) for one in free.documents)
    if not is_held_out(stolen, 0.3):
        assert found.kept_out == 1


def test_long_documents_are_cut_at_ends_of_sentences_and_nothing_is_lost() -> None:
    text = "这是一句。" * 30 + "没有句号" * 60
    pieces = [one.text for one in pieces_of(Document(text=text, domain="d"), 100)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert pieces[0] == "这是一句。" * 20


def test_a_corpus_without_a_document_of_enough_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl and 0 more: no document is as long"):
        chosen(corpus(tmp_path, a=["好", "汤"]), tmp_path / "work")
