"""A reading in both forms: the clean text, and a branch of masks that goes on from where the label starts."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.core.spans import (
    NO_TARGET,
    LabelForm,
    LabelLoss,
    Reading,
    Span,
    SpannedText,
    join_parts,
    read_for_training,
    read_with_targets,
)
from tests.support.every_case import for_every

MASK = 99
CONTEXT, PROMPT, LABEL = Span.CONTEXT, Span.PROMPT, Span.LABEL
NONE = NO_TARGET


def both(*parts: tuple[list[int], Span]) -> Reading:
    return read_for_training(join_parts(list(parts), domain=3), LabelLoss.BOTH, MASK)


def random_text(seed: int) -> SpannedText:
    """Return a text with at most one label, of any length, at any place."""
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 6, 3)
    parts = [(random.integers(4, 90, size).tolist(), kind) for size, kind in zip(sizes, (PROMPT, LABEL, CONTEXT), strict=True)]
    return join_parts([([2], CONTEXT), *parts], domain=int(random.integers(4)))


def test_a_label_in_the_middle_is_read_clean_and_then_masked_from_where_it_starts() -> None:
    reading = both(([2, 10], CONTEXT), ([20], PROMPT), ([30, 31], LABEL), ([21, 22], PROMPT))
    assert reading.inputs_T.tolist() == [2, 10, 20, 30, 31, 21, 22, MASK, MASK]
    assert reading.targets_T.tolist() == [10, 20, 30, 31, 21, 22, NONE, 30, 31]
    assert reading.kinds_T.tolist() == [0, 1, 2, 2, 1, 1, 0, 2, 2]
    assert (reading.fork, reading.branch_length, reading.domain) == (3, 2, 3)
    assert reading.positions().tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4]


def test_a_label_at_the_end_is_masked_at_its_own_positions() -> None:
    reading = both(([2, 10], CONTEXT), ([30, 31, 32], LABEL))
    assert reading.inputs_T.tolist() == [2, 10, 30, 31, 32, MASK, MASK, MASK]
    assert reading.targets_T.tolist() == [10, 30, 31, 32, NONE, 30, 31, 32]
    assert reading.kinds_T.tolist() == [0, 2, 2, 2, 0, 2, 2, 2]
    assert (reading.fork, reading.branch_length) == (2, 3)
    assert reading.positions().tolist() == [0, 1, 2, 3, 4, 2, 3, 4]


def test_a_label_right_after_the_start_forks_there() -> None:
    reading = both(([2], CONTEXT), ([30], LABEL), ([10, 11], CONTEXT))
    assert reading.inputs_T.tolist() == [2, 30, 10, 11, MASK]
    assert reading.targets_T.tolist() == [30, 10, 11, NONE, 30]
    assert reading.kinds_T.tolist() == [2, 0, 0, 0, 2]
    assert (reading.fork, reading.branch_length) == (1, 1)
    assert reading.positions().tolist() == [0, 1, 2, 3, 1]


def test_a_label_that_is_the_first_token_forks_at_nothing() -> None:
    reading = both(([30, 31], LABEL), ([10], CONTEXT))
    assert reading.inputs_T.tolist() == [30, 31, 10, MASK, MASK]
    assert reading.targets_T.tolist() == [31, 10, NONE, 30, 31]
    assert (reading.fork, reading.branch_length) == (0, 2)
    assert reading.positions().tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("ids", [[], [2], [2, 10, 11]])
def test_without_a_label_there_is_no_branch(ids: list[int]) -> None:
    reading, clean = both((ids, CONTEXT)), read_with_targets(join_parts([(ids, CONTEXT)]), LabelForm.CLM)
    assert reading.inputs_T.tolist() == clean.inputs_T.tolist() == ids
    assert reading.targets_T.tolist() == clean.targets_T.tolist()
    assert reading.kinds_T.tolist() == clean.kinds_T.tolist()
    assert (reading.fork, reading.branch_length) == (len(ids), 0)
    assert reading.positions().tolist() == list(range(len(ids)))


@pytest.mark.parametrize("form", list(LabelForm))
def test_a_reading_in_one_form_has_no_branch(form: LabelForm) -> None:
    reading = read_with_targets(random_text(0), form, MASK)
    assert reading.branch_length == 0
    assert reading.positions().tolist() == list(range(len(reading)))


@for_every(seed=range(30))
def test_the_trunk_is_the_clean_reading_and_the_branch_the_label_of_the_masked_one(seed: int) -> None:
    text = random_text(seed)
    reading = read_for_training(text, LabelLoss.BOTH, MASK)
    clean, masked = (read_with_targets(text, form, MASK) for form in (LabelForm.CLM, LabelForm.MLM))
    label = np.flatnonzero(text.kinds_T == int(LABEL))
    n = len(text)
    assert len(reading) == n + len(label) == n + reading.branch_length
    for name in ("inputs_T", "targets_T", "kinds_T"):
        assert getattr(reading, name)[:n].tolist() == getattr(clean, name).tolist()
        assert getattr(reading, name)[n:].tolist() == getattr(masked, name)[label].tolist()
    assert reading.positions().tolist() == [*range(n), *label]
    assert reading.positions().max(initial=0) < max(n, 1), "a branch needs no longer context than its text"
    assert reading.domain == text.domain
    assert MASK not in reading.targets_T


@for_every(seed=range(30))
def test_each_label_token_is_predicted_once_in_each_form(seed: int) -> None:
    text = random_text(seed)
    reading = read_for_training(text, LabelLoss.BOTH, MASK)
    is_asked = (reading.targets_T != NO_TARGET) & (reading.kinds_T == int(LABEL))
    labels = text.ids_T[text.kinds_T == int(LABEL)].tolist()
    assert reading.targets_T[is_asked].tolist() == labels * 2
    assert int((reading.targets_T != NO_TARGET).sum()) == max(len(text) - 1, 0) + len(labels)


@pytest.mark.parametrize(("loss", "form"), [(LabelLoss.CLM, LabelForm.CLM), (LabelLoss.MLM, LabelForm.MLM)])
def test_one_form_alone_trains_on_the_reading_that_is_scored(loss: LabelLoss, form: LabelForm) -> None:
    text = random_text(4)
    trained, scored = read_for_training(text, loss, MASK), read_with_targets(text, form, MASK)
    for name in ("inputs_T", "targets_T", "kinds_T"):
        assert getattr(trained, name).tolist() == getattr(scored, name).tolist()


def test_labels_trained_both_ways_are_scored_by_next_token_prediction() -> None:
    assert {loss: loss.form for loss in LabelLoss} == {
        LabelLoss.CLM: LabelForm.CLM,
        LabelLoss.MLM: LabelForm.MLM,
        LabelLoss.BOTH: LabelForm.CLM,
        LabelLoss.CHANNEL: LabelForm.CLM,
    }


def test_both_forms_without_a_mask_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="need a <mask> token"):
        read_for_training(random_text(1), LabelLoss.BOTH)


def test_reading_leaves_the_text_as_it_was() -> None:
    text = random_text(5)
    ids, kinds = text.ids_T.copy(), text.kinds_T.copy()
    reading = read_for_training(text, LabelLoss.BOTH, MASK)
    reading.inputs_T[:] = 0
    reading.targets_T[:] = 0
    assert text.ids_T.tolist() == ids.tolist()
    assert text.kinds_T.tolist() == kinds.tolist()
