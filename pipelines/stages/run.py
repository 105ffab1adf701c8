"""A run: its configuration, its store, and what it has so far. Stages take from it what they declare to read."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapt.core.artifacts import MANIFEST, Artifact, ArtifactStore, artifact_at, is_dangling, open_linked, refuse_dangling
from adapt.core.errors import CheckpointError, ConfigError, DataError, is_file_name
from adapt.core.precision import say_precision
from adapt.core.registry import suggest
from adapt.core.store_places import is_artifact
from adapt.model.config import GPTConfig, HFConfig
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.rows.directories import is_rows
from adapt.train.engine_config import EngineConfig
from pipelines.config.locations import conf_dir
from pipelines.config.schema import DataConfig, PipelineConfig
from pipelines.stages.contract import Stage, Workshop, now
from pipelines.stages.models import open_model_artifact
from pipelines.stages.progress_record import ProgressRecord
from pseudo_label.splits import Splits
from pseudo_label.tasks import TaskConfig, load_task

DATA_ROOT_ADVICE = "give a directory in the CLUE layout (<task>/{dev,unlabeled,test}.{json,csv,...})"
logger = logging.getLogger("pipelines")


def read_as(data: DataConfig, task: TaskConfig) -> TaskConfig:
    """Return a task with the encoding and quotes of its files that the command line says, where it does."""
    return replace(task, encoding=data.encoding or task.encoding, quotes=data.quotes or task.quotes)


def files_by_task(
    files: Mapping[str, str] | Mapping[str, Mapping[str, str]] | None, tasks: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """Return data.files by task and split; names of splits only are those of the one task.

    Raises:
        ConfigError: names of splits and of tasks are mixed, or it is not said which of several tasks is meant.
        DataError: a file is not there.
    """
    plain = {name: value for name, value in (files or {}).items() if isinstance(value, str)}
    if plain and len(tasks) != 1:
        few = f"there are {len(tasks)} tasks" if tasks else "there is no task"
        raise ConfigError(f"data.files: names splits, and {few}; give data.files={{TASK: {{SPLIT: FILE}}}}")
    by_task = {name: value for name, value in (files or {}).items() if not isinstance(value, str)}
    found = {task: {split: Path(file) for split, file in named.items()} for task, named in by_task.items()}
    found |= {tasks[0]: {split: Path(file) for split, file in plain.items()}} if plain else {}
    for task, places in found.items():
        for split, place in places.items():
            if not is_file_name(split):
                raise ConfigError(f"data.files.{task}: {split!r} is no name of a split; give a plain one, such as dev")
            if not is_rows(place):
                raise DataError(f"data.files.{task}.{split}: {place}: no such file of rows")
    return found


def splits_of_tasks(data: DataConfig, tasks: Sequence[str], task_dirs: Sequence[Path]) -> Splits:
    """Return where tasks' rows are: data.files, and what is below data.root; `tasks` are those of the command.

    Raises:
        ConfigError: neither is given, data.root is no directory, or files are those of a task that nobody knows.
        DataError: a file is not there.
    """
    own = files_by_task(data.files, tasks)
    for name in own:
        if not any((place / f"{name}.yaml").is_file() for place in task_dirs):
            raise ConfigError(f"data.files: unknown task '{name}'{suggest(name, list(tasks))}")
    if data.root is None and not own:
        raise ConfigError(f"data.root is not set; {DATA_ROOT_ADVICE}, or name files with data.files")
    root = None if data.root is None else Path(data.root)
    if root is not None and not root.is_dir():
        raise ConfigError(f"data.root: {root} is no directory; {DATA_ROOT_ADVICE}")
    return Splits(root=root, own=own)


def again_command(stage: str, run_name: str, task: str | None) -> str:
    """Return the command that makes a stage's artifact of a run."""
    return f"python -m pipelines.{stage} run.name={run_name}" + ("" if task is None else f" task={task}")


