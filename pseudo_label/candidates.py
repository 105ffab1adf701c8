"""The order of a prompt's candidates: labels, groups of the label tree, synonyms. No other file knows it.

Legend: N rows, C candidates, L labels, G groups, S synonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskConfig, TaskRow


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates of a task under one prompt.

    `labels` are the task's (empty where rows bring candidates of their own), `groups` the words of the label tree's groups where
    they are asked about, `synonyms` the further words of labels, `owners` the place of each synonym's label.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    synonyms: tuple[str, ...]
    owners: tuple[int, ...]

    @classmethod
    def of(cls, task: TaskConfig, prompt: str, *, with_groups: bool = False) -> Candidates:
        synonyms = task.synonyms_of(prompt)
        return cls(
            labels=tuple(task.labels),
            groups=tuple(task.label_tree or {}) if with_groups else (),
            synonyms=tuple(word for _, word in synonyms),
            owners=tuple(task.labels.index(label) for label, _ in synonyms),
        )

    def ordered(self, labels: Sequence[Any], groups: Sequence[Any], synonyms: Sequence[Any]) -> list[Any]:
        """Return what belongs to each candidate (words, tokens, ...) in the candidates' order; groups only where asked about."""
        return [*labels, *(groups if self.groups else ()), *synonyms]

    def labels_of(self, values: Any) -> Any:
        """Return the labels' part of an array or list over candidates."""
        return values[: len(values) - len(self.groups) - len(self.synonyms)]

    def groups_of(self, values: Any) -> Any:
        """Return the groups' part of an array or list over candidates."""
        end = len(values) - len(self.synonyms)
        return values[end - len(self.groups) : end]

    def synonyms_of(self, values: Any) -> Any:
        """Return the synonyms' part of an array or list over candidates."""
        return values[len(values) - len(self.synonyms) :]

    def group_places(self) -> range:
        """Return the places of the groups among all candidates."""
        return range(len(self.labels), len(self.labels) + len(self.groups))

    def places_asked(self, row: TaskRow) -> list[int]:
        """Return the places of the candidates that a row is read with: all, or its shortlist's labels and their synonyms."""
        if row.shortlist is None:
            return list(range(len(self.labels) + len(self.groups) + len(self.synonyms)))
        assert not self.groups, "a shortlist leaves groups nothing to do"
        kept = set(row.shortlist)
        return [*row.shortlist, *(len(self.labels) + place for place, owner in enumerate(self.owners) if owner in kept)]

    def mean_over_words(self, keys_C: FloatArray) -> npt.NDArray[np.floating]:
        """Return each label's mean key [L] over its own word and its synonyms."""
        own_L = self.labels_of(keys_C)
        if not self.synonyms:
            return own_L
        n_words_L = 1 + np.bincount(self.owners, minlength=len(own_L))
        return (own_L + np.bincount(self.owners, weights=self.synonyms_of(keys_C), minlength=len(own_L))) / n_words_L
