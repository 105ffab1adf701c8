"""The labeller without a model where each row brings its own candidates: which candidate suits the text around it.

A candidate is known by its own characters and by the texts it is a candidate in. Both are vectors of latent topics: the cosine of a
text to a candidate's own words says a little; the texts where it seemed to fit then say more, each weighted by how well it fitted,
which is expectation maximisation over the row's right candidate. A text's own part in its candidates' vectors is taken off while it
is judged.

Source: expectation maximisation over ambiguously labelled examples, Jin and Ghahramani 2002 (NIPS).

Legend: N rows, W candidates of all rows, K topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.decision import softmax
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers.bag_of_words import BagOfWords, Topics, Unit
from pseudo_label.teachers.contract import padded, row_centred, spread_of

_TOPICS = 200
_ROUNDS = 2
_SHARPNESS = 5.0
_SHRINKAGE = 0.3  # texts' worth of length: a candidate with few texts says less by them
_OWN_WORDS = 2.0  # weight of a candidate's own characters beside its texts


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedCloze:
    """Topics of the domain, and a vector for each candidate of the unlabeled rows: the weighted sum of its texts' vectors."""

    task: TaskConfig
    bags: BagOfWords
    topics: Topics
    candidates: Mapping[str, int]
    texts_WK: np.ndarray
    spread: float

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`. A candidate that no unlabeled row had is judged by its own characters only."""
        return row_centred(self._fits(rows)) / self.spread

    def _fits(self, rows: Sequence[TaskRow]) -> FloatArray:
        texts_NK = self.topics.vectors(self.bags.tfidf([context_of(row, self.task) for row in rows])) if rows else np.empty((0, 0))
        own = _own_vectors(rows, self.bags, self.topics)
        nothing = np.zeros(self.texts_WK.shape[1])
        result = []
        for row, text_K in zip(rows, texts_NK, strict=True):
            places = [self.candidates.get(word) for word in row.candidates or ()]
            known = [nothing if place is None else self.texts_WK[place].astype(np.float64) for place in places]
            result.append(_fit(text_K, np.stack(known), np.stack([own[word] for word in row.candidates or ()])))
        return padded(result)

    def to_plain(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return all that was fitted as plain values and arrays."""
        plain = {"bags": self.bags.to_plain(), "candidates": list(self.candidates), "spread": self.spread}
        return plain, {"topics": self.topics.components_KV, "texts": self.texts_WK.astype(np.float16)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray], task: TaskConfig) -> FittedCloze:
        """Build what `to_plain` described."""
        return cls(
            task=task,
            bags=BagOfWords.from_plain(plain["bags"]),
            topics=Topics(arrays["topics"]),
            candidates={word: place for place, word in enumerate(plain["candidates"])},
            texts_WK=arrays["texts"],
            spread=plain["spread"],
        )


def fit_cloze(task: TaskConfig, rows: Sequence[TaskRow], seed: int, guide_NC: FloatArray | None = None) -> FittedCloze:
    """Fit the candidates' vectors on unlabeled rows (at least one); `guide_NC` are scores of these rows to start from."""
    contexts = [context_of(row, task) for row in rows]
    bags = BagOfWords.fit(contexts, Unit(task.lexical.unit))
    tfidf_NV = bags.tfidf(contexts)
    topics = Topics.fit(tfidf_NV, _TOPICS, seed)
    texts_NK = topics.vectors(tfidf_NV)
    words = list(dict.fromkeys(word for row in rows for word in row.candidates or ()))
    candidates = {word: place for place, word in enumerate(words)}
    own = _own_vectors(rows, bags, topics)
    places = [np.asarray([candidates[word] for word in row.candidates or ()]) for row in rows]
    own_rows = [np.stack([own[word] for word in row.candidates or ()]) for row in rows]
    if guide_NC is None:
        weights = [softmax(_SHARPNESS * (own_CK @ text_K)) for own_CK, text_K in zip(own_rows, texts_NK, strict=True)]
    else:
        weights = [softmax(guide_C[: len(place)]) for guide_C, place in zip(guide_NC, places, strict=True)]
    texts_WK = np.zeros((len(words), texts_NK.shape[1]))
    for round_ in range(_ROUNDS):
        texts_WK[:] = 0.0
        for place, weight, text_K in zip(places, weights, texts_NK, strict=True):
            np.add.at(texts_WK, place, weight[:, None] * text_K)
        if round_ == _ROUNDS - 1:
            break
        weights = [
            softmax(_SHARPNESS * _fit(text_K, texts_WK[place] - weight[:, None] * text_K, own_CK))
            for place, weight, text_K, own_CK in zip(places, weights, texts_NK, own_rows, strict=True)
        ]
    # Kept in 16 bits, as an export carries it, so that fitting and answering see the same numbers.
    kept = texts_WK.astype(np.float16)
    fitted = FittedCloze(task=task, bags=bags, topics=topics, candidates=candidates, texts_WK=kept, spread=1.0)
    spread = spread_of(fitted._fits(rows))
    return FittedCloze(task=task, bags=bags, topics=topics, candidates=candidates, texts_WK=kept, spread=spread)


def context_of(row: TaskRow, task: TaskConfig) -> str:
    """Return the text around a row's blank: its first field, without the mark that the answer fills."""
    name, spec = next(iter(task.fields.items()))
    return row.texts[name].replace(spec.blank, " ") if spec.blank else row.texts[name]


def _own_vectors(rows: Sequence[TaskRow], bags: BagOfWords, topics: Topics) -> dict[str, FloatArray]:
    words = list(dict.fromkeys(word for row in rows for word in row.candidates or ()))
    return dict(zip(words, topics.vectors(bags.tfidf(words)), strict=True)) if words else {}


def _fit(text_K: FloatArray, texts_CK: FloatArray, own_CK: FloatArray) -> FloatArray:
    """Return how well candidates fit a text: by the texts they fitted before, and by their own characters."""
    by_texts = texts_CK @ text_K / (np.linalg.norm(texts_CK, axis=1) + _SHRINKAGE)
    return np.asarray(by_texts + _OWN_WORDS * (own_CK @ text_K))
