"""Documents come as often as their domain was asked for, and once where nothing was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adapt.core.spans import Reading
from adapt.text.packing import PackedCorpus, StepOrder
from adapt.text.tokenized_corpus import TokenizedCorpus
from tests.support.every_case import for_every

MASK = 4
CONTEXT = 32


def corpus_of(lengths: list[int]) -> TokenizedCorpus:
    """Make documents whose tokens are all different: document d holds d * 1000 + 10, + 11, ...; domains in turn."""
    documents = [{"ids": list(range(d * 1000 + 10, d * 1000 + 10 + n))} for d, n in enumerate(lengths)]
    domains = np.arange(len(lengths)) % 3
    return TokenizedCorpus(documents=documents, lengths_D=np.asarray(lengths, np.int64), domains_D=domains)


def random_lengths(seed: int, n: int = 40, longest: int = 150) -> list[int]:
    """Draw lengths that leave no lone token behind a cut."""
    lengths = np.random.default_rng(seed).integers(2, longest, n)
    return [int(length) + int(length % CONTEXT == 1) for length in lengths]


def packed(lengths: list[int], repeats: list[int] | None, seed: int = 0, share: float = 0.0) -> PackedCorpus:
    repeats_D = None if repeats is None else np.asarray(repeats, np.int64)
    return PackedCorpus(corpus_of(lengths), CONTEXT, seed, share, MASK, repeats_D)


def rows_of(source: PackedCorpus) -> list[list[Reading]]:
    return [source.row(index, 0) for index in range(len(source))]


def plain(rows: list[list[Reading]]) -> list[list[tuple[list[int], list[int], list[int], int]]]:
    return [[(r.inputs_T.tolist(), r.targets_T.tolist(), r.kinds_T.tolist(), r.domain) for r in row] for row in rows]


@for_every(seed=range(5))
def test_every_token_comes_as_often_as_its_document_was_asked_for(seed: int) -> None:
    lengths = random_lengths(seed)
    repeats = np.random.default_rng(seed).integers(0, 4, len(lengths)).tolist()
    assert {0, 1, 2, 3} <= set(repeats)
    found = Counter(int(i) for row in rows_of(packed(lengths, repeats, seed)) for reading in row for i in reading.inputs_T)
    wanted = {i: n for d, n in zip(corpus_of(lengths).documents, repeats, strict=True) for i in d["ids"] if n}
    assert found == wanted


@pytest.mark.parametrize("share", [0.0, 0.6])
@for_every(seed=range(3))
def test_without_repeats_the_rows_are_those_of_all_ones(seed: int, share: float) -> None:
    lengths = random_lengths(seed)
    assert plain(rows_of(packed(lengths, None, seed, share))) == plain(rows_of(packed(lengths, [1] * len(lengths), seed, share)))


def test_absent_repeats_keep_the_order_that_a_permutation_of_all_documents_gives() -> None:
    from adapt.core.runtime import generator_for

    lengths = [CONTEXT] * 20
    wanted = generator_for("packing", 5).permutation(20).tolist()
    assert [int(row[0].inputs_T[0]) // 1000 for row in rows_of(packed(lengths, None, 5))] == wanted


def test_a_domain_asked_for_never_is_left_out_and_the_others_keep_their_domain() -> None:
    lengths = random_lengths(1)
    repeats = [0 if d % 3 == 1 else 1 for d in range(len(lengths))]
    readings = [reading for row in rows_of(packed(lengths, repeats)) for reading in row]
    assert {reading.domain for reading in readings} == {0, 2}
    assert all(reading.domain == int(reading.inputs_T[0]) // 1000 % 3 for reading in readings)


def test_copies_of_a_document_do_not_stand_side_by_side() -> None:
    lengths = [CONTEXT] * 30
    order = [int(row[0].inputs_T[0]) // 1000 for row in rows_of(packed(lengths, [2] * 30))]
    assert Counter(order) == dict.fromkeys(range(30), 2)
    assert sum(one == other for one, other in zip(order, order[1:], strict=False)) < 10


def test_copies_of_a_document_hide_spans_of_their_own() -> None:
    rows = rows_of(packed([CONTEXT], [12], share=1.0))
    assert len(rows) == 12
    assert len({tuple(row[0].inputs_T.tolist()) for row in rows}) > 6


@for_every(seed=range(3))
def test_rows_of_a_repeated_corpus_hold_no_more_than_the_context(seed: int) -> None:
    sizes = [sum(len(r) for r in row) for row in rows_of(packed(random_lengths(seed), [3] * 40, seed))]
    assert max(sizes) <= CONTEXT
    assert min(sizes) > 0


def test_an_epoch_of_steps_draws_every_copy() -> None:
    source = packed([CONTEXT] * 4, [3, 0, 1, 2])
    order = StepOrder(n_rows=len(source), batch=3, seed=0)
    drawn = [source.row(row, epoch)[0] for step in range(2) for row, epoch in order.rows_at(step)]
    assert Counter(int(reading.inputs_T[0]) // 1000 for reading in drawn) == {0: 3, 2: 1, 3: 2}


def test_a_corpus_that_is_left_out_as_a_whole_has_no_rows() -> None:
    assert len(packed([5, 6], [0, 0])) == 0
