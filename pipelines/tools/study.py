"""Finished runs to the tables of a study: `python -m pipelines.study run.dir=DIR 'study.runs=[NAME, ...]'`.

Runs go in as artifacts (`evaluate`, and what led to it), Markdown comes out; with `output=FILE.md` it is written there, and a page
with figures beside it. Every point of a sweep is a run of its own, `<run>/<point>`; a pattern without a slash takes a run with all
its points. Runs that differ only in their seed are one variant (`paired_statistics.variant_of`), a line of its task's table.
`study.baseline=VARIANT` adds how the others differ from it; Hydra wants quotes around a name with a = in it
('study.baseline="sweep/lr=1"'). Runs that are not finished are named at the end; runs over different rows are refused, never
compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adapt.core.artifacts import STORE, Artifact, artifact_at, write_atomically
from adapt.core.errors import CheckpointError, ConfigError, shown
from adapt.core.faults import writable
from adapt.core.json_files import read_json, read_lines
from adapt.core.registry import suggest
from pipelines.config.schema import PipelineConfig
from pipelines.stages import continue_pretrain, evaluate, pseudo_label
from pipelines.stages.answers import pool_splits
from pipelines.stages.criteria_table import CRITERIA_FILE
from pipelines.stages.products import Adaptation, Evaluation, Labels
from pipelines.stages.rows import LABELLED_SPLITS
from pipelines.tools.study_page import Table, markdown, study_page
from pipelines.walk.order import STAGES
from pipelines.walk.paired_statistics import (
    ADAPTED_RAW,
    LEXICAL,
    HeldOutLoss,
    RunResult,
    Score,
    Summary,
    check_comparable,
    mean_entropy,
    seed_in,
    summarise,
    variant_of,
)
from pseudo_label.comparison import Difference
from pseudo_label.decision import Method

NAME = "study"
_GAINS = ("raw", "combined")
_MOST_NAMED = 30
_MOST_SEEDS_LISTED = 3


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the tables of `study.runs`; with `output`, write them there and a page beside it.

    Raises:
        ConfigError: no such run or baseline, or no finished run among them.
        DataError: runs were measured on different rows.
    """
    target = _target(config)
    results, unfinished = _read_all(config)
    variants = list(dict.fromkeys(result.variant for found in results.values() for result in found))
    baseline = _baseline(config.study.baseline, variants)
    summaries = {}
    for task, found in results.items():
        check_comparable(task, found)
        by_variant = {name: [result for result in found if result.variant == name] for name in variants}
        known = by_variant[baseline] if baseline is not None else []
        summaries[task] = [summarise(name, some, known) for name, some in by_variant.items() if some]
    tables = {
        task: [t for t in (_accuracies(found, summaries[task], baseline), _criteria(found)) if t] for task, found in results.items()
    }
    ends = [f"Left out, not finished: {'; '.join(unfinished)}."] if unfinished else []
    text = markdown(tables, ends)
    if target is not None:
        with writable(target.parent):
            write_atomically(target.with_suffix(".html"), study_page(tables, summaries, baseline, ends))
            write_atomically(target, text)
    sys.stdout.write(shown(text, kept="\n"))
    sys.stdout.flush()


def _target(config: PipelineConfig) -> Path | None:
    if config.output is None:
        return None
    target = Path(config.output)
    if target.suffix == ".html":
        raise ConfigError(f"output: {target} is where the page goes; name the Markdown file, {target.with_suffix('.md')} say")
    return target


def existing_runs(root: Path) -> list[str]:
    """Return the names of a run directory's runs, and `<run>/<point>` for the points of sweeps."""
    found = []
    for path in _directories(root):
        if path.name == STORE:
            continue
        found += [path.name] if _is_run(path) else []
        found += [f"{path.name}/{inner.name}" for inner in _directories(path) if inner.name not in STAGES and _is_run(inner)]
    return found


def chosen_runs(root: Path, patterns: Sequence[str]) -> list[str]:
    """Return the runs that names or patterns choose, in the patterns' order.

    Raises:
        ConfigError: none is asked for, or a pattern chooses nothing; the message names what there is.
    """
    names = existing_runs(root)
    there = f"there are: {_some(names)}" if names else f"{root} has no runs; check run.dir"
    if not patterns:
        raise ConfigError(f"study.runs: names no run; {there}")
    chosen: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name if "/" in pattern else name.partition("/")[0], pattern)]
        if not hits:
            raise ConfigError(f"study.runs: '{pattern}' matches no run of {root}{suggest(pattern, names)}; {there}")
        chosen += hits
    return list(dict.fromkeys(chosen))


