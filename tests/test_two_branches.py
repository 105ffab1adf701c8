"""Labels trained both ways in one pass cost and teach what the two readings do one after the other, minus the text read twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapt.core.spans import NO_TARGET, LabelForm, LabelLoss, Reading, Span, SpannedText, join_parts, read_for_training
from adapt.core.spans import read_with_targets as read
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import CausalBase
from adapt.objective import contribution, part_counts
from adapt.objective_config import BalanceConfig, ObjectiveConfig, PartWeights
from tests.support.tiny_models import tiny_config

VOCAB, MASK = 60, 59
LABEL_ALONE = PartWeights(context=0.0, prompt=0.0)
Layout = Callable[[list[Reading]], Batch]
LAYOUTS: dict[str, Layout] = {
    "one a row": lambda r: collate([[one] for one in r]),
    "padded": lambda r: collate([[one] for one in r], pad_multiple=64),
    "all in one row": lambda r: collate([r]),
    "some rows packed": lambda r: collate([r[:3], r[3:4], [], r[4:]], pad_multiple=8),
}


@pytest.fixture(scope="module", params=["dense", "sparse", "sparse without residual"])
def model(request: pytest.FixtureRequest) -> GPT:
    config = {
        "dense": tiny_config([0], vocab_size=VOCAB),
        "sparse": tiny_config([4, 6], vocab_size=VOCAB),
        "sparse without residual": tiny_config([4], vocab_size=VOCAB, is_residual=False),
    }
    return materialize(GPT(config[request.param]), seed=3)


def texts() -> list[SpannedText]:
    """Return texts with a label at their end, in their middle, right after their start and at the very first token, and one
    without any."""
    random = np.random.default_rng(1)
    sizes = [(5, 3, 2, 0), (9, 2, 3, 4), (0, 0, 2, 6), (7, 4, 1, 1), (3, 2, 0, 0), (12, 1, 4, 2)]
    found = []
    for context, prompt, label, tail in sizes:
        parts = [(1 + context, Span.CONTEXT), (prompt, Span.PROMPT), (label, Span.LABEL), (tail, Span.CONTEXT)]
        found.append(join_parts([(random.integers(1, MASK, size).tolist(), kind) for size, kind in parts]))
    first = [(2, Span.LABEL), (5, Span.CONTEXT)]
    return [*found, join_parts([(random.integers(1, MASK, size).tolist(), kind) for size, kind in first])]


def readings(loss: LabelLoss) -> list[Reading]:
    return [read_for_training(text, loss, MASK) for text in texts()]


def sums_and_gradients(model: CausalBase, batch: Batch, weights: PartWeights) -> tuple[Tensor, list[Tensor]]:
    """Return token sums by part, and the gradient of their weighted sum (counts of one) without a balance loss."""
    assert isinstance(model, nn.Module)
    shares = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
    config = ObjectiveConfig(weights=weights, balance=BalanceConfig(weight=0.0))
    part = contribution(model, batch, torch.ones(4, dtype=torch.float64), shares, config, 1)
    return part.sums_P[:3], list(torch.autograd.grad(part.loss, list(model.parameters()), allow_unused=True))


def assert_both_is_the_sum(model: CausalBase, layout: Layout) -> None:
    clm, mlm, both = (layout(readings(loss)) for loss in (LabelLoss.CLM, LabelLoss.MLM, LabelLoss.BOTH))
    clm_sums, clm_gradients = sums_and_gradients(model, clm, PartWeights())
    mlm_sums, mlm_gradients = sums_and_gradients(model, mlm, LABEL_ALONE)
    both_sums, both_gradients = sums_and_gradients(model, both, PartWeights())
    assert clm_sums.min() > 1
    torch.testing.assert_close(both_sums, clm_sums + torch.stack([*torch.zeros(2), mlm_sums[2]]), atol=1e-5, rtol=1e-5)
    for one, two, found in zip(clm_gradients, mlm_gradients, both_gradients, strict=True):
        if found is None:
            assert one is None
            continue
        torch.testing.assert_close(found, one + two, atol=1e-5, rtol=1e-5)
    assert any(bool((two != 0).any()) for two in mlm_gradients if two is not None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_is_the_clean_reading_and_the_label_of_the_masked_one(model: GPT, layout: str) -> None:
    assert_both_is_the_sum(model, LAYOUTS[layout])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("layout", ["padded", "some rows packed"])
def test_a_hugging_face_base_keeps_the_branches_apart_as_well(family: str, layout: str, tmp_path: Path) -> None:
    from adapt.checkpoint.hf_directory import check_shards, config_files_of
    from adapt.model.hf import load_hf_model
    from tests.support.hf_checkpoints import make_model

    make_model(tmp_path, family, VOCAB)
    model = load_hf_model(tmp_path, config_files_of(tmp_path), check_shards(tmp_path))
    assert_both_is_the_sum(model, LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_are_those_of_the_clean_reading_and_the_masks(model: GPT, layout: str) -> None:
    clm, mlm, both = (
        part_counts(model, LAYOUTS[layout](readings(loss))) for loss in (LabelLoss.CLM, LabelLoss.MLM, LabelLoss.BOTH)
    )
    assert both[:2].tolist() == clm[:2].tolist()
    assert both[2] == clm[2] + mlm[2]
    n_labels = sum(int((text.kinds_T == int(Span.LABEL)).sum()) for text in texts())
    assert both[3] == clm[3] + n_labels * len(model.expert_counts)
    assert mlm[2] == n_labels


@torch.no_grad()
def test_the_clean_label_and_the_masks_do_not_see_each_other(model: GPT) -> None:
    one = readings(LabelLoss.BOTH)[1]
    batch = collate([[readings(LabelLoss.BOTH)[0], one]])
    start, end = batch.inputs.ids_BT.shape[1] - len(one), batch.inputs.ids_BT.shape[1]
    fork, branch = start + one.fork, end - one.branch_length

    def hidden() -> Tensor:
        return model(batch.inputs).hidden_BTH[0].clone()

    before = hidden()
    batch.inputs.ids_BT[0, branch:] = 7
    after = hidden()
    torch.testing.assert_close(after[:branch], before[:branch], atol=1e-6, rtol=1e-6)
    assert (after[branch:] - before[branch:]).abs().amax(dim=1).min() > 1e-3
    batch.inputs.ids_BT[0, branch:] = MASK
    batch.inputs.ids_BT[0, fork:branch] = 7
    after = hidden()
    torch.testing.assert_close(after[branch:], before[branch:], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(after[:fork], before[:fork], atol=1e-6, rtol=1e-6)
    batch.inputs.ids_BT[0, fork:branch] = torch.from_numpy(one.inputs_T[one.fork : -one.branch_length])
    batch.inputs.ids_BT[0, :start] = 7
    torch.testing.assert_close(hidden()[start:], before[start:], atol=1e-6, rtol=1e-6)


def told(batch: Batch, rows: Sequence[Sequence[Reading]]) -> None:
    """Assert a batch's mask entry by entry, by a rule that is as dumb as can be."""
    mask_BSW = batch.inputs.mask_BSW
    assert mask_BSW is not None
    assert mask_BSW.dtype == torch.bool
    width = batch.inputs.ids_BT.shape[1]
    assert mask_BSW.shape == (len(rows), width, width)
    for index, row in enumerate(rows):
        places = [(number, t) for number, reading in enumerate(row) for t in range(len(reading))]
        for i, (reader, t) in enumerate(places):
            for j, (read_from, s) in enumerate(places):
                reading = row[reader]
                trunk = len(reading) - reading.branch_length
                is_seen = reader == read_from and s <= t and not (t >= trunk and reading.fork <= s < trunk)
                assert bool(mask_BSW[index, i, j]) == is_seen, (index, i, j)
        assert not mask_BSW[index, : len(places), len(places) :].any()
        assert not mask_BSW[index, len(places) :, : len(places)].any()


