"""A million rows through `predict`: memory does not grow with the file, and after two kills rows are those of an undisturbed run.

The answers are recorded ones (a digest of the text decides), so that rows and memory are measured and no model is.
"""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.bench.child import forget_peak, memory_mib
from pipelines.config.locations import conf_dir
from pipelines.stages import predict
from pseudo_label.predictor import Prediction
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, row_from
from tests.support.command_line import in_process

ROWS = 1_000_000
FEW_ROWS = 50_000
MOST_GROWTH_MIB = 64  # of which ids and lines of rows take 15, and sorting the ids 8
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


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


def texts(count: int) -> Iterator[str]:
    for n in range(count):
        end = "\n" if n % 1000 == 0 else "，"
        yield f"第{n}家店的菜{'很好' if n % 3 else '很差'}{end}“值”得, 再来{n * 7919 % 104729}次"


def planted(place: Path, count: int) -> Path:
    with place.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "sentence"])
        writer.writerows([n, text] for n, text in enumerate(texts(count)))
    return place


def sha256_of_expected(place: Path, count: int) -> str:
    with place.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "sentence", "prediction", "probability"])
        for n, text in enumerate(texts(count)):
            answer = answer_to(text)
            writer.writerow([n, text, answer.label, round(answer.probabilities[answer.label], 6)])
    return sha256_of(place)


def sha256_of(place: Path) -> str:
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@pytest.mark.slow
def test_a_million_rows_survive_two_kills_at_flat_memory(
    tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(predict, "load", lambda *_: Recorded())
    write = predict.write_atomically
    stops: list[int] = []

    def stopping(path: Path, text: str) -> None:
        number = int(path.stem.rpartition("-")[2])
        if stops and number == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(predict, "write_atomically", stopping)

    def go(count: int, *, kills: Sequence[int] = ()) -> float:
        """Return the peak of resident memory in MiB of the last start, of `kills` + 1."""
        source = planted(tmp_path / f"{count}.csv", count)
        words = [f"checkpoint={tiny_export}", f"input={source}", f"output={tmp_path}/{count}_out.csv", f"run.dir={tmp_path}/runs"]
        stops[:] = kills
        for _ in kills:
            assert in_process("predict", words, monkeypatch, capsys)[0] == 130
        forget_peak()
        code, said = in_process("predict", words, monkeypatch, capsys)
        assert code == 0, said
        return memory_mib("VmHWM")

    small = go(FEW_ROWS)
    large = go(ROWS, kills=[ROWS // 512 // 3, 2 * ROWS // 512 // 3])
    assert not stops
    assert sha256_of(tmp_path / f"{ROWS}_out.csv") == sha256_of_expected(tmp_path / "expected.csv", ROWS)
    assert large - small < MOST_GROWTH_MIB, f"{small:.0f} MiB for {FEW_ROWS:,} rows, {large:.0f} for {ROWS:,}"
    with capsys.disabled():
        print(f"\npeak {small:.0f} MiB for {FEW_ROWS:,} rows, {large:.0f} MiB for {ROWS:,}")
