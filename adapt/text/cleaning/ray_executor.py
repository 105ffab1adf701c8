"""Passes over a corpus on a Ray cluster: a task of a pass is one of Ray's, and what it is refused for is the command's message.

Tasks are those of the local executor, sent to the nodes by Ray (Moritz et al. 2018, arXiv:1712.05889), so the files are the same.
datatrove has an executor for Ray too, which drops a task's exception and waits without end for cores that no node has; so only its
records of finished tasks are used. A node imports this project; `work` and the corpus are on a disk that all nodes see. A task
holds a lock while it runs: a command that was killed and given again waits for a task of the killed one that is still at work,
and does not write beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from datatrove.pipeline.base import PipelineStep

from adapt.core.errors import AdaptError, ConfigError, DataError
from adapt.core.progress import progress
from adapt.core.store_locks import locked
from adapt.text.cleaning.config import RayConfig
from adapt.text.cleaning.executors import LocalExecutor

_CRASHES = 3  # of the process or node of a task, before the pass is given up
_GB = 1024**3
_ANSWERS_S = 10.0


@contextlib.contextmanager
def cluster(config: RayConfig) -> Iterator[None]:
    """Join a Ray cluster, or start one on this machine where none is named, and leave it at the end.

    Raises:
        ConfigError: there is no cluster at the address, or no node is large enough for a task.
    """
    # Ray would look for a cluster of this machine too, and try one that is long gone for many minutes.
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(address)
    path = ":".join(entry or str(Path.cwd()) for entry in sys.path)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here tells nobody
    with _own_signals():
        try:
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _no_cluster(address, str(error).splitlines()[0]) from error
    try:
        _check_size(config)
        yield
    finally:
        ray.shutdown()


class RayExecutor(LocalExecutor):
    """An executor whose tasks run on the nodes of the joined cluster, at most `workers` of them at once."""

    def __init__(self, steps: Sequence[PipelineStep], n_tasks: int, workers: int, place: Path, config: RayConfig) -> None:
        super().__init__(list(steps), tasks=n_tasks, workers=workers, logging_dir=str(place))
        self._place, self._config = place, config

    def run(self) -> None:
        """Have the tasks that are left done by the cluster, and wait for them.

        Raises:
            DataError: a task was refused, or its process ended again and again.
        """
        left = self.get_incomplete_ranks()
        if not left:
            return
        for _ in progress(self._finished(left), f"pass {self._place.name}", total=len(left), unit="task"):
            pass

    def run_task(self, rank: int) -> None:
        """Do one task, on a node."""
        locks = self._place / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / f"{rank:05d}"):
            super().run_task(rank)

    def _finished(self, ranks: list[int]) -> Iterator[int]:
        """Yield tasks as they are finished; where one fails, or the command is stopped, the others are killed."""
        task = ray.remote(
            num_cpus=self._config.cpus_per_task, memory=_memory(self._config), max_retries=_CRASHES, retry_exceptions=False
        )(_run_task)
        sent, waiting, running = ray.put(self), list(reversed(ranks)), dict[ray.ObjectRef, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.pop()
                    running[task.remote(sent, rank)] = rank
                for done in ray.wait(list(running))[0]:
                    rank = running.pop(done)
                    self._check(done, rank)
                    yield rank
        finally:
            for one in running:
                ray.cancel(one, force=True)

    def _check(self, done: ray.ObjectRef, rank: int) -> None:
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AdaptError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"corpus: task {rank} of pass {self._place.name} was lost on the cluster ({reason}); "
                "the same command goes on, corpus.ray.memory_gb_per_cpu asks for more memory"
            ) from error


def _run_task(executor: RayExecutor, rank: int) -> None:
    executor.run_task(rank)


def _memory(config: RayConfig) -> int:
    return config.memory_gb_per_cpu * config.cpus_per_task * _GB


def _check_answers(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host:  # `local`, `auto`, or Ray's own client
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, reason: str) -> ConfigError:
    if address == "local":
        return ConfigError(
            f"corpus.executor=ray: no Ray cluster can be started on this machine ({reason}); use corpus.executor=local"
        )
    return ConfigError(
        f"corpus.ray.address={address}: no Ray cluster answers there ({reason}); start one with `ray start --head`, set "
        "RAY_AUTH_MODE=token for one that asks for its token, or leave the address and RAY_ADDRESS out to have one started here"
    )


def _check_size(config: RayConfig) -> None:
    cores, memory = config.cpus_per_task, _memory(config)
    nodes = [(node["Resources"].get("CPU", 0), node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]]
    if not any(its_cores >= cores and its_memory >= memory for its_cores, its_memory in nodes):
        most_cores, most_memory = max(nodes, default=(0, 0))
        raise ConfigError(
            f"corpus.executor=ray: no node of the cluster has {cores} cores and {memory / _GB:.0f} GB of memory (the largest has "
            f"{most_cores:.0f} and {most_memory / _GB:.1f}); lower corpus.ray.cpus_per_task or corpus.ray.memory_gb_per_cpu"
        )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's way to take SIGTERM, which Ray replaces when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
