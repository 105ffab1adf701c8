"""Dataclasses survive the way to plain values and back, and every problem is named by its dotted path."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import ConfigError
from adapt.core.typed import defaults_of, digest_of, from_plain, to_plain
from adapt.model.routers.contract import RouterConfig, all_routers
from adapt.model.routers.top1 import Top1Config


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    radius_m: float
    colour: Colour = Colour.RED


@dataclass(frozen=True, kw_only=True)
class Spring:
    length_m: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Car:
    name: str
    wheels: tuple[Wheel, ...]
    spare: Wheel | None = None
    seats: dict[str, Wheel] = field(default_factory=dict)
    loads_kg: list[float] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    place: Path = Path("garage")
    doors: int = 4
    is_sold: bool = False
    extra: Any = None


@dataclass(frozen=True, kw_only=True)
class Sparse:
    experts: list[int]
    router: RouterConfig = field(default_factory=Top1Config)


@dataclass(frozen=True, kw_only=True)
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ConfigError(f"number: {self.number} is odd")


@dataclass(frozen=True, kw_only=True)
class Evens:
    evens: list[Even]


FULL = Car(
    name="甲",
    wheels=(Wheel(radius_m=0.3), Wheel(radius_m=0.4, colour=Colour.BLUE)),
    spare=Wheel(radius_m=1.0),
    seats={"front": Wheel(radius_m=2.0, colour=Colour.BLUE)},
    loads_kg=[1.5, 2.0],
    notes={"a": ["x", "y"], "b": []},
    place=Path("/tmp/somewhere"),
    doors=2,
    is_sold=True,
    extra={"any": [1, None, "thing"]},
)


@pytest.mark.parametrize("car", [FULL, Car(name="", wheels=())])
def test_a_nested_dataclass_comes_back_as_it_was(car: Car) -> None:
    assert from_plain(Car, to_plain(car), "here") == car


def test_plain_values_survive_json() -> None:
    plain = to_plain(FULL)
    assert json.loads(json.dumps(plain)) == plain
    assert from_plain(Car, json.loads(json.dumps(plain)), "here") == FULL


def test_tuples_come_back_as_tuples_and_paths_as_paths() -> None:
    back = from_plain(Car, to_plain(FULL), "here")
    assert isinstance(back.wheels, tuple)
    assert isinstance(back.loads_kg, list)
    assert isinstance(back.place, Path)
    assert back.wheels[1].colour is Colour.BLUE


@pytest.mark.parametrize("name", sorted(all_routers()))
def test_a_router_config_comes_back_as_the_class_it_was(name: str) -> None:
    config = Sparse(experts=[4, 8], router=all_routers().get(name).config())
    back = from_plain(Sparse, to_plain(config), "here")
    assert back == config
    assert type(back.router) is all_routers().get(name).config


def test_an_unknown_choice_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"router\.name: unknown 'topp1' \(did you mean 'top1'\?\)"):
        from_plain(Sparse, {"experts": [], "router": {"name": "topp1"}}, "here")


def test_all_problems_are_reported_at_once_by_dotted_path() -> None:
    broken = {
        "wheels": [{"radius_m": "wide"}, {"radius_m": 1, "colour": "pink"}, "round"],
        "spare": {"colour": "red"},
        "seats": {"front": {"radius_m": []}},
        "loads_kg": 3,
        "notes": {"a": ["x", 1]},
        "doors": "two",
        "is_sold": 1,
        "trunk": True,
    }
    with pytest.raises(ConfigError) as caught:
        from_plain(Car, broken, "car.yaml")
    message = str(caught.value)
    assert message.startswith("car.yaml: ")
    paths = {problem.split(":")[0] for problem in message.removeprefix("car.yaml: ").split("; ")}
    assert paths == {
        "name",
        "wheels[0].radius_m",
        "wheels[1].colour",
        "wheels[2]",
        "spare.radius_m",
        "seats.front.radius_m",
        "loads_kg",
        "notes.a[1]",
        "doors",
        "is_sold",
        "trunk",
    }


def test_a_wrong_enum_value_lists_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="colour: 'pink' is not one of red, blue"):
        from_plain(Wheel, {"radius_m": 1.0, "colour": "pink"}, "here")


def test_a_misspelled_key_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"colur: unknown key \(did you mean 'colour'\?\)"):
        from_plain(Wheel, {"radius_m": 1.0, "colur": "red"}, "here")


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(Wheel, {"radius_m": 1.0, "zzzz": "red"}, "here")
    assert "zzzz: unknown key" in str(caught.value)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("value", [True, False, 1.0, "4", None])
def test_only_whole_numbers_are_int_and_bool_is_none(value: object) -> None:
    with pytest.raises(ConfigError, match="doors: expected int"):
        from_plain(Car, {"name": "a", "wheels": [], "doors": value}, "here")


@pytest.mark.parametrize("value", [True, "wide", None, [1.0]])
def test_a_float_is_no_bool_and_no_word(value: object) -> None:
    with pytest.raises(ConfigError, match="radius_m: expected float"):
        from_plain(Wheel, {"radius_m": value}, "here")


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), (0.5, 0.5), ("1e-3", 1e-3)])
def test_a_float_is_read_from_whole_numbers_and_from_what_yaml_leaves_as_text(value: object, number: float) -> None:
    built = from_plain(Wheel, {"radius_m": value}, "here")
    assert built.radius_m == number
    assert isinstance(built.radius_m, float)


@pytest.mark.parametrize("value", [1, "true", None])
def test_only_true_and_false_are_bool(value: object) -> None:
    with pytest.raises(ConfigError, match="is_sold: expected bool"):
        from_plain(Car, {"name": "a", "wheels": [], "is_sold": value}, "here")


def test_none_is_allowed_only_where_the_type_says_so() -> None:
    assert from_plain(Car, {"name": "a", "wheels": [], "spare": None}, "here").spare is None
    with pytest.raises(ConfigError, match="name: expected str"):
        from_plain(Car, {"name": None, "wheels": []}, "here")


@pytest.mark.parametrize("value", [[], "text", None, 3])
def test_something_else_than_a_mapping_at_the_top_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="top level: expected a mapping"):
        from_plain(Wheel, value, "here")


def test_problems_that_a_dataclass_finds_itself_are_gathered_too() -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain(Evens, {"evens": [{"number": 1}, {"number": 2}, {"number": 3}]}, "here")
    assert "evens[0].number: 1 is odd" in str(caught.value)
    assert "evens[2].number: 3 is odd" in str(caught.value)
    assert "evens[1]" not in str(caught.value)


def test_the_digest_ignores_the_order_of_keys_at_every_depth() -> None:
    one = {"a": 1, "b": {"x": [1, 2], "y": None}}
    two = {"b": {"y": None, "x": [1, 2]}, "a": 1}
    assert digest_of(one) == digest_of(two)


@pytest.mark.parametrize("other", [{"a": [2, 1]}, {"a": [1, 2, 3]}, {"a": ["1", 2]}, {"b": [1, 2]}, {"a": [1, 2], "b": None}])
def test_the_digest_tells_different_values_apart(other: dict[str, object]) -> None:
    assert digest_of({"a": [1, 2]}) != digest_of(other)


def test_a_dataclass_and_its_plain_form_have_the_same_digest() -> None:
    assert digest_of(FULL) == digest_of(to_plain(FULL))


def test_defaults_mark_the_fields_that_have_none() -> None:
    defaults = defaults_of(Car, "???")
    assert defaults["name"] == "???"
    assert defaults["wheels"] == "???"
    assert defaults["doors"] == 4
    assert defaults["seats"] == {}
    assert defaults["place"] == "garage"
    assert defaults_of(Wheel, "???") == {"radius_m": "???", "colour": "red"}


def test_the_defaults_of_a_section_are_those_that_its_owner_gives_it() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pair:
        front: Spring = field(default_factory=lambda: Spring(length_m=0.5))
        rear: Spring = field(default_factory=Spring)

    assert defaults_of(Pair, "???") == {"front": {"length_m": 0.5}, "rear": {"length_m": 0.1}} == to_plain(Pair())
