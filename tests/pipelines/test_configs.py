"""Every configuration composes and passes its types."""

from __future__ import annotations

import pytest
from command_line import composed

from pipelines.locations import conf_dir
from pipelines.walk import STAGES

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


def test_every_registered_router_can_be_chosen() -> None:
    from adapt.model.routers.contract import all_routers

    for name in all_routers():
        assert composed("run", [f"model/router={name}"]).model.router.name == name
