"""The task of an export for other evaluation programs: which rows, as which texts, and what of the task is left out."""

from __future__ import annotations

import logging
from pathlib import Path

from adapt.core.errors import ConfigError, DataError, counted
from pipelines.stages.models import context_of
from pipelines.stages.rows import TaskData
from pseudo_label.harnesses.lm_eval import all_notes, write_lm_eval
from pseudo_label.harnesses.opencompass import write_opencompass
from pseudo_label.harnesses.prompt_text import TextForm, harness_rows, prompt_text
from pseudo_label.harnesses.zero_shot import TAG, data_files, write_zero_shot
from pseudo_label.predictor import PredictorSpec

logger = logging.getLogger("pipelines")
_KEY = "export.harness_split"
_DATA_KEY = "export.zero_shot_data"


def write_harness_tasks(directory: Path, spec: PredictorSpec, data: TaskData, split: str) -> None:
    """Write the task files of an export whose model and tokenizer are in the directory.

    A task whose prompt they cannot rank by gets none, which is said.

    Raises:
        ConfigError: the tokenizer encodes texts in a way that other programs do not.
        DataError: the split has no labelled rows, or a row does not fit into the context.
    """
    form = _text_form(directory, _KEY)
    labelled = [row for row in data.read(split) if row.label is not None]
    if not labelled:
        raise DataError(f"{data.path(split)}: has no labelled rows; name another split as {_KEY}")
    try:
        prompt = prompt_text(spec.task, spec.scoring, spec.decision, form)
    except ConfigError as error:
        logger.warning("%s=%s: %s; no task files were written", _KEY, split, error)
        return
    rows = harness_rows(spec.task, prompt, labelled)
    write_lm_eval(directory, prompt, rows)
    not_written = write_opencompass(directory, prompt, rows)
    for note in [*all_notes(prompt, rows), *([not_written] if not_written else [])]:
        logger.info("%s for other programs: %s", spec.task.name, note)


def write_zero_shot_tasks(directory: Path, data: str) -> None:
    """Write the articles' zero-shot tasks, as far as `data` has their rows, next to a model and tokenizer.

    Raises:
        ConfigError: the tokenizer encodes texts in a way that other programs do not.
        DataError: there is no such data, or it has another layout.
    """
    counts = write_zero_shot(directory, data_files(Path(data)), _text_form(directory, _DATA_KEY).start)
    listed = ", ".join(f"{name} ({counted(count, 'row')})" for name, count in counts.items())
    logger.info("zero-shot tasks for lm-evaluation-harness, --tasks %s: %s", TAG, listed)


def _text_form(directory: Path, key: str) -> TextForm:
    """Return how the exported model's texts are written for other programs."""
    from adapt.checkpoint.hf_directory import is_own_form  # these import torch
    from adapt.checkpoint.vocabulary import tokenizer_of
    from adapt.text.hf_tokenizer import HFTokenizer
    from adapt.text.sentencepiece_json import PART_MARK
    from adapt.text.tokenizer import Tokenizer

    tokenizer, context = tokenizer_of(directory), context_of(directory)
    if isinstance(tokenizer, Tokenizer) and is_own_form(directory):
        return TextForm(tokenizer=tokenizer, context_length=context, separator=PART_MARK)
    if isinstance(tokenizer, HFTokenizer) and tokenizer.whole is not None:
        return TextForm(tokenizer=tokenizer, context_length=context, start=tokenizer.start_as_text)
    raise ConfigError(
        f"{key}: this model encodes the parts of a prompt on their own, and its tokenizer.json cannot say so; other programs "
        "would score other tokens"
    )
