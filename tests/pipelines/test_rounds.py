"""Rounds of label and adapt: who labels, when they stop and what stands then, and that the same command ends in the same place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.artifacts import Artifact, open_artifact
from pipelines.stages import continue_pretrain, pseudo_label, teacher_panel
from pseudo_label.decision import Decision, FittedScores, Method
from tests.support.command_line import in_process, on_base, records, run_inside
from tests.support.made_once import made_once

TASK = "demo_reviews"
SHORT = [
    "stages=[pseudo_label,continue_pretrain]",
    "continue_pretrain.epochs=1",
    "pseudo_label.collapse_limit=1.0",
    "pseudo_label.teaching_rounds=0",
]
NEVER_STOPS = ["pseudo_label.rounds.min_change=0", "pseudo_label.rounds.max_noise_increase=1"]
RunHere = Callable[[str, list[str]], str]


@pytest.fixture(scope="module")
def three_rounds(smallest_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `run.dir` of a walk of three rounds."""

    def make(place: Path) -> None:
        done = run_inside("run", *on_base(smallest_run, place, TASK), *SHORT, *NEVER_STOPS, "pseudo_label.rounds.count=3")
        assert done.returncode == 0, done.stderr
        for number in (2, 3):
            assert f"{TASK}: round {number} changes" in done.stderr

    return made_once(tmp_path_factory, "three_rounds", make)


@pytest.fixture
def place(three_rounds: Path, tmp_path: Path) -> Path:
    """Return a copy of the three rounds, so that the models they adapted need not be adapted again."""
    return Path(shutil.copytree(three_rounds, tmp_path / "copied", symlinks=True))


def rounds(smallest_run: Path, place: Path, count: int, *settings: str) -> list[str]:
    return [*on_base(smallest_run, place, TASK), *SHORT, f"pseudo_label.rounds.count={count}", *settings]


def links(place: Path) -> dict[str, str]:
    """Return where every link of a run points to, and what is there."""
    found = {str(path.relative_to(place)): open_artifact(path.resolve()) for path in place.glob("demo/**/*") if path.is_symlink()}
    assert len(found) >= 3
    return {name: f"{artifact.path.name} {artifact.digest}" for name, artifact in found.items()}


def linked(place: Path, stage: str) -> Artifact:
    return open_artifact((place / "demo" / stage / TASK).resolve())


def history(place: Path) -> list[tuple[Artifact, Artifact]]:
    """Return the labels of every round and the model that gave them, from the last round that stands to the first."""
    labels = linked(place, "pseudo_label")
    assert linked(place, "continue_pretrain").inputs["pseudo_label"].digest == labels.digest
    found = []
    while True:
        labeller = open_artifact(Path(labels.inputs["labeller"].path))
        found.append((labels, labeller))
        if labeller.stage == "pretrain":
            return found
        labels = open_artifact(Path(labeller.inputs["pseudo_label"].path))


def assert_the_first_round_stands(place: Path, smallest_run: Path) -> None:
    base = open_artifact((smallest_run / "pretrain").resolve())
    assert [labeller.digest for _, labeller in history(place)] == [base.digest]


def test_each_round_is_labelled_by_the_model_adapted_before(three_rounds: Path, smallest_run: Path) -> None:
    base = open_artifact((smallest_run / "pretrain").resolve())
    found = history(three_rounds)
    assert [labeller.stage for _, labeller in found] == ["continue_pretrain", "continue_pretrain", "pretrain"]
    assert found[-1][1].digest == base.digest
    for labels, labeller in found:
        assert {record["checkpoint"] for record in records(labels.file("labels.parquet"))} == {labeller.digest}
        assert labels.inputs["base"].digest == base.digest
    for model in [linked(three_rounds, "continue_pretrain"), *(labeller for _, labeller in found[:-1])]:
        assert model.inputs["base"].digest == base.digest, "each round adapts the base anew"
    assert len({labels.digest for labels, _ in found}) == 3


def test_fewer_rounds_are_the_first_of_more(
    three_rounds: Path, place: Path, smallest_run: Path, run_here: RunHere, scorings: list[str]
) -> None:
    text = run_here("run", rounds(smallest_run, place, 2, *NEVER_STOPS))
    assert "round 2 changes" in text
    assert "round 3" not in text
    assert len([line for line in text.splitlines() if "continue_pretrain" in line and "skipped" in line]) == 2
    assert scorings == []
    assert [labels.digest for labels, _ in history(place)] == [labels.digest for labels, _ in history(three_rounds)][1:]


