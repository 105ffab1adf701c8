"""Checkpoints: what is saved comes back bit for bit, and whatever is wrong with one is named, never loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import adapt.checkpoint.store_writer
from adapt.checkpoint.shard_format import PADDING_PREFIX
from adapt.checkpoint.store_writer import UNFINISHED
from adapt.checkpoint.vocabulary import check_vocabulary, load_tokenizer
from adapt.checkpoint.weights import CONFIG_FILE, INDEX_FILE, has_weights, iterate_tensors, load_config, load_model, save_model
from adapt.core.errors import CheckpointError
from adapt.core.typed import to_plain
from adapt.model.exchange import ExpertShare
from adapt.model.expert_parallel import own_part
from adapt.model.gpt import GPT, GPTConfig
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from tests.support.inner_parts import block_of
from tests.support.tiny_models import tiny_config


@pytest.fixture
def checkpoint(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint in several shards."""
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 100_000)
    save_model(tmp_path, sparse_model.config, sparse_model.named_parameters(), tokenizer)
    return tmp_path


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def index_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))
    return found


def saved_with(directory: Path, model: GPT, tokenizer: Tokenizer, changes: dict[str, Tensor | None]) -> Path:
    """Save a model with some tensors replaced, added, or (None) left out."""
    tensors = {**dict(model.named_parameters()), **changes}
    save_model(directory, model.config, iter([(name, t) for name, t in tensors.items() if t is not None]), tokenizer)
    return directory


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    wanted = dict(other.named_parameters())
    assert {name for name, _ in one.named_parameters()} == set(wanted)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


@pytest.mark.parametrize("fixture", ["sparse_model", "dense_model"])
def test_a_saved_model_comes_back_bit_for_bit(
    tmp_path: Path, tokenizer: Tokenizer, fixture: str, request: pytest.FixtureRequest
) -> None:
    model: GPT = request.getfixturevalue(fixture)
    assert not has_weights(tmp_path)
    save_model(tmp_path, model.config, model.named_parameters(), tokenizer)
    assert has_weights(tmp_path)
    assert len(shards(tmp_path)) == 1
    assert all((tmp_path / name).is_file() for name in (CONFIG_FILE, INDEX_FILE, MODEL_FILE))
    loaded = load_model(tmp_path)
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert to_plain(load_config(tmp_path)) == to_plain(model.config)
    assert load_tokenizer(tmp_path, model.config).digest == tokenizer.digest


@pytest.mark.parametrize(("index", "of"), [(0, 2), (1, 2), (0, 4), (3, 4)])
def test_a_share_of_the_experts_comes_back_alone(checkpoint: Path, sparse_model: GPT, index: int, of: int) -> None:
    share = ExpertShare(index=index, of=of)
    loaded = dict(load_model(checkpoint, share=share).named_parameters())
    for name, whole in sparse_model.named_parameters():
        assert torch.equal(loaded[name], own_part(name, whole, share)), name
        assert (len(loaded[name]) < len(whole)) == (".experts." in name)


def test_several_shards_come_back_bit_for_bit(checkpoint: Path, sparse_model: GPT) -> None:
    index = index_of(checkpoint)
    assert len(shards(checkpoint)) > 2
    assert {path.name for path in shards(checkpoint)} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(p.numel() * p.element_size() for p in sparse_model.parameters())
    assert_same_weights(load_model(checkpoint), sparse_model)


def test_a_shard_holds_what_the_index_says(checkpoint: Path) -> None:
    weight_map = index_of(checkpoint)["weight_map"]
    for shard in shards(checkpoint):
        held = {name for name in load_file(shard) if not name.startswith(PADDING_PREFIX)}
        assert held == {name for name, where in weight_map.items() if where == shard.name}


def test_saving_takes_its_tensors_one_at_a_time(
    tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 1)
    written_before = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in sparse_model.named_parameters():
            written_before.append(len(list(tmp_path.glob(f"{UNFINISHED}*"))))
            yield name, parameter

    save_model(tmp_path, sparse_model.config, tensors(), tokenizer)
    assert written_before == list(range(len(written_before)))
    assert_same_weights(load_model(tmp_path), sparse_model)


def test_tensors_that_are_views_are_saved_as_they_look(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer) -> None:
    weight = block_of(sparse_model, 0).attention.out.weight
    name = "blocks.0.attention.out.weight"
    saved_with(tmp_path, sparse_model, tokenizer, {name: weight.T})
    assert torch.equal(dict(load_model(tmp_path).named_parameters())[name], weight.T)


