"""What a training step keeps in memory on each rank, by kind, from parameter counts alone.

Source of the shares: Rajbhandari et al. 2020 (ZeRO, sections 3 and 5, arXiv:1910.02054). Activations and framework overhead come
on top.
"""

from __future__ import annotations

from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig


def plan_memory(n_parameters: int, engine: EngineConfig) -> dict[str, float]:
    """Return bytes per rank by kind, for AdamW and LAMB alike; experts are not split over ranks here (expert parallel 1).

    Weights are whole on every rank; master weights (fp32) and the two moments are split over the ranks, gradients too
    from ZeRO stage 2 on. A reduce bucket and an all-gather bucket come on top.
    """
    state_share = engine.world_size if engine.zero_stage else 1
    width = 2 if engine.precision is Precision.BF16 else 4
    gradient_share = engine.world_size if engine.zero_stage >= 2 else 1
    bucket = min(engine.bucket_elements, n_parameters)
    return {
        "weights": float(n_parameters * width),
        "gradients": n_parameters * 4 / gradient_share,
        "master": n_parameters * 4 / engine.world_size if engine.zero_stage else 0.0,
        "moments": n_parameters * 8 / state_share,
        "buckets": float(2 * bucket * width),
    }
