"""Command lines that configure no pipeline: `key=value` words to a dataclass, with the same answers to mistakes as elsewhere."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.runtime import set_up_logging
from adapt.core.typed import from_plain
from pipelines.ranks.launch import USER_ERROR_CODE

T = TypeVar("T")
_HELP = ("-h", "--help")


def run_plainly(kind: type[T], act: Callable[[T], int], usage: str, first_word: str | None = None) -> int:
    """Read the command line into `kind` and do `act` with it; return the exit code, 2 after one line for a mistake.

    `first_word` names the key that a bare first word stands for.
    """
    words = sys.argv[1:]
    if any(word in _HELP for word in words):
        sys.stdout.write(usage.strip() + "\n")
        return 0
    set_up_logging()
    try:
        return act(parsed(kind, words, first_word))
    except AdaptError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR_CODE
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130


def parsed(kind: type[T], words: list[str], first_word: str | None = None) -> T:
    """Turn `key=value` words into a dataclass; text stays text, `[a,b]` is a list, `a` one of one item, the rest is YAML.

    Raises:
        ConfigError: a word is no pair, a key is unknown, missing or given twice, or a value has the wrong type.
    """
    if words and first_word is not None and "=" not in words[0]:
        words = [f"{first_word}={words[0]}", *words[1:]]
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{word}': expected key=value")
        _put(values, key, _value(text, _hint(kind, key), word), word)
    return from_plain(kind, values, "command line")


def _hint(kind: Any, key: str) -> Any:
    """Return the type of a field; a dotted key leads into a field that is a dataclass itself."""
    name, _, inner = key.partition(".")
    hint = typing.get_type_hints(kind).get(name)
    if not inner:
        return hint
    return _hint(hint, inner) if dataclasses.is_dataclass(hint) else None


def _put(values: dict[str, object], key: str, value: object, word: str) -> None:
    *sections, name = key.split(".")
    inside: Any = values
    for section in sections:
        inside = inside.setdefault(section, {})
        if not isinstance(inside, dict):
            raise ConfigError(f"'{word}': {section} is given twice")
    if name in inside:
        raise ConfigError(f"'{word}': {key} is given twice")
    inside[name] = value


def _value(text: str, hint: Any, word: str) -> object:
    if hint is str or str in typing.get_args(hint) and typing.get_origin(hint) is not list:
        return text
    inner = next((one for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is list), None)
    if inner is not None and typing.get_args(inner) == (str,):
        return [part.strip() for part in text.removeprefix("[").removesuffix("]").split(",") if part.strip()]
    try:
        value = yaml.safe_load(text)
        return [value] if inner is not None and isinstance(value, int | float) else value
    except yaml.YAMLError as error:
        raise ConfigError(f"'{word}': the value cannot be read") from error
