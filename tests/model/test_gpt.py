"""The GPT: causal, blind to other documents and to padding, seeded by name, sparse in every second layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.inputs import ModelInputs
from adapt.model.moe import DenseMLP, MoELayer
from tests.support.inner_parts import block_of
from tests.support.tiny_models import tiny_config

SMALL = 60


def small_config(experts: list[int] | None = None, **changes: object) -> GPTConfig:
    return tiny_config(experts, **{"vocab_size": SMALL, **changes})


@pytest.fixture(scope="module", params=["dense", "sparse", "sparse without residual"])
def model(request: pytest.FixtureRequest) -> GPT:
    config = {
        "dense": small_config([0]),
        "sparse": small_config([4, 6]),
        "sparse without residual": small_config([4], is_residual=False),
    }[request.param]
    return materialize(GPT(config), seed=2).eval()


def token_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, SMALL, (length,), generator=torch.Generator().manual_seed(seed))


def laid_out(rows: Sequence[Sequence[Tensor]], width: int | None = None, padding_id: int = 0) -> ModelInputs:
    """Lay documents out by hand, so that these tests rest on nothing but the model."""
    length = max(sum(len(ids) for ids in row) for row in rows) if width is None else width
    ids_BT = torch.full((len(rows), length), padding_id)
    positions_BT, documents_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for index, row in enumerate(rows):
        start = 0
        for document, ids in enumerate(row, start=1):
            end = start + len(ids)
            ids_BT[index, start:end], documents_BT[index, start:end] = ids, document
            positions_BT[index, start:end] = torch.arange(len(ids))
            start = end
    is_packed = any(len(row) > 1 for row in rows)
    return ModelInputs(ids_BT=ids_BT, positions_BT=positions_BT, documents_BT=documents_BT, is_packed=is_packed)


@torch.no_grad()
def hidden(model: GPT, inputs: ModelInputs) -> Tensor:
    return model(inputs).hidden_BTH


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_later_token_changes_no_earlier_hidden_state(model: GPT, is_packed: bool) -> None:
    ids = token_ids(17)
    before = hidden(model, replace(laid_out([[ids]]), is_packed=is_packed))
    changed = ids.clone()
    changed[9:] = (changed[9:] + 7) % SMALL
    after = hidden(model, replace(laid_out([[changed]]), is_packed=is_packed))
    torch.testing.assert_close(after[:, :9], before[:, :9], atol=1e-5, rtol=1e-5)
    assert float((after[:, 9:] - before[:, 9:]).abs().max()) > 1e-2


def test_a_packed_document_equals_being_alone_in_a_row(model: GPT) -> None:
    documents = [token_ids(length, seed) for seed, length in enumerate([13, 1, 22, 5])]
    packed = hidden(model, laid_out([documents]))[0]
    alone = torch.cat([hidden(model, laid_out([[ids]]))[0] for ids in documents])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_packed_documents_do_not_see_each_other(model: GPT) -> None:
    first, second, third = token_ids(8, 1), token_ids(9, 2), token_ids(7, 3)
    before = hidden(model, laid_out([[first, second, third]]))[0]
    after = hidden(model, laid_out([[first, (second + 11) % SMALL, third]]))[0]
    torch.testing.assert_close(after[:8], before[:8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[17:], before[17:], atol=1e-5, rtol=1e-5)
    assert float((after[8:17] - before[8:17]).abs().max()) > 1e-2


def test_padding_changes_nothing(model: GPT) -> None:
    ids, longer = token_ids(12, 4), token_ids(31, 5)
    alone = hidden(model, laid_out([[ids]]))[0]
    for padded in (laid_out([[ids]], width=40), laid_out([[ids], [longer]]), laid_out([[ids], [longer, ids]], width=50)):
        torch.testing.assert_close(hidden(model, padded)[0, :12], alone, atol=1e-5, rtol=1e-5)
    noise = laid_out([[ids]], width=40, padding_id=SMALL - 1)
    torch.testing.assert_close(hidden(model, noise)[0, :12], alone, atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_each_other(model: GPT) -> None:
    rows = [[token_ids(15, 6)], [token_ids(15, 7)], [token_ids(15, 8)]]
    together = hidden(model, laid_out(rows))
    for index, row in enumerate(rows):
        torch.testing.assert_close(hidden(model, laid_out([row]))[0], together[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding_id", [0, 5])
def test_padding_is_never_counted_in_routing_statistics(padding_id: int) -> None:
    model = materialize(GPT(small_config([4, 6])), seed=2).eval()
    rows = [[token_ids(6, 1), token_ids(3, 2)], [token_ids(14, 3)], []]
    inputs = laid_out(rows, width=20, padding_id=padding_id)
    with torch.no_grad():
        reports = model(inputs).routing
        alone = [model(laid_out([[ids]])).routing for row in rows for ids in row]
    assert [len(report.counts_E) for report in reports] == [4, 6]
    for layer, report in enumerate(reports):
        assert int(report.counts_E.sum()) == 23
        assert report.probs_NE.shape[0] == len(report.sequence_ids_N) == 23
        assert len(report.sequence_ids_N.unique()) == 3
        assert report.counts_E.tolist() == sum(routing[layer].counts_E for routing in alone).tolist()
        torch.testing.assert_close(report.probs_NE, torch.cat([r[layer].probs_NE for r in alone]), atol=1e-5, rtol=1e-5)


def test_a_mask_alone_says_who_sees_whom(model: GPT) -> None:
    ids = token_ids(10, 9)
    # Two branches, 4-6 and 7-9, after a trunk of 4: the second sees the trunk and itself, never the first.
    inputs = laid_out([[ids]])
    mask_TT = torch.ones(10, 10).tril().bool()
    mask_TT[7:, 4:7] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6]])
    tree = replace(inputs, positions_BT=positions, mask_BSW=mask_TT.unsqueeze(0))
    together = hidden(model, tree)[0]
    torch.testing.assert_close(together[:7], hidden(model, laid_out([[ids[:7]]]))[0], atol=1e-5, rtol=1e-5)
    second = torch.cat([ids[:4], ids[7:]])
    torch.testing.assert_close(together[7:], hidden(model, laid_out([[second]]))[0, 4:], atol=1e-5, rtol=1e-5)


def test_no_tokens_at_all_give_finite_hidden_states_and_no_counts(model: GPT) -> None:
    with torch.no_grad():
        output = model(laid_out([[]], width=3))
    assert bool(torch.isfinite(output.hidden_BTH).all())
    assert [int(report.counts_E.sum()) for report in output.routing] == [0] * len(model.expert_counts)


def test_the_output_is_tied_to_the_embedding(model: GPT) -> None:
    states = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.logits(states), states @ model.embedding.weight.T)
    assert not any("head" in name or "output" in name for name, _ in model.named_parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = (dict(materialize(GPT(small_config([4, 6])), seed=0).named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_gives_other_weights() -> None:
    one, other = (dict(materialize(GPT(small_config([4, 6])), seed=seed).named_parameters()) for seed in (0, 1))
    constant = {name for name in one if torch.equal(one[name], other[name])}
    assert constant == {name for name in one if "norm" in name or name.endswith("bias")}


def test_no_two_matrices_start_alike() -> None:
    model = materialize(GPT(small_config([4])), seed=0)
    starts = []
    for name, parameter in model.named_parameters():
        if "norm" not in name and not name.endswith("bias"):
            slices = parameter if ".experts." in name else parameter.unsqueeze(0)
            starts += [part.detach().flatten()[0].item() for part in slices]
    assert len(set(starts)) == len(starts)


def test_an_expert_starts_the_same_however_many_experts_there_are() -> None:
    few = dict(materialize(GPT(small_config([3])), seed=5).named_parameters())
    many = dict(materialize(GPT(small_config([8])), seed=5).named_parameters())
    stacked = [name for name in few if ".experts." in name]
    assert len(stacked) == 8
    for name in stacked:
        assert torch.equal(many[name][:3], few[name])
    for name in set(few) - set(stacked):
        if ".router." not in name:
            assert torch.equal(many[name], few[name])


@pytest.mark.parametrize(
    ("n_layers", "experts", "counts"),
    [
        (4, [4], (0, 4, 0, 4)),
        (5, [4], (0, 4, 0, 4, 0)),
        (6, [2, 2, 8], (0, 2, 0, 2, 0, 8)),
        (6, [0, 0, 8], (0, 0, 0, 0, 0, 8)),
        (4, [0], (0, 0, 0, 0)),
    ],
)
def test_every_second_layer_is_sparse(n_layers: int, experts: list[int], counts: tuple[int, ...]) -> None:
    model = GPT(small_config(experts, n_layers=n_layers))
    assert model.config.expert_counts() == counts
    assert model.expert_counts == tuple(count for count in counts if count)
    for place, count in enumerate(counts):
        mlp = block_of(model, place).mlp
        assert isinstance(mlp, MoELayer if count else DenseMLP)
        assert not isinstance(mlp, MoELayer) or mlp.experts.n_experts == count


def test_a_dense_model_reports_no_routing(dense_model: GPT) -> None:
    with torch.no_grad():
        assert dense_model(laid_out([[token_ids(5)]])).routing == ()


@pytest.mark.parametrize("experts", [[4, 4, 4], [], [0, 0, 0, 0]])
def test_an_expert_list_of_the_wrong_length_is_refused(experts: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"model\.experts: has \d entries, but 4 layers have 2 MoE layers"):
        GPT(small_config(experts))


def test_a_hidden_size_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden_size: 32 is not a multiple of n_heads 5"):
        GPT(small_config([4], n_heads=5))
