"""Scores candidates with a causal base: one packed row per example, a tree mask, logits only at queried nodes.

Legend: B rows, T positions, Q queries, V vocabulary.

Examples are taken in windows, sorted by size within a window, and batched under a budget of padded tokens. Memory depends on the
window and the budget, not on the number of examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from adapt.core.errors import ConfigError, DataError
from adapt.core.scorer import FloatArray
from adapt.core.spans import Reading, Span
from adapt.model.inputs import CausalBase, ModelInputs
from adapt.scoring.tree import PrefixTree, build_tree


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Batching of the scorer: it changes speed and memory, never a score."""

    max_batch_tokens: int = 8192
    window: int = 512
    logit_rows: int = 2048

    def __post_init__(self) -> None:
        if min(self.max_batch_tokens, self.window, self.logit_rows) < 1:
            raise ConfigError("max_batch_tokens, window and logit_rows must be at least 1")


class TreeScorer:
    """A `Scorer` over any causal base."""

    def __init__(self, model: CausalBase, config: ScorerConfig, device: torch.device | str = "cpu") -> None:
        self._model = model
        self._config = config
        self._device = torch.device(device)

    @property
    def context_length(self) -> int:
        return self._model.context_length

    def score(self, examples: Iterable[Sequence[Reading]], kinds: frozenset[Span]) -> Iterator[FloatArray]:
        """See `Scorer.score`.

        Raises:
            DataError: a reading is longer than the model's context.
        """
        stream = iter(examples)
        while window := list(islice(stream, self._config.window)):
            trees = [self._tree(readings, kinds) for readings in window]
            scores: dict[int, FloatArray] = {}
            for batch in self._batches(trees):
                for index, result in zip(batch, self._score_batch([trees[i] for i in batch]), strict=True):
                    scores[index] = result
            yield from (scores[index] for index in range(len(trees)))

    def _tree(self, readings: Sequence[Reading], kinds: frozenset[Span]) -> PrefixTree:
        if not readings:
            raise DataError("an example without candidates cannot be scored")
        longest = max(len(reading) for reading in readings)
        if longest > self.context_length:
            raise DataError(f"a candidate has {longest} tokens, but the model's context is {self.context_length}")
        return build_tree(readings, kinds)

    def _batches(self, trees: list[PrefixTree]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in sorted(range(len(trees)), key=lambda i: len(trees[i])):
            if batch and (len(batch) + 1) * len(trees[index]) > self._config.max_batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score_batch(self, trees: list[PrefixTree]) -> list[FloatArray]:
        output = self._model(_inputs_of(trees).to(self._device))
        rows = np.concatenate([np.full(len(t.query_nodes_Q), row) for row, t in enumerate(trees)])
        nodes = np.concatenate([t.query_nodes_Q for t in trees])
        targets = np.concatenate([t.query_targets_Q for t in trees])
        width = output.hidden_BTH.shape[1]
        # Many candidates ask the same node: its logits are made once.
        places, place_of_query = np.unique(rows * width + nodes, return_inverse=True)
        hidden = output.hidden_BTH.flatten(0, 1)[torch.from_numpy(places).to(self._device)]
        log_probs = np.empty(len(targets))
        step = self._config.logit_rows
        for start in range(0, len(places), step):
            inside = np.flatnonzero((place_of_query >= start) & (place_of_query < start + step))
            table = self._model.logits(hidden[start : start + step]).float().log_softmax(dim=-1)
            picked = table[torch.from_numpy(place_of_query[inside] - start), torch.from_numpy(targets[inside])]
            log_probs[inside] = picked.double().cpu().numpy()
        ends = np.cumsum([len(t.query_nodes_Q) for t in trees])
        return [_sum_by_candidate(t, part) for t, part in zip(trees, np.split(log_probs, ends[:-1]), strict=True)]


def _inputs_of(trees: list[PrefixTree]) -> ModelInputs:
    shape = (len(trees), max(len(tree) for tree in trees))
    ids, positions, documents, domains = (np.zeros(shape, np.int64) for _ in range(4))
    mask = None
    if any(tree.trunk < len(tree) for tree in trees):
        mask = np.zeros((*shape, shape[1]), dtype=bool)
        mask[:, np.arange(shape[1]), np.arange(shape[1])] = True  # padding attends to itself: no empty softmax
    for row, tree in enumerate(trees):
        n = len(tree)
        ids[row, :n], positions[row, :n] = tree.tokens_n, tree.depths_n
        documents[row, :n], domains[row, :n] = 1, tree.domain
        if mask is not None:
            mask[row, :n, :n] = tree.visibility()
    return ModelInputs(
        ids_BT=torch.from_numpy(ids),
        positions_BT=torch.from_numpy(positions),
        documents_BT=torch.from_numpy(documents),
        domains_BT=torch.from_numpy(domains),
        mask_BTT=None if mask is None else torch.from_numpy(mask),
        is_packed=False,
    )


def _sum_by_candidate(tree: PrefixTree, log_probs_Q: np.ndarray) -> FloatArray:
    sums = np.zeros((tree.n_candidates, len(Span)))
    np.add.at(sums, (tree.query_candidates_Q, tree.query_kinds_Q), log_probs_Q)
    return sums
