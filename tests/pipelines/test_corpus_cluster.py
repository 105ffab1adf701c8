"""Corpus passes as jobs of a cluster: a stand-in for Slurm's commands runs each element of an array where it is submitted."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import refused

pytest.importorskip("adapt.text.cleaning.executors")

SBATCH = """#!/bin/bash
# Runs the elements of an array one after the other, as Slurm's variables tell them, and forgets the job.
script="${@: -1}"
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
echo "$last" >> "$STAND_IN/arrays"
for i in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$i RUN_OFFSET=0 SLURM_NODELIST=here bash "$script" > "$STAND_IN/log" 2>&1 || true
done
echo "Submitted batch job 7"
"""
OTHERS = {"squeue": "exit 1", "scancel": "true", "scontrol": "echo here"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "slurm"
    place.mkdir()
    for name, text in {"sbatch": SBATCH, **{name: f"#!/bin/sh\n{text}\n" for name, text in OTHERS.items()}}.items():
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod((place / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(place))
    return place


def corpus(place: Path) -> list[str]:
    texts = [f"第{n}位客人说这家店的{dish}做得很用心，下次还会带朋友来。" for n in range(6) for dish in ("面条", "汤", "饺子")]
    for number in range(2):
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts[number:]]
        (place / f"food_{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [f"data.corpus=[{place}/*.jsonl]", "run.name=c", "corpus.duplicates.near=false"]


def digests(runs: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (runs / "c" / "corpus").glob("*.gz")}


@pytest.mark.slow
def test_a_cluster_makes_the_shards_that_this_machine_makes(
    cluster: Path, tmp_path: Path, run_here: Callable[[str, list[str]], str]
) -> None:
    arguments = corpus(tmp_path)
    run_here("corpus", [*arguments, f"run.dir={tmp_path}/here"])
    said = run_here("corpus", [*arguments, f"run.dir={tmp_path}/there", "corpus.executor=slurm", "corpus.workers=2"])
    assert "job 7 of the cluster" in said
    assert (cluster / "arrays").read_text().split() == ["1", "0", "1"]  # two files, the merging of repeats, two files
    assert digests(tmp_path / "there") == digests(tmp_path / "here") != {}


@pytest.mark.slow
def test_what_a_job_is_refused_for_is_the_commands_message(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*corpus(tmp_path), f"run.dir={tmp_path}/runs", "corpus.executor=slurm"]
    (tmp_path / "food_1.jsonl").write_text('{"text": "好"}\n{"text": 3}\n', encoding="utf-8")
    refused("corpus", arguments, ["food_1.jsonl, line 2", "no text field"], monkeypatch, capsys)
    (cluster / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 8\n", encoding="utf-8")  # a job that does nothing
    refused("corpus", arguments, ["job 8 of the cluster left 1 of 2 tasks of pass clean"], monkeypatch, capsys)


def test_a_machine_without_slurm_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = [*corpus(tmp_path), f"run.dir={tmp_path}/runs", "corpus.executor=slurm"]
    refused("corpus", arguments, ["this machine has no sbatch", "corpus.executor=local"], monkeypatch, capsys)
