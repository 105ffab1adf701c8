"""What was scored and labelled is read back as it was, so that one can rank, decide and select again without scoring again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.errors import CheckpointError, DataError
from adapt.core.spans import LabelForm, Span
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.criteria.contract import CandidateScores, Null, get_criterion
from pseudo_label.decision import Method, fit_decision
from pseudo_label.store import (
    LABELS_FILE,
    SCORES_FILE,
    Provenance,
    PseudoLabel,
    join_scores,
    labels_of,
    read_labels,
    read_scores,
    reading_digest,
    rows_of_labels,
    write_labels,
    write_scores,
)
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from pseudo_label.zero_shot import PassScores, PromptKeys, ScoringPass, keys_from

PROVENANCE = Provenance(prompt="reference,second", criterion="sum,pmi", method="ensemble", checkpoint="abc")
PROMPTS = ("second", "reference", "third")
WANTED = [(prompt, get_criterion(name)) for prompt, name in zip(PROMPTS, ("sum", "pmi", "channel"), strict=True)]


def task_of(*, candidates: str | None = None) -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text"), "note": FieldConfig(path="note", is_optional=True)},
        label_words={} if candidates else {"a": "甲", "b": "乙", "c": "丙"},
        prompts={name: PromptConfig(template="{text}{label}") for name in PROMPTS},
        label_tree=None if candidates else {"一": ["a", "b"], "二": ["c"]},
        candidates=candidates,
    )


def rows_of(n: int, candidates: list[int] | None = None) -> list[TaskRow]:
    ids: list[object] = [0, "x", None, {"k": [1]}, "编号"]
    return [
        TaskRow(
            id=ids[i % len(ids)],
            texts={"text": f"文本 {i}", "note": ""},
            label=None,
            candidates=None if candidates is None else tuple(f"词{c}" for c in range(candidates[i])),
            line=2 * i + 1,
        )
        for i in range(n)
    ]


def random_scores(random: np.random.Generator, n: int) -> CandidateScores:
    """Draw a candidate's sums, counts and characters, -inf and numbers that no decimal writes exactly among them."""
    sums = random.normal(size=(n, len(Span))) * 7 - 20
    sums[0, 0] = -np.inf
    return CandidateScores(sums_C3=sums, tokens_C3=random.integers(1, 900, (n, len(Span))), characters_C=random.integers(1, 9, n))


def passes_of(rows: list[TaskRow], *, with_groups: bool = False, seed: int = 0) -> list[PassScores]:
    """Draw the passes that `WANTED` reads: one for each prompt, the second with its null context."""
    random = np.random.default_rng(seed)
    found = []
    for prompt, criterion in WANTED:
        what = ScoringPass(
            prompt=prompt,
            form=criterion.form or LabelForm.MLM,
            kinds=tuple(sorted(criterion.kinds)),
            null=criterion.null,
            with_groups=with_groups,
        )
        sizes = [(3 if row.candidates is None else len(row.candidates)) + 2 * with_groups for row in rows]
        scores = [random_scores(random, n) for n in sizes]
        nulls = [random_scores(random, n) if criterion.needs_null else None for n in sizes]
        found.append(PassScores(what=what, rows=scores, nulls=nulls))
    return found


def keys_of(passes: list[PassScores], task: TaskConfig) -> list[PromptKeys]:
    return keys_from(passes, WANTED, LabelForm.MLM, task)


def same_scores(left: CandidateScores | None, right: CandidateScores | None) -> bool:
    if left is None or right is None:
        return left is right
    names = ("sums_C3", "tokens_C3", "characters_C")
    pairs = [(getattr(left, name), getattr(right, name)) for name in names]
    return all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def assert_same(left: list[PassScores], right: list[PassScores]) -> None:
    assert [p.what for p in left] == [p.what for p in right]
    for one, other in zip(left, right, strict=True):
        assert len(one.rows) == len(other.rows) == len(one.nulls) == len(other.nulls)
        assert all(map(same_scores, one.rows, other.rows))
        assert (one.what.null is not Null.NONE) == any(null is not None for null in one.nulls)
        for null, read in zip(one.nulls, other.nulls, strict=True):
            # A null context has its row's candidates, and so their characters.
            assert (null is None) == (read is None)
            assert null is None or read is None or np.array_equal(null.sums_C3, read.sums_C3)
            assert null is None or read is None or np.array_equal(null.tokens_C3, read.tokens_C3)


@pytest.mark.parametrize("with_groups", [True, False])
def test_passes_come_back_bit_for_bit_in_the_order_of_prompts(tmp_path: Path, with_groups: bool) -> None:
    rows = rows_of(40)
    passes = passes_of(rows, with_groups=with_groups)
    write_scores(tmp_path / SCORES_FILE, task_of(), rows, passes, "abc")
    assert_same(read_scores(tmp_path / SCORES_FILE, task_of(), rows), passes)