def test_the_same_command_again_skips_every_round_and_ends_in_the_same_links(
    place: Path, smallest_run: Path, run_here: RunHere, scorings: list[str]
) -> None:
    before = links(place)
    text = run_here("run", rounds(smallest_run, place, 3, *NEVER_STOPS))
    assert text.count("unchanged, skipped") == 6
    assert text.count("->") == 6
    assert scorings == []
    assert links(place) == before


def test_rounds_that_were_cut_short_go_on_to_the_same_end(
    three_rounds: Path, place: Path, smallest_run: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = links(place)
    shutil.rmtree(linked(place, "continue_pretrain").path)

    def launch(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = rounds(smallest_run, place, 3, *NEVER_STOPS)
    with monkeypatch.context() as only_here:
        only_here.setattr(continue_pretrain, "launch", launch)
        code, _ = in_process("run", arguments, monkeypatch, capsys)
    assert code == 130
    run_here("run", arguments)
    assert links(place) == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            ["pseudo_label.rounds.min_change=1.0", "pseudo_label.rounds.max_noise_increase=1.0"],
            ", fewer than 100.0 %: round 1 stands",
        ),
        (["pseudo_label.collapse_limit=0.3"], ", but one class took "),
    ],
)
def test_a_stop_rule_leaves_the_round_before(
    settings: list[str], reason: str, place: Path, smallest_run: Path, run_here: RunHere, scorings: list[str]
) -> None:
    arguments = rounds(smallest_run, place, 3, *settings)
    text = run_here("run", arguments)
    said = [line for line in text.splitlines() if line.startswith(f"{TASK}: round ")]
    assert len(said) == 1
    assert said[0].startswith(f"{TASK}: round 2 changes ")
    assert reason in said[0]
    assert said[0].endswith(": round 1 stands")
    assert_the_first_round_stands(place, smallest_run)
    before = links(place)
    again = run_here("run", arguments)
    assert said[0] in again
    assert again.count("unchanged, skipped") == again.count("->") == 3
    assert links(place) == before
    assert scorings == []


def test_labels_that_become_noisier_stop_the_rounds(
    place: Path, smallest_run: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts of the second round agree on nothing."""
    calls = []

    def agreement(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        return original(*arguments) if len(calls) == 1 else np.zeros(len(arguments[0]))

    original = pseudo_label.agreement
    monkeypatch.setattr(pseudo_label, "agreement", agreement)
    text = run_here("run", rounds(smallest_run, place, 3, "pseudo_label.rounds.min_change=0"))
    assert len(calls) == 2
    assert ", but the prompts' disagreement rose from " in text
    assert " to 100.0 %: round 1 stands" in text
    assert_the_first_round_stands(place, smallest_run)


def test_raw_labels_that_collapse_in_a_later_round_leave_the_round_before(
    place: Path, smallest_run: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw predictions are refused when they collapse at once; in a later round the one before stands."""
    leans = iter([[0.0, 0.0], [1e6, 0.0]])

    def fit_decision(method: Method, keys: Any, task: Any, **_: Any) -> Decision:
        by_row = np.asarray([1.0, -1.0])[np.arange(len(keys[0].labels_NC)) % 2]
        keys[0].labels_NC[:] = np.stack([by_row, -by_row], axis=1)  # both classes alike, but for the lean
        return Decision(method=method, labels=FittedScores(prompts=[task.reference], biases=next(leans)), groups=None, n_fitted=0)

    monkeypatch.setattr(teacher_panel, "fit_decision", fit_decision)
    settings = ["pseudo_label.method=raw", "pseudo_label.collapse_limit=0.9", "pseudo_label.estimates_noise=false"]
    settings.append("pseudo_label.teachers=[model]")
    text = run_here("run", rounds(smallest_run, place, 2, *settings))
    assert ", but one class took 100 % of the predictions: round 1 stands" in text
    assert_the_first_round_stands(place, smallest_run)


def test_a_round_without_selected_rows_is_the_last(place: Path, smallest_run: Path, run_here: RunHere) -> None:
    text = run_here("run", rounds(smallest_run, place, 3, "pseudo_label.selection.share=0"))
    assert "the base model stands" in text
    assert "round 2" not in text
    assert not linked(place, "continue_pretrain").metrics["is_adapted"]
