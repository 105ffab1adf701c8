"""A causal language model with a mixture of experts, as moe-adapt writes it, for transformers 5.

This file lies next to the weights and needs only torch, transformers and the two other files. It computes what moe-adapt does at
inference, in training mode too (`experts_moe_adapt.py` says what is left out). Tests of moe-adapt compare both, for every router.

Legend: B rows, T positions, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_moe_adapt import MoEAdaptConfig
from .experts_moe_adapt import DenseMLP, Experts, MoELayer, Router, Tokens


class Attention(nn.Module):
    """Causal attention of several heads with one projection for query, key and value."""

    def __init__(self, config: MoEAdaptConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.n_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.n_heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTH: Tensor, mask: Tensor | None, past: Cache | None, **options: Any) -> Tensor:
        shape = x_BTH.shape[:-1]
        qkv = self.qkv(x_BTH).view(*shape, 3, self.n_heads, -1)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(-3))
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _attend_plainly)
        found, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, **options)
        return self.out(found.reshape(*shape, -1))


def _attend_plainly(
    module: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(2, 3) * scaling
    weights = (scores if mask is None else scores + mask).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a layer norm, each added to its input."""

    def __init__(self, config: MoEAdaptConfig, layer: int) -> None:
        super().__init__()
        n_experts = config.experts_by_layer[layer]
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MoELayer(config, layer, n_experts) if n_experts else DenseMLP(config)

    def forward(self, x_BTH: Tensor, mask: Tensor | None, tokens: Tokens, past: Cache | None, **options: Any) -> Tensor:
        x_BTH = x_BTH + self.attention(self.attention_norm(x_BTH), mask, past, **options)
        return x_BTH + self.mlp(self.mlp_norm(x_BTH), tokens)


class MoEAdaptPreTrainedModel(PreTrainedModel):
    """What transformers must know of these models. Routers stay in fp32: a rounded one sends tokens elsewhere."""

    config_class = MoEAdaptConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["router"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (Experts, Router)):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class MoEAdaptModel(MoEAdaptPreTrainedModel):
    """The model without its output layer: hidden states behind the final norm."""

    def __init__(self, config: MoEAdaptConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        domain_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """Read rows padded on either side. `domain_ids` [B] or [B, T] are for routers that look at domains."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of both")
        x_BTH = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        rows, length = x_BTH.shape[:2]
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        n_past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x_BTH, attention_mask=attention_mask, past_key_values=past_key_values,
            position_ids=position_ids,
        )  # fmt: skip
        real_BT = attention_mask[:, -length:] != 0 if attention_mask is not None and attention_mask.dim() == 2 else None
        if position_ids is None:
            position_ids = _positions(attention_mask, rows, length, n_past, x_BTH.device)
        self._refuse_too_long(position_ids, n_past + length)
        position_ids = position_ids.expand(rows, length)
        domains = torch.full((rows, 1), self.config.domain, device=x_BTH.device) if domain_ids is None else domain_ids
        tokens = Tokens(real_BT, input_ids, position_ids, domains.reshape(rows, -1).expand(rows, length))
        x_BTH = x_BTH + self.positions(position_ids)
        states = [x_BTH]
        for block in self.blocks:
            x_BTH = block(x_BTH, mask, tokens, past_key_values, **options)
            states.append(x_BTH)
        x_BTH = self.final_norm(x_BTH)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        found = BaseModelOutputWithPast(
            last_hidden_state=x_BTH,
            past_key_values=past_key_values if past_key_values is not None else None,
            hidden_states=(*states[:-1], x_BTH) if wants_states else None,
        )
        return found.to_tuple() if return_dict is False else found

    def _refuse_too_long(self, position_ids: Tensor, length: int) -> None:
        most = self.config.max_position_embeddings
        if length > most and int(position_ids.max()) >= most:
            raise ValueError(f"the text has {int(position_ids.max()) + 1} tokens, and this model reads at most {most}; cut it")


def _positions(attention_mask: Tensor | None, rows: int, length: int, n_past: int, device: torch.device) -> Tensor:
    """Count each row's tokens from 0, padding left out on whichever side it is."""
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(n_past, n_past + length, device=device).unsqueeze(0)
    counted = attention_mask.long().cumsum(-1) - 1
    return counted.masked_fill(attention_mask == 0, 0)[:, -length:]


class MoEAdaptForCausalLM(MoEAdaptPreTrainedModel, GenerationMixin):
    """The model with its output layer, whose weight is the embedding's."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}

    def __init__(self, config: MoEAdaptConfig) -> None:
        super().__init__(config)
        self.model = MoEAdaptModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        domain_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """Return logits, and with `labels` the mean next-token loss (labels of -100 do not count)."""
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, domain_ids=domain_ids, use_cache=use_cache, output_hidden_states=output_hidden_states,
            return_dict=True, **options,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=found.past_key_values, hidden_states=found.hidden_states
        )
        return output.to_tuple() if return_dict is False else output
