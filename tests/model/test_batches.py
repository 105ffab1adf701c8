"""Rows of readings laid out as tensors: every token, target and kind at its place, padding everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span, join_parts, read_with_targets
from adapt.model.batches import Batch, collate

MASK = 99


def reading(seed: int, length: int, form: LabelForm = LabelForm.CLM) -> Reading:
    """Return a text of seeded tokens, its last two but one a label, of domain `seed`."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, 90, length).tolist()
    parts = [(ids[:1], Span.CONTEXT), (ids[1:-3], Span.PROMPT), (ids[-3:-1], Span.LABEL), (ids[-1:], Span.CONTEXT)]
    return read_with_targets(join_parts(parts, domain=seed), form, MASK)


def taken_back(batch: Batch, row: int, start: int, length: int) -> tuple[list[int], ...]:
    place = slice(start, start + length)
    inputs = batch.inputs
    assert inputs.domains_BT is not None
    tensors = (inputs.ids_BT, batch.targets_BT, batch.kinds_BT, inputs.positions_BT, inputs.domains_BT)
    return tuple(tensor[row, place].tolist() for tensor in tensors)


@pytest.mark.parametrize("form", list(LabelForm))
@pytest.mark.parametrize("pad_multiple", [1, 8])
def test_every_reading_lands_at_its_place(form: LabelForm, pad_multiple: int) -> None:
    rows = [[reading(1, 7, form), reading(2, 5, form)], [reading(3, 9, form)], [], [reading(4, 4, form)] * 3]
    batch = collate(rows, pad_multiple=pad_multiple)
    for index, row in enumerate(rows):
        start = 0
        for document, one in enumerate(row, start=1):
            wanted = (
                one.inputs_T.tolist(),
                one.targets_T.tolist(),
                one.kinds_T.tolist(),
                list(range(len(one))),
                [one.domain] * len(one),
            )
            assert taken_back(batch, index, start, len(one)) == wanted
            assert set(batch.inputs.documents_BT[index, start : start + len(one)].tolist()) == {document}
            start += len(one)
        assert not batch.inputs.documents_BT[index, start:].any()
        assert set(batch.targets_BT[index, start:].tolist()) <= {NO_TARGET}


def test_no_target_crosses_from_one_document_to_the_next() -> None:
    batch = collate([[reading(1, 7), reading(2, 5)]])
    assert batch.targets_BT[0, 6] == NO_TARGET
    assert batch.targets_BT[0, 11] == NO_TARGET
    assert int((batch.targets_BT != NO_TARGET).sum()) == 6 + 4


def test_next_token_targets_are_the_inputs_shifted_by_one() -> None:
    one = reading(5, 11)
    batch = collate([[one]])
    assert batch.targets_BT[0, :-1].tolist() == batch.inputs.ids_BT[0, 1:].tolist()
    assert batch.kinds_BT[0, :-1].tolist() == [int(Span.PROMPT)] * 7 + [int(Span.LABEL)] * 2 + [int(Span.CONTEXT)]


def test_masked_labels_predict_themselves_in_place() -> None:
    plain, masked = reading(6, 10), collate([[reading(6, 10, LabelForm.MLM)]])
    label = plain.inputs_T[7:9].tolist()
    assert masked.inputs.ids_BT[0, 7:9].tolist() == [MASK, MASK]
    assert masked.targets_BT[0, 7:9].tolist() == label
    assert masked.kinds_BT[0, 7:9].tolist() == [int(Span.LABEL)] * 2
    assert masked.targets_BT[0, 6] == NO_TARGET


@pytest.mark.parametrize(("longest", "pad_multiple", "width"), [(7, 1, 7), (7, 8, 8), (8, 8, 8), (9, 8, 16), (5, 3, 6)])
def test_rows_are_padded_to_a_multiple(longest: int, pad_multiple: int, width: int) -> None:
    batch = collate([[reading(1, longest)], [reading(2, 4)]], pad_multiple=pad_multiple)
    assert batch.inputs.ids_BT.shape == (2, width)


@pytest.mark.parametrize("rows", [[], [[]], [[], [], []]])
@pytest.mark.parametrize("pad_multiple", [1, 8])
def test_a_batch_without_readings_is_all_padding(rows: list[list[Reading]], pad_multiple: int) -> None:
    batch = collate(rows, pad_multiple=pad_multiple)
    assert batch.inputs.ids_BT.shape == (max(len(rows), 1), pad_multiple)
    assert not batch.inputs.documents_BT.any()
    assert bool((batch.targets_BT == NO_TARGET).all())
    assert not batch.inputs.is_packed


def test_only_rows_with_several_documents_count_as_packed() -> None:
    assert not collate([[reading(1, 5)], [reading(2, 6)]]).inputs.is_packed
    assert collate([[reading(1, 5)], [reading(2, 6), reading(3, 4)]]).inputs.is_packed


def test_the_step_reaches_the_router_inputs() -> None:
    assert collate([[reading(1, 5)]], step=0).inputs.step == 0
    assert collate([[reading(1, 5)]]).inputs.step is None


def test_collating_leaves_the_readings_alone() -> None:
    one = reading(7, 6)
    before = [array.copy() for array in (one.inputs_T, one.targets_T, one.kinds_T)]
    batch = collate([[one, one]])
    batch.inputs.ids_BT.zero_()
    batch.targets_BT.zero_()
    for array, copy in zip((one.inputs_T, one.targets_T, one.kinds_T), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_moving_a_batch_keeps_everything() -> None:
    batch = collate([[reading(1, 5), reading(2, 4)]], step=3)
    moved = batch.to(torch.device("meta"))
    assert moved.targets_BT.device.type == moved.kinds_BT.device.type == moved.inputs.ids_BT.device.type == "meta"
    assert moved.inputs.domains_BT is not None
    assert moved.inputs.is_packed
    assert moved.inputs.step == 3
