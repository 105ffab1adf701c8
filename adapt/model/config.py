"""Settings of models, own and foreign, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from adapt.core.errors import ConfigError
from adapt.core.typed import check_not_negative, check_positive
from adapt.model.activation import Gelu
from adapt.model.routers.settings import RouterConfig, Top1Config


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT. `experts`: one count per MoE layer, or a single count for all of them; [0] is a dense model.

    With a `capacity_factor`, an expert takes at most that many times its even share of a sequence's tokens in training and
    drops the others; absent, nothing is ever dropped. `ffn_hidden_size` absent: `ffn_multiple` x `hidden_size`.
    `expert_residual_layers` is the depth of the expert-residual network (0: none). `even_routing` spreads tokens over experts by a
    hash, whatever the router says: random weights would send nearly all to a few.
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    context_length: int
    vocab_size: int
    ffn_multiple: int = 4
    experts: list[int] = field(default_factory=lambda: [0])
    is_residual: bool = False
    router: RouterConfig = field(default_factory=Top1Config)
    capacity_factor: float | None = None
    init_std: float = 0.02
    norm_eps: float = 1e-5
    gelu: Gelu = Gelu.TANH
    ffn_hidden_size: int | None = None
    expert_residual_layers: int = 0
    even_routing: bool = False

    @property
    def ffn_width(self) -> int:
        """Return the width of dense MLPs and experts."""
        return self.ffn_multiple * self.hidden_size if self.ffn_hidden_size is None else self.ffn_hidden_size

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.n_heads

    def expert_counts(self) -> tuple[int, ...]:
        """Return the expert count of every layer; 0 is a dense layer.

        Raises:
            ConfigError: the list fits neither one count nor one per MoE layer.
        """
        n_moe = self.n_layers // 2
        counts = list(self.experts) * n_moe if len(self.experts) == 1 else list(self.experts)
        if len(counts) != n_moe:
            raise ConfigError(
                f"model.experts: has {len(counts)} entries, but {self.n_layers} layers have {n_moe} MoE layers; "
                "give one count, or one per MoE layer"
            )
        if any(count < 0 or count == 1 for count in counts):
            raise ConfigError(f"model.experts: {list(self.experts)} has a count that is neither 0 (dense) nor at least 2")
        by_layer = [0] * self.n_layers
        by_layer[1::2] = counts
        return tuple(by_layer)

    def validate(self) -> None:
        """Raise ConfigError for sizes that no model can have."""
        self.expert_counts()
        sizes = (self.n_layers, self.hidden_size, self.n_heads, self.context_length, self.vocab_size, self.ffn_width)
        if min(sizes) < 1:
            raise ConfigError("model: layers, hidden size, heads, context, vocabulary and ffn width must be at least 1")
        if self.capacity_factor is not None:
            check_positive("model.capacity_factor", self.capacity_factor, "null drops nothing")
        check_positive("model.norm_eps", self.norm_eps)
        check_not_negative("model.init_std", self.init_std)
        if self.expert_residual_layers < 0:
            raise ConfigError(f"model.expert_residual_layers: {self.expert_residual_layers} is negative; 0 is none")
        if self.n_layers == 1 and any(self.experts):
            raise ConfigError("model.experts: a model of one layer has no MoE layer; use [0]")
        if self.hidden_size % self.n_heads:
            raise ConfigError(f"model.hidden_size: {self.hidden_size} is not a multiple of n_heads {self.n_heads}")


@dataclass(frozen=True, kw_only=True)
class HFConfig:
    """A base that is a Hugging Face directory; its sizes are in its own config.json."""

    path: str


class Recompute(enum.Enum):
    """What is computed again: nothing, the feed-forward part of each block (which holds most), or whole blocks."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"
