"""Stage `prompt_search`: prompts and label words of a task judged without labels, and with them where there are some.

`python -m pipelines.prompt_search task=NAME prompt_search.file=prompts.yaml` needs a model (the run's base, or `checkpoint=`) and
unlabeled rows. The file's format and what is measured are described in `pseudo_label/prompt_search.py`; without a file the task's
own prompts are judged. Where dev or few are labelled (or the split named by `split=`), each prompt's accuracy stands beside its
score, with their rank correlation: whether the score can be trusted on this task. Nothing is chosen by accuracy.

Every prompt's scores are an artifact of their own: a prompt that was scored before is not scored again when the file grows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from adapt.core.artifacts import Artifact
from adapt.core.errors import DataError, counted, shown
from adapt.core.json_files import read_object, write_json
from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm
from adapt.core.typed import to_plain
from pipelines.config.schema import PromptSearchConfig
from pipelines.report_page.charts import Chart, Point, bar_chart, scatter_chart
from pipelines.report_page.page import Section, note, page, table
from pipelines.stages.contract import Reads, Stage, Workshop, unkeyed
from pipelines.stages.copied_rows import findings, without_copies
from pipelines.stages.models import weights_of
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, TaskData, adaptation_rows, labelled_part, labelled_rows, sample_rows
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads, scores_of
from pipelines.stages.scoring_choice import label_form
from pseudo_label.accuracy import accuracy_of
from pseudo_label.labelling import predictions
from pseudo_label.prompt_search import (
    SCORE_FORMULA,
    alone,
    boundary_merges,
    ensemble_scores,
    judge,
    load_prompts,
    own_scores,
    prompts_yaml,
)
from pseudo_label.prompts import Prompt
from pseudo_label.statistics import rank_correlation
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.zero_shot import PromptKeys, criterion_of, form_of, keys_from, passes_for

NAME = "prompt_search"
PROMPTS_FILE = "prompts.json"
ENSEMBLE_FILE = "ensemble.yaml"
PAGE_FILE = "prompts.html"
_BOUNDARY_ROWS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """The rows of a labelled split, and every prompt's keys of them by name."""

    split: str
    rows: list[TaskRow]
    keys: Mapping[str, PromptKeys]


@dataclass(frozen=True, kw_only=True)
class PromptSearchReads(Reads):
    """The task with the prompts to judge, the rows they are judged and measured on, and the model."""

    data: TaskData
    rows: int
    labelled_rows: int | None
    top: int
    split: str | None
    form: LabelForm
    scorer: ScorerReads
    base: Artifact
    suggested_for: str = unkeyed("the task's name, for the reader of the suggestion")


