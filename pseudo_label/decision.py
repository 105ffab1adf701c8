"""Decisions: from ranking keys to scores per label, with what was fitted on unlabeled rows frozen inside.

Legend: N rows, C labels, G groups.

Raw likelihood of one prompt tends to predict one class. Two corrections, both fitted without labels: `prior`: one additive bias
per class so that the mean posterior over the unlabeled rows is the task's prior. `ensemble`: the keys of several prompts, each
centred per row, freed of its class means and scaled to unit spread, are averaged, and then prior-matched, multiplied by the task's
`ensemble_scale` meanwhile. Both match the task's `prior`, which is even unless it is given; `raw` is always available
beside them. `lexical` asks no model (`pseudo_label/teachers/lexical.py`); `combined` adds both: the model's scores, scaled to unit
spread over the unlabeled rows, and the lexical ones. The model's are its ensemble's. Those of a model that was trained on labels
are its reference prompt's as they are, if its training has calibrated them; a pretrained model that took small steps keeps its
ensemble, in which the reference, the prompt that it was trained with, counts as often as all others together. `content_free` needs
no unlabeled rows: its bias evens out what the reference prompt says of texts without content (contextual calibration, Zhao et al.
2021, arXiv:2102.09690).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adapt.core.errors import ConfigError, DataError
from adapt.core.scorer import FloatArray
from pseudo_label.coarse_to_fine import CoarseToFine, groups_of_labels, join_steps
from pseudo_label.shortlist import within_shortlists
from pseudo_label.tasks import TaskConfig
from pseudo_label.teachers.contract import row_centred, spread_of
from pseudo_label.zero_shot import PromptKeys

# Weights of the lexical scores; the model's have weight 1, at equal spread, in answers and among teachers (docs/study_log.md). A
# student of several teachers has learned what the lexical labeller does not know, so the labeller weighs half as much.
LEXICAL_WEIGHT = 4.0
STUDENT_LEXICAL_WEIGHT = 2.0
_ROUNDS = 500
_TOLERANCE = 1e-6


class Method(enum.Enum):
    """How keys become decisions."""

    RAW = "raw"
    PRIOR = "prior"
    ENSEMBLE = "ensemble"
    CONTENT_FREE = "content_free"
    LEXICAL = "lexical"
    COMBINED = "combined"

    @property
    def needs_model(self) -> bool:
        return self is not Method.LEXICAL

    @property
    def needs_lexical(self) -> bool:
        return self in (Method.LEXICAL, Method.COMBINED)

    @property
    def needs_rows(self) -> bool:
        """Whether the model's scores of unlabeled rows are fitted on."""
        return self in (Method.PRIOR, Method.ENSEMBLE, Method.COMBINED)


@dataclass(frozen=True, kw_only=True)
class Combining:
    """How `combined` joins a model with the lexical labeller: the method of the model's scores, and the other's weight.

    With `reference_leads` the reference prompt counts in an ensemble as often as all others together.
    """

    model: Method = Method.ENSEMBLE
    reference_leads: bool = False
    lexical_weight: float = LEXICAL_WEIGHT


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How one prompt's keys are standardised over unlabeled rows; no class means where rows bring their own candidates."""

    class_means: list[float]
    spread: float