@pytest.mark.parametrize("with_groups", [True, False])
def test_keys_from_read_passes_are_the_keys_from_the_originals(tmp_path: Path, with_groups: bool) -> None:
    task, rows = task_of(), rows_of(40)
    passes = passes_of(rows, with_groups=with_groups)
    write_scores(tmp_path / SCORES_FILE, task, rows, passes, "abc")
    before, after = keys_of(passes, task), keys_of(read_scores(tmp_path / SCORES_FILE, task, rows), task)
    assert [(k.prompt, k.criterion) for k in after] == [(k.prompt, k.criterion) for k in before]
    for one, other in zip(before, after, strict=True):
        assert one.labels_NC.shape == (40, 3)
        assert np.array_equal(one.labels_NC, other.labels_NC)
        assert (one.groups_NG is not None) is (other.groups_NG is not None) is with_groups
        if one.groups_NG is not None and other.groups_NG is not None:
            assert np.array_equal(one.groups_NG, other.groups_NG)


@pytest.mark.parametrize("method", [method for method in Method if not method.needs_lexical])
@pytest.mark.parametrize("with_groups", [True, False])
def test_a_decision_from_read_scores_is_the_decision_from_the_originals(tmp_path: Path, method: Method, with_groups: bool) -> None:
    task, rows = task_of(), rows_of(40)
    passes = [finite(p) for p in passes_of(rows, with_groups=with_groups)]
    write_scores(tmp_path / SCORES_FILE, task, rows, passes, "abc")
    keys, read = keys_of(passes, task), keys_of(read_scores(tmp_path / SCORES_FILE, task, rows), task)
    coarse = CoarseToFine() if with_groups else None
    one, other = (fit_decision(method, k, task, coarse_to_fine=coarse) for k in (keys, read))
    assert one == other
    assert np.array_equal(one.scores(keys, task), other.scores(read, task))


def finite(scored: PassScores) -> PassScores:
    for row in scored.rows:
        row.sums_C3[0, 0] = -20.0
    return scored


def test_rows_with_lists_of_different_lengths_come_back_as_they_were(tmp_path: Path) -> None:
    task, rows = task_of(candidates="candidates"), rows_of(4, [3, 1, 2, 7])
    passes = passes_of(rows)
    write_scores(tmp_path / SCORES_FILE, task, rows, passes, "abc")
    read = read_scores(tmp_path / SCORES_FILE, task, rows)
    assert_same(read, passes)
    assert np.isfinite(keys_of(read, task)[0].labels_NC).sum(axis=1).tolist() == [3, 1, 2, 7]
    assert [labels_of(row, task) for row in rows][:3] == [["0", "1", "2"], ["0"], ["0", "1"]]


def test_the_labels_of_a_row_without_candidates_are_the_tasks() -> None:
    assert labels_of(rows_of(1)[0], task_of()) == ["a", "b", "c"]


def test_no_rows_are_written_and_read(tmp_path: Path) -> None:
    write_scores(tmp_path / SCORES_FILE, task_of(), [], passes_of([]), "abc")
    write_labels(tmp_path / LABELS_FILE, task_of(), [], [], PROVENANCE)
    assert read_scores(tmp_path / SCORES_FILE, task_of(), []) == []
    assert read_labels(tmp_path / LABELS_FILE) == []


@pytest.mark.parametrize("sizes", [[40], [16, 16, 8], [1, 39]])
def test_parts_that_were_joined_read_as_if_written_at_once(tmp_path: Path, sizes: list[int]) -> None:
    task, rows = task_of(), rows_of(40)
    whole = passes_of(rows, with_groups=True)
    parts, start = [], 0
    for number, size in enumerate(sizes):
        chunk = slice(start, start + size)
        some = [PassScores(what=p.what, rows=p.rows[chunk], nulls=p.nulls[chunk]) for p in whole]
        parts.append(tmp_path / f"part-{number}.unfinished")
        write_scores(parts[-1], task, rows[chunk], some, "abc")
        start += size
    join_scores(tmp_path / SCORES_FILE, parts)
    assert_same(read_scores(tmp_path / SCORES_FILE, task, rows), whole)


def other_rows() -> dict[str, list[TaskRow]]:
    rows = rows_of(5)
    return {
        "fewer": rows[:4],
        "more": rows_of(6),
        "none": [],
        "in another order": rows[::-1],
        "another text": [*rows[:4], replace(rows[4], texts={"text": "别的", "note": ""})],
        "another line": [*rows[:4], replace(rows[4], line=100)],
    }


@pytest.mark.parametrize("other", list(other_rows()))
def test_scores_of_other_rows_are_refused(tmp_path: Path, other: str) -> None:
    place = tmp_path / SCORES_FILE
    write_scores(place, task_of(), rows_of(5), passes_of(rows_of(5)), "abc")
    with pytest.raises(CheckpointError, match=r"scores\.parquet: holds scores of other rows"):
        read_scores(place, task_of(), other_rows()[other])


