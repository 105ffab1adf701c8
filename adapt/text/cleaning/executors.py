"""Executors of passes over a corpus: tasks in this process, in several others, or as jobs of a Slurm cluster.

The executors are datatrove's (Penedo et al. 2024), which records finished tasks below `work`; so a pass goes on where it was, on
whichever executor, and ends in the same files. A Slurm job loads the pass from a file and imports this project, so `work` and the
corpus are on a disk that all nodes see. Its number is kept beside the pass: a command that was killed finds its job again and waits
for it instead of starting a second one; a command that is stopped cancels it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import datatrove.pipeline.dedup.minhash as library_minhash
import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, DataError
from adapt.text.cleaning.config import SlurmConfig

logger = logging.getLogger(__name__)
_JOB, _SAID = "job", "said"
_POLL_S = 2.0


class LocalExecutor(LocalPipelineExecutor):
    """The local executor without its log on standard error, and without a helper process that outlives a killed command."""

    pipeline: list[Any]

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        if self.workers == 1:
            steps = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(steps)
                self.run_task(rank)
            return
        with multiprocess.get_context("forkserver").Pool(self.workers, initializer=_end_with_parent) as pool:
            for _ in pool.imap_unordered(self.run_task, ranks):
                pass

    def run_task(self, rank: int) -> None:
        with _without_chatter():
            self._run_for_rank(rank)


class SlurmExecutor(SlurmPipelineExecutor):
    """The executor for Slurm, waited for: a job array with an element for each task, at most `workers` of them at once."""

    pipeline: list[Any]

    def __init__(self, steps: list[PipelineStep], n_tasks: int, workers: int, place: Path, config: SlurmConfig) -> None:
        path = ":".join(entry or str(Path.cwd()) for entry in sys.path)
        super().__init__(
            steps,
            tasks=n_tasks,
            time=config.time,
            partition=config.partition or "",
            cpus_per_task=config.cpus_per_task,
            mem_per_cpu_gb=config.memory_gb_per_cpu,
            workers=workers,
            job_name=f"corpus-{place.name}",
            qos="",
            env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(path)}",
            logging_dir=str(place),
            slurm_logs_folder=str(place / "slurm"),
            requeue_signals=None,
            with_srun=False,
            sbatch_args=dict(config.options),
        )
        self._place = place

    def finish(self) -> None:
        """Have the tasks that are left done by the cluster, and wait for them.

        Raises:
            DataError: a task was refused, or the job ended and left tasks.
        """
        job = self._place / _JOB
        if not (job.is_file() and _is_queued(job.read_text())):
            if not self.get_incomplete_ranks():
                return
            for said in self._place.glob(f"{_SAID}/*"):
                said.unlink()
            with _without_chatter():
                self._launch()
            write_atomically(job, str(self.job_id))
        number = job.read_text()
        logger.info("corpus: job %s of the cluster, its log is below %s", number, self._place / "slurm")
        try:
            while _is_queued(number):
                time.sleep(_POLL_S)
        except BaseException:
            subprocess.run(["scancel", number], check=False)
            raise
        left = self.get_incomplete_ranks()
        refusals = sorted(self._place.glob(f"{_SAID}/*"))
        if refusals:
            raise DataError(refusals[0].read_text(encoding="utf-8"))
        if left:
            raise DataError(
                f"corpus: job {number} of the cluster left {len(left)} of {self.tasks} tasks of pass {self._place.name}; "
                f"{self._place / 'slurm'} says why, the same command goes on"
            )

    def _launch(self) -> None:
        try:
            self.launch_job()
        except FileNotFoundError as error:
            raise DataError(f"corpus.executor=slurm: this machine has no {error.filename}; use corpus.executor=local") from error
        except subprocess.CalledProcessError as error:
            raise DataError(
                f"corpus.executor=slurm: sbatch refused the job (exit code {error.returncode}); see its message above, and set "
                "corpus.slurm.partition, time or options"
            ) from error

    def launch_merge_stats(self) -> None:
        """Launch nothing more: the library's own statistics are not used."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return the options of sbatch; without a partition the cluster takes its default."""
        return {name: value for name, value in super().get_sbatch_args(max_array).items() if value or name == "requeue"}

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        """Do one task on a node; what it was refused for is left where the command finds it."""
        try:
            with _without_chatter():
                return super()._run_for_rank(rank, local_rank, node_rank)
        except AdaptError as error:
            (self._place / _SAID).mkdir(exist_ok=True)
            write_atomically(self._place / _SAID / f"{rank:05d}", str(error))
            raise


def _is_queued(job: str) -> bool:
    """Say whether the cluster still has a job waiting or running; what it does not know has ended."""
    done = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def _end_with_parent() -> None:
    """End this process when the command is killed: the next one must not find it writing."""
    parent = multiprocess.process.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep the library's log and bars off standard error; this project's own messages go on."""
    import datatrove.pipeline.dedup.exact_dedup as library_exact
    from loguru import logger as library_logger

    library_logger.disable("datatrove")
    bars = [(module, module.tqdm) for module in (library_exact, library_minhash)]
    for module, _ in bars:
        module.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        for module, bar in bars:
            module.tqdm = bar
