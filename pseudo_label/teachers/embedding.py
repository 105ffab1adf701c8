"""Embeddings as a teacher: texts and label words as vectors of any encoder, then a classifier that teaches itself.

Vectors are whitened over the unlabeled rows (mean off, main directions scaled to one), since mean hidden states of a language model
all point one way. The cosine to a label's words, centred and scaled by label, chooses the first rows to learn from.

Source: whitening of sentence vectors, Su et al. 2021 (arXiv:2103.15316).

Legend: N rows, C labels, H vector size, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers.bag_of_words import Linear, linear_svm
from pseudo_label.teachers.contract import row_centred, spread_of
from pseudo_label.teachers.lexical import surest_of_each, text_of

Encode = Callable[[Sequence[str]], FloatArray]
_DIRECTIONS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedEmbedding:
    """An encoder, the whitening of its vectors, and a linear model over them."""

    encode: Encode
    mean_H: FloatArray
    whitening_HD: FloatArray
    model: Linear
    spread: float

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`."""
        vectors_ND = _whitened(self.encode([text_of(row) for row in rows]), self.mean_H, self.whitening_HD)
        return row_centred(self.model.scores(vectors_ND)) / self.spread


def fit_embedding(
    task: TaskConfig, rows: Sequence[TaskRow], encode: Encode, seed: int, guide_NC: FloatArray | None = None
) -> tuple[FittedEmbedding, FloatArray]:
    """Fit on unlabeled rows (at least two); return the teacher and these rows' scores.

    `guide_NC` are scores of the rows to learn from in place of the label words' own.
    """
    texts_NH = encode([text_of(row) for row in rows])
    mean_H = texts_NH.mean(axis=0)
    _, sizes, directions = np.linalg.svd(texts_NH - mean_H, full_matrices=False)
    count = min(_DIRECTIONS, int((sizes > 1e-6 * sizes[0]).sum()))
    whitening_HD = directions[:count].T / (sizes[:count] / np.sqrt(len(rows)))
    vectors_ND = _whitened(texts_NH, mean_H, whitening_HD)
    if guide_NC is None:
        words = [encode(task.words_of(label)) for label in task.labels]
        words_CD = np.stack([_whitened(some, mean_H, whitening_HD).mean(axis=0) for some in words])
        cosines_NC = vectors_ND @ words_CD.T
        known_NC = (cosines_NC - cosines_NC.mean(axis=0)) / (cosines_NC.std(axis=0) + 1e-9)
    else:
        known_NC = guide_NC
    model = Linear(weights_CV=np.zeros((len(task.labels), count), np.float16), biases_C=np.zeros(len(task.labels)))
    for _ in range(1 if guide_NC is not None else task.lexical.rounds):
        chosen_N = surest_of_each(known_NC, task.lexical.share)
        labels_N = known_NC[chosen_N].argmax(axis=1)
        if len(np.unique(labels_N)) < 2:
            break
        model = linear_svm(vectors_ND[chosen_N], labels_N, len(task.labels), seed)
        known_NC = row_centred(model.scores(vectors_ND))
    learnt_NC = model.scores(vectors_ND)
    spread = spread_of(learnt_NC)
    fitted = FittedEmbedding(encode=encode, mean_H=mean_H, whitening_HD=whitening_HD, model=model, spread=spread)
    return fitted, row_centred(learnt_NC) / spread


def _whitened(vectors_NH: FloatArray, mean_H: FloatArray, whitening_HD: FloatArray) -> FloatArray:
    """Return whitened vectors [N, D] of length 1."""
    vectors_ND = (vectors_NH - mean_H) @ whitening_HD
    return np.asarray(vectors_ND / (np.linalg.norm(vectors_ND, axis=1, keepdims=True) + 1e-9))
