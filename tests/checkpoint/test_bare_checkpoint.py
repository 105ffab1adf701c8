"""Checkpoints saved in bf16, and checkpoints known by their files alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapt.checkpoint.store_writer
from adapt.checkpoint.integrity import Verify
from adapt.checkpoint.store import open_store
from adapt.checkpoint.store_writer import UNFINISHED
from adapt.checkpoint.weights import (
    CONFIG_FILE,
    INDEX_FILE,
    is_bare_checkpoint,
    is_router,
    iterate_tensors,
    load_model,
    open_bare_checkpoint,
    record_sums,
    save_model,
    save_trained,
)
from adapt.core.errors import CheckpointError
from adapt.core.precision import Precision
from adapt.core.typed import to_plain
from adapt.model.gpt import GPT, materialize
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from pipelines.command_line.plain_options import run_plainly
from pipelines.tools.record_sums import RecordConfig, record
from tests.support.tiny_models import tiny_config


@pytest.fixture
def checkpoint(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint in several shards."""
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 100_000)
    place = tmp_path / "whole"
    place.mkdir()
    save_model(place, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    return place


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def copied(checkpoint: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(checkpoint, checkpoint.parent / name))


@pytest.mark.parametrize("fixture", ["sparse_model", "dense_model"])
def test_a_model_saved_in_bf16_is_rounded_but_for_its_routers(
    tmp_path: Path, tokenizer: Tokenizer, fixture: str, request: pytest.FixtureRequest
) -> None:
    model: GPT = request.getfixturevalue(fixture)
    save_trained(tmp_path, model, model.named_parameters(), tokenizer, Precision.BF16)
    weights = dict(model.named_parameters())
    stored = dict(iterate_tensors(tmp_path))
    routers = {name for name in weights if ".router." in name}
    assert bool(routers) == bool(model.expert_counts)
    assert set(stored) == set(weights)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == routers
    assert {tensor.dtype for name, tensor in stored.items() if name not in routers} == {torch.bfloat16}
    loaded = load_model(tmp_path)
    for name, weight in loaded.named_parameters():
        wanted = weights[name] if name in routers else weights[name].to(torch.bfloat16).float()
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted), name
    assert any(not torch.equal(weight, weights[name]) for name, weight in loaded.named_parameters())


def test_the_index_counts_the_bytes_that_were_written(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer) -> None:
    save_trained(tmp_path, sparse_model, sparse_model.named_parameters(), tokenizer, Precision.BF16)
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))
    wanted = sum(p.numel() * (4 if is_router(name) else 2) for name, p in sparse_model.named_parameters())
    assert index["metadata"]["total_size"] == wanted


@pytest.mark.parametrize("precision", [None, Precision.FP32])
def test_a_model_is_saved_in_fp32_unless_asked(
    tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, precision: Precision | None
) -> None:
    given = () if precision is None else (precision,)
    save_trained(tmp_path, sparse_model, sparse_model.named_parameters(), tokenizer, *given)
    for name, tensor in iterate_tensors(tmp_path):
        assert torch.equal(tensor, dict(sparse_model.named_parameters())[name])
        assert tensor.dtype == torch.float32


def test_rounding_takes_its_tensors_one_at_a_time(
    tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 1)
    written_before = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in sparse_model.named_parameters():
            written_before.append(len(list(tmp_path.glob(f"{UNFINISHED}*"))))
            yield name, parameter

    save_trained(tmp_path, sparse_model, tensors(), tokenizer, Precision.BF16)
    assert written_before == list(range(len(written_before)))


def test_a_checkpoint_is_known_by_its_files(checkpoint: Path, sparse_model: GPT) -> None:
    assert is_bare_checkpoint(checkpoint)
    artifact = open_bare_checkpoint(checkpoint)
    assert artifact.path == checkpoint.resolve()
    assert artifact.config == to_plain(sparse_model.config)
    assert artifact.key == artifact.digest
    assert not artifact.inputs
    assert not artifact.metrics


