"""The settings of a Megatron model, from config.json or a run's arguments: typed, with defaults, and a note of what was taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapt.core.errors import CheckpointError
from adapt.model.config import Gelu


class Settings:
    """Reads settings by name; what is absent or null takes its default."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._defaults = defaults
        self._where = where
        self._taken: dict[str, Any] = {}
        self._defaulted: list[str] = []

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a count of at least 1."""
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self._where}: {name} is {value!r}, not a whole number of at least 1")
        return value

    def number(self, name: str) -> float:
        """Return a positive number."""
        value = self._take(name, None)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{self._where}: {name} is {value!r}, not a positive number")
        return float(value)

    def counts(self, name: str) -> list[int]:
        """Return a list of counts; a single number is a list of one."""
        value = self._take(name, None)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise CheckpointError(f"{self._where}: {name} is {value!r}, not a list of expert counts")
        # The public code asks only the first entry whether the model has experts at all.
        return [0] if values[0] == 0 else values

    def gelu(self) -> Gelu:
        """Return the form of GELU: fused kernels and `openai_gelu` have the tanh form, the others the error function."""
        is_fused = self._take("bias_gelu_fusion", None)
        if not isinstance(is_fused, bool):
            raise CheckpointError(f"{self._where}: bias_gelu_fusion is {is_fused!r}, not true or false")
        return Gelu.TANH if is_fused or self._values.get("openai_gelu") is True else Gelu.ERF

    def require(self, only: Mapping[str, Any]) -> None:
        """Raise CheckpointError for a setting that makes a model which ours cannot be; a tuple lists what is served."""
        for name, served in only.items():
            value = self._values.get(name)
            options = served if isinstance(served, tuple) else (served,)
            if value is not None and value not in options:
                raise CheckpointError(f"{self._where}: {name} is {value!r}, and only {options[0]!r} is served")

    def notes(self) -> dict[str, Any]:
        """Return what was read, and which of it are defaults, for the report."""
        return {"settings": dict(self._taken), "defaults": list(self._defaulted)}

    def _take(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            value = self._defaults.get(name, default)
            self._defaulted.append(name)
        if value is None:
            raise CheckpointError(f"{self._where}: {name} is missing")
        self._taken[name] = list(value) if isinstance(value, tuple) else value
        return value
