"""Refusing a training that does not fit, with the nearest setting that does: what every training does before it starts.

A plan is compared with `engine.memory_gb`, where it is given, and where ranks compute on CPUs with what the system lets them take
(`ulimit -v`, control groups). Settings are tried in the order of how much they change; each computes the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig, OptimizerIn
from adapt.core.errors import ConfigError
from adapt.core.limits import MemoryLimit, memory_limits
from adapt.model.config import GPTConfig, Recompute
from adapt.model.expert_parallel import check_share
from adapt.model.gpt import GPT
from adapt.model.lora_config import LoraConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.frozen_weights import can_map
from adapt.train.hf_memory_plan import plan_traced, trace_foreign
from adapt.train.memory_plan import OwnModel, plan_own
from adapt.train.optimizer_config import Algorithm, OptimizerConfig
from adapt.train.train_config import Trained

_MOST_RANKS = 1024


def computes_on_cpus(engine: EngineConfig) -> bool:
    """Say whether ranks that this command starts compute on CPUs; those of other hosts are taken to have GPUs."""
    return not torch.cuda.is_available() and engine.hostfile is None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a training may be changed without changing what it computes."""

    engine: EngineConfig
    offload: OffloadConfig

    def overrides(self, other: Setting) -> str:
        """Return what differs from another setting, as one would type it."""
        mine, others = self._named(), other._named()
        return " ".join(f"{name}={value}" for name, value in mine.items() if value != others[name])

    def n_changed(self, other: Setting) -> int:
        return len(self.overrides(other).split())

    def _named(self) -> dict[str, object]:
        engine = self.engine
        return {
            "engine.world_size": engine.world_size,
            "engine.expert_parallel": engine.expert_parallel,
            "engine.zero_stage": engine.zero_stage,
            "engine.activation_checkpointing": engine.activation_checkpointing.value,
            "engine.micro_batch": engine.micro_batch,
            "offload.optimizer": self.offload.optimizer.value,
            "offload.frozen_weights": self.offload.frozen_weights.value,
        }


@dataclass(frozen=True, kw_only=True)
class Room:
    """What ranks may take: how messages begin and name it, and the bytes of a rank under a setting's engine."""

    key: str
    allowed: str
    of: Callable[[EngineConfig], float]


def check_memory(
    config: GPTConfig,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    trains: Trained = Trained.ALL,
    batch_rows: int | None = None,
    tokens: int | None = None,
    on_cpu: bool | None = None,
    *,
    is_kept_near: bool = False,
) -> None:
    """Compare the plan of a model of this project's with `engine.memory_gb`, and the system's limits where ranks run here.

    Rows have so many tokens (absent: they fill the context). `on_cpu` is what ranks compute on (absent: what this machine has).

    Raises:
        ConfigError: it does not fit, with the nearest setting that does.
    """
    offload, on_cpu = offload or OffloadConfig(), computes_on_cpus(engine) if on_cpu is None else on_cpu
    found = rooms(engine, on_cpu)
    if not found:
        return

    def total(setting: Setting) -> float:
        plan = plan_own(
            model, setting.engine, setting.offload,
            on_cpu=on_cpu, tokens=tokens, batch_rows=batch_rows, is_kept_near=is_kept_near,
        )  # fmt: skip
        return plan.total

    model, start = OwnModel.of(config, trains), Setting(engine=engine, offload=offload)
    others = _nearest_first(start, GPT(config).expert_counts, list(Recompute), _lighter_optimizer(optimizer, on_cpu))
    for room in found:
        _refuse_what_does_not_fit(start, room, total, others, "take a smaller model")


def check_foreign_memory(
    directory: Path,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    trains: Trained = Trained.ALL,
    lora: LoraConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    batch_rows: int | None = None,
    tokens: int | None = None,
    on_cpu: bool | None = None,
    *,
    is_kept_near: bool = False,
) -> None:
    """Compare the plan of a Hugging Face base with `engine.memory_gb` and the system's limits, as `check_memory` does.

    Raises:
        ConfigError: it does not fit, with the nearest setting that does, or another way out.
    """
    on_cpu = computes_on_cpus(engine) if on_cpu is None else on_cpu
    found = rooms(engine, on_cpu)
    if not found:
        return
    offload = offload or OffloadConfig()
    whole = trace_foreign(directory, engine, trains, lora, tokens)

    def total(setting: Setting) -> float:
        return plan_traced(
            whole, setting.engine, setting.offload, on_cpu=on_cpu, batch_rows=batch_rows, is_kept_near=is_kept_near
        ).total

    start = Setting(engine=engine, offload=offload)
    recomputes = [engine.activation_checkpointing] if whole.passing is None else list(Recompute)
    may_map = can_map(directory, offload, trains, lora or LoraConfig(), on_cpu=on_cpu)
    others = _nearest_first(start, (), recomputes, _lighter_optimizer(optimizer, on_cpu), may_map=may_map)
    lighter = "" if trains is Trained.LORA else "train less of it (continue_pretrain.trains=lora), or "
    said = f" for rows of {whole.tokens} tokens ({whole.said})"
    for room in found:
        _refuse_what_does_not_fit(start, room, total, others, f"{lighter}take a smaller model", said)


