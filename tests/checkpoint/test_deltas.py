"""Deltas: what a light adaptation changed of a base, opened, merged, taken off and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapt.checkpoint.delta import ChangingModel, merged_tensors, open_changing, open_delta, write_empty_delta
from adapt.checkpoint.hf_directory import open_hf_directory
from adapt.checkpoint.offload import OffloadConfig, Verify, WeightsIn
from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.checkpoint.weights import load_model, write_merged
from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import CheckpointError
from adapt.core.precision import Precision
from adapt.model.lora_config import LoraConfig
from adapt.scoring.scorer_config import ScorerConfig
from tests.support.lora_cases import (
    ALL_GROUPS,
    A,
    base_and_delta,
    opened,
    plain_logits,
    saved_delta,
    weights_of,
    with_lora,
    wrapped_logits,
)

IDS = torch.randint(1, 300, (2, 17), generator=torch.Generator().manual_seed(3))
FP32 = ScorerConfig(precision=Precision.FP32)


# Experts of gpt-oss have inputs before outputs, and are as wide as its hidden states: shapes do not tell which is which.
SQUARE = pytest.param("gpt_oss", {"intermediate_size": 32}, id="gpt_oss, square experts")


@pytest.mark.parametrize(("family", "changes"), [*(pytest.param(family, {}, id=family) for family in ALL_GROUPS), SQUARE])
def test_a_delta_opens_as_plain_peft_opens_it_and_merges_to_what_plain_transformers_opens(
    family: str, changes: dict[str, int], tmp_path: Path
) -> None:
    base, delta = base_and_delta(tmp_path, family, max_shard_size="60KB", **changes)
    before = plain_logits(base, IDS)
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(delta)).eval()
    with torch.no_grad():
        wanted = adapter(input_ids=IDS).logits
    assert (wanted - before).abs().max() > 0.1
    assert torch.allclose(wrapped_logits(opened(delta), IDS), wanted, atol=1e-4, rtol=1e-4)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(merged, delta)
    assert torch.allclose(plain_logits(merged, IDS), wanted, atol=1e-4, rtol=1e-4)
    # An opened delta and the merged checkpoint are the same bits; targeted tensors moved, others did not.
    own, again, there = weights_of(opened(delta)), weights_of(opened(merged)), weights_of(opened(base))
    assert all(torch.equal(own[name], again[name]) for name in there)
    targets = json.loads((delta / "delta.json").read_text(encoding="utf-8"))["targets"]
    assert {name for name in there if not torch.equal(own[name], there[name])} == set(targets)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_deltas_take_turns_on_a_base_without_changing_its_bits(family: str, tmp_path: Path) -> None:
    base, first = base_and_delta(tmp_path, family)
    second = saved_delta(tmp_path / "second", with_lora(base, LoraConfig(rank=2, targets=[A]), seed=5), base)
    files = {file.name: sha256_of_file(file) for file in base.iterdir()}
    bare, own_first, own_second = (weights_of(opened(place)) for place in (base, first, second))
    changing, none = open_changing(first), tmp_path / "none"
    none.mkdir()
    write_empty_delta(none, base)
    for place, wanted in ((second, own_second), (first, own_first), (none, bare), (first, own_first), (none, bare)):
        changing.apply(open_delta(place))
        found = weights_of(changing.model)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {file.name: sha256_of_file(file) for file in base.iterdir()} == files


def test_a_mapped_base_takes_a_delta_without_a_write_to_its_files(tmp_path: Path) -> None:
    base, delta = base_and_delta(tmp_path, "llama")
    before = sha256_of_file(base / "model.safetensors")
    opened_checkpoint = open_checkpoint(delta, FP32, OffloadConfig(weights=WeightsIn.MMAP))
    assert opened_checkpoint.changing is not None
    assert torch.equal(wrapped_logits(opened_checkpoint.changing.model, IDS), wrapped_logits(opened(delta), IDS))
    assert sha256_of_file(base / "model.safetensors") == before


def test_a_delta_on_another_base_is_refused_by_name(tmp_path: Path) -> None:
    base, delta = base_and_delta(tmp_path, "llama")
    moved = shutil.copytree(base, tmp_path / "moved")
    assert torch.equal(wrapped_logits(open_changing(delta, base=moved).model, IDS), wrapped_logits(opened(delta), IDS))
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"] += 1  # not a targeted one
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"changes belong to the base that was at .*/base, and .*/moved is another one"):
        open_changing(delta, base=moved)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"its base .*/base is no Hugging Face directory .*model.path=DIR"):
        load_model(delta)


@pytest.mark.parametrize("damage", ["adapter", "record", "targets", "newer"])
def test_a_damaged_delta_is_refused(damage: str, tmp_path: Path) -> None:
    _, delta = base_and_delta(tmp_path, "llama")
    record = json.loads((delta / "delta.json").read_text(encoding="utf-8"))
    if damage == "adapter":
        (delta / "adapter_model.safetensors").write_bytes((delta / "adapter_model.safetensors").read_bytes()[:-8] + bytes(8))
    elif damage == "record":
        del record["scale"]
    elif damage == "targets":
        record["targets"]["model.layers.7.self_attn.q_proj.weight"] = next(iter(record["targets"].values()))
    else:
        record["schema_version"] = 99
    (delta / "delta.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="adapter_model|delta.json"):
        load_model(delta)


def test_a_bare_delta_is_known_by_its_content(tmp_path: Path) -> None:
    base, delta = base_and_delta(tmp_path, "llama")
    other = saved_delta(tmp_path / "other", with_lora(base, LoraConfig(rank=3, targets=[A]), seed=9), base)
    copied = shutil.copytree(delta, tmp_path / "copied")
    digests = [open_hf_directory(place).digest for place in (delta, copied, other, base)]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_merge_that_changes_nothing_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    base, delta = base_and_delta(tmp_path, "llama")
    factors = load_file(delta / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    factors[f"base_model.model.{name}.lora_B.weight"].zero_()
    save_file(factors, delta / "adapter_model.safetensors")
    record = json.loads((delta / "delta.json").read_text(encoding="utf-8"))
    record["adapter"]["sha256"] = sha256_of_file(delta / "adapter_model.safetensors")
    record["adapter"]["size"] = (delta / "adapter_model.safetensors").stat().st_size
    (delta / "delta.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"would leave tensor {name}.weight as it is in the base"):
        list(merged_tensors(open_delta(delta)))


def test_verify_never_reads_no_weights_for_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, delta = base_and_delta(tmp_path, "llama")
    hashed: list[str] = []

    def noted(file: Path, *_: int) -> str:
        hashed.append(file.name)
        return sha256_of_file(file)

    monkeypatch.setattr("adapt.checkpoint.file_sums._sha256", noted)
    open_delta(delta, verify=Verify.NEVER)
    assert hashed == ["config.json", "adapter_model.safetensors"]
    assert ChangingModel(opened(base), base.resolve()).model is not None
