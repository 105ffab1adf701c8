"""One and two real ranks under DeepSpeed against a plain PyTorch loop over the same global batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import BATCH_ROWS, CASES, MODELS, OBJECTIVES, OPTIMIZER, RESUMED, STEPS, TRAINED, WEIGHTED, optimizer_of, rows_of
from torch import Tensor

from adapt.core.runtime import seed_for
from adapt.model.batches import Batch, collate
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.objective import ObjectiveConfig, contribution, ledger_from, part_counts, parts_of
from adapt.text.packing import StepOrder
from adapt.train.optimizer import learning_rate, make_optimizer
from adapt.train.trained import Trained, train_only
from pipelines.launch import free_port, rank_environment

TOLERANCE = 1e-5


def plain_loop(name: str) -> dict[str, Any]:
    """Train a case without DeepSpeed: whole batches, AdamW, clipping."""
    kind, objective_name, *_ = CASES[name]
    whole, rows = OBJECTIVES[objective_name], rows_of(name)
    model = materialize(GPT(MODELS[kind]), seed=3)
    train_only(model, TRAINED.get(name, Trained.ALL))
    optimizer = make_optimizer(model, optimizer_of(name))
    shares = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    order = StepOrder(n_rows=len(rows), batch=BATCH_ROWS, seed=5)
    history = []
    for step in range(STEPS):
        places = order.rows_at(step)
        batch = collate([rows[index] for index, _ in places], 1, step, [seed_for(5, step, *place) for place in places])
        counts, objective = part_counts(model, batch), whole.at(step / STEPS)
        norms = part_norms(model, batch, counts, shares, objective) if name == WEIGHTED and step % 2 else {}
        part = contribution(model, batch, counts, shares, objective, world_size=1)
        part.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIMIZER, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step([layer.counts_E for layer in part.layers])
        shares = [layer.shares_E for layer in part.layers]
        ledger = ledger_from(model, part.sums_P, counts, part.layers, objective)
        history.append({"grad_norm": float(norm), **norms, **{f"loss/{p}": ledger[p].value for p in parts_of(model)}})
    return {"history": history, "weights": dict(named_state(model))}


def part_norms(model: GPT, batch: Batch, counts_P: Tensor, shares: list[Tensor], objective: ObjectiveConfig) -> dict[str, float]:
    """Differentiate one part after the other by itself."""
    norms = {}
    for place, (part, weight) in enumerate(zip(parts_of(model), objective.part_weights(model), strict=True)):
        if weight:
            model.zero_grad()
            contribution(model, batch, counts_P, shares, objective, world_size=1).losses_P[place].backward()
            norms[part] = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    total = sum(norms.values())
    return {f"gradient_norm/{p}": n for p, n in norms.items()} | {f"gradient_share/{p}": n / total for p, n in norms.items()}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once per world size."""
    world_size = request.param
    place = tmp_path_factory.mktemp(f"world{world_size}")
    port = free_port()
    script = str(Path(__file__).with_name("rank_cases.py"))
    ranks = [
        subprocess.Popen([sys.executable, script, str(place)], env=rank_environment(rank, world_size, port, threads=1))
        for rank in range(world_size)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0] * world_size
    return dict(torch.load(place / "results.pt", weights_only=True))


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_give_the_ledger_and_weights_of_a_plain_loop(results: dict[str, Any], name: str) -> None:
    expected, found = plain_loop(name), results[name]
    for want, got in zip(expected["history"], found["history"], strict=True):
        for key, value in want.items():
            assert got[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), key
    for key, value in expected["weights"].items():
        assert torch.allclose(found["weights"][key], value, rtol=0, atol=TOLERANCE), key


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(results: dict[str, Any], name: str) -> None:
    assert results[f"{name}, resumed"]["history"] == results[name]["history"]
    for key, value in results[name]["weights"].items():
        assert torch.equal(results[f"{name}, resumed"]["weights"][key], value), key


def test_every_tensor_moves_in_training(results: dict[str, Any]) -> None:
    start = dict(materialize(GPT(MODELS["sparse"]), seed=3).named_parameters())
    trained = results["sparse, one cut"]["weights"]
    assert [name for name, value in start.items() if torch.equal(value, trained[name])] == []


def test_what_is_not_trained_stays_to_the_bit_in_bf16_too(results: dict[str, Any]) -> None:
    unchanged = results["frozen in bf16"]
    assert {name for name, is_same in unchanged.items() if is_same} == {name for name in unchanged if ".experts." not in name}


def test_measuring_does_not_depend_on_the_cut(results: dict[str, Any]) -> None:
    one, other = results["sparse, one cut"]["measured"], results["sparse, other micro-batches and padding"]["measured"]
    assert one == pytest.approx(other, rel=1e-4)
