"""Forward and backward of a training step queue their work on a CUDA device and never wait for it, where ranks share no experts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import adapt.model.experts
from adapt.core.runtime import generator_for
from adapt.core.spans import NO_TARGET, LabelForm, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.config import Recompute
from adapt.model.gpt import GPT, materialize
from adapt.model.grouped_gemm import torch_gemm
from adapt.model.token_positions import TargetPlaces, TokenPlaces
from adapt.objective import Contribution, contribution, part_counts
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig
from tests.support.device_waits import Waited, no_waiting
from tests.support.router_variants import VARIANTS
from tests.support.tiny_models import tiny_config

CPU = torch.device("cpu")
# These look at whole sequences in training: how many there are, and of what length, they ask the device.
LOOK_AHEAD = ("s_base", "expert_choice")
NEVER_WAIT = [name for name in VARIANTS if not name.startswith(LOOK_AHEAD)]


def batch(device: torch.device = CPU) -> Batch:
    """Return packed rows with padding, some targets of every kind."""
    rows = []
    for row, lengths in enumerate(((20, 30), (41,), (9, 11, 13))):
        ids = [generator_for("waits", row, length).integers(5, 120, length) for length in lengths]
        rows.append([read_with_targets(SpannedText(ids_T=i, kinds_T=i % len(Span)), LabelForm.CLM, 4) for i in ids])
    return collate(rows, pad_multiple=8, step=3, row_keys=range(len(rows))).to(device)


def made(variant: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32, **changes: object) -> GPT:
    config = tiny_config([3, 6], vocab_size=120, context_length=64, router=VARIANTS[variant], **changes)
    model = materialize(GPT(config), seed=1).to(device).train()
    for name, weight in model.named_parameters():
        if ".router." not in name:
            weight.data = weight.data.to(dtype)
    return model


def step(model: GPT, some: Batch, scope: BalanceScope = BalanceScope.STEP) -> Contribution:
    """Run forward and backward as the training loop does."""
    even = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    objective = ObjectiveConfig(balance=BalanceConfig(weight=0.1, scope=scope))
    part = contribution(model, some, part_counts(model, some), even, objective, world_size=1)
    part.loss.backward()
    return part


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all experts run by one kernel, which torch has on the CPU too."""
    monkeypatch.setattr(adapt.model.experts, "gemm_for", lambda x, up, brought: torch_gemm)


@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("variant", NEVER_WAIT)
def test_a_step_waits_for_nothing(variant: str, recompute: Recompute, as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = made(variant), batch()
    model.set_recompute(recompute)
    with no_waiting(monkeypatch):
        part = step(model, some)
    assert part.loss.isfinite()
    assert all(layer.counts_E.sum() >= 124 for layer in part.layers)


def test_the_balance_of_a_micro_batch_waits_for_nothing(as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = made("top1"), batch()
    with no_waiting(monkeypatch):
        step(model, some, BalanceScope.MICROBATCH)


def test_sequences_of_a_router_that_looks_ahead_are_waited_for(as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in LOOK_AHEAD:
        model, some = made(variant), batch()
        with pytest.raises(Waited, match="_unique2"), no_waiting(monkeypatch):
            step(model, some)


def test_what_capacity_leaves_is_waited_for(as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = made("top1", capacity_factor=0.5), batch()
    with pytest.raises(Waited, match="nonzero"), no_waiting(monkeypatch):
        step(model, some)


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_a_batch_that_was_laid_out_on_the_device_is_waited_for(
    part: str, as_on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, some = made("top1"), batch()
    asked = replace(some, places=None) if part == "targets" else replace(some, inputs=replace(some.inputs, places=None))
    with pytest.raises(Waited, match="nonzero"), no_waiting(monkeypatch):
        step(model, asked)


def test_a_loop_over_experts_waits_for_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = made("top1"), batch()
    with pytest.raises(Waited, match="tolist of torch.int64"), no_waiting(monkeypatch):
        step(model, some)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("recompute", list(Recompute))
@pytest.mark.parametrize("variant", NEVER_WAIT)
def test_a_step_on_a_gpu_waits_for_nothing(variant: str, recompute: Recompute) -> None:
    device = torch.device("cuda")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("experts run by one kernel of torch's from compute capability 9 on")
    model, some = made(variant, device, torch.bfloat16), batch(device)
    model.set_recompute(recompute)
    step(model, some)  # libraries start up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        part = step(model, some)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert part.loss.isfinite()


def test_token_places_are_those_of_documents_and_padding() -> None:
    places = TokenPlaces.of(torch.tensor([[1, 1, 2, 0, 0], [1, 2, 2, 2, 2], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]))
    assert places.real_N.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 18, 19]
    assert places.starts_R.tolist() == [0, 2, 3, 5, 6, 10, 15, 20]
    assert places.starts_R.dtype is torch.int32
    assert places.longest == 5


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_a_batch_without_positions_has_no_runs(shape: tuple[int, int]) -> None:
    places = TokenPlaces.of(torch.zeros(shape, dtype=torch.int64))
    assert (places.real_N.tolist(), places.starts_R.tolist(), places.longest) == ([], [0], 0)


def test_a_document_number_that_comes_again_in_the_next_row_is_another_document() -> None:
    assert TokenPlaces.of(torch.tensor([[1, 1], [1, 1]])).starts_R.tolist() == [0, 2, 4]


def test_target_places_are_by_kind_and_in_order() -> None:
    targets, kinds = torch.tensor([[7, NO_TARGET, 8], [9, 9, NO_TARGET]]), torch.tensor([[2, 2, 0], [2, 1, 1]])
    places = TargetPlaces.of(targets, kinds)
    assert places.all_N.tolist() == [0, 2, 3, 4]
    assert [of_kind.tolist() for of_kind in places.of_kind] == [[1], [3], [0, 2]]


def test_a_batch_knows_its_places_once_it_is_on_its_device() -> None:
    some = batch(torch.device("meta"))
    assert some.inputs.places is not None
    assert some.places is not None
    assert some.inputs.places.real_N.shape == (124,)
    assert some.inputs.places.longest == 41
    assert some.inputs.places.real_N.is_meta