class PromptSearch(Stage[PromptSearchReads]):
    """Judge the prompts of `prompt_search.file`, or the task's own."""

    name = NAME
    version = 5  # labelled rows that are copies of others count once

    def reads(self, run: Run, task: TaskConfig | None) -> PromptSearchReads:
        """Raise ConfigError where an entry of the file is malformed."""
        assert task is not None
        config, settings = run.config, run.config.prompt_search
        measured_on = list(LABELLED_SPLITS) if config.split is None else [config.split]
        return PromptSearchReads(
            data=TaskData.of(run, judged_task(task, settings), [UNLABELED, *measured_on]),
            rows=settings.rows,
            labelled_rows=settings.labelled_rows,
            top=settings.top,
            split=config.split,
            form=label_form(config),
            scorer=ScorerReads.of(run),
            base=run.base(),
            suggested_for=task.name,
        )

    def build(self, reads: PromptSearchReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        judged = reads.data.task
        found = _search(shop, reads)
        best = found["ensemble"]["prompts"]
        model = reads.base.digest[:16]
        comment = f"Suggested by pipelines.prompt_search for {reads.suggested_for}: the best by {SCORE_FORMULA}; model {model}."
        write_json(result / PROMPTS_FILE, found)
        (result / ENSEMBLE_FILE).write_text(prompts_yaml(judged, best, comment), encoding="utf-8")
        (result / PAGE_FILE).write_text(_page(found), encoding="utf-8")
        kept = {name: found[name] for name in ("rows", "labelled", "rank_correlation", "ensemble")}
        return {"prompts": len(judged.prompts), **kept}

    def describe(self, artifact: Artifact) -> str:
        m = artifact.metrics
        return (
            f"{counted(m['prompts'], 'prompt')} judged on {counted(m['rows'], 'row')}, best: {', '.join(m['ensemble']['prompts'])}"
        )

    def deliver(self, reads: PromptSearchReads, artifact: Artifact, place: Path) -> None:
        found = read_object(artifact.file(PROMPTS_FILE))
        sys.stdout.write(shown(_text(found, place), kept="\n"))
        sys.stdout.flush()


STAGE = PromptSearch()


def judged_task(task: TaskConfig, settings: PromptSearchConfig) -> TaskConfig:
    """Return the task with the prompts to judge: those of a file, or its own.

    Raises:
        ConfigError: an entry of the file is malformed.
    """
    if settings.file is None:
        return task
    prompts = load_prompts(Path(settings.file), task)
    return replace(task, prompts=prompts, reference=next(iter(prompts)), ensemble=None)


def _search(shop: Workshop, reads: PromptSearchReads) -> dict[str, Any]:
    """Score and judge every prompt; return all that was found as plain values, prompts by score."""
    task = reads.data.task
    rows = adaptation_rows(shop, reads.data, reads.rows).rows
    if not rows:
        raise DataError(f"{reads.data.path(UNLABELED)}: has no rows; prompts are judged on unlabeled ones")
    rows_by_split = _labelled_rows(shop, reads)
    merges = _merges(reads, rows)
    keys = _keys(shop, reads, UNLABELED, rows)
    parts = [
        Labelled(split=split, rows=some, keys={k.prompt: k for k in _keys(shop, reads, split, some)})
        for split, some in rows_by_split.items()
    ]
    found = []
    for judgement, k in zip(judge(keys, task), keys, strict=True):
        words, n_words = merges[k.prompt]
        line = {**to_plain(judgement), **to_plain(task.prompts[k.prompt]), "merged_words": words, "words": n_words}
        found.append({**line, **_accuracies(task, parts, k)})
    found.sort(key=lambda line: -line["score"])
    best, every = [line["prompt"] for line in found[: reads.top]], [k.prompt for k in keys]
    scores, accuracies = [line["score"] for line in found], [line["prior"]["accuracy"] for line in found if "prior" in line]
    return {
        "task": task.name,
        "formula": SCORE_FORMULA,
        "rows": len(rows),
        "labelled": {"splits": [part.split for part in parts], "rows": sum(len(part.rows) for part in parts)},
        "prompts": found,
        "rank_correlation": rank_correlation(scores, accuracies) if parts else None,
        "ensemble": {"prompts": best, **_ensemble_accuracy(task, parts, keys, best)},
        "all": {"prompts": every, **_ensemble_accuracy(task, parts, keys, every)},
    }


def _labelled_rows(shop: Workshop, reads: PromptSearchReads) -> dict[str, list[TaskRow]]:
    """Return the labelled rows to measure on, by split.

    Raises:
        DataError: the split that was asked for is missing or not labelled.
    """
    data, split, limit = reads.data, reads.split, reads.labelled_rows
    task = data.task
    if split is None:
        found = labelled_rows(shop, data)
    else:
        found = {split: labelled_part(shop, task, split, data.read(split))}
        if not found[split]:
            raise DataError(f"{data.path(split)}: no row has a label; leave split= out or name another")
    for line in findings(found):
        shop.say_once(f"{task.name}: {line}")
    found = without_copies(found)
    if limit is None:
        return {name: rows for name, rows in found.items() if rows}
    sampled = {name: sample_rows(rows, task, limit, data.seed)[0] for name, rows in found.items()}
    for name, rows in sampled.items():
        shop.say_once(f"{task.name} {name}: measured on {len(rows):,} of {len(found[name]):,} labelled rows")
    return {name: rows for name, rows in sampled.items() if rows}


def _merges(reads: PromptSearchReads, rows: Sequence[TaskRow]) -> dict[str, tuple[list[str], int]]:
    """Return each prompt's label words that merge with what stands before them, after trying each prompt on a row.

    Raises:
        ConfigError: a prompt cannot be used with this tokenizer, or not in this form of the label.
    """
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # imports torch

    task = reads.data.task
    opened = open_checkpoint(weights_of(reads.base), reads.scorer.scorer, reads.scorer.offload)
    for name in task.prompts:
        prompt = Prompt(task, name, opened.tokenizer, opened.model.context_length)
        prompt.readings(rows[0], form_of(criterion_of(task, name, None), reads.form))
    return {name: boundary_merges(task, name, opened.tokenizer, rows[:_BOUNDARY_ROWS]) for name in task.prompts}


def _keys(shop: Workshop, reads: PromptSearchReads, split: str, rows: Sequence[TaskRow]) -> list[PromptKeys]:
    """Return every prompt's keys of a split's rows; each prompt is scored as the only one of its task."""
    task, form = reads.data.task, reads.form
    found = []
    for name in task.prompts:
        pairs = [(name, criterion_of(task, name, None))]
        single = alone(task, name)
        passes = passes_for(pairs, form, with_groups=False)
        scored = scores_of(shop, reads.scorer, replace(reads.data, task=single), reads.base, split, rows, passes)
        found += keys_from(scored.passes, pairs, form, single)
    return found


def _accuracies(task: TaskConfig, parts: Sequence[Labelled], keys: PromptKeys) -> dict[str, Any]:
    """Return one prompt's accuracy on labelled rows, raw and matched to the prior of the unlabeled ones; nothing without rows."""
    name = keys.prompt
    if not parts:
        return {}
    return {
        "raw": _accuracy(task, parts, lambda part: part.keys[name].labels_NC),
        "prior": _accuracy(task, parts, lambda part: own_scores(part.keys[name], [keys], task)),
    }


def _ensemble_accuracy(
    task: TaskConfig, parts: Sequence[Labelled], keys: Sequence[PromptKeys], names: Sequence[str]
) -> dict[str, Any]:
    if not parts:
        return {}
    fitted_on = [k for k in keys if k.prompt in names]
    return _accuracy(task, parts, lambda part: ensemble_scores([part.keys[name] for name in names], fitted_on, task))


def _accuracy(task: TaskConfig, parts: Sequence[Labelled], scores: Callable[[Labelled], FloatArray]) -> dict[str, Any]:
    guesses = [guess for part in parts for guess in predictions(scores(part), part.rows, task)]
    plain: dict[str, Any] = to_plain(accuracy_of(guesses, [row.label or "" for part in parts for row in part.rows]))
    return plain


def _cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table that is printed and drawn."""
    header = ["prompt", "criterion", "score", "agreement", "confidence", "margin", "mismatch", "most predicted", "merges"]
    has_labels = bool(found["labelled"]["splits"])
    rows = []
    for line in found["prompts"]:
        top = "-" if line["top_share"] is None else f"{100 * line['top_share']:.0f} % {line['top_label']}"
        numbers = [_number(line[name]) for name in ("score", "agreement", "confidence", "margin", "mismatch")]
        cells = [line["prompt"], line["criterion"], *numbers, top, f"{len(line['merged_words'])} of {line['words']}"]
        if has_labels:
            cells += [f"{100 * line['raw']['accuracy']:.1f}", _percent(line["prior"])]
        rows.append(cells)
    return [*header, *(["raw, %", "prior, % [95 %]"] if has_labels else [])], rows


def _notes(found: Mapping[str, Any]) -> list[str]:
    """Return what is to be said below the table."""
    best, every, labelled = found["ensemble"], found["all"], found["labelled"]
    notes = [f"score: {found['formula']}, on {found['rows']} unlabeled rows; labels are no part of it"]
    suggestion = f"suggested ensemble: {', '.join(best['prompts'])}"
    if labelled["splits"]:
        correlation = found["rank_correlation"]
        said = "none (fewer than 3 prompts, or all alike)" if correlation is None else f"{correlation:.2f}"
        where = f"{counted(labelled['rows'], 'row')} of {' + '.join(labelled['splits'])}"
        notes.append(f"rank correlation of {len(every['prompts'])} scores and prior-matched accuracies on {where}: {said}")
        suggestion += f" ({_percent(best)} %; all {len(every['prompts'])} together {_percent(every)} %)"
    return [*notes, suggestion]


def _text(found: Mapping[str, Any], place: Path) -> str:
    header, rows = _cells(found)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
    lines += [*_notes(found), f"plot: {place / PAGE_FILE}"]
    lines.append(f"nothing uses the suggested ensemble until you copy {place / ENSEMBLE_FILE} into the task's file")
    return "\n".join(lines) + "\n"


def _page(found: Mapping[str, Any]) -> str:
    lines = found["prompts"]
    if found["labelled"]["splits"]:
        points = [
            Point(name=line["prompt"], x=line["score"], y=100 * line["prior"]["accuracy"], low=100 * low, high=100 * high)
            for line in lines
            for low, high in [line["prior"]["ci95"]]
        ]
        chart = scatter_chart("Accuracy, prior-matched, % (95 % interval)", points, f"score ({found['formula']})")
    else:
        chart = bar_chart(f"Score ({found['formula']})", [(line["prompt"], line["score"]) for line in lines], "score")
    header, rows = _cells(found)
    parts: list[Chart | Markup] = [chart, table(header, rows), *map(note, _notes(found))]
    words = [[line["prompt"], line["template"], json.dumps(line["label_words"], ensure_ascii=False)] for line in lines]
    own = table(("prompt", "template", "label words (null: the task's)"), words)
    return page(f"Prompts of {found['task']}", [Section(title="Judged", parts=parts), Section(title="Prompts", parts=[own])])


def _percent(accuracy: Mapping[str, Any]) -> str:
    low, high = accuracy["ci95"]
    return f"{100 * accuracy['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
