"""Forms that imported models need: exact GELU, a width of its own, and the expert-residual network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from adapt.checkpoint.weights import CONFIG_FILE, load_config
from adapt.core.errors import ConfigError
from adapt.core.typed import to_plain
from adapt.model.config import Gelu
from adapt.model.counting import count_parameters
from adapt.model.expert_residual import ExpertResidual
from adapt.model.experts import Experts
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.inputs import ModelInputs
from tests.support.inner_parts import gradient_of
from tests.support.tiny_models import tiny_config


def inputs(length: int = 12) -> ModelInputs:
    ids = torch.randint(1, 60, (2, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand_as(ids)
    return ModelInputs(ids_BT=ids, positions_BT=positions, documents_BT=torch.ones_like(ids), is_packed=False)


@pytest.mark.parametrize("gelu", list(Gelu))
def test_experts_of_either_form_equal_autograd_in_outputs_and_gradients(gelu: Gelu) -> None:
    generator = torch.Generator().manual_seed(1)
    experts = Experts(3, 5, 7, gelu)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x_NH = torch.randn(11, 5, generator=generator).requires_grad_()
    expert_K = torch.tensor([0, 2, 2, 1, 0, 2, 2, 0, 1, 2, 0])
    found, _ = experts(x_NH, torch.arange(11), expert_K, torch.ones(11))
    rows = []
    for n, e in enumerate(expert_K.tolist()):
        inner = functional.gelu(experts.up_weight[e] @ x_NH[n] + experts.up_bias[e], approximate=gelu.approximate)
        rows.append(experts.down_weight[e] @ inner + experts.down_bias[e])
    wanted = torch.stack(rows)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(found.pow(2).sum(), [x_NH, *experts.parameters()])
    theirs = torch.autograd.grad(wanted.pow(2).sum(), [x_NH, *experts.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_the_two_forms_are_two_functions() -> None:
    weights = [materialize(GPT(tiny_config(vocab_size=60, gelu=gelu)), seed=1).eval() for gelu in Gelu]
    with torch.no_grad():
        one, other = (model(inputs()).hidden_BTH for model in weights)
    assert 1e-6 < float((one - other).abs().max()) < 1e-1


def test_a_width_of_its_own_replaces_the_multiple() -> None:
    model = GPT(tiny_config(ffn_hidden_size=40))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["blocks.0.mlp.up.weight"] == (40, 32)
    assert shapes["blocks.1.mlp.experts.down_weight"] == (4, 32, 40)
    assert tiny_config().ffn_width == 128
    with pytest.raises(ConfigError, match=r"model\.ffn_hidden_size: 0 is out of range"):
        GPT(tiny_config(ffn_hidden_size=0))


def test_an_untrained_expert_residual_network_changes_nothing() -> None:
    plain = materialize(GPT(tiny_config(vocab_size=60)), seed=1).eval()
    deep = materialize(GPT(tiny_config(vocab_size=60, expert_residual_layers=2)), seed=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(deep(inputs()).hidden_BTH, plain(inputs()).hidden_BTH, atol=1e-6, rtol=1e-6)


def test_an_expert_residual_network_is_mixed_in_by_the_largest_probability() -> None:
    network = ExpertResidual(3, 6)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    g_NH = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    probs_NE = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.25, 0.1], [0.5, 0.5]])
    found = network(g_NH, probs_NE)
    alone = torch.cat([network(g_NH[n : n + 1], probs_NE[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(found, alone)
    torch.testing.assert_close(found[0], network.layers(g_NH)[0])
    torch.testing.assert_close(found[1], g_NH[1])
    torch.testing.assert_close(found[2], 0.25 * network.layers(g_NH)[2] + 0.75 * g_NH[2])
    assert network(g_NH[:0], probs_NE[:0]).shape == (0, 6)


def test_every_parameter_of_the_network_is_trained() -> None:
    model = materialize(GPT(tiny_config(vocab_size=60, expert_residual_layers=2)), seed=1)
    for _ in range(2):  # behind down weights of 0, nothing before them has a gradient in the first step
        model.zero_grad()
        model(inputs()).hidden_BTH.pow(3).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(1e-2 * gradient_of(parameter))
    network = {name: p for name, p in model.named_parameters() if ".expert_residual." in name}
    assert len(network) == 2 * 2 * 6
    assert all(bool(gradient_of(parameter).any()) for parameter in network.values())


def test_an_expert_residual_network_is_counted_as_dense_and_active() -> None:
    plain, deep = count_parameters(tiny_config()), count_parameters(tiny_config(expert_residual_layers=6))
    size = 2 * 6 * (2 * 4 * 32 * 32 + 4 * 32 + 32 + 2 * 32)
    assert deep.total - plain.total == deep.active - plain.active == deep.dense - plain.dense == size


def test_a_configuration_written_before_these_keys_is_read(tmp_path: Path) -> None:
    config = tiny_config()
    plain = {key: v for key, v in to_plain(config).items() if key not in ("gelu", "ffn_hidden_size", "expert_residual_layers")}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(plain), encoding="utf-8")
    read: GPTConfig = load_config(tmp_path)
    assert to_plain(read) == to_plain(config)
    with pytest.raises(ConfigError, match="expert_residual_layers: -1"):
        GPT(tiny_config(expert_residual_layers=-1))
