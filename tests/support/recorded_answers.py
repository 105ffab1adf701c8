"""`predict` with recorded answers (a digest of the text decides), so that rows and memory are measured and no model is.

A process of its own, to be killed: `python -m tests.support.recorded_answers key=value ...`. At its end it says its peak memory.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.command_line.compose import main
from pipelines.config.locations import conf_dir
from pipelines.stages import predict
from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, row_from


class Recorded:
    """A predictor whose answer follows from the text."""

    class spec:
        task: TaskConfig = load_task("demo_reviews", [conf_dir() / "task"])

    def read(self, record: Mapping[str, Any], where: str, line: int, unit: str) -> TaskRow:
        return row_from(record, self.spec.task, where, line, unit, reads_label=False)

    def predict_rows(self, rows: Sequence[TaskRow]) -> list[Prediction]:
        return [answer_to(row.texts["sentence"]) for row in rows]

    def cut_rows(self, rows: Sequence[TaskRow]) -> None:
        return None

    def text_findings(self, name: str, texts: Sequence[str]) -> list[Any]:
        return []


def answer_to(text: str) -> Prediction:
    share = zlib.crc32(text.encode()) % 1000 / 1000
    label = "Positive" if share >= 0.5 else "Negative"
    return Prediction(label=label, probabilities={"Positive": share, "Negative": 1 - share})


def peak_mib(process: int | str = "self") -> float:
    """Return the most resident memory that a process had so far, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    setattr(predict, "load", lambda *_: Recorded())  # noqa: B010 (mypy knows the other function)
    try:
        main("predict")
    finally:
        sys.stderr.write(f"peak {peak_mib():.0f} MiB\n")
