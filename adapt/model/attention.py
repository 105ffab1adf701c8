"""Causal self-attention over packed rows, trees over a shared trunk, and rows that go on from a past.

Legend: B rows, T positions, N = B x T, P positions of a past, S masked positions at a row's end, W = P + T, A heads, D head size,
H hidden size.

Packed rows on a GPU go through the kernel for sequences of various lengths (FlashAttention 2, Dao 2023, arXiv:2307.08691), in which
every document is a sequence and no T x T mask exists; `takes_runs` is the rule. Everything else goes by a mask, or by none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.inputs import ModelInputs
from adapt.model.token_positions import TokenPlaces

KeysValues = tuple[Tensor, Tensor]
Seen = Tensor | TokenPlaces | None  # a mask, the runs in which positions see each other, or plain causal attention
_FEWEST_QUERIES = 4
SHORT = 512  # positions up to which plain products beat the fused kernel on a CPU in bf16
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8  # of the kernel for sequences of various lengths
_FIRST_CAPABILITY = (8, 0)


def seen_by(inputs: ModelInputs, dtype: torch.dtype, head_size: int) -> Seen:
    """Return what positions see of each other where attention computes in `dtype`: once for a batch, for all layers."""
    return inputs.token_places() if takes_runs(inputs, dtype, head_size) else attention_mask(inputs)


def takes_runs(inputs: ModelInputs, dtype: torch.dtype, head_size: int) -> bool:
    """Whether attention goes by runs of documents, without a mask.

    So it is for packed rows on CUDA, compute capability 8.0 or more, in bf16 or fp16, with heads of a multiple of 8 up to 256; not
    for branches (`mask_BSW`), nor where a past is read or kept. Padding is a run of its own, as it is under the mask.
    """
    is_plain = inputs.is_packed and inputs.mask_BSW is None and inputs.past is None and not inputs.keeps_past
    is_served = dtype in (torch.bfloat16, torch.float16) and head_size <= _LARGEST_HEAD and head_size % _HEAD_MULTIPLE == 0
    return is_plain and is_served and _has_kernel(inputs.documents_BT.device)


def attention_mask(inputs: ModelInputs) -> Tensor | None:
    """Return a [B, 1, S, W] mask (True: may attend) for the last S positions, or None where plain causal attention says it all.

    Without packing, padding stands at a row's end, where causal attention keeps every real token from seeing it.
    """
    if inputs.mask_BSW is not None:
        return inputs.mask_BSW.unsqueeze(1)
    assert inputs.past is None, "rows that go on from a past say by mask_BSW what of it they see"
    if not inputs.is_packed:
        return None
    documents = inputs.documents_BT
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (same & causal).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head attention with one projection for query, key and value."""

    def __init__(self, hidden_size: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BTH: Tensor, seen: Seen, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Return the mixed positions, and the keys and values of the rows so far."""
        batch, length, hidden = x_BTH.shape
        qkv = self.qkv(x_BTH).view(batch, length, 3, self.n_heads, hidden // self.n_heads)
        q_BATD, k_BAWD, v_BAWD = qkv.permute(2, 0, 3, 1, 4)
        if isinstance(seen, TokenPlaces):
            mixed_NAD = _attend_in_runs(qkv.flatten(0, 1), seen)
            return self.out(mixed_NAD.reshape(batch, length, hidden)), (k_BAWD, v_BAWD)
        if past is not None:
            k_BAWD, v_BAWD = torch.cat([past[0], k_BAWD], dim=2), torch.cat([past[1], v_BAWD], dim=2)
        mixed = _attend(q_BATD, k_BAWD, v_BAWD, seen)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden)), (k_BAWD, v_BAWD)


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def _attend_in_runs(qkv_N3AD: Tensor, runs: TokenPlaces) -> Tensor:
    """Attend causally within each run."""
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler, which takes longer than torch itself

    q_NAD, k_NAD, v_NAD = qkv_N3AD.unbind(1)
    starts_R, longest = runs.starts_R, runs.longest
    mixed_NAD = varlen_attn(q_NAD, k_NAD, v_NAD, starts_R, starts_R, longest, longest, window_size=(-1, 0))
    assert isinstance(mixed_NAD, Tensor), "nothing beside the output was asked for"
    return mixed_NAD


def _attend(q_BATD: Tensor, k_BAWD: Tensor, v_BAWD: Tensor, mask: Tensor | None) -> Tensor:
    if _is_short_training_on_cpu(q_BATD):
        return _attend_by_products(q_BATD, k_BAWD, v_BAWD, mask)
    if mask is None:
        return functional.scaled_dot_product_attention(q_BATD, k_BAWD, v_BAWD, is_causal=True)
    lead = q_BATD.shape[2] - mask.shape[2]
    tail = _attend_masked(q_BATD[:, :, lead:], k_BAWD, v_BAWD, mask)
    if not lead:
        return tail
    head = functional.scaled_dot_product_attention(q_BATD[:, :, :lead], k_BAWD[:, :, :lead], v_BAWD[:, :, :lead], is_causal=True)
    return torch.cat([head, tail], dim=2)


def _attend_masked(q_BASD: Tensor, k_BAWD: Tensor, v_BAWD: Tensor, mask: Tensor) -> Tensor:
    """Attend by a mask. On a CPU, fewer than four queries are filled up to four.

    With fewer, the fused kernel's last bits depend on which thread computes a row, and so a score on how many threads there are.
    """
    length = q_BASD.shape[2]
    missing = _FEWEST_QUERIES - length
    if missing <= 0 or q_BASD.device.type != "cpu":
        return functional.scaled_dot_product_attention(q_BASD, k_BAWD, v_BAWD, attn_mask=mask)
    q_BASD = functional.pad(q_BASD, (0, 0, 0, missing))
    mask = functional.pad(mask, (0, 0, 0, missing), value=True)
    return functional.scaled_dot_product_attention(q_BASD, k_BAWD, v_BAWD, attn_mask=mask)[:, :, :length]


def _is_short_training_on_cpu(q_BATD: Tensor) -> bool:
    """Say whether plain matrix products win: the CPU's fused kernel computes in fp32 whatever it is given."""
    is_trained = torch.is_grad_enabled() and q_BATD.requires_grad
    return is_trained and q_BATD.device.type == "cpu" and q_BATD.dtype == torch.bfloat16 and q_BATD.shape[2] <= SHORT


def _attend_by_products(q_BATD: Tensor, k_BAWD: Tensor, v_BAWD: Tensor, mask: Tensor | None) -> Tensor:
    length = q_BATD.shape[2]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q_BATD.device).tril()
    assert mask.shape[-2] == length, "training has no unmasked lead"
    scores = (q_BATD * q_BATD.shape[-1] ** -0.5) @ k_BAWD.transpose(-1, -2)
    # A row that may attend to nothing (padding) gets even weights instead of NaN.
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) @ v_BAWD