def _directories(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _is_run(path: Path) -> bool:
    return any((path / stage).is_dir() for stage in STAGES)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _baseline(name: str | None, variants: Sequence[str]) -> str | None:
    """Return the variant that is meant by its own name or by that of one of its runs."""
    if name is None or name in variants:
        return name
    if variant_of(name) in variants:
        return variant_of(name)
    raise ConfigError(
        f"study.baseline: no finished run of study.runs is variant '{name}'{suggest(name, list(variants))}; there are: "
        f"{_some(variants)}"
    )


def _read_all(config: PipelineConfig) -> tuple[dict[str, list[RunResult]], list[str]]:
    """Return the results of all chosen runs by task, and what of them is not finished."""
    root = Path(config.run.dir)
    results: dict[str, list[RunResult]] = {}
    unfinished: dict[tuple[str, str], list[str]] = {}
    for run in chosen_runs(root, config.study.runs):
        stages = (evaluate.NAME, continue_pretrain.NAME, pseudo_label.NAME)
        tasks = dict.fromkeys(path.name for stage in stages for path in sorted((root / run / stage).glob("[!.]*")))
        wanted = [task for task in tasks if not config.tasks or task in config.tasks]
        if not wanted:
            unfinished[run, "nothing evaluated"] = []
        for task in wanted:
            try:
                results.setdefault(task, []).append(_read(root / run, run, task))
            except CheckpointError as error:
                unfinished.setdefault((run, str(error)), []).append(task)
    said = [f"{run} ({', '.join(tasks)}{': ' if tasks else ''}{reason})" for (run, reason), tasks in unfinished.items()]
    results = {task: found for task, found in sorted(results.items()) if found}
    if not results:
        raise ConfigError(f"study.runs: no finished run to compare: {'; '.join(said)}")
    return results, said


def _read(directory: Path, run: str, task: str) -> RunResult:
    """Read one run's results on one task.

    Raises:
        CheckpointError: it is not evaluated, or not as it stands now, or an artifact is damaged.
    """
    evaluated = artifact_at(directory / evaluate.NAME / task)
    if evaluated is None:
        raise CheckpointError(f"no {evaluate.NAME}")
    adapted, labels = (artifact_at(directory / stage / task) for stage in (continue_pretrain.NAME, pseudo_label.NAME))
    used = evaluated.inputs.get("continue_pretrain")
    if (used.digest if used else None) != (adapted.digest if adapted else None):
        raise CheckpointError(
            f"{evaluate.NAME} is of another adapted model than {continue_pretrain.NAME}; run {evaluate.NAME} again"
        )
    if adapted is not None and labels is not None and continue_pretrain.labels_digest(adapted, task) != labels.digest:
        raise CheckpointError(
            f"{continue_pretrain.NAME} is of other labels than {pseudo_label.NAME}; run {continue_pretrain.NAME} again"
        )
    if not (evaluated.path / evaluate.ANSWERS_FILE).is_file():
        raise CheckpointError(f"no {evaluate.ANSWERS_FILE}: no labelled rows, or evaluated by an older version")
    gold, answers = pool_splits(_json(evaluated, evaluate.ANSWERS_FILE))
    if not gold:
        raise CheckpointError(f"evaluated on no labelled {' or '.join(LABELLED_SPLITS)}")
    lines = [
        line for line in Evaluation.of(evaluated).table if (line["model"], line["method"]) == ADAPTED_RAW and line["split"] in gold
    ]
    seed = adapted.config.get("seed") if adapted else None
    made = None if labels is None else Labels.of(labels)
    return RunResult(
        run=run,
        seed=seed_in(run) if seed is None else seed,
        gold=gold,
        answers=answers,
        entropy=mean_entropy(lines),
        held_out=_held_out(adapted) if adapted else None,
        selected=made.selected if made else None,
        labelled_rows=made.rows if made else None,
        label_accuracy=made.labelled.accuracy if made and made.labelled else None,
        training_s=_training_s(adapted) if adapted else None,
        scoring_s=sum(line["seconds"] for line in lines) if lines else None,
        criteria=[line for line in _json(evaluated, CRITERIA_FILE) if line["model"] == "base"],
    )


def _json(artifact: Artifact, file: str) -> list[dict[str, Any]]:
    """Return the lines of an artifact's file; none where it has no such file."""
    path = artifact.path / file
    found: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return found


def _held_out(adapted: Artifact) -> HeldOutLoss | None:
    ledgers = list(Adaptation.of(adapted).held_out.values())
    if not ledgers:
        return None
    before, after = ledgers[0].token_losses
    return HeldOutLoss(before=before, after=after)


def _training_s(adapted: Artifact) -> float | None:
    """Return how long the steps took: all tokens by the measured speed, which holds also where training was resumed."""
    history = adapted.path / "history.jsonl"
    speed = Adaptation.of(adapted).tokens_per_s
    if not speed or not history.is_file():
        return None
    return sum(float(line["tokens"]) for line in read_lines(history)) / float(speed)


def _accuracies(results: Sequence[RunResult], summaries: Sequence[Summary], baseline: str | None) -> Table:
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
        cells += [_points(found.get(method)) for method in gains for found in (s.over_lexical, s.over_best)]
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


def _criteria(results: Sequence[RunResult]) -> Table | None:
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
            rows.append([runs, line["criterion"], *["-" if x is None else _with_interval(x["accuracy"], x["ci95"]) for x in found]])
    return Table(title="criteria, base model, reference prompt", header=("runs", "criterion", "raw", "prior"), rows=rows)


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    text = _with_interval(score.value, score.ci95)
    if len(score.by_seed) == 1:
        return text
    if len(score.by_seed) <= _MOST_SEEDS_LISTED:
        return f"{text} ({', '.join(f'{100 * value:.1f}' for value in score.by_seed)})"
    return f"{text} ({100 * min(score.by_seed):.1f} to {100 * max(score.by_seed):.1f})"


def _difference(summary: Summary) -> str:
    return _points(summary.difference)


def _points(found: Difference | None) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{round(100 * share, 1) + 0.0:+.1f}" for share in (found.value, *found.ci95))  # + 0.0: no -0.0
    return f"{value} [{low}, {high}]{' =' if found.includes_zero else ''}"


def _with_interval(value: float, ci95: Sequence[float]) -> str:
    return f"{100 * value:.1f} [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
