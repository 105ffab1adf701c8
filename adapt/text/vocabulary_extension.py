"""New pieces for a trained BPE model: merging goes on, on domain text, from where its training ended.

The tokens of the domain's texts are merged pair by pair, the most frequent first, as in training (Sennrich et al. 2016,
arXiv:1508.07909), but starting from the old tokens. New pieces score below all old ones. So text is first cut as before, and its
old tokens are then joined: every new piece is made of old ones, of which its embedding can be the mean (as Gee et al. 2022,
arXiv:2210.05271, set them). Pieces are of Chinese characters only, or of Latin letters only. The most frequent pairs of a round are
merged together where they share no token: some dozen rounds do what thousands would. `extend` is for SentencePiece models,
`hf_vocabulary_extension` for a `tokenizer.json`. Legend: N tokens of all texts, V tokens known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting
from adapt.text.contract import TextTokenizer
from adapt.text.tokenizer import Tokenizer

NEVER, HAN, LATIN = 0, 1, 2
_ROUND_SHARE, _ROUND_FALL = 0.05, 0.5
_ENCODE_BATCH = 512
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ExtensionConfig(Settings):
    """Extending a base's vocabulary by pieces of domain text."""

    pieces: int = setting(2000, "How many new pieces the vocabulary gets at most.", least=1, unit="pieces")
    min_count: int = setting(20, "How often a new piece occurs in the text at least.", least=2)
    max_characters: int = setting(8, "Longest new piece.", least=2, unit="characters")
    max_documents: int = setting(200_000, "Documents of data.corpus that pieces are taken from.", least=1, unit="documents")
    held_out_share: float = setting(0.01, "Share of the documents that only measure what is saved.", above=0, below=1)


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new pieces behind its old ones; for each new one the old tokens that it is made of."""

    tokenizer: TextTokenizer
    pieces: list[str]
    old_tokens: list[list[int]]

    @property
    def first(self) -> int:
        """The first new token; the others follow."""
        return self.tokenizer.vocab_size - len(self.pieces)


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """What joining has to know of tokens, by their ids; joined ones are added behind.

    `kinds` join with their own kind, `NEVER` with none. `lengths` are in characters. A token can `lead` a new piece, or `follow`
    in one.
    """

    pieces: list[str]
    kinds: list[int]
    lengths: list[int]
    leads: list[bool]
    follows: list[bool]

    def join(self, one: int, other: int) -> None:
        self.pieces.append(self.pieces[one] + self.pieces[other])
        self.kinds.append(self.kinds[one])
        self.lengths.append(self.lengths[one] + self.lengths[other])
        self.leads.append(self.leads[one])
        self.follows.append(self.follows[one])


def extend(tokenizer: Tokenizer, texts: Iterable[str], config: ExtensionConfig) -> Extension:
    """Return the tokenizer with up to `pieces` new pieces; the same texts give the same ones.

    Raises:
        ConfigError: no pair of tokens is frequent enough.
    """
    table = table_of(tokenizer.pieces(range(tokenizer.vocab_size)))
    pairs = join_pairs(table, tokens_between(texts, tokenizer.encode_documents), config)
    new = table.pieces[tokenizer.vocab_size :]
    return Extension(tokenizer.with_pieces(new), new, made_of(pairs, tokenizer.vocab_size))


def join_pairs(table: TokenTable, ids_N: Ids, config: ExtensionConfig) -> list[tuple[int, int]]:
    """Join the most frequent pairs of the texts' tokens, add them to the table, and return them in their order.

    Raises:
        ConfigError: no pair of tokens is frequent enough.
    """
    taken = set(table.pieces)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < config.pieces:
        chosen = _frequent_pairs(ids_N, table, taken, config, config.pieces - len(pairs))
        if not chosen:
            break
        first = len(table.pieces)
        for one, other in chosen:
            table.join(one, other)
        taken.update(table.pieces[first:])
        pairs += chosen
        ids_N = _merged(ids_N, chosen, first)
    if not pairs:
        raise ConfigError(
            f"extend_vocabulary.min_count: no pair of tokens occurs {config.min_count} times; lower it, or give more text"
        )
    return pairs


def made_of(pairs: Sequence[tuple[int, int]], first: int) -> list[list[int]]:
    """Return for each pair, of which the first is token `first`, the tokens before `first` that it consists of."""
    found: list[list[int]] = []
    for pair in pairs:
        found.append([old for token in pair for old in ([token] if token < first else found[token - first])])
    return found


def tokens_between(texts: Iterable[str], encode: Callable[[list[str]], Iterable[Sequence[int]]]) -> Ids:
    """Return all texts' tokens in one row, -1 between texts; `encode` gives those of a batch of texts."""
    parts: list[Ids] = []
    rest = iter(texts)
    while batch := list(islice(rest, _ENCODE_BATCH)):
        parts += [np.asarray([*ids, -1], np.int64) for ids in encode(batch)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def table_of(pieces: Sequence[str]) -> TokenTable:
    """Return the table of pieces that are written as text, U+2581 for the space."""
    return TokenTable(
        pieces=list(pieces),
        kinds=[kind_of(piece) for piece in pieces],
        lengths=[len(piece) for piece in pieces],
        leads=[True] * len(pieces),
        follows=[not piece.startswith("\u2581") for piece in pieces],
    )


def kind_of(piece: str) -> int:
    """Return the kind of a piece that is written as text."""
    if all("\u4e00" <= sign <= "\u9fff" for sign in piece):
        return HAN
    return LATIN if piece.removeprefix("\u2581").isascii() and piece.removeprefix("\u2581").isalpha() else NEVER


def _frequent_pairs(ids_N: Ids, table: TokenTable, taken: set[str], config: ExtensionConfig, most: int) -> list[tuple[int, int]]:
    """Return the most frequent pairs that may be pieces, no token in two of them, the most frequent first."""
    if len(ids_N) < 2:
        return []
    known, kinds_V = table.pieces, np.asarray(table.kinds)
    left_N, right_N = ids_N[:-1], ids_N[1:]
    fits_N = (left_N >= 0) & (right_N >= 0)
    fits_N &= (kinds_V[left_N] > 0) & (kinds_V[left_N] == kinds_V[right_N])
    size = len(known)
    pairs, counts = np.unique(left_N[fits_N] * size + right_N[fits_N], return_counts=True)
    order = np.lexsort((pairs, -counts))
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    limit = max(1, int(most * _ROUND_SHARE)) if most > 20 else most
    top = 0
    for place in order:
        if counts[place] < max(config.min_count, _ROUND_FALL * top) or len(chosen) == limit:
            break
        one, other = divmod(int(pairs[place]), size)
        piece = known[one] + known[other]
        is_short = table.lengths[one] + table.lengths[other] <= config.max_characters
        is_new = piece not in taken and is_short and table.leads[one] and table.follows[other]
        if is_new and not used & {one, other}:
            top = top or int(counts[place])
            chosen.append((one, other))
            used |= {one, other}
    return chosen


def _merged(ids_N: Ids, chosen: Sequence[tuple[int, int]], first: int) -> Ids:
    """Return the tokens with each chosen pair replaced by one token, from left to right."""
    partner = np.full(first, -2, np.int64)
    made = np.zeros(first, np.int64)
    for number, (one, other) in enumerate(chosen):
        partner[one], made[one] = other, first + number
    known_N = np.maximum(ids_N[:-1], 0)
    hits = np.flatnonzero((ids_N[:-1] >= 0) & (partner[known_N] == ids_N[1:]))
    if len(hits):  # of a token that pairs with itself, every second place in a row of them
        starts_run = np.concatenate([[True], np.diff(hits) > 1])
        run_starts = hits[np.maximum.accumulate(np.where(starts_run, np.arange(len(hits)), 0))]
        hits = hits[(hits - run_starts) % 2 == 0]
    result = ids_N.copy()
    result[hits] = made[ids_N[hits]]
    return np.delete(result, hits + 1)
