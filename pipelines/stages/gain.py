"""What adaptation gained on a task, in words that say how sure that is and what to change where nothing can be said.

The adapted model's answers on dev and few together, by `evaluate.method`, are compared with the best that one had without adapting:
the lexical labeller, or the base under any method of the table. That best one is chosen on the same rows, which favours it. Beside
it, with the lexical labeller that was taught: labelling gives that one without any training. Each method of the adapted model is
compared with the same method of the base, and the taught labeller with the untaught one. Intervals are resampled in pairs; rows
that are copies of others count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.artifacts import Artifact
from adapt.core.errors import counted
from adapt.core.json_files import read_json
from adapt.core.scorer import FloatArray
from pipelines.stages.answers import copies_in, pool_splits
from pipelines.stages.copied_rows import said_of_copies
from pipelines.stages.evaluate import ANSWERS_FILE
from pipelines.stages.evaluated_model import ADAPTED, BASE
from pipelines.stages.products import Adaptation
from pseudo_label.comparison import Difference, best_unadapted, paired_difference
from pseudo_label.decision import Method

_ENOUGH_ROWS = 100
_FEW_STEPS = 20
_ALMOST_ALL = 0.9  # of the rows: one answer to so many is the base's own bias
_SMALLER_STEPS = "lower continue_pretrain.optimizer.lr or continue_pretrain.epochs"
_OTHER_WORDS = "try other label words and prompts (`python -m pipelines.prompt_search` judges them)"
_MORE_STEPS = "raise continue_pretrain.epochs or pseudo_label.selection.share"


@dataclass(frozen=True, kw_only=True)
class Said:
    """One thing that a verdict says, with what belongs to it."""

    text: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}: {', '.join(self.details)}" if self.details else self.text


def in_a_sentence(parts: Sequence[Said]) -> str:
    """Return a verdict as one sentence."""
    return "; ".join(map(str, parts))


def in_lines(parts: Sequence[Said]) -> str:
    """Return a verdict as short lines, each of which says one thing; what is indented belongs to the line above."""
    first, *others = parts
    lines = [first.text, *(f"  {detail}" for detail in first.details)]
    for part in others:
        lines += [f"  {part.text}{':' if part.details else ''}", *(f"    {detail}" for detail in part.details)]
    return "\n".join(lines)


def gain_of(adapted: Artifact, evaluated: Artifact) -> list[Said]:
    """Return an adaptation's gain in words, by the answers of the evaluation that measured it."""
    made = Adaptation.of(adapted)
    if not made.is_adapted:
        if made.is_rolled_back:
            return [Said(text="rolled back, the base stands")]
        return [Said(text="not adapted, there was no row to train on; raise pseudo_label.selection.share")]
    path, method = evaluated.path / ANSWERS_FILE, str(evaluated.config["evaluate"]["method"])
    lines = read_json(path) if path.is_file() else []
    gold, answers = pool_splits(lines)
    pooled = [label for labels in gold.values() for label in labels]
    said = gain_in_words(method, pooled, answers, made.steps)
    n_copies = sum(map(len, copies_in(lines).values()))
    return [*said, Said(text=said_of_copies(n_copies, len(pooled) + n_copies))] if n_copies else said


def gain_in_words(method: str, gold: Sequence[str], answers: Mapping[tuple[str, str], Sequence[str]], steps: int) -> list[Said]:
    """Return a method's gain in words after some steps of adaptation; `answers` are by (model, method)."""
    right = {who: _right_N(given, gold) for who, given in answers.items()}
    own, other = (ADAPTED, method), best_unadapted(right)
    if not gold or own not in right or other is None:
        return [Said(text="adapted, and not measured: no labelled rows; label some in dev")]
    gain = paired_difference(right[own], right[other])
    before = other[0] if other[0] == other[1] else " ".join(other)
    compared = (f"adapted {method} {100 * right[own].mean():.1f} %",
                f"best without adapting {100 * right[other].mean():.1f} % ({before})")  # fmt: skip
    said = Said(text=f"{_word(gain, len(gold))}, {_points(gain)} on {counted(len(gold), 'row')}", details=compared)
    return [
        said, *_over_taught(own, right), *_by_method(right), *_keeping_the_base(gain),
        *_warnings(method, answers, steps, len(gold)),
    ]  # fmt: skip


