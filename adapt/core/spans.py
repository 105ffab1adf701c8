"""Text as tokens that know their kind, and what each position of it predicts.

Legend: T tokens of one text.

One function, `read_with_targets`, turns a spanned text into a model input and targets; training and scoring both use it,
so label tokens cannot differ between them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapt.core.errors import ConfigError

NO_TARGET = -100
IntArray = npt.NDArray[np.int64]


class Span(enum.IntEnum):
    """The kind of a token: it decides which part of the loss its prediction counts towards."""

    CONTEXT = 0
    PROMPT = 1
    LABEL = 2


class LabelForm(enum.Enum):
    """How label tokens are read and predicted.

    `clm`: by next-token prediction, as the other tokens are. `mlm`: the label's tokens are `<mask>` in the input and each
    mask position predicts its own token; the position before a mask predicts nothing.
    """

    CLM = "clm"
    MLM = "mlm"


class LabelLoss(enum.Enum):
    """How labels are trained: in one form, or in both, as two branches that go on from one reading of the text.

    `channel` is for a label that stands before its text: the label is read and not predicted, and the text behind it counts as
    the pseudo-label part, -log P(text | label), which is what the criterion `channel` ranks by.
    """

    CLM = "clm"
    MLM = "mlm"
    BOTH = "both"
    CHANNEL = "channel"

    @property
    def form(self) -> LabelForm:
        """The form that labels are scored in where nothing else is asked for: `clm` after training with both."""
        return LabelForm.MLM if self is LabelLoss.MLM else LabelForm.CLM


@dataclass(frozen=True, kw_only=True, eq=False)
class SpannedText:
    """Token ids with a kind each. The first token is a document start and is never predicted."""

    ids_T: IntArray
    kinds_T: IntArray
    domain: int = 0

    def __len__(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """A model input with at most one target per position; `kinds_T` is the kind of the target (CONTEXT where none).

    The last `branch_length` inputs are a second branch: they go on from the first `fork` inputs and see nothing of the others.
    Where the reading `is_bidirectional`, every position sees all of it. `weight` is how much each of its targets counts, in a
    loss's sum and count alike.
    """

    inputs_T: IntArray
    targets_T: IntArray
    kinds_T: IntArray
    domain: int = 0
    fork: int = 0
    branch_length: int = 0
    is_bidirectional: bool = False
    weight: float = 1.0

    def positions(self) -> IntArray:
        """Return each input's position [T]; a branch counts on from its fork."""
        trunk = np.arange(len(self) - self.branch_length)
        return np.concatenate([trunk, self.fork + np.arange(self.branch_length)])

    def __len__(self) -> int:
        return len(self.inputs_T)


def join_parts(parts: list[tuple[list[int], Span]], domain: int = 0) -> SpannedText:
    """Join token lists with their kinds into one text."""
    ids = [token for tokens, _ in parts for token in tokens]
    kinds = [int(kind) for tokens, kind in parts for _ in tokens]
    return SpannedText(ids_T=np.asarray(ids, np.int64), kinds_T=np.asarray(kinds, np.int64), domain=domain)


def read_with_targets(text: SpannedText, form: LabelForm, mask_id: int | None = None) -> Reading:
    """Decide what each position of a text is shown and what it predicts.

    Raises:
        ConfigError: `mlm` without a mask token.
    """
    ids, kinds = text.ids_T, text.kinds_T
    targets = np.full(len(ids), NO_TARGET, np.int64)
    target_kinds = np.full(len(ids), int(Span.CONTEXT), np.int64)
    targets[:-1], target_kinds[:-1] = ids[1:], kinds[1:]
    if form is LabelForm.CLM:
        return Reading(inputs_T=ids, targets_T=targets, kinds_T=target_kinds, domain=text.domain)
    if mask_id is None:
        raise ConfigError("masked labels need a <mask> token, and this tokenizer has none; use objective.pseudo_label=clm")
    is_label = kinds == int(Span.LABEL)
    inputs = np.where(is_label, mask_id, ids)
    before_label = np.zeros_like(is_label)
    before_label[:-1] = is_label[1:]
    targets[before_label & ~is_label] = NO_TARGET
    target_kinds[before_label & ~is_label] = int(Span.CONTEXT)
    targets[is_label] = ids[is_label]
    target_kinds[is_label] = int(Span.LABEL)
    return Reading(inputs_T=inputs, targets_T=targets, kinds_T=target_kinds, domain=text.domain)


