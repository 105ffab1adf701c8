"""Chinese quality rules over a batch of documents: which rule drops a document, if any does.

After the heuristics of C4 (Raffel et al. 2020, arXiv:1910.10683), Gopher (Rae et al. 2021, arXiv:2112.11446, A1.1) and
WanJuan-CC (Qiu et al. 2024, arXiv:2402.19282), in characters: Chinese has no words to count without a segmenter.
Legend: N characters, D documents, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapt.core.runtime import generator_for
from adapt.text.cleaning.characters import Batch, Sign, script_signs
from adapt.text.cleaning.config import Language, QualityConfig

NGRAM = 10
_LONG_ENOUGH, _LINES_ENOUGH = 100, 4
_BOILERPLATE_LINE = 60
_KANA_SHARE, _HANGUL_SHARE = 0.15, 0.2
_HASH_STEP = np.uint64(generator_for("corpus 10-grams").integers(1 << 40, 1 << 62) | 1)
Floats = NDArray[np.float64]


def verdicts(batch: Batch, config: QualityConfig) -> list[str | None]:
    """Return for each document the first rule that drops it, None where it is kept."""
    counts_DC = batch.counts_DC
    solid_D = batch.lengths_D - counts_DC[:, Sign.SPACE] - counts_DC[:, Sign.NEWLINE]
    shares_DC = counts_DC / np.maximum(solid_D, 1)[:, None]
    han_D = shares_DC[:, Sign.HAN] + shares_DC[:, Sign.SUSPECT]
    rules: list[tuple[str, NDArray[np.bool_]]] = [
        ("too short", solid_D < config.min_characters),
        ("too long", batch.lengths_D > config.max_characters),
        ("garbled", _garbled(batch, shares_DC, config.max_garbled_share)),
        ("language", _other_language(shares_DC, han_D, config.languages)),
        ("few Chinese characters", han_D < config.min_han_share),
        ("punctuation", shares_DC[:, Sign.PUNCTUATION] > config.max_punctuation_share),
        ("digits", shares_DC[:, Sign.DIGIT] > config.max_digit_share),
        ("repeated lines", _at(_repeated_lines, batch, counts_DC[:, Sign.NEWLINE] + 1 >= _LINES_ENOUGH, config.max_repeated_lines)),
        ("repeated n-grams", _repeated_ngrams_D(batch) > config.max_repeated_ngrams),
    ]
    if config.max_mixed_script is not None:
        rules.append(("mixed scripts", _mixed_D(batch) > config.max_mixed_script))
    found: list[str | None] = [None] * len(batch.texts)
    for name, dropped_D in reversed(rules):
        for place in dropped_D.nonzero()[0].tolist():
            found[place] = name
    return found


def without_boilerplate(texts: Sequence[str], phrases: Sequence[str]) -> list[str]:
    """Return the texts without their short lines that have one of the phrases."""
    found = list(texts)
    joined = "\n".join(texts)
    there = [phrase for phrase in phrases if phrase in joined]
    for place, text in enumerate(texts) if there else ():
        if any(phrase in text for phrase in there):
            lines = text.split("\n")
            kept = [line for line in lines if len(line) > _BOILERPLATE_LINE or not any(phrase in line for phrase in there)]
            found[place] = "\n".join(kept).strip() if len(kept) < len(lines) else text
    return found


def language_of(kana: float, hangul: float, han: float, latin: float) -> Language:
    """Return the language that shares of scripts show."""
    if kana > _KANA_SHARE:
        return Language.JAPANESE
    if hangul > _HANGUL_SHARE:
        return Language.KOREAN
    if han >= latin and han > 0:
        return Language.CHINESE
    return Language.LATIN if latin > 0 else Language.OTHER


def _other_language(shares_DC: Floats, han_D: Floats, kept: Sequence[Language]) -> NDArray[np.bool_]:
    if not kept:
        return np.zeros(len(han_D), np.bool_)
    kana_D, hangul_D, latin_D = shares_DC[:, Sign.KANA], shares_DC[:, Sign.HANGUL], shares_DC[:, Sign.LATIN]
    names_D = np.where(han_D > 0, Language.CHINESE.value, Language.OTHER.value)
    unlike_D = ((kana_D > _KANA_SHARE) | (hangul_D > _HANGUL_SHARE) | (han_D < latin_D) | (han_D == 0)).nonzero()[0]
    for place in unlike_D:
        names_D[place] = language_of(kana_D[place], hangul_D[place], han_D[place], latin_D[place]).value
    return ~np.isin(names_D, [language.value for language in kept])


def _garbled(batch: Batch, shares_DC: Floats, limit: float) -> NDArray[np.bool_]:
    """Say which documents have too many characters of no meaning, or decode anew to other text."""
    found_D = shares_DC[:, Sign.BROKEN] + shares_DC[:, Sign.CONTROL] > limit
    suspects_D = (shares_DC[:, Sign.SUSPECT] > limit) | (shares_DC[:, Sign.ACCENTED] > max(5 * limit, 0.1))
    for place in (suspects_D & ~found_D).nonzero()[0].tolist():
        found_D[place] = is_wrongly_decoded(batch.texts[place])
    return found_D


def is_wrongly_decoded(text: str) -> bool:
    """Say whether most of a text is UTF-8 that was read as GBK or Latin-1: it reads as Chinese when this is undone."""
    some = text[:400]
    if "锟斤拷" in some or "烫烫烫" in some:
        return True
    for encoding in ("gb18030", "latin-1", "cp1252"):
        undone = some.encode(encoding, "ignore").decode("utf-8", "ignore")
        chinese = sum("\u4e00" <= character <= "\u9fff" or character in "，。！？：；、“”" for character in undone)
        if chinese >= 2 and 4 * chinese >= len(some) - sum(character in some for character in undone if character <= "\x7f"):
            return True
    return False


def _at(measure: object, batch: Batch, asked_D: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    assert callable(measure)
    found_D = np.zeros(len(batch.texts), np.bool_)
    for place in asked_D.nonzero()[0].tolist():
        found_D[place] = measure(batch.texts[place]) > limit
    return found_D


def _repeated_lines(text: str) -> float:
    lines = [line for line in text.split("\n") if line]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= _LINES_ENOUGH else 0.0


def _repeated_ngrams_D(batch: Batch) -> Floats:
    """Return for each document the share of its n-grams that stand there before; 0 for a short one."""
    shares_D = np.zeros(len(batch.texts), np.float64)
    long = (batch.lengths_D >= _LONG_ENOUGH).nonzero()[0]
    if not len(long):
        return shares_D
    codes_N = batch.codes_N.astype(np.uint64)
    hashes_N = codes_N[: len(codes_N) - NGRAM + 1].copy()
    for offset in range(1, NGRAM):
        hashes_N *= _HASH_STEP
        hashes_N += codes_N[offset : offset + len(hashes_N)]
    for place, start, length in zip(long.tolist(), batch.starts_D[long].tolist(), batch.lengths_D[long].tolist(), strict=True):
        hashes = np.sort(hashes_N[start : start + length - NGRAM + 1])
        shares_D[place] = np.count_nonzero(hashes[1:] == hashes[:-1]) / len(hashes)
    return shares_D


def _mixed_D(batch: Batch) -> Floats:
    marks_N, documents_N = script_signs()[batch.codes_N], batch.documents_N
    traditional_D = np.bincount(documents_N[marks_N == 1], minlength=len(batch.texts))
    simplified_D = np.bincount(documents_N[marks_N == 2], minlength=len(batch.texts))
    return np.minimum(traditional_D, simplified_D) / np.maximum(traditional_D + simplified_D, 1)
