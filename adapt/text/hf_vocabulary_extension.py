"""New pieces for a `tokenizer.json` with merges: its merging goes on, on domain text, as for a base of this project.

New merges come behind all old ones. So a text is first cut into old tokens, as before, and these are then joined inside the words
that the tokenizer cuts texts into; spaces before words, added tokens and their ids stay as they are. Added tokens would be
matched before all merging, inside longer words too, and would cut what lies around them anew.

Pieces of a byte-level tokenizer are bytes: a Chinese character that it spells in several tokens is joined from these, from its
first byte on. A piece may then end inside a character; every text still comes back the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapt.core.errors import CheckpointError
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.vocabulary_extension import (
    HAN,
    LATIN,
    NEVER,
    Extension,
    ExtensionConfig,
    TokenTable,
    join_pairs,
    made_of,
    table_of,
    tokens_between,
)

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
# How byte-level tokenizers write bytes (GPT-2's table): printable ones as themselves, the others from U+0100 on.
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)}


def extend_hf(tokenizer: HFTokenizer, texts: Iterable[str], config: ExtensionConfig) -> Extension:
    """Return the tokenizer with up to `pieces` new pieces, each with its merge; the same texts give the same ones.

    Raises:
        ConfigError: no pair of tokens is frequent enough.
        CheckpointError: the tokenizer does not work by merges.
    """
    description, first = tokenizer.description, tokenizer.vocab_size
    check_merges(description, tokenizer.source)
    table = _table(tokenizer, description)
    pairs = join_pairs(table, tokens_between(texts, lambda batch: _words_apart(tokenizer, batch)), config)
    new = table.pieces[first:]
    grown = tokenizer.described_as(_with_merges(description, table.pieces, pairs, first))
    if grown.vocabulary != {**tokenizer.vocabulary, **{piece: first + place for place, piece in enumerate(new)}}:
        raise CheckpointError(f"{tokenizer.source}: its tokens would not keep their ids behind new pieces; extend another base")
    return Extension(grown, new, made_of(pairs, first))


def check_merges(description: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError for a tokenizer that does not work by merges which could go on."""
    model = description.get("model")
    model = model if isinstance(model, dict) else {}
    marks = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    is_bpe = model.get("type") == "BPE" and isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list)
    if not is_bpe or marks:
        found = f"{marks[0]} is set" if is_bpe else f"its model is {model.get('type')!r}"
        raise CheckpointError(f"{source}: new pieces need a plain BPE tokenizer with merges, and {found}; extend another base")


def _words_apart(tokenizer: HFTokenizer, texts: list[str]) -> list[list[int]]:
    """Return the texts' tokens, -1 behind each word."""
    return [[token for word in words for token in (*word, -1)] for words in tokenizer.encode_words(texts)]


def _table(tokenizer: HFTokenizer, description: Mapping[str, Any]) -> TokenTable:
    written = {token: piece for piece, token in tokenizer.vocabulary.items()}
    pieces = [written.get(token, "") for token in range(tokenizer.vocab_size)]
    table = _byte_table(pieces) if _is_byte_level(description) else table_of(pieces)
    for token in [*_added_ids(description), *(token for token, piece in enumerate(pieces) if not piece)]:
        table.kinds[token] = NEVER
    return table


def _byte_table(pieces: Sequence[str]) -> TokenTable:
    written = [bytes(_BYTES[sign] for sign in piece) if set(piece) <= _BYTES.keys() else b"" for piece in pieces]
    return TokenTable(
        pieces=list(pieces),
        kinds=[_kind_of_bytes(one) for one in written],
        lengths=[sum(not _continues(byte) for byte in one) for one in written],
        leads=[not one or not _continues(one[0]) for one in written],
        follows=[not one.startswith(b" ") for one in written],
    )


def _kind_of_bytes(written: bytes) -> int:
    word = written.removeprefix(b" ")
    if word.isalpha():  # of bytes: ASCII letters
        return LATIN
    # Chinese characters are U+4E00 to U+9FFF, so E4 B8 80 to E9 BF BF; a token may hold parts of one.
    is_han = all(_continues(byte) or 0xE4 <= byte <= 0xE9 for byte in written)
    is_han = is_han and all("\u4e00" <= sign <= "\u9fff" for sign in written.decode(errors="ignore"))
    return HAN if written and is_han else NEVER


def _continues(byte: int) -> bool:
    return 0x80 <= byte < 0xC0


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    def types_of(part: Any) -> Iterable[Any]:
        if isinstance(part, dict):
            yield part.get("type")
            for inner in part.values():
                yield from types_of(inner)
        elif isinstance(part, list):
            for inner in part:
                yield from types_of(inner)

    return "ByteLevel" in types_of(description.get("pre_tokenizer")) or "ByteLevel" in types_of(description.get("decoder"))


def _added_ids(description: Mapping[str, Any]) -> list[int]:
    return [int(token["id"]) for token in description.get("added_tokens") or []]


def _with_merges(
    description: Mapping[str, Any], pieces: Sequence[str], pairs: Sequence[tuple[int, int]], first: int
) -> dict[str, Any]:
    """Return a tokenizer's description with a piece and a merge for each pair.

    Added tokens that have ids behind the vocabulary get places in it: they are counted on from its size otherwise.
    """
    model = description["model"]
    vocabulary = dict(model["vocab"])
    for token in description.get("added_tokens") or []:
        vocabulary.setdefault(token["content"], token["id"])
    vocabulary |= {piece: first + place for place, piece in enumerate(pieces[first:])}
    merges: list[Any] = [[pieces[one], pieces[other]] for one, other in pairs]
    if model["merges"] and isinstance(model["merges"][0], str):
        merges = [" ".join(merge) for merge in merges]
    return {**description, "model": {**model, "vocab": vocabulary, "merges": [*model["merges"], *merges]}}