@dataclass(frozen=True, kw_only=True)
class FittedScores:
    """A frozen map from prompt keys to scores: standards by prompt (none: keys as they are) and a bias per class.

    `weights` says how often each prompt counts in the mean; prompts count alike where it is empty.
    """

    prompts: list[str]
    standards: dict[str, Standard] = field(default_factory=dict)
    biases: list[float] | None = None
    weights: dict[str, float] = field(default_factory=dict)

    def apply(self, keys: Mapping[str, FloatArray]) -> FloatArray:
        """Return scores [N, C], larger is better."""
        counts = [self.weights.get(name, 1.0) for name in self.prompts]
        total = sum(n * self._standardised(name, keys[name]) for name, n in zip(self.prompts, counts, strict=True)) / sum(counts)
        return np.asarray(total if self.biases is None else total + np.asarray(self.biases))

    def _standardised(self, name: str, keys_NC: FloatArray) -> FloatArray:
        standard = self.standards.get(name)
        if standard is None:
            return keys_NC
        centred = row_centred(keys_NC)
        return (centred - np.asarray(standard.class_means or 0.0)) / standard.spread


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A task's frozen decision: what export carries and prediction applies, fitted on `n_fitted` unlabeled rows.

    A `combined` decision divides the model's scores by `model_spread` and adds `lexical_weight` times the lexical ones, both
    multiplied so that their weights' mean is 1. With a
    `shortlist` it chooses among so many labels of a row, the best by the lexical labeller.
    """

    method: Method
    labels: FittedScores
    groups: FittedScores | None
    n_fitted: int
    coarse: CoarseToFine = field(default_factory=CoarseToFine)
    model_spread: float = 1.0
    lexical_weight: float = 0.0
    shortlist: int | None = None

    @property
    def needs_lexical(self) -> bool:
        """Whether rows are scored by the lexical labeller too."""
        return self.method is Method.LEXICAL or (self.method is Method.COMBINED and self.lexical_weight > 0)

    @property
    def prompts(self) -> list[str]:
        return self.labels.prompts

    def scores(self, keys: Sequence[PromptKeys], task: TaskConfig, lexical_NC: FloatArray | None = None) -> FloatArray:
        """Return scores [N, C]: the model's from its prompts' keys, the lexical labeller's, or their sum, as the method says."""
        if self.method is Method.LEXICAL:
            assert lexical_NC is not None, "a lexical decision needs the lexical labeller's scores"
            return lexical_NC
        model_NC = self.model_scores(keys, task)
        if not self.needs_lexical:
            return model_NC
        assert lexical_NC is not None, "a combined decision needs the lexical labeller's scores"
        if self.shortlist is not None:
            model_NC = within_shortlists(model_NC, lexical_NC, self.shortlist)
        summed_NC = row_centred(model_NC) / self.model_spread + self.lexical_weight * lexical_NC
        return np.asarray(summed_NC * 2 / (1 + self.lexical_weight))

    def model_scores(self, keys: Sequence[PromptKeys], task: TaskConfig) -> FloatArray:
        """Return the model's scores [N, C], joined with those of the groups where the decision goes from coarse to fine."""
        flat_NC = self.flat_scores(keys)
        if self.groups is None or task.label_tree is None:
            return flat_NC
        return join_steps(flat_NC, self.group_scores(keys), groups_of_labels(task), self.coarse)

    def flat_scores(self, keys: Sequence[PromptKeys]) -> FloatArray:
        """Return the labels' scores [N, C] as they are without groups."""
        by_prompt = {k.prompt: k for k in keys}
        return self.labels.apply({name: by_prompt[name].labels_NC for name in self.prompts})

    def group_scores(self, keys: Sequence[PromptKeys]) -> FloatArray:
        """Return the groups' scores [N, G]; only for a decision that has groups."""
        assert self.groups is not None, "this decision knows no groups"
        by_prompt = {k.prompt: k.groups_NG for k in keys}
        return self.groups.apply({n: g for n in self.prompts if (g := by_prompt[n]) is not None})


def fit_combined(
    keys: Sequence[PromptKeys],
    task: TaskConfig,
    *,
    combining: Combining,
    shortlist: int | None = None,
    coarse_to_fine: CoarseToFine | None = None,
) -> Decision:
    """Fit a decision of model and lexical labeller together on the keys of unlabeled rows.

    Without unlabeled rows there is no lexical labeller either: then the reference prompt decides as it is.
    """
    part = fit_decision(combining.model, keys, task, coarse_to_fine=coarse_to_fine, reference_leads=combining.reference_leads)
    n_rows = len(keys[0].labels_NC) if keys else 0
    if not n_rows:
        return replace(part, method=Method.COMBINED)
    spread = spread_of(part.model_scores(keys, task))
    return replace(
        part,
        method=Method.COMBINED,
        n_fitted=n_rows,
        model_spread=spread,
        lexical_weight=combining.lexical_weight,
        shortlist=shortlist if task.candidates is None else None,
    )


def lexical_decision(n_fitted: int) -> Decision:
    """Return the decision that asks no model."""
    return Decision(method=Method.LEXICAL, labels=FittedScores(prompts=[]), groups=None, n_fitted=n_fitted)


