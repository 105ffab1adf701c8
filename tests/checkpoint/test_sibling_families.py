"""Dense Hugging Face models as sparse siblings: plain transformers gives the same logits, and the rest takes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapt.checkpoint.sibling_families import SPARSE, SPARSE_OF, dense_name_of, sparse_family_of
from adapt.checkpoint.upcycling.foreign import write_sparse_sibling
from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.weights import load_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.model.compared_logits import compared, logits_of
from adapt.model.hf_families import DENSE_FAMILIES, SPARSE_FAMILIES
from tests.support.hf_checkpoints import make_checkpoint

ROWS = [[3, 50, 7, 9, 11, 2, 30], [5], [17, 4, 8, 15, 16, 23, 42, 8, 4]]
# By sparse family: what its dense sibling is made with, and what is asked for.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {}),
    "mixtral, windows, many shards": ("mistral", {"sliding_window": 48, "max_shard_size": "60KB"}, {"experts_per_token": 3}),
    "mixtral, parts": ("llama", {}, {"experts": [6], "split": 2}),
    "mixtral, scaled positions": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 24}},
        {},
    ),
    "qwen2_moe": ("qwen2", {}, {"layers": [1]}),
    "qwen3_moe": ("qwen3", {"attention_bias": True}, {"experts": [8], "split": 4, "layers": [0]}),
}  # fmt: skip


def sibling(source: Path, place: Path, **options: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    write_sparse_sibling(place, source, UpcycleOptions(**{"experts": [4], **options}))
    return place


@torch.no_grad()
def plain_logits(place: Path) -> tuple[Any, list[torch.Tensor]]:
    """Return a directory's model and logits by transformers, which has to find every tensor and no other."""
    model, said = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    return model, [model.eval()(input_ids=torch.tensor([row])).logits[0].float() for row in ROWS]


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_logits(case: str, tmp_path: Path) -> None:
    family, changes, options = CASES[case]
    source = make_checkpoint(tmp_path / "dense", family, **changes)
    result = sibling(source, tmp_path / "sparse", **options)
    _, expected = plain_logits(source)
    model, found = plain_logits(result)
    assert compared(expected, found).relative < 3e-6
    own = load_model(result)
    assert compared(expected, logits_of(own, ROWS)).relative < 3e-6  # as the rest of the project reads it
    assert model.config.model_type == case.partition(",")[0]
    assert own.expert_counts == (options.get("experts", [4])[0],) * len(options.get("layers", range(2)))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (result / file).read_bytes() == (source / file).read_bytes()


def test_a_setting_that_the_source_leaves_to_its_family_is_written(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "dense", "llama")
    content = json.loads((source / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta", "rms_norm_eps"):
        content.pop(key, None)
    (source / "config.json").write_text(json.dumps(content))
    _, expected = plain_logits(source)
    _, found = plain_logits(sibling(source, tmp_path / "sparse"))
    assert compared(expected, found).relative < 3e-6  # mixtral's own base of rotations is a hundred times llama's


def test_a_sum_is_recorded_for_each_tensor_of_numbered_experts(tmp_path: Path) -> None:
    result = sibling(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "sparse")
    entries = json.loads((result / "model.safetensors.index.json").read_text())["tensors"]
    assert {len(entry["sha256"]) for entry in entries.values()} == {1}


def test_training_tells_the_experts_of_a_sibling_apart(tmp_path: Path) -> None:
    model, _ = plain_logits(sibling(make_checkpoint(tmp_path / "dense", "qwen3"), tmp_path / "sparse"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 900, (8, 24), generator=torch.Generator().manual_seed(1))
    gates = []
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gates.append(float(model.model.layers[0].mlp.gate.weight.grad.abs().max()))
        optimizer.step()
    experts = model.model.layers[0].mlp.experts.down_proj.detach()
    assert float((experts[1:] - experts[0]).flatten(1).norm(dim=1).min()) > 1e-3
    assert min(gates[1:]) > 1e-6


def test_every_family_has_a_sibling_or_a_reason(tmp_path: Path) -> None:
    for name in (*DENSE_FAMILIES, *SPARSE_FAMILIES):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        if name in SPARSE_OF:
            assert sparse_family_of(tmp_path) is SPARSE_OF[name]
        else:
            with pytest.raises(CheckpointError, match=r"is sparse already|has no sparse sibling with the same attention: \w"):
                sparse_family_of(tmp_path)
        if name in SPARSE:
            assert SPARSE_OF[dense_name_of(tmp_path)].name == name
        else:
            with pytest.raises(CheckpointError, match=r"is dense already|has no dense sibling with the same attention: \w"):
                dense_name_of(tmp_path)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "biases in attention": ({"attention_bias": True}, {}, "has attention_bias, which the layers of mixtral have not"),
    "one expert of a token": ({}, {"experts_per_token": 1}, "would have weight 1"),
    "some layers of mixtral": ({}, {"layers": [1]}, "in mixtral every layer is sparse"),
    "layers that are not there": ({}, {"layers": [1, 2]}, "numbered from 0"),
    "parts that do not fit": ({}, {"split": 5, "experts": [10]}, "split: 5 does not divide the width 48"),
    "a router of this project": ({}, {"is_residual": True}, "residual: is for models of this project"),
    "counts by layer": ({}, {"experts": [4, 8]}, "layers of a Hugging Face model have one count"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_not_be_exact_or_makes_no_model_is_refused(case: str, tmp_path: Path) -> None:
    changes, options, words = REFUSALS[case]
    source = make_checkpoint(tmp_path / "dense", "llama", **changes)
    with pytest.raises((ConfigError, CheckpointError), match=words):
        sibling(source, tmp_path / "sparse", **options)


def test_parts_of_16_bits_that_would_be_rounded_are_refused(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "dense", "llama")
    half = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(half, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"split=3: weights in torch.bfloat16 times 3 would be rounded"):
        sibling(source, tmp_path / "three", experts=[6], split=3)
    expected = logits_of(load_model(source), ROWS)
    result = sibling(source, tmp_path / "four", experts=[8], split=4)
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    assert compared(expected, logits_of(load_model(result), ROWS)).relative < 3e-6
    shutil.rmtree(result)
