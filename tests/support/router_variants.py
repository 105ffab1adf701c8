"""Settings that tests try every router with: its defaults, and whatever else changes what it computes."""

from __future__ import annotations

from typing import Any

from adapt.model.routers.contract import all_routers
from adapt.model.routers.expert_choice import ExpertChoiceConfig
from adapt.model.routers.hash import HashConfig
from adapt.model.routers.large_margin import LargeMarginConfig, MarginEffect
from adapt.model.routers.margin import MarginTarget
from adapt.model.routers.random_groups import RandomGroupsConfig
from adapt.model.routers.s_base import SBaseConfig
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top1 import Top1Config
from adapt.model.routers.top2 import Top2Config

VARIANTS: dict[str, Any] = {
    **{name: all_routers().get(name).config() for name in all_routers()},
    "top1, noise and z": Top1Config(jitter=0.4, z_loss_weight=0.1),
    "top2, noise and z": Top2Config(jitter=0.4, z_loss_weight=0.1),
    "large_margin, gate": LargeMarginConfig(margin=4, beta_start=0.5, effect=MarginEffect.GATE),
    "large_margin, loss": LargeMarginConfig(margin=3, beta_start=0.0, effect=MarginEffect.LOSS),
    "large_margin, round robin": LargeMarginConfig(margin=4, beta_start=0.2, target=MarginTarget.ROUND_ROBIN),
    "large_margin, margin 1": LargeMarginConfig(margin=1, beta_start=0.0),
    "expert_choice, few picks": ExpertChoiceConfig(picks_per_token=0.7, margin=3, beta_start=0.3, target=MarginTarget.ROUND_ROBIN),
    "s_base, warm": SBaseConfig(iterations=3, temperature=1.0),
    "sigmoid_bias, one expert": SigmoidBiasConfig(experts_per_token=1),
    "hash, seed 7": HashConfig(seed=7),
    "random_groups, three": RandomGroupsConfig(groups=3, seed=1),
}
