"""Launching a job's ranks, on this machine, on several, or in processes that wait for it, and waiting for all of them.

The parent freezes a job into one YAML file; ranks read nothing else and never import Hydra. If a rank fails, the others
are stopped at once and the first failure's reason is raised here; if the parent dies, so do its ranks. A parent that is asked to
stop (Ctrl-C or SIGTERM) asks its ranks, and waits until they have saved their state; asked again, it ends them at once.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import yaml

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, TrainingError
from adapt.core.faults import said_bytes
from adapt.train.engine_config import EngineConfig
from pipelines.ranks.hosts import read_hosts, spread
from pipelines.ranks.joining import JoinedRanks, company
from pipelines.ranks.local import LOOPBACK, POLL_S, Death, LocalRanks, Meeting, free_port, log_of, remove_stale
from pipelines.ranks.remote import RemoteRanks

logger = logging.getLogger("pipelines")
USER_ERROR_CODE = 2
_GO_ON = "the same command goes on from the last saved state"
_TELL_APART_S = 0.5  # for the rank that caused it to be told from those that lost their peer, over the network too


class Terminated(KeyboardInterrupt):
    """SIGTERM, which this project's commands take as they take Ctrl-C."""


class Ranks(Protocol):
    """Running ranks, wherever they are."""

    @property
    def are_running(self) -> bool: ...

    @property
    def were_stopped(self) -> bool: ...

    @property
    def wish(self) -> int | None: ...

    def deaths(self) -> list[Death]: ...

    def ask_to_stop(self) -> None: ...


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM by raising `Terminated`."""
    raise Terminated


def launch(job: dict[str, Any], work: Path, engine: EngineConfig, n_ranks: int | None = None) -> None:
    """Run a job on `n_ranks` ranks (absent: all that the engine has) and wait for them.

    Raises:
        AdaptError: a rank reported a user error (its own line), or a host cannot be used.
        TrainingError: a rank died otherwise; its last lines are in `<work>/rank-<n>.log`.
        Terminated: the ranks were asked to stop, and have saved their state.
    """
    frozen = (work / "job.yaml").resolve()
    write_atomically(frozen, yaml.safe_dump(job, allow_unicode=True, sort_keys=False))
    remove_stale(work)
    with _started(frozen, engine, n_ranks or engine.world_size) as ranks:
        try:
            _wait(ranks, work, engine)
        except KeyboardInterrupt:
            _stop(ranks)
            raise


def _started(frozen: Path, engine: EngineConfig, n_ranks: int) -> AbstractContextManager[Ranks]:
    others = company()
    if others is not None:
        return JoinedRanks(frozen, engine, others, n_ranks)
    if engine.hostfile is not None:
        return RemoteRanks(frozen, engine, spread(read_hosts(Path(engine.hostfile)), n_ranks))
    meeting = Meeting(address=LOOPBACK, port=free_port(), world_size=n_ranks)
    return LocalRanks(frozen, 0, n_ranks, meeting, engine.threads)


def _wait(ranks: Ranks, work: Path, engine: EngineConfig) -> None:
    while ranks.are_running and not ranks.deaths():
        if ranks.wish is not None:
            signal.raise_signal(ranks.wish)
        time.sleep(POLL_S)
    if ranks.deaths():
        time.sleep(_TELL_APART_S if ranks.are_running else 0.0)
        raise _reason(min(ranks.deaths(), key=lambda death: death.urgency), work, engine)
    if ranks.were_stopped:
        raise Terminated


def _stop(ranks: Ranks) -> None:
    """Ask ranks to stop and wait until they have: at the next step boundary, behind their saved state.

    A rank that was not in its training loop ends at once, and then the others, which wait for it, are not waited for.
    """
    logger.info("stopping at the next step boundary; the same again stops at once")
    ranks.ask_to_stop()
    while ranks.are_running and not ranks.deaths():
        time.sleep(POLL_S)


def _reason(death: Death, work: Path, engine: EngineConfig) -> AdaptError:
    if death.said is not None:
        return AdaptError(death.said)
    how = f"signal {-death.code}" if death.code < 0 else f"exit code {death.code}"
    where = f"rank {death.rank}" if death.host is None else f"rank {death.rank} on {death.host}"
    place = f"; see {log_of(work, death.rank)}" if death.rank else ""
    if -death.code == signal.SIGKILL:
        held = "" if death.peak_bytes is None else f" when it held up to {said_bytes(death.peak_bytes)}"
        smaller = f"if memory ran out, the nearest smaller setting is {_smaller(engine)}"
        return TrainingError(f"{where} was killed (signal 9){held}{place}; {smaller}; {_GO_ON}")
    return TrainingError(f"{where} died ({how}){place}; {_GO_ON}")


def _smaller(engine: EngineConfig) -> str:
    """Name the nearest training setting that takes less memory and computes the same, and the one of scoring."""
    if engine.micro_batch > 1:
        found = f"engine.micro_batch={engine.micro_batch // 2}"
    elif engine.activation_checkpointing.value != "full":
        found = "engine.activation_checkpointing=full"
    else:
        found = f"engine.zero_stage=2 engine.world_size={2 * engine.world_size}, on more machines"
    return f"{found} (for scoring: scorer.max_batch_tokens)"
