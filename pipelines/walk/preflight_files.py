"""Checks of the files that a walk reads and writes, made before its first stage builds (`preflight.py` has the others)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.text.rows.writing import check_writable, is_streamed
from pipelines.stages.models import open_model_artifact
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, TaskData, labelled_rows_of_other
from pipelines.stages.run import Run, files_by_task
from pipelines.walk.ahead import Ahead
from pseudo_label.decision import Method
from pseudo_label.label_tree import TreeSource
from pseudo_label.tasks import TaskConfig, iterate_split, read_split, split_path

logger = logging.getLogger("pipelines")


def check_file_names(ahead: Ahead) -> None:
    """The splits that data.files names are ones that a stage reads."""
    config = ahead.config
    asked = [*config.evaluate.splits, *(split for split in (config.split, config.export.harness_split) if split is not None)]
    known = list(dict.fromkeys([UNLABELED, *LABELLED_SPLITS, *asked]))
    for task, files in files_by_task(config.data.files, config.tasks).items():
        for split in files:
            if split not in known:
                raise ConfigError(f"data.files.{task}: no stage reads a split '{split}'{suggest(split, known)}")
        is_given = any(key == "data.files" or f"{key}.".startswith(f"data.files.{task}.") for key in ahead.given)
        if is_given and config.tasks and task not in [*config.tasks, *config.evaluate.other_tasks]:
            logger.warning("data.files.%s: is not read; the tasks of this command are %s", task, ", ".join(config.tasks))


def check_rows(ahead: Ahead) -> None:
    """The splits that will be read are there, and every line of them is a row of its task."""
    from pipelines.stages.evaluate import refuse_repeated_ids, splits_of

    run = ahead.run
    for task in ahead.tasks:
        splits = dict.fromkeys([*_needed_splits(ahead), *_existing(run, task, _read_where_there(ahead))])
        rows = {split: read_split(run.splits(), task, split) for split in splits if split != UNLABELED}
        if UNLABELED in splits:
            deque(iterate_split(run.splits(), task, UNLABELED), maxlen=0)  # there may be many: none is kept
        for split in splits_of(run, task) if ahead.has("evaluate") else []:
            found = rows.get(split) or read_split(run.splits(), task, split)
            refuse_repeated_ids(split_path(run.splits(), task, split), found)


def _existing(run: Run, task: TaskConfig, splits: Iterable[str]) -> list[str]:
    wanted = list(splits)
    return TaskData.of(run, task, wanted).existing(wanted)


def _needed_splits(ahead: Ahead) -> list[str]:
    """Return the splits that a task has to have, those of evaluation aside."""
    config = ahead.config
    reads_unlabeled = ahead.has("pseudo_label", "prompt_search")
    reads_unlabeled |= ahead.has("label_tree") and config.label_tree.source is TreeSource.CONFUSIONS
    named = [config.split] if ahead.has("prompt_search") and config.split is not None else []
    brought = [config.export.harness_split] if ahead.has("export") and config.export.harness_split is not None else []
    return [*([UNLABELED] if reads_unlabeled else []), *named, *brought]


def _read_where_there(ahead: Ahead) -> list[str]:
    """Return the splits that are read where a task has them."""
    config = ahead.config
    found: list[str] = []
    if ahead.has("evaluate") and ahead.is_fitted_at_evaluation:
        found.append(UNLABELED)
    if found or _needed_splits(ahead):
        found += config.exclude_eval.splits
    if ahead.has("pseudo_label") and config.pseudo_label.estimates_noise:
        found += LABELLED_SPLITS
    if ahead.has("prompt_search") and config.split is None:
        found += LABELLED_SPLITS
    if ahead.has("label_tree") and config.label_tree.labelled_weight:
        found += LABELLED_SPLITS
    return found


def check_lexical(ahead: Ahead) -> None:
    """A labeller that decides without a model has unlabeled rows to learn from."""
    from pipelines.stages.evaluate import no_rows_to_learn_from

    if not ahead.has("evaluate") or ahead.config.evaluate.method is not Method.LEXICAL:
        return
    splits = ahead.run.splits()
    for task in ahead.tasks:
        if not _existing(ahead.run, task, [UNLABELED]) or next(iterate_split(splits, task, UNLABELED), None) is None:
            raise no_rows_to_learn_from(task)


def check_other_tasks(ahead: Ahead) -> None:
    """Other tasks that an adaptation is measured on have labelled rows, and rows that can be read."""
    from pipelines.stages.other_tasks import model_method

    others = ahead.run.load_tasks(ahead.config.evaluate.other_tasks)  # unknown ones are refused whatever the stages
    if not ahead.has("continue_pretrain") or not ahead.has("evaluate"):
        return
    for other in others:
        if any(other.name != task.name for task in ahead.tasks):
            labelled_rows_of_other(ahead.run.workshop, TaskData.of(ahead.run, other, LABELLED_SPLITS))
            if model_method(ahead.config.evaluate).needs_rows:
                for split in _existing(ahead.run, other, [UNLABELED, *ahead.config.exclude_eval.splits]):
                    read_split(ahead.run.splits(), other, split)


def check_input(ahead: Ahead) -> None:
    """The rows to be labelled at the end are there, can be read, and will not be written over; a pipe is left to its stage."""
    from pipelines.stages.predict import added_columns, is_piped, source_of, survey_of
    from pseudo_label.predictor import read_spec

    config = ahead.config
    if not ahead.has("predict") or ahead.stages == ["predict"]:  # by itself it reads all rows before it scores any
        return
    if config.output is not None:
        check_writable(config.output)
    own: TaskConfig | None = None  # an export brings its own task
    if ahead.predicts_directly:
        own = read_spec(open_model_artifact(Path(str(config.checkpoint))).path).task
    for task in ahead.tasks if not is_piped(config.input) else []:
        with ExitStack() as kept:
            survey_of(source_of(ahead.run, task, kept), own or task, added_columns(config))


def check_output(ahead: Ahead) -> None:
    """A file at `output` takes the rows of one task."""
    output, n_tasks = ahead.config.output, len(ahead.tasks)
    if ahead.has("predict") and output is not None and n_tasks > 1 and not is_streamed(output):
        raise ConfigError(
            f"output: {output} would hold the rows of the last of {n_tasks} tasks only; give a command for each, with task= and "
            f"output=, or leave output= out (each task's rows are in {ahead.run.directory}/predict)"
        )
