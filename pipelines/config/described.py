"""All keys of the configuration in words: type, range and default, for the help and for the reference of settings."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from adapt.core.registry import suggest
from adapt.core.settings import About, Leaf, about_field, leaves, options_of
from adapt.core.typed import defaults_of
from adapt.model.config import GPTConfig, HFConfig
from adapt.model.routers.settings import RouterConfig
from pipelines.config.locations import conf_dir
from pipelines.config.schema import PipelineConfig

MISSING = "???"
ROUTER = "model.router"
GROUPS = ("model", "model/router", "objective", "engine", "tracker", "experiment")
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def schema(missing: Any) -> dict[str, Any]:
    """Return all keys with their defaults; `model` has those of both kinds of model."""
    model = {"kind": "gpt", **defaults_of(GPTConfig, missing), **defaults_of(HFConfig, missing)}
    return {**defaults_of(PipelineConfig, missing), "model": model}


def keys(groups: Mapping[str, str] | None = None) -> list[Leaf]:
    """Return every key; defaults are those after the files of `groups` (group to choice) were read.

    Of the routers, the keys of the chosen one are given, or those that all have where none is.
    """
    chosen = dict(groups or {})
    defaults = schema(MISSING) | {"stages": _read(conf_dir() / "run.yaml")["stages"]}
    router = RouterConfig.choices().get(chosen.get("model/router", ""), RouterConfig)
    defaults["model"]["router"] = defaults_of(router, MISSING)
    for group, choice in chosen.items():
        file = conf_dir() / group / f"{choice}.yaml"
        if group in ("model", "objective", "engine", "tracker") and file.is_file():
            defaults[group] = _merged(defaults[group], _read(file))
    return list(leaves(PipelineConfig, defaults, chosen={ROUTER: router}))


@cache
def text_keys() -> dict[str, bool]:
    """Return the keys whose values are text, with whether they hold a list of texts."""
    found = {leaf.path: leaf.is_text_list for leaf in keys() if leaf.is_text or leaf.is_text_list}
    return {path: is_list for path, is_list in found.items() if not path.startswith(ROUTER)}


@cache
def mapping_keys() -> dict[str, bool]:
    """Return the keys whose values map names to numbers or texts, with whether it is texts."""
    found = {}
    for leaf in keys():
        values = [get_args(option)[1] for option in options_of(leaf.hint) if get_origin(option) is dict]
        if values:
            found[leaf.path] = str in values
    return found


def router_keys() -> dict[str, list[Leaf]]:
    """Return the keys of each router's own settings, its name aside."""
    found = {}
    for name, kind in sorted(RouterConfig.choices().items()):
        found[name] = [leaf for leaf in leaves(kind, defaults_of(kind, MISSING), ROUTER) if leaf.path != f"{ROUTER}.name"]
    return found


def suggest_key(path: str) -> str:
    """Return ' (did you mean ...?)' for a key that does not exist.

    It is the key of the same name in another place, else the nearest one in the last section that exists, else the nearest of all.
    """
    known = sorted({leaf.path for leaf in keys()} | {leaf.path for own in router_keys().values() for leaf in own})
    section, _, last = path.rpartition(".")
    inside: Any = schema(None)
    for part in section.split(".") if section else ():
        if not isinstance(inside, dict) or part not in inside:
            return (suggest(part, list(inside)) if isinstance(inside, dict) else "") or suggest(path, known)
        inside = inside[part]
    same = [name for name in known if name.rpartition(".")[2] == last]
    if same:
        ranks = {name: (not name.startswith(section), name.count(".")) for name in same}
        nearest = sorted(name for name, rank in ranks.items() if rank == min(ranks.values()))
        return f" (did you mean {' or '.join(map(repr, nearest[:3]))}?)"
    return (suggest(last, list(inside)) if isinstance(inside, dict) else "") or suggest(path, known)


def sections() -> Iterator[tuple[str, About]]:
    """Yield the top-level sections in their order, with what each is for."""
    for field in dataclasses.fields(PipelineConfig):
        about = about_field(PipelineConfig, field.name)
        is_section = field.name == "model" or dataclasses.is_dataclass(field.default_factory)
        if is_section and about is not None:
            yield field.name, about


def choices_of(group: str) -> list[str]:
    """Return the names that a group can be set to."""
    if group == "model/router":
        return sorted(RouterConfig.choices())
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def default_groups() -> dict[str, str]:
    """Return which choice of each group a command starts from."""
    listed = _read(conf_dir() / "run.yaml")["defaults"]
    return {
        group: choice
        for entry in listed
        if isinstance(entry, dict)
        for group, choice in entry.items()
        if group in GROUPS and choice
    }


def type_of(leaf: Leaf) -> str:
    """Return what values a key takes, in words: 'whole number, 1 or more, in steps, or null'."""
    about, options = leaf.about, options_of(leaf.hint)
    words = [_words_of(option, about) for option in options if option is not type(None)]
    if about is not None and about.range:
        words.append(about.range)
    if about is not None and about.unit:
        words.append(f"in {about.unit}")
    return ", ".join(words) + (" or null" if type(None) in options else "")


def default_of(leaf: Leaf) -> str:
    """Return a key's default as it would be typed, '' where there is none."""
    value = leaf.default
    if value == MISSING:
        return ""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else "''" if value == "" else str(value)


def says(leaf: Leaf) -> str:
    """Return a key's sentence, with the hint of what its special values do."""
    if leaf.about is None:
        return ""
    hint = leaf.about.hint
    return leaf.about.says if hint is None else f"{leaf.about.says.removesuffix('.')}; {hint}."


def _words_of(option: Any, about: About | None) -> str:
    if about is not None and about.one_of:
        return " | ".join(about.one_of)
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return " | ".join(str(member.value) for member in option)
    if get_origin(option) is list:
        return f"list of {_words_of(get_args(option)[0], about)}"
    if get_origin(option) is dict:
        return f"{{name: {_words_of(get_args(option)[1], about)}}}"
    if option is str and about is not None and about.form:
        return about.form
    return _WORDS[option]


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _merged(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _merged(defaults[key], value) if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping) else value
             for key, value in changes.items()}  # fmt: skip
    return {**defaults, **inner}