def rooms(engine: EngineConfig, on_cpu: bool) -> list[Room]:
    """Return what limits a rank's memory: `engine.memory_gb`, and the system where ranks compute on its CPUs."""
    found = []
    if engine.memory_gb is not None:
        given = engine.memory_gb * 1e9
        found.append(Room(key="engine.memory_gb", allowed=f"there are {engine.memory_gb:g}", of=lambda other: given))
    for limit in memory_limits() if on_cpu and computes_on_cpus(engine) else ():

        def of(other: EngineConfig, limit: MemoryLimit = limit) -> float:
            return limit.n_bytes / (other.world_size if limit.is_shared else 1)

        allowed = f"{limit.what} allows {of(engine) / 1e9:.2f} GB for each of {engine.world_size} ranks"
        found.append(Room(key="engine", allowed=allowed, of=of))
    return found


def _refuse_what_does_not_fit(
    start: Setting,
    room: Room,
    total: Callable[[Setting], float],
    others: Callable[[], Iterator[Setting]],
    way_out: str,
    said: str = "",
) -> None:
    """Raise ConfigError where a rank needs more than its room, with the nearest setting that fits."""
    needed = total(start)
    if needed <= room.of(start.engine):
        return
    what = f"{room.key}: a rank needs {needed / 1e9:.2f} GB{said}, and {room.allowed}"
    for other in others():
        if total(other) <= room.of(other.engine):
            raise ConfigError(f"{what}; the nearest setting that fits is {other.overrides(start)}")
    raise ConfigError(f"{what}; no setting fits on up to {_MOST_RANKS} ranks: {way_out}")


def _nearest_first(
    start: Setting,
    expert_counts: tuple[int, ...],
    recomputes: Sequence[Recompute],
    lighter: OptimizerIn | None,
    *,
    may_map: bool = False,
) -> Callable[[], Iterator[Setting]]:
    """Return what yields other settings that compute the same, those with the fewest changes first, on more ranks last."""
    engine = start.engine
    batches = [engine.micro_batch >> shift for shift in range(engine.micro_batch.bit_length())]
    stages = sorted({engine.zero_stage, 2} | ({0} if not engine.precision.is_rounded else set()))
    offloads = [start.offload]
    if lighter is not None and start.offload.optimizer is OptimizerIn.NONE:
        offloads.append(replace(start.offload, optimizer=lighter))
    if may_map:
        offloads += [replace(offload, frozen_weights=FrozenWeightsIn.MAPPED) for offload in offloads]
    recomputes = recomputes[recomputes.index(engine.activation_checkpointing) :]

    def settings() -> Iterator[Setting]:
        n_ranks = engine.world_size
        while n_ranks <= _MOST_RANKS:
            sizes = [n for n in range(engine.expert_parallel, n_ranks + 1) if n_ranks % n == 0 and _can_share(expert_counts, n)]
            found = [
                Setting(
                    engine=replace(
                        engine, world_size=n_ranks, micro_batch=m, activation_checkpointing=r, expert_parallel=n, zero_stage=z
                    ),
                    offload=o,
                )
                for o, n, r, z, m in itertools.product(offloads, sizes, recomputes, stages, batches)
                if z or (n == 1 and n_ranks == engine.world_size and o.optimizer is not OptimizerIn.CPU)  # stage 0 shares nothing
            ]
            yield from sorted(found, key=lambda other: other.n_changed(start))
            n_ranks *= 2

    return settings


def _lighter_optimizer(optimizer: OptimizerConfig | None, on_cpu: bool) -> OptimizerIn | None:
    """Return where else an optimizer's state may be: in files of a rank on a CPU, on the host of one on a GPU."""
    if optimizer is not None and optimizer.algorithm is not Algorithm.ADAMW:
        return None
    return OptimizerIn.PAGED if on_cpu else OptimizerIn.CPU


def _can_share(counts: tuple[int, ...], n_ranks: int) -> bool:
    try:
        check_share(counts, n_ranks)
    except ConfigError:
        return False
    return True
