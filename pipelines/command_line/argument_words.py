"""Command-line words as they were typed, put so that Hydra's grammar reads them as they were meant.

Values of text (paths, names, tasks: every key whose type is text or a list of texts) are taken letter by letter, so that Chinese
letters, spaces, `=`, commas and parentheses need no quotes of Hydra's. A comma separates the items of a `[list]`, and the points
of a sweep where one was asked for. Values in quotes, `null` and interpolations `${...}` are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from adapt.core.typed import digest_of

_QUOTES = ("'", '"')
_SWEEP = ("-m", "--multirun")
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
               "--experimental-rerun")  # fmt: skip
_SHORT = {"import_checkpoint": "tokenizer", "generate": "prompt"}  # a command's own short form of <command>.<word>
_LETTERS = "__name_"  # begins a name in letters that Hydra takes
_LONGEST_NAME = 120
_UNNAMED = re.compile(r"[^\w.,=+-]")  # what a point's name leaves out
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


def long_form(argument: str, config_name: str, *, sweeps: bool) -> str:
    """Turn `task=NAME` into `tasks=[NAME]`, in a sweep `task=A,B` into one over both, and a command's own short form into the key.

    Hydra itself would take `task` for the configuration group of that name.
    """
    key, equals, value = argument.partition("=")
    if key == _SHORT.get(config_name):
        return f"{config_name}.{argument}"
    if key != "task" or not equals:
        return argument
    names = split_at_commas(value) if sweeps else [value]
    return "tasks=" + ",".join(f"[{in_quotes(name)}]" for name in names)


def in_mapping(word: str, mappings: Mapping[str, bool], *, sweeps: bool, reads: Callable[[str], bool]) -> str:
    """Put a word about a key whose values map names, so that Hydra reads it: `pretrain.repeats.新闻=2`, `data.files={开发: a.csv}`.

    `mappings` are these keys, with whether they map to texts. A dotted name is handed on as letters that Hydra takes, to be read
    again by `name_of`, and is added to the names that are there; a whole mapping is handed on as text where it cannot be read, or
    holds texts.
    """
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    signs = key[: len(key) - len(bare)]
    path = next((path for path in mappings if bare == path or bare.startswith(f"{path}.")), None)
    if path is None or value == "null" or "${" in value:
        return word
    if bare == path:
        is_whole = value.startswith("{") and (mappings[path] or not reads(word))
        parts = re.split(r"(?<=\}),\s*(?=\{)", value) if sweeps else [value]
        return f"{key}={','.join(map(in_quotes, parts))}" if is_whole else word
    names = [_as_letters(name) for name in bare[len(path) + 1 :].split(".")]
    put = f"{signs if signs.startswith('~') else '++'}{path}.{'.'.join(names)}"
    is_text = mappings[path] and value and not (sweeps and reads(f"{path}={value}"))
    return f"{put}{equals}{_text(value, sweeps=sweeps) if is_text else value}"


def name_of(letters: str) -> str:
    """Return the name that `in_mapping` handed on as letters; others are what they are."""
    try:
        return bytes.fromhex(letters.removeprefix(_LETTERS)).decode() if letters.startswith(_LETTERS) else letters
    except ValueError:
        return letters


def shown_names(text: str) -> str:
    """Return a text of overrides with the names in it as they were typed."""
    return with_names(re.sub(r"(^|,)\+\+", r"\1", text), str)


def with_names(text: str, written: Callable[[str], str]) -> str:
    """Return a text with the names that were handed on as letters, each as `written` writes it."""
    return re.sub(rf"{_LETTERS}[0-9a-f]+", lambda found: written(name_of(found[0])), text)


def shows_settings(words: Sequence[str]) -> bool:
    """Say whether Hydra is asked to print settings, not to run."""
    return any(word in ("--cfg", "-c") or word.startswith(("--cfg=", "-c=", _INFO)) for word in words)


def point_name(varied: Sequence[str]) -> str:
    """Name a point of a sweep by the overrides that it varies, in characters that a directory's name can have.

    A value that loses others, such as the `/` of a path, gets a digest, so that points of different values have different names; so
    does a long name, which is cut.
    """
    name = ",".join(_named(shown_names(word)) for word in varied) or "point"
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest_of(list(varied))[:8]}"


def _named(word: str) -> str:
    key, equals, value = word.partition("=")
    items = [item.strip() for item in split_at_commas(value.removeprefix("[").removesuffix("]"))]
    bare = ",".join(item[1:-1] if item[:1] in _QUOTES and item[-1:] == item[:1] else item for item in items)
    is_lossy = _UNNAMED.search(bare) is not None
    return _UNNAMED.sub("", key) + equals + _UNNAMED.sub("", bare) + (f"-{digest_of(bare)[:8]}" if is_lossy else "")


def _as_letters(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII) else _LETTERS + name.encode().hex()


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
