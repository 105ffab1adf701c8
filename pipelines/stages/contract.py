"""What stages share: a walk (configuration, store, run name), and how a stage's artifact is produced, linked and reported."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from adapt.checkpoint.hf_directory import CONFIG_FILE, open_hf_directory
from adapt.core.artifacts import MANIFEST, Artifact, ArtifactStore, StageKey, is_artifact, open_artifact, sha256_of_file
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import say_precision
from adapt.core.typed import to_plain
from adapt.model.config import GPTConfig, HFConfig
from adapt.scoring.scorer_config import ScorerConfig
from adapt.train.engine_config import EngineConfig
from pipelines.config.locations import conf_dir
from pipelines.config.schema import PipelineConfig
from pseudo_label.tasks import TaskConfig, load_task, split_path

logger = logging.getLogger("pipelines")

BuildFunction = Callable[[Path, Path], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage is about to do: its key, how it is built, and a line for what came out.

    `deliver` is done with the artifact every time, also when it was there already.
    """

    key: StageKey
    build: BuildFunction
    describe: Callable[[Artifact], str]
    deliver: Callable[[Artifact], None] | None = None


class Stage(Protocol):
    """One stage module: a name, its algorithm's version, whether it runs once per task, and a plan.

    Raise VERSION by 1 with every change after which the stage would make something else of the same inputs and settings.
    """

    NAME: str
    VERSION: int
    PER_TASK: bool

    def plan(self, walk: Walk, task: TaskConfig | None) -> Plan: ...


class Walk:
    """One run through stages. `engine` and `scorer` hold resolved precisions, so that keys and frozen jobs never say `auto`.

    They are resolved when they are first asked for, since that imports torch; `config` holds what was set.
    """

    def __init__(self, config: PipelineConfig, point: str | None = None) -> None:
        self.config = config
        self.store = ArtifactStore(Path(config.run.dir))
        self.name = config.run.name if point is None else f"{config.run.name}/{point}"
        self.group = config.run.name
        self.labellers: dict[str, Artifact] = {}
        self._produced: set[str] = set()
        self._said: set[str] = set()

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
        own = [Path(self.config.task_dir)] if self.config.task_dir else []
        tasks = [load_task(name, [*own, conf_dir() / "task"]) for name in names]
        chosen = self.config.data.encoding
        return tasks if chosen is None else [replace(task, encoding=chosen) for task in tasks]

    def data_root(self) -> Path:
        """Return data.root. Raises ConfigError where none is given or it is no directory."""
        wanted = "give a directory in the CLUE layout (<task>/{dev,unlabeled,test}.{json,csv,...})"
        if self.config.data.root is None:
            raise ConfigError(f"data.root is not set; {wanted}")
        root = Path(self.config.data.root)
        if not root.is_dir():
            raise ConfigError(f"data.root: {root} is no directory; {wanted}")
        return root

    def split_digests(self, task: TaskConfig, splits: list[str]) -> dict[str, str]:
        """Return sha256 by split name for those splits of a task that exist; an ending other than .json is part of the name."""
        paths = [split_path(self.data_root(), task, split) for split in splits]
        return {f"{task.name}/{path.name.removesuffix('.json')}": sha256_of_file(path) for path in paths if path.is_file()}

    def say_once(self, message: str) -> None:
        """Log a message that several stages have reason to log."""
        if message not in self._said:
            self._said.add(message)
            logger.info("%s", message)

    def say_if_treeless(self, task: TaskConfig, *, wants_groups: bool) -> None:
        """Say that coarse to fine has no effect on a task without a label tree."""
        if wants_groups and task.label_tree is None:
            logger.info("%s has no label_tree: its labels are ranked all at once", task.name)

    def produce(self, key: StageKey, build: BuildFunction, name: str) -> Artifact:
        """Build an artifact that a stage needs on its way, or take the one that is there; linked under the run as `name`.

        With `force` it is built again once in a walk, however many stages need it.
        """
        is_forced = self.config.force and key.digest() not in self._produced
        artifact, _ = self.store.produce(key, build, force=is_forced, created=_now)
        self._produced.add(key.digest())
        self.store.link(f"{self.name}/{name}", artifact)
        return artifact

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
            raise ConfigError(f"{path}: not there yet; run `python -m pipelines.{stage} run.name={self.config.run.name}` first")
        return artifact

    def find(self, stage: str, task: TaskConfig | None = None) -> Artifact | None:
        """Open the run's artifact of a stage; None where that stage never ran.

        Raises:
            CheckpointError: it ran, and what it left is incomplete or damaged.
        """
        path = self.store.root / self.place(stage, task)
        if not path.exists() and not path.is_symlink():
            return None
        if not is_artifact(path):
            again = f"python -m pipelines.{stage} run.name={self.config.run.name}" + ("" if task is None else f" task={task.name}")
            raise CheckpointError(f"{path}: is incomplete (it has no {MANIFEST}); run `{again}` again")
        return open_artifact(path.resolve())

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

    def run_stage(self, stage: Stage, task: TaskConfig | None) -> Artifact:
        """Produce one stage's artifact, or take the one that is there; link it under the run's name."""
        plan = stage.plan(self, task)
        label = stage.NAME if task is None else f"{stage.NAME} {task.name}"
        started = time.monotonic()
        artifact, is_new = self.store.produce(plan.key, plan.build, force=self.config.force, created=_now)
        place = self.store.link(self.place(stage.NAME, task), artifact)
        if plan.deliver is not None:
            plan.deliver(artifact)
        if is_new:
            logger.info("%s: %s (%.1f s) -> %s", label, plan.describe(artifact), time.monotonic() - started, place)
        else:
            logger.info("%s: unchanged, skipped -> %s", label, place)
        return artifact


