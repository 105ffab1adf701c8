"""Every configuration composes and passes its types."""

from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException

from adapt.core.errors import ConfigError
from adapt.model.config import GPTConfig
from adapt.model.routers.contract import all_routers
from adapt.model.routers.large_margin import LargeMarginConfig, MarginEffect
from pipelines.config.locations import conf_dir
from pipelines.config.schema import PipelineConfig
from pipelines.walk.order import STAGES
from tests.support.command_line import composed

CONF = conf_dir()
PRIMARY = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "hydra_settings")
GROUPS = [
    (group, path.stem)
    for group in ("model", "objective", "engine", "tracker", "experiment")
    for path in sorted((CONF / group).glob("*.yaml"))
]


@pytest.mark.parametrize("primary", PRIMARY)
def test_every_primary_configuration_composes(primary: str) -> None:
    assert composed(primary, [])


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_option_of_every_group_composes(group: str, name: str) -> None:
    needs = ["model.path=somewhere"] if (group, name) == ("model", "hf") else []
    assert composed("run", [f"{group}={name}", *needs])


def test_every_stage_has_a_primary_configuration() -> None:
    assert set(STAGES) <= set(PRIMARY)


def model_of(config: PipelineConfig) -> GPTConfig:
    assert isinstance(config.model, GPTConfig)
    return config.model


def test_every_registered_router_can_be_chosen() -> None:
    for name in all_routers():
        config = composed("run", [f"model/router={name}", "model.capacity_factor=1.25"])
        assert model_of(config).router == all_routers().get(name).config()
        assert model_of(config).capacity_factor == 1.25


def test_a_routers_own_settings_can_be_set_and_no_others() -> None:
    config = composed("run", ["model/router=large_margin", "model.router.margin=4", "model.router.effect=gate"])
    assert model_of(config).router == LargeMarginConfig(margin=4, effect=MarginEffect.GATE)
    with pytest.raises(ConfigCompositionException, match="jitter"):
        composed("run", ["model/router=large_margin", "model.router.jitter=0.1"])
    with pytest.raises(ConfigError, match=r"model\.router: is not for model=hf"):
        composed("run", ["model=hf", "model.path=somewhere", "model.router.jitter=0.1"])
