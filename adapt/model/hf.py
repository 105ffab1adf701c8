"""Hugging Face causal language models as bases: the only file that imports transformers, and only once one is opened.

Legend: B rows, T positions, W positions of past and row, H hidden size, N real tokens, K routed (token, expert) pairs, E experts.

A model of `FAMILIES` is wrapped so that it takes `ModelInputs` and gives `ModelOutput`: attention masks are given in full
whenever documents, trees or a past are involved, expert loads are what the family's routers decided for real tokens, and dropout
and router noise are off, so that nothing depends on how a batch was cut. Other families may scale logits, cap attention or carry a
recurrent state, which this wrapper would get wrong without a sign; so they are refused (`hf_families.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_object
from adapt.model.attention import attention_mask
from adapt.model.buffers import ExactBuffers
from adapt.model.config import Recompute
from adapt.model.experts import count_pairs
from adapt.model.hf_families import FAMILIES, attention_of, check_family, check_recompute, family_named
from adapt.model.inputs import LayerRouting, ModelInputs, ModelOutput, Past, RouterTraits
from adapt.model.lora_config import LoraLayout
from adapt.model.mapped_base import MappedBase, stand_ins
from adapt.model.recompute import recompute_module
from adapt.text.hf_commands import command_to_merge
from adapt.text.hf_tokenizer import asks_for_code

_NOISE = ("dropout", "pdrop", "jitter_noise")
PREFIX = "causal."
_MOST_LAYERS, _MOST_COUNT = 10_000, 1 << 20
_MOST_MISSING = 2  # a model of more than this many times the stored weights is refused before anything is allocated
_ADAPTER_FILE = "adapter_config.json"


class HFModel(ExactBuffers):
    """A `CausalBase` over a transformers model. `config_files` are kept to be written beside trained weights as they were.

    Rotary frequencies are exact buffers: in bf16 they would turn positions by the wrong angle. `directory` is where the weights
    came from, `stored_dtypes` the formats of the tensors in its files by their names there: trained weights are written in them.
    `lora` is set while LoRA's factors lie beside them (`adapt.model.lora`): then the base is frozen, and only the factors are the
    model's state. `mapped` is set where weights are views of the files (`adapt.model.mapped_base`).
    """

    def __init__(self, causal: Any, config_files: Mapping[str, bytes], directory: Path | None = None) -> None:
        super().__init__()
        self.causal = causal
        self.config_files = dict(config_files)
        self.directory = directory
        self.lora: LoraLayout | None = None
        self.stored_dtypes: dict[str, torch.dtype] = {}
        self.mapped: MappedBase | None = None
        config = causal.config
        self._family = family_named(str(config.model_type), str(directory or "model"))
        self._logit_cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.vocab_size = int(causal.get_output_embeddings().weight.shape[0])
        self.hidden_size = int(config.hidden_size)
        # Within its window, a sliding window hides nothing.
        self.context_length = min(int(config.max_position_embeddings), getattr(config, "sliding_window", None) or 1 << 62)
        gates = self._gates()
        self.expert_counts = tuple(int(gate.num_experts) for gate in gates)
        self.router_traits = RouterTraits(experts_per_token=int(gates[0].top_k) if gates else 0)
        # Padding is told by `documents_BT`: the pad token is a token like any other, and may start documents.
        causal.get_input_embeddings().padding_idx = None

    def forward(self, inputs: ModelInputs) -> ModelOutput:
        cache = None
        if inputs.past is not None or inputs.keeps_past:
            from transformers import DynamicCache

            cache = DynamicCache(inputs.past.layers if inputs.past is not None else None)
        with self._kept_as_views(), self._watched_gates() as decided:
            decoded = self.causal.get_decoder()(
                input_ids=inputs.ids_BT,
                attention_mask=self._mask(inputs),
                position_ids=_positions(inputs, self.context_length),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        kept = tuple((layer.keys, layer.values) for layer in cache.layers) if cache is not None and inputs.keeps_past else None
        return ModelOutput(
            hidden_BTH=decoded.last_hidden_state,
            routing=self._routing(decided, inputs) if self.expert_counts else (),
            past=None if kept is None else Past(layers=kept),
        )

    def logits(self, hidden_NH: Tensor) -> Tensor:
        with self._kept_as_views():
            logits: Tensor = self.causal.get_output_embeddings()(hidden_NH)
        return logits if self._logit_cap is None else torch.tanh(logits / self._logit_cap) * self._logit_cap

    def vocabulary_tables(self) -> dict[str, Tensor]:
        """Return the tensors with a row for each token by their names in checkpoints; tied ones are one tensor of two names."""
        ends = (self.causal.get_input_embeddings(), self.causal.get_output_embeddings())
        modules = self.causal.named_modules(remove_duplicate=False)
        return {f"{name}.weight": module.weight for name, module in modules if any(module is end for end in ends)}

    def gates(self) -> list[list[Tensor]]:
        return [list(gate.parameters()) for gate in self._gates()]

    def after_step(self, counts_LE: Sequence[Tensor]) -> None:
        return None  # the families' routers keep no state

    def layers(self) -> list[Any]:
        """Return the decoder's layers in their order."""
        decoder = self.causal.get_decoder()
        return list(decoder.h if hasattr(decoder, "h") else decoder.layers)

    def set_recompute(self, what: Recompute) -> None:
        """Choose, once, what the backward pass computes again: nothing, each layer's feed-forward part, or whole layers.

        Raises:
            ConfigError: this family's layers cannot be computed again.
        """
        check_recompute(str(self.causal.config.model_type), what)
        for layer in self.layers() if what is not Recompute.NONE else ():
            recompute_module(layer if what is Recompute.FULL else layer.mlp)

    @property
    def has_frozen_base(self) -> bool:
        """Whether parameters that are not trained are those of the base, and no part of what training makes."""
        return self.lora is not None

    def checkpoint_tensors(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Turn named parameters of this module into tensors under the names of the family's checkpoints, one by one."""
        for name, weight in weights:
            for own_name, tensor in self.as_stored(name.removeprefix(PREFIX), weight.detach()).items():
                dtype = self.stored_dtypes.get(own_name, tensor.dtype)
                yield own_name, tensor.to(dtype, copy=True)  # experts come as views of one stack, which shards cannot hold

    def as_stored(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Cut a tensor in the form of the parameter `name` (of transformers' model) into those of the family's checkpoints."""
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self.causal, {name: tensor})
        return found

    def _kept_as_views(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mapped is None else self.mapped.kept_as_views()

    def _gates(self) -> list[Any]:
        name, layers = self._family.gate, getattr(self.causal.get_decoder(), "layers", ())
        return [] if name is None else [getattr(layer.mlp, name) for layer in layers if hasattr(layer.mlp, "experts")]

    @contextmanager
    def _watched_gates(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Give what each router says in a forward pass: its logits, and the experts that it chose."""
        decided: list[tuple[Tensor, Tensor]] = []
        hooks = [gate.register_forward_hook(lambda _, given, said: decided.append((said[0], said[2]))) for gate in self._gates()]
        try:
            yield decided
        finally:
            for hook in hooks:
                hook.remove()

    def _mask(self, inputs: ModelInputs) -> Tensor | None:
        """Return the full mask, as numbers to be added where attention is made of plain products."""
        mask = _full_mask(inputs)
        if mask is None or attention_of(self.causal.config) != "eager":
            return mask
        computed_in = None if self.mapped is None else self.mapped.dtype
        dtype = computed_in or self.causal.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _routing(self, decided: Sequence[tuple[Tensor, Tensor]], inputs: ModelInputs) -> tuple[LayerRouting, ...]:
        """Report per layer, for real tokens only, what the family's routers decided."""
        documents = inputs.documents_BT.flatten()
        real_N = inputs.token_places().real_N
        rows, positions = inputs.ids_BT.shape
        row_of = torch.arange(rows, device=documents.device).repeat_interleave(positions)
        sequences_N = (row_of * (positions + 1) + documents)[real_N]
        k = self.router_traits.experts_per_token
        token_K = torch.arange(len(real_N), device=documents.device).repeat_interleave(k)
        reports = []
        for (logits, experts), n_experts in zip(decided, self.expert_counts, strict=True):
            logits_NE = logits.flatten(0, -2)[real_N].float()
            expert_K = experts.flatten(0, -2)[real_N].flatten()
            reports.append(
                LayerRouting(
                    probs_NE=self._probs(logits_NE),
                    logits_NE=logits_NE,
                    counts_E=count_pairs(expert_K, n_experts),
                    dropped=torch.zeros((), dtype=torch.int64, device=documents.device),
                    expert_K=expert_K,
                    token_K=token_K,
                    sequence_ids_N=sequences_N,
                    losses={},
                )
            )
        return tuple(reports)

    def _probs(self, logits_NE: Tensor) -> Tensor:
        """Return what the balance loss spreads; of single scores their shares (DeepSeek-AI 2024, arXiv:2412.19437, eq. 19)."""
        if not self._family.is_sigmoid:
            return logits_NE.softmax(dim=-1)
        scores_NE = logits_NE.sigmoid()
        return scores_NE / scores_NE.sum(dim=-1, keepdim=True)


def load_hf_model(
    directory: Path,
    config_files: Mapping[str, bytes],
    n_stored: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    views: Mapping[str, Tensor] | None = None,
) -> HFModel:
    """Load a checked Hugging Face directory in evaluation mode, in fp32 unless `dtype` says otherwise.

    Its shards hold `n_stored` numbers; a configuration that makes a far larger model is refused before anything is allocated. With
    `views` (its tensors by their names there) nothing is read, and these are the weights.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the family is not served, or tensors are missing, left over, or of another shape.
    """
    transformers = import_transformers()
    config = _config_of(directory, transformers)
    frame = _frame(directory, config, transformers)
    n_needed = sum(parameter.numel() for parameter in frame.parameters())
    if n_needed > _MOST_MISSING * n_stored:  # missing weights would be allocated before they could be named
        raise CheckpointError(
            f"{directory / 'config.json'}: makes a model of {n_needed:,} weights, but the files hold {n_stored:,}; "
            "fetch both again from one place"
        )
    settings = {
        "config": config,
        "dtype": dtype or torch.float32,
        "attn_implementation": attention_of(config),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, by name
    }
    given = {} if views is None else stand_ins(views)
    try:
        if views is not None:
            causal, found = type(frame.causal).from_pretrained(None, state_dict=dict(given), **settings)
        else:
            causal, found = transformers.AutoModelForCausalLM.from_pretrained(
                str(directory), use_safetensors=True, local_files_only=True, trust_remote_code=False, **settings
            )
    except Exception as error:  # whatever transformers raises here is about the directory's content
        raise CheckpointError(f"{directory}: transformers cannot load it ({_first_line(error)})") from error
    for name, has, needs in sorted(found["mismatched_keys"]):
        raise CheckpointError(f"{directory}: tensor {name} has shape {tuple(has)}, the model needs {tuple(needs)}")
    for what, problem in (("missing_keys", "is missing"), ("unexpected_keys", "does not belong to this model")):
        names = sorted(found[what])
        if names:
            raise CheckpointError(f"{directory}: tensor {names[0]} {problem} ({len(names)} in all)")
    model = HFModel(causal, config_files, directory).to(device).eval()
    if views is not None:
        model.mapped = MappedBase(model, model.layers(), views, given)
    return model


def frame_of(directory: Path, n_layers: int | None = None) -> HFModel:
    """Return a Hugging Face model without weights, on the meta device; with `n_layers` only its first ones.

    Raises as `shapes_of` does.
    """
    transformers = import_transformers()
    config = _config_of(directory, transformers)
    if n_layers is not None:
        config.num_hidden_layers = n_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:n_layers]
    return _frame(directory, config, transformers)


def shapes_of(directory: Path) -> tuple[dict[str, torch.Size], int]:
    """Return a Hugging Face model's parameter shapes by name and its experts per token, without reading a weight.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the family is not served, or the configuration makes no model.
    """
    transformers = import_transformers()
    return _shapes(directory, _config_of(directory, transformers), transformers)


def settings_of(directory: Path) -> dict[str, Any]:
    """Return a Hugging Face model's settings as transformers understands them: none is left to a default, dropout is off.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the family is not served, or the configuration cannot be read.
    """
    found: dict[str, Any] = _config_of(directory, import_transformers()).to_dict()
    return found


def _frame(directory: Path, config: Any, transformers: Any) -> HFModel:
    settings = {"dtype": torch.float32, "attn_implementation": attention_of(config), "trust_remote_code": False}
    try:
        with torch.device("meta"):
            return HFModel(transformers.AutoModelForCausalLM.from_config(config, **settings), {})
    except Exception as error:
        raise CheckpointError(f"{directory}: transformers cannot make this model ({_first_line(error)})") from error


def _shapes(directory: Path, config: Any, transformers: Any) -> tuple[dict[str, torch.Size], int]:
    model = _frame(directory, config, transformers)
    return {name: parameter.shape for name, parameter in model.named_parameters()}, model.router_traits.experts_per_token


def import_transformers() -> Any:
    """Import transformers, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"Hugging Face bases need the package transformers ({error}); install it with `pip install 'moe-adapt[hf]'`"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _config_of(directory: Path, transformers: Any) -> Any:
    """Read and check config.json, with dropout and router noise off."""
    refuse_code(directory)
    try:
        config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{directory / 'config.json'}: transformers cannot read it ({_first_line(error)})") from error
    check_family(config, str(directory / "config.json"))
    for name, value in vars(config).items():
        if any(noise in name for noise in _NOISE) and isinstance(value, float) and value > 0:
            setattr(config, name, 0.0)
    return config


def refuse_code(directory: Path) -> None:
    """Check a directory before transformers reads it: it may ask for code, kernels, another base, or sizes that no model has.

    Raises:
        CheckpointError: one of these, by name.
    """
    place = directory / "config.json"
    config = read_object(place)
    for file in (place, directory / "tokenizer_config.json"):
        content = read_object(file) if file.is_file() else {}
        if asks_for_code(content):
            raise CheckpointError(
                f"{file}: asks for code of its own (auto_map), which is never run; a model of {', '.join(FAMILIES)} needs none: "
                "take auto_map out"
            )
    if (directory / _ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{directory / _ADAPTER_FILE}: an adapter over another base, and no model by itself; {command_to_merge(directory)}"
        )
    for key, value in config.items():
        if "_implementation" in key and "/" in str(value):
            raise CheckpointError(
                f"{place}: {key} asks for kernels of another place ({value}), which are never fetched; take it out"
            )
        most = _MOST_LAYERS if key.endswith("_layers") else _MOST_COUNT if key.startswith("num_") else 1 << 62
        if isinstance(value, int) and abs(value) > most:
            raise CheckpointError(f"{place}: {key} is larger than in any model ({most:,})")


def _full_mask(inputs: ModelInputs) -> Tensor | None:
    """Return the [B, 1, T, W] mask of all positions, or None where plain causal attention says it all."""
    mask = attention_mask(inputs)
    rows, positions = inputs.ids_BT.shape
    if mask is None or mask.shape[2] == positions:
        return mask
    lead = positions - mask.shape[2]
    causal = torch.ones(lead, mask.shape[3], dtype=torch.bool, device=mask.device).tril()
    return torch.cat([causal.expand(rows, 1, -1, -1), mask], dim=2)


def _positions(inputs: ModelInputs, context_length: int) -> Tensor:
    """Count on over padding at a row's end: transformers reads a step back as the start of another packed document."""
    if inputs.mask_BSW is not None or inputs.is_packed:
        return inputs.positions_BT
    count = torch.arange(inputs.ids_BT.shape[1], device=inputs.ids_BT.device).clamp_max(context_length - 1)
    return torch.where(inputs.documents_BT > 0, inputs.positions_BT, count)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
