"""The settings of a configuration that differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapt.core.typed import to_plain
from pipelines.config.described import MISSING, schema
from pipelines.config.schema import PipelineConfig

# Sections and keys that say how and where a command runs, and where files are.
_OF_THE_COMMAND = {
    "run", "force", "stages", "input", "output", "engine", "scorer", "offload", "tracker", "data", "task_dir", "checkpoint"
}  # fmt: skip


def changed_settings(config: PipelineConfig) -> dict[str, str]:
    """Return the keys whose values differ from the defaults, by dotted path; those of the command itself are left out."""
    found = _differences("", to_plain(config), schema(MISSING))
    return {key: found[key] for key in sorted(found) if key.partition(".")[0] not in _OF_THE_COMMAND}


def _differences(path: str, value: Any, default: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        found: dict[str, str] = {}
        for key, inner in value.items():
            found |= _differences(f"{path}.{key}" if path else key, inner, default.get(key))
        return found
    return {} if value == default else {path: str(value)}
