"""Dataclasses to plain values and back, with every problem reported at once by its dotted path.

Plain values (dict, list, str, int, float, bool, None) are what YAML, JSON and manifests hold. A dataclass that is one of
several registered choices (a router, say) carries a `name` field and a `choices()` class method that maps names to
classes, so that it comes back as the class it was.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.settings import about_field

T = TypeVar("T")
_MOST_BITS = 63
_LONGEST_FOUND = 200


# Metadata of a field that its class got when there were artifacts without it: it is left out while it has its default, so that
# digests of what was made before stay what they are.
ADDED_LATER = {"added_later": True}


def to_plain(value: Any) -> Any:
    """Turn a dataclass (nested in any way) into plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: to_plain(getattr(value, f.name)) for f in fields if not _is_left_out(f, getattr(value, f.name))}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(to_plain(k)): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return ADDED_LATER.keys() <= field.metadata.keys() and value == field.default


def from_plain(kind: type[T], value: Any, where: str) -> T:
    """Build a dataclass from plain values.

    Raises:
        ConfigError: unknown and missing keys, wrong types and values out of range, all in one message, each by its dotted path.
    """
    problems: list[str] = []
    built = _build(kind, value, "", problems)
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return typing.cast(T, built)


def digest_of(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON form (keys sorted)."""
    text = json.dumps(to_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _build(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _build_union(kind, value, path, problems)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path, problems)
    if origin in (list, tuple):
        return _build_sequence(kind, origin, value, path, problems)
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(f"{path}: expected a mapping, found {_found(value)}")
            return None
        inner = typing.get_args(kind)[1]
        return {str(k): _build(inner, v, f"{path}.{k}", problems) for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            problems.append(f"{path}: '{value}' is not one of {', '.join(str(m.value) for m in kind)}")
            return None
    return _build_scalar(kind, value, path, problems)


def _build_union(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    attempts: list[list[str]] = []
    for option in options:
        if option is type(None):
            continue
        trial: list[str] = []
        built = _build(option, value, path, trial)
        if not trial:
            return built
        attempts.append(trial)
    attempts.sort(key=len)
    problems.extend(attempts[0])  # those of the option that was meant
    return None


def _build_sequence(kind: Any, origin: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        problems.append(f"{path}: expected a list, found {_found(value)}")
        return None
    inner = typing.get_args(kind)[0]
    items = [_build(inner, v, f"{path}[{i}]", problems) for i, v in enumerate(value)]
    return tuple(items) if origin is tuple else items


def _build_dataclass(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{path or 'top level'}: expected a mapping, found {_found(value)}")
        return None
    if hasattr(kind, "choices"):
        choices, name = kind.choices(), value.get("name", kind.name)
        if not isinstance(name, str) or name not in choices:
            problems.append(f"{_join(path, 'name')}: unknown '{name}'{suggest(str(name), sorted(choices))}")
            return None
        kind = choices[name]
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in value:
        if key not in fields:
            problems.append(f"{_join(path, key)}: unknown key{suggest(str(key), list(fields))}")
    arguments = {}
    before = len(problems)
    for name, field in fields.items():
        if name in value:
            arguments[name] = _build(hints[name], value[name], _join(path, name), problems)
            said = about_field(kind, name)
            if said is not None:
                problems += said.problems(arguments[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{_join(path, name)}: missing")
    if len(problems) > before:
        return None
    try:
        return kind(**arguments)
    except ConfigError as error:
        is_of_field = str(error).partition(":")[0].partition(".")[0].partition("=")[0] in fields
        problems.append(str(error) if not path else f"{path}.{error}" if is_of_field else f"{path}: {error}")
        return None


def _build_scalar(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        problems.append(f"{path}: a number of {value.bit_length()} bits, which nothing here can be")
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: expected {kind.__name__}, found {_found(value)}")
    return None


def _found(value: Any) -> str:
    """Return an unexpected value as text, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= _LONGEST_FOUND else f"{text[:_LONGEST_FOUND]} ..."


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def defaults_of(kind: type[Any], missing: Any) -> dict[str, Any]:
    """Return a dataclass's defaults as plain values, with `missing` for fields that have none.

    A section's defaults are those that its owner gives it; where these are of one of several choices, only what all have in common
    is returned, since another may be chosen.
    """
    hints = typing.get_type_hints(kind)
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        is_section = dataclasses.is_dataclass(hint) and isinstance(hint, type)
        given = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.default is not dataclasses.MISSING:
            plain[field.name] = to_plain(field.default)
        elif is_section and type(given) is not hint:
            plain[field.name] = defaults_of(hint, missing)
        elif given is not None:
            plain[field.name] = to_plain(given)
        else:
            plain[field.name] = missing
    return plain
