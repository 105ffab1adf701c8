"""The tracked runs of a finished walk: one per task, with all its results.

The steps of training were tracked while they were done; here the same run is given its history once more (offline files are
written anew, online only what is missing is sent), then settings, label statistics, losses, accuracies and the verdict. All of it
is read from artifacts, so it is complete also where stages were skipped because nothing had changed. No text of the data is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapt.core.artifacts import Artifact, short_key
from adapt.core.json_files import read_json, read_lines
from adapt.core.typed import digest_of, to_plain
from adapt.train.trackers import open_tracker
from adapt.train.tracking import RunIdentity, TrackedTable, TrackerKind
from pipelines.stages import continue_pretrain, evaluate, export, pseudo_label
from pipelines.stages.answers import Answers
from pipelines.stages.products import REPORT_FILE, Adaptation, Evaluation, Labels
from pipelines.stages.run import Run
from pipelines.stages.training import HISTORY_FILE, tracked_name
from pipelines.stages.up_to_date import belonging
from pipelines.walk.verdict import verdict_on

_ACCURACY_COLUMNS = ("split", "model", "method", "n", "accuracy", "low", "high")


def track(current: Run) -> str:
    """Tell the tracker about every task of the run; return how to look at it, empty where nothing is tracked."""
    if current.config.tracker.kind is TrackerKind.NONE:
        return ""
    hints = [_track_task(current, task) for task in current.config.tasks]
    return "\n".join(hint for hint in hints if hint)


def _track_task(current: Run, task: str) -> str:
    found, left_out = belonging(current, task)
    if left_out:
        current.workshop.say_once(left_out)
    made = next((found[stage] for stage in (continue_pretrain.NAME, evaluate.NAME, pseudo_label.NAME) if stage in found), None)
    if made is None:
        return ""
    identity = RunIdentity(
        name=tracked_name(current, continue_pretrain.NAME, task),
        group=current.group,
        stage=continue_pretrain.NAME,
        key=short_key(made.path),
        directory=current.store.root / current.group,
        config={**to_plain(current.config), "digests": _digests(current, task, found)},
    )
    history = made.path / HISTORY_FILE
    with open_tracker(current.config.tracker, identity, is_main=True) as tracker:
        tracker.follow(read_lines(history) if history.is_file() else [])
        tracker.conclude(_summary(current, found, verdict_on(found)), _tables(task, found))
    return tracker.hint


def _digests(current: Run, task: str, found: Mapping[str, Artifact]) -> dict[str, str]:
    """Return digests of the task's settings, of the base, and of what each stage made."""
    settings = next(one for one in current.tasks() if one.name == task)
    bases = {ref.digest for artifact in found.values() for name, ref in artifact.inputs.items() if name == "base"}
    of_stages = {stage: artifact.digest for stage, artifact in found.items()}
    return {"task": digest_of(to_plain(settings)), **({"base": bases.pop()} if len(bases) == 1 else {}), **of_stages}


def _summary(current: Run, found: Mapping[str, Artifact], verdict: str | None) -> dict[str, Any]:
    """Return single values by name: of labels, training, accuracies; the verdict, and where page and export are."""
    values: dict[str, Any] = {}
    if pseudo_label.NAME in found:
        values |= _flat("labels", to_plain(Labels.of(found[pseudo_label.NAME])))
    if continue_pretrain.NAME in found:
        values |= _flat("adaptation", to_plain(Adaptation.of(found[continue_pretrain.NAME])))
    if evaluate.NAME in found:
        for row in Evaluation.of(found[evaluate.NAME]).table:
            place = f"accuracy/{row['split']}/{row['model']}/{row['method']}"
            low, high = row["ci95"]
            values |= {place: row["accuracy"], f"{place}/low": low, f"{place}/high": high}
    if verdict is not None:
        values["verdict"] = verdict
    if export.NAME in found:
        values["export"] = str(found[export.NAME].path)
    page = current.directory / "report" / REPORT_FILE
    if page.is_file():
        values["page"] = str(page)
    return values


def _tables(task: str, found: Mapping[str, Artifact]) -> dict[str, TrackedTable]:
    """Return accuracies, and of the method that decides the confusion of labels and the reliability of its probabilities."""
    if evaluate.NAME not in found:
        return {}
    rows = [
        [row["split"], row["model"], row["method"], row["n"], row["accuracy"], *row["ci95"]]
        for row in Evaluation.of(found[evaluate.NAME]).table
    ]
    tables = {"accuracy": TrackedTable(columns=_ACCURACY_COLUMNS, rows=rows)} if rows else {}
    evaluated = found[evaluate.NAME]
    file = evaluated.path / evaluate.ANSWERS_FILE
    answers = Answers.of(task, read_json(file) if file.is_file() else [], str(evaluated.config["evaluate"]["method"]))
    if answers is not None:
        pairs = [[*pair, count] for pair, count in answers.confusion().most_common()]
        tables["confusion"] = TrackedTable(columns=("label", "answer", "rows"), rows=pairs)
        bins = [[one.low, one.high, one.n, one.confidence, one.accuracy] for one in answers.reliability(answers.decides)]
        tables["reliability"] = TrackedTable(columns=("from", "to", "rows", "confidence", "accuracy"), rows=bins)
    return tables


def _flat(name: str, value: Any) -> dict[str, Any]:
    return dict(_leaves(name, value))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and words of a nested value under joined names; lists are joined, absent values left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, value
