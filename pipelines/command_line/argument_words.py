"""Command-line words as they were typed, put so that Hydra's grammar reads them as they were meant.

Values of text (paths, names, tasks: every key whose type is text or a list of texts) are taken letter by letter, so that Chinese
letters, spaces, `=`, commas and parentheses need no quotes of Hydra's. A comma separates the items of a `[list]`, and the points
of a sweep where one was asked for. Values in quotes, `null` and interpolations `${...}` are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_QUOTES = ("'", '"')
_SWEEP = ("-m", "--multirun")
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
               "--experimental-rerun")  # fmt: skip
_INFO = "--info"
_INFO_KINDS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def is_sweep(words: Sequence[str]) -> bool:
    return any(word in _SWEEP for word in words)


def flags_first(words: Sequence[str]) -> list[str]:
    """Put flags with their values before settings, which is the only order that Hydra takes."""
    flags: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in _WITH_VALUE and rest:
            flags += [word, rest.pop(0)]
        elif word == _INFO:
            flags.append(f"{_INFO}={rest.pop(0) if rest and rest[0] in _INFO_KINDS else 'all'}")
        elif word.startswith("-"):
            flags.append(word)
        else:
            settings.append(word)
    return flags + settings


def as_typed(word: str, texts: Mapping[str, bool], *, sweeps: bool, reads: Callable[[str], bool]) -> str:
    """Put the value of `key=value` into quotes where it is text, or where Hydra could not read it.

    `texts` are the keys of text, with whether they hold a list; `reads` says whether Hydra's grammar takes a word.
    """
    key, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"\+{0,2}[\w./@]+", key) or value in ("", "null", "[]") or "${" in value:
        return word
    is_list = texts.get(key.lstrip("+"))
    if is_list is not None and not (sweeps and reads(word)):
        return f"{key}={_list_of_text(value, sweeps=sweeps) if is_list else _text(value, sweeps=sweeps)}"
    if is_list and not value.startswith("["):
        return f"{key}={_list_of_text(value, sweeps=sweeps)}"
    if is_list is not None or value[:1] in _QUOTES or reads(word):
        return word
    if value.startswith("[") and value.endswith("]"):
        return f"{key}={_list_of_text(value, sweeps=False)}"
    return f"{key}={in_quotes(value)}"


def in_quotes(text: str) -> str:
    """Return text in quotes of Hydra's, unless it is in quotes already."""
    if text[:1] in _QUOTES and len(text) > 1 and text.endswith(text[0]):
        return text
    # Backslashes are letters, but before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def _text(value: str, *, sweeps: bool) -> str:
    return ",".join(in_quotes(part) for part in split_at_commas(value)) if sweeps else in_quotes(value)


def _list_of_text(value: str, *, sweeps: bool) -> str:
    if sweeps:
        points = re.split(r"(?<=\]),(?=\[)", value) if value.startswith("[") else split_at_commas(value)
        return ",".join(_list_of_text(point, sweeps=False) for point in points)
    if not (value.startswith("[") and value.endswith("]")):
        return f"[{in_quotes(value)}]"
    return f"[{','.join(in_quotes(item.strip()) for item in split_at_commas(value[1:-1]) if item.strip())}]"


def split_at_commas(text: str) -> list[str]:
    """Split at the commas that are in no quotes."""
    return re.findall(r"((?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^,])+)", text)
