"""Bags of words: texts to counts and TF-IDF vectors, and the linear models that are trained on them.

Words are n-grams of characters where texts have no spaces (Chinese, Japanese, Thai), else words and pairs of words. This is the
only file that imports scikit-learn, and it does so when something is fitted or read back.

Sources: TF-IDF with sublinear counts as in Manning, Raghavan and Schuetze 2008 (Introduction to Information Retrieval, 6.4); latent
semantic analysis, Deerwester et al. 1990; complement naive Bayes, Rennie et al. 2003 (ICML).

Legend: N texts, V features, C labels, K components.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

SparseMatrix = Any
_SMOOTHING = 0.5  # pseudo-counts of naive Bayes
_SVM_COST = 0.3  # weight of an error beside the margin
_MAX_COUNTS, _MAX_TFIDF = 60_000, 100_000
_LEAST_SCORE = -50.0  # of a label that no row was given
_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class Unit(enum.Enum):
    """What n-grams are made of; `auto` takes characters where most letters belong to a script without spaces."""

    AUTO = "auto"
    CHARACTERS = "characters"
    WORDS = "words"


def unit_of(texts: Sequence[str]) -> Unit:
    """Return what the texts' n-grams are made of, judged by at most the first 1,000 texts."""
    letters = [c for text in texts[:1000] for c in text[:200] if c.isalpha()]
    unspaced = sum(unicodedata.name(c, "").startswith(_SCRIPTS_WITHOUT_SPACES) for c in letters)
    return Unit.CHARACTERS if 2 * unspaced >= len(letters) else Unit.WORDS


