"""Every setting explains itself, its stated range is enforced, and the reference of settings is current."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from adapt.core.errors import ConfigError
from adapt.core.settings import About, Leaf, Settings, about_field, options_of, setting, setting_of
from adapt.core.typed import from_plain
from adapt.model.config import GPTConfig
from adapt.model.routers.settings import RouterConfig
from pipelines.config.described import MISSING, keys, router_keys, schema, text_keys, type_of
from pipelines.config.schema import PipelineConfig
from pipelines.tools.settings_page import page

ROOT = Path(__file__).resolve().parents[2]
Values = list[tuple[Leaf, Any]]


def classes_of(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield a dataclass and all that are nested in it, every router's settings too."""
    yield kind
    for hint in get_type_hints(kind).values():
        for option in options_of(hint):
            if option is RouterConfig:
                for router in RouterConfig.choices().values():
                    yield from classes_of(router)
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                yield from classes_of(option)


CLASSES = list(dict.fromkeys(classes_of(PipelineConfig)))
FIELDS = [(kind, field.name) for kind in CLASSES for field in dataclasses.fields(kind)]
LEAVES = [*(leaf for leaf in keys() if leaf.path != "model.router.name"), *(leaf for own in router_keys().values() for leaf in own)]
RANGED = [leaf for leaf in LEAVES if leaf.about is not None and (leaf.about.range or leaf.about.one_of)]


def sentence_of(kind: type[Any], name: str) -> str:
    about = about_field(kind, name)
    assert about is not None, f"{kind.__name__}.{name} says nothing"
    return about.says


def test_every_field_says_in_one_sentence_what_it_does() -> None:
    silent = [f"{kind.__name__}.{name}" for kind, name in FIELDS if about_field(kind, name) is None]
    assert silent == []
    for kind, name in FIELDS:
        says = sentence_of(kind, name)
        assert len(says) > 15, (kind, name)
        assert says[0].isupper(), says
        assert says.endswith("."), says
        assert ". " not in says, says


def test_no_sentence_is_said_twice() -> None:
    said: dict[str, set[str]] = {}
    for kind, name in FIELDS:
        owner = next(base for base in reversed(kind.__mro__) if name in getattr(base, "__dataclass_fields__", {}))
        said.setdefault(sentence_of(kind, name), set()).add(f"{owner.__name__}.{name}")
    assert {says: places for says, places in said.items() if len(places) > 1} == {}


def test_the_keys_are_those_of_the_schema() -> None:
    def flat(plain: dict[str, Any], path: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in plain.items():
            found |= flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}"}
        return found

    assert {leaf.path for leaf in keys()} == flat(schema(MISSING)) - {"model.kind"} - {"model.router"} | {"model.router.name"}


def outside(about: About, is_whole: bool) -> list[Any]:
    """Return values just outside a range, and what is no number where numbers may have fractions."""
    step = 1 if is_whole else 0.001
    bounds = [
        (about.least, -step), (about.most, step), (about.above, 0), (about.below, 0),
    ]  # fmt: skip
    values: list[Any] = [bound + past for bound, past in bounds if bound is not None]
    values = [int(value) for value in values] if is_whole else [float(value) for value in values]
    return values + ([] if is_whole else [math.nan, math.inf]) if about.range else ["neither"]


def inside(about: About, is_whole: bool) -> list[Any]:
    """Return the bounds that belong to a range, or a value next to those that do not."""
    if about.one_of:
        return list(about.one_of)
    step = 1 if is_whole else 0.001
    values = [bound for bound in (about.least, about.most) if bound is not None]
    values += [about.above + step] if about.above is not None else []
    values += [about.below - step] if about.below is not None else []
    return [int(value) for value in values] if is_whole else [float(value) for value in values]


def problem_of(values: Values, router: str | None) -> str:
    """Return what the configuration says of values at keys: '' where it takes them."""
    plain = schema(MISSING)
    sizes = {"n_layers": 2, "hidden_size": 8, "n_heads": 2, "context_length": 8, "vocab_size": 9}
    plain["model"] = {**{key: plain["model"][key] for key in GPTConfig.__dataclass_fields__}, **sizes}
    if router is not None:
        plain["model"]["router"] = {"name": router}
    for leaf, value in values:
        section = plain
        *sections, name = leaf.path.split(".")
        for part in sections:
            section = section[part]
        is_mapping = any(getattr(option, "__origin__", None) is dict for option in options_of(leaf.hint))
        is_list = any(getattr(option, "__origin__", None) is list for option in options_of(leaf.hint))
        section[name] = {"model": value} if is_mapping else [value] if is_list else value
    try:
        from_plain(PipelineConfig, plain, "here")
    except ConfigError as error:
        return str(error)
    return ""


