"""Wrapped Hugging Face models against plain transformers forward passes, one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapt.checkpoint.weights import load_model
from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span, SpannedText, join_parts, read_with_targets
from adapt.model.batches import collate
from adapt.model.hf import HFModel
from adapt.model.hf_families import FAMILIES, SPARSE_FAMILIES
from adapt.model.inputs import ModelInputs
from adapt.objective import contribution, part_counts
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from tests.support.hf_checkpoints import make_model

VOCAB = 60
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
TIED: dict[str, dict[str, Any]] = {"qwen2": {"tie_word_embeddings": True}, "qwen3_moe": {"tie_word_embeddings": True}}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HFModel, Any]:
    """Return a checkpoint opened as a base, and by transformers itself."""
    family = request.param
    place = make_model(tmp_path_factory.mktemp(family), family, VOCAB, **TIED.get(family, {}))
    wrapped = load_model(place)
    assert isinstance(wrapped, HFModel)
    plain = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager").eval()
    return wrapped, plain


@pytest.fixture(scope="module", params=SPARSE_FAMILIES)
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    wrapped = load_model(make_model(tmp_path_factory.mktemp(request.param), request.param, VOCAB))
    assert isinstance(wrapped, HFModel)
    return wrapped


def ids_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def laid_out(rows: Sequence[Sequence[torch.Tensor]], width: int | None = None) -> ModelInputs:
    """Lay documents out in padded rows."""
    lengths = [sum(len(document) for document in row) for row in rows]
    shape = (len(rows), width or max(lengths))
    ids, positions, documents = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row, start=1):
            place = slice(start, start + len(document))
            ids[index, place], documents[index, place] = document, number
            positions[index, place] = torch.arange(len(document))
            start += len(document)
    return ModelInputs(ids_BT=ids, positions_BT=positions, documents_BT=documents, is_packed=any(len(row) > 1 for row in rows))


@torch.no_grad()
def logits_of(model: HFModel, inputs: ModelInputs) -> torch.Tensor:
    return model.logits(model(inputs).hidden_BTH)


@torch.no_grad()
def plain_logits(plain: Any, ids: torch.Tensor) -> torch.Tensor:
    return plain(input_ids=ids.unsqueeze(0)).logits[0]


def test_a_row_has_the_logits_of_a_plain_forward_pass(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    ids = ids_of(17)
    torch.testing.assert_close(logits_of(wrapped, laid_out([[ids]]))[0], plain_logits(plain, ids), **CLOSE)
    assert wrapped.vocab_size == VOCAB
    assert wrapped.context_length == 96
    assert wrapped.hidden_size == 32


def test_packed_documents_do_not_see_each_other(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    documents = [ids_of(n, seed=n) for n in (5, 9, 1, 7)]
    rows = [[documents[0], documents[1]], [documents[2], documents[3], documents[0]]]
    found = logits_of(wrapped, laid_out(rows, width=16))
    for row, documents_of_row in enumerate(rows):
        start = 0
        for document in documents_of_row:
            torch.testing.assert_close(found[row, start : start + len(document)], plain_logits(plain, document), **CLOSE)
            start += len(document)


def test_padding_and_neighbours_change_nothing(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    short, long = ids_of(6, seed=1), ids_of(20, seed=2)
    found = logits_of(wrapped, laid_out([[short], [long]], width=32))
    torch.testing.assert_close(found[0, :6], plain_logits(plain, short), **CLOSE)
    torch.testing.assert_close(found[1, :20], plain_logits(plain, long), **CLOSE)


def branches(trunk: torch.Tensor, tails: Sequence[torch.Tensor], past: int = 0) -> ModelInputs:
    """Lay a trunk and its branches out in one row under a tail mask; the first `past` of the trunk are left to a past."""
    size = sum(len(tail) for tail in tails)
    mask = torch.zeros(1, size, len(trunk) + size, dtype=torch.bool)
    mask[:, :, : len(trunk)] = True
    positions, start = [torch.arange(len(trunk))], 0
    for tail in tails:
        own = torch.ones(len(tail), len(tail)).tril().bool()
        mask[0, start : start + len(tail), len(trunk) + start : len(trunk) + start + len(tail)] = own
        positions.append(len(trunk) + torch.arange(len(tail)))
        start += len(tail)
    ids = torch.cat([trunk, *tails])[past:].unsqueeze(0)
    return ModelInputs(
        ids_BT=ids,
        positions_BT=torch.cat(positions)[past:].unsqueeze(0),
        documents_BT=torch.ones_like(ids),
        mask_BSW=mask,
        is_packed=False,
    )


def test_branches_under_a_tail_mask_see_the_trunk_and_themselves(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    trunk, tails = ids_of(9, seed=3), [ids_of(4, seed=4), ids_of(2, seed=5), ids_of(1, seed=6)]
    found = logits_of(wrapped, branches(trunk, tails))[0]
    start = len(trunk)
    for tail in tails:
        expected = plain_logits(plain, torch.cat([trunk, tail]))
        torch.testing.assert_close(found[: len(trunk)], expected[: len(trunk)], **CLOSE)
        torch.testing.assert_close(found[start : start + len(tail)], expected[len(trunk) :], **CLOSE)
        start += len(tail)


def test_rows_go_on_from_a_kept_past_and_leave_it_as_it_was(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    trunk, tails = ids_of(9, seed=7), [ids_of(4, seed=8), ids_of(3, seed=9)]
    with torch.no_grad():
        output = wrapped(replace(laid_out([[trunk]]), keeps_past=True))
    assert output.past is not None
    assert len(output.past) == 9
    before = [keys.clone() for keys, _ in output.past.layers]
    inputs = replace(branches(trunk, tails, past=9), past=output.past)
    for _ in range(2):  # the same past serves twice
        found = logits_of(wrapped, inputs)[0]
        start = 0
        for tail in tails:
            expected = plain_logits(plain, torch.cat([trunk, tail]))[len(trunk) :]
            torch.testing.assert_close(found[start : start + len(tail)], expected, **CLOSE)
            start += len(tail)
    assert all(torch.equal(keys, old) for (keys, _), old in zip(output.past.layers, before, strict=True))


def test_a_past_that_was_gone_on_from_can_be_kept_again(pair: tuple[HFModel, Any]) -> None:
    wrapped, plain = pair
    ids = ids_of(12, seed=10)
    with torch.no_grad():
        first = wrapped(replace(laid_out([[ids[:5]]]), keeps_past=True))
        second = wrapped(replace(branches(ids[:5], [ids[5:8]], past=5), past=first.past, keeps_past=True))
    assert second.past is not None
    assert len(second.past) == 8
    last = logits_of(wrapped, replace(branches(ids[:8], [ids[8:]], past=8), past=second.past))[0]
    torch.testing.assert_close(last, plain_logits(plain, ids)[8:], **CLOSE)


def candidates(seed: int) -> list[Reading]:
    random = np.random.default_rng(seed)
    context, tail = random.integers(20, 50, 4 + seed % 9).tolist(), random.integers(20, 50, 3).tolist()
    texts = [
        join_parts([([2], Span.CONTEXT), (context, Span.CONTEXT), (label, Span.LABEL), (tail, Span.PROMPT)])
        for label in ([11], [12, 13], [12, 14, 15], [16])
    ]
    return [read_with_targets(text, LabelForm.CLM) for text in texts]


@pytest.mark.parametrize("layout", Layout)
def test_the_tree_scorer_gives_the_sums_of_a_plain_forward_pass_per_candidate(pair: tuple[HFModel, Any], layout: Layout) -> None:
    wrapped, plain = pair
    examples = [candidates(seed) for seed in range(5)]
    config = ScorerConfig(max_batch_tokens=120, layout=layout)
    found = list(TreeScorer(wrapped, config).score(examples, frozenset(Span)))
    for readings, sums in zip(examples, found, strict=True):
        for reading, row in zip(readings, sums, strict=True):
            log_probs = plain_logits(plain, torch.from_numpy(reading.inputs_T)).log_softmax(-1)
            expected = np.zeros(len(Span))
            for place in np.flatnonzero(reading.targets_T != NO_TARGET):
                expected[reading.kinds_T[place]] += float(log_probs[place, reading.targets_T[place]])
            np.testing.assert_allclose(row, expected, atol=1e-4, rtol=1e-4)


def rows_of_readings(lengths: Sequence[int]) -> list[list[Reading]]:
    random = np.random.default_rng(1)
    rows = []
    for length in lengths:
        kinds = np.zeros(length, np.int64)
        kinds[-4:-2], kinds[-2:] = 1, 2
        rows.append([read_with_targets(SpannedText(ids_T=random.integers(5, VOCAB, length), kinds_T=kinds), LabelForm.CLM)])
    return rows


def test_routing_reports_what_the_gates_did_with_real_tokens(sparse: HFModel) -> None:
    seen: list[torch.Tensor] = []
    gates = [module for name, module in sparse.named_modules() if name.endswith((".mlp.gate", ".mlp.router"))]
    hooks = [gate.register_forward_hook(lambda module, given, result: seen.append(result[2])) for gate in gates]
    inputs = laid_out([[ids_of(5), ids_of(4, seed=1)], [ids_of(7, seed=2)]], width=12)
    with torch.no_grad():
        reports = sparse(inputs).routing
    for hook in hooks:
        hook.remove()
    real = inputs.documents_BT.flatten() > 0
    assert sparse.expert_counts == (4, 4)
    assert len(reports) == 2
    for report, experts in zip(reports, seen, strict=True):
        assert report.probs_NE.shape == (16, 4)
        assert report.probs_NE.dtype == torch.float32
        assert torch.equal(report.expert_K.view(16, 2), experts[real])
        assert report.counts_E.tolist() == torch.bincount(experts[real].flatten(), minlength=4).tolist()
        assert report.token_K.tolist() == [n for n in range(16) for _ in range(2)]
        assert len(report.sequence_ids_N.unique()) == 3


@pytest.mark.parametrize("scope", BalanceScope)
def test_the_balance_loss_reaches_every_gate_and_no_padding(sparse: HFModel, scope: BalanceScope) -> None:
    objective = ObjectiveConfig(balance=BalanceConfig(weight=1.0, scope=scope))
    shares = [torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)] * 2
    rows, found = rows_of_readings([9, 14, 6]), []
    sparse.train()
    for multiple in (1, 32):
        batch = collate(rows, multiple)
        sparse.zero_grad()
        part = contribution(sparse, batch, part_counts(sparse, batch), shares, objective, world_size=1)
        part.loss.backward()
        found.append((part.sums_P, [p.grad.clone() for p in sparse.parameters() if p.grad is not None]))
    sparse.eval()
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    assert float(found[0][0][3]) > 0
    assert len(found[0][1]) == len(list(sparse.parameters()))
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_an_empty_micro_batch_gives_every_parameter_a_zero_gradient(pair: tuple[HFModel, Any]) -> None:
    wrapped, _ = pair
    batch = collate([])
    shares = [torch.full((n,), 1.0 / n) for n in wrapped.expert_counts]
    wrapped.train().zero_grad()
    contribution(wrapped, batch, torch.tensor([5.0, 5.0, 5.0, 9.0]), shares, ObjectiveConfig(), world_size=2).loss.backward()
    wrapped.eval()
    for name, parameter in wrapped.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_casting_to_bf16_leaves_rotary_frequencies_exact(tmp_path: Path) -> None:
    place = make_model(tmp_path, "llama", VOCAB)
    wrapped, exact = load_model(place), load_model(place)
    wrapped.bfloat16()
    assert {parameter.dtype for parameter in wrapped.parameters()} == {torch.bfloat16}
    for (name, found), (_, expected) in zip(wrapped.named_buffers(), exact.named_buffers(), strict=True):
        assert torch.equal(found, expected), name


def test_training_mode_has_no_dropout_and_no_router_noise(tmp_path: Path) -> None:
    place = make_model(tmp_path, "mixtral", VOCAB, attention_dropout=0.5, router_jitter_noise=0.5)
    wrapped = load_model(place)
    assert isinstance(wrapped, HFModel)
    inputs = laid_out([[ids_of(20)]])
    torch.testing.assert_close(logits_of(wrapped.train(), inputs), logits_of(wrapped.eval(), inputs), **CLOSE)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "olmo3", "gpt_oss"])
def test_a_sliding_window_bounds_the_context(family: str, tmp_path: Path) -> None:
    assert load_model(make_model(tmp_path, family, VOCAB, sliding_window=24)).context_length == 24


def test_the_pad_token_is_trained_like_any_other(tmp_path: Path) -> None:
    wrapped = load_model(make_model(tmp_path, "llama", VOCAB, pad_token_id=0))
    assert isinstance(wrapped, HFModel)
    hidden = wrapped.train()(laid_out([[torch.tensor([0, 3, 4])]])).hidden_BTH
    hidden.square().sum().backward()
    assert wrapped.causal.get_input_embeddings().weight.grad[0].any()
