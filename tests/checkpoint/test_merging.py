"""Dense students before training: means of experts against plain sums, what is lossless, and what has no dense form."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from adapt.checkpoint.merging.gathering import leading_directions, most_important
from adapt.checkpoint.merging.mlps import MLP, aligned, mean_of, merged, side_by_side, widened
from adapt.checkpoint.merging.settings import MergeConfig, Weighting
from adapt.checkpoint.merging.students import student_config, write_student
from adapt.checkpoint.upcycling.foreign import write_sparse_sibling
from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.upcycling.own import write_sparse
from adapt.checkpoint.weights import load_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.compared_logits import compared, logits_of
from adapt.model.expert_usage import LayerUsage, usage_of
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel
from adapt.model.routers.settings import RouterConfig, SigmoidBiasConfig, Top1Config, Top2Config
from tests.support.dense_checkpoints import make_dense
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.inner_parts import moe_layers
from tests.support.tiny_models import tiny_config

ROWS = [[3, 50, 7, 9, 11, 2, 30], [5, 6], [17, 4, 8, 15, 16, 23, 42, 8, 4]]
HIDDEN, WIDTH = 6, 5


def batches() -> list[Batch]:
    return [collate([[reading(row)]]) for row in ROWS]


def reading(row: list[int]) -> Reading:
    ids = torch.tensor(row).numpy()
    return read_with_targets(SpannedText(ids_T=ids, kinds_T=ids * 0 + int(Span.CONTEXT)), LabelForm.CLM)


def random_mlp(seed: int, is_gated: bool = False, width: int = WIDTH) -> MLP:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.empty(*shape).normal_(generator=generator)

    if is_gated:
        return MLP(ins=(drawn(width, HIDDEN), drawn(width, HIDDEN)), down=drawn(HIDDEN, width))
    return MLP(ins=(drawn(width, HIDDEN),), in_biases=(drawn(width),), down=drawn(HIDDEN, width), down_bias=drawn(HIDDEN))


def run(mlp: MLP, x: Tensor) -> Tensor:
    """Compute an MLP in plain torch, with SiLU: which activation it is does not matter here."""
    if len(mlp.ins) == 2:
        return (functional.silu(x @ mlp.ins[0].t()) * (x @ mlp.ins[1].t())) @ mlp.down.t()
    assert mlp.down_bias is not None
    return functional.silu(x @ mlp.ins[0].t() + mlp.in_biases[0]) @ mlp.down.t() + mlp.down_bias


X = torch.empty(9, HIDDEN).normal_(generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("is_gated", [False, True])
def test_neurons_are_matched_as_the_best_of_all_orders_does(is_gated: bool) -> None:
    reference, mlp = random_mlp(1, is_gated), random_mlp(2, is_gated)

    def products(order: tuple[int, ...]) -> float:
        turned = mlp.permuted(torch.tensor(order))
        pairs = zip(
            (*turned.ins, *turned.in_biases, turned.down), (*reference.ins, *reference.in_biases, reference.down), strict=True
        )
        return float(sum((one * other).sum() for one, other in pairs))

    best = max(itertools.permutations(range(WIDTH)), key=products)
    assert torch.equal(aligned(mlp, reference).down, mlp.down[:, list(best)])
    torch.testing.assert_close(run(aligned(mlp, reference), X), run(mlp, X))


def test_a_mean_of_permuted_copies_is_the_mlp_itself() -> None:
    mlp = random_mlp(1)
    copies = [mlp.permuted(torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    found = merged([mlp, *copies], [0.1, 0.2, 0.3, 0.4], 1, is_even=False, is_aligned=True)
    torch.testing.assert_close(run(found, X), run(mlp, X))
    assert not torch.allclose(run(merged([mlp, *copies], [0.1, 0.2, 0.3, 0.4], 1, is_even=False, is_aligned=False), X), run(mlp, X))


def test_weights_count_in_a_mean_and_add_up_in_its_scale() -> None:
    one, other = random_mlp(1), random_mlp(2)
    found = merged([one, other], [0.3, 0.1], 1, is_even=False, is_aligned=False)
    torch.testing.assert_close(found.ins[0], 0.75 * one.ins[0] + 0.25 * other.ins[0])
    torch.testing.assert_close(found.down, 0.4 * (0.75 * one.down + 0.25 * other.down))
    even = merged([one, other], [0.3, 0.1], 1, is_even=True, is_aligned=False)
    torch.testing.assert_close(even.down, 0.4 * (one.down + other.down) / 2)
    torch.testing.assert_close(mean_of([one, other], [0.0, 0.0]).down, (one.down + other.down) / 2)  # never used
    with pytest.raises(ConfigError, match="groups: 3 of 2 experts"):
        merged([one, other], [0.3, 0.1], 3, is_even=False, is_aligned=False)


@pytest.mark.parametrize("is_gated", [False, True])
def test_singular_vectors_of_permuted_copies_are_the_mlp_itself(is_gated: bool) -> None:
    mlp, weights = random_mlp(1, is_gated), [0.1, 0.2, 0.3]
    copies = [mlp.permuted(torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]
    found = leading_directions(copies, weights, 1, is_aligned=True)
    torch.testing.assert_close(run(found, X), 0.6 * run(mlp, X))
    wide = leading_directions(copies, weights, 2, is_aligned=True)
    assert wide.width == 2 * WIDTH
    torch.testing.assert_close(run(wide, X), 0.6 * run(mlp, X))  # one direction says it all


@pytest.mark.parametrize("is_gated", [False, True])
def test_singular_vectors_change_the_sum_of_outer_products_least(is_gated: bool) -> None:
    mlps, weights = [random_mlp(seed, is_gated) for seed in range(4)], [0.4, 0.1, 0.3, 0.2]

    def outer(mlp: MLP, neuron: int) -> Tensor:
        return torch.outer(
            mlp.down[:, neuron], torch.cat([*(r[neuron] for r in mlp.ins), *(b[neuron, None] for b in mlp.in_biases)])
        )

    for groups in (1, 2, 4):
        found = leading_directions(mlps, weights, groups, is_aligned=False)
        for neuron in range(WIDTH):
            wanted = sum((weight * outer(mlp, neuron) for mlp, weight in zip(mlps, weights, strict=True)), torch.zeros(()))
            u, sizes, v = torch.linalg.svd(wanted, full_matrices=False)
            best = (u[:, :groups] * sizes[:groups]) @ v[:groups]
            torch.testing.assert_close(sum(outer(found, g * WIDTH + neuron) for g in range(groups)), best, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_neurons_that_write_most_are_kept(is_gated: bool) -> None:
    one, other = random_mlp(1, is_gated), random_mlp(2, is_gated)
    quiet = other.times(1e-4)
    torch.testing.assert_close(run(most_important([quiet, one], [0.5, 0.5], 1), X) - bias_of(quiet), 0.5 * run(one, X))
    both = most_important([one, other], [0.9, 0.1], 2)
    torch.testing.assert_close(run(both, X), 0.9 * run(one, X) + 0.1 * run(other, X))
    for gather in (most_important, lambda *given: leading_directions(*given, is_aligned=False)):
        with pytest.raises(ConfigError, match="groups: 3 of 2 experts"):
            gather([one, other], [0.3, 0.1], 3)


def bias_of(mlp: MLP) -> Tensor:
    return torch.zeros(()) if mlp.down_bias is None else 0.5 * mlp.down_bias


@pytest.mark.parametrize("is_gated", [False, True])
def test_side_by_side_is_a_sum_and_more_neurons_change_nothing(is_gated: bool) -> None:
    one, other = random_mlp(1, is_gated), random_mlp(2, is_gated, width=3)
    both = side_by_side([one, other.times(0.5)])
    torch.testing.assert_close(run(both, X), run(one, X) + 0.5 * run(other, X))
    wide = widened(both, 14, seed=1, name="a")
    assert wide.width == 14
    torch.testing.assert_close(run(wide, X), run(both, X))
    assert float(wide.ins[0][8:].abs().min()) > 0  # so that their output weights get a gradient


def plain_usage(model: GPT) -> list[LayerUsage]:
    """Return the usage of a model whose weights are its routers' probabilities, from their reports."""
    found = []
    for layer in range(len(model.expert_counts)):
        reports = [model(batch.inputs).routing[layer] for batch in batches()]
        n = sum(len(report.probs_NE) for report in reports)
        weight_E, count_E = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        for report in reports:
            for token, expert in zip(report.token_K.tolist(), report.expert_K.tolist(), strict=True):
                weight_E[expert] += float(report.probs_NE[token, expert])
                count_E[expert] += 1
        found.append(LayerUsage(weight_E=weight_E / n, share_E=count_E / n))
    return found


