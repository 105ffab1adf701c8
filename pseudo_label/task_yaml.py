"""YAML files of tasks and prompts to plain values: labels and their words stay what was typed, and a hostile file is one line.

YAML reads `010` as 8, `1:30` as 90, `yes` as true and `~` as nothing. For every key, under `label_words`, `synonyms` and
`label_tree`, and in lists of names, what was typed is kept instead. A key that stands twice is refused, in quotes or not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from adapt.core.errors import ConfigError
from adapt.text.rows.json_rows import refuse_odd_text

_AS_TYPED = ("label_words", "synonyms", "label_tree", "ensemble", "shorten", "id_paths")
_KNOWN_TAGS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_MAX_DEPTH = 20
_MAX_NODES = 50_000
_MOST_BYTES = 1 << 22
_SHOWN = 40
_MAX_VALUES = 200_000  # with what aliases stand for, each time


def read_yaml(path: Path) -> Any:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, is not YAML, repeats a key, is nested deeply or refers to itself.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; a file of a task has at most {_MOST_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _Reading(loader).value(node, depth=0, is_typed=False)
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8; save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML ({problem})") from error
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """A loader that stops where nodes lie too deep or are too many, before the rest of the file is looked at."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._composed += 1
        if self._depth > _MAX_DEPTH + 1 or self._composed > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem="is nested too deeply, or has too many values", problem_mark=self.get_mark())
        found: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return found


class _Reading:
    """Nodes to values, with a count of all that was made."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._made = 0

    def value(self, node: yaml.Node, *, depth: int, is_typed: bool) -> Any:
        self._made += 1
        if depth > _MAX_DEPTH or self._made > _MAX_VALUES:
            raise _problem("is nested too deeply, refers to itself, or says too much by aliases", node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, is_typed=is_typed)
        if node.tag not in _KNOWN_TAGS:
            raise _problem(f"the tag {node.tag} is not read", node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth=depth + 1, is_typed=is_typed) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _problem("a key is a list or a mapping; give a plain one", key_node)
            key = key_node.value
            _refuse_odd(key_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _problem("<< is not read here; write the keys out", key_node)
            if key in found:
                raise _problem(f"key '{key}' stands twice; merge the two", key_node)
            is_inside = key in _AS_TYPED and not isinstance(value_node, yaml.ScalarNode)  # `label_tree: null` is none
            found[key] = self.value(value_node, depth=depth + 1, is_typed=is_typed or is_inside)
        return found

    def _scalar(self, node: yaml.ScalarNode, *, is_typed: bool) -> Any:
        _refuse_odd(node)
        if is_typed:
            return node.value
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise _problem(f"'{node.value[:_SHOWN]}' is not what {node.tag.rpartition(':')[2]} says", node) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _problem(f"{node.value} is no finite number", node)
        return value


def _refuse_odd(node: yaml.ScalarNode) -> None:
    try:
        refuse_odd_text(node.value, "it")
    except ValueError as error:
        raise _problem(str(error), node) from None


def _problem(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