class BagOfWords:
    """Vectorisers fitted on texts: presence of n-grams for naive Bayes, TF-IDF of longer ones for everything else."""

    def __init__(self, counts: CountVectorizer, tfidf: TfidfVectorizer, unit: Unit) -> None:
        self._counts = counts
        self._tfidf = tfidf
        self.unit = unit

    @classmethod
    def fit(cls, texts: Sequence[str], unit: Unit = Unit.AUTO) -> BagOfWords:
        """Choose the features by how many texts have them. A feature is left out when hardly any text or most texts have it."""
        unit = unit_of(texts) if unit is Unit.AUTO else unit
        least = 3 if len(texts) >= 2000 else 2 if len(texts) >= 50 else 1
        counts = _count_vectoriser(unit, min_df=least, max_features=_MAX_COUNTS)
        tfidf = _tfidf_vectoriser(unit, min_df=least, max_df=0.5 if len(texts) >= 50 else 1.0, max_features=_MAX_TFIDF)
        return cls(counts.fit(texts), tfidf.fit(texts), unit)

    def counts(self, texts: Sequence[str]) -> SparseMatrix:
        """Return which n-grams occur in each text [N, V], 0 or 1."""
        return self._counts.transform(texts)

    def tfidf(self, texts: Sequence[str]) -> SparseMatrix:
        """Return TF-IDF vectors [N, V] of length 1."""
        return self._tfidf.transform(texts)

    def to_plain(self) -> dict[str, Any]:
        """Return all that was fitted as plain values."""
        return {
            "unit": self.unit.value,
            "counts": list(self._counts.get_feature_names_out()),
            "tfidf": list(self._tfidf.get_feature_names_out()),
            "idf": [float(value) for value in self._tfidf.idf_],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BagOfWords:
        """Build what `to_plain` described."""
        unit = Unit(plain["unit"])
        counts = _count_vectoriser(unit, vocabulary=plain["counts"])
        tfidf = _tfidf_vectoriser(unit, vocabulary=plain["tfidf"])
        tfidf.idf_ = np.asarray(plain["idf"])
        return cls(counts, tfidf, unit)


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A linear model: scores = x W^T + b. Weights are kept in 16 bits, since an export carries them."""

    weights_CV: np.ndarray
    biases_C: np.ndarray

    def scores(self, x_NV: SparseMatrix) -> FloatArray:
        """Return scores [N, C]."""
        return np.asarray(x_NV @ self.weights_CV.astype(np.float64).T + self.biases_C.astype(np.float64))

    def plus(self, other: Linear, factor: float) -> Linear:
        """Return the model whose scores are these plus `factor` times the other's, over the same features."""
        weights_CV = self.weights_CV.astype(np.float32) + np.float32(factor) * other.weights_CV.astype(np.float32)
        biases_C = self.biases_C + np.float32(factor) * other.biases_C
        return Linear(weights_CV=weights_CV.astype(self.weights_CV.dtype), biases_C=biases_C.astype(self.biases_C.dtype))


def naive_bayes(counts_NV: SparseMatrix, labels_N: IntArray, n_labels: int) -> Linear:
    """Fit a complement naive Bayes model; a label that no row has gets a score far below the others'."""
    from sklearn.naive_bayes import ComplementNB

    model = ComplementNB(alpha=_SMOOTHING).fit(counts_NV, labels_N)
    weights, biases = model.feature_log_prob_, np.zeros(len(model.classes_))
    return _spread_over(model.classes_, weights, biases, n_labels)


def linear_svm(tfidf_NV: SparseMatrix, labels_N: IntArray, n_labels: int, seed: int) -> Linear:
    """Fit a linear support vector machine, one label against the rest."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=_SVM_COST, random_state=seed).fit(tfidf_NV, labels_N)
    weights, biases = model.coef_, np.broadcast_to(model.intercept_, len(model.coef_))
    if len(model.classes_) == 2:
        weights, biases = np.concatenate([-weights, weights]), np.concatenate([-biases, biases])
    return _spread_over(model.classes_, weights, biases, n_labels)


class Topics:
    """Latent semantic analysis: TF-IDF vectors to K directions in which texts of a domain differ."""

    def __init__(self, components_KV: np.ndarray) -> None:
        self.components_KV = components_KV

    @classmethod
    def fit(cls, tfidf_NV: SparseMatrix, components: int, seed: int) -> Topics:
        """Find at most `components` directions; fewer where there are fewer texts or features."""
        from sklearn.decomposition import TruncatedSVD

        most = min(components, min(tfidf_NV.shape) - 1)
        if most < 1:
            return cls(np.zeros((1, tfidf_NV.shape[1]), np.float16))
        with np.errstate(invalid="ignore", divide="ignore"):  # texts that are all the same have no variance to explain
            model = TruncatedSVD(most, random_state=seed).fit(tfidf_NV)
        return cls(np.ascontiguousarray(model.components_, dtype=np.float16))

    def vectors(self, tfidf_NV: SparseMatrix) -> FloatArray:
        """Return vectors [N, K] of length 1 (0 for a text without a known word)."""
        from sklearn.preprocessing import normalize

        return np.asarray(normalize(np.asarray(tfidf_NV @ self.components_KV.astype(np.float64).T)))


def mean_vectors(tfidf_NV: SparseMatrix) -> FloatArray:
    """Return the mean of vectors [V], scaled to length 1."""
    from sklearn.preprocessing import normalize

    return np.asarray(normalize(np.asarray(tfidf_NV.mean(axis=0)).reshape(1, -1))[0])


def _spread_over(classes: IntArray, weights: FloatArray, biases: FloatArray, n_labels: int) -> Linear:
    """Place the rows of a model that saw some of the labels among all labels."""
    all_weights = np.zeros((n_labels, weights.shape[1]), np.float16)
    all_biases = np.full(n_labels, _LEAST_SCORE, np.float32)
    all_weights[classes], all_biases[classes] = weights, biases
    return Linear(weights_CV=all_weights, biases_C=all_biases)


def _count_vectoriser(unit: Unit, **settings: Any) -> CountVectorizer:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(**_analysis(unit, longest=2), binary=True, dtype=np.float64, **settings)


def _tfidf_vectoriser(unit: Unit, **settings: Any) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(**_analysis(unit, longest=3 if unit is Unit.CHARACTERS else 2), sublinear_tf=True, **settings)


def _analysis(unit: Unit, longest: int) -> dict[str, Any]:
    if unit is Unit.CHARACTERS:
        return {"analyzer": "char", "ngram_range": (1, longest)}
    return {"analyzer": "word", "ngram_range": (1, longest), "token_pattern": r"(?u)\b\w+\b"}
