"""LoRA beside Hugging Face bases: what is trained, on one and two ranks, killed and resumed, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.model.batches import collate
from adapt.model.gpt import GPT
from adapt.model.lora import WithoutFactors, add_lora
from adapt.model.lora_config import LoraConfig, LoraTarget
from adapt.model.low_rank import LowRankUpdate
from adapt.objective import contribution, part_counts
from adapt.train.optimizer import parameter_groups
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only
from tests.support.forked_ranks import Launched, slow_unless
from tests.support.hf_checkpoints import make_model
from tests.support.lora_cases import ALL_GROUPS, opened, with_lora
from tests.support.plain_loop import assert_same_training, plain_loop_of
from tests.support.ranks.lora_cases import CASES, FAST, IN_BF16, OBJECTIVE, RESUMED, STEPS, base_with_lora
from tests.support.ranks.rank_cases import OPTIMIZER, plain_rows
from tests.support.tiny_models import tiny_config


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launched]:
    names = [*CASES, *(f"{name}, resumed" for name in RESUMED), IN_BF16]
    return {n: Launched("lora_cases", tmp_path_factory.mktemp(f"ranks_{n}"), n, names, FAST[n]) for n in FAST}


def at_each_size(names: Iterable[str], ending: str = "") -> list[Any]:
    return [
        pytest.param(n, name, id=f"{n} ranks-{name}", marks=slow_unless(f"{name}{ending}" in FAST[n]))
        for n in FAST
        for name in names
    ]


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(CASES))
def test_ranks_train_what_a_plain_loop_trains(results: dict[int, Launched], n_ranks: int, name: str, tmp_path: Path) -> None:
    model = base_with_lora(CASES[name][0], tmp_path / "base")
    wanted = plain_loop_of(model, OBJECTIVE, plain_rows(OBJECTIVE), STEPS)
    found = results[n_ranks][name]
    assert_same_training(found, wanted)
    assert set(found["weights"]) == set(wanted["weights"]) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert found["base is as it was"] and not found["frozen has gradients"]


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(RESUMED, ", resumed"))
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(results: dict[int, Launched], n_ranks: int, name: str) -> None:
    whole, resumed = results[n_ranks][name], results[n_ranks][f"{name}, resumed"]
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())


def test_bf16_trains_the_factors_in_fp32_and_leaves_the_base(results: dict[int, Launched]) -> None:
    rounded, exact = results[2][IN_BF16], results[1]["llama"]
    assert rounded["base is as it was"]
    for name, weight in rounded["weights"].items():
        assert weight.dtype is torch.float32
        assert torch.allclose(weight, exact["weights"][name], atol=2e-2), name
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in rounded["weights"].values())


def test_matrices_with_inputs_first_are_refused(tmp_path: Path) -> None:
    model = opened(make_model(tmp_path / "base", "gpt2", 120))
    with pytest.raises(ConfigError, match="keeps its matrices with inputs first, as GPT-2 does") as refused:
        add_lora(model, LoraConfig(), seed=0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ALL_GROUPS)
def test_every_targeted_tensor_gets_a_gradient_and_nothing_else_does(family: str, tmp_path: Path) -> None:
    model = base_with_lora(family, tmp_path / "base")
    assert model.lora is not None
    rows = plain_rows(OBJECTIVE)
    batch = collate(rows, 1, 0, list(range(len(rows))))
    shares = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    contribution(model, batch, part_counts(model, batch), shares, OBJECTIVE, 1).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(model.lora.stored_as)
    # B starts at 0, so A's first gradient is 0; B's is not, for any expert that a token went to.
    assert all(bool(gradient.any()) for name, gradient in gradients.items() if ".lora_B." in name)
    stored = {model.lora.stored_as[name] for name in gradients if ".lora_B." in name}
    assert stored == {target.b for target in model.lora.targets.values()}


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_without_its_factors_a_model_is_its_base_and_has_them_again_afterwards(family: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", family, 120)
    model, plain = with_lora(base, LoraConfig(rank=3, targets=ALL_GROUPS[family])), opened(base)
    rows = plain_rows(OBJECTIVE)
    inputs = collate(rows, 1, 0, list(range(len(rows)))).inputs
    with torch.no_grad():
        changed, hidden_BTH = model(inputs).hidden_BTH, plain(inputs).hidden_BTH
        assert (changed - hidden_BTH).abs().max() > 1e-3
        assert torch.equal(WithoutFactors(model)(inputs).hidden_BTH, hidden_BTH)
        assert torch.equal(WithoutFactors(model).logits(hidden_BTH[0]), plain.logits(hidden_BTH[0]))
        assert torch.equal(model(inputs).hidden_BTH, changed)


def test_only_factors_have_an_optimizers_state(tmp_path: Path) -> None:
    model = base_with_lora("llama", tmp_path / "base")
    held = [parameter for group in parameter_groups(model, OPTIMIZER) for parameter in group["params"]]
    n_factors = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    assert sum(parameter.numel() for parameter in held) == n_factors > 0


def test_factors_begin_alike_whatever_was_drawn_before(tmp_path: Path) -> None:
    found = []
    for drawn in (0, 100):
        torch.manual_seed(1)
        torch.rand(drawn)
        found.append(dict(base_with_lora("mixtral", tmp_path / "base").named_parameters()))
    assert all(torch.equal(parameter, found[1][name]) for name, parameter in found[0].items())
    a = found[0]["causal.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert 0.5 < float(a.detach().abs().max()) * 32**0.5 <= 1.0


@pytest.mark.parametrize(
    ("family", "target", "words"),
    [
        ("llama", LoraTarget.EXPERTS, "has no parameters of the group 'experts'; it has: attention, mlp"),
        ("llama", LoraTarget.ROUTER, "has no parameters of the group 'router'"),
        ("mixtral", LoraTarget.MLP, "has no parameters of the group 'mlp'; it has: attention, experts, router"),
    ],
)
def test_a_group_that_a_base_has_not_is_refused(family: str, target: LoraTarget, words: str, tmp_path: Path) -> None:
    model = opened(make_model(tmp_path / "base", family, 120))
    with pytest.raises(ConfigError, match=f"lora.targets: this model {words}"):
        add_lora(model, LoraConfig(targets=[LoraTarget.ATTENTION, target]), seed=0)


def test_parameters_are_counted_by_group(tmp_path: Path) -> None:
    model = opened(make_model(tmp_path / "base", "qwen2_moe", 120))
    counts = add_lora(model, LoraConfig(rank=2, targets=ALL_GROUPS["qwen2_moe"]), seed=0)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    kinds = {"attention": ".self_attn.", "mlp": ".shared_expert.", "experts": ".experts.", "router": ".gate."}
    assert {group.value: count for group, count in counts.items()} == {
        kind: sum(count for name, count in trained.items() if part in name) for kind, part in kinds.items()
    }


def test_a_model_of_this_projects_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="trains=lora: is for Hugging Face bases"):
        train_only(GPT(tiny_config([0], vocab_size=120)), Trained.LORA)


def test_routers_are_asked_for_a_gradient_where_they_are_targeted() -> None:
    for targets, wanted in (([LoraTarget.ATTENTION], False), ([LoraTarget.ROUTER], True), (None, False)):
        config = TrainConfig(steps=1, batch_rows=1, trains=Trained.LORA, lora=LoraConfig(targets=targets))
        assert config.trains_routers is wanted


def test_a_change_is_the_sum_of_its_outer_products() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(3 * 2, 5, generator=random), torch.randn(4, 2 * 3, generator=random)
    found = LowRankUpdate(shape=(3, 4, 5), a=a, b=b, scale=0.5).product()
    for expert in range(3):
        outer = [0.5 * torch.outer(b[:, rank * 3 + expert], a[expert * 2 + rank]) for rank in range(2)]
        assert torch.allclose(found[expert], outer[0] + outer[1], atol=1e-6)