@pytest.mark.parametrize(
    "changes",
    [
        {"label_words": {"b": "乙", "a": "甲", "c": "丙"}},
        {"label_words": {"a": "甲", "b": "乙"}},
        {"label_tree": {"二": ["c"], "一": ["a", "b"]}},
    ],
)
def test_scores_of_other_labels_or_of_labels_in_another_order_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    place, rows = tmp_path / SCORES_FILE, rows_of(5)
    write_scores(place, task_of(), rows, passes_of(rows, with_groups=True), "abc")
    with pytest.raises(CheckpointError, match=r"scores\.parquet: holds scores of other rows or labels"):
        read_scores(place, replace(task_of(), **changes), rows)


def test_scores_of_rows_with_other_numbers_of_candidates_are_refused(tmp_path: Path) -> None:
    place, task = tmp_path / SCORES_FILE, task_of(candidates="candidates")
    write_scores(place, task, rows_of(2, [3, 2]), passes_of(rows_of(2, [3, 2])), "abc")
    with pytest.raises(CheckpointError, match=r"scores\.parquet: holds scores of other rows or labels"):
        read_scores(place, task, rows_of(2, [2, 3]))


def labels_for(rows: list[TaskRow]) -> list[PseudoLabel]:
    random = np.random.default_rng(1)
    return [
        PseudoLabel(
            text_digest=reading_digest(row),
            line=row.line,
            label="abc"[i % 3],
            margin=float(random.random()),
            confidence=float(random.random()),
            agreement=float(random.random()),
            labels=task_of().labels,
            scores=[*random.normal(size=2).tolist(), -np.inf],
            probabilities=random.random(3).tolist(),
            is_selected=i % 2 == 0,
            is_held_out=i % 5 == 0,
        )
        for i, row in enumerate(rows)
    ]


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    rows = rows_of(20)
    write_labels(tmp_path / LABELS_FILE, task_of(), rows, labels_for(rows), PROVENANCE)
    assert read_labels(tmp_path / LABELS_FILE) == labels_for(rows)


def test_a_label_for_every_row_is_demanded(tmp_path: Path) -> None:
    rows = rows_of(3)
    with pytest.raises(ValueError):
        write_labels(tmp_path / LABELS_FILE, task_of(), rows, labels_for(rows[:2]), PROVENANCE)


def test_scores_for_every_row_are_demanded(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_scores(tmp_path / SCORES_FILE, task_of(), rows_of(3), passes_of(rows_of(2)), "abc")


@pytest.mark.parametrize("content", [None, b"", b"not parquet at all"])
def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / SCORES_FILE
    if content is not None:
        place.write_bytes(content)
    for read in (
        lambda: read_scores(place, task_of(), []),
        lambda: read_labels(place),
        lambda: join_scores(tmp_path / "x", [place]),
    ):
        with pytest.raises(CheckpointError, match=r"scores\.parquet: missing, damaged or not a Parquet file"):
            read()


@pytest.mark.parametrize("place_of_damage", ["end", "middle", "footer"])
def test_a_truncated_or_overwritten_file_is_refused(tmp_path: Path, place_of_damage: str) -> None:
    place = tmp_path / SCORES_FILE
    write_scores(place, task_of(), rows_of(40), passes_of(rows_of(40)), "abc")
    content = bytearray(place.read_bytes())
    if place_of_damage == "end":
        del content[-100:]
    elif place_of_damage == "middle":
        content[8 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8)
    else:
        content[-200:-50] = b"\xff" * 150
    place.write_bytes(bytes(content))
    with pytest.raises(CheckpointError):
        read_scores(place, task_of(), rows_of(40))


def test_labels_find_their_rows_by_their_texts_in_any_order_also_where_texts_repeat() -> None:
    rows = [replace(row, texts={**row.texts, "text": f"文本 {i % 3}"}) for i, row in enumerate(rows_of(8))]
    labels = labels_for(rows)
    found = rows_of_labels(labels, rows[::-1], "unlabeled.json")
    assert [row.texts for row in found] == [row.texts for row in rows]
    assert sorted(row.line for row in found) == sorted(row.line for row in rows), "each row is taken once"


@pytest.mark.parametrize("changes", [{"texts": {"text": "文本0", "note": ""}}, {"candidates": ("词1", "词0")}])
def test_rows_that_differ_in_white_space_or_candidates_are_told_apart(changes: dict[str, Any]) -> None:
    row = replace(rows_of(1)[0], candidates=("词0", "词1"))
    other = replace(row, **changes)
    assert rows_of_labels(labels_for([row]), [other, row], "unlabeled.json") == [row]


@pytest.mark.parametrize("left", [[0, 1, 3], [0, 1, 2, 3]])
def test_a_row_that_is_not_there_any_more_is_named(left: list[int]) -> None:
    rows = rows_of(4)
    labels = labels_for([*rows, rows[0]])
    with pytest.raises(DataError, match=r"^data/unlabeled\.json: lacks the row that was line \d when .*pipelines\.pseudo_label"):
        rows_of_labels(labels, [rows[i] for i in left], "data/unlabeled.json")
