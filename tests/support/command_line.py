"""Helpers of the pipeline tests: the smallest whole run, in a process of its own or inside this one."""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from adapt.core.precision import Precision
from adapt.model.routers.settings import RouterConfig
from adapt.scoring.scorer_config import ScorerConfig
from pipelines.command_line.compose import _register, checked
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.config.schema import PipelineConfig
from tests.support.forked_ranks import fork_ranks
from tests.support.loggers import kept_loggers
from tests.support.tiny_models import ROOT as ROOT

UNLABELED_ROWS = 280


def _small_demo() -> Path:
    """Return a copy of the demo's tasks without `few` and with the first unlabeled rows, so that walks in tests are short."""
    place = Path(tempfile.mkdtemp(prefix="small_demo_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for task in (demo_dir() / "clue").iterdir():
        (place / task.name).mkdir()
        for split, most in (("dev", None), ("test", None), ("unlabeled", UNLABELED_ROWS)):
            lines = (task / f"{split}.json").read_text(encoding="utf-8").splitlines(keepends=True)
            (place / task.name / f"{split}.json").write_text("".join(lines[:most]), encoding="utf-8")
    return place


SMALL_DEMO = _small_demo()
# Every command has these, so that bits and speed are the same on every machine; a test may append another precision.
FP32 = ["engine.precision=fp32", "scorer.precision=fp32"]
FP32_SCORES = ScorerConfig(precision=Precision.FP32)  # for exports and checkpoints that a test opens by itself
SMALLEST = [
    "experiment=demo_from_scratch",
    "run.name=demo",
    f"data.root={SMALL_DEMO}",
    "tokenizer.vocab_size=2400",
    "pretrain.steps=12",
    "pretrain.batch_rows=8",
    "pretrain.save_every_steps=4",
    "pseudo_label.max_rows=80",
    "continue_pretrain.epochs=5",
    "continue_pretrain.save_every_steps=2",
    "evaluate.fit_rows=40",
]


def composed(primary: str, overrides: list[str]) -> PipelineConfig:
    """Compose a primary configuration with overrides, and check it."""
    GlobalHydra.instance().clear()
    _registered(*RouterConfig.choices())
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return checked(compose(primary, overrides=[*FP32, *overrides]))


def in_process(
    stage: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Run a stage's command line in this process; return its exit code and what it wrote to standard error."""
    code = _main(stage, arguments)
    captured = capsys.readouterr()
    return code, captured.err + captured.out


def run_inside(stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's command line in this process, for a fixture that outlives a test."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors), kept_loggers():
        code = _main(stage, arguments)
    return subprocess.CompletedProcess([stage, *arguments], code, out.getvalue(), errors.getvalue())


def _main(stage: str, arguments: Sequence[str]) -> int:
    from pipelines.command_line import compose as compose_module
    from pipelines.tools import generate, plan

    acts = {"plan": plan.show, "generate": generate.show}
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", [f"pipelines.{stage}", *in_fp32(arguments)])
        if not any(argument.startswith(("-", "hydra")) for argument in arguments):
            # Hydra would compose twice, the first time to find out whether the configuration asks for a sweep.
            patch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)
        patch.setattr(compose_module, "_register", lambda: _registered(*RouterConfig.choices()))
        fork_ranks(patch)
        compose_module.main(stage, acts.get(stage))
    return int(left.value.code or 0)


@functools.cache
def _registered(*_: str) -> None:
    """Hand the schemas to Hydra once for these routers; a command of its own does so at its start."""
    _register()


def refused(
    stage: str, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Assert that a command line is refused in one line that says all of `words`."""
    code, text = in_process(stage, arguments, monkeypatch, capsys)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2, text
    assert len(errors) == 1, text
    assert text.splitlines()[-1] == errors[0], text
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0], errors[0]


def on_base(smallest_run: Path, place: Path, task: str) -> list[str]:
    """Return the arguments of a run of its own below `place`, for one task, from the base of the smallest run."""
    return [*SMALLEST, f"task={task}", f"checkpoint={smallest_run}/pretrain", f"run.dir={place}"]


def records(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file."""
    return list(pyarrow.parquet.read_table(path).to_pylist())


def command(stage: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"pipelines.{stage}", *in_fp32(arguments)]


def run(stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage as a user does."""
    return subprocess.run(command(stage, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=900)


def in_fp32(arguments: Sequence[str]) -> list[str]:
    """Put `FP32` behind the flags, where Hydra wants settings, and before the test's own settings, which win."""
    n_flags = sum(1 for _ in takewhile(lambda argument: argument.startswith("-"), arguments))
    return [*arguments[:n_flags], *FP32, *arguments[n_flags:]]


def digests(directory: Path) -> dict[str, str]:
    """Return the sha256 of every result that must not depend on when a run was killed (timings are in manifests only)."""
    patterns = (
        "*.safetensors", "history.jsonl", "held_out.json", "figures.json", "scores.parquet", "labels.parquet", "decision.json",
        "predictions.jsonl", "*_predict.json",
    )  # fmt: skip
    found = {}
    for pattern in patterns:
        for path in sorted(directory.glob(f"**/{pattern}")):
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def digests_of_artifacts(runs: Path) -> dict[str, str]:
    """Return the digest of every artifact in a store, over its files without times; a page shows times, and is left out."""
    found = {}
    for manifest in sorted(runs.glob("store/*/*/manifest.json")):
        if manifest.parts[-3] == "report":
            continue
        digest = json.loads(manifest.read_text(encoding="utf-8"))["digest"]
        found[str(manifest.parent.relative_to(runs))] = str(digest)
    return found