def test_weights_load_in_the_asked_dtype_but_for_routers(checkpoint: Path, sparse_model: GPT) -> None:
    loaded = dict(load_model(checkpoint, dtype=torch.bfloat16).named_parameters())
    assert any(".router." in name for name in loaded)
    for name, parameter in sparse_model.named_parameters():
        wanted = parameter if ".router." in name else parameter.bfloat16()
        assert loaded[name].dtype == wanted.dtype
        assert torch.equal(loaded[name], wanted)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    shards(checkpoint)[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002\.safetensors: missing or damaged"):
        load_model(checkpoint)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_shard_is_named(checkpoint: Path, kept: float) -> None:
    shard = shards(checkpoint)[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"model-00002\.safetensors: missing or damaged"):
        load_model(checkpoint)


def test_a_shard_that_lacks_an_indexed_tensor_is_named(checkpoint: Path) -> None:
    shard = shards(checkpoint)[0]
    held = load_file(shard)
    lost = min(held)
    save_file({**{name: t for name, t in held.items() if name != lost}, "other": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=rf"model-00001\.safetensors: missing or damaged .*{lost}"):
        load_model(checkpoint)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_a_shard_is_refused_unopened(checkpoint: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    bait = pickle.dumps(Trap(sprung))
    pickle.loads(bait)
    assert sprung.exists()
    sprung.unlink()
    shards(checkpoint)[0].write_bytes(bait)
    with pytest.raises(CheckpointError, match=r"model-00001\.safetensors"):
        load_model(checkpoint)
    torch.save({"embedding.weight": torch.zeros(2)}, shards(checkpoint)[0])
    with pytest.raises(CheckpointError, match=r"model-00001\.safetensors"):
        load_model(checkpoint)
    assert not sprung.exists()


def test_a_missing_tensor_is_named(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer) -> None:
    saved_with(tmp_path, sparse_model, tokenizer, {"blocks.1.mlp.experts.up_bias": None})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.experts\.up_bias is missing \(1 in all\)") as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_left_over_tensor_is_named(tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer) -> None:
    saved_with(tmp_path, sparse_model, tokenizer, {"blocks.9.mlp.up.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"blocks\.9\.mlp\.up\.weight does not belong") as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("shape", [(31,), (33,), (1,), (32, 1), ()])
def test_a_tensor_of_another_shape_is_named(
    tmp_path: Path, sparse_model: GPT, tokenizer: Tokenizer, shape: tuple[int, ...]
) -> None:
    saved_with(tmp_path, sparse_model, tokenizer, {"final_norm.weight": torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=r"final_norm\.weight has shape .*the model needs \(32,\)") as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_another_vocabulary_than_the_tokenizers_is_named(checkpoint: Path, tokenizer: Tokenizer) -> None:
    other: GPTConfig = tiny_config(vocab_size=tokenizer.vocab_size + 8)
    with pytest.raises(CheckpointError, match=f"has {tokenizer.vocab_size} tokens, but .* is {tokenizer.vocab_size + 8}") as caught:
        load_tokenizer(checkpoint, other)
    assert str(checkpoint / MODEL_FILE) in str(caught.value)
    check_vocabulary(tokenizer, tiny_config(vocab_size=tokenizer.vocab_size))


@pytest.mark.parametrize("name", [CONFIG_FILE, INDEX_FILE])
@pytest.mark.parametrize("content", [None, "{", ""])
def test_an_absent_or_broken_json_file_is_named(checkpoint: Path, name: str, content: str | None) -> None:
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=name):
        load_model(checkpoint)


def test_a_missing_tokenizer_is_named(checkpoint: Path, sparse_model: GPT) -> None:
    (checkpoint / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match=MODEL_FILE):
        load_tokenizer(checkpoint, sparse_model.config)


def test_tensors_are_read_one_at_a_time_in_a_fixed_order(checkpoint: Path, sparse_model: GPT) -> None:
    names = [name for name, _ in iterate_tensors(checkpoint)]
    assert names == [name for name, _ in iterate_tensors(checkpoint)]
    assert sorted(names) == sorted(name for name, _ in sparse_model.named_parameters())


def test_every_shard_is_looked_at_before_the_first_tensor_is_read(checkpoint: Path) -> None:
    shards(checkpoint)[-1].unlink()
    with pytest.raises(CheckpointError, match=rf"model-{len(shards(checkpoint)) + 1:05d}\.safetensors: missing"):
        next(iterate_tensors(checkpoint))
