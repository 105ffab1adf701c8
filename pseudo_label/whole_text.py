"""Prompts as one text: a row and a label are filled in and encoded together, and each token gets its kind by its place in the text.

A language model has seen a word with the space before it as one token; parts that are encoded on their own split the two. A token
that has a character of the label, or of the spaces before it, is the label's: one label's word may join the space where another's
does not, and both are asked for the same text then. Any other token has the kind of its last character. So the label's tokens are
those that lm-evaluation-harness scores as a continuation, wherever no token crosses the label's start but for spaces.

Where a text is too long, fields are cut at the borders of tokens, longest first, until every candidate fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapt.core.spans import Span, SpannedText
from adapt.text.contract import EncodedText, WholeEncoder

_MOST_TOKENS_A_BYTE = 3  # a normalizer may make a character longer


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A part of a prompt in one row, the label's without a text; `keeps_end` says which side is cut when it must be shortened.

    Spaces of a part that `ends_turn` are not the label's, though they stand before it.
    """

    text: str = ""
    kind: Span
    is_shortenable: bool = False
    keeps_end: bool = False
    ends_turn: bool = False


def spanned_texts(parts: Sequence[TextPart], words: Sequence[str], encode: WholeEncoder, bos_id: int | None) -> list[SpannedText]:
    """Return the text with each word in the label's place, after a document start; None where the text has its own."""
    return [_spanned(parts, word, encoded, bos_id) for word, encoded in zip(words, _encoded(parts, words, encode), strict=True)]


def longest_of(parts: Sequence[TextPart], words: Sequence[str], encode: WholeEncoder) -> int:
    """Return how many tokens the text has with its longest word, without a document start."""
    return max(len(encoded.ids) for encoded in _encoded(parts, words, encode))


def fitted(parts: Sequence[TextPart], words: Sequence[str], encode: WholeEncoder, room: int) -> list[TextPart] | None:
    """Cut the shortenable parts until the text fits into `room` tokens with every word; None where it cannot."""
    parts = list(parts)
    if _MOST_TOKENS_A_BYTE * (1 + max(len(_filled(parts, word).encode()) for word in words)) <= room:
        return parts
    further = 0
    while True:
        encoded = max(_encoded(parts, words, encode), key=lambda encoded: len(encoded.ids))
        excess = len(encoded.ids) - room
        if excess <= 0:
            return parts
        if not any(part.is_shortenable and part.text for part in parts):
            return None
        word = words[[len(one.ids) for one in _encoded(parts, words, encode)].index(len(encoded.ids))]
        cut = _cut(parts, word, encoded, excess + further)
        # Behind a cut, what is left may split into more tokens than before: then a little more is taken away.
        further = further + 1 if cut == parts else 0
        parts = cut


def label_shares_tokens(parts: Sequence[TextPart], word: str, encode: WholeEncoder) -> bool:
    """Return whether a token of the label holds characters of the text around it, other than spaces."""
    text, start, end = _filled(parts, word), *_label_place(parts, word)
    (encoded,) = encode([text])
    tokens = [(s, e) for s, e in zip(encoded.starts, encoded.ends, strict=True) if s < end and e > start]
    return bool(text[min(s for s, _ in tokens) : start].strip() or text[end : max(e for _, e in tokens)].strip())


def _cut(parts: list[TextPart], word: str, encoded: EncodedText, excess: int) -> list[TextPart]:
    """Take `excess` tokens away from the shortenable parts, or all that they have."""
    bounds = np.cumsum([0, *(len(_text_of(part, word)) for part in parts)])
    owner = np.searchsorted(bounds, np.maximum(np.asarray(encoded.ends) - 1, encoded.starts), side="right") - 1
    places = {i: np.flatnonzero(owner == i) for i, part in enumerate(parts) if part.is_shortenable}
    lengths = {i: len(places[i]) for i in places}
    kept = shorten(lengths, max(sum(lengths.values()) - excess, 0))
    cut = list(parts)
    for i, n in kept.items():
        if n == lengths[i] and n:
            continue
        text, tokens = parts[i].text, places[i]
        if not n:
            text = ""
        elif parts[i].keeps_end:
            text = text[max(encoded.starts[tokens[-n]] - int(bounds[i]), 0) :]
        else:
            text = text[: encoded.ends[tokens[n - 1]] - int(bounds[i])]
        cut[i] = replace(parts[i], text=text)
    return cut


def _spanned(parts: Sequence[TextPart], word: str, encoded: EncodedText, bos_id: int | None) -> SpannedText:
    kinds = np.repeat([int(part.kind) for part in parts], [len(_text_of(part, word)) for part in parts])
    starts, ends = np.asarray(encoded.starts, np.int64), np.asarray(encoded.ends, np.int64)
    label_start, label_end = _label_place(parts, word)
    turn = max((place + 1 for place, part in enumerate(parts) if part.ends_turn), default=0)
    spaces_from = sum(len(part.text) for part in parts[:turn])
    label_start = spaces_from + len(_filled(parts, word)[spaces_from:label_start].rstrip())
    last = np.clip(np.maximum(ends - 1, starts), 0, len(kinds) - 1)
    kinds_T = np.where((starts < label_end) & (ends > label_start), int(Span.LABEL), kinds[last])
    if bos_id is None:
        kinds_T[:1] = int(Span.CONTEXT)
        return SpannedText(ids_T=np.asarray(encoded.ids, np.int64), kinds_T=kinds_T.astype(np.int64))
    return SpannedText(
        ids_T=np.asarray([bos_id, *encoded.ids], np.int64), kinds_T=np.concatenate([[int(Span.CONTEXT)], kinds_T]).astype(np.int64)
    )


def _label_place(parts: Sequence[TextPart], word: str) -> tuple[int, int]:
    label = next(i for i, part in enumerate(parts) if part.kind is Span.LABEL)
    start = sum(len(part.text) for part in parts[:label])
    return start, start + len(word)


def _encoded(parts: Sequence[TextPart], words: Sequence[str], encode: WholeEncoder) -> list[EncodedText]:
    return encode([_filled(parts, word) for word in words])


def _filled(parts: Sequence[TextPart], word: str) -> str:
    return "".join(_text_of(part, word) for part in parts)


def _text_of(part: TextPart, word: str) -> str:
    return word if part.kind is Span.LABEL else part.text


def shorten(lengths: dict[int, int], room: int) -> dict[int, int]:
    """Cut the longest first, so that short parts stay whole: the water-filling of `room` tokens."""
    left, result = room, {}
    for count, (index, length) in enumerate(sorted(lengths.items(), key=lambda item: item[1])):
        share = left // (len(lengths) - count)
        result[index] = min(length, share)
        left -= result[index]
    return result
