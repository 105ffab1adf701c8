"""Settings of `pipelines.plan`: the device and the rows that memory is planned for."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.settings import Settings, setting


class PlannedDevice(enum.Enum):
    """The kind of device; `auto` is the one that training would take here."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """Planning the memory of a training."""

    device: PlannedDevice = setting(
        PlannedDevice.AUTO,
        "Device that memory is planned for: a CPU (the process itself included) or a GPU; auto is what this machine has.",
    )
    tokens: int | None = setting(
        None,
        "Tokens of a row that memory is planned for.",
        least=2,
        unit="tokens",
        hint="null fills the model's context, at most 512 of a Hugging Face model",
    )
