"""LAMB against the algorithm written out tensor by tensor and expert by expert, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.optimizer import make_optimizer
from adapt.train.optimizer_config import Algorithm, OptimizerConfig

LAMB = OptimizerConfig(algorithm=Algorithm.LAMB, lr=0.02, weight_decay=0.1)


class Experts(nn.Module):
    """Stacked matrices whose sizes differ by factors of 100 and 30."""

    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        scale = torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1)
        self.up_weight = nn.Parameter(torch.randn(3, 5, 4, generator=random) * scale)


class MLP(nn.Module):
    """What has experts, under the name that the optimizer knows them by."""

    def __init__(self, random: torch.Generator) -> None:
        super().__init__()
        self.experts = Experts(random)


class Layers(nn.Module):
    """A dense matrix, a bias that starts at 0, and stacked experts of very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.dense = nn.Linear(4, 3)
        self.mlp = MLP(random)
        with torch.no_grad():
            self.dense.weight.copy_(torch.randn(3, 4, generator=random))
            self.dense.bias.zero_()


def by_hand(weight: Tensor, gradients: list[Tensor], decay: float) -> Tensor:
    """Update one tensor as Algorithm 2 says."""
    w, m, v = weight.double(), torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for step, gradient in enumerate((g.double() for g in gradients), start=1):
        m = LAMB.beta1 * m + (1 - LAMB.beta1) * gradient
        v = LAMB.beta2 * v + (1 - LAMB.beta2) * gradient**2
        r = (m / (1 - LAMB.beta1**step)) / ((v / (1 - LAMB.beta2**step)).sqrt() + LAMB.eps) + decay * w
        w_norm, r_norm = float((w**2).sum()) ** 0.5, float((r**2).sum()) ** 0.5
        w = w - LAMB.largest_lr * (w_norm / r_norm if w_norm > 0 and r_norm > 0 else 1.0) * r
    return w


def test_each_tensor_and_each_expert_is_scaled_by_its_own_norms() -> None:
    model, random = Layers(), torch.Generator().manual_seed(1)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, LAMB)
    gradients: dict[str, list[Tensor]] = {name: [] for name in start}
    for _ in range(5):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
            gradients[name].append(parameter.grad)
        optimizer.step()
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith("bias") else LAMB.weight_decay
        pieces = range(3) if ".experts." in name else [slice(None)]
        for piece in pieces:
            wanted = by_hand(start[name][piece], [gradient[piece] for gradient in gradients[name]], decay)
            error = (parameter.detach()[piece].double() - wanted).abs().max() / wanted.abs().max()
            assert float(error) < 1e-6, (name, piece)


def test_an_expert_without_gradient_only_decays_at_its_own_pace() -> None:
    model = Layers()
    start = model.mlp.experts.up_weight.detach().clone()
    optimizer = make_optimizer(model, LAMB)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.mlp.experts.up_weight.detach(), start * (1 - LAMB.largest_lr))
    assert not model.dense.bias.any()


@pytest.mark.parametrize("stage", [1, 2])
def test_lamb_is_refused_where_tensors_are_cut(stage: int) -> None:
    with pytest.raises(ConfigError, match=rf"ZeRO-{stage} cuts tensors into flat partitions; use engine.zero_stage=0"):
        check_optimizer(EngineConfig(zero_stage=stage), LAMB)
    check_optimizer(EngineConfig(zero_stage=0), LAMB)


def test_stage_0_is_refused_without_masters() -> None:
    with pytest.raises(ConfigError, match="no fp32 masters beside bf16 weights"):
        EngineConfig(zero_stage=0, precision=Precision.BF16)
