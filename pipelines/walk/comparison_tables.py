"""Tables of a comparison, as text cells: of variants (runs that differ only in their seed), of points, and of means over tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.scorer import FloatArray
from pipelines.walk.comparison import Comparison
from pipelines.walk.paired_statistics import LEXICAL, RunResult, Score, Summary, score_of
from pseudo_label.comparison import RESAMPLES, Difference, mean_over_tasks
from pseudo_label.decision import Method

_GAINS = ("raw", "combined")
_MOST_SEEDS_LISTED = 3

LEGEND = (
    "Accuracies are in %, over dev and few together, with their 95 % interval: Wilson's where there is one list of answers, else a "
    "bootstrap over rows of the mean over seeds; in parentheses the seeds' own values (of many, the smallest and the largest).",
    f"Differences are in points, paired by row, with a bootstrap interval over rows ({RESAMPLES:,} resamples); '=' marks intervals "
    "that include 0. Intervals say nothing of other seeds: compare the seeds' own values for that. p is McNemar's (exact, "
    "two-sided), where both variants have one seed.",
    "'Lexical' is the labeller without a model. 'Best without adapting' is the best of it and of the base under any method, chosen "
    "on the rows that are measured, which favours it.",
    "Held-out loss is in nats per token of all parts, before -> after adaptation. Entropy, largest share and share drift are those "
    "of the adapted model's raw answers. Label accuracy is that of labelled rows as sure as the selected ones. Scoring is that of "
    "dev and few by the adapted model. Beside accuracies, values are means over seeds; - stands for what a run does not say.",
)
POINTS_LEGEND = (
    "Accuracies are in %, over dev and few together, by the method that decides (evaluate.method), with 95 % intervals (Wilson's). "
    "The method is the same for all tasks of a point; none is chosen by task.",
    "Differences are in points, paired by row, to the baseline's point of the same task, with a bootstrap interval over rows "
    f"({RESAMPLES:,} resamples); '=' marks those that include 0. They say nothing of other seeds: compare points that differ in "
    "seed for that. The best of many points is flattered by the choice.",
    "A mean over tasks counts every task the same; its interval draws rows within each task and says nothing of other tasks.",
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells under a header, for Markdown and for the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(tables: Mapping[str, Sequence[Table]], ends: Sequence[str]) -> str:
    """Return a study as Markdown: how to read it, each task's tables, and what was left out."""
    parts = ["# Study", *LEGEND]
    for task, some in tables.items():
        for found in some:
            parts += [f"## {task} {found.title}", _markdown_table(found)]
    return "\n\n".join([*parts, *ends]) + "\n"