def open_model_artifact(path: Path, key: str = "checkpoint") -> Artifact:
    """Open an artifact, export or bare checkpoint that holds a model, or a Hugging Face directory, given by a configuration key.

    Raises:
        CheckpointError: there is none, or it has no weights.
    """
    from adapt.checkpoint.weights import is_bare_checkpoint, open_bare_checkpoint

    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; {key}= takes an artifact or export that holds a model, or a Hugging Face directory"
        )
    if not is_artifact(path) and is_bare_checkpoint(path):
        return open_bare_checkpoint(path)
    if not is_artifact(path) and (path / CONFIG_FILE).is_file():
        return open_hf_directory(path)
    artifact = open_artifact(path.resolve())
    try:
        weights_of(artifact)
    except CheckpointError:
        raise CheckpointError(f"{path}: is the artifact of stage '{artifact.stage}' and holds no model weights") from None
    return artifact


def weights_of(artifact: Artifact) -> Path:
    """Return the directory with an artifact's weights: its own, or, where nothing was adapted, its base's."""
    from adapt.checkpoint.weights import has_weights

    if has_weights(artifact.path):
        return artifact.path
    base = artifact.inputs.get("base")
    if base is not None and has_weights(Path(base.path)):
        return Path(base.path)
    raise CheckpointError(
        f"{artifact.path}: holds no model weights; give a checkpoint made by pretrain, continue_pretrain or export"
    )


def plain_settings(**sections: Any) -> dict[str, Any]:
    """Return what a stage reads as plain values, for its key."""
    plain = {name: to_plain(section) for name, section in sections.items()}
    orders = {f"{name}_order": order_of(section) for name, section in sections.items() if isinstance(section, TaskConfig)}
    return {**plain, **orders}


def order_of(task: TaskConfig) -> list[list[str]]:
    """Return the order of a task's fields, labels and groups, which scores and biases follow: keys do not see it in a mapping."""
    return [list(task.fields), task.labels, list(task.label_tree or {})]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
