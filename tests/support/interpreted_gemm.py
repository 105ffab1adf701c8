"""Runs DeepSpeed's Triton product in Triton's interpreter on the CPU, as the engine gives it to experts, against their loop.

Started as a process by `test_brought_gemm.py`: the interpreter is chosen by the environment before Triton is imported.
"""

from __future__ import annotations

import importlib
import sys
from unittest import mock

import torch
from torch import Tensor


def main() -> None:
    backends = importlib.import_module("triton.backends").backends
    for backend in backends.values():
        backend.driver.is_active = staticmethod(lambda: True)  # DeepSpeed defines its kernels only where one is
    from adapt.model import experts as experts_module
    from adapt.model.experts import Experts
    from adapt.train import brought_gemm

    kernels = importlib.import_module("deepspeed.ops.triton_ops.group_gemm_triton")
    config = importlib.import_module("triton").Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16})
    for kernel in (kernels._group_gemm_kernel, kernels._group_gemm_dw_kernel):
        kernel.configs = [config]  # nothing can be timed here to choose among several
    gemm = brought_gemm._triton_gemm(torch.device("cpu"))

    source = torch.Generator().manual_seed(4)
    layer = Experts(5, 24, 40)
    for parameter in layer.parameters():
        parameter.data.normal_(0.0, 0.5, generator=source)
    x_NH = torch.randn(50, 24, generator=source).requires_grad_()
    expert_K = torch.tensor([0, 2, 3])[torch.randint(0, 3, (50,), generator=source)]  # two get nothing
    weight_K = torch.rand(50, generator=source).requires_grad_()
    grad_NH = torch.randn(50, 24, generator=source)

    def results() -> list[Tensor]:
        out_NH, _ = layer(x_NH, torch.arange(50), expert_K, weight_K)
        return [out_NH, *torch.autograd.grad(out_NH, [x_NH, weight_K, *layer.parameters()], grad_NH)]

    wanted = results()
    with mock.patch.object(experts_module, "gemm_for", lambda x, up, brought: gemm):
        found = results()
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]
    sys.stdout.write(f"{max(errors)}\n")


if __name__ == "__main__":
    main()
