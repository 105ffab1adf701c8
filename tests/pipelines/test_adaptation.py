"""Adaptation as a command: tasks together with replay, the gate on general text, kept moments, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from adapt.core.artifacts import open_artifact
from adapt.core.errors import TrainingError
from pipelines.config.schema import GateAction, GateConfig
from pipelines.stages.forgetting import general_perplexity, is_rolled_back
from tests.support.command_line import SMALLEST, refused

TASKS = ("demo_reviews", "demo_topics")
RunHere = Callable[[str, list[str]], str]
SHORT = [*SMALLEST, "continue_pretrain.epochs=0.5"]


@pytest.fixture
def place(copied_run: Path) -> list[str]:
    return [*SHORT, f"run.dir={copied_run}"]


def test_tasks_are_adapted_together_with_general_text_and_soft_labels(
    place: list[str], copied_run: Path, run_here: RunHere
) -> None:
    settings = [
        "continue_pretrain.joint={demo_reviews: 1.0, demo_topics: 2.0}", "continue_pretrain.replay_share=0.25",
        "continue_pretrain.soft_labels=2", "continue_pretrain.trains=experts", "stages=[continue_pretrain]",
        "objective.schedules.pseudo_label.start=0.5", "objective.gradient_shares_every_steps=2",
    ]  # fmt: skip
    said = run_here("run", [*place, *settings])
    assert "continue_pretrain demo_topics: unchanged, skipped" in said
    assert "general perplexity" in said
    reviews, topics = (open_artifact((copied_run / "demo" / "continue_pretrain" / task).resolve()) for task in TASKS)
    assert reviews.path == topics.path
    assert set(reviews.metrics["held_out"]) == set(TASKS)
    labels = [open_artifact(Path(reviews.inputs[f"pseudo_label {task}"].path)) for task in TASKS]
    selected = [int(artifact.metrics["selected"]) for artifact in labels]
    in_epoch = selected[0] + 2 * selected[1]
    assert reviews.metrics["steps"] == int(np.ceil(0.5 * (in_epoch + round(in_epoch / 3)) / 16))
    lines = [json.loads(line) for line in (reviews.path / "history.jsonl").read_text().splitlines()]
    assert lines[0]["weight/pseudo_label"] == 0.5 < lines[-1]["weight/pseudo_label"] < 1.0
    shares = {key: value for key, value in lines[1].items() if key.startswith("gradient_share/")}
    assert set(shares) == {
        "gradient_share/context",
        "gradient_share/prompt",
        "gradient_share/pseudo_label",
        "gradient_share/balance",
    }
    assert sum(shares.values()) == pytest.approx(1.0)
    assert not any(key.startswith("gradient_share/") for key in lines[0])


def test_an_adaptation_that_forgets_too_much_is_rolled_back(place: list[str], copied_run: Path, run_here: RunHere) -> None:
    settings = ["task=demo_topics", "gate.max_general_ppl_increase=-0.9", "gate.action=roll_back"]
    said = run_here("run", [*place, *settings, "stages=[continue_pretrain,evaluate]"])
    assert "rolled back, the base model stands: general perplexity" in said
    lines = said.splitlines()
    assert lines[lines.index("demo_topics: rolled back, the base stands") + 1].startswith("  general perplexity")
    artifact = open_artifact((copied_run / "demo" / "continue_pretrain" / "demo_topics").resolve())
    assert not artifact.metrics["is_adapted"]
    assert not list(artifact.path.glob("*.safetensors"))


def test_what_an_adaptation_does_to_another_task_is_measured_on_the_same_rows(
    place: list[str], copied_run: Path, run_here: RunHere
) -> None:
    said = run_here("run", [*place, "task=demo_topics", "evaluate.other_tasks=[demo_reviews,demo_topics]", "stages=[evaluate]"])
    artifact = open_artifact((copied_run / "demo" / "evaluate" / "demo_topics").resolve())
    (line,) = json.loads((artifact.path / "other_tasks.json").read_text(encoding="utf-8"))
    assert line["task"] == "demo_reviews"
    before, after, (low, high) = line["before"], line["after"], line["difference"]["ci95"]
    assert line["difference"]["value"] == pytest.approx(after - before)
    assert low <= after - before <= high
    own = open_artifact((copied_run / "demo" / "evaluate" / "demo_reviews").resolve())
    rows = [row for row in own.metrics["table"] if row["model"] == "base" and row["method"] == line["method"]]
    labelled = [row for row in rows if row["split"] in ("dev", "few")]
    assert line["n"] == sum(row["n"] for row in labelled)
    assert before == pytest.approx(sum(row["accuracy"] * row["n"] for row in labelled) / line["n"])
    assert f"demo_reviews {100 * before:.1f} -> {100 * after:.1f} %" in said


def test_a_run_ends_with_a_verdict_on_each_task(smallest_run: Path) -> None:
    output = (smallest_run.parent / "output.txt").read_text(encoding="utf-8").splitlines()
    for task in TASKS:
        (start,) = [n for n, line in enumerate(output) if line.startswith(f"{task}: ") and " points [" in line]
        lines = [output[start], *takewhile(lambda line: line.startswith("  "), output[start + 1 :])]
        for begins in ("  adapted combined ", "  best without adapting ", "  by method, ", "    raw ", "  general perplexity "):
            assert len([line for line in lines if line.startswith(begins)]) == 1, begins


def test_the_gate_stops_a_run_or_lets_it_pass() -> None:
    before = np.array([[40.0, 20.0], [10.0, 10.0], [30.0, 10.0]])
    after = before + np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = general_perplexity(before, after)
    assert (found.before, found.after) == pytest.approx((np.exp(2.0), np.exp(2.1)))
    assert found.increase == pytest.approx(np.exp(0.1) - 1)
    assert found.ci95 == pytest.approx((np.exp(0.1) - 1, np.exp(0.1) - 1))
    assert not is_rolled_back(GateConfig(), found)
    assert not is_rolled_back(GateConfig(max_general_ppl_increase=0.2), found)
    assert is_rolled_back(GateConfig(max_general_ppl_increase=0.1, action=GateAction.ROLL_BACK), found)
    with pytest.raises(
        TrainingError, match=r"general perplexity 7.4 -> 8.2 \(\+10.5 % .*more than gate.max_general_ppl_increase=0.1"
    ):
        is_rolled_back(GateConfig(max_general_ppl_increase=0.1), found)


def test_the_interval_of_a_rise_widens_with_what_rows_differ_in() -> None:
    random = np.random.default_rng(0)
    before = np.stack([random.random(50) * 100, np.full(50, 30.0)], axis=1)
    rise = random.normal(3.0, 1.0, 50)
    found = general_perplexity(before, np.stack([before[:, 0] + rise, before[:, 1]], axis=1))
    assert found.ci95[0] < found.increase < found.ci95[1]
    standard_error = rise.std() / 30 / np.sqrt(50)
    assert (found.ci95[1] - found.ci95[0]) == pytest.approx(2 * 1.96 * standard_error * (1 + found.increase), rel=0.15)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["continue_pretrain.moments=keep"], ["has no optimizer moments", "pretrain.keeps_moments=true"]),
        (["data.corpus=[]", "gate.max_general_ppl_increase=0.1"], ["gate.max_general_ppl_increase", "data.corpus"]),
        (["data.corpus=[]", "continue_pretrain.replay_share=0.1"], ["continue_pretrain.replay_share", "data.corpus"]),
        (["continue_pretrain.joint={bustm: 1.0}"], ["'bustm' is not in tasks="]),
        (["continue_pretrain.joint={demo_topics: 0}"], ["joint.demo_topics: 0", "more than 0"]),
        (["objective.schedules.context.ends_at=2"], ["objective.schedules.context.ends_at: 2", "0 to 1"]),
        (["continue_pretrain.replay_share=1"], ["replay_share: 1", "less than 1"]),
        (["evaluate.other_tasks=[bustmm]"], ["unknown task 'bustmm'", "bustm"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    settings: list[str], words: list[str], place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("run", [*place, *settings, "stages=[continue_pretrain]"], words, monkeypatch, capsys)