@pytest.mark.parametrize("name", [MODEL_FILE, INDEX_FILE, CONFIG_FILE])
def test_a_directory_that_lacks_a_part_is_no_checkpoint(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert not is_bare_checkpoint(checkpoint)


def test_other_directories_are_no_checkpoints(tmp_path: Path, checkpoint: Path) -> None:
    assert not is_bare_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert not is_bare_checkpoint(tmp_path / "empty")
    config = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
    (checkpoint / CONFIG_FILE).write_text(json.dumps({**config, "model_type": "llama"}), encoding="utf-8")
    assert not is_bare_checkpoint(checkpoint), "a Hugging Face directory"


def test_a_copy_has_the_digest_of_what_it_is_a_copy_of(checkpoint: Path) -> None:
    digest = open_bare_checkpoint(checkpoint).digest
    copy = copied(checkpoint)
    for file in copy.iterdir():
        os.utime(file, ns=(1, 1))
    (copy / "notes.txt").write_text("not of the checkpoint", encoding="utf-8")
    assert open_bare_checkpoint(copy).digest == digest
    assert open_bare_checkpoint(checkpoint).digest == digest


@pytest.mark.parametrize("what", ["a weight", "the tokenizer", "the configuration"])
def test_other_contents_have_another_digest(checkpoint: Path, sparse_model: GPT, tokenizer: Tokenizer, what: str) -> None:
    digest = open_bare_checkpoint(checkpoint).digest
    place = copied(checkpoint)
    if what == "a weight":
        tensors: dict[str, Tensor] = dict(sparse_model.named_parameters())
        tensors["final_norm.bias"] = tensors["final_norm.bias"] + 1e-3
        save_model(place, sparse_model.config, iter(tensors.items()), tokenizer)
    elif what == "the tokenizer":
        (place / MODEL_FILE).write_bytes((place / MODEL_FILE).read_bytes() + b"\n")
    else:
        config = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
        (place / CONFIG_FILE).write_text(json.dumps({**config, "norm_eps": 2e-5}), encoding="utf-8")
    record_sums(place)
    assert open_bare_checkpoint(place).digest != digest


def test_a_file_changed_in_place_changes_the_digest(checkpoint: Path, tokenizer: Tokenizer) -> None:
    before = open_bare_checkpoint(checkpoint).digest
    other = materialize(GPT(tiny_config()), seed=2)
    save_model(checkpoint, other.config, other.named_parameters(), tokenizer)
    assert open_bare_checkpoint(checkpoint).digest != before


@pytest.mark.parametrize("damage", ["cut off", "empty", "absent", "noise"])
def test_a_damaged_shard_is_named(checkpoint: Path, damage: str) -> None:
    shard = shards(checkpoint)[1]
    content = shard.read_bytes()
    if damage == "absent":
        shard.unlink()
    else:
        shard.write_bytes({"cut off": content[:-8], "empty": b"", "noise": b"\xff" * 64}[damage])
    assert is_bare_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: missing or damaged"):
        open_bare_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG_FILE, "{"),
        (CONFIG_FILE, "[]"),
        (CONFIG_FILE, '{"n_layers": "many"}'),
        (INDEX_FILE, "{"),
        (INDEX_FILE, "{}"),
        (INDEX_FILE, '{"weight_map": {}}'),
    ],
)
def test_a_damaged_json_file_is_named(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content, encoding="utf-8")
    assert is_bare_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_bare_checkpoint(checkpoint)


def without_sums(checkpoint: Path) -> Path:
    """Return a copy whose index is as an older program wrote it."""
    place = copied(checkpoint, "older")
    content = json.loads((place / INDEX_FILE).read_text(encoding="utf-8"))
    (place / INDEX_FILE).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": content["weight_map"]}), encoding="utf-8"
    )
    return place


@pytest.mark.parametrize("name", [MODEL_FILE, CONFIG_FILE])
@pytest.mark.parametrize("damage", ["another byte", "one more byte", "absent"])
def test_configuration_and_tokenizer_are_those_that_were_written(checkpoint: Path, name: str, damage: str) -> None:
    content = (checkpoint / name).read_bytes()
    if damage == "absent":
        (checkpoint / name).unlink()
    elif damage == "another byte":
        changed = content.replace(b"0.1", b"0.2") if name == CONFIG_FILE else content[:-1] + bytes([content[-1] ^ 1])
        assert changed != content
        (checkpoint / name).write_bytes(changed)
    else:
        (checkpoint / name).write_bytes(content + b"\n")
    for opened in (open_bare_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=name):
            opened(checkpoint)


def test_sums_can_be_recorded_of_a_checkpoint_that_has_none(checkpoint: Path) -> None:
    place = without_sums(checkpoint)
    assert not open_store(place, Verify.ALWAYS).sums
    assert record_sums(place) == (len(open_store(place).tensors), 2)
    ours, wanted = (json.loads((p / INDEX_FILE).read_text(encoding="utf-8")) for p in (place, checkpoint))
    assert ours["tensors"] == wanted["tensors"]
    assert ours["files"] == wanted["files"] and set(ours["files"]) == {CONFIG_FILE, MODEL_FILE}
    assert load_model(place, verify=Verify.ALWAYS)
    shard = shards(place)[0]
    tensor = max((t for t in open_store(place).tensors.values() if t.file == shard), key=lambda t: t.n_bytes)
    content = bytearray(shard.read_bytes())
    content[tensor.offset] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=rf"{shard.name}: damaged"):
        load_model(place, verify=Verify.ALWAYS)


def test_sums_of_a_changed_tokenizer_can_be_recorded_and_those_of_weights_stay(checkpoint: Path) -> None:
    before = json.loads((checkpoint / INDEX_FILE).read_text(encoding="utf-8"))
    (checkpoint / MODEL_FILE).write_bytes((checkpoint / MODEL_FILE).read_bytes() + b"\n")
    record_sums(checkpoint)
    after = json.loads((checkpoint / INDEX_FILE).read_text(encoding="utf-8"))
    assert after["tensors"] == before["tensors"]
    assert after["files"][MODEL_FILE] != before["files"][MODEL_FILE]
    assert open_bare_checkpoint(checkpoint)


def test_the_command_records_sums_and_refuses_what_it_cannot_record(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = without_sums(checkpoint)

    def run(directory: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["pipelines.record_sums", f"checkpoint={directory}"])
        code = run_plainly(RecordConfig, record, "")
        return code, "".join(capsys.readouterr())

    assert run(place) == (0, f"{place}: sums of {len(open_store(place).tensors)} tensors and 2 files recorded\n")
    for wrong, word in [(tmp_path / "nowhere", INDEX_FILE), (checkpoint, "manifest.json")]:
        if wrong is checkpoint:
            (wrong / "manifest.json").write_text("{}", encoding="utf-8")
        code, said = run(wrong)
        assert code == 2 and said.startswith(f"error: {wrong}") and word in said and said.count("\n") == 1
