"""S-BASE's plan is even whatever the size of the logits, and what is left uneven is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, SpannedText, read_with_targets
from adapt.model.batches import collate
from adapt.model.gpt import GPT, materialize
from adapt.model.health import LayerSums
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.s_base import SBaseConfig, SBaseRouter
from tests.support.tiny_models import tiny_config

EXPERTS, TOKENS = 32, 1024
SCALES = [1, 10, 100, 1000]
LARGE = SCALES[1:]


def router(config: SBaseConfig | None = None, n_experts: int = EXPERTS) -> SBaseRouter:
    """Return a router whose logits are what it is given."""
    made = SBaseRouter(config or SBaseConfig(), n_experts, n_experts)
    made.weight.data = torch.eye(n_experts)
    return made.train()


def routed(logits_NE: Tensor, sequence_N: Tensor | None = None, config: SBaseConfig | None = None) -> Routing:
    sequence_N = torch.zeros(len(logits_NE), dtype=torch.int64) if sequence_N is None else sequence_N
    nothing_N = torch.zeros_like(sequence_N)
    inputs = RouterInputs(token_ids_N=nothing_N, sequence_ids_N=sequence_N, positions_N=nothing_N, domain_ids_N=nothing_N)
    return router(config, logits_NE.shape[1]).route(logits_NE, inputs)


def loads(routing: Routing) -> Tensor:
    return torch.bincount(routing.expert_K, minlength=routing.probs_NE.shape[1])


def logits(kind: str, scale: float, n_tokens: int = TOKENS, n_experts: int = EXPERTS) -> Tensor:
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    if kind == "of few directions":
        return scale * normal(n_tokens, 8) @ normal(8, n_experts) / 8**0.5
    favour_E = 2 * normal(n_experts) if kind == "with favourites" else 0.0
    return scale * (normal(n_tokens, n_experts) + favour_E)


KINDS = ["independent", "with favourites", "of few directions"]


@pytest.mark.parametrize("scale", LARGE)
@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_spread_evenly(kind: str, scale: float) -> None:
    routing = routed(logits(kind, scale))
    counts_E = loads(routing)
    assert counts_E.max() <= 1.15 * TOKENS / EXPERTS
    assert counts_E.min() >= 1
    assert routing.overload is not None
    assert routing.overload.item() <= 0.04 * TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_small_logits_leave_more_to_the_arg_max(kind: str) -> None:
    counts_E = loads(routed(logits(kind, 1.0)))
    assert counts_E.max() <= 1.5 * TOKENS / EXPERTS
    assert counts_E.min() >= 1


@pytest.mark.parametrize("scale", SCALES)
def test_the_plan_keeps_within_its_tolerance(scale: float) -> None:
    scaled_NE = logits("with favourites", scale).double()
    config = SBaseConfig(tolerance=0.02)
    sequence_N, room = torch.zeros(TOKENS, dtype=torch.int64), TOKENS / EXPERTS
    shifted_NE = router(config)._planned(scaled_NE, sequence_N, torch.tensor([TOKENS]), torch.tensor([[room]]))
    mass_E = (shifted_NE / config.temperature).softmax(-1).sum(0)
    assert (mass_E - room).clamp_min(0).sum() <= 0.0201 * TOKENS


@pytest.mark.parametrize("scale", SCALES)
def test_a_sequence_shorter_than_the_experts_gives_each_at_most_a_few(scale: float) -> None:
    assert loads(routed(logits("with favourites", scale, n_tokens=20))).max() <= (2 if scale == 1 else 1)


@pytest.mark.parametrize("scale", SCALES)
def test_sequences_do_not_change_each_other(scale: float) -> None:
    first_NE, second_NE = logits("independent", scale, 90), logits("with favourites", 3 * scale, 40)
    sequence_N = torch.tensor([0] * 90 + [1] * 40)
    together = routed(torch.cat([first_NE, second_NE]), sequence_N).expert_K
    assert torch.equal(together[:90], routed(first_NE).expert_K)
    assert torch.equal(together[90:], routed(second_NE).expert_K)


def test_rounds_end_at_their_limit_and_the_overload_says_what_is_left() -> None:
    uneven_NE = logits("with favourites", 100)
    cut, whole = (routed(uneven_NE, config=SBaseConfig(iterations=n)) for n in (1, 500))
    assert cut.overload is not None
    assert whole.overload is not None
    assert cut.overload.item() > 10 * whole.overload.item()


def test_the_overload_counts_tokens_above_each_sequences_own_room() -> None:
    # Two sequences of 4 and 3 tokens, 2 experts: room for 2 in each. Equal tokens cannot be told apart.
    routing = routed(torch.ones(7, 2), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    assert loads(routing).tolist() == [7, 0]
    assert routing.overload is not None
    assert routing.overload.item() == (4 - 2) + (3 - 2)


def test_no_tokens_are_no_overload() -> None:
    routing = routed(torch.zeros(0, EXPERTS))
    assert routing.overload is not None
    assert (len(routing.expert_K), routing.overload.item()) == (0, 0.0)


def test_history_has_the_share_above_the_room_and_other_routers_have_none() -> None:
    reading = read_with_targets(
        SpannedText(ids_T=torch.arange(5, 45).numpy(), kinds_T=torch.zeros(40).long().numpy()), LabelForm.CLM, 4
    )
    for config, is_set in ((SBaseConfig(iterations=1), True), (None, False)):
        changes = {} if config is None else {"router": config}
        model = materialize(GPT(tiny_config([4], init_std=1.0, **changes)), seed=1).train()
        for report in model(collate([[reading]], step=1).inputs).routing:
            assert (report.overload is not None) is is_set
            share = LayerSums.of(report).health()["overload"]
            counts_E = report.counts_E
            assert share == ((counts_E - 10).clamp_min(0).sum() / 40 if is_set else 0.0)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"tolerance": float("nan")}])
def test_settings_that_never_end_or_ask_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: .* is out of range"):
        SBaseConfig(**settings)
