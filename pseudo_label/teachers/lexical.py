"""The labeller without a model: label words as seeds, then classifiers on bags of words that teach themselves.

Seeds: the cosine of a text to a label's words and synonyms, over TF-IDF vectors and over their latent topics, centred and scaled by
label over the unlabeled rows (else labels with common words would take everything), plus the task's rules. Then some rounds: naive
Bayes and a linear support vector machine learn from the surest rows, the same number of each label. Rows are balanced in training,
so nothing is centred afterwards: a domain with more complaints than praise keeps them.

Sources: seed words and self-training of naive Bayes, Yarowsky 1995, Nigam et al. 2000 (Machine Learning 39); label words of several
spellings, Hu et al. 2022 (arXiv:2108.02035).

Legend: N rows, C labels, V features, K topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray
from pseudo_label.decision import margins
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers.bag_of_words import BagOfWords, Linear, Topics, Unit, linear_svm, mean_vectors, naive_bayes
from pseudo_label.teachers.contract import row_centred, spread_of
from pseudo_label.teachers.rules import FittedRules, fit_rules

_TOPICS = 200
_LEAST_SPREAD = 1e-4
_SEED_WEIGHT = 0.5  # of the seeds beside what was learnt, when the next round's rows are chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLexical:
    """Linear models over bags of words with the spreads of their scores; where nothing was learnt, those of the seeds."""

    task: TaskConfig
    bags: BagOfWords | None
    models: Mapping[str, Linear]
    spreads: Mapping[str, float]
    rules: FittedRules | None
    spread: float

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`."""
        return self._summed(rows) / self.spread

    def _summed(self, rows: Sequence[TaskRow]) -> FloatArray:
        total = np.zeros((len(rows), len(self.task.labels))) if self.rules is None else self.rules.scores(rows)
        if self.bags is None or not rows:
            return total
        texts = [text_of(row) for row in rows]
        inputs = {"naive_bayes": self.bags.counts(texts), "svm": self.bags.tfidf(texts), "seeds": self.bags.tfidf(texts)}
        for name, model in self.models.items():
            total = total + row_centred(model.scores(inputs[name])) / self.spreads[name]
        return total

    def to_plain(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return all that was fitted as plain values and arrays."""
        plain = {
            "bags": None if self.bags is None else self.bags.to_plain(),
            "spreads": dict(self.spreads),
            "rules": None if self.rules is None else self.rules.to_plain(),
            "spread": self.spread,
        }
        arrays = {f"{name}.weights": model.weights_CV for name, model in self.models.items()}
        return plain, arrays | {f"{name}.biases": model.biases_C for name, model in self.models.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray], task: TaskConfig) -> FittedLexical:
        """Build what `to_plain` described; `labels` of the plain values are the task's labels in the order of the arrays."""
        order = [plain["labels"].index(label) for label in task.labels]
        return cls(
            task=task,
            bags=None if plain["bags"] is None else BagOfWords.from_plain(plain["bags"]),
            models={
                name: Linear(weights_CV=arrays[f"{name}.weights"][order], biases_C=arrays[f"{name}.biases"][order])
                for name in plain["spreads"]
            },
            spreads=plain["spreads"],
            rules=None if plain["rules"] is None else FittedRules.from_plain(plain["rules"], task, order),
            spread=plain["spread"],
        )


def fit_lexical(
    task: TaskConfig, rows: Sequence[TaskRow], seed: int, guide_NC: FloatArray | None = None, rounds: int | None = None
) -> FittedLexical:
    """Fit the labeller on unlabeled rows (at least one). `guide_NC` are scores of these rows to learn from in place of the seeds.

    `rounds` of self-training are those of the task where none are given, with a guide at least one.
    A task whose rules are its only seeds, without rounds, is labelled by the rules.
    """
    settings = task.lexical
    rules = fit_rules(task, rows) if task.rules else None
    if guide_NC is None and not settings.uses_words and settings.rounds == 0:
        assert rules is not None, "load_task refuses a labeller without words and rules"
        return FittedLexical(task=task, bags=None, models={}, spreads={}, rules=rules, spread=1.0)
    texts = [text_of(row) for row in rows]
    bags = BagOfWords.fit(texts, Unit(settings.unit))
    counts_NV, tfidf_NV = bags.counts(texts), bags.tfidf(texts)
    seeds_NC = np.zeros((len(rows), len(task.labels)))
    models: dict[str, Linear] = {}
    if settings.uses_words and guide_NC is None:
        words, topics_NC = _word_seeds(task, bags, tfidf_NV), _topic_seeds(task, bags, tfidf_NV, seed)
        models = {"seeds": words}
        seeds_NC = words.scores(tfidf_NV) + topics_NC
        seeds_NC /= spread_of(seeds_NC)
    if rules is not None and guide_NC is None:
        seeds_NC = seeds_NC + rules.scores(rows)
    seeds_NC = seeds_NC if guide_NC is None else guide_NC / spread_of(guide_NC)
    known_NC = seeds_NC
    for _ in range(max(settings.rounds if rounds is None else rounds, guide_NC is not None)):
        chosen_N = surest_of_each(known_NC, settings.share)
        labels_N = known_NC[chosen_N].argmax(axis=1)
        if len(np.unique(labels_N)) < 2:
            break
        bayes = naive_bayes(counts_NV[chosen_N], labels_N, len(task.labels))
        svm = linear_svm(tfidf_NV[chosen_N], labels_N, len(task.labels), seed)
        models = {"naive_bayes": bayes, "svm": svm}
        learnt = [row_centred(bayes.scores(counts_NV)), row_centred(svm.scores(tfidf_NV))]
        known_NC = np.asarray(sum(scores / spread_of(scores) for scores in learnt) + _SEED_WEIGHT * seeds_NC)
    spreads = {name: spread_of(model.scores(counts_NV if name == "naive_bayes" else tfidf_NV)) for name, model in models.items()}
    seeding_rules = None if "naive_bayes" in models or guide_NC is not None else rules
    fitted = FittedLexical(task=task, bags=bags, models=models, spreads=spreads, rules=seeding_rules, spread=1.0)
    return replace(fitted, spread=spread_of(fitted._summed(rows)))


def with_lesson(known: FittedLexical, lesson: FittedLexical, rows: Sequence[TaskRow]) -> FittedLexical:
    """Return a labeller that adds what a lesson taught to what it knew, at equal spread; both were fitted on these rows.

    What is learnt from scores that are mostly one's own drifts; what was known before holds it.
    """
    if lesson.bags is None or known.bags is None:
        return known
    models, spreads = dict(lesson.models), dict(lesson.spreads)
    for name, model in known.models.items():
        spread = known.spreads[name] * known.spread / lesson.spread
        if name in models:
            model, spread = models[name].plus(model, spreads[name] / spread), spreads[name]
        models[name], spreads[name] = model, spread
    joined = replace(known, models=models, spreads=spreads, spread=1.0)
    return replace(joined, spread=spread_of(joined._summed(rows)))


def text_of(row: TaskRow) -> str:
    """Return all texts of a row as one."""
    return " ".join(row.texts.values())


def surest_of_each(scores_NC: FloatArray, share: float) -> IntArray:
    """Return the rows with the largest lead of their best label: of each label at most its even part of `share` of all rows."""
    best_N, lead_N = scores_NC.argmax(axis=1), margins(scores_NC)
    quota = int(share * len(scores_NC) / scores_NC.shape[1]) + 1
    chosen = []
    for label in range(scores_NC.shape[1]):
        members = np.flatnonzero(best_N == label)
        chosen.append(members[np.argsort(-lead_N[members], kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen))


def _word_seeds(task: TaskConfig, bags: BagOfWords, tfidf_NV: Any) -> Linear:
    """Return cosines to the labels' words as a linear model, centred and scaled by label over the rows."""
    words_CV = np.stack([mean_vectors(bags.tfidf(task.words_of(label))) for label in task.labels])
    cosines_NC = np.asarray(tfidf_NV @ words_CV.T)
    means_C, spreads_C = cosines_NC.mean(axis=0), _spreads(cosines_NC)
    weights_CV = (words_CV / spreads_C[:, None]).astype(np.float16)
    return Linear(weights_CV=weights_CV, biases_C=(-means_C / spreads_C).astype(np.float32))


def _topic_seeds(task: TaskConfig, bags: BagOfWords, tfidf_NV: Any, seed: int) -> FloatArray:
    """Return cosines to the labels' words over latent topics [N, C], centred and scaled by label over the rows."""
    topics = Topics.fit(tfidf_NV, _TOPICS, seed)
    words_CK = np.stack([topics.vectors(bags.tfidf(task.words_of(label))).mean(axis=0) for label in task.labels])
    cosines_NC = topics.vectors(tfidf_NV) @ (words_CK / (np.linalg.norm(words_CK, axis=1, keepdims=True) + 1e-9)).T
    return np.asarray((cosines_NC - cosines_NC.mean(axis=0)) / _spreads(cosines_NC))


def _spreads(cosines_NC: FloatArray) -> FloatArray:
    """Return each label's standard deviation, 1 where all rows are alike."""
    spreads_C = cosines_NC.std(axis=0)
    return np.where(spreads_C > _LEAST_SPREAD, spreads_C, 1.0)
