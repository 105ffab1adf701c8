"""Pseudo-labelled rows to training readings, rendered exactly as they are scored."""

from __future__ import annotations

from collections.abc import Sequence

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelLoss, Reading, read_for_training
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
) -> tuple[list[Reading], list[Reading]]:
    """Return (training, held-out) readings of the reference prompt: selected rows, and rows that were kept out.

    Raises:
        ConfigError: masked labels with a prompt whose label stands before its text.
    """
    prompt = Prompt(task, task.reference, tokenizer, context_length)
    if loss is not LabelLoss.CLM and prompt.is_label_first:
        raise ConfigError(f"task '{task.name}': prompt '{prompt.name}' has its label first; use objective.pseudo_label=clm")
    by_line = {row.line: row for row in rows}
    training: list[Reading] = []
    held_out: list[Reading] = []
    for label in labels:
        if label.is_selected or label.is_held_out:
            text = prompt.labelled(by_line[label.line], label.label)
            reading = read_for_training(text, loss, tokenizer.mask_id)
            (held_out if label.is_held_out else training).append(reading)
    return training, held_out
