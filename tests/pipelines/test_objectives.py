"""The objectives that can be chosen: what each trains on, and labels trained both ways from end to end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.core.artifacts import open_artifact
from adapt.core.spans import NO_TARGET, LabelLoss, Span, join_parts, read_for_training
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.objective import contribution, part_counts
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from pipelines.config.locations import conf_dir
from tests.support.command_line import composed, on_base, records, refused
from tests.support.tiny_models import tiny_config

TASK = "demo_reviews"
MASK = 59
RunHere = Callable[[str, list[str]], str]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
EVERYTHING = set(Span)
TRAINED = {
    "clm": (LabelLoss.CLM, EVERYTHING),
    "mlm": (LabelLoss.MLM, EVERYTHING),
    "both": (LabelLoss.BOTH, EVERYTHING),
    "channel": (LabelLoss.CHANNEL, EVERYTHING),
    "context": (LabelLoss.CLM, {Span.CONTEXT}),
    "context_prompt": (LabelLoss.CLM, {Span.CONTEXT, Span.PROMPT}),
    "label": (LabelLoss.CLM, {Span.LABEL}),
}
SHIPPED = sorted(path.stem for path in (conf_dir() / "objective").glob("*.yaml"))


def objective(name: str) -> ObjectiveConfig:
    return composed("run", [f"objective={name}"]).objective


def batch_of(loss: LabelLoss) -> Batch:
    parts = [([3, 9, 4, 11], Span.CONTEXT), ([7, 8], Span.PROMPT), ([21, 22], Span.LABEL), ([5], Span.PROMPT), ([6], Span.CONTEXT)]
    return collate([[read_for_training(join_parts(parts), loss, MASK)]])


def gradients(model: GPT, batch: Batch, config: ObjectiveConfig) -> list[Tensor]:
    shares = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
    config = dataclasses.replace(config, balance=BalanceConfig(weight=0.0))
    part = contribution(model, batch, part_counts(model, batch), shares, config, 1)
    return list(torch.autograd.grad(part.loss, list(model.parameters()), allow_unused=True))


def test_every_shipped_objective_is_described_here() -> None:
    assert set(SHIPPED) == set(TRAINED)


def test_the_objective_of_a_run_is_clm_where_none_is_chosen() -> None:
    assert composed("run", []).objective == objective("clm") == ObjectiveConfig()


@pytest.mark.parametrize("name", SHIPPED)
def test_an_objective_trains_on_its_parts_and_on_nothing_else(name: str) -> None:
    loss, kinds = TRAINED[name]
    config = objective(name)
    assert config.pseudo_label is loss
    model = materialize(GPT(tiny_config([4], vocab_size=60)), seed=3)
    whole = batch_of(loss)
    is_trained = torch.isin(whole.kinds_BT, torch.tensor([int(kind) for kind in kinds]))
    some = dataclasses.replace(whole, targets_BT=whole.targets_BT.masked_fill(~is_trained, NO_TARGET))
    assert (some.targets_BT != NO_TARGET).any()
    assert torch.equal(some.targets_BT, whole.targets_BT) == (kinds == EVERYTHING)
    wanted = gradients(model, some, ObjectiveConfig())
    found = gradients(model, whole, config)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert any(bool(one.any()) for one in found if one is not None)


@pytest.mark.parametrize("name", SHIPPED)
def test_an_objective_can_be_chosen_beside_an_experiment_and_changed(name: str) -> None:
    config = composed(
        "run", ["experiment=demo", f"objective={name}", "objective.weights.context=0.25", "objective.balance.weight=0"]
    )
    chosen = objective(name)
    assert config.objective.weights == dataclasses.replace(chosen.weights, context=0.25)
    assert config.objective.pseudo_label is chosen.pseudo_label
    assert config.objective.balance.weight == 0


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_labels_are_trained_both_ways_and_scored_as_clm(smallest_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    stages = ["stages=[pseudo_label,continue_pretrain,evaluate]", "continue_pretrain.epochs=1", "evaluate.methods=[raw]"]
    text = run_here("run", [*on_base(smallest_run, tmp_path, TASK), *stages, "objective=both", "evaluate.method=raw"])
    here = tmp_path / "demo"
    assert f"continue_pretrain {TASK}" in text

    labels, others = (open_artifact((run / "pseudo_label" / TASK).resolve()) for run in (here, smallest_run))
    assert labels.key == others.key, "rows are labelled as for clm"
    assert records(labels.file("labels.parquet")) == records(others.file("labels.parquet"))

    before, clm = (read_json(run / "continue_pretrain" / TASK / "held_out.json")[TASK]["before"] for run in (here, smallest_run))
    for part in ("context", "prompt"):
        assert before[part]["count"] == clm[part]["count"] > 0
        assert before[part]["value"] == pytest.approx(clm[part]["value"], abs=1e-4)
    assert before["pseudo_label"]["count"] == 2 * clm["pseudo_label"]["count"] > 0

    history = [json.loads(line) for line in (here / "continue_pretrain" / TASK / "history.jsonl").read_text().splitlines()]
    assert all(line["loss/pseudo_label"] > 0 for line in history)
    table = read_json(here / "evaluate" / TASK / "metrics.json")
    assert {row["model"] for row in table} == {"base", "adapted"}
    assert {row["form"] for row in table} == {"clm"}


@pytest.mark.parametrize("stage", ["evaluate", "pseudo_label"])
def test_labels_cannot_be_scored_both_ways(
    stage: str, smallest_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, scorings: list[str]
) -> None:
    arguments = [*on_base(smallest_run, tmp_path, TASK), f"{stage}.form=both"]
    refused(stage, arguments, [f"{stage}.form", "both", "clm", "mlm"], monkeypatch, capsys)
    assert scorings == []
    assert not list(tmp_path.glob("**/manifest.json"))


def test_rows_can_be_labelled_in_another_form_than_labels_are_trained_in(
    smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    for form in ("mlm", "clm"):
        more = ["pseudo_label.max_rows=20", f"pseudo_label.form={form}", "objective=both", "pseudo_label.collapse_limit=1.0"]
        run_here("pseudo_label", [*on_base(smallest_run, tmp_path / form, TASK), *more])
    as_masks, as_text = (open_artifact((tmp_path / form / "demo" / "pseudo_label" / TASK).resolve()) for form in ("mlm", "clm"))
    assert as_masks.config["form"] == "mlm"
    assert as_text.config["form"] == "clm"
    assert as_masks.key != as_text.key
    rows = [records(labels.file("labels.parquet")) for labels in (as_masks, as_text)]
    assert [row["line"] for row in rows[0]] == [row["line"] for row in rows[1]]
    assert [row["scores"] for row in rows[0]] != [row["scores"] for row in rows[1]]


@pytest.mark.parametrize("choice", ["both", pytest.param("mlm", marks=pytest.mark.slow)])
def test_masked_labels_before_their_text_are_trained_and_scored(
    choice: str, smallest_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "mine.yaml").write_text(
        "folder: demo_reviews\nfields: {s: {path: sentence}}\nlabel_words: {Negative: 不满意, Positive: 满意}\n"
        "prompts:\n  reference: {template: '{label}，{s}', criterion: channel}\n",
        encoding="utf-8",
    )
    arguments = [
        *on_base(smallest_run, tmp_path / "runs", "mine"), f"task_dir={own}", "stages=[pseudo_label,continue_pretrain]",
        "pseudo_label.max_rows=30", "pseudo_label.collapse_limit=1.0", f"objective={choice}",
    ]  # fmt: skip
    run_here("run", arguments)
    artifact = open_artifact((tmp_path / "runs" / "demo" / "continue_pretrain" / "mine").resolve())
    labels = open_artifact((tmp_path / "runs" / "demo" / "pseudo_label" / "mine").resolve())
    assert labels.config["form"] == LabelLoss(choice).form.value
    lines = [json.loads(line) for line in artifact.file("history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["count/pseudo_label"] > 0 and line["count/context"] > 0 for line in lines)
