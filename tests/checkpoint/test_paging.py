"""Paged weights: whatever way they come, the same bits; only what is needed is read; memory is given back and used again."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adapt.checkpoint.store_writer
from adapt.checkpoint.offload import OffloadConfig, WeightsIn
from adapt.checkpoint.paged_weights import PagedWeights
from adapt.checkpoint.random_weights import random_weights
from adapt.checkpoint.store import open_store
from adapt.checkpoint.weights import iterate_tensors, load_model, open_paged, rounded, save_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import FORMATS, Precision
from adapt.core.spans import NO_TARGET, Reading
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.inputs import CausalBase, ModelInputs
from adapt.model.paged_gpt import PagedGPT
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top2 import Top2Config
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.tokenizer import Tokenizer
from pipelines.bench.scoring_cases import LABEL_KINDS, label_example
from tests.support.tiny_models import tiny_config

PAGED = [WeightsIn.MMAP, WeightsIn.RING]
MODELS = {
    "sparse": tiny_config(experts=[3, 5]),
    "fewer experts above": tiny_config(experts=[40, 3], hidden_size=64),
    "dense": tiny_config(experts=[0]),
    "bias state": tiny_config(router=SigmoidBiasConfig(rate=0.1), expert_residual_layers=1),
    "two experts, evenly": tiny_config(router=Top2Config(), even_routing=True, is_residual=False),
}


def saved(place: Path, config: GPTConfig, precision: Precision) -> Path:
    """Save a model whose biases, norms and states are random too, so that nothing can be forgotten or swapped unseen."""
    model = materialize(GPT(config), seed=3)
    torch.manual_seed(3)
    with torch.no_grad():
        for _, tensor in named_state(model):
            tensor.add_(0.05 * torch.randn_like(tensor))
    place.mkdir(parents=True)
    save_model(place, config, rounded(named_state(model), precision), None)
    return place


def inputs_of(rows: int, columns: int, seed: int) -> ModelInputs:
    """Return rows with padding at the end of all but the first."""
    torch.manual_seed(seed)
    ids = torch.randint(0, 2400, (rows, columns))
    documents = torch.ones_like(ids)
    documents[1:, columns - 2 :] = 0
    positions = torch.arange(columns).expand(rows, -1).contiguous()
    return ModelInputs(ids_BT=ids, positions_BT=positions, documents_BT=documents, is_packed=False)


def paged(place: Path, way: WeightsIn, dtype: torch.dtype | None = None, **changes: Any) -> PagedGPT:
    return open_paged(place, replace(OffloadConfig(weights=way), **changes), "cpu", dtype)


def weights_of(model: PagedGPT) -> PagedWeights:
    assert isinstance(model.provider, PagedWeights)
    return model.provider


def hidden_of(model: CausalBase, inputs: ModelInputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(inputs).hidden_BTH


def every_way_and_format() -> list[Any]:
    """Return parameters: BF16 both ways is fast, and one model in each of the other formats."""
    found = []
    for stored, name, way in itertools.product(FORMATS, MODELS, PAGED):
        is_fast = stored is Precision.BF16 or (name, way) == ("sparse", WeightsIn.RING)
        found.append(pytest.param(stored, name, way, marks=[] if is_fast else [pytest.mark.slow]))
    return found


@pytest.mark.parametrize(("stored", "name", "way"), every_way_and_format())
def test_paged_weights_give_the_bits_of_those_in_memory(tmp_path: Path, name: str, stored: Precision, way: WeightsIn) -> None:
    place = saved(tmp_path / "c", MODELS[name], stored)
    batches = [inputs_of(3, 17, 1), inputs_of(1, 2, 2), inputs_of(2, 40, 3)]
    for dtype in (None, torch.bfloat16):
        whole, model = load_model(place, dtype=dtype), paged(place, way, dtype)
        together = model.run_together(batches)
        for inputs, output in zip(batches, together, strict=True):
            with torch.inference_mode():
                wanted = whole(inputs)
                assert torch.equal(model.logits(output.hidden_BTH[0]), whole.logits(wanted.hidden_BTH[0]))
            assert torch.equal(output.hidden_BTH, wanted.hidden_BTH)
            assert torch.equal(hidden_of(model, inputs), wanted.hidden_BTH), "alone"
            assert len(output.routing) == len(wanted.routing)
            for one, other in zip(output.routing, wanted.routing, strict=True):
                assert torch.equal(one.counts_E, other.counts_E)


@pytest.mark.parametrize("way", PAGED)
def test_scores_are_the_same_bits_however_many_batches_pass_together(tmp_path: Path, way: WeightsIn) -> None:
    place = saved(tmp_path / "c", tiny_config(vocab_size=8192), Precision.BF16)
    examples = [label_example(10 + 5 * i, 4 + i, i) for i in range(6)]
    config = ScorerConfig(max_batch_tokens=64)
    wanted = list(TreeScorer(load_model(place), config).score(examples, LABEL_KINDS))
    for pass_tokens in (1, 150, 16384):
        model = paged(place, way, pass_tokens=pass_tokens)
        found = list(TreeScorer(model, config).score(examples, LABEL_KINDS))
        assert all((one == other).all() for one, other in zip(found, wanted, strict=True))
        reads = weights_of(model).clock.read_bytes
        if pass_tokens == 1:
            most = reads
    assert reads < most / 2, "batches that pass together read the model once"


@pytest.mark.parametrize("way", PAGED)
def test_rows_go_on_from_a_past(tmp_path: Path, way: WeightsIn) -> None:
    place = saved(tmp_path / "c", MODELS["sparse"], Precision.FP32)
    examples = [label_example(20, 4, i) for i in range(3)]
    examples = [[replace_ids(reading) for reading in example] for example in examples]
    config = ScorerConfig(layout=Layout.CACHE)
    wanted = list(TreeScorer(load_model(place), config).score(examples, LABEL_KINDS))
    found = list(TreeScorer(paged(place, way), config).score(examples, LABEL_KINDS))
    assert all((one == other).all() for one, other in zip(found, wanted, strict=True))


def replace_ids(reading: Reading) -> Reading:
    targets = np.where(reading.targets_T == NO_TARGET, NO_TARGET, reading.targets_T % 2400)
    return replace(reading, inputs_T=reading.inputs_T % 2400, targets_T=targets)


@pytest.mark.parametrize("way", PAGED)
def test_experts_without_tokens_are_not_read(tmp_path: Path, way: WeightsIn) -> None:
    config = tiny_config(experts=[32], is_residual=False)
    place = saved(tmp_path / "c", config, Precision.FP32)
    model = paged(place, way)
    model(inputs_of(1, 1, 5))
    one_token = weights_of(model).clock.read_bytes
    expert = 2 * 4 * config.hidden_size**2 * 4
    store = open_store(place)
    dense = sum(p.n_bytes for name, p in store.tensors.items() if name.startswith("blocks.") and not name.endswith("p_weight"))
    dense -= sum(p.n_bytes for name, p in store.tensors.items() if name.endswith("experts.down_weight"))
    assert one_token == dense + 2 * expert, "two MoE layers, one expert each"


@pytest.mark.parametrize("way", PAGED)
def test_buffers_are_used_again(tmp_path: Path, way: WeightsIn) -> None:
    place = saved(tmp_path / "c", tiny_config(experts=[16]), Precision.FP32)
    model = paged(place, way, ahead_mb=1)
    batches = [inputs_of(4, 30, 7)]
    wanted = hidden_of(load_model(place), batches[0])
    for _ in range(3):
        assert torch.equal(model.run_together(batches)[0].hidden_BTH, wanted)
    free = weights_of(model)._pager._free
    assert {kind: len(rooms) for kind, rooms in free.items()}["layer"] == 2, "everything was given back"


def _score_in_child(place: str, way: str) -> list[float]:
    torch.set_num_threads(1)
    return hidden_of(paged(Path(place), WeightsIn(way)), inputs_of(2, 12, 9)).flatten().tolist()


def test_two_processes_that_page_one_checkpoint_find_the_same_bits(tmp_path: Path) -> None:
    place = saved(tmp_path / "c", MODELS["sparse"], Precision.BF16)
    wanted = hidden_of(load_model(place), inputs_of(2, 12, 9)).flatten().tolist()
    with get_context("fork").Pool(2) as pool:
        found = pool.starmap(_score_in_child, [(str(place), way.value) for way in PAGED])
    assert found == [wanted, wanted]


@pytest.mark.parametrize("way", PAGED)
def test_a_shard_that_is_cut_off_while_it_is_paged_is_named(tmp_path: Path, way: WeightsIn) -> None:
    place = saved(tmp_path / "c", MODELS["sparse"], Precision.FP32)
    model = paged(place, way)
    shard = place / "model-00001.safetensors"
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model-00001\.safetensors"):
        model(inputs_of(1, 8, 1))


def test_without_direct_reads_the_ring_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = saved(tmp_path / "c", MODELS["dense"], Precision.FP32)
    really_open = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(ConfigError, match=r"O_DIRECT\); set offload.weights=mmap"):
        paged(place, WeightsIn.RING)(inputs_of(1, 4, 1))


def test_a_rank_reads_the_experts_that_it_owns(tmp_path: Path) -> None:
    place = saved(tmp_path / "c", MODELS["sparse"], Precision.BF16)
    store = open_store(place)
    whole = dict(iterate_tensors(place))
    for world in (1, 2, 3):
        for name in (name for name in whole if ".experts." in name):
            shares = [range(rank, len(whole[name]), world) for rank in range(world)]
            for share in shares:
                assert torch.equal(store.read_rows(name, share), whole[name][list(share)])
    with pytest.raises(CheckpointError, match="not 9"):
        store.read_rows("blocks.1.mlp.experts.up_weight", [0, 9])


@pytest.mark.parametrize("precision", FORMATS)
def test_a_streamed_random_checkpoint_is_the_one_that_is_made_in_memory(
    tmp_path: Path, tokenizer: Tokenizer, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 200_000)
    for name, config in MODELS.items():
        streamed, held = tmp_path / f"{name} streamed", tmp_path / f"{name} held"
        for place, weights in ((streamed, random_weights(config, 4)), (held, named_state(materialize(GPT(config), 4)))):
            place.mkdir()
            save_model(place, config, rounded(weights, precision), tokenizer)
        one, other = dict(iterate_tensors(streamed)), dict(iterate_tensors(held))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
