"""What ends a run before it does harm: a loss or a gradient that is not finite, a loss that explodes; where it begins is named.

A step's ledger and its micro-batches flow in, or its gradients; an error flows out or nothing. A token's loss far above that of
guessing evenly, the logarithm of the vocabulary's size, is no language model's any more: the update that follows would only carry
it further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from adapt.core.errors import TrainingError
from adapt.core.spans import Span
from adapt.model.batches import Batch
from adapt.model.inputs import CausalBase
from adapt.objective import PARTS, PartValue

EXPLODED = 5.0  # times the loss of guessing evenly
_TOKEN_PARTS = PARTS[: len(Span)]


def check_losses(
    model: nn.Module, ledger: Mapping[str, PartValue], batches: Sequence[Batch], all_sum: Callable[[Tensor], Tensor], step: int
) -> None:
    """Check that training can go on from a step's losses, before its update. A collective where it is not passed.

    Raises:
        TrainingError: a part is not finite, with the first layer whose output is not; or a token loss explodes.
    """
    limit = EXPLODED * math.log(cast(CausalBase, model).vocab_size)
    for name, part in ledger.items():
        if not math.isfinite(part.value):
            layer = first_bad_layer(model, batches, all_sum)
            where = f"first in the output of {layer}" if layer else "in the loss itself: every layer's output is finite"
            raise TrainingError(
                f"loss/{name} is {part.value} at step {step}, {where}; the last saved state is kept; lower the learning rate "
                "or use engine.precision=fp32"
            )
        if name in _TOKEN_PARTS and part.value > limit:
            raise TrainingError(
                f"loss/{name} is {part.value:.3g} nats a token at step {step}, more than {EXPLODED:g} times that of guessing "
                "evenly: training explodes; the last saved state is kept; lower the learning rate"
            )


def first_bad_layer(model: nn.Module, batches: Sequence[Batch], all_sum: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name of the first module, in the model's order, whose output is not finite on any rank; None: there is none.

    Modules are asked in the order in which they finish, so that it is the innermost one where the trouble starts.
    """
    places = {id(module): place for place, (_, module) in enumerate(model.named_modules())}
    names = [name for name, _ in model.named_modules()]
    found = torch.zeros(len(names), dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            bad: list[int] = []

            def note(module: nn.Module, inputs: Any, output: Any, bad: list[int] = bad) -> None:
                if not bad and not _is_finite(output):
                    bad.append(places[id(module)])

            handles = [module.register_forward_hook(note) for module in model.modules()]
            try:
                model(batch.inputs)
            finally:
                for handle in handles:
                    handle.remove()
            if bad:
                found[bad[0]] += 1
    bad_somewhere = all_sum(found).nonzero().flatten().tolist()
    return names[bad_somewhere[0]] if bad_somewhere else None


def where_gradients_break(
    model: nn.Module, gradients: Iterable[tuple[nn.Parameter, Tensor]], all_sum: Callable[[Tensor], Tensor]
) -> str:
    """Say which parameters' gradients are not finite on any rank, from what each rank holds of them; a collective.

    Backward runs against the model's order: what spreads from one layer ends at the first parameter that is named.
    """
    names = [name for name, _ in model.named_parameters()]
    places = {id(parameter): place for place, (_, parameter) in enumerate(model.named_parameters())}
    found = torch.zeros(len(names), dtype=torch.float64)
    for parameter, gradient in gradients:
        found[places[id(parameter)]] += not torch.isfinite(gradient).all()
    bad = all_sum(found).nonzero().flatten().tolist()
    if not bad:
        return "every parameter's own gradient is finite: their norm alone overflows"
    if len(bad) == 1:
        return f"in the gradient of {names[bad[0]]} alone"
    return f"first, in the model's order, in the gradient of {names[bad[0]]}, last in that of {names[bad[-1]]} ({len(bad)} in all)"


def _is_finite(output: Any) -> bool:
    tensors = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, tuple | list) else []
    return all(bool(torch.isfinite(t).all()) for t in tensors if isinstance(t, Tensor) and t.is_floating_point())
