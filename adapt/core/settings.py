"""Settings that explain themselves: each field of a configuration carries its sentence, unit and range.

`setting` and `setting_of` make a dataclass's field and keep an `About` in its metadata. The range is checked where a configuration
is read (`typed.from_plain`, by dotted path) and where settings are constructed (`Settings`). Help and the reference of all settings
are written from the same metadata. What depends on several fields stays in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from adapt.core.errors import ConfigError

T = TypeVar("T")
_KEY = "about"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a setting does, in one sentence, and what values it takes; a range is that of each value of a list or mapping.

    `form` says of a text what it is of: a file, a directory. `hint` ends the line that refuses a value, and is in the help.
    """

    says: str
    unit: str | None = None
    form: str | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def range(self) -> str:
        """Return the range in words, '' where there is none: '1 or more', '0 to 1', 'more than 0', '0 or more, less than 1'."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        bounds = (
            (self.least, "{:g} or more"),
            (self.above, "more than {:g}"),
            (self.most, "at most {:g}"),
            (self.below, "less than {:g}"),
        )
        return ", ".join(words.format(bound) for bound, words in bounds if bound is not None)

    def allows(self, value: Any) -> bool:
        """Return whether one value (no list, no mapping) is in the range; infinity and NaN are in none."""
        if value is None:
            return True
        if self.one_of:
            return value in self.one_of
        if not self.range or isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def problems(self, value: Any, path: str) -> Iterator[str]:
        """Yield a line for the value, or for each value in it, that is out of range."""
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from self.problems(inner, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                yield from self.problems(inner, f"{path}[{place}]")
        elif not self.allows(value):
            finite = "a finite number, " if isinstance(value, float) and not math.isfinite(value) else ""
            wanted = f"give {finite}{self.range}" if self.range else f"it is one of {', '.join(self.one_of)}"
            yield f"{path}: {value} is out of range; {wanted}" + (f" ({self.hint})" if self.hint else "")


def about(says: str, **rules: Any) -> dict[str, About]:
    """Return the metadata of a field that has no default: `field(metadata=about("What it does.", least=1))`."""
    return {_KEY: About(says=says, **rules)}


def setting(default: T, says: str, **rules: Any) -> T:
    """Make a field with a default that cannot change; `rules` are those of `About`."""
    return cast(T, dataclasses.field(default=default, metadata=about(says, **rules)))


def setting_of(factory: Callable[[], T], says: str, **rules: Any) -> T:
    """Make a field whose default is made anew for each owner: a list, or a section of settings."""
    return cast(T, dataclasses.field(default_factory=factory, metadata=about(says, **rules)))


def about_field(kind: type[Any], name: str) -> About | None:
    """Return what a class says about a field; a field that only gives another default keeps what its base said."""
    for owner in kind.__mro__:
        field = getattr(owner, "__dataclass_fields__", {}).get(name)
        if field is not None and _KEY in field.metadata:
            return cast(About, field.metadata[_KEY])
    return None


def refuse_out_of_range(settings: Any, prefix: str = "") -> None:
    """Raise ConfigError that names all values of a dataclass which are out of their field's range."""
    problems: list[str] = []
    for field in dataclasses.fields(settings):
        found = about_field(type(settings), field.name)
        if found is not None:
            problems += found.problems(getattr(settings, field.name), f"{prefix}{field.name}")
    if problems:
        raise ConfigError("; ".join(problems))


class Settings:
    """Base of dataclasses of settings: values out of their field's range are refused at construction, all of them at once."""

    def __post_init__(self) -> None:
        refuse_out_of_range(self)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One key of a configuration: its dotted path, type, default as a plain value, and what it says of itself."""

    path: str
    hint: Any
    default: Any
    about: About | None

    @property
    def is_text(self) -> bool:
        """Whether its value is text, such as a path or a name."""
        return str in options_of(self.hint)

    @property
    def is_text_list(self) -> bool:
        """Whether its value is a list of texts."""
        return any(get_origin(option) is list and str in get_args(option) for option in options_of(self.hint))


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a union allows, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def leaves(
    kind: type[Any], defaults: Mapping[str, Any], path: str = "", chosen: Mapping[str, type[Any]] | None = None
) -> Iterator[Leaf]:
    """Yield every key of a dataclass and of the sections in it, in their order.

    `defaults` are plain values. Of a section that is one of several dataclasses, the keys of all are given, or of the one that
    `chosen` names for its path.
    """
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        place = f"{path}.{field.name}" if path else field.name
        own = (chosen or {}).get(place)
        sections = (
            [own] if own is not None else [option for option in options_of(hints[field.name]) if dataclasses.is_dataclass(option)]
        )
        default = defaults.get(field.name)
        if not sections:
            yield Leaf(path=place, hint=hints[field.name], default=default, about=about_field(kind, field.name))
        for section in sections:
            yield from leaves(cast(Any, section), default if isinstance(default, Mapping) else {}, place, chosen)
