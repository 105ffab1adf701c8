"""Distillation: a model's next-token distributions against those of another, or of the base that it came from, by KL divergence.

Legend: N positions with a target, R of them at a time, V vocabulary, H hidden size.

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531: KL(teacher || student), both at one temperature, times its square so that
gradients keep their size. The gradient by the student's logits, temperature * (softmax(student) - softmax(teacher)), is all that is
kept for the backward pass; distributions in fp32 exist for some positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from adapt.model.inputs import ModelInputs, ModelOutput

_FP32_ELEMENTS = 1 << 24  # 64 MB each of a few tensors


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
    part: str
    weight: float = 1.0
    temperature: float = 1.0
    is_of_text: bool = False

    @torch.no_grad()
    def hidden(self, inputs: ModelInputs) -> Tensor:
        """Return the teacher's hidden states [B, T, H] for a batch."""
        return self.model(inputs).hidden_BTH

    def divergence(self, student_NV: Tensor, hidden_NH: Tensor) -> Tensor:
        """Return KL(teacher || student) [N] in nats, times temperature squared; `hidden_NH` are the teacher's own states."""
        kl_N: Tensor = _Divergence.apply(student_NV, hidden_NH, self.model.logits, self.temperature)
        return kl_N


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, hidden_NH: Tensor, logits: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
        gradient_NV, kl_N = torch.empty_like(student_NV), student_NV.new_empty(len(student_NV), dtype=torch.float32)
        rows = max(_FP32_ELEMENTS // student_NV.shape[1], 1)
        for start in range(0, len(student_NV), rows):
            some = slice(start, start + rows)
            log_student_RV = torch.log_softmax(student_NV[some].float() / temperature, dim=-1)
            log_teacher_RV = torch.log_softmax(logits(hidden_NH[some]).float() / temperature, dim=-1)
            teacher_RV = log_teacher_RV.exp()
            kl_N[some] = (teacher_RV * log_teacher_RV.sub_(log_student_RV)).sum(dim=-1) * temperature**2
            gradient_NV[some] = (log_student_RV.exp_() - teacher_RV).mul_(temperature)
        ctx.save_for_backward(gradient_NV)
        return kl_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * grads[0].unsqueeze(-1).to(gradient_NV.dtype), None, None, None
