"""Scores candidates with a causal base: shared text is read once, logits are made only at queried nodes.

Legend: B rows, T columns, Q queries, V vocabulary.

Examples are taken in windows. Within a window, rows that begin alike may be joined; rows are sorted by size and cut into batches of
little padding under a budget of tokens. Memory depends on the window and the budget, not on the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError, DataError
from adapt.core.precision import Precision
from adapt.core.scorer import FloatArray, TwoStepScores
from adapt.core.spans import IntArray, Reading, Span
from adapt.model.inputs import CausalBase, Past
from adapt.model.paging import PassesTogether
from adapt.scoring.batching import batch_cost, batches_of
from adapt.scoring.joining import joined_groups
from adapt.scoring.layout import best_cuts, best_layout, columns_of, cut_candidates, leading_inputs, packed_inputs, tail_inputs
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree import PrefixTree, build_tree

Choose = Callable[[int, FloatArray], Sequence[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A tree to be scored in one row, made of `readings`, which are those of the window at `places`.

    Nodes before `start` are read by plain causal attention, the others under a mask.
    """

    tree: PrefixTree
    readings: Sequence[Reading]
    places: IntArray
    layout: Layout
    start: int

    @property
    def tail(self) -> int:
        return len(self.tree) - self.start

    @property
    def size(self) -> tuple[str, int, int]:
        return self.layout.value, self.start, len(self.tree)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trunks:
    """The leading nodes of a batch, read once: their hidden states and what later nodes need of them."""

    starts: list[int]
    hidden_BTH: Tensor
    past: Past


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
            ConfigError: a score is not finite, in fp16.
            CheckpointError: a score is not finite, in a precision whose range is wide enough.
        """
        stream = iter(examples)
        while window := list(islice(stream, self._config.window)):
            ends = np.cumsum([len(readings) for readings in window])
            sums = np.zeros((int(ends[-1]), len(Span)))
            firsts = [0, *ends[:-1].tolist()]
            jobs = [job for first, readings in zip(firsts, window, strict=True) for job in self._jobs(first, readings, kinds)]
            for batches in self._passes(self._joined(jobs, kinds)):
                results = self._score_batches(batches)
                for job, result in zip((job for batch in batches for job in batch), results, strict=True):
                    sums[job.places] = result
            yield from np.split(sums, ends[:-1])

    def score_in_two_steps(
        self, examples: Iterable[tuple[Sequence[Reading], Sequence[Reading]]], kinds: frozenset[Span], choose: Choose
    ) -> Iterator[TwoStepScores]:
        """See `Scorer.score_in_two_steps`. What both steps share is read once, unless separate rows cost less."""
        stream, done = iter(examples), 0
        while window := list(islice(stream, self._config.window)):
            trees = [self._tree([*coarse, *fine], kinds) for coarse, fine in window]
            jobs = [
                _Job(tree=tree, readings=(), places=np.asarray([index]), layout=self._layout(tree), start=tree.trunk)
                for index, tree in enumerate(trees)
            ]
            found: dict[int, TwoStepScores] = {}
            for batch in self._batches(jobs):
                examples_here = [int(job.places[0]) for job in batch]
                starts = (
                    None if batch[0].layout is Layout.ROWS else [min(job.tree.trunk, job.tree.lengths_C.min()) for job in batch]
                )
                chunk, numbers = [window[index] for index in examples_here], [done + index for index in examples_here]
                results = self._two_steps(chunk, numbers, starts, kinds, choose)
                found.update(zip(examples_here, results, strict=True))
            yield from (found[index] for index in range(len(window)))
            done += len(window)

    def _two_steps(
        self,
        examples: Sequence[tuple[Sequence[Reading], Sequence[Reading]]],
        numbers: list[int],
        starts: list[int] | None,
        kinds: frozenset[Span],
        choose: Choose,
    ) -> list[TwoStepScores]:
        trunks = None

        def scored(readings: list[list[Reading]]) -> list[FloatArray]:
            nonlocal trunks
            if starts is None:
                return list(self.score(readings, kinds))
            trees = [self._tree(some, kinds) for some in readings]
            trunks = trunks or self._read_trunks(trees, starts)
            return self._go_on(trunks, trees)

        coarse = scored([list(coarse) for coarse, _ in examples])
        chosen = [list(choose(number, sums)) for number, sums in zip(numbers, coarse, strict=True)]
        fine = scored([[fine[place] for place in places] for (_, fine), places in zip(examples, chosen, strict=True)])
        return [
            TwoStepScores(coarse_G3=one, chosen=places, fine_F3=other)
            for one, places, other in zip(coarse, chosen, fine, strict=True)
        ]

    def _tree(self, readings: Sequence[Reading], kinds: frozenset[Span]) -> PrefixTree:
        if not readings:
            raise DataError("an example without candidates cannot be scored")
        longest = max(len(reading) for reading in readings)
        if longest > self.context_length:
            raise DataError(f"a candidate has {longest} tokens, but the model's context is {self.context_length}")
        return build_tree(readings, kinds)

    def _layout(self, tree: PrefixTree) -> Layout:
        return best_layout(tree, self._config.layout, self._model.hidden_size)

    def _jobs(self, first: int, readings: Sequence[Reading], kinds: frozenset[Span]) -> list[_Job]:
        """Lay out an example whose candidates are those of the window from `first` on."""
        tree = self._tree(readings, kinds)
        layout = self._layout(tree)
        cuts = self._cuts(tree, layout)
        if layout is not Layout.ROWS and cuts == 1:
            places = np.arange(first, first + len(readings))
            return [_Job(tree=tree, readings=readings, places=places, layout=layout, start=tree.trunk)]
        parts = _rows_of(readings) if layout is Layout.ROWS else cut_candidates(tree, cuts)
        return [_packed_job([readings[place] for place in part], first + np.asarray(part), kinds) for part in parts]

    def _joined(self, jobs: list[_Job], kinds: frozenset[Span]) -> list[_Job]:
        """Put rows that begin alike into one, where that costs less; only where the scorer chooses the layout.

        From then on, all rows but far longer ones begin their masked part where the shortest trunk of joined rows ends: so no lead
        is padded, and batches hold rows of either kind.
        """
        if self._config.layout is not Layout.AUTO:
            return jobs
        groups = joined_groups([job.tree for job in jobs], self._model.hidden_size, self._config.max_batch_tokens)
        alone = [jobs[group[0]] for group in groups if len(group) == 1]
        joined = [
            _packed_job(
                [reading for place in group for reading in jobs[place].readings],
                np.concatenate([jobs[place].places for place in group]),
                kinds,
            )
            for group in groups
            if len(group) > 1
        ]
        if not joined:
            return jobs
        start, longest = min(job.start for job in joined), max(len(job.tree) for job in joined)
        return [replace(job, start=start) if start <= job.start and len(job.tree) <= longest else job for job in [*alone, *joined]]

    def _cuts(self, tree: PrefixTree, layout: Layout) -> int:
        """Return into how many rows a tree is cut; only where the scorer chooses the layout."""
        is_free = layout is Layout.PACKED and self._config.layout is Layout.AUTO
        return best_cuts(tree, self._model.hidden_size) if is_free else 1

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        jobs = sorted(jobs, key=lambda job: job.size)
        own_cost = batch_cost(self._device.type)
        for _, some in groupby(jobs, key=lambda job: job.layout):
            alike = list(some)
            runs = batches_of([job.start for job in alike], [job.tail for job in alike], self._config.max_batch_tokens, own_cost)
            yield from (alike[run.start : run.stop] for run in runs)

    def _passes(self, jobs: list[_Job]) -> Iterator[list[list[_Job]]]:
        """Put batches together as far as one pass over the model's weights is to serve several; else each is a pass."""
        room = self._model.pass_tokens if isinstance(self._model, PassesTogether) else 0
        together: list[list[_Job]] = []
        tokens = 0
        for batch in self._batches(jobs):
            size = len(batch) * (max(job.start for job in batch) + max(job.tail for job in batch))
            if together and tokens + size > room:
                yield together
                together, tokens = [], 0
            together.append(batch)
            tokens += size
        if together:
            yield together

    @torch.inference_mode()
    def _score_batches(self, batches: list[list[_Job]]) -> list[FloatArray]:
        """Score the batches of one pass, in their order."""
        model = self._model
        if not isinstance(model, PassesTogether) or any(batch[0].layout is Layout.CACHE for batch in batches):
            return [sums for batch in batches for sums in self._score_batch(batch)]
        trees = [[job.tree for job in batch] for batch in batches]
        starts = [[job.start for job in batch] for batch in batches]
        inputs = [packed_inputs(some, places).to(self._device) for some, places in zip(trees, starts, strict=True)]
        found: list[FloatArray] = []
        for some, places, output in zip(trees, starts, model.run_together(inputs), strict=True):
            found += self._read_off(output.hidden_BTH, some, places, max(places))
        return found

    @torch.inference_mode()
    def _score_batch(self, batch: list[_Job]) -> list[FloatArray]:
        trees, starts = [job.tree for job in batch], [job.start for job in batch]
        if batch[0].layout is Layout.CACHE and min(starts) > 0:
            return self._go_on(self._read_trunks(trees, starts), trees)
        output = self._model(packed_inputs(trees, starts).to(self._device))
        return self._read_off(output.hidden_BTH, trees, starts, max(starts))

    @torch.inference_mode()
    def _read_trunks(self, trees: list[PrefixTree], starts: list[int]) -> _Trunks:
        output = self._model(leading_inputs(trees, starts).to(self._device))
        assert output.past is not None, "a base keeps its past when asked to"
        return _Trunks(starts=starts, hidden_BTH=output.hidden_BTH, past=output.past)

    @torch.inference_mode()
    def _go_on(self, trunks: _Trunks, trees: list[PrefixTree]) -> list[FloatArray]:
        hidden_BTH = trunks.hidden_BTH
        if any(len(tree) > start for tree, start in zip(trees, trunks.starts, strict=True)):
            output = self._model(tail_inputs(trees, trunks.starts, trunks.past).to(self._device))
            hidden_BTH = torch.cat([hidden_BTH, output.hidden_BTH], dim=1)
        return self._read_off(hidden_BTH, trees, trunks.starts, trunks.hidden_BTH.shape[1])

    def _read_off(self, hidden_BTH: Tensor, trees: list[PrefixTree], starts: list[int], lead: int) -> list[FloatArray]:
        """Sum the log-probabilities that the trees ask for; the tail of every row begins at column `lead`."""
        width = hidden_BTH.shape[1]
        cells = [
            row * width + columns[tree.query_nodes_Q]
            for row, (tree, columns) in enumerate(zip(trees, columns_of(trees, starts, lead), strict=True))
        ]
        targets = np.concatenate([tree.query_targets_Q for tree in trees])
        # Many candidates ask the same node: its logits are made once.
        places, place_of_query = np.unique(np.concatenate(cells), return_inverse=True)
        hidden = hidden_BTH.flatten(0, 1)[torch.from_numpy(places).to(self._device)]
        log_probs = np.empty(len(targets))
        step = self._config.logit_rows
        for start in range(0, len(places), step):
            inside = np.flatnonzero((place_of_query >= start) & (place_of_query < start + step))
            table = self._model.logits(hidden[start : start + step]).float().log_softmax(dim=-1)
            rows = torch.from_numpy(place_of_query[inside] - start).to(self._device)
            picked = table[rows, torch.from_numpy(targets[inside]).to(self._device)]
            log_probs[inside] = picked.double().cpu().numpy()
        if not np.isfinite(log_probs).all():
            raise self._not_finite()
        ends = np.cumsum([len(cell) for cell in cells])
        return [_sum_by_candidate(tree, part) for tree, part in zip(trees, np.split(log_probs, ends[:-1]), strict=True)]

    def _not_finite(self) -> ConfigError | CheckpointError:
        if self._config.precision is Precision.FP16:
            return ConfigError(
                "scorer.precision=fp16: scores are not finite, activations overflow it; use scorer.precision=bf16 or fp32"
            )
        return CheckpointError("scores are not finite: the checkpoint's weights are damaged, or its training went wrong")


def _packed_job(readings: Sequence[Reading], places: IntArray, kinds: frozenset[Span]) -> _Job:
    tree = build_tree(readings, kinds)
    return _Job(tree=tree, readings=readings, places=places, layout=Layout.PACKED, start=tree.trunk)


def _rows_of(readings: Sequence[Reading]) -> list[list[int]]:
    """Return the candidates of each row: one, or all whose equal inputs see all of themselves."""
    if not readings[0].is_bidirectional:
        return [[place] for place in range(len(readings))]
    rows: dict[bytes, list[int]] = {}
    for place, reading in enumerate(readings):
        rows.setdefault(reading.inputs_T.tobytes(), []).append(place)
    return list(rows.values())


def _sum_by_candidate(tree: PrefixTree, log_probs_Q: np.ndarray) -> FloatArray:
    sums = np.zeros((tree.n_candidates, len(Span)))
    np.add.at(sums, (tree.query_candidates_Q, tree.query_kinds_Q), log_probs_Q)
    return sums