@torch.no_grad()
def test_usage_is_what_routers_decided() -> None:
    model = materialize(GPT(tiny_config([4], is_residual=False)), seed=1).eval()
    for found, expected in zip(usage_of(model, batches()), plain_usage(model), strict=True):
        torch.testing.assert_close(found.weight_E, expected.weight_E)
        torch.testing.assert_close(found.share_E, expected.share_E)
        assert found.dense_weight is None
    mixed = materialize(GPT(tiny_config([4], router=Top2Config())), seed=1).eval()
    for usage in usage_of(mixed, batches()):
        assert usage.dense_weight is not None
        assert float(usage.weight_E.sum()) + usage.dense_weight == pytest.approx(1)
    assert all(not layer.experts._forward_pre_hooks for layer in moe_layers(mixed))


SPARSE: dict[str, tuple[RouterConfig, dict[str, Any]]] = {
    "top2": (Top2Config(), {}),
    "top1 and a dense part": (Top1Config(), {"is_residual": True}),
    "one of two layers": (SigmoidBiasConfig(experts_per_token=3), {"experts": [0, 4], "is_residual": True}),
    "a network behind": (Top2Config(), {"expert_residual_layers": 2}),
}


@pytest.mark.parametrize("case", SPARSE)
def test_copies_merge_back_to_the_dense_model(case: str, tmp_path: Path) -> None:
    router, options = SPARSE[case]
    source = make_dense(tmp_path / "dense", ffn_hidden_size=40)
    for name in ("sparse", "student"):
        (tmp_path / name).mkdir()
    write_sparse(tmp_path / "sparse", source, UpcycleOptions(**{"experts": [4], "router": router, **options}))
    sparse = load_model(tmp_path / "sparse")
    assert isinstance(sparse, GPT)
    for groups in (1, 2):
        write_student(tmp_path / "student", tmp_path / "sparse", usage_of(sparse, batches()), MergeConfig(groups=groups), 0)
        student = load_model(tmp_path / "student")
        assert student.expert_counts == ()
        expected = logits_of(load_model(source), ROWS)
        assert compared(expected, logits_of(student, ROWS)).relative < 1e-5
        assert isinstance(student, GPT)
        assert student.config == student_config(sparse.config, groups)
        assert student.config.ffn_width == 40 * (groups + sparse.config.is_residual)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_siblings_copies_merge_back_to_the_dense_family(family: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"sliding_window": 48} if family == "mistral" else {}
    source = make_checkpoint(tmp_path / "dense", family, **changes)
    for name in ("sparse", "student"):
        (tmp_path / name).mkdir()
    layers = [1] if family.startswith("qwen") else None
    write_sparse_sibling(tmp_path / "sparse", source, UpcycleOptions(experts=[4], layers=layers))
    sparse = load_model(tmp_path / "sparse")
    usage = usage_of(sparse, batches())
    assert len(usage) == (1 if layers else 2)
    assert isinstance(sparse, HFModel)
    write_student(tmp_path / "student", tmp_path / "sparse", usage, MergeConfig(weighting=Weighting.EVEN, groups=2), 0)
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    assert model.config.model_type == family
    assert model.config.intermediate_size == 48 * (3 if family == "qwen2" else 2)
    assert compared(logits_of(load_model(source), ROWS), logits_of(load_model(tmp_path / "student"), ROWS)).relative < 1e-5
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_what_has_no_dense_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is dense already"):
        write_student(tmp_path, make_dense(tmp_path / "dense"), [], MergeConfig(), 0)
    for family, words in (("olmoe", "over all heads"), ("gpt_oss", "attention sinks"), ("llama", "is dense already")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(CheckpointError, match=words):
            write_student(tmp_path / "student", tmp_path, [], MergeConfig(), 0)
