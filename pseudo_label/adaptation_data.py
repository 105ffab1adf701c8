"""Pseudo-labelled rows to training readings, rendered exactly as they are scored.

A soft label is several readings of one row whose weights sum to 1: its text counts as much as that of a row with one label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting
from adapt.core.spans import LabelForm, LabelLoss, Reading, Span, SpannedText, read_with_targets, readings_for_training
from adapt.text.contract import TextTokenizer
from pseudo_label.prompts import Prompt, label_stands_first
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of

if TYPE_CHECKING:
    from pseudo_label.store import PseudoLabel  # imports pyarrow, and `ReadingConfig` is part of every configuration


@dataclass(frozen=True, kw_only=True)
class ReadingConfig(Settings):
    """How labelled rows are read for training."""

    prompt: str | None = setting(
        None, "Prompt that rows are trained with.", form="prompt of the task", hint="null takes the task's reference"
    )
    soft_labels: int = setting(
        0,
        "Reads a row once with each of so many of its most probable labels, weighted by their probabilities.",
        least=0,
        unit="labels",
        hint="0 reads it once, with its best label",
    )
    reads_unselected: bool = setting(False, "Rows that were not selected are read too, for their text only.")


def training_rows(
    task: TaskConfig,
    rows: Sequence[TaskRow],
    labels: Sequence[PseudoLabel],
    tokenizer: TextTokenizer,
    context_length: int,
    loss: LabelLoss,
    config: ReadingConfig,
) -> tuple[list[list[Reading]], list[list[Reading]]]:
    """Return (training, held-out) rows of readings: selected rows, and rows that were kept out; `labels[i]` is that of `rows[i]`.

    Raises:
        ConfigError: the prompt's label stands where the loss, or a row without a label, cannot be read with it.
    """
    prompt = Prompt(task, config.prompt or task.reference, tokenizer, context_length)
    refuse_unreadable(task, prompt.name, loss, config)
    training: list[list[Reading]] = []
    held_out: list[list[Reading]] = []
    for row, label in zip(rows, labels, strict=True):
        if label.is_selected or label.is_held_out:
            readings = [
                replace(reading, weight=weight)
                for name, weight in _weighted_labels(label, label.labels or labels_of(row, task), config.soft_labels)
                for reading in readings_for_training(prompt.labelled(row, name), loss, prompt.is_label_first, tokenizer.mask_id)
            ]
            (held_out if label.is_held_out else training).append(readings)
        elif config.reads_unselected:
            training.append([_text_alone(prompt.labelled(row, label.label))])
    return training, held_out


def refuse_unreadable(task: TaskConfig, name: str, loss: LabelLoss, config: ReadingConfig) -> None:
    """Raise ConfigError where the loss, or a row without a label, cannot be read with a prompt of the task."""
    where = f"task '{task.name}': prompt '{name}'"
    is_label_first = label_stands_first(task, name)
    if loss is LabelLoss.CHANNEL and not is_label_first:
        raise ConfigError(f"{where} has its label behind a text; objective.pseudo_label=channel needs one with its label first")
    if config.reads_unselected and is_label_first:
        raise ConfigError(
            f"{where} has its label first, so a row without a label cannot be read with it; "
            "use continue_pretrain.reads_unselected=false"
        )


def _weighted_labels(label: PseudoLabel, names: Sequence[str], k: int) -> list[tuple[str, float]]:
    """Return the labels that a row is read with and their weights, which sum to 1; labels of weight 0 are left out."""
    if k == 0:
        return [(label.label, 1.0)]
    probabilities = np.asarray(label.probabilities)
    best = np.argsort(-probabilities, kind="stable")[:k]
    total = probabilities[best].sum()
    return [(names[place], float(probabilities[place] / total)) for place in best if probabilities[place] > 0]


def _text_alone(text: SpannedText) -> Reading:
    """Read a text up to its last field before the label; what a template puts between fields is read, what follows them is not."""
    before_label = text.kinds_T[: int(np.flatnonzero(text.kinds_T == int(Span.LABEL))[0])]
    end = int(np.flatnonzero(before_label == int(Span.CONTEXT))[-1]) + 1
    kept = SpannedText(ids_T=text.ids_T[:end], kinds_T=text.kinds_T[:end], domain=text.domain)
    return read_with_targets(kept, LabelForm.CLM)