def whole(leaf: Leaf) -> bool:
    return "whole number" in type_of(leaf)


def at_once(values_of: Callable[[About, bool], list[Any]]) -> Iterator[tuple[Values, str | None]]:
    """Return values that one configuration can hold, the first of each key, then the second, and the router they are of."""
    for router, leaves in [(None, keys()), *router_keys().items()]:
        found = [(leaf, values_of(leaf.about, whole(leaf))) for leaf in leaves if leaf in RANGED and leaf.about is not None]
        for place in range(max((len(values) for _, values in found), default=0)):
            yield [(leaf, values[place]) for leaf, values in found if place < len(values)], router


def test_a_stated_range_is_enforced() -> None:
    seen = set()
    for values, router in at_once(outside):
        problem = problem_of(values, router)
        assert problem.count("is out of range") == len(values), problem
        for leaf, value in values:
            assert re.search(rf"(here:|;) {re.escape(leaf.path)}\b[^;]* is out of range", problem), (leaf.path, value, problem)
        seen |= {leaf.path for leaf, _ in values}
    assert seen == {leaf.path for leaf in RANGED}
    for values, router in at_once(inside):
        assert "out of range" not in problem_of(values, router), values


def test_every_number_with_a_bound_in_its_checks_states_it() -> None:
    """No class checks by hand what a field could say: a comparison of one field with a constant."""
    for kind in CLASSES:
        check = kind.__dict__.get("__post_init__")
        if check is not None and kind is not Settings:
            text = inspect.getsource(check)
            assert " < 0" not in text, kind
            assert " < 1:" not in text, kind


def test_classes_with_ranges_check_them_at_construction_too() -> None:
    by_hand = {"GPTConfig"}  # checked by `validate`
    for kind in CLASSES:
        has_range = any((about := about_field(kind, field.name)) and about.range for field in dataclasses.fields(kind))
        assert not has_range or issubclass(kind, Settings) or kind.__name__ in by_hand, kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    """A class with a setting of every kind of range."""

    heat: float = setting(180.0, "Heat.", above=0, most=300, unit="degrees C", hint="0 bakes nothing")
    trays: list[int] = setting_of(lambda: [1], "Trays.", least=1)
    minutes: dict[str, int] | None = setting(None, "Minutes.", least=0, below=600)
    mode: str = setting("air", "Mode.", one_of=("air", "grill"))


def test_all_values_out_of_range_are_named_at_once_by_dotted_path() -> None:
    plain = {"heat": 0, "trays": [1, 0], "minutes": {"bread": 600, "cake": 5}, "mode": "steam"}
    with pytest.raises(ConfigError) as refusal:
        from_plain(Oven, plain, "oven.yaml")
    assert str(refusal.value) == (
        "oven.yaml: heat: 0.0 is out of range; give more than 0, at most 300 (0 bakes nothing); trays[1]: 0 is out of range; "
        "give 1 or more; minutes.bread: 600 is out of range; give 0 or more, less than 600; "
        "mode: steam is out of range; it is one of air, grill"
    )
    with pytest.raises(ConfigError, match=r"^heat: nan .*; trays\[0\]: 0"):
        Oven(heat=math.nan, trays=[0])
    assert Oven(heat=300.0, minutes={"bread": 599}).heat == 300


def test_paths_and_names_are_text_keys() -> None:
    found = text_keys()
    for path in (
        "pseudo_label.encoder",
        "pseudo_label.teacher_file",
        "engine.hostfile",
        "run.dir",
        "model.path",
        "prompt_search.file",
    ):
        assert found[path] is False
    for path in ("data.corpus", "tasks", "study.runs", "pseudo_label.prompts", "evaluate.other_tasks"):
        assert found[path] is True
    assert "pseudo_label.teachers" not in found
    assert "seed" not in found


def test_the_reference_of_settings_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == page(), "run `python -m pipelines.settings_page`"
    for leaf in LEAVES:
        assert f"`{leaf.path}`" in written
