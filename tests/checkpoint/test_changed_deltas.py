"""Deltas of tensors that were trained themselves: changed experts, routers and heads put on a base, taken off and merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapt.checkpoint.delta import merged_tensors, open_changing, open_delta, write_changed_delta, write_empty_delta
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_model, save_trained, write_merged
from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import CheckpointError
from adapt.model.buffers import named_state
from adapt.model.lora_config import LoraConfig
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.lora_cases import opened, saved_delta, weights_of, with_lora

EXPERTS = [0, 2]


def trained(place: Path, base: Path, trains: Trained, seed: int, experts: list[int] | None = None) -> Path:
    """Change one kind of a base's parameters at random and save the model as training does; `experts` are those that change."""
    model, generator = opened(base), torch.Generator().manual_seed(seed)
    train_only(model, trains)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator) * 0.1
                if experts is not None and ".experts." in name:
                    step[[e for e in range(len(step)) if e not in experts]] = 0
                parameter.add_(step)
    place.mkdir()
    save_trained(place, model, named_state(model), load_tokenizer(base, model))
    return place


def delta_of(place: Path, base: Path, model: Path) -> Path:
    place.mkdir()
    write_changed_delta(place, base, model)
    return place


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_delta_of_experts_holds_the_changed_ones_and_opens_as_the_whole_model_does(family: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", family, max_shard_size="60KB")
    whole = trained(tmp_path / "whole", base, Trained.EXPERTS, 1, EXPERTS)
    delta = delta_of(tmp_path / "delta", base, whole)
    record = json.loads((delta / "delta.json").read_text(encoding="utf-8"))
    parameters = record["changed"]["parameters"]
    assert parameters and all(".experts." in name for name in parameters)
    held = load_file(delta / "changed_tensors.safetensors")
    n_all = sum(weight.numel() for name, weight in weights_of(opened(base)).items() if ".experts." in name)
    assert sum(tensor.numel() for tensor in held.values()) == n_all * len(EXPERTS) / 4
    stored = [(name, rows) for parameter in parameters.values() for name, rows in parameter["stored"].items()]
    assert {name for name, _ in stored} == held.keys()
    numbered = {int(name.split(".experts.")[1].split(".")[0]) for name, rows in stored if rows is None}
    assert all(rows == EXPERTS for _, rows in stored) if family == "gpt_oss" else numbered == set(EXPERTS)
    own, wanted = weights_of(opened(delta)), weights_of(opened(whole))
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(merged, delta)
    again = weights_of(opened(merged))
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_deltas_of_every_kind_take_turns_on_a_base_without_changing_its_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_checkpoint(tmp_path / "base", "mixtral")
    wanted, places = {}, {}
    for seed, kind in enumerate([Trained.EXPERTS, Trained.ROUTER, Trained.DENSE, Trained.HEAD]):
        experts = [1] if kind is Trained.EXPERTS else None
        whole = trained(tmp_path / f"whole-{kind.value}", base, kind, seed, experts)
        places[kind.value] = delta_of(tmp_path / kind.value, base, whole)
        wanted[kind.value] = weights_of(opened(whole))
    places["lora"] = saved_delta(tmp_path / "lora", with_lora(base, LoraConfig(rank=2)), base)
    wanted["lora"] = weights_of(opened(places["lora"]))
    places["none"] = tmp_path / "none"
    places["none"].mkdir()
    write_empty_delta(places["none"], base)
    wanted["none"] = weights_of(opened(base))
    files = {file.name: sha256_of_file(file) for file in base.iterdir()}
    changing = open_changing(places["experts"])
    monkeypatch.setattr("adapt.checkpoint.delta.load_hf_model", None)  # the base is not read again
    for name in ("router", "experts", "lora", "experts", "none", "dense", "head", "lora", "none"):
        changing.apply(open_delta(places[name]))
        found = weights_of(changing.model)
        assert all(torch.equal(found[key], wanted[name][key]) for key in wanted[name]), name
    assert {file.name: sha256_of_file(file) for file in base.iterdir()} == files


def test_a_tied_copy_in_the_bases_files_is_left_out_as_trained_models_leave_it_out(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, metadata={"format": "pt"})
    whole = trained(tmp_path / "whole", base, Trained.HEAD, 1)
    delta = delta_of(tmp_path / "delta", base, whole)
    assert sorted(name for name, _ in merged_tensors(open_delta(delta))) == sorted(tensors)
    own, wanted = weights_of(opened(delta)), weights_of(opened(whole))
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("bytes", "missing or damaged"),
        ("rows", "has shape"),
        ("stored", "is no part of the parameter"),
        ("shape", "not one of its"),
    ],
)
def test_a_damaged_delta_of_experts_is_refused(damage: str, words: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "gpt_oss")
    delta = delta_of(tmp_path / "delta", base, trained(tmp_path / "whole", base, Trained.EXPERTS, 1, EXPERTS))
    file = delta / "delta.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    name, parameter = next(iter(record["changed"]["parameters"].items()))
    if damage == "bytes":
        changed = delta / "changed_tensors.safetensors"
        changed.write_bytes(changed.read_bytes()[:-8] + bytes(range(8)))
    elif damage == "rows":
        parameter["stored"] = {stored: [0, 9] for stored in parameter["stored"]}
    elif damage == "stored":
        other = next(one for other, one in record["changed"]["parameters"].items() if other != name)
        parameter["stored"] |= other["stored"]
    else:
        parameter["shape"][0] += 1
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        load_model(delta)
