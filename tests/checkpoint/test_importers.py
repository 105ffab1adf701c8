"""Imported checkpoints compute what their own code computes: logits equal a plain reference, in every form of the layout."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adapt.checkpoint.store_writer
from adapt.checkpoint.import_options import ImportOptions, ResidualAxis
from adapt.checkpoint.importers.contract import ForeignCheckpoint, all_importers
from adapt.checkpoint.megatron_import import UNUSED_EXPERT_BIAS, UNUSED_MIX, UNUSED_RESIDUAL_BIAS
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.checkpoint.weights import load_model, save_model
from adapt.model.config import Gelu
from adapt.model.gpt import GPT
from adapt.model.inputs import ModelInputs
from tests.support.foreign_checkpoints import (
    Foreign,
    close,
    ids_of,
    make_weights,
    megatron_args,
    pai_config,
    reference_logits,
    write_megatron,
    write_pai,
)

DENSE = Foreign()
PYRAMID = Foreign(experts=(3, 5))
MIXED = Foreign(experts=(4, 1, 3), n_layers=6)
RESIDUAL = Foreign(experts=(3, 4), is_residual=True)
NETWORK = Foreign(experts=(3, 4), has_network=True)


def opened(place: Path, name: str = "pai_gpt_moe", n_tokens: int | None = None, **options: Any) -> ForeignCheckpoint:
    return all_importers().get(name)(place, ImportOptions(**options), n_tokens)


@torch.no_grad()
def logits_of(foreign: ForeignCheckpoint, place: Path, ids_BT: Tensor) -> Tensor:
    """Write the imported checkpoint, load it again, and score."""
    place.mkdir()
    save_model(place, foreign.config, foreign.tensors(), None)
    model = load_model(place)
    assert isinstance(model, GPT)
    positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    inputs = ModelInputs(ids_BT=ids_BT, positions_BT=positions_BT, documents_BT=torch.ones_like(ids_BT), is_packed=False)
    return model.logits(model(inputs).hidden_BTH)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (DENSE, {}),
        (PYRAMID, {}),
        (PYRAMID, {"is_flat": True}),
        (PYRAMID, {"is_older": True}),
        (PYRAMID, {"is_older": True, "is_flat": True}),
        (MIXED, {}),
        (RESIDUAL, {}),
        (RESIDUAL, {"is_lsoftmax": True, "is_flat": True}),
        (NETWORK, {"is_lsoftmax": True}),
        (NETWORK, {"is_lsoftmax": True, "is_outside": True}),
        (NETWORK, {"is_lsoftmax": True, "is_outside": True, "is_flat": True}),
        (Foreign(experts=(3, 4), is_residual=True, has_network=True, gelu="erf"), {"is_lsoftmax": True}),
        (Foreign(experts=(3, 5), gelu="erf", eps=1e-3, ffn=40), {}),
        (Foreign(gelu="erf", ffn=10), {"is_older": True}),
    ],
)
def test_logits_equal_the_reference(case: Foreign, form: dict[str, Any], tmp_path: Path) -> None:
    weights = make_weights(case)
    foreign = opened(write_pai(tmp_path / "theirs", case, weights, **form))
    ids_BT = ids_of(case, case.vocab_rows)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(case, weights, ids_BT))
    assert foreign.config.gelu is Gelu(case.gelu)
    assert foreign.config.expert_residual_layers == (6 if case.has_network else 0)
    assert foreign.report.read == foreign.report.mapped + sum(foreign.report.unused.values())


def test_a_dense_model_takes_the_stated_defaults(tmp_path: Path) -> None:
    case = Foreign(eps=1e-12)
    config = pai_config(case)
    for key in ("layernorm_epsilon", "bias_gelu_fusion", "ffn_hidden_size"):
        del config[key]
    config["num_experts"] = [0]
    weights = make_weights(case)
    foreign = opened(write_pai(tmp_path / "theirs", case, weights, config, key="model"))
    ids_BT = ids_of(case, case.vocab_rows)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(case, weights, ids_BT))
    assert foreign.config.experts == [0]
    assert foreign.config.norm_eps == 1e-12
    assert foreign.report.notes["defaults"] == ["ffn_hidden_size", "bias_gelu_fusion", "layernorm_epsilon", "init_method_std"]
    del config["num_experts"]
    assert opened(write_pai(tmp_path / "without", case, weights, config)).config.experts == [0]


def parts_of(tensor: AnyTensor) -> Iterable[Tensor]:
    return tensor.parts() if isinstance(tensor, PartedTensor) else [tensor]


@pytest.mark.parametrize("written", [[4], 4])
def test_one_number_of_experts_is_for_all_layers(written: Any, tmp_path: Path) -> None:
    case = Foreign(experts=(4, 4))
    foreign = opened(write_pai(tmp_path, case, make_weights(case), {**pai_config(case), "num_experts": written}))
    assert foreign.config.expert_counts() == (0, 4, 0, 4)


@pytest.mark.parametrize("case", [DENSE, RESIDUAL])
def test_half_precision_is_kept_and_computes_the_same(case: Foreign, tmp_path: Path) -> None:
    weights = make_weights(case).to(torch.float16)
    foreign = opened(write_pai(tmp_path / "theirs", case, weights))
    ids_BT = ids_of(case, case.vocab_rows)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(case, weights, ids_BT))
    dtypes = {name: tensor.dtype for name, tensor in foreign.tensors()}
    assert {dtype for name, dtype in dtypes.items() if ".router." not in name} == {torch.float16}
    assert all(dtype == torch.float32 for name, dtype in dtypes.items() if ".router." in name)


def test_the_softmax_over_a_batch_of_one_can_be_imported(tmp_path: Path) -> None:
    case = Foreign(experts=(3, 4), is_residual=True, mix_over_batch=True)
    weights = make_weights(case)
    foreign = opened(write_pai(tmp_path / "theirs", case, weights), residual_axis=ResidualAxis.BATCH)
    ids_BT = ids_of(case, case.vocab_rows, rows=1)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(case, weights, ids_BT))
    assert foreign.report.unused[UNUSED_MIX] == 4


def test_what_is_never_added_is_reported(tmp_path: Path) -> None:
    foreign = opened(write_pai(tmp_path, RESIDUAL, make_weights(RESIDUAL)))
    assert foreign.report.unused == {UNUSED_EXPERT_BIAS: 7, UNUSED_RESIDUAL_BIAS: 2}
    assert (foreign.report.missing, foreign.report.left_over) == (0, 0)
    zeros = {name for name, tensor in foreign.tensors() if not any(part.any() for part in parts_of(tensor))}
    assert {name.rpartition("mlp.")[2] for name in zeros} == {"experts.down_bias", "down.bias"}


@pytest.mark.parametrize("tag", [None, "global_step7"])
def test_a_namespace_beside_the_weights_is_read(tag: str | None, tmp_path: Path) -> None:
    weights = make_weights(PYRAMID)
    foreign = opened(write_megatron(tmp_path / "theirs", PYRAMID, weights, tag=tag), "megatron_deepspeed")
    ids_BT = ids_of(PYRAMID, PYRAMID.vocab_rows)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(PYRAMID, weights, ids_BT))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_namespace_may_lie_in_the_pai_layout_too(tmp_path: Path) -> None:
    place = write_pai(tmp_path, PYRAMID, make_weights(PYRAMID), beside={"args": megatron_args(PYRAMID)})
    assert opened(place).config.experts == [3, 5]


def test_megatrons_own_default_of_the_norm_is_taken(tmp_path: Path) -> None:
    args = megatron_args(RESIDUAL)
    del args.layernorm_epsilon
    weights = make_weights(RESIDUAL)
    foreign = opened(write_megatron(tmp_path / "theirs", RESIDUAL, weights, args), "megatron_deepspeed")
    assert foreign.config.norm_eps == 1e-5
    ids_BT = ids_of(RESIDUAL, RESIDUAL.vocab_rows)
    close(logits_of(foreign, tmp_path / "ours", ids_BT), reference_logits(RESIDUAL, weights, ids_BT))


def test_rows_that_pad_the_vocabulary_stay_behind(tmp_path: Path) -> None:
    case = Foreign(experts=(3, 5), vocab_rows=128)
    weights = make_weights(case)
    place = write_megatron(tmp_path / "theirs", case, weights)
    ids_BT = ids_of(case, 100)
    wanted = reference_logits(case, weights, ids_BT)
    assert opened(place, "megatron_deepspeed").config.vocab_size == 128
    for number, foreign in enumerate(
        [opened(place, "megatron_deepspeed", vocab_size=100), opened(place, "megatron_deepspeed", n_tokens=100)]
    ):
        assert (foreign.config.vocab_size, foreign.report.vocabulary_rows_dropped) == (100, 28)
        close(logits_of(foreign, tmp_path / f"ours{number}", ids_BT), wanted[..., :100])


def test_the_vocabulary_of_config_json_may_be_padded_in_the_weights(tmp_path: Path) -> None:
    case = Foreign(vocab_rows=256)
    place = write_pai(tmp_path, case, make_weights(case), {**pai_config(case), "vocab_size": 101})
    assert opened(place).report.vocabulary_rows_dropped == 155


def test_files_of_torchs_old_format_are_read_too(tmp_path: Path) -> None:
    weights = make_weights(DENSE)
    place = write_pai(tmp_path / "theirs", DENSE, weights)
    main = place / "model" / "mp_rank_00" / "model_optim_rng.pt"
    torch.save(torch.load(main, weights_only=True), main, _use_new_zipfile_serialization=False)
    ids_BT = ids_of(DENSE, DENSE.vocab_rows)
    close(logits_of(opened(place), tmp_path / "ours", ids_BT), reference_logits(DENSE, weights, ids_BT))


def test_weights_are_made_one_parameter_or_expert_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = opened(write_pai(tmp_path / "theirs", PYRAMID, make_weights(PYRAMID)))
    monkeypatch.setattr(adapt.checkpoint.store_writer, "SHARD_BYTES", 1)
    place = tmp_path / "ours"
    place.mkdir()
    written_before = []

    def tensors() -> Any:
        for name, tensor in foreign.tensors():
            written_before.append(len(list(place.glob("*.safetensors"))))
            assert isinstance(tensor, PartedTensor) == (".experts." in name)
            for part in parts_of(tensor):
                assert part.untyped_storage().nbytes() == part.numel() * part.element_size(), name
            yield name, tensor

    save_model(place, foreign.config, tensors(), None)
    assert written_before == list(range(len(written_before)))