def read_bidirectionally(text: SpannedText, mask_id: int | None) -> Reading:
    """Read a text whose label stands first: only the label's masks predict, and they see what comes after them.

    A next-token prediction would be copying here: its target is in sight.

    Raises:
        ConfigError: there is no mask token.
    """
    reading = read_with_targets(text, LabelForm.MLM, mask_id)
    is_label = text.kinds_T == int(Span.LABEL)
    return replace(
        reading,
        targets_T=np.where(is_label, reading.targets_T, NO_TARGET),
        kinds_T=np.where(is_label, reading.kinds_T, int(Span.CONTEXT)),
        is_bidirectional=True,
    )


def readings_for_training(text: SpannedText, loss: LabelLoss, is_label_first: bool, mask_id: int | None = None) -> list[Reading]:
    """Return what a labelled text is trained on; a label that is masked and stands first takes a second, bidirectional reading.

    The first one then teaches the rest of the text: behind the masks (`mlm`), or behind the label (`both`).

    Raises:
        ConfigError: masked labels without a mask token.
    """
    if not is_label_first or loss not in (LabelLoss.MLM, LabelLoss.BOTH):
        return [read_for_training(text, loss, mask_id)]
    if loss is LabelLoss.BOTH:
        causal = read_with_targets(text, LabelForm.CLM)
    else:  # a mask at a text's start sees nothing: its label is the second reading's
        causal = _without_label_targets(read_with_targets(text, LabelForm.MLM, mask_id))
    return [causal, read_bidirectionally(text, mask_id)]


def read_for_training(text: SpannedText, loss: LabelLoss, mask_id: int | None = None) -> Reading:
    """Read a labelled text for training; with both forms, a branch of masks starts where the label does.

    Raises:
        ConfigError: masked labels without a mask token.
    """
    if loss is LabelLoss.CHANNEL:
        return _read_for_channel(text)
    if loss is not LabelLoss.BOTH:
        return read_with_targets(text, loss.form, mask_id)
    clean = read_with_targets(text, LabelForm.CLM)
    masked = read_with_targets(text, LabelForm.MLM, mask_id)
    label = np.flatnonzero(text.kinds_T == int(Span.LABEL))
    assert not len(label) or label[-1] - label[0] + 1 == len(label), "a text has one label"
    return Reading(
        inputs_T=np.concatenate([clean.inputs_T, masked.inputs_T[label]]),
        targets_T=np.concatenate([clean.targets_T, masked.targets_T[label]]),
        kinds_T=np.concatenate([clean.kinds_T, masked.kinds_T[label]]),
        domain=text.domain,
        fork=int(label[0]) if len(label) else len(text),
        branch_length=len(label),
    )


def _read_for_channel(text: SpannedText) -> Reading:
    """Read a text whose label comes first: what follows the label is predicted from it, the label is not predicted."""
    reading = _without_label_targets(read_with_targets(text, LabelForm.CLM))
    label = np.flatnonzero(text.kinds_T == int(Span.LABEL))
    if not len(label):
        return reading
    is_behind = (np.arange(len(reading)) >= label[-1]) & (reading.targets_T != NO_TARGET)
    is_text = reading.kinds_T == int(Span.CONTEXT)
    return replace(reading, kinds_T=np.where(is_behind & is_text, int(Span.LABEL), reading.kinds_T))


def _without_label_targets(reading: Reading) -> Reading:
    predicts_label = reading.kinds_T == int(Span.LABEL)
    return replace(
        reading,
        targets_T=np.where(predicts_label, NO_TARGET, reading.targets_T),
        kinds_T=np.where(predicts_label, int(Span.CONTEXT), reading.kinds_T),
    )
