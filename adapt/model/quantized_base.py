"""A frozen base in 8 or 4 bits under LoRA, by bitsandbytes: the only file that imports it, and only where that is asked for.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv:2305.14314 (4 bits, NF4); Dettmers et al.,
"LLM.int8()", 2022, arXiv:2208.07339 (8 bits). Only the linear layers of the decoder are quantized; embeddings, head, norms, routers
and experts in fused layouts stay as they are. The factors are trained with the rounded base, and are applied to the exact one
afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adapt.core.errors import ConfigError
from adapt.model.hf import HFModel

_KEY = "continue_pretrain.lora.base_bits"
_INSTALL = "pip install 'moe-adapt[quantized]'"


def import_bitsandbytes(bits: int) -> Any:
    """Import bitsandbytes, and see that it computes forward and backward on this machine's device.

    Raises:
        ConfigError: it is not installed, or it does not serve here.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            f"{_KEY}={bits}: needs the package bitsandbytes ({error}); install it with `{_INSTALL}`, or set it to 16"
        ) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        layer = _quantized(bitsandbytes, nn.Linear(64, 64), bits).to(device)
        with torch.enable_grad():
            given = torch.ones(2, 64, device=device, requires_grad=True)
            layer(given).float().sum().backward()
        if given.grad is None or not bool(torch.isfinite(given.grad).all()):
            raise RuntimeError("its gradient is missing or not finite")
    except Exception as error:  # whatever a kernel that this device lacks raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{_KEY}={bits}: bitsandbytes does not serve on this machine's {device.type} ({said}); use 16") from error
    return bitsandbytes


def quantize_base(model: HFModel, bits: int) -> int:
    """Put quantized layers in the place of a decoder's linear layers; return how many there are.

    Raises:
        ConfigError: bitsandbytes is missing or does not serve here, or the model has no such layer.
    """
    library = import_bitsandbytes(bits)
    decoder = model.causal.get_decoder()
    found = [(module, name) for module in decoder.modules() for name, child in module.named_children() if type(child) is nn.Linear]
    if not found:
        raise ConfigError(f"{_KEY}={bits}: this model has no plain linear layers; set it to 16")
    for parent, name in found:
        linear = getattr(parent, name)
        setattr(parent, name, _quantized(library, linear, bits).to(linear.weight.device))
    setattr(model.causal, f"is_loaded_in_{bits}bit", True)  # PEFT asks for it
    return len(found)


def _quantized(library: Any, linear: nn.Linear, bits: int) -> nn.Module:
    """Return a linear layer's quantized form; its weight is rounded when it is put on a device."""
    sizes, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
    layer: nn.Module
    if bits == 4:
        layer = library.nn.Linear4bit(*sizes, bias=has_bias, quant_type="nf4")
        weight = library.nn.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer = library.nn.Linear8bitLt(*sizes, bias=has_bias, has_fp16_weights=False)
        weight = library.nn.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
    layer.weight = weight
    layer.bias = linear.bias
    return layer
