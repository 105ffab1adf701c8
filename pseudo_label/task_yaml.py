"""YAML files of tasks and prompts to plain values: labels and their words stay what was typed, and a hostile file is one line.

YAML reads `010` as 8, `1:30` as 90, `yes` as true and `~` as nothing. For every key, under `label_words`, `synonyms` and
`label_tree`, and in lists of names, what was typed is kept instead. A key that stands twice is refused, in quotes or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from adapt.core.errors import ConfigError

_AS_TYPED = ("label_words", "synonyms", "label_tree", "ensemble", "shorten", "id_paths")
_KNOWN_TAGS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_MAX_DEPTH = 20
_MAX_VALUES = 200_000  # with what aliases stand for, each time


def read_yaml(path: Path) -> Any:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, is not YAML, repeats a key, is nested deeply or refers to itself.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = yaml.SafeLoader(text)
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
    except ValueError as error:  # a number or a date that there is not
        raise ConfigError(f"{path}: not valid YAML ({error})") from error


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
            return node.value if is_typed else self._loader.construct_object(node)
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
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _problem("<< is not read here; write the keys out", key_node)
            if key in found:
                raise _problem(f"key '{key}' stands twice; merge the two", key_node)
            is_inside = key in _AS_TYPED and not isinstance(value_node, yaml.ScalarNode)  # `label_tree: null` is none
            found[key] = self.value(value_node, depth=depth + 1, is_typed=is_typed or is_inside)
        return found


def _problem(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