def fit_decision(
    method: Method,
    keys: Sequence[PromptKeys],
    task: TaskConfig,
    *,
    coarse_to_fine: CoarseToFine | None = None,
    reference_leads: bool = False,
) -> Decision:
    """Fit a decision on the keys of unlabeled rows (of content-free rows for `content_free`).

    `raw` and `prior` use the reference prompt, `ensemble` all prompts given. For tasks whose rows bring their own candidates there
    is no class to fit a bias for: their ensemble scales prompts only. Without unlabeled rows there is nothing to fit at all:
    then the reference prompt decides as it is, and `n_fitted` is 0. For `combined` and `lexical` see the two functions above. With
    `reference_leads` the reference counts in an ensemble as often as all its others together.
    """
    assert method not in (Method.COMBINED, Method.LEXICAL), "these have functions of their own"
    by_prompt = {k.prompt: k for k in keys}
    n_rows = len(keys[0].labels_NC) if keys else 0
    has_classes = task.candidates is None
    can_fit = n_rows > 0 and (has_classes or method is Method.ENSEMBLE)
    names = list(by_prompt) if method is Method.ENSEMBLE and can_fit else [task.reference]
    leads = reference_leads and task.reference in names and len(names) > 2
    weights = {task.reference: float(len(names) - 1)} if leads else {}

    def fitted(pick: Mapping[str, FloatArray], shares: Sequence[float]) -> FittedScores:
        if not can_fit or method is Method.RAW:
            return FittedScores(prompts=names)
        standards = {name: _standard(pick[name], has_classes) for name in names} if method is Method.ENSEMBLE else {}
        unbiased = FittedScores(prompts=names, standards=standards, weights=weights)
        if not has_classes:
            return unbiased
        if method is Method.CONTENT_FREE:
            lean_C = np.log(np.asarray(shares) * len(shares))
            biases = lean_C - np.log(softmax(unbiased.apply(pick)).mean(axis=0))
        else:
            scale = task.ensemble_scale if method is Method.ENSEMBLE else 1.0
            biases = match_prior(unbiased.apply(pick) * scale, np.asarray(shares)) / scale
        return FittedScores(prompts=names, standards=standards, biases=biases.tolist(), weights=weights)

    labels = fitted({n: by_prompt[n].labels_NC for n in names if n in by_prompt}, task.shares())
    groups = None
    if coarse_to_fine is not None and task.label_tree is not None:
        if any(k.groups_NG is None for k in keys):
            raise ConfigError(f"task '{task.name}': coarse to fine needs the words of the tree's groups scored too")
        by_group = {n: g for n in names if n in by_prompt and (g := by_prompt[n].groups_NG) is not None}
        share_of = dict(zip(task.labels, task.shares(), strict=True))
        groups = fitted(by_group, [sum(share_of[label] for label in members) for members in task.label_tree.values()])
    return Decision(
        method=method, labels=labels, groups=groups, n_fitted=n_rows if can_fit else 0, coarse=coarse_to_fine or CoarseToFine()
    )


def match_prior(scores_NC: FloatArray, prior_C: FloatArray) -> FloatArray:
    """Return biases b with mean over rows of softmax(score + b) equal to the prior (prior matching, Zhao et al. 2021 in spirit).

    The multiplicative update b += log(prior / mean posterior) is monotone; it stops at 1e-6 or after 500 rounds.
    """
    biases = -scores_NC.mean(axis=0)
    for _ in range(_ROUNDS):
        mean = softmax(scores_NC + biases).mean(axis=0)
        change = np.log(prior_C) - np.log(np.maximum(mean, 1e-300))
        biases = biases + change
        if np.abs(change).max() < _TOLERANCE:
            break
    return np.asarray(biases - biases.mean())


def softmax(scores: FloatArray) -> FloatArray:
    """Return probabilities along the last axis."""
    exponent = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=-1, keepdims=True))


def confidences(scores_NC: FloatArray) -> list[float]:
    """Return the probability of each row's best label, to four digits; none for no rows."""
    return softmax(scores_NC).max(axis=1).round(4).tolist() if len(scores_NC) else []


def margins(scores_NC: FloatArray) -> FloatArray:
    """Return the best score minus the second best, by row; 0 where there is one label only."""
    if scores_NC.shape[1] < 2:
        return np.zeros(len(scores_NC))
    top = np.partition(scores_NC, -2, axis=1)
    return np.where(np.isfinite(top[:, -2]), top[:, -1] - top[:, -2], 0.0)


def refuse_collapse(scores_NC: FloatArray, decision: Decision, task: TaskConfig, limit: float) -> None:
    """Raise DataError when one class takes more than `limit` of the predictions and nothing corrects it."""
    if decision.method is not Method.RAW or task.candidates is not None or len(scores_NC) == 0:
        return
    counts = np.bincount(scores_NC.argmax(axis=1), minlength=len(task.labels))
    top = int(counts.argmax())
    if counts[top] > limit * len(scores_NC):
        raise DataError(
            f"task '{task.name}': {counts[top]} of {len(scores_NC)} raw predictions are '{task.labels[top]}'; self-training on "
            "them would collapse to that class; use pseudo_label.method=prior or ensemble"
        )


def _standard(keys_NC: FloatArray, has_classes: bool) -> Standard:
    centred = row_centred(keys_NC)
    means = centred.mean(axis=0) if has_classes else np.zeros(centred.shape[1])
    spread = float((centred - means)[np.isfinite(keys_NC)].std())
    return Standard(class_means=means.tolist() if has_classes else [], spread=spread if spread > 0 else 1.0)
