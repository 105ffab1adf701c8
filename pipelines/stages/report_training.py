"""The report's sections on trainings and pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from adapt.core.artifacts import Artifact
from adapt.core.json_files import read_lines, read_object
from adapt.objective_config import BASE_DIVERGENCE, DISTILLATION
from pipelines.report_page.charts import Chart, Line, bar_chart, line_chart
from pipelines.report_page.page import Section, heading, note, table
from pipelines.stages.products import NEAR_FILE, Adaptation, Labels, ReadText, Training
from pipelines.stages.report_experts import expert_parts
from pipelines.stages.report_teachers import noise_chart, teacher_parts
from pipelines.stages.rows import TaskData
from pipelines.stages.training import HISTORY_FILE
from pseudo_label.store import LABELS_FILE, read_labels

_BINS = 20
_TEXT_LOSSES = tuple(f"loss/{part}" for part in ("total", "context", "prompt", "pseudo_label", DISTILLATION, BASE_DIVERGENCE))


def training_section(name: str, artifact: Artifact) -> Section:
    """Lay out the losses, the routers' health and the held-out losses of a training."""
    history = artifact.path / HISTORY_FILE
    title = f"Training: {name}"
    made = Adaptation.of(artifact) if artifact.stage == "continue_pretrain" else Training.of(artifact)
    if not history.is_file():
        return Section(title=title, parts=[note("Not adapted: the base model stands.")])
    lines = read_lines(history)
    parts: list[Chart | Markup] = [note(f"{made}.")]
    parts += [*losses(lines, made), *_routers(lines), line_of("Gradient norm", lines, ["grad_norm"])]
    parts += _text(artifact, made.text) if isinstance(made, Adaptation) and made.text is not None else []
    return Section(title=title, parts=[*parts, *_held_out(made), *expert_parts(artifact)])


def losses(history: Sequence[Mapping[str, float]], made: Training) -> list[Chart]:
    """Draw the losses of the text by part, with those of held-out rows before and after as points, and those of routers."""
    names = [name for name in history[0] if name.startswith("loss/")]
    shown = [n for n in names if n in _TEXT_LOSSES and (n == "loss/total" or any(line[f"count/{n[5:]}"] for line in history))]
    of_routers = [name for name in names if name not in _TEXT_LOSSES]
    title = "Loss by part, nats per token"
    if "router/looks_ahead" in history[0]:
        title += " (in training the router looks ahead: these are no language-model losses)"
    last = history[-1]["step"]
    marks = [
        Line(name=f"loss/{part}", points=[(0.0, before.value), (last, ledger.after[part].value)])
        for ledger in made.held_out.values()
        for part, before in ledger.before.items()
        if before.count and f"loss/{part}" in shown
    ]
    charts = [line_chart(f"{title}; held-out rows as points", lines_of(history, shown), "step", marks)]
    return charts + ([line_of("Losses of routers (balance: 1.0 is perfectly even)", history, of_routers)] if of_routers else [])


def _routers(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    charts = []
    for title, prefix in (
        ("Expert load by MoE layer: fullest over mean", "router/max_load/"),
        ("Experts without a token, by MoE layer", "router/dead/"),
    ):
        layers = [name for name in history[0] if name.startswith(prefix)]
        if layers:
            lines = lines_of(history, layers)
            named = [Line(name=f"layer {int(line.name.removeprefix(prefix)) + 1}", points=line.points) for line in lines]
            charts.append(line_chart(title, named, "step"))
    return charts


def line_of(title: str, history: Sequence[Mapping[str, float]], names: Sequence[str]) -> Chart:
    """Draw columns of the history over the steps."""
    return line_chart(title, lines_of(history, names), "step")


def lines_of(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[Line]:
    """Return columns of the history; a part that had nothing to predict at a step has no point there, a skipped step no norm."""

    def has_point(line: Mapping[str, float], name: str) -> bool:
        counted = f"count/{name.removeprefix('loss/')}" if name.startswith("loss/") else ""
        return name in line and bool(line.get(counted, 1))

    return [Line(name=n, points=[(line["step"], line[n]) for line in history if has_point(line, n)]) for n in names]


def _text(artifact: Artifact, read: ReadText) -> list[Markup]:
    """Lay out which general text was read, by domain, and the documents nearest to the task."""
    counts = [[name, f"{n:,}", f"{of:,}", f"{n / max(of, 1):.2%}"] for name, (n, of) in read.by_domain.items()]
    nearest = [[one["domain"], f"{one['nearness']:+.2f}", one["text"]] for one in read_object(artifact.path / NEAR_FILE)["nearest"]]
    return [
        heading("General text that was read besides the rows"),
        note(f"{read}."),
        table(("domain", "chosen", "of", "share"), counts),
        table(("domain", "nats an n-gram", "nearest documents"), nearest),
    ]


def _held_out(made: Training) -> list[Markup]:
    rows = []
    for name, ledger in made.held_out.items():
        for part, before in ledger.before.items():
            if before.count:
                after = ledger.after[part]
                rows.append([name, part, f"{before.count:.0f}", f"{before.value:.4f}", f"{after.value:.4f}"])
    return [table(("held-out rows", "part", "count", "before", "after"), rows)] if rows else []


def labels_section(task: str, artifact: Artifact, data: TaskData | None = None) -> Section:
    """Lay out how many rows were labelled, by whom, how surely, how they spread over the classes, and where teachers disagree."""
    title = f"Pseudo-labels: {task}"
    labels = read_labels(artifact.file(LABELS_FILE))
    if not labels:
        return Section(title=title, parts=[note("No unlabeled rows: nothing was labelled.")])
    made = Labels.of(artifact)
    counts, edges = np.histogram([label.confidence for label in labels], bins=_BINS, range=(0, 1))
    bars = [(f"{low:.2f}", float(count)) for low, count in zip(edges, counts, strict=False)]
    classes = [(label, float(count)) for label, count in made.selected_by_class.items()]
    parts: list[Chart | Markup] = [
        note(f"{made.selected} of {made.rows} rows selected, {made.held_out} held out, {made.excluded} excluded."),
        *([note(_noise(made))] if made.labelled is not None and made.labelled.n else []),
        _teachers(made),
        bar_chart("Confidence of the pseudo-labels (probability of the best label)", bars, "rows"),
        bar_chart("Selected rows by class", classes, "rows"),
        *noise_chart(artifact),
        *teacher_parts(artifact, data),
    ]
    return Section(title=title, parts=parts)


def _noise(made: Labels) -> str:
    assert made.labelled is not None
    low, high = (100 * end for end in made.labelled.ci95)
    share = f"{100 * made.labelled.accuracy:.1f} % [{low:.1f}, {high:.1f}]"
    return f"Of {made.labelled.n} labelled rows that are as sure as the selected ones, {share} are labelled rightly."


def _teachers(labels: Labels) -> Markup:
    """Lay out what each teacher weighs, and how right it is by estimate and by measurement, in %."""
    measured = labels.measured
    rows = []
    for name, teacher in labels.teachers.items():
        shares, weight = (teacher.estimated, measured.get(name)), teacher.weight
        rows.append([name, "-" if weight is None else f"{weight:.2f}", *["-" if x is None else f"{100 * x:.1f}" for x in shares]])
    if "together" in measured and len(rows) > 1:
        rows.append(["together", "-", "-", f"{100 * measured['together']:.1f}"])
    return table(("teacher", "weight", "accuracy estimated without labels, %", "measured on labelled rows, %"), rows)
