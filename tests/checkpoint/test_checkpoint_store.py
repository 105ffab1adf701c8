"""The store: any reader opens its shards, tensors begin at pages, and whatever is wrong is said before anything is used."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import adapt.checkpoint.integrity
import adapt.checkpoint.store_writer
from adapt.checkpoint.hf_directory import INDEX_FILE
from adapt.checkpoint.integrity import Verify
from adapt.checkpoint.offload import OffloadConfig, WeightsIn
from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.checkpoint.shard_format import PADDING_PREFIX, PAGE_BYTES, read_header
from adapt.checkpoint.store import INDEX_SCHEMA, open_store
from adapt.checkpoint.store_writer import UNFINISHED, write_tensors
from adapt.checkpoint.tensors_in_parts import PartedTensor
from adapt.checkpoint.weights import load_model, record_sums, save_model
from adapt.core.errors import CheckpointError
from adapt.core.precision import Precision
from adapt.core.typed import to_plain
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.tokenizer import Tokenizer
from tests.support.tiny_models import tiny_config

SHAPES = {"a.odd": (3, 5), "b.experts.up": (4, 64, 32), "c.scalar": (), "d.empty": (0, 7), "e.page": (1024,), "f.last": (9,)}
DTYPES = (torch.bfloat16, torch.float32, torch.float32, torch.float16, torch.float32, torch.int64)
WAYS = list(WeightsIn)


def some_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: (100 * torch.randn(shape)).to(dtype) for (name, shape), dtype in zip(SHAPES.items(), DTYPES, strict=True)}


@pytest.fixture
def checkpoint(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint in several shards."""
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 100_000)
    save_model(tmp_path, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    return tmp_path


def opened(place: Path, way: WeightsIn, verify: Verify = Verify.SAMPLE) -> None:
    open_checkpoint(place, ScorerConfig(precision=Precision.FP32), OffloadConfig(weights=way, verify=verify))


def change_index(place: Path, **changes: Any) -> None:
    content = json.loads((place / INDEX_FILE).read_text(encoding="utf-8"))
    content["metadata"].update(changes)
    (place / INDEX_FILE).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("shard_bytes", [1, 10_000, 1 << 30])
def test_any_reader_opens_every_shard_and_tensors_begin_at_pages(
    tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", shard_bytes)
    tensors = some_tensors()
    write_tensors(tmp_path, tensors.items())
    found: dict[str, Tensor] = {}
    for shard in sorted(tmp_path.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as stream:
            found.update({name: stream.get_tensor(name) for name in list(stream.keys()) if not name.startswith(PADDING_PREFIX)})
    store = open_store(tmp_path, Verify.ALWAYS)
    assert found.keys() == tensors.keys() == store.tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert torch.equal(store.read(name), tensor)
        assert store.tensors[name].offset % PAGE_BYTES == 0
    assert len(store.sums["b.experts.up"]) == 4, "each expert has a sum of its own"


def test_a_directory_of_another_writer_opens_too(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    store = open_store(tmp_path, Verify.ALWAYS)
    assert not store.sums
    assert all(torch.equal(store.read(name), tensor) for name, tensor in tensors.items())


def test_without_pages_a_shard_holds_nothing_but_its_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path, some_tensors().items(), has_pages=False)
    for shard in tmp_path.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as stream:
            assert set(stream.keys()) <= set(SHAPES)
    assert all(torch.equal(open_store(tmp_path).read(name), tensor) for name, tensor in some_tensors().items())


def test_a_parted_tensor_is_written_part_by_part(tmp_path: Path) -> None:
    whole = torch.randn(5, 40, 30)
    alive: list[int] = []

    def parts() -> Iterator[Tensor]:
        for index in range(5):
            alive.append(index)
            yield whole[index].clone()

    write_tensors(tmp_path, [("x", PartedTensor(shape=(5, 40, 30), dtype=torch.float32, parts=parts).to(torch.bfloat16))])
    store = open_store(tmp_path, Verify.ALWAYS)
    assert alive == list(range(5))
    assert torch.equal(store.read("x"), whole.bfloat16())
    assert len(store.sums["x"]) == 5
    short = PartedTensor(shape=(6, 40, 30), dtype=torch.float32, parts=parts)
    with pytest.raises(CheckpointError, match="has 5 parts, 6 were announced"):
        write_tensors(tmp_path, [("y", short)])
    assert torch.equal(open_store(tmp_path, Verify.ALWAYS).read("x"), whole.bfloat16()), "what was there stays"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verify", [Verify.ALWAYS, Verify.SAMPLE])
def test_a_damaged_byte_is_named(checkpoint: Path, way: WeightsIn, verify: Verify) -> None:
    place = open_store(checkpoint).tensors["blocks.1.mlp.experts.up_weight"]
    with place.file.open("r+b") as stream:
        stream.seek(place.offset + place.n_bytes // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{place.file.name}: damaged \(part 2 of tensor blocks\.1\.mlp\.experts\.up_weight"):
        opened(checkpoint, way, verify)
    opened(checkpoint, way, Verify.NEVER)


def test_a_sample_is_another_one_each_time_and_never_more_than_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    real = adapt.checkpoint.integrity.bytes_of

    def counted(place: Any) -> Iterator[bytes]:
        hashed.append(place.n_bytes)
        return real(place)

    monkeypatch.setattr(adapt.checkpoint.integrity, "bytes_of", counted)
    monkeypatch.setattr(adapt.checkpoint.integrity, "SAMPLE_BYTES", 30_000)
    samples = []
    for _ in range(5):
        hashed.clear()
        open_store(checkpoint)
        assert 0 < sum(hashed) <= 30_000
        samples.append(tuple(hashed))
    assert len(set(samples)) > 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", ["cut off", "absent", "pickle", "torch file", "newer schema", "other size"])
def test_what_is_wrong_is_said_before_anything_is_computed(
    checkpoint: Path, way: WeightsIn, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    expected = rf"{shard.name}: missing or damaged"
    if damage == "cut off":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "absent":
        shard.unlink()
    elif damage == "pickle":
        shard.write_bytes(pickle.dumps({"weights": list(range(9000))}))
        expected = rf"{shard.name}: missing or damaged \(a pickle, which is never loaded"
    elif damage == "torch file":
        torch.save({"weights": torch.zeros(9000)}, shard)
        expected = rf"{shard.name}: missing or damaged \(a pickle, which is never loaded"
    elif damage == "newer schema":
        change_index(checkpoint, schema_version=INDEX_SCHEMA + 1)
        expected = rf"{INDEX_FILE}: schema version {INDEX_SCHEMA + 1}, this program reads up to {INDEX_SCHEMA}"
    else:
        other = to_plain(tiny_config(hidden_size=64))
        (checkpoint / "config.json").write_text(json.dumps(other), encoding="utf-8")
        record_sums(checkpoint)
        expected = r"embedding\.weight has shape \(2400, 32\), the model needs \(2400, 64\)"
    monkeypatch.setattr("adapt.checkpoint.weights.stream", lambda store: pytest.fail("weights were read"))
    monkeypatch.setattr("adapt.checkpoint.weights.PagedWeights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match=expected) as caught:
        opened(checkpoint, way)
    assert "\n" not in str(caught.value)


def test_a_second_writer_is_refused_and_the_first_loses_nothing(checkpoint: Path, sparse_model: GPT) -> None:
    other = materialize(GPT(sparse_model.config), seed=9)
    refused: list[str] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in sparse_model.named_parameters():
            if not refused:
                with pytest.raises(CheckpointError, match="another process is writing a checkpoint there"):
                    save_model(checkpoint, other.config, other.named_parameters(), None)
                refused.append(name)
            yield name, tensor

    save_model(checkpoint, sparse_model.config, tensors(), None)
    found = load_model(checkpoint, verify=Verify.ALWAYS)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), sparse_model.parameters(), strict=True))
    handle = os.open(checkpoint, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_a_writer_that_dies_leaves_what_was_there(checkpoint: Path, sparse_model: GPT) -> None:
    other = materialize(GPT(sparse_model.config), seed=9)

    def dying() -> Iterator[tuple[str, Tensor]]:
        for index, pair in enumerate(other.named_parameters()):
            if index == 20:
                raise KeyboardInterrupt
            yield pair

    with pytest.raises(KeyboardInterrupt):
        save_model(checkpoint, other.config, dying(), None)
    found = load_model(checkpoint, verify=Verify.ALWAYS)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), sparse_model.parameters(), strict=True))
    assert list(checkpoint.glob(f"{UNFINISHED}*"))
    save_model(checkpoint, other.config, other.named_parameters(), None)
    assert not list(checkpoint.glob(f"{UNFINISHED}*"))
    again = dict(load_model(checkpoint).named_parameters())
    assert torch.equal(again["embedding.weight"], other.embedding.weight)


def test_fewer_shards_than_before_leave_none_behind(checkpoint: Path, sparse_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(checkpoint.glob("*.safetensors"))) > 2
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 1 << 30)
    save_model(checkpoint, sparse_model.config, sparse_model.named_parameters(), None)
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["model-00001.safetensors"]


def test_an_index_that_points_elsewhere_is_refused(checkpoint: Path) -> None:
    content = json.loads((checkpoint / INDEX_FILE).read_text(encoding="utf-8"))
    name = next(iter(content["weight_map"]))
    for strange in ("../model-00001.safetensors", "/etc/passwd", ""):
        content["weight_map"][name] = strange
        (checkpoint / INDEX_FILE).write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(CheckpointError, match="no file of its directory"):
            open_store(checkpoint)


def test_a_header_that_leaves_bytes_out_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "y.safetensors").write_bytes(whole.replace(b'"data_offsets":[16,32]', b'"data_offsets":[12,28]'))
    with pytest.raises(CheckpointError, match="begins at byte"):
        read_header(tmp_path / "y.safetensors")


def test_without_direct_writes_the_same_bytes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    write_tensors(tmp_path / "one", some_tensors().items())
    really_open = os.open

    def refusing(path: Any, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    write_tensors(tmp_path / "other", some_tensors().items())
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()
