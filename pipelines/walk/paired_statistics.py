"""What a study says of its variants: one run's results on a task, and their summary over the seeds of a variant.

A variant is what runs have in common that differ only in `seed`. Results flow in as answers by row, dev and few together;
accuracies, differences and means flow out. Nothing is read or written here.

Legend: S seeds, N rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapt.core.errors import ConfigError, DataError
from adapt.core.scorer import FloatArray
from pseudo_label.accuracy import accuracy_of
from pseudo_label.comparison import Difference, answer_shares, best_unadapted, bootstrap_ci95, mcnemar_p, paired_difference

ADAPTED_RAW = ("adapted", "raw")
LEXICAL = ("lexical", "lexical")
_MOST_KEYS = 4
_POINT_PART = re.compile(r",(?=[+~]*[\w.]+=)")
_SEED_PART = re.compile(r"\+*seed=(\d+)")
_TASK_PART = re.compile(r"\+*tasks=.*")
_SEED_ENDING = re.compile(r"(?:_s|[_-]seed=)(\d+)$")


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean loss over the held-out tokens of all kinds, nats, before and after adaptation."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run's results on one task, over the rows of its labelled splits in turn; None for what the run does not say.

    `gold` are the right answers by split, `answers` those given by (model, method), all splits in turn. `label_accuracy` is the
    accuracy on labelled rows as sure as the selected ones; `training_s` and `scoring_s` are seconds. `method` is the one that
    decides. `is_seed` says whether the run is one seed of the variant that its name says. `n_copies` rows were left out, as copies
    of others.
    """

    run: str
    seed: int | None
    gold: Mapping[str, tuple[str, ...]]
    answers: Mapping[tuple[str, str], tuple[str, ...]]
    entropy: float | None = None
    held_out: HeldOutLoss | None = None
    selected: int | None = None
    labelled_rows: int | None = None
    label_accuracy: float | None = None
    training_s: float | None = None
    scoring_s: float | None = None
    criteria: Sequence[Mapping[str, Any]] = ()
    method: str = "raw"
    is_seed: bool = True
    n_copies: int = 0

    @property
    def decides(self) -> tuple[str, str] | None:
        """Whose answers count: the adapted model's, else the base's, under the evaluation's method; None where nobody gave them."""
        models = ("adapted", "base", *LEXICAL[:1])
        return next((who for who in ((model, self.method) for model in models) if who in self.answers), None)

    @property
    def variant(self) -> str:
        return variant_of(self.run) if self.is_seed else self.run

    @property
    def all_gold(self) -> tuple[str, ...]:
        return tuple(label for labels in self.gold.values() for label in labels)

    def right_N(self, who: tuple[str, str]) -> FloatArray:
        return np.asarray([a == g for a, g in zip(self.answers[who], self.all_gold, strict=True)], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Score:
    """An accuracy: the mean over seeds, its 95 % interval, and each seed's own (one, where all seeds gave the same answers)."""

    value: float
    ci95: tuple[float, ...]
    by_seed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A variant on one task; means over its seeds, None for what no seed says.

    `scores` are by (model, method). `over_lexical` and `over_best` are by method of the adapted model: its accuracy minus the
    lexical labeller's, and minus that of the best one had without adapting, on average over the seeds. `difference` is the adapted
    model's raw accuracy minus the baseline's, `p` McNemar's, where both have one seed. `entropy`, `largest_share` and `share_drift`
    are those of the adapted model's raw answers.
    """

    variant: str
    seeds: tuple[int, ...]
    n: int
    scores: Mapping[tuple[str, str], Score]
    over_lexical: Mapping[str, Difference]
    over_best: Mapping[str, Difference]
    difference: Difference | None
    p: float | None
    held_out: HeldOutLoss | None
    entropy: float | None
    largest_share: float | None
    share_drift: float | None
    selected: float | None
    labelled_rows: float | None
    label_accuracy: float | None
    training_s: float | None
    scoring_s: float | None


def variant_of(run: str) -> str:
    """Return the name that runs share which differ only in their seed.

    Left out are `seed=N` and `tasks=...` in a sweep point's name (tables are by task anyway), and `_s<N>` or `_seed=N` at the end
    of a run's name. A point whose name was too long carries a digest of it and stands for itself.
    """
    name, _, point = run.partition("/")
    kept = [part for part in _POINT_PART.split(point) if not (_SEED_PART.fullmatch(part) or _TASK_PART.fullmatch(part))]
    stem, *parts = _POINT_PART.split(name)
    stem = ",".join([_SEED_ENDING.sub("", stem) or stem, *[part for part in parts if not _SEED_PART.fullmatch(part)]])
    rest = ",".join(kept)
    return f"{stem}/{rest}" if rest else stem


def seed_in(run: str) -> int | None:
    """Return the seed that a run's name says, if it says one."""
    name, _, point = run.partition("/")
    for part in [*_POINT_PART.split(point), *_POINT_PART.split(name)[1:]]:
        found = _SEED_PART.fullmatch(part)
        if found:
            return int(found.group(1))
    ending = _SEED_ENDING.search(name)
    return int(ending.group(1)) if ending else None


def apart(results: Sequence[RunResult], settings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the runs that are no seeds of the variant that their names say, with the reason.

    Seeds have the seed that their name says, and are alike in all recorded `settings` (by run and key) but the seed.
    """
    by_variant: dict[str, dict[str, int | None]] = {}
    for result in results:
        by_variant.setdefault(variant_of(result.run), {})[result.run] = result.seed
    found = {}
    for runs in (some for some in by_variant.values() if len(some) > 1):
        for run, seed in runs.items():
            said = seed_in(run)
            if said is not None and seed is not None and said != seed:
                found[run] = f"its seed is {seed}, not {said}"
        alike = [run for run in runs if run not in found]
        names = dict.fromkeys(key for run in alike for key in settings[run] if key != "seed")
        differing = [key for key in names if len({settings[run][key] for run in alike if key in settings[run]}) > 1]
        if differing:
            found |= dict.fromkeys(alike, f"they differ in {', '.join(differing[:_MOST_KEYS])} too")
    return found


def mean_entropy(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean entropy by row over the splits of an accuracy table; None where it says none."""
    known = [line for line in lines if "entropy" in line]
    return sum(line["entropy"] * line["n"] for line in known) / sum(line["n"] for line in known) if known else None


def check_comparable(task: str, results: Sequence[RunResult]) -> None:
    """Check that all results of a task are over the same rows, and that no seed of a variant is there twice.

    Raises:
        DataError: another number of rows, or other right answers.
        ConfigError: two runs are the same seed of one variant.
    """
    seen: dict[tuple[str, int | None], str] = {}
    for result in results:
        other = seen.setdefault((result.variant, result.seed), result.run)
        if other != result.run:
            which = "no known seed" if result.seed is None else f"seed {result.seed}"
            raise ConfigError(
                f"{task}: runs '{other}' and '{result.run}' are both variant '{result.variant}' with {which}; "
                "leave one of them out of study.runs"
            )
    for result in results[1:]:
        problem = _gold_difference(results[0], result)
        if problem:
            raise DataError(
                f"{task}: runs '{results[0].run}' and '{result.run}' were measured on different rows ({problem}); "
                "evaluate both on the same data, or leave one of them out of study.runs"
            )


def _gold_difference(one: RunResult, other: RunResult) -> str:
    """Say how two runs' right answers differ; empty where they do not."""
    sizes = [" + ".join(f"{split} {len(gold)}" for split, gold in result.gold.items()) for result in (one, other)]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} and {sizes[1]}"
    for split, gold in one.gold.items():
        for row, (here, there) in enumerate(zip(gold, other.gold[split], strict=True), 1):
            if here != there:
                return f"gold of row {row} of {split} is '{here}' and '{there}'"
    return ""


def summarise(variant: str, results: Sequence[RunResult], baseline: Sequence[RunResult]) -> Summary:
    """Summarise the seeds of a variant on one task, against those of the baseline (none: there is none to compare with)."""
    results = sorted(results, key=lambda result: -1 if result.seed is None else result.seed)
    adapted = [result for result in results if ADAPTED_RAW in result.answers]
    known = [result for result in baseline if ADAPTED_RAW in result.answers]
    spread = [answer_shares(result.answers[ADAPTED_RAW], result.all_gold) for result in adapted]
    losses = [result.held_out for result in results if result.held_out is not None]
    is_compared = bool(adapted and known)
    return Summary(
        variant=variant,
        seeds=tuple(result.seed for result in results if result.seed is not None),
        n=len(results[0].all_gold),
        scores={who: score_of(results, who) for who in dict.fromkeys(who for result in results for who in result.answers)},
        over_lexical=_gains(results, lambda result: LEXICAL),
        over_best=_gains(results, lambda result: best_unadapted({who: result.right_N(who) for who in result.answers})),
        difference=paired_difference(_seed_mean_N(adapted), _seed_mean_N(known)) if is_compared else None,
        p=_p_of(adapted, known),
        held_out=HeldOutLoss(before=float(np.mean([x.before for x in losses])), after=float(np.mean([x.after for x in losses])))
        if losses
        else None,
        entropy=_mean([result.entropy for result in results]),
        largest_share=_mean([share.largest_share for share in spread]),
        share_drift=_mean([share.share_drift for share in spread]),
        selected=_mean([result.selected for result in results]),
        labelled_rows=_mean([result.labelled_rows for result in results]),
        label_accuracy=_mean([result.label_accuracy for result in results]),
        training_s=_mean([result.training_s for result in results]),
        scoring_s=_mean([result.scoring_s for result in results]),
    )


def score_of(results: Sequence[RunResult], who: tuple[str, str]) -> Score:
    """Return the mean accuracy of (model, method) over the seeds that have it.

    Its interval is Wilson's where there is one list of answers, else a bootstrap over rows of the mean correctness over seeds.
    """
    having = [result for result in results if who in result.answers]
    if len({result.answers[who] for result in having}) == 1:
        alone = accuracy_of(having[0].answers[who], having[0].all_gold)
        return Score(value=alone.accuracy, ci95=alone.ci95, by_seed=(alone.accuracy,))
    right_SN = np.stack([result.right_N(who) for result in having])
    mean_N = right_SN.mean(axis=0)
    return Score(value=float(mean_N.mean()), ci95=bootstrap_ci95(mean_N), by_seed=tuple(right_SN.mean(axis=1).tolist()))


def _gains(results: Sequence[RunResult], compared_with: Callable[[RunResult], tuple[str, str] | None]) -> dict[str, Difference]:
    """Return, for each method of the adapted model, its gain over what each run had without adapting, paired by row."""
    methods = dict.fromkeys(method for result in results for model, method in result.answers if model == "adapted")
    gains = {}
    for method in methods:
        pairs = [(result, compared_with(result)) for result in results if ("adapted", method) in result.answers]
        known = [(result, other) for result, other in pairs if other is not None and other in result.answers]
        if known:
            own_N = np.mean([result.right_N(("adapted", method)) for result, _ in known], axis=0)
            other_N = np.mean([result.right_N(other) for result, other in known], axis=0)
            gains[method] = paired_difference(np.asarray(own_N), np.asarray(other_N))
    return gains


def _seed_mean_N(results: Sequence[RunResult]) -> FloatArray:
    return np.asarray(np.mean([result.right_N(ADAPTED_RAW) for result in results], axis=0), dtype=np.float64)


def _p_of(adapted: Sequence[RunResult], baseline: Sequence[RunResult]) -> float | None:
    if len(adapted) != 1 or len(baseline) != 1:
        return None
    return mcnemar_p(adapted[0].right_N(ADAPTED_RAW) == 1, baseline[0].right_N(ADAPTED_RAW) == 1)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
