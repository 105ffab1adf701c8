"""What each position of a text is shown and what it predicts, by hand and as properties."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span, SpannedText, join_parts, read_with_targets
from tests.support.every_case import for_every

MASK = 99
FORMS = pytest.mark.parametrize("form", list(LabelForm))


def text_in_the_middle() -> SpannedText:
    """A label of two tokens with text on both sides."""
    return join_parts([([2, 10], Span.CONTEXT), ([20], Span.PROMPT), ([30, 31], Span.LABEL), ([21, 22], Span.PROMPT)], domain=3)


def random_text(seed: int) -> SpannedText:
    random = np.random.default_rng(seed)
    length = int(random.integers(1, 30))
    kinds = random.integers(0, 3, length)
    kinds[0] = int(Span.CONTEXT)
    return SpannedText(ids_T=random.integers(4, 90, length), kinds_T=kinds, domain=int(random.integers(0, 4)))


def asked(reading: Reading) -> list[tuple[int, int]]:
    """Return (position, target) where there is a target."""
    return [(t, int(target)) for t, target in enumerate(reading.targets_T) if target != NO_TARGET]


def test_joining_keeps_tokens_kinds_and_domain() -> None:
    text = text_in_the_middle()
    assert text.ids_T.tolist() == [2, 10, 20, 30, 31, 21, 22]
    assert text.kinds_T.tolist() == [0, 0, 1, 2, 2, 1, 1]
    assert text.domain == 3
    assert len(text) == 7


def test_empty_parts_leave_no_trace() -> None:
    with_empty = join_parts([([2], Span.CONTEXT), ([], Span.PROMPT), ([5], Span.LABEL), ([], Span.CONTEXT)])
    assert with_empty.ids_T.tolist() == [2, 5]
    assert with_empty.kinds_T.tolist() == [0, 2]
    assert len(join_parts([])) == 0


def test_clm_predicts_the_next_token_everywhere_but_at_the_end() -> None:
    reading = read_with_targets(text_in_the_middle(), LabelForm.CLM)
    assert reading.inputs_T.tolist() == [2, 10, 20, 30, 31, 21, 22]
    assert reading.targets_T.tolist() == [10, 20, 30, 31, 21, 22, NO_TARGET]
    assert reading.kinds_T.tolist() == [0, 1, 2, 2, 1, 1, 0]
    assert reading.domain == 3
    assert len(reading) == 7


def test_mlm_masks_the_label_and_each_mask_predicts_its_own_token() -> None:
    reading = read_with_targets(text_in_the_middle(), LabelForm.MLM, MASK)
    assert reading.inputs_T.tolist() == [2, 10, 20, MASK, MASK, 21, 22]
    assert reading.targets_T.tolist() == [10, 20, NO_TARGET, 30, 31, 22, NO_TARGET]
    assert reading.kinds_T[reading.targets_T != NO_TARGET].tolist() == [0, 1, 2, 2, 1]
    assert reading.domain == 3


def test_in_mlm_the_position_before_a_label_predicts_nothing() -> None:
    reading = read_with_targets(text_in_the_middle(), LabelForm.MLM, MASK)
    assert reading.targets_T[2] == NO_TARGET


def test_in_mlm_the_token_after_the_masks_is_predicted_by_no_one() -> None:
    reading = read_with_targets(text_in_the_middle(), LabelForm.MLM, MASK)
    assert 21 not in reading.targets_T
    assert reading.targets_T[5] == 22


def test_in_mlm_a_label_at_the_end_is_predicted_at_its_own_places() -> None:
    text = join_parts([([2, 10], Span.CONTEXT), ([30, 31], Span.LABEL)])
    reading = read_with_targets(text, LabelForm.MLM, MASK)
    assert reading.inputs_T.tolist() == [2, 10, MASK, MASK]
    assert asked(reading) == [(0, 10), (2, 30), (3, 31)]


def test_in_mlm_two_labels_apart_are_both_masked() -> None:
    text = join_parts([([2, 10], Span.CONTEXT), ([30], Span.LABEL), ([11], Span.CONTEXT), ([31], Span.LABEL)])
    reading = read_with_targets(text, LabelForm.MLM, MASK)
    assert reading.inputs_T.tolist() == [2, 10, MASK, 11, MASK]
    assert asked(reading) == [(0, 10), (2, 30), (4, 31)]


def test_without_a_label_both_forms_read_alike() -> None:
    text = join_parts([([2, 10, 11], Span.CONTEXT), ([20], Span.PROMPT)])
    clm, mlm = read_with_targets(text, LabelForm.CLM), read_with_targets(text, LabelForm.MLM, MASK)
    assert clm.inputs_T.tolist() == mlm.inputs_T.tolist()
    assert clm.targets_T.tolist() == mlm.targets_T.tolist()
    assert clm.kinds_T.tolist() == mlm.kinds_T.tolist()


@for_every(seed=range(20))
def test_the_mask_is_never_a_target_and_the_text_stays_as_it_was(seed: int) -> None:
    text = random_text(seed)
    before = text.ids_T.copy(), text.kinds_T.copy()
    for form in LabelForm:
        assert MASK not in read_with_targets(text, form, MASK).targets_T
    assert text.ids_T.tolist() == before[0].tolist()
    assert text.kinds_T.tolist() == before[1].tolist()


@for_every(seed=range(20))
def test_a_target_is_the_next_token_or_the_masked_one_and_has_its_kind(seed: int) -> None:
    text = random_text(seed)
    reading = read_with_targets(text, LabelForm.MLM, MASK)
    for t, target in asked(reading):
        place = t if reading.inputs_T[t] == MASK else t + 1
        assert target == text.ids_T[place]
        assert reading.kinds_T[t] == text.kinds_T[place]


@for_every(seed=range(20))
def test_every_label_token_is_predicted_exactly_once_in_both_forms(seed: int) -> None:
    text = random_text(seed)
    labels = text.ids_T[text.kinds_T == int(Span.LABEL)].tolist()
    for form in LabelForm:
        reading = read_with_targets(text, form, MASK)
        scored = reading.targets_T[(reading.targets_T != NO_TARGET) & (reading.kinds_T == int(Span.LABEL))]
        assert scored.tolist() == labels


@for_every(seed=range(20))
def test_in_mlm_no_input_shows_a_label_token(seed: int) -> None:
    text = random_text(seed)
    reading = read_with_targets(text, LabelForm.MLM, MASK)
    is_label = text.kinds_T == int(Span.LABEL)
    assert (reading.inputs_T[is_label] == MASK).all()
    assert (reading.inputs_T[~is_label] == text.ids_T[~is_label]).all()


@FORMS
def test_an_empty_text_and_a_lone_start_predict_nothing(form: LabelForm) -> None:
    assert len(read_with_targets(join_parts([]), form, MASK)) == 0
    assert asked(read_with_targets(join_parts([([2], Span.CONTEXT)]), form, MASK)) == []


def test_in_clm_the_first_token_is_never_predicted() -> None:
    reading = read_with_targets(join_parts([([77, 1, 1], Span.CONTEXT)]), LabelForm.CLM)
    assert 77 not in reading.targets_T


def test_masked_labels_without_a_mask_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="need a <mask> token"):
        read_with_targets(text_in_the_middle(), LabelForm.MLM)
    assert len(read_with_targets(text_in_the_middle(), LabelForm.CLM)) == 7
