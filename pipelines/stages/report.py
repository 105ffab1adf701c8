"""Stage `report`: a run's artifacts to one HTML page."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.artifacts import FIGURES_FILE, Artifact, artifact_at, read_manifest
from adapt.core.errors import ConfigError
from adapt.core.json_files import read_json
from pipelines.report_page.charts import Interval, interval_chart
from pipelines.report_page.page import Lead, Section, note, page, table
from pipelines.stages.answers import Answers
from pipelines.stages.changed_settings import changed_settings
from pipelines.stages.contract import Files, Reads, Stage, Workshop, unkeyed
from pipelines.stages.copied_rows import said_of_copies
from pipelines.stages.gain import gain_of
from pipelines.stages.products import REPORT_FILE, Adaptation, Evaluation
from pipelines.stages.progress_record import FAILED, RUNNING, STOPPED, Record, records_of
from pipelines.stages.report_answers import accuracy_sentence, answers_section, chance_sentence, lexical_sentence
from pipelines.stages.report_costs import commands_section, cost_section, forgetting_section
from pipelines.stages.report_prompts import prompts_section
from pipelines.stages.report_teachers import has_changed_rows
from pipelines.stages.report_training import labels_section, training_section
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, TaskData, labelled_part
from pipelines.stages.run import Run, again_command
from pipelines.stages.up_to_date import CHAIN, of_each_other
from pseudo_label.tasks import TaskConfig, TaskRow

NAME = "report"
logger = logging.getLogger("pipelines")
_ANSWERS_FILE = "answers.json"
_OF_ALL_TASKS = ("tokenizer", "pretrain")
_MAKING = {"pretrain", "pseudo_label", "continue_pretrain", "evaluate"}


@dataclass(frozen=True, kw_only=True)
class ReportReads(Reads):
    """The run's name, its artifacts by 'stage' or 'stage/task' in a fixed order, and the labelled rows whose texts are shown.

    `settings` are the keys that differ from their defaults; `figures` what stages left for this page; `commands` are when each
    command of the run started, what it was, and how it ended. `left_out` says of which stages results are out of date and left out.
    """

    run_name: str
    settings: dict[str, str]
    artifacts: Mapping[str, Artifact]
    left_out: list[str]
    data: tuple[TaskData, ...]
    figures: Files
    commands: tuple[tuple[str, str, str], ...] = unkeyed("the settings and artifacts are what they made")


class Report(Stage[ReportReads]):
    """Draw whatever the run has so far."""

    name = NAME
    version = 5  # results that are out of date are left out, and so are texts of rows that were not measured
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> ReportReads:
        found, left_out = _artifacts(run)
        if not found:
            raise ConfigError(f"{run.directory}: nothing to report yet; run other stages first")
        for line in left_out:
            run.workshop.say_once(line)
        evaluated = [name for name in run.config.tasks if f"evaluate/{name}" in found]
        tasks = run.load_tasks(evaluated) if run.config.data.root is not None or run.config.data.files else []
        records = records_of(run.directory)
        return ReportReads(
            run_name=run.name,
            settings=_settings_of(run, records),
            artifacts=found,
            left_out=left_out,
            data=tuple(TaskData.of(run, one, _splits_of(found, one.name)) for one in tasks),
            figures=Files({name: file for name, a in found.items() if (file := a.path / FIGURES_FILE).is_file()}),
            commands=tuple((_when(one.started), one.command, _ended(one)) for one in records),
        )

    def build(self, reads: ReportReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        found = reads.artifacts
        answers = _answers(reads)
        lead: list[str | Lead] = [*reads.left_out, *[_outcome(found, one) for one in answers.values()], *_forgetting(found)]
        rows = {task: _rows(shop, reads, one) for task, one in answers.items()}
        data = {one.task.name: one for one in reads.data}
        tasks = {stage: _of_stage(found, stage) for stage in CHAIN}
        sections = [
            _accuracy(found),
            *[answers_section(one, rows[task]) for task, one in answers.items()],
            *[labels_section(task, a, data.get(task)) for task, a in tasks["pseudo_label"].items()],
            *[prompts_section(task, a, rows.get(task, [])) for task, a in tasks["evaluate"].items()],
            *[training_section(name, a) for name, a in found.items() if a.stage in ("pretrain", "continue_pretrain")],
            forgetting_section(found, shows_texts=bool(data)),
            cost_section(found),
            commands_section(reads.commands),
            _settings(reads.settings),
            _provenance(found),
        ]
        shown = [section for section in sections if section is not None]
        (result / REPORT_FILE).write_text(page(f"Run {reads.run_name}", shown, lead), encoding="utf-8")
        changed = [one.task.name for one in reads.data if one.task.name in answers and not rows[one.task.name]]
        disputes = {task: a for task, a in tasks["pseudo_label"].items() if task in data and has_changed_rows(a, data[task])}
        return {"sections": len(shown), "without_texts": changed, "disputes_without_texts": list(disputes)}

    def describe(self, artifact: Artifact) -> str:
        return f"{artifact.metrics['sections']} sections in {REPORT_FILE}"

    def deliver(self, reads: ReportReads, artifact: Artifact, place: Path) -> None:
        for task in artifact.metrics["without_texts"]:
            evaluated = again_command("evaluate", reads.run_name, task)
            logger.info(
                "%s: the page shows no texts of labelled rows: they are not those that were measured, or stand in another order; "
                "run `%s`, then this again",
                task,
                evaluated,
            )
        for task in artifact.metrics["disputes_without_texts"]:
            logger.info("%s: the page lacks texts of rows that teachers dispute: unlabeled rows have changed since labelling", task)


STAGE = Report()


def _artifacts(run: Run) -> tuple[dict[str, Artifact], list[str]]:
    """Return the run's artifacts by 'stage' or 'stage/task', in a fixed order; and lines on what is out of date and left out."""
    found = {name: artifact for name in _OF_ALL_TASKS if (artifact := artifact_at(run.directory / name)) is not None}
    lines: list[str] = []
    bases: set[str] = set()
    for task in run.config.tasks:
        made = {stage: a for stage in CHAIN if (a := artifact_at(run.directory / stage / task)) is not None}
        kept, left_out = of_each_other(made, run.name, task)
        lines += [left_out] if left_out else []
        found |= {f"{stage}/{task}": artifact for stage, artifact in kept.items()}
        bases |= {artifact.inputs["base"].digest for artifact in kept.values() if "base" in artifact.inputs}
    if bases and "pretrain" in found and found["pretrain"].digest not in bases:
        lines.append(
            f"pretrain is not the base that {', '.join(run.config.tasks)} started from, and left out here; run "
            f"`{again_command('run', run.name, None)}` to start from it"
        )
        del found["pretrain"]
    return found, lines


