"""Rows hold every token once and never too many, and a step's rows follow from its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adapt.core.spans import NO_TARGET, Reading, Span
from adapt.text.packing import FirstRows, InTurn, PackedCorpus, ReadingList, SomeRows, StepOrder
from adapt.text.tokenized_corpus import TokenizedCorpus
from tests.support.every_case import for_every

MASK = 4
CONTEXT = 32


def corpus_of(lengths: list[int]) -> TokenizedCorpus:
    """Make documents whose tokens are all different: document d holds d * 1000 + 10, + 11, ..."""
    documents = [{"ids": list(range(d * 1000 + 10, d * 1000 + 10 + n))} for d, n in enumerate(lengths)]
    domains = np.arange(len(lengths)) % 3
    return TokenizedCorpus(documents=documents, lengths_D=np.asarray(lengths, np.int64), domains_D=domains)


def random_lengths(seed: int, n: int = 60, longest: int = 150) -> list[int]:
    """Draw lengths that leave no lone token behind a cut."""
    lengths = np.random.default_rng(seed).integers(2, longest, n)
    return [int(length) + int(length % CONTEXT == 1) for length in lengths]


def packed(lengths: list[int], seed: int = 0, share: float = 0.0, mask_id: int | None = MASK) -> PackedCorpus:
    return PackedCorpus(corpus_of(lengths), CONTEXT, seed, share, mask_id)


def rows_of(source: PackedCorpus, epoch: int = 0) -> list[list[Reading]]:
    return [source.row(index, epoch) for index in range(len(source))]


def readings_of(source: PackedCorpus, epoch: int = 0) -> list[Reading]:
    return [reading for row in rows_of(source, epoch) for reading in row]


def plain(rows: list[list[Reading]]) -> list[list[tuple[list[int], list[int], list[int], int]]]:
    return [[(r.inputs_T.tolist(), r.targets_T.tolist(), r.kinds_T.tolist(), r.domain) for r in row] for row in rows]


@for_every(seed=range(5))
def test_every_token_of_every_document_occurs_exactly_once_in_an_epoch(seed: int) -> None:
    lengths = random_lengths(seed)
    found = Counter(int(i) for reading in readings_of(packed(lengths, seed)) for i in reading.inputs_T)
    assert found == Counter(i for document in corpus_of(lengths).documents for i in document["ids"])


@for_every(seed=range(5))
def test_no_row_exceeds_the_context_and_none_is_empty(seed: int) -> None:
    sizes = [sum(len(reading) for reading in row) for row in rows_of(packed(random_lengths(seed), seed))]
    assert max(sizes) <= CONTEXT
    assert min(sizes) > 0


def test_packing_wastes_little() -> None:
    lengths = random_lengths(0, n=400)
    assert sum(lengths) > 0.9 * CONTEXT * len(packed(lengths))


def test_pieces_keep_the_order_of_their_document_and_its_domain() -> None:
    lengths = random_lengths(1)
    for reading in readings_of(packed(lengths)):
        document = int(reading.inputs_T[0]) // 1000
        assert (np.diff(reading.inputs_T) == 1).all()
        assert reading.domain == document % 3


def test_a_piece_never_predicts_another_document() -> None:
    for reading in readings_of(packed(random_lengths(2))):
        assert reading.targets_T[:-1].tolist() == reading.inputs_T[1:].tolist()
        assert reading.targets_T[-1] == NO_TARGET


@pytest.mark.parametrize("length", [2, CONTEXT - 1, CONTEXT, CONTEXT + 2, 3 * CONTEXT])
def test_a_document_of_any_length_is_packed(length: int) -> None:
    assert sum(len(reading) for reading in readings_of(packed([length]))) == length


def test_a_lone_token_predicts_nothing_and_is_left_out() -> None:
    assert [len(reading) for reading in readings_of(packed([CONTEXT + 1]))] == [CONTEXT]
    assert len(packed([1])) == 0


def test_a_corpus_without_documents_has_no_rows() -> None:
    assert len(packed([])) == 0


def test_the_plan_follows_from_lengths_and_seed() -> None:
    lengths = random_lengths(3)
    assert plain(rows_of(packed(lengths, 1))) == plain(rows_of(packed(lengths, 1)))
    assert plain(rows_of(packed(lengths, 1))) != plain(rows_of(packed(lengths, 2)))


def test_without_masked_spans_all_epochs_are_alike() -> None:
    source = packed(random_lengths(4))
    assert plain(rows_of(source, 0)) == plain(rows_of(source, 7))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_about_the_right_share_of_pieces_has_a_masked_span(share: float) -> None:
    readings = readings_of(packed([20] * 600, share=share))
    masked = sum(MASK in reading.inputs_T for reading in readings)
    assert len(readings) == 600
    assert abs(masked - 600 * share) <= 4 * (600 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("length", [3, 4, 7, CONTEXT])
def test_a_masked_span_is_short_one_piece_and_after_the_first_two_tokens(length: int) -> None:
    sizes = set()
    for reading in readings_of(packed([length] * 200, share=1.0)):
        places = np.flatnonzero(reading.inputs_T == MASK)
        sizes.add(len(places))
        assert places[0] >= 2
        assert places[-1] - places[0] + 1 == len(places)
    assert sizes == set(range(1, min(4, length - 2) + 1))


def test_masks_predict_what_they_hide_as_labels_and_are_never_targets() -> None:
    lengths = random_lengths(5)
    hidden = {int(i) for document in corpus_of(lengths).documents for i in document["ids"]}
    for reading in readings_of(packed(lengths, share=1.0)):
        is_mask = reading.inputs_T == MASK
        assert MASK not in reading.targets_T
        assert (reading.kinds_T[is_mask] == int(Span.LABEL)).all()
        assert set(reading.targets_T[is_mask].tolist()) <= hidden
        restored = np.where(is_mask, reading.targets_T, reading.inputs_T)
        assert (np.diff(restored) == 1).all()


def test_masked_spans_are_a_function_of_seed_and_epoch() -> None:
    lengths = random_lengths(6)
    first = plain(rows_of(packed(lengths, share=0.5), epoch=1))
    assert first == plain(rows_of(packed(lengths, share=0.5), epoch=1))
    assert first != plain(rows_of(packed(lengths, share=0.5), epoch=2))


def test_masking_changes_no_plan() -> None:
    lengths = random_lengths(7)
    sizes = [[[len(r) for r in row] for row in rows_of(packed(lengths, share=share))] for share in (0.0, 0.7)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("length", [2, 3])
def test_pieces_too_short_to_mask_stay_whole(length: int) -> None:
    masked = [MASK in reading.inputs_T for reading in readings_of(packed([length] * 20, share=1.0))]
    assert all(masked) == (length > 2)
    assert any(masked) == (length > 2)


@pytest.mark.parametrize(("n_rows", "batch"), [(10, 5), (10, 3), (7, 7), (3, 8), (1, 4), (5, 23)])
def test_each_epoch_is_a_permutation_of_the_rows(n_rows: int, batch: int) -> None:
    order = StepOrder(n_rows=n_rows, batch=batch, seed=0)
    n_steps = -(-4 * n_rows // batch)
    drawn = [pair for step in range(n_steps) for pair in order.rows_at(step)]
    for epoch in range(4):
        assert sorted(row for row, e in drawn if e == epoch) == list(range(n_rows))
    assert [e for _, e in drawn] == sorted(e for _, e in drawn)


@pytest.mark.parametrize(("n_rows", "batch"), [(10, 3), (3, 8), (1, 1)])
def test_every_step_has_a_whole_batch(n_rows: int, batch: int) -> None:
    order = StepOrder(n_rows=n_rows, batch=batch, seed=1)
    assert {len(order.rows_at(step)) for step in range(30)} == {batch}


def test_a_step_needs_no_step_before_it() -> None:
    order = StepOrder(n_rows=11, batch=4, seed=2)
    forward = [order.rows_at(step) for step in range(20)]
    backward = [StepOrder(n_rows=11, batch=4, seed=2).rows_at(step) for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert order.rows_at(1_000_000) == order.rows_at(1_000_000)


def test_batches_of_any_size_draw_the_same_rows_in_the_same_order() -> None:
    one, six = StepOrder(n_rows=10, batch=1, seed=3), StepOrder(n_rows=10, batch=6, seed=3)
    assert [pair for step in range(60) for pair in one.rows_at(step)] == [pair for step in range(10) for pair in six.rows_at(step)]


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    order = StepOrder(n_rows=50, batch=50, seed=4)
    epochs = [[row for row, _ in order.rows_at(step)] for step in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert [row for row, _ in StepOrder(n_rows=50, batch=50, seed=5).rows_at(0)] != epochs[0]


def test_a_list_of_readings_has_one_to_a_row() -> None:
    readings = readings_of(packed([5, 6, 7]))
    source = ReadingList(readings)
    assert len(source) == 3
    assert [source.row(index, 9) for index in range(3)] == [[reading] for reading in readings]


@pytest.mark.parametrize("limit", [0, 1, 5, 10_000])
def test_some_rows_are_the_first_ones_as_in_the_first_epoch(limit: int) -> None:
    source = packed(random_lengths(8), share=0.5)
    some = SomeRows(source, limit)
    assert len(some) == min(limit, len(source))
    for index in range(len(some)):
        assert plain([some.row(index, 5)]) == plain([source.row(index, 0)])


def test_rows_to_read_first_have_steps_of_their_own_and_the_others_follow_as_they_would_by_themselves() -> None:
    rows, text = Sized(9), Sized(5)
    order = InTurn(source=rows, batch=4, seed=2, first=FirstRows(source=text, steps=3))
    assert [order.rows_at(step)[0] for step in range(5)] == [text, text, text, rows, rows]
    alone = InTurn(source=rows, batch=4, seed=2)
    assert [order.rows_at(step + 3) for step in range(6)] == [alone.rows_at(step) for step in range(6)]
    assert [order.rows_at(step)[1] for step in range(3)] == [StepOrder(n_rows=5, batch=4, seed=2).rows_at(s) for s in range(3)]


class Sized(ReadingList):
    """Rows of which only the number counts."""

    def __init__(self, count: int) -> None:
        super().__init__([])
        self._count = count

    def __len__(self) -> int:
        return self._count
