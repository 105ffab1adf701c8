"""Settings of models, own and foreign, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, about, refuse_out_of_range, setting, setting_of
from adapt.model.routers.settings import RouterConfig, Top1Config


class Gelu(enum.Enum):
    """GELU by the tanh approximation, or exact, by the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    TANH = "tanh"
    ERF = "erf"

    @property
    def approximate(self) -> str:
        """Return torch's word for it."""
        return "tanh" if self is Gelu.TANH else "none"


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT; ranges are checked by `validate`, since a size may be given before the others are known."""

    n_layers: int = field(
        metadata=about("Transformer blocks; every second one is a MoE layer where `experts` says so.", least=1, most=10_000)
    )
    hidden_size: int = field(metadata=about("Width of the hidden states, a multiple of `n_heads`.", least=1, most=1 << 20))
    n_heads: int = field(metadata=about("Attention heads of a block.", least=1, most=1 << 16))
    context_length: int = field(metadata=about("Longest text that the model reads at once.", least=1, most=1 << 24, unit="tokens"))
    vocab_size: int = field(
        metadata=about("Rows of the embedding; presets take `tokenizer.vocab_size`.", least=1, most=1 << 24, unit="tokens")
    )
    ffn_multiple: int = setting(4, "Width of dense MLPs and experts as a multiple of `hidden_size`.", least=1, most=1 << 10)
    experts: list[int] = setting_of(
        lambda: [0],
        "Experts of each MoE layer, in order, or one count for all of them; 0 is a dense layer.",
        least=0,
        most=1 << 16,
        hint="[0] is a dense model",
    )
    is_residual: bool = setting(False, "Adds a dense MLP to the experts of every MoE layer.")
    router: RouterConfig = setting_of(Top1Config, "Decides which experts a token goes to; choose it with model/router=NAME.")
    capacity_factor: float | None = setting(
        None,
        "In training an expert takes at most this many times its even share of a sequence's tokens and drops the others.",
        above=0,
        hint="null drops nothing",
    )
    init_std: float = setting(0.02, "Standard deviation of the first weights.", least=0)
    norm_eps: float = setting(1e-5, "Added to the variance in layer norms.", above=0)
    gelu: Gelu = setting(Gelu.TANH, "Form of the activation: the tanh approximation or the error function.")
    ffn_hidden_size: int | None = setting(
        None,
        "Width of dense MLPs and experts where it is no multiple of `hidden_size`.",
        least=1,
        most=1 << 24,
        hint="null takes `ffn_multiple`",
    )
    expert_residual_layers: int = setting(
        0, "Depth of the expert-residual network.", least=0, most=1_000, hint="0 is none", unit="layers"
    )
    even_routing: bool = setting(
        False, "Spreads tokens over experts by a hash, whatever the router says: for measuring speed with random weights."
    )

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
        if 1 in counts:
            raise ConfigError(f"model.experts: {list(self.experts)} has a count that is neither 0 (dense) nor at least 2")
        by_layer = [0] * self.n_layers
        by_layer[1::2] = counts
        return tuple(by_layer)

    def validate(self) -> None:
        """Raise ConfigError for sizes that no model can have."""
        refuse_out_of_range(self, "model.")
        self.expert_counts()
        if self.n_layers == 1 and any(self.experts):
            raise ConfigError("model.experts: a model of one layer has no MoE layer; use [0]")
        if self.hidden_size % self.n_heads:
            raise ConfigError(f"model.hidden_size: {self.hidden_size} is not a multiple of n_heads {self.n_heads}")


@dataclass(frozen=True, kw_only=True)
class HFConfig(Settings):
    """A base that is a Hugging Face directory; its sizes are in its own config.json."""

    path: str = field(metadata=about("Directory of the Hugging Face model that model=hf takes as the base.", form="directory"))


class Recompute(enum.Enum):
    """What is computed again: nothing, the feed-forward part of each block (which holds most), or whole blocks."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"
