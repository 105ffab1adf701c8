"""Weights & Biases: one run for one training, offline unless asked otherwise. The only file that imports wandb."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import wandb

from adapt.train.tracking import RunIdentity, TrackedTable, TrackerConfig

_OFFLINE = "offline"


class WandbTracker:
    """One run of Weights & Biases.

    Offline, what an earlier process wrote of the same run is replaced: `follow` gives it again. Online, the run is resumed, and
    steps that it has are not sent twice. The terminal's output is not recorded, since lines may quote texts of the data.
    """

    def __init__(self, config: TrackerConfig, identity: RunIdentity) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        logging.raiseExceptions = False  # wandb logs to a file of its own: on a full disk every line would be a traceback
        (identity.directory / "wandb").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=identity.directory / "wandb"):
            pass  # where it cannot write, wandb would go to another place without a word
        self._identity, self._is_offline = identity, config.mode == _OFFLINE
        if self._is_offline:
            for earlier in offline_directories(identity):
                shutil.rmtree(earlier)
        self._run = wandb.init(
            project=config.project,
            mode=cast(Literal["offline", "online", "disabled"], config.mode),  # `TrackerConfig` allows these
            id=identity.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.stage,
            config=identity.config,
            dir=str(identity.directory),
            resume="allow" if config.mode == "online" else None,
            settings=wandb.Settings(console="off"),
        )
        self._place = Path(self._run.dir).parent

    @property
    def hint(self) -> str:
        if not self._is_offline:
            return ""
        return f"wandb sync {' '.join(map(str, offline_directories(self._identity)))}"

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        for line in history:
            self.log(line, int(line["step"]))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._refuse_vanished()
        if step >= self._run.starting_step:
            self._run.log(dict(metrics), step=step)

    def conclude(self, summary: Mapping[str, Any], tables: Mapping[str, TrackedTable]) -> None:
        self._refuse_vanished()
        self._run.summary.update(dict(summary))
        found = {name: wandb.Table(columns=list(t.columns), data=[list(row) for row in t.rows]) for name, t in tables.items()}
        if found:
            self._run.log(found)

    def __enter__(self) -> WandbTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
        wandb.teardown()  # `finish` may return before wandb's own process has written its file; this waits for that process to end

    def _refuse_vanished(self) -> None:
        if self._is_offline and not self._place.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._place))


def offline_directories(identity: RunIdentity) -> list[Path]:
    """Return where offline files of a run are."""
    return sorted((identity.directory / "wandb").glob(f"offline-run-*-{identity.id}"))