def _task_of(name: str) -> str:
    return name.partition("/")[2]


def _of_stage(found: Mapping[str, Artifact], stage: str) -> dict[str, Artifact]:
    """Return a stage's artifacts by task."""
    return {_task_of(name): artifact for name, artifact in found.items() if name.startswith(f"{stage}/")}


def _splits_of(found: Mapping[str, Artifact], task: str) -> list[str]:
    """Return the splits whose texts the page shows: labelled rows, and unlabeled ones where teachers dispute some."""
    labels = found.get(f"pseudo_label/{task}")
    has_disputes = labels is not None and (labels.path / FIGURES_FILE).is_file()
    return [*LABELLED_SPLITS, *([UNLABELED] if has_disputes else [])]


def _settings_of(run: Run, records: Sequence[Record]) -> dict[str, str]:
    """Return the settings of the last command that made results of the run, this one's where none is recorded."""
    made = [record for record in records if _MAKING.intersection(record.stages)]
    return made[-1].settings if made else changed_settings(run.config)


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _ended(record: Record) -> str:
    if record.process == os.getpid() and record.state == RUNNING:
        return "drew this page"
    return f"{record.ended_as}: {record.said}" if record.ended_as in (FAILED, STOPPED) and record.said else record.ended_as


def _answers(reads: ReportReads) -> dict[str, Answers]:
    """Return the answers of each task that was measured."""
    found = {}
    for name, artifact in reads.artifacts.items():
        file = artifact.path / _ANSWERS_FILE
        if name.startswith("evaluate/") and file.is_file():
            answers = Answers.of(_task_of(name), read_json(file), str(artifact.config["evaluate"]["method"]))
            if answers is not None:
                found[answers.task] = answers
    return found


