"""Plug-ins are found by folder and by name; a wrong name gets a suggestion and a broken plug-in is never hidden."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adapt.core.errors import ConfigError
from adapt.core.registry import Registry, import_folder, suggest


def animals() -> Registry[int]:
    registry: Registry[int] = Registry("animal")
    registry.register("zebra")(1)
    registry.register("aardvark")(2)
    return registry


def test_an_entry_is_found_by_its_name() -> None:
    assert animals().get("zebra") == 1
    assert animals().get("aardvark") == 2


def test_registering_gives_the_entry_back_unchanged() -> None:
    registry: Registry[type] = Registry("class")

    @registry.register("one")
    class One:
        pass

    assert registry.get("one") is One


def test_a_name_taken_twice_is_refused_and_the_first_entry_stays() -> None:
    registry = animals()
    with pytest.raises(ConfigError, match="animal 'zebra' is registered twice"):
        registry.register("zebra")(3)
    assert registry.get("zebra") == 1


def test_an_unknown_name_is_refused_with_a_suggestion_and_the_whole_list() -> None:
    with pytest.raises(ConfigError) as caught:
        animals().get("zebar")
    message = str(caught.value)
    assert "unknown animal 'zebar'" in message
    assert "did you mean 'zebra'?" in message
    assert "there are: aardvark, zebra" in message


def test_names_are_sorted_whatever_the_order_of_registration() -> None:
    assert animals().names() == ["aardvark", "zebra"]
    assert list(animals()) == animals().names()


def test_an_empty_registry_says_that_there_is_nothing() -> None:
    registry: Registry[int] = Registry("animal")
    assert list(registry) == []
    with pytest.raises(ConfigError, match="unknown animal 'zebra'"):
        registry.get("zebra")


def test_nothing_is_suggested_for_a_name_like_no_other() -> None:
    assert suggest("qqqq", ["zebra", "aardvark"]) == ""
    assert suggest("qqqq", []) == ""


def planted_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **modules: str) -> str:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    for module, text in modules.items():
        (package / f"{module}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(package)


def test_every_module_of_a_folder_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = f"from pathlib import Path\nwith Path({str(tmp_path / 'log')!r}).open('a') as log: print(__name__, file=log)\n"
    place = planted_package(tmp_path, monkeypatch, "planted_plugins", first=count, second=count)
    for _ in range(2):
        import_folder("planted_plugins", [place])
    assert sorted((tmp_path / "log").read_text().split()) == ["planted_plugins.first", "planted_plugins.second"]
    assert "planted_plugins.second" in sys.modules


def test_the_error_of_a_broken_module_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = planted_package(tmp_path, monkeypatch, "planted_broken", broken="import a_package_that_is_nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere"):
        import_folder("planted_broken", [place])
