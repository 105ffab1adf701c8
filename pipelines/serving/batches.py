"""Rows of concurrent requests go in, answers come out; one thread owns whatever answers.

Requests wait in the order in which they came. A batch takes rows from the first of them until it is full, so small requests share
one, and a large request is answered in several. What nobody waits for any more is not scored.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskRow

logger = logging.getLogger("pipelines")
Answer = Callable[[Sequence[TaskRow]], list[Prediction]]


class QueueFull(Exception):
    """As many rows wait as may, or the queue takes no more since the command ends."""


@dataclass(kw_only=True, eq=False)
class _Job:
    """Rows of one request: `taken` of them are in a batch or answered."""

    rows: Sequence[TaskRow]
    future: Future[list[Prediction]]
    taken: int = 0
    answers: list[Prediction] = field(default_factory=list)


class Batches:
    """A queue of at most `queue_rows` rows, answered in batches of at most `batch_rows`, from entering to leaving its context."""

    def __init__(self, answer: Answer, *, batch_rows: int, queue_rows: int) -> None:
        self._answer, self._batch_rows, self._queue_rows = answer, batch_rows, queue_rows
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)

    def __enter__(self) -> Batches:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Answer what is queued, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Rows that are queued and in no batch yet."""
        return self._waiting

    @property
    def is_answering(self) -> bool:
        """Whether rows are taken and answered."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, rows: Sequence[TaskRow]) -> Future[list[Prediction]]:
        """Queue rows; the future has their answers, in their order. Cancel it to take them back.

        Raises:
            QueueFull: too many rows wait already.
        """
        future: Future[list[Prediction]] = Future()
        with self._changed:
            if self._is_closed:
                raise QueueFull("the server is ending; ask another one")
            if self._waiting + len(rows) > self._queue_rows:
                raise QueueFull(f"{self._waiting} rows wait, of at most {self._queue_rows}; try again later")
            job = _Job(rows=rows, future=future)
            self._jobs.append(job)
            self._waiting += len(rows)
            self._changed.notify_all()
        future.add_done_callback(lambda done: self._take_back(job) if done.cancelled() else None)
        return future

    def _take_back(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._waiting -= len(job.rows) - job.taken

    def _work(self) -> None:
        while batch := self._next():
            self._answer_batch(batch)

    def _next(self) -> list[tuple[_Job, Sequence[TaskRow]]]:
        """Wait for rows and return a batch of them; an empty one at the end."""
        batch: list[tuple[_Job, Sequence[TaskRow]]] = []
        room = self._batch_rows
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            while self._jobs and room:
                job = self._jobs[0]
                rows = job.rows[job.taken : job.taken + room]
                job.taken += len(rows)
                room -= len(rows)
                self._waiting -= len(rows)
                batch.append((job, rows))
                if job.taken == len(job.rows):
                    self._jobs.popleft()
        return batch

    def _answer_batch(self, batch: Sequence[tuple[_Job, Sequence[TaskRow]]]) -> None:
        try:
            answers = iter(self._answer([row for _, rows in batch for row in rows]))
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
            else:  # so that rows which cannot be answered are no harm to those of others
                for one in batch:
                    self._answer_batch([one])
            return
        for job, rows in batch:
            job.answers += [next(answers) for _ in rows]
            if len(job.answers) == len(job.rows) and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.answers)

    def _fail(self, job: _Job, error: Exception) -> None:
        logger.error("a batch could not be answered: %s", type(error).__name__)  # its message may have a row's text
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)
        self._take_back(job)