def _rows(shop: Workshop, reads: ReportReads, answers: Answers) -> list[TaskRow]:
    """Return the rows that were answered, without copies; none where their texts are not at hand, or were not measured."""
    data = next((one for one in reads.data if one.task.name == answers.task), None)
    if data is None:
        return []
    measured = read_manifest(reads.artifacts[f"evaluate/{answers.task}"].path).get("input_files", {})
    prefixes = tuple(f"{answers.task}/{split}" for split in answers.splits)
    files = {name: digest for name, digest in data.files.digests().items() if name.startswith(prefixes)}
    rows: list[TaskRow] = []
    if files and all(measured.get(name) == digest for name, digest in files.items()):
        for split in data.existing(answers.splits):
            some = labelled_part(shop, data.task, split, data.read(split))
            rows += [row for place, row in enumerate(some) if place not in answers.copies.get(split, ())]
    return rows if tuple(row.label for row in rows) == answers.gold else []


def _outcome(found: Mapping[str, Artifact], answers: Answers) -> Lead:
    """Say what adaptation gained on a task, or how right the base is where none was measured; then chance and the lexical row."""
    adapted, evaluated = found.get(f"continue_pretrain/{answers.task}"), found[f"evaluate/{answers.task}"]
    rest = [chance_sentence(answers), *lexical_sentence(answers)]
    if adapted is None or "continue_pretrain" not in evaluated.inputs:
        rest += [f"{said_of_copies(answers.n_copies, len(answers.gold) + answers.n_copies)}."] if answers.n_copies else []
        return Lead(sentence=" ".join([f"{answers.task}: {accuracy_sentence(answers)}", *rest]))
    said, *details = map(str, gain_of(adapted, evaluated))  # it says of copies itself
    return Lead(sentence=" ".join([f"{answers.task}: {said}.", *rest]), details=details)


def _forgetting(found: Mapping[str, Artifact]) -> list[str]:
    """Return a sentence on forgetting for each task where it was measured."""
    made = {_task_of(name): Adaptation.of(a) for name, a in found.items() if name.startswith("continue_pretrain/")}
    return [f"{task}: {one.general}." for task, one in made.items() if one.general is not None]


def _accuracy(found: Mapping[str, Artifact]) -> Section | None:
    rows = [row for name, a in found.items() if name.startswith("evaluate/") for row in Evaluation.of(a).table]
    if not rows:
        return None
    header = ("task", "split", "model", "method", "prompts", "criterion", "n", "accuracy, %", "95 % interval", "scoring, s")
    cells = [
        [r["task"], r["split"], r["model"], r["method"], r["prompts"], r["criterion"], str(r["n"]), f"{100 * r['accuracy']:.1f}",
         f"{100 * r['ci95'][0]:.1f} to {100 * r['ci95'][1]:.1f}", f"{r['seconds']:.1f}"]
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
    chart = interval_chart("Accuracy with 95 % interval, by model and method", intervals, 0, 100, " %")
    made = {_task_of(name): Evaluation.of(a) for name, a in found.items() if name.startswith("evaluate/")}
    notes = [note(f"{task}: {line}.") for task, one in made.items() for line in one.findings]
    return Section(title="Accuracy", parts=[chart, *notes, table(header, cells)])


def _settings(changed: Mapping[str, str]) -> Section:
    cells = [[key, value] for key, value in changed.items()]
    return Section(title="Settings that differ from the defaults", parts=[table(("key", "value"), cells)])


def _provenance(found: Mapping[str, Artifact]) -> Section:
    rows = [[name, a.digest[:16], a.created, str(a.path)] for name, a in found.items()]
    return Section(title="Artifacts", parts=[table(("artifact", "digest", "created", "place"), rows)])