def _markdown_table(found: Table) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (found.header, *found.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(found.header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def points_table(found: Comparison) -> Table:
    """Return a line for each point and task: accuracies, the difference to the baseline, and how the point ended."""
    has_objective = any(point.objective is not None for point in found.points)
    header = ["point", "task", "rows", "lexical", "base", "adapted", "over baseline", *["objective"] * has_objective, "status"]
    rows = []
    for point in found.points:
        results = found.of_point(point)
        number = ["-" if point.objective is None else f"{point.objective:.4f}"] * has_objective
        for task, result in results.items():
            rows.append([point.name, task, str(len(result.all_gold)), *_three(result), difference_cell(found, task, result)])
            rows[-1] += [*number, point.status]
        if not results:
            said = f"{point.status}{', nothing to compare' if point.is_done else ''}"
            said = said if point.error is None else f"{point.status}: {point.error}"
            rows.append([point.name, *["-"] * 6, *number, said])
    return Table(title="points", header=header, rows=rows)


def difference_cell(found: Comparison, task: str, result: RunResult) -> str:
    """Return how a point differs from the baseline on a task, as text."""
    if found.baseline.get(task) is result:
        return "baseline"
    return points(found.difference(task, result))


def means_table(found: Comparison) -> Table | None:
    """Return a line for each variant that has all tasks: its accuracy on each, averaged over seeds, and the mean over tasks.

    None where there are fewer than two tasks.
    """
    tasks = list(found.results)
    if len(tasks) < 2:
        return None
    by_variant = {name: some for name in found.variants if len(some := found.of_variant(name)) == len(tasks)}
    base = by_variant.get(found.baseline_variant or "")
    rows: list[list[str]] = []
    for name, some in by_variant.items():
        for model in ("lexical", "base", "adapted"):
            values = [_mean_right_N(results, model) for results in some.values()]
            known = [value for value in values if value is not None]
            if len(known) < len(tasks):
                continue
            mean = mean_over_tasks(known)
            cells = [f"{100 * float(value.mean()):.1f}" for value in known] + [with_interval(mean.value, mean.ci95)]
            if base is None or model == "lexical":
                over = "-"
            elif some is base:
                over = "baseline"
            elif _seeds(some) != _seeds(base):
                over = "other seeds"
            else:
                theirs = [_mean_right_N(results, model) for results in base.values()]
                gains = [own - other for own, other in zip(known, theirs, strict=True) if other is not None]
                over = points(mean_over_tasks(gains)) if len(gains) == len(tasks) else "-"
            rows.append([name, model, *cells, over])
    lexical = [row for row in rows if row[1] == "lexical"]
    if len(lexical) == len(by_variant) and len({tuple(row[2:]) for row in lexical}) == 1:  # which it is where no seed is missing
        rows = [["all", *lexical[0][1:]], *(row for row in rows if row[1] != "lexical")]
    header = ["variant", "model", *tasks, "mean over tasks", "over baseline"]
    methods = {result.method for some in by_variant.values() for results in some.values() for result in results}
    return Table(title=f"method {', '.join(sorted(methods))}, means over seeds", header=header, rows=rows) if rows else None


def text_table(found: Table) -> str:
    """Return a table as aligned text."""
    widths = [max(len(row[i]) for row in (found.header, *found.rows)) for i in range(len(found.header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (found.header, *found.rows)]
    return "\n".join(line.rstrip() for line in lines)


def _three(result: RunResult) -> list[str]:
    """Return the accuracies of the lexical labeller, the base and the adapted model by the deciding method."""
    cells = []
    for who in (LEXICAL, ("base", result.method), ("adapted", result.method)):
        score = score_of([result], who) if who in result.answers else None
        cells.append("-" if score is None else with_interval(score.value, score.ci95))
    return cells


def _seeds(some: Mapping[str, Sequence[RunResult]]) -> dict[str, set[int | None]]:
    return {task: {result.seed for result in results} for task, results in some.items()}


def _mean_right_N(results: Sequence[RunResult], model: str) -> FloatArray | None:
    """Return how often each row was answered rightly, over seeds; None where one has no such answers."""
    who = [LEXICAL if model == LEXICAL[0] else (model, result.method) for result in results]
    if any(one not in result.answers for one, result in zip(who, results, strict=True)):
        return None
    return np.asarray(np.mean([result.right_N(one) for one, result in zip(who, results, strict=True)], axis=0))


def accuracies_table(results: Sequence[RunResult], summaries: Sequence[Summary], baseline: str | None) -> Table:
    """Lay out a task's main table: a line per variant."""
    wanted = [LEXICAL, *[(model, method.value) for model in ("base", "adapted") for method in Method]]
    who = [key for key in wanted if any(key in s.scores for s in summaries)]
    header = ["variant", "seeds", *["lexical" if key == LEXICAL else " ".join(key) for key in who]]
    gains = [method for method in _GAINS if any(method in s.over_best for s in summaries)]
    header += [f"adapted {method} - {other}" for method in gains for other in ("lexical", "best without adapting")]
    header += [f"adapted raw - {baseline}", "p"] if baseline is not None else []
    header += [
        "held-out loss",
        "entropy",
        "largest share",
        "share drift",
        "selected",
        "label accuracy",
        "training, s",
        "scoring, s",
    ]
    rows = []
    for s in summaries:
        cells = [s.variant, ", ".join(map(str, s.seeds)) or "-", *[_score(s.scores.get(key)) for key in who]]
        cells += [points(found.get(method)) for method in gains for found in (s.over_lexical, s.over_best)]
        if baseline is not None:
            cells += ["baseline", "-"] if s.variant == baseline else [_difference(s), _number(s.p, ".3g")]
        cells.append(f"{s.held_out.before:.3f} -> {s.held_out.after:.3f}" if s.held_out else "-")
        cells += [_number(value, ".2f") for value in (s.entropy, s.largest_share, s.share_drift)]
        cells.append("-" if s.selected is None else f"{s.selected:.0f} of {s.labelled_rows:.0f}")
        cells.append("-" if s.label_accuracy is None else f"{100 * s.label_accuracy:.1f}")
        cells += [_number(value, ".0f") for value in (s.training_s, s.scoring_s)]
        rows.append(cells)
    sizes = " + ".join(f"{split} {len(gold)}" for split, gold in results[0].gold.items())
    return Table(title=f"({sizes} rows)", header=header, rows=rows)


def criteria_table(results: Sequence[RunResult]) -> Table | None:
    """Lay out the base's accuracy by criterion; bases that agree in all of it are one."""
    bases: dict[str, list[RunResult]] = {}
    for result in results:
        if result.criteria:
            bases.setdefault(json.dumps(list(result.criteria), sort_keys=True), []).append(result)
    if not bases:
        return None
    rows = []
    for same in bases.values():
        runs = "all" if len(bases) == 1 else ", ".join(result.run for result in same)
        for line in same[0].criteria:
            found = [line.get(method) for method in ("raw", "prior")]
            rows.append([runs, line["criterion"], *["-" if x is None else with_interval(x["accuracy"], x["ci95"]) for x in found]])
    return Table(title="criteria, base model, reference prompt", header=("runs", "criterion", "raw", "prior"), rows=rows)


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    text = with_interval(score.value, score.ci95)
    if len(score.by_seed) == 1:
        return text
    if len(score.by_seed) <= _MOST_SEEDS_LISTED:
        return f"{text} ({', '.join(f'{100 * value:.1f}' for value in score.by_seed)})"
    return f"{text} ({100 * min(score.by_seed):.1f} to {100 * max(score.by_seed):.1f})"


def _difference(summary: Summary) -> str:
    return points(summary.difference)


def points(found: Difference | None) -> str:
    """Return a difference in points with its interval; '=' marks one that includes 0."""
    if found is None:
        return "-"
    value, low, high = (f"{round(100 * share, 1) + 0.0:+.1f}" for share in (found.value, *found.ci95))  # + 0.0: no -0.0
    return f"{value} [{low}, {high}]{' =' if found.includes_zero else ''}"


def with_interval(value: float, ci95: Sequence[float]) -> str:
    """Return a share in % with its interval."""
    return f"{100 * value:.1f} [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
