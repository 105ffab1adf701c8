"""A checkpoint copied by hand, without its manifest, serves as a base like the artifact it was copied from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.checkpoint.weights import open_bare_checkpoint
from adapt.core.artifacts import open_artifact
from tests.support.command_line import SMALLEST, records, refused

TASK = "demo_reviews"
RunHere = Callable[[str, list[str]], str]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bare(smallest_run: Path, tmp_path: Path) -> Path:
    """Return a directory with the checkpoint's files of the smallest run's base and nothing else."""
    place = tmp_path / "bare"
    place.mkdir()
    for file in (smallest_run / "pretrain").resolve().iterdir():
        if file.name.startswith(("config", "model", "tokenizer")):
            shutil.copy(file, place)
    assert not (place / "manifest.json").exists()
    return place


def with_base(base: Path, place: Path, *more: str) -> list[str]:
    return [*SMALLEST, f"task={TASK}", f"checkpoint={base}", f"run.dir={place}", "pseudo_label.max_rows=30", *more]


def test_rows_are_labelled_as_by_the_artifact(smallest_run: Path, bare: Path, tmp_path: Path, run_here: RunHere) -> None:
    digest = open_bare_checkpoint(bare).digest
    found = []
    for number, base in enumerate((bare, smallest_run / "pretrain")):
        run_here("pseudo_label", with_base(base, tmp_path / f"run{number}", "pseudo_label.collapse_limit=1.0"))
        artifact = open_artifact((tmp_path / f"run{number}" / "demo" / "pseudo_label" / TASK).resolve())
        rows = records(artifact.file("labels.parquet"))
        assert {row.pop("checkpoint") for row in rows} == {artifact.inputs["base"].digest}
        found.append((artifact, rows))
    (ours, labels), (_, wanted) = found
    assert len(labels) > 10
    assert labels == wanted
    assert ours.inputs["base"].digest == digest


def test_a_copy_elsewhere_is_the_same_base(bare: Path, tmp_path: Path, run_here: RunHere) -> None:
    raw = ["evaluate.methods=[raw]", "evaluate.method=raw", "split=dev"]
    run_here("evaluate", with_base(bare, tmp_path / "runs", *raw))
    metrics = json.loads((tmp_path / "runs" / "demo" / "evaluate" / TASK / "metrics.json").read_text(encoding="utf-8"))
    assert [(row["split"], row["model"], row["n"]) for row in metrics] == [("dev", "base", 60)]
    copy = shutil.copytree(bare, tmp_path / "elsewhere")
    assert "unchanged, skipped" in run_here("evaluate", with_base(copy, tmp_path / "runs", *raw))


def test_a_bare_checkpoint_can_be_adapted(bare: Path, tmp_path: Path, run_here: RunHere) -> None:
    stages = ["stages=[pseudo_label,continue_pretrain]", "continue_pretrain.epochs=1", "pseudo_label.collapse_limit=1.0"]
    run_here("run", with_base(bare, tmp_path / "runs", *stages))
    adapted = open_artifact((tmp_path / "runs" / "demo" / "continue_pretrain" / TASK).resolve())
    assert adapted.metrics["is_adapted"]
    assert adapted.inputs["base"].digest == open_bare_checkpoint(bare).digest
    assert open_bare_checkpoint(adapted.path).digest != open_bare_checkpoint(bare).digest


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut a shard", ["model-00001.safetensors", "missing or damaged"]),
        ("drop a shard", ["model-00001.safetensors", "missing or damaged"]),
        ("break the configuration", ["config.json", "not valid JSON"]),
        ("drop the tokenizer", ["no manifest.json", "no checkpoint of this project"]),
        ("drop the index", ["no manifest.json", "no checkpoint of this project"]),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    damage: str, words: list[str], bare: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    shard = bare / "model-00001.safetensors"
    if damage == "cut a shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "drop a shard":
        shard.unlink()
    elif damage == "break the configuration":
        (bare / "config.json").write_text("{", encoding="utf-8")
    else:
        (bare / ("tokenizer.model" if "tokenizer" in damage else "model.safetensors.index.json")).unlink()
    refused("evaluate", with_base(bare, tmp_path / "runs"), [str(bare), *words], monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/**/manifest.json"))
