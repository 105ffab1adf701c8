"""`python -m pipelines.machines_page [output=docs/machines.md]`: which model trains on which machine, by the planner's figures.

For every size and machine the settings are tried from the fastest on: optimizer state in memory before paged, nothing recomputed
before blocks recomputed, large micro-batches before small ones. The first that fits is the cell. Tokens a second are arithmetic at
an assumed rate, plus the time in which a paged optimizer's state is read and written once a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from adapt.checkpoint.offload import OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.core.faults import writable
from adapt.core.precision import Precision
from adapt.core.typed import from_plain
from adapt.model.config import GPTConfig, Recompute
from adapt.train.engine_config import EngineConfig
from pipelines.config.locations import conf_dir

if TYPE_CHECKING:
    from adapt.model.counting import ParameterCounts
    from adapt.train.memory_plan import OwnModel

SIZES = (
    "125m_moe64",
    "0.35b_dense",
    "0.35b_moe64",
    "0.35b_moe128",
    "13b_study",
    "1.3b_dense",
    "1.3b_moe32",
    "1.3b_moe64",
    "1.3b_moe128",
    "16b_pyramid",
    "2.7b_dense",
    "2.7b_moe64",
    "3.6b_dense",
    "3.6b_moe64",
    "6.7b_dense",
)
_STEP_TOKENS = 524_288
_BATCHES = (16, 8, 4, 2, 1)
_HEAD = """# Which machine do I need?

All weights of a model trained with AdamW, rows of the model's whole context, by the figures of `python -m pipelines.plan`. Every
cell is **planned**: none was measured on the machine of its column. `python -m pipelines.bench plan` compares plans of smaller
models with measured peaks. Written by `python -m pipelines.machines_page`.

A cell names the memory for each rank, and the setting that fits: rows at a time, blocks computed again in the backward pass
(`engine.activation_checkpointing`), the optimizer's state and gradients in files (`offload.optimizer=paged`, on CPUs only), weights
in files too (`offload.trained_weights=mapped`), experts shared by all cards (`engine.expert_parallel`). Where nothing fits, it says
how much the smallest setting needs for each rank.
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine: memory that system and framework leave to each rank, operations reached a second, the disk's rate."""

    name: str
    says: str
    ranks: int
    memory_gb: float
    tflops: float
    disk_gb_per_s: float
    disk_gb: float = 2000
    precision: Precision
    is_cpu: bool = False


MACHINES = (
    Machine(
        name="24 GB, CPU",
        says="2 cores without bf16, 20 GB left, 0.1 TFLOP/s reached, disk 0.5 GB/s",
        ranks=1,
        memory_gb=20,
        tflops=0.1,
        disk_gb_per_s=0.5,
        precision=Precision.FP32,
        is_cpu=True,
    ),
    Machine(
        name="one card of 80 GB",
        says="75 GB left, 94 TFLOP/s reached (30 % of an A100's 312)",
        ranks=1,
        memory_gb=75,
        tflops=94,
        disk_gb_per_s=3,
        precision=Precision.BF16,
    ),
    Machine(
        name="one card of 141 GB",
        says="135 GB left, 297 TFLOP/s reached (30 % of an H200's 989)",
        ranks=1,
        memory_gb=135,
        tflops=297,
        disk_gb_per_s=3,
        precision=Precision.BF16,
    ),
    Machine(
        name="8 cards of 80 GB",
        says="75 GB of each left, 94 TFLOP/s of each reached",
        ranks=8,
        memory_gb=75,
        tflops=94,
        disk_gb_per_s=3,
        precision=Precision.BF16,
    ),
)


@dataclass(frozen=True, kw_only=True)
class MachinesConfig:
    """Where the page goes."""

    output: str = "docs/machines.md"


