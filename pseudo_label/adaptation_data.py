"""Pseudo-labelled rows to training readings, rendered exactly as they are scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, LabelLoss, Reading, Span, SpannedText, read_for_training, read_with_targets
from adapt.text.contract import TextTokenizer
from pseudo_label.prompts import Prompt
from pseudo_label.store import PseudoLabel
from pseudo_label.tasks import TaskConfig, TaskRow


def adaptation_readings(
    task: TaskConfig,
    rows: Sequence[TaskRow],
    labels: Sequence[PseudoLabel],
    tokenizer: TextTokenizer,
    context_length: int,
    loss: LabelLoss,
    *,
    reads_unselected: bool = False,
) -> tuple[list[Reading], list[Reading]]:
    """Return (training, held-out) readings of the reference prompt: selected rows, and rows that were kept out.

    With `reads_unselected` the other rows are trained on too, for their text alone, without prompt and label.

    Raises:
        ConfigError: masked labels, or unselected rows, with a prompt whose label stands before its text.
    """
    prompt = Prompt(task, task.reference, tokenizer, context_length)
    if loss is not LabelLoss.CLM and prompt.is_label_first:
        raise ConfigError(f"task '{task.name}': prompt '{prompt.name}' has its label first; use objective.pseudo_label=clm")
    if reads_unselected and prompt.is_label_first:
        raise ConfigError(
            f"task '{task.name}': prompt '{prompt.name}' has its label first, so a row without a label cannot be read with it; "
            "use continue_pretrain.reads_unselected=false"
        )
    by_line = {row.line: row for row in rows}
    training: list[Reading] = []
    held_out: list[Reading] = []
    for label in labels:
        if label.is_selected or label.is_held_out:
            text = prompt.labelled(by_line[label.line], label.label)
            reading = read_for_training(text, loss, tokenizer.mask_id)
            (held_out if label.is_held_out else training).append(reading)
        elif reads_unselected:
            training.append(_text_alone(prompt.labelled(by_line[label.line], label.label)))
    return training, held_out


def _text_alone(text: SpannedText) -> Reading:
    """Read a text up to its last field before the label; what a template puts between fields is read, what follows them is not."""
    before_label = text.kinds_T[: int(np.flatnonzero(text.kinds_T == int(Span.LABEL))[0])]
    end = int(np.flatnonzero(before_label == int(Span.CONTEXT))[-1]) + 1
    kept = SpannedText(ids_T=text.ids_T[:end], kinds_T=text.kinds_T[:end], domain=text.domain)
    return read_with_targets(kept, LabelForm.CLM)
