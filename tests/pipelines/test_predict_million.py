"""A million rows through `predict`: memory does not grow with the file, and two SIGKILLs change no row.

The answers are recorded ones (a digest of the text decides), so that rows and memory are measured and no model is.
"""

from __future__ import annotations

import csv
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, in_fp32
from tests.support.recorded_answers import answer_to, peak_mib

ROWS = 1_000_000
FEW_ROWS = 50_000
MOST_GROWTH_MIB = 64  # of which ids and lines of rows take 15, and sorting the ids 8
Capture = pytest.CaptureFixture[str]


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


def started(words: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.recorded_answers", *in_fp32(words)]
    with said.open("wb") as stream:
        return subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)


def killed(words: Sequence[str], parts: int, place: Path) -> float:
    """Kill a command by SIGKILL once so many parts are there; return the peak of its memory in MiB until then."""
    process = started(words, place / "said")
    work = place / "runs" / "store" / "predict"
    while not list(work.glob(f".*.work/part-{parts:06d}.jsonl")):
        assert process.poll() is None, (place / "said").read_text(encoding="utf-8")
        time.sleep(0.02)
    peak = peak_mib(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return peak


@pytest.mark.slow
def test_a_million_rows_survive_two_kills_at_flat_memory(tiny_export: Path, tmp_path: Path, capsys: Capture) -> None:
    def go(count: int, *, kills: Sequence[int] = ()) -> list[float]:
        """Return the peak of resident memory in MiB of each start, of `kills` + 1."""
        source = planted(tmp_path / f"{count}.csv", count)
        words = [f"checkpoint={tiny_export}", f"input={source}", f"output={tmp_path}/{count}_out.csv", f"run.dir={tmp_path}/runs"]
        peaks = [killed(words, parts, tmp_path) for parts in kills]
        assert not (tmp_path / f"{count}_out.csv").exists()
        code = started(words, tmp_path / "said").wait()
        said = (tmp_path / "said").read_text(encoding="utf-8")
        assert code == 0, said
        return [*peaks, float(said.split()[-2])]

    small = max(go(FEW_ROWS))
    large = go(ROWS, kills=[ROWS // 512 // 3, 2 * ROWS // 512 // 3])
    assert not list((tmp_path / "runs" / "store" / "predict").glob(".*.work"))
    assert sha256_of(tmp_path / f"{ROWS}_out.csv") == sha256_of_expected(tmp_path / "expected.csv", ROWS)
    figures = f"{small:.0f} MiB for {FEW_ROWS:,} rows; for {ROWS:,} rows, by start: {', '.join(f'{peak:.0f}' for peak in large)}"
    assert max(large) - small < MOST_GROWTH_MIB, figures
    with capsys.disabled():
        print(f"\npeak {figures}")