class Run:
    """One run through stages. `engine` and `scorer` hold resolved precisions, so that keys and frozen jobs never say `auto`.

    They are resolved when they are first asked for, since that imports torch; `config` holds what was set.
    """

    def __init__(self, config: PipelineConfig, point: str | None = None) -> None:
        self.config = config
        self.store = ArtifactStore(Path(config.run.dir))
        self.name = config.run.name if point is None else f"{config.run.name}/{point}"
        self.group = config.run.name
        self.workshop = Workshop(self.store, self.name, force=config.force)
        self.progress = ProgressRecord(self.directory, self.name)
        self.labellers: dict[str, Artifact] = {}

    @property
    def directory(self) -> Path:
        return self.store.root / self.name

    @property
    def engine(self) -> EngineConfig:
        """Return how to train; what `engine.precision=auto` came to is said."""
        say_precision(self.config.engine.auto_precision())
        return self.quiet_engine

    @property
    def scorer(self) -> ScorerConfig:
        """Return how to score; what `scorer.precision=auto` came to is said."""
        say_precision(self.config.scorer.auto_precision())
        return self._scorer

    @cached_property
    def quiet_engine(self) -> EngineConfig:
        """What `engine` is, for checks: nothing is said."""
        return self.config.engine.resolved()

    @cached_property
    def _scorer(self) -> ScorerConfig:
        return self.config.scorer.resolved()

    def tasks(self) -> list[TaskConfig]:
        """Load the run's tasks.

        Raises:
            ConfigError: none is named, or one is unknown or broken.
        """
        if not self.config.tasks:
            raise ConfigError("no task given; set task=NAME or tasks=[NAME, ...]")
        return self.load_tasks(self.config.tasks)

    def load_tasks(self, names: Sequence[str]) -> list[TaskConfig]:
        """Load tasks by name, from `task_dir` first. Raises ConfigError for one that is unknown or broken."""
        tasks = [load_task(name, self._task_dirs()) for name in names]
        return [read_as(self.config.data, task) for task in tasks]

    def splits(self) -> Splits:
        """Return where tasks' rows are. Raises ConfigError or DataError where that is not said, or nothing is there."""
        return splits_of_tasks(self.config.data, self.config.tasks, self._task_dirs())

    def _task_dirs(self) -> list[Path]:
        return [*([Path(self.config.task_dir)] if self.config.task_dir else []), conf_dir() / "task"]

    def place(self, stage: str, task: TaskConfig | None = None) -> str:
        return f"{self.name}/{stage}" if task is None else f"{self.name}/{stage}/{task.name}"

    def require(self, stage: str, task: TaskConfig | None = None) -> Artifact:
        """Open the run's artifact of an earlier stage.

        Raises:
            ConfigError: the run has none yet.
            CheckpointError: it is incomplete or damaged.
        """
        artifact = self.find(stage, task)
        if artifact is None:
            path = self.store.root / self.place(stage, task)
            or_base = ", or give checkpoint= a base" if stage == "pretrain" else ""
            command = f"python -m pipelines.{stage} run.name={self.config.run.name}"
            raise ConfigError(f"{path}: not there yet; run `{command}` first{or_base}")
        return artifact

    def find(self, stage: str, task: TaskConfig | None = None) -> Artifact | None:
        """Open the run's artifact of a stage; None where that stage never ran.

        Raises:
            CheckpointError: it ran, and what it left is incomplete or damaged.
        """
        path = self.store.root / self.place(stage, task)
        if not path.exists() and not path.is_symlink():
            return None
        again = f"run `{again_command(stage, self.config.run.name, None if task is None else task.name)}` again"
        refuse_dangling(path, again)
        if not is_artifact(path):
            raise CheckpointError(f"{path}: is incomplete (it has no {MANIFEST}); {again}")
        return open_linked(path)

    def linked(self, stage: str, task: str) -> Artifact | None:
        """Open the run's artifact of a stage, to show what is in it; of one that is gone it is said how to make it again.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.directory / stage / task
        if is_dangling(path):
            again = again_command(stage, self.name, task)
            self.workshop.say_once(f"{path}: its artifact is gone, and left out here; run `{again}` again")
            return None
        return artifact_at(path)

    def base(self) -> Artifact:
        """Open the model that tasks start from: `checkpoint` if given, else `model.path`, else the run's pretrained base."""
        if self.config.checkpoint is not None:
            return open_model_artifact(Path(self.config.checkpoint))
        if isinstance(self.config.model, HFConfig):
            return open_model_artifact(Path(self.config.model.path), "model.path")
        return self.require("pretrain")

    def labeller(self, task: TaskConfig) -> Artifact:
        """Return the model that labels a task's rows: the base, in later rounds the one adapted in the round before."""
        return self.labellers.get(task.name) or self.base()

    def own_model(self) -> GPTConfig:
        """Return the sizes of the model that this project makes itself. Raises ConfigError where the base is a foreign one."""
        if isinstance(self.config.model, HFConfig):
            raise ConfigError("model=hf is a trained model with its tokenizer: leave tokenizer and pretrain out of stages")
        return self.config.model

    def run_stage(self, stage: Stage[Any], task: TaskConfig | None) -> Artifact:
        """Produce one stage's artifact, or take the one that is there; link it under the run's name."""
        reads = stage.reads(self, task)
        label = stage.name if task is None else f"{stage.name} {task.name}"
        started = time.monotonic()
        self.workshop.asked_by = stage.name

        def build(result: Path, work: Path) -> Mapping[str, Any]:
            self.progress.begin(stage.name, None if task is None else task.name, work)
            return stage.build(reads, self.workshop, result, work)

        artifact, is_new = self.store.produce(stage.key(reads), build, force=self.config.force, created=now)
        place = self.store.link(self.place(stage.name, task), artifact)
        stage.deliver(reads, artifact, place)
        if is_new:
            said = stage.describe(artifact)
            logger.info("%s: %s (%.1f s) -> %s", label, said, time.monotonic() - started, place)
            self.progress.say(f"{label}: {said}")
        else:
            self.progress.skip()
            logger.info("%s: unchanged, skipped -> %s", label, place)
        return artifact
