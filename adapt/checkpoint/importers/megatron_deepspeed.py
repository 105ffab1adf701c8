"""Megatron-DeepSpeed MoE checkpoints: a tag's directory with `mp_rank_00_model_states.pt` and a file for every expert.

The settings are those of the training run, an `argparse.Namespace` called `args` beside the weights. `source` is the tag's
directory (`global_step1000`), or the one above with the file `latest`. Tensor- or pipeline-parallel checkpoints must be merged
first. Source: Megatron-DeepSpeed (Microsoft 2022) and DeepSpeed's MoE checkpoints (Rajbhandari et al. 2022, arXiv:2201.05596).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.importers.contract import IMPORTERS, ForeignCheckpoint
from adapt.checkpoint.megatron_files import find_main, module_of
from adapt.checkpoint.megatron_import import MegatronFiles, MegatronSizes, open_megatron
from adapt.checkpoint.megatron_settings import Settings
from adapt.checkpoint.pickled_files import read_pickled
from adapt.core.errors import CheckpointError

_MAIN = ("mp_rank_00_model_states.pt", "mp_rank_00/model_optim_rng.pt", "mp_rank_00/model_rng.pt")
_DEFAULTS: dict[str, Any] = {
    "num_experts": [1],
    "bias_gelu_fusion": True,
    "layernorm_epsilon": 1e-5,
    "init_method_std": 0.02,
}
# What the layout can hold and our model cannot: other values are refused by name.
_ONLY: dict[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "expert_interval": 2,
    "topk": 1,
    "apply_residual_connection_post_layernorm": False,
    "apply_layernorm_1p": False,
    "add_position_embedding": True,
    "use_rotary_position_embeddings": False,
    "use_alibi_position_embeddings": False,
    "normalization": ("layernorm", "LayerNorm"),
    "swiglu": False,
    "squared_relu": False,
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": False,
}
_OLDEST_ORDER = 2.0  # before it, the rows of query_key_value stood in another order


@IMPORTERS.register("megatron_deepspeed")
def open_megatron_deepspeed(directory: Path, options: ImportOptions, n_tokens: int | None) -> ForeignCheckpoint:
    """Open a tag's directory, or one with a file that names the latest tag.

    Raises:
        CheckpointError: a file is missing or damaged, the run made a model of another kind, or not everything is explained.
    """
    place = _tag_of(directory)
    main = find_main(place, list(_MAIN))
    content = read_pickled(main)
    args = content.get("args")
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(f"{main}: has no args (argparse.Namespace) beside its weights, so its sizes are unknown")
    version = content.get("checkpoint_version")
    if isinstance(version, int | float) and version < _OLDEST_ORDER:
        raise CheckpointError(
            f"{main}: checkpoint_version {version} orders query_key_value otherwise; load and save it with Megatron 2.0"
        )
    settings = Settings(vars(args), _DEFAULTS, f"{main}: args")
    settings.require(_ONLY)
    hidden, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.require({"kv_channels": hidden // max(n_heads, 1), "num_key_value_heads": n_heads})
    sizes = MegatronSizes(
        n_layers=settings.integer("num_layers"),
        hidden_size=hidden,
        n_heads=n_heads,
        context_length=settings.integer("max_position_embeddings"),
        ffn_hidden_size=settings.integer("ffn_hidden_size", 4 * hidden),
        vocab_size=settings.integer("vocab_size") if settings.has("vocab_size") else None,
        experts=settings.counts("num_experts"),
        gelu=settings.gelu(),
        norm_eps=settings.number("layernorm_epsilon"),
        init_std=settings.number("init_method_std"),
        notes=settings.notes(),
    )
    return open_megatron(directory, MegatronFiles(main=main, experts=place), module_of(content, main), sizes, options, n_tokens)


def _tag_of(directory: Path) -> Path:
    """Follow `latest` (DeepSpeed) or `latest_checkpointed_iteration.txt` (Megatron) where there is one."""
    for name in ("latest", "latest_checkpointed_iteration.txt"):
        if (directory / name).is_file():
            tag = (directory / name).read_text(encoding="utf-8", errors="replace").strip()
            place = directory / (f"iter_{int(tag):07d}" if tag.isdecimal() else tag)
            if not tag or Path(tag).name != tag or not place.is_dir():
                raise CheckpointError(f"{directory / name}: names '{tag}', which is no directory beside it")
            return place
    return directory
