"""Configuration of a causal language model with a mixture of experts, as moe-adapt writes it, for transformers 5.

This file lies next to the weights and needs only transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class MoEAdaptConfig(PreTrainedConfig):
    """Sizes of a pre-norm GPT with learned positions.

    `experts_by_layer` has each block's number of experts, 0 where it is dense. `router` has the name of the rule that picks
    experts, and its settings. `domain` is the domain of a text that comes without one, for routers that look at domains.
    """

    model_type = "moe_adapt_gpt"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 8000,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 1024,
        max_position_embeddings: int = 256,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        experts_by_layer: list[int] | None = None,
        router: dict[str, Any] | None = None,
        is_residual: bool = False,
        expert_residual_layers: int = 0,
        even_routing: bool = False,
        domain: int = 0,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.experts_by_layer = [0] * num_hidden_layers if experts_by_layer is None else list(experts_by_layer)
        self.router = {"name": "top1"} if router is None else dict(router)
        self.is_residual = is_residual
        self.expert_residual_layers = expert_residual_layers
        self.even_routing = even_routing
        self.domain = domain
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)
        if len(self.experts_by_layer) != num_hidden_layers:
            raise ValueError(f"experts_by_layer has {len(self.experts_by_layer)} counts for {num_hidden_layers} layers")
