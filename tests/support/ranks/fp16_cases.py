"""Trains in fp16 on real ranks, with gradients that overflow by themselves or by a hook; started by `test_fp16.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapt.core.errors import TrainingError
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top2 import Top2Config
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from adapt.text.mixing import RowList
from adapt.train.engine_config import EngineConfig
from adapt.train.loss_scale import LossScaleConfig
from adapt.train.train_config import TrainConfig
from adapt.train.training_state import MOMENTS
from tests.support.ranks.rank_cases import BATCH_ROWS, OBJECTIVES, OPTIMIZER, SPARSE, Killed, leave, plain_rows

STEPS = 6
MODEL = replace(SPARSE, router=SigmoidBiasConfig(rate=0.02))
# Every token goes to both experts: rounding changes gates, and never sends a token elsewhere, which no tolerance could allow for.
UNDIVIDED = replace(SPARSE, experts=[2], router=Top2Config())
OBJECTIVE = OBJECTIVES["clm", "step"]
WITH_SHARES = replace(OBJECTIVES["clm", "scheduled"], balance=BalanceConfig(weight=0.0))  # two experts for all are always even
INJECTED = 3
# A scale whose gradients overflow by themselves at first, and one whose gradients do not.
TOO_LARGE, FITTING, LEAST = 1 << 19, 1 << 10, 1
BAD_PARAMETER = "blocks.1.attention.qkv.weight"


@contextlib.contextmanager
def overflowing(model: nn.Module, is_due: Any) -> Iterator[None]:
    """Make one parameter's gradient overflow on the last rank where `is_due()` says so."""
    rank = rank_from_environment()

    def hook(gradient: Tensor) -> Tensor:
        return gradient * float("inf") if is_due() and rank.rank == rank.world_size - 1 else gradient

    handle = dict(model.named_parameters())[BAD_PARAMETER].register_hook(hook)
    yield
    handle.remove()


def snapshot(engine: Any) -> dict[str, Tensor]:
    """Return weights, routers' state and moments by name."""
    found = {name: tensor.clone() for name, tensor in engine.named_weights()}
    for which in MOMENTS:
        found |= {f"{which} {name}": tensor.clone() for name, tensor in engine.named_moments(which)}
    return found


def train(
    place: Path,
    scale: LossScaleConfig,
    *,
    injected: tuple[int, ...] = (),
    killed_at: int | None = None,
    stage: int = 2,
    objective: ObjectiveConfig = OBJECTIVE,
    sizes: GPTConfig = MODEL,
) -> dict[str, Any]:
    """Train in `place`, going on from what is there; return history, the last weights, and what each step left."""
    from adapt.train.engine import Engine
    from adapt.train.loop import Trainer
    from adapt.train.tracking import NoTracker

    rank, steps_seen = rank_from_environment(), []
    config = EngineConfig(world_size=rank.world_size, zero_stage=stage, precision=Precision.FP16, micro_batch=3, loss_scale=scale)
    model = materialize(GPT(sizes), seed=3)
    engine = Engine(model, config, OPTIMIZER, rank)

    class Watch(NoTracker):
        def log(self, metrics: Any, step: int) -> None:
            steps_seen.append({"metrics": dict(metrics), "state": snapshot(engine), "updates": engine.updates_done})
            if step == killed_at:
                raise Killed

    trainer = Trainer(engine, config, objective, seed=5)
    training = TrainConfig(steps=STEPS, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=2)
    if rank.is_main:
        place.mkdir(parents=True, exist_ok=True)
    engine.barrier()
    with overflowing(model, lambda: len(steps_seen) + 1 in injected):
        outcome = trainer.train(RowList(plain_rows(objective)), training, place, Watch())
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    return {"history": outcome.history, "weights": weights, "steps": steps_seen, "skipped": outcome.skipped_steps}


def reason(place: Path, scale: LossScaleConfig, injected: tuple[int, ...]) -> str:
    """Return why a training ended."""
    try:
        train(place, scale, injected=injected)
    except TrainingError as error:
        return str(error)
    return "it went on"


def main(place: Path) -> None:
    fitting = LossScaleConfig(initial=FITTING, hysteresis=1)
    too_large = LossScaleConfig(initial=TOO_LARGE, hysteresis=1)
    results: dict[str, Any] = {}
    for stage in (1, 2):
        results[f"stage {stage}"] = train(place / f"stage {stage}", fitting, stage=stage, sizes=UNDIVIDED)
        results[f"injected {stage}"] = train(
            place / f"injected {stage}", fitting, injected=(INJECTED,), stage=stage, sizes=UNDIVIDED
        )
    results["injected, biases"] = train(place / "injected, biases", fitting, injected=(INJECTED,))
    results["shares"] = train(place / "shares", fitting, objective=WITH_SHARES, sizes=UNDIVIDED)
    results["forgiven"] = train(place / "forgiven", replace(fitting, hysteresis=2), injected=(INJECTED,))
    results["grown"] = train(place / "grown", replace(fitting, window=2))
    results["too large"] = train(place / "too large", too_large)
    with contextlib.suppress(Killed):
        train(place / "killed", too_large, killed_at=3)
    results["too large, resumed"] = train(place / "killed", too_large)
    results["at the least scale"] = reason(place / "least", replace(fitting, initial=2, minimum=1), (2, 3))
    leave(results, place)
