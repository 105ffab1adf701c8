"""The PAI GPT-MoE family as ModelScope publishes it: `config.json`, and Megatron-DeepSpeed files under `model/`.

MoE models keep the shared part in `model/mp_rank_00/model_rng.pt` (newer: `model/mp_rank_00_model_states.pt`), dense models in
`model/mp_rank_00/model_optim_rng.pt`; experts are files of their own. Absent keys of config.json take the public code's defaults.
Source: ModelScope, `modelscope/models/nlp/gpt_moe` (Alibaba PAI 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.importers.contract import IMPORTERS, ForeignCheckpoint
from adapt.checkpoint.megatron_files import find_main, module_of
from adapt.checkpoint.megatron_import import MegatronFiles, MegatronSizes, open_megatron
from adapt.checkpoint.megatron_settings import Settings
from adapt.checkpoint.pickled_files import read_pickled
from adapt.core.json_files import read_object

_MAIN = ("mp_rank_00/model_rng.pt", "mp_rank_00/model_optim_rng.pt", "mp_rank_00_model_states.pt")
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 25600,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "num_experts": [0],
    "bias_gelu_fusion": True,
    "layernorm_epsilon": 1e-12,
    "init_method_std": 0.02,
}
# The public code has these switches too; set otherwise, they make another model.
_ONLY: dict[str, Any] = {"apply_residual_connection_post_layernorm": False}


@IMPORTERS.register("pai_gpt_moe")
def open_pai(directory: Path, options: ImportOptions, n_tokens: int | None) -> ForeignCheckpoint:
    """Open a directory with `config.json` and `model/`.

    Raises:
        CheckpointError: a file is missing or damaged, or not everything in it is explained.
    """
    settings = Settings(read_object(directory / "config.json"), _DEFAULTS, str(directory / "config.json"))
    settings.require(_ONLY)
    main = find_main(directory, [f"model/{name}" for name in _MAIN])
    hidden = settings.integer("hidden_size")
    sizes = MegatronSizes(
        n_layers=settings.integer("num_hidden_layers"),
        hidden_size=hidden,
        n_heads=settings.integer("num_attention_heads"),
        context_length=settings.integer("max_position_embeddings"),
        ffn_hidden_size=settings.integer("ffn_hidden_size", 4 * hidden),
        vocab_size=settings.integer("vocab_size"),
        experts=settings.counts("num_experts"),
        gelu=settings.gelu(),
        norm_eps=settings.number("layernorm_epsilon"),
        init_std=settings.number("init_method_std"),
        notes=settings.notes(),
    )
    files = MegatronFiles(main=main, experts=directory / "model")
    return open_megatron(directory, files, module_of(read_pickled(main), main), sizes, options, n_tokens)
