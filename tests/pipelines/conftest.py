"""One smallest whole run, shared by the tests that look at its results, and stages run inside this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.model.gpt import GPT
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from tests.support.command_line import SMALLEST, in_process, run_inside
from tests.support.made_once import made_once
from tests.support.tiny_exports import write_export


@pytest.fixture(scope="session")
def smallest_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory (`<run.dir>/demo`) of a finished walk, one for all workers: tests read it, or copy it first."""

    def make(place: Path) -> None:
        done = run_inside("run", *SMALLEST, f"run.dir={place}")
        assert done.returncode == 0, done.stderr
        (place / "output.txt").write_text(done.stdout, encoding="utf-8")

    return made_once(tmp_path_factory, "smallest", make) / "demo"


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory, sparse_model: GPT, tokenizer: Tokenizer) -> Path:
    """Return an export of demo_reviews with random weights, which serves as a checkpoint too."""
    return write_export(tmp_path_factory.mktemp("export"), sparse_model, tokenizer)


@pytest.fixture
def copied_run(smallest_run: Path, tmp_path: Path) -> Path:
    """Return a `run.dir` with everything of the smallest run, for a test to go on from."""
    return Path(shutil.copytree(smallest_run.parent, tmp_path / "copied", symlinks=True))


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str, list[str]], str]:
    """Return a function that runs a stage in this process, demands success and returns what the stage wrote."""

    def go(stage: str, arguments: list[str]) -> str:
        code, text = in_process(stage, arguments, monkeypatch, capsys)
        assert code == 0, text
        return text

    return go


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by one entry with every call of the scorer in this process; tests clear it."""
    calls: list[str] = []
    for name in ("score", "score_in_two_steps"):
        original = getattr(TreeScorer, name)

        def counted(*arguments: object, _name: str = name, _original: Callable[..., object] = original) -> object:
            calls.append(_name)
            return _original(*arguments)

        monkeypatch.setattr(TreeScorer, name, counted)
    return calls