@pytest.mark.parametrize("pad_multiple", [1, 16])
def test_a_branch_sees_the_text_before_its_fork_and_itself(pad_multiple: int) -> None:
    r = readings(LabelLoss.BOTH)
    rows = [[r[0]], [r[1], r[4], r[2]], [], [r[6], r[3]], [r[4]]]
    batch = collate(rows, pad_multiple=pad_multiple)
    told(batch, rows)
    assert batch.inputs.is_packed


def test_readings_of_both_kinds_may_share_a_batch() -> None:
    clean, branched = readings(LabelLoss.CLM), readings(LabelLoss.BOTH)
    rows = [[clean[0], branched[1]], [branched[0], clean[3]], [clean[2]]]
    told(collate(rows), rows)


def test_a_batch_without_branches_has_no_mask_of_its_own() -> None:
    for loss in (LabelLoss.CLM, LabelLoss.MLM):
        assert collate([readings(loss)]).inputs.mask_BSW is None
    assert collate([[readings(LabelLoss.BOTH)[4]]]).inputs.mask_BSW is None
    assert collate([]).inputs.mask_BSW is None


def test_branches_land_at_their_positions() -> None:
    r = readings(LabelLoss.BOTH)
    batch = collate([[r[1], r[2]], [r[0]]], pad_multiple=8)
    wanted = [*r[1].positions().tolist(), *r[2].positions().tolist()]
    assert batch.inputs.positions_BT[0, : len(wanted)].tolist() == wanted
    assert not batch.inputs.positions_BT[0, len(wanted) :].any()
    assert batch.inputs.documents_BT[0, : len(wanted)].tolist() == [1] * len(r[1]) + [2] * len(r[2])
    assert int((batch.targets_BT != NO_TARGET).sum()) == sum(int((one.targets_T != NO_TARGET).sum()) for one in r[:3])


@torch.no_grad()
def test_a_branch_is_the_masked_reading_position_by_position(model: GPT) -> None:
    for text in texts():
        both, masked = read_for_training(text, LabelLoss.BOTH, MASK), read(text, LabelForm.MLM, MASK)
        if not both.branch_length:
            continue
        branch = model(collate([[both]]).inputs).hidden_BTH[0, -both.branch_length :]
        place = slice(both.fork, both.fork + both.branch_length)
        torch.testing.assert_close(branch, model(collate([[masked]]).inputs).hidden_BTH[0, place], atol=1e-5, rtol=1e-5)
