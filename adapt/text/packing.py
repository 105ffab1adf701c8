"""Packing documents into rows of the model's context, and the order of training data as a function of (seed, step).

Legend: D documents, P pieces, R rows.

Long documents are cut into pieces; pieces are laid into rows next-fit among a few open rows, in a seeded order. The plan
follows only from lengths, so that any step's rows are found without reading what came before (no state to save, none to lose).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from adapt.core.errors import ConfigError
from adapt.core.runtime import generator_for
from adapt.core.spans import IntArray, LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.text.tokenized_corpus import TokenizedCorpus

_OPEN_ROWS = 16
_LONGEST_MASKED_SPAN = 4


class RowSource(Protocol):
    """A fixed set of rows, each one or more readings."""

    def __len__(self) -> int: ...

    def row(self, index: int, epoch: int) -> list[Reading]: ...


@dataclass(frozen=True, kw_only=True)
class StepOrder:
    """Which rows belong to which step: epoch after epoch of seeded permutations, cut into batches."""

    n_rows: int
    batch: int
    seed: int

    def rows_at(self, step: int) -> list[tuple[int, int]]:
        """Return the (row, epoch) pairs of a step, in order."""
        found: list[tuple[int, int]] = []
        position = step * self.batch
        while len(found) < self.batch:
            epoch, offset = divmod(position, self.n_rows)
            order = generator_for("order", self.seed, epoch).permutation(self.n_rows)
            take = order[offset : offset + self.batch - len(found)]
            found.extend((int(row), epoch) for row in take)
            position += len(take)
        return found


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """Rows that the first steps of a training read."""

    source: RowSource
    steps: int


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """Which rows of which source belong to which step: those to read first, where there are some, then the others."""

    source: RowSource
    batch: int
    seed: int
    first: FirstRows | None = None

    def rows_at(self, step: int) -> tuple[RowSource, list[tuple[int, int]]]:
        """Return the source of a step, and the (row, epoch) pairs in it."""
        first_steps = 0 if self.first is None else self.first.steps
        is_first = self.first is not None and step < first_steps
        source = self.first.source if self.first is not None and is_first else self.source
        own_step = step if is_first else step - first_steps
        return source, StepOrder(n_rows=len(source), batch=self.batch, seed=self.seed).rows_at(own_step)


class PackedCorpus:
    """A tokenized corpus as rows of at most `context_length` tokens.

    The first token of a later piece of a long document is read but not predicted; a lone last token is dropped. `repeats_D`
    says how often each document comes in an epoch (absent: once).

    Raises:
        ConfigError: spans are to be masked, but there is no mask token.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        context_length: int,
        seed: int,
        span_mask_share: float,
        mask_id: int | None,
        repeats_D: IntArray | None = None,
    ) -> None:
        if span_mask_share and mask_id is None:
            raise ConfigError("pretrain.span_mask_share: this tokenizer has no <mask>; set it to 0")
        self._corpus = corpus
        self._seed = seed
        self._span_mask_share = span_mask_share
        self._mask_id = mask_id
        self._pieces_P3, self._row_ends_R = _plan(corpus.lengths_D, context_length, seed, repeats_D)

    def __len__(self) -> int:
        return len(self._row_ends_R)

    def row(self, index: int, epoch: int) -> list[Reading]:
        start = self._row_ends_R[index - 1] if index else 0
        return [self._reading(piece, epoch) for piece in range(start, self._row_ends_R[index])]

    def _reading(self, piece: int, epoch: int) -> Reading:
        document, start, length = self._pieces_P3[piece]
        ids = self._corpus.ids(int(document))[start : start + length]
        kinds = np.full(len(ids), int(Span.CONTEXT), np.int64)
        form = LabelForm.CLM
        random = generator_for("mask", self._seed, epoch, piece) if self._span_mask_share else None
        if random is not None and len(ids) > 2 and random.random() < self._span_mask_share:
            size = int(random.integers(1, min(_LONGEST_MASKED_SPAN, len(ids) - 2) + 1))
            place = int(random.integers(2, len(ids) - size + 1))
            kinds[place : place + size] = int(Span.LABEL)
            form = LabelForm.MLM
        text = SpannedText(ids_T=ids, kinds_T=kinds, domain=int(self._corpus.domains_D[document]))
        return read_with_targets(text, form, self._mask_id)


class ReadingList:
    """Readings held in memory, one to a row."""

    def __init__(self, readings: list[Reading]) -> None:
        self._readings = readings

    def __len__(self) -> int:
        return len(self._readings)

    def row(self, index: int, epoch: int) -> list[Reading]:
        return [self._readings[index]]


def _plan(lengths_D: IntArray, context_length: int, seed: int, repeats_D: IntArray | None) -> tuple[IntArray, IntArray]:
    """Return pieces as (document, start, length) grouped by row, and where each row's pieces end."""
    rows: list[list[tuple[int, int, int]]] = []
    open_rows: list[tuple[int, list[tuple[int, int, int]]]] = []
    documents = np.arange(len(lengths_D)) if repeats_D is None else np.repeat(np.arange(len(lengths_D)), repeats_D)
    for document in generator_for("packing", seed).permutation(documents):
        for start in range(0, int(lengths_D[document]), context_length):
            length = min(context_length, int(lengths_D[document]) - start)
            if length < 2:
                continue  # a lone token predicts nothing
            piece = (int(document), start, length)
            for place, (free, row) in enumerate(open_rows):
                if free >= length:
                    row.append(piece)
                    open_rows[place] = (free - length, row)
                    break
            else:
                row = [piece]
                rows.append(row)
                open_rows.append((context_length - length, row))
                if len(open_rows) > _OPEN_ROWS:
                    open_rows.pop(min(range(len(open_rows)), key=lambda i: open_rows[i][0]))
    pieces = np.asarray([piece for row in rows for piece in row], np.int64).reshape(-1, 3)
    return pieces, np.cumsum([len(row) for row in rows]).astype(np.int64)


class SomeRows:
    """At most the first `limit` rows of a source, as they are in its first epoch."""

    def __init__(self, source: RowSource, limit: int) -> None:
        self._source = source
        self._length = min(len(source), limit)

    def __len__(self) -> int:
        return self._length

    def row(self, index: int, epoch: int) -> list[Reading]:
        return self._source.row(index, 0)