def write(config: MachinesConfig) -> int:
    """Write the page."""
    place = Path(config.output)
    with writable(place):
        place.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """Return the page as Markdown."""
    lines = [_HEAD, "| machine | assumed |", "|---|---|", *(f"| {machine.name} | {machine.says} |" for machine in MACHINES), ""]
    lines += [
        "| `model=` | billion weights | active | " + " | ".join(machine.name for machine in MACHINES) + " |",
        "|---" * (3 + len(MACHINES)) + "|",
    ]
    for name in SIZES:
        size = Size.of(name)
        cells = " | ".join(size.on(machine) for machine in MACHINES)
        lines.append(f"| `{name}` | {size.counts.total / 1e9:.2f} | {size.counts.active / 1e9:.2f} | {cells} |")
    lines.append(
        f"\nTokens a second count steps of {_STEP_TOKENS:,} tokens. A token costs 6 floating-point operations for "
        "each active weight,\nand 12 for each layer, hidden unit and token of context in attention; a third more where all is "
        "computed again. Where\nthe optimizer is paged, its files are read and written once a step."
    )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model with all that a plan must know of it."""

    own: OwnModel

    @classmethod
    def of(cls, name: str) -> Size:
        """Return a preset of conf/model."""
        from adapt.train.memory_plan import OwnModel  # imports torch

        plain = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
        model: GPTConfig = from_plain(GPTConfig, plain, name)
        return cls(own=OwnModel.of(model))

    @property
    def model(self) -> GPTConfig:
        return self.own.config

    @property
    def counts(self) -> ParameterCounts:
        return self.own.counts

    def on(self, machine: Machine) -> str:
        """Return how the model fits into a machine and how fast, or how much the smallest setting needs."""
        from adapt.train.memory_plan import plan_own  # imports torch

        least = float("inf")
        for engine, offload in self._settings(machine):
            plan = plan_own(self.own, engine, offload, on_cpu=machine.is_cpu)
            if plan.total <= machine.memory_gb * 1e9 and plan.scratch <= machine.disk_gb * 1e9:
                said = f"{plan.total / 1e9:.0f} GB, {_by(engine, offload, plan.scratch)}"
                return f"{said}; {self._rate(engine, plan.scratch, machine)} tokens/s"
            least = min(least, plan.total)
        return f"no: {least / 1e9:,.0f} GB"

    def _settings(self, machine: Machine) -> Iterator[tuple[EngineConfig, OffloadConfig]]:
        """Yield settings, the fastest first."""
        paged = OffloadConfig(optimizer=OptimizerIn.PAGED)
        mapped = replace(paged, trained_weights=TrainedWeightsIn.MAPPED)
        offloads = [OffloadConfig(), *([paged, mapped] if machine.is_cpu else [])]
        base = EngineConfig(
            world_size=machine.ranks,
            precision=machine.precision,
            zero_stage=0 if machine.is_cpu else 2,
            expert_parallel=machine.ranks if any(self.model.expert_counts()) else 1,
        )
        for offload, recompute, micro_batch in itertools.product(offloads, Recompute, _BATCHES):
            yield replace(base, activation_checkpointing=recompute, micro_batch=micro_batch), offload

    def _rate(self, engine: EngineConfig, scratch: float, machine: Machine) -> str:
        """Return planned tokens a second, two digits."""
        passes = 8 if engine.activation_checkpointing is Recompute.FULL else 6
        attention = 2 * self.model.n_layers * self.model.hidden_size * self.model.context_length
        compute = _STEP_TOKENS * passes * (self.counts.active + attention) / (machine.tflops * 1e12 * machine.ranks)
        return f"{float(f'{_STEP_TOKENS / (compute + 2 * scratch / (machine.disk_gb_per_s * 1e9)):.2g}'):,.0f}"


def _by(engine: EngineConfig, offload: OffloadConfig, scratch: float) -> str:
    parts = [f"{engine.micro_batch} row{'s' if engine.micro_batch > 1 else ''}"]
    if engine.activation_checkpointing is not Recompute.NONE:
        parts.append(f"{engine.activation_checkpointing.value} recomputation")
    if engine.expert_parallel > 1:
        parts.append("experts shared")
    if scratch:
        what = "mapped" if offload.trained_weights is TrainedWeightsIn.MAPPED else "paged"
        parts.append(f"{what}, {scratch / 1e9:.0f} GB of files")
    return ", ".join(parts)
