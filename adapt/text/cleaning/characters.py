"""Many short texts as one array of code points: what each is made of, and what is left of them when width and signs do not count.

A Python call per document costs more than a short document's filters; over a batch the tables here take a few nanoseconds a
character. Legend: N characters of all texts, D documents, C classes of characters.
"""

from __future__ import annotations

import enum
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]
_BMP = 0x1_0000
_TABLE = 0x11_0000
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)


class Sign(enum.IntEnum):
    """Classes of characters; each has one."""

    OTHER = 0
    HAN = 1
    KANA = 2
    HANGUL = 3
    LATIN = 4
    ACCENTED = 5  # Latin-1's upper half, in which UTF-8 read as Latin-1 ends up
    DIGIT = 6
    PUNCTUATION = 7
    SPACE = 8
    NEWLINE = 9
    BROKEN = 10  # U+FFFD, private use, half pairs, characters that are none
    CONTROL = 11
    ZERO_WIDTH = 12
    SUSPECT = 13  # Han that UTF-8 read as GBK makes of common characters, and that text hardly has


N_SIGNS = len(Sign)
# First characters of what the most common Chinese characters and signs become when UTF-8 is read as GBK.
_SUSPECT = "锛銆鈥鐨鏄涓浜鍦鎴鏈鍒涔鍚鐜绛璇鍙鑰搴缁瀹閫鍜锘锟斤烫"


@dataclass(frozen=True)
class Batch:
    """Texts one after the other: code points, where each begins, and of which text each character is."""

    texts: Sequence[str]
    codes_N: Codes
    starts_D: NDArray[np.int64]
    lengths_D: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Batch:
        codes_N = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths_D = np.fromiter(map(len, texts), np.int64, len(texts))
        return cls(texts, codes_N, np.cumsum(lengths_D) - lengths_D, lengths_D)

    @functools.cached_property
    def documents_N(self) -> NDArray[np.int64]:
        """Of which text each character is."""
        return np.repeat(np.arange(len(self.texts)), self.lengths_D)

    @functools.cached_property
    def counts_DC(self) -> NDArray[np.int64]:
        """How many characters of each class each text has, [D, C]."""
        flat = np.bincount(self.documents_N * N_SIGNS + signs()[self.codes_N], minlength=len(self.texts) * N_SIGNS)
        return flat.reshape(len(self.texts), N_SIGNS)


@functools.cache
def signs() -> NDArray[np.uint8]:
    """Return the class of every code point."""
    table = np.full(_TABLE, Sign.OTHER, np.uint8)
    for code in range(_BMP):
        table[code] = _sign_of(chr(code))
    table[0x2_0000:0x3_2400] = Sign.HAN
    table[0x1_F000:0x1_FB00] = Sign.PUNCTUATION  # pictures
    table[0xF_0000:] = Sign.BROKEN
    return table


def _sign_of(character: str) -> Sign:  # noqa: PLR0911
    code, category = ord(character), unicodedata.category(character)
    if character == "\n":
        return Sign.NEWLINE
    if character == "\ufffd" or category in ("Co", "Cs", "Cn"):
        return Sign.BROKEN
    if category.startswith("Z") or character in "\t\r":
        return Sign.SPACE
    if category == "Cf":
        return Sign.ZERO_WIDTH
    if category == "Cc":
        return Sign.CONTROL
    if character in _SUSPECT:
        return Sign.SUSPECT
    if 0x4E00 <= code < 0xA000 or 0x3400 <= code < 0x4DC0 or 0xF900 <= code < 0xFB00 or character in "〇々":
        return Sign.HAN
    if 0x3040 <= code < 0x3100 or 0x31F0 <= code < 0x3200 or 0xFF66 <= code < 0xFFA0:
        return Sign.KANA if category.startswith("L") else Sign.PUNCTUATION
    if 0xAC00 <= code < 0xD7B0 or 0x1100 <= code < 0x1200 or 0x3130 <= code < 0x3190:
        return Sign.HANGUL
    if category.startswith("N"):
        return Sign.DIGIT
    if 0x80 <= code < 0x100:
        return Sign.ACCENTED
    if category.startswith("L") and "LATIN" in unicodedata.name(character, ""):
        return Sign.LATIN
    return Sign.PUNCTUATION if category[0] in "PS" else Sign.OTHER


@functools.cache
def folds() -> Codes:
    """Return what each code point is where width, case and signs do not count: 0 for punctuation and spaces.

    Compatibility forms of one character are replaced (NFKC); those of several stay as they are.
    """
    table = np.arange(_TABLE, dtype=np.uint32)
    for code in range(_BMP):
        character = chr(code)
        plain = unicodedata.normalize("NFKC", character).lower()
        plain = plain if len(plain) == 1 else character
        table[code] = ord(plain) if unicodedata.category(plain)[0] in "LN" else 0
    table[0x1_F000:0x1_FB00] = 0
    table[0xE_0000:] = 0
    return table


def folded(text: str) -> str:
    """Return a text's letters, digits and Chinese characters only, half-width and in lower case."""
    codes = folds()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
    return codes[codes > 0].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def converter(name: str) -> Any:
    """Return OpenCC's converter, `t2s` or `s2t`.

    Raises:
        ImportError: OpenCC is not installed.
    """
    from opencc import OpenCC

    return OpenCC(name)


@functools.cache
def script_signs() -> NDArray[np.uint8]:
    """Return for every code point 1 where it is written in traditional text only, 2 in simplified text only, else 0."""
    table = np.zeros(_TABLE, np.uint8)
    han = [chr(code) for code in range(0x4E00, 0x9FA6)]
    for name, mark in (("t2s", 1), ("s2t", 2)):
        for character in han:
            if converter(name).convert(character) != character:
                table[ord(character)] = mark if not table[ord(character)] else 0  # one that is both tells nothing
    return table


def shingles(text: str, ngram: int) -> Any:
    """Return the distinct 64-bit hashes of the n-grams of a text's letters, digits and Chinese characters."""
    codes = np.frombuffer(folded(text).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(codes) < ngram:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(codes) - ngram + 1, np.uint64)
    for offset in range(ngram):
        hashes = (hashes ^ codes[offset : offset + len(hashes)]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)