def _over_taught(own: tuple[str, str], right: Mapping[tuple[str, str], FloatArray]) -> list[Said]:
    """Compare the adapted model with the lexical labeller that was taught before it: what labelling gives without training."""
    taught = (ADAPTED, Method.LEXICAL.value)
    if taught not in right or own == taught:
        return []
    return [Said(text=f"over the taught lexical labeller by itself {_points(paired_difference(right[own], right[taught]))}")]


def _keeping_the_base(gain: Difference) -> list[Said]:
    """Say how the base is exported where an adaptation lost."""
    if gain.includes_zero or gain.value > 0:
        return []
    return [Said(text="to export the base as it is, give another run.name and 'stages=[evaluate,export]'")]


def _by_method(right: Mapping[tuple[str, str], FloatArray]) -> list[Said]:
    """Compare each method after adaptation with the same one before."""
    shared = [method for model, method in right if model == ADAPTED and (BASE, method) in right]
    gains = [f"{name} {_points(paired_difference(right[ADAPTED, name], right[BASE, name]))}" for name in shared]
    lexical = Method.LEXICAL.value
    if (ADAPTED, lexical) in right and (lexical, lexical) in right:
        gains.insert(0, f"{lexical} {_points(paired_difference(right[ADAPTED, lexical], right[lexical, lexical]))}")
    return [Said(text="by method, adapted over not adapted", details=tuple(gains))] if gains else []


def _warnings(method: str, answers: Mapping[tuple[str, str], Sequence[str]], steps: int, n_rows: int) -> list[Said]:
    """Say why a comparison means little, each with the key to change."""
    found: list[str] = []
    if n_rows < _ENOUGH_ROWS:
        tells = f"{counted(n_rows, 'row')} {'tells' if n_rows == 1 else 'tell'}"
        found.append(f"{tells} only large gains: label more than {_ENOUGH_ROWS} in dev or few")
    of_one_label = [name for (model, name), given in answers.items() if model == ADAPTED and len(set(given)) == 1]
    of_base = {name: _largest_share(answers[BASE, name]) for name in of_one_label if (BASE, name) in answers}
    for names, change in (
        ([name for name in of_one_label if of_base.get(name, 0) < _ALMOST_ALL], _SMALLER_STEPS),
        ([name for name in of_one_label if of_base.get(name, 0) >= _ALMOST_ALL], _OTHER_WORDS),
    ):
        if not names:
            continue
        label = answers[ADAPTED, names[0]][0]
        if method in names and method != "prior":
            change = f"set evaluate.method=prior, or {change}"
        shares = ", ".join(f"{100 * of_base[name]:.0f} %" for name in names if of_base.get(name, 0) >= _ALMOST_ALL)
        before = f" (the base gave one answer to {shares} of the rows)" if shares else ""
        found.append(f"adapted {', '.join(names)}: every answer is '{label}'{before}; {change}")
    shared = [name for model, name in answers if model == ADAPTED and (BASE, name) in answers]
    if shared and all(list(answers[ADAPTED, name]) == list(answers[BASE, name]) for name in shared):
        found.append(f"{counted(steps, 'step')} changed no answer: {_MORE_STEPS}, or continue_pretrain.optimizer.lr")
    elif steps < _FEW_STEPS:
        found.append(f"{counted(steps, 'step')} {'is' if steps == 1 else 'are'} few, so chance decides much: {_MORE_STEPS}")
    return [Said(text=text) for text in found]


def _largest_share(given: Sequence[str]) -> float:
    return max(Counter(given).values(), default=0) / max(len(given), 1)


def _right_N(given: Sequence[str], gold: Sequence[str]) -> FloatArray:
    return np.asarray([answer == label for answer, label in zip(given, gold, strict=True)], dtype=np.float64)


def _points(gain: Difference) -> str:
    low, high = (100 * end for end in gain.ci95)
    return f"{100 * gain.value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _word(gain: Difference, n_rows: int) -> str:
    if not gain.includes_zero:
        return "gained" if gain.value > 0 else "lost"
    return "no clear gain" if n_rows >= _ENOUGH_ROWS else f"too few rows to tell (fewer than {_ENOUGH_ROWS})"
