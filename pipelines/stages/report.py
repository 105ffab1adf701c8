"""Stage `report`: a run's artifacts to one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.artifacts import Artifact, is_artifact, open_artifact
from adapt.core.errors import ConfigError
from adapt.core.json_files import read_lines
from pipelines.report_page.figures import Interval, Line, bar_chart, interval_chart, line_chart
from pipelines.report_page.page import Section, note, page, table
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.gain import gain_of
from pipelines.stages.products import Adaptation, Evaluation, Labels, Training
from pipelines.stages.run import Run
from pseudo_label.store import LABELS_FILE, read_labels
from pseudo_label.tasks import TaskConfig

NAME = "report"
PAGE_FILE = "report.html"
_BINS = 20
_TEXT_LOSSES = ("loss/total", "loss/context", "loss/prompt", "loss/pseudo_label")


@dataclass(frozen=True, kw_only=True)
class ReportReads(Reads):
    """The run's name and its artifacts by 'stage' or 'stage/task', in a fixed order."""

    run_name: str
    artifacts: Mapping[str, Artifact]


class Report(Stage[ReportReads]):
    """Draw whatever the run has so far."""

    name = NAME
    is_per_task = False
    version = 2  # says what adaptation gained

    def reads(self, run: Run, task: TaskConfig | None) -> ReportReads:
        found = _artifacts(run)
        if not found:
            raise ConfigError(f"{run.directory}: nothing to report yet; run other stages first")
        return ReportReads(run_name=run.name, artifacts=found)

    def build(self, reads: ReportReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        found = reads.artifacts
        sections = [_evaluation(found), *_trainings(found), *_labels(found), _provenance(found)]
        shown = [section for section in sections if section is not None]
        (result / PAGE_FILE).write_text(page(f"Run {reads.run_name}", shown), encoding="utf-8")
        return {"sections": len(shown)}

    def describe(self, artifact: Artifact) -> str:
        return f"{artifact.metrics['sections']} sections in {PAGE_FILE}"


STAGE = Report()


def _artifacts(run: Run) -> dict[str, Artifact]:
    """Return the run's artifacts by 'stage' or 'stage/task', in a fixed order."""
    found: dict[str, Artifact] = {}
    for stage in ("tokenizer", "pretrain"):
        if is_artifact(run.directory / stage):
            found[stage] = open_artifact((run.directory / stage).resolve())
    for task in run.config.tasks:
        for stage in ("pseudo_label", "continue_pretrain", "evaluate", "export"):
            path = run.directory / stage / task
            if is_artifact(path):
                found[f"{stage}/{task}"] = open_artifact(path.resolve())
    return found


def _evaluation(found: Mapping[str, Artifact]) -> Section | None:
    rows = [row for name, a in found.items() if name.startswith("evaluate/") for row in Evaluation.of(a).table]
    if not rows:
        return None
    header = ("task", "split", "model", "method", "prompts", "criterion", "n", "accuracy, %", "95 % interval")
    cells = [
        [r["task"], r["split"], r["model"], r["method"], r["prompts"], r["criterion"], str(r["n"]),
         f"{100 * r['accuracy']:.1f}", f"{100 * r['ci95'][0]:.1f} to {100 * r['ci95'][1]:.1f}"]
        for r in rows
    ]  # fmt: skip
    intervals = [
        Interval(
            row=f"{r['task']} {r['split']}, {r['method']}",
            series=r["model"],
            value=100 * r["accuracy"],
            low=100 * r["ci95"][0],
            high=100 * r["ci95"][1],
        )
        for r in rows
    ]
    chart = interval_chart("Accuracy with 95 % interval, base against adapted", intervals, 0, 100, " %")
    return Section(title="Accuracy", parts=[*_gains(found), chart, table(header, cells)])


def _gains(found: Mapping[str, Artifact]) -> list[str]:
    """Say what each task's adaptation gained, where the run's evaluation measured it."""
    said = []
    for name, evaluated in found.items():
        stage, _, task = name.partition("/")
        adapted = found.get(f"continue_pretrain/{task}")
        if stage == "evaluate" and adapted is not None and "continue_pretrain" in evaluated.inputs:
            said.append(note(f"{task}: {gain_of(adapted, evaluated)}."))
    return said


def _trainings(found: Mapping[str, Artifact]) -> list[Section]:
    sections = []
    for name, artifact in found.items():
        history = artifact.path / "history.jsonl"
        if name.partition("/")[0] not in ("pretrain", "continue_pretrain"):
            continue
        if not history.is_file():
            sections.append(Section(title=f"Training: {name}", parts=[note("Not adapted: the base model stands.")]))
            continue
        lines = read_lines(history)
        parts = [_losses(lines), _loads(lines), _line("Gradient norm", lines, ["grad_norm"]), _held_out(artifact)]
        sections.append(Section(title=f"Training: {name}", parts=[part for part in parts if part]))
    return sections


def _losses(history: Sequence[Mapping[str, float]]) -> str:
    names = [k for k in history[0] if k.startswith("loss/")]
    shown = [n for n in names if n in _TEXT_LOSSES and (n == "loss/total" or any(line[f"count/{n[5:]}"] for line in history))]
    of_routers = [n for n in names if n not in _TEXT_LOSSES]
    title = "Loss by part, nats per token"
    if "router/looks_ahead" in history[0]:
        title += " (in training the router looks ahead: these are no language-model losses)"
    return _line(title, history, shown) + _line("Losses of routers (balance: 1.0 is perfectly even)", history, of_routers)


def _loads(history: Sequence[Mapping[str, float]]) -> str:
    layers = [k for k in history[0] if k.startswith("router/max_load/")]
    return _line("Expert load by MoE layer: fullest over mean", history, layers) if layers else ""


def _line(title: str, history: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    """Draw columns of the history; a part that had nothing to predict at a step has no point there, a skipped step no norm."""

    def has_point(line: Mapping[str, float], name: str) -> bool:
        return name in line and bool(line.get(name.replace("loss/", "count/"), 1))

    lines = [Line(name=n, points=[(line["step"], line[n]) for line in history if has_point(line, n)]) for n in names]
    return line_chart(title, lines, "step")


def _held_out(artifact: Artifact) -> str:
    rows = []
    made = Adaptation.of(artifact) if artifact.stage == "continue_pretrain" else Training.of(artifact)
    for name, ledger in made.held_out.items():
        for part, before in ledger.before.items():
            if before.count:
                after = ledger.after[part]
                rows.append([name, part, f"{before.count:.0f}", f"{before.value:.4f}", f"{after.value:.4f}"])
    return table(("held-out rows", "part", "count", "before", "after"), rows) if rows else ""


def _labels(found: Mapping[str, Artifact]) -> list[Section]:
    sections = []
    for name, artifact in found.items():
        if not name.startswith("pseudo_label/"):
            continue
        labels = read_labels(artifact.file(LABELS_FILE))
        if not labels:
            parts = [note("No unlabeled rows: nothing was labelled.")]
        else:
            made = Labels.of(artifact)
            counts, edges = np.histogram([label.confidence for label in labels], bins=_BINS, range=(0, 1))
            bars = [(f"{low:.2f}", float(count)) for low, count in zip(edges, counts, strict=False)]
            classes = [(label, float(count)) for label, count in made.selected_by_class.items()]
            parts = [
                note(f"{made.selected} of {made.rows} rows selected, {made.held_out} held out, {made.excluded} excluded."),
                _teachers(made),
                bar_chart("Confidence of the pseudo-labels (probability of the best label)", bars, "rows"),
                bar_chart("Selected rows by class", classes, "rows"),
            ]
        sections.append(Section(title=f"Pseudo-labels: {name.partition('/')[2]}", parts=parts))
    return sections


def _teachers(labels: Labels) -> str:
    """Lay out what each teacher weighs, and how right it is by estimate and by measurement, in %."""
    measured = labels.measured
    rows = []
    for name, teacher in labels.teachers.items():
        shares, weight = (teacher.estimated, measured.get(name)), teacher.weight
        rows.append([name, "-" if weight is None else f"{weight:.2f}", *["-" if x is None else f"{100 * x:.1f}" for x in shares]])
    if "together" in measured and len(rows) > 1:
        rows.append(["together", "-", "-", f"{100 * measured['together']:.1f}"])
    return table(("teacher", "weight", "accuracy estimated without labels, %", "measured on labelled rows, %"), rows)


def _provenance(found: Mapping[str, Artifact]) -> Section:
    rows = [[name, a.digest[:16], a.created, str(a.path)] for name, a in found.items()]
    return Section(title="Artifacts", parts=[table(("artifact", "digest", "created", "place"), rows)])
