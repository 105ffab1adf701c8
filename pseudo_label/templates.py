"""Templates of prompts: literal text, `{field}` and one `{label}`; anything else in braces is refused."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest

LABEL_SLOT = "label"


def template_pieces(template: str, fields: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yield (literal text, the field or `label` that follows it, if one does).

    Raises:
        ConfigError: a brace is open, a name is unknown, or something is said of how a field is to be formatted.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{error}; write {{{{ or }}}} for a brace that is text") from error
    for literal, name, spec, conversion in pieces:
        if name is not None and (spec or conversion):
            typed = f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
            raise ConfigError(f"'{{{typed}}}': a field is put in as it is; write '{{{name}}}'")
        if name is not None and name != LABEL_SLOT and name not in fields:
            known = ", ".join(fields)
            raise ConfigError(f"unknown field '{name}'{suggest(name, [*fields, LABEL_SLOT])}; there are: {known}")
        yield literal, name


def no_field(fields: Collection[str]) -> str:
    """Return what is wrong with a template that reads no field: the model would answer without the row."""
    return f"has no text of the row; write a field in braces ({', '.join(f'{{{name}}}' for name in fields)})"
