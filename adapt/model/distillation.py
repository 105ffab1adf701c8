"""Distillation: a model's next-token distributions against those of another, or of the base that it came from, by KL divergence.

Legend: N positions with a target, V vocabulary, H hidden size.

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531: KL(teacher || student), both at one temperature, times its square so that
gradients keep their size. The gradient by the student's logits, temperature * (softmax(student) - softmax(teacher)), is all that is
kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adapt.model.inputs import ModelInputs, ModelOutput

DISTILLATION, BASE_DIVERGENCE = "distillation", "base_divergence"  # names of this part of the loss


class Teaching(Protocol):
    """What is asked of a teacher's model."""

    def __call__(self, inputs: ModelInputs) -> ModelOutput: ...

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return unnormalised scores over the vocabulary for chosen hidden states."""
        ...


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen model of the student's vocabulary; `weight` is the coefficient of the divergence, `temperature` divides logits.

    The divergence counts the targets of all kinds, or those of text only. `part` names it among the parts of the loss.
    """

    model: Teaching
    weight: float = 1.0
    temperature: float = 1.0
    is_of_text: bool = False
    part: str = DISTILLATION

    @torch.no_grad()
    def hidden(self, inputs: ModelInputs) -> Tensor:
        """Return the teacher's hidden states [B, T, H] for a batch."""
        return self.model(inputs).hidden_BTH

    def divergence(self, student_NV: Tensor, hidden_NH: Tensor) -> Tensor:
        """Return KL(teacher || student) [N] in nats, times temperature squared; `hidden_NH` are the teacher's own states."""
        with torch.no_grad():
            teacher_NV = self.model.logits(hidden_NH)
        kl_N: Tensor = _Divergence.apply(student_NV, teacher_NV, self.temperature)
        return kl_N


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
        log_student_NV = torch.log_softmax(student_NV.float() / temperature, dim=-1)
        log_teacher_NV = torch.log_softmax(teacher_NV.float() / temperature, dim=-1)
        teacher_NV = log_teacher_NV.exp()
        kl_N = (teacher_NV * (log_teacher_NV - log_student_NV)).sum(dim=-1)
        ctx.save_for_backward((log_student_NV.exp_() - teacher_NV).mul_(temperature).to(student_NV.dtype))
        return kl_N * temperature**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * grads[0].unsqueeze(-1).to(gradient_NV.dtype), None, None
