"""Personal data as patterns with their checks, masked by a sign that says the kind.

Resident identity numbers (GB 11643-1999, ISO 7064 MOD 11-2), bank cards (ISO/IEC 7812, Luhn), mobile numbers, plates (GA 36-2018)
and mail addresses. Full-width digits and letters count. Only documents that can have one are looked at: with seven digits, or an @.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import numpy as np

from adapt.text.cleaning.characters import Batch, Sign
from adapt.text.cleaning.config import Personal

_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_WEIGHTS, _CHECKS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2), "10X98765432"
_AT = np.asarray([ord("@"), ord("＠")], np.uint32)
_LEAST_DIGITS = 4  # of a plate with two letters in its number
# Searches that fail fast: most documents have no wide letter, no long number and nothing like a plate.
_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠]")
_NUMBER = re.compile(r"\d[\d -]{9}")
_PLATE_END = re.compile("[A-HJ-NP-Z][·•. ]?[A-HJ-NP-Z0-9]{5}")
MASKS = {
    Personal.ID_NUMBER: "[身份证号]",
    Personal.BANK_CARD: "[银行卡号]",
    Personal.MOBILE: "[手机号]",
    Personal.PLATE: "[车牌号]",
    Personal.MAIL: "[邮箱]",
}
_PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_DATE = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])"
_PATTERNS = {
    Personal.MAIL: re.compile(
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}"
    ),
    Personal.ID_NUMBER: re.compile(rf"(?<![0-9A-Za-z])[1-9]\d{{5}}{_DATE}\d{{3}}[0-9Xx](?![0-9A-Za-z])"),
    Personal.BANK_CARD: re.compile(r"(?<![\d.])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{1,3})?(?![\d.])"),
    Personal.MOBILE: re.compile(r"(?<![\d.])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?![\d.]\d|\d)"),
    Personal.PLATE: re.compile(f"[{_PROVINCES}][A-HJ-NP-Z][·•. ]?[A-HJ-NP-Z0-9]{{5}}[A-HJ-NP-Z0-9挂学警]?(?![A-Za-z0-9])"),
}


def is_id_number(number: str) -> bool:
    """Say whether the last sign of an identity number is that of its 17 digits."""
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number[:17], strict=True))
    return _CHECKS[total % 11] == number[17].upper()


def is_card_number(number: str) -> bool:
    """Say whether a number of 16 to 19 digits, spaces and hyphens aside, passes Luhn's check."""
    digits = [int(sign) for sign in number if sign.isdigit()]
    if not 16 <= len(digits) <= 19:
        return False
    doubled = [digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_plate(number: str) -> bool:
    return sum(sign.isdigit() for sign in number) >= _LEAST_DIGITS


_HOLDS: dict[Personal, Callable[[str], bool]] = {
    Personal.ID_NUMBER: is_id_number,
    Personal.BANK_CARD: is_card_number,
    Personal.PLATE: _is_plate,
}


def masked(batch: Batch, kinds: Collection[Personal], found: dict[str, int], counted: Sequence[bool] | None = None) -> list[str]:
    """Return the texts with personal data of these kinds masked; `found` counts them by kind, in the texts that are `counted`."""
    texts: list[str] = list(batch.texts)
    if not kinds:
        return texts
    numbers = [kind for kind in Personal if kind in kinds and kind is not Personal.MAIL]
    has_digits_D = batch.counts_DC[:, Sign.DIGIT] >= _LEAST_DIGITS
    has_at_D = np.zeros(len(texts), np.bool_)
    if Personal.MAIL in kinds:
        has_at_D[batch.documents_N[np.isin(batch.codes_N, _AT)]] = True
    for place in (has_digits_D | has_at_D).nonzero()[0].tolist():
        counts = found if counted is None or counted[place] else {}
        texts[place] = _mask(texts[place], numbers, counts) if has_digits_D[place] else texts[place]
        texts[place] = _mask(texts[place], [Personal.MAIL], counts) if has_at_D[place] else texts[place]
    return texts


def _mask(text: str, kinds: Sequence[Personal], found: dict[str, int]) -> str:
    for kind in _possible(text, kinds):
        narrow = text.translate(_NARROW) if _WIDE.search(text) else text  # character for character: places stay
        holds, end, pieces = _HOLDS.get(kind), 0, []
        for match in _PATTERNS[kind].finditer(narrow):
            if holds is None or holds(match[0]):
                pieces += [text[end : match.start()], MASKS[kind]]
                end = match.end()
                found[kind.value] = found.get(kind.value, 0) + 1
        text = "".join([*pieces, text[end:]]) if pieces else text
    return text


def _possible(text: str, kinds: Sequence[Personal]) -> list[Personal]:
    """Return the kinds of which a text may have one."""
    if _WIDE.search(text) or kinds == [Personal.MAIL]:
        return list(kinds)
    has_number, has_plate = _NUMBER.search(text) is not None, _PLATE_END.search(text) is not None
    return [kind for kind in kinds if (has_plate if kind is Personal.PLATE else has_number)]
