"""Warnings about the base's tokenizer on a task's label words and texts, logged once before the model labels rows.

Cheap by construction: label words, and shares of bytes and unknown tokens over the beginnings of some rows. The command
`tokenizer_doctor` looks at everything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.runtime import ONCE, generator_for
from adapt.text.contract import TextTokenizer
from adapt.text.tokenizer_health import Finding, Level, byte_findings, health_of
from pipelines.config.label_settings import Teacher
from pipelines.stages.models import weights_of
from pipelines.stages.rows import UNLABELED
from pipelines.stages.run import Run
from pseudo_label.label_word_checks import check_label_words
from pseudo_label.tasks import TaskConfig, TaskRow, iterate_split

logger = logging.getLogger("pipelines")
_ROWS, _READ_ROWS = 2_000, 20_000
_CHARACTERS = 100  # of a text


def warn_of_tokenizer(run: Run, task: TaskConfig) -> None:
    """Log a line for each warning about the base's tokenizer on a task, where the model is to label its rows."""
    if Teacher.MODEL not in run.config.pseudo_label.teachers:
        return
    rows = list(islice(iterate_split(run.splits(), task, UNLABELED), _READ_ROWS))
    if len(rows) > _ROWS:
        chosen = generator_for("tokenizer warnings", task.name).choice(len(rows), _ROWS, replace=False)
        rows = [rows[int(place)] for place in sorted(chosen)]
    for finding in warnings_on(task, tokenizer_of(weights_of(run.base())), rows):
        logger.info("%s: %s", finding.level.value, finding, extra=ONCE)


def warnings_on(task: TaskConfig, tokenizer: TextTokenizer, rows: Sequence[TaskRow]) -> list[Finding]:
    """Return the faults and warnings about label words, bytes and unknown tokens."""
    texts = [text[:_CHARACTERS] for row in rows for text in row.texts.values() if text]
    found = check_label_words(task, tokenizer, rows)
    if texts:
        found += byte_findings(health_of(tokenizer, f"task '{task.name}'", texts, with_losses=False))
    return [finding for finding in found if finding.level is not Level.NOTE]
