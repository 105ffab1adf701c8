"""Foreign checkpoints that are not what they seem: every mistake is one line before a weight is copied, and no code is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.importers.contract import all_importers
from adapt.checkpoint.pickled_files import read_pickled
from adapt.checkpoint.tensors_in_parts import PartedTensor
from adapt.core.errors import CheckpointError, ConfigError
from tests.support.foreign_checkpoints import (
    EXPERT_KEY,
    Foreign,
    make_weights,
    megatron_args,
    pai_config,
    write_megatron,
    write_pai,
)

CASE = Foreign(experts=(3, 4), is_residual=True)
MAIN = Path("model") / "mp_rank_00" / "model_rng.pt"
EXPERT = Path("model") / "layer_1_expert_2_mp_rank_00_model_states.pt"


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_pai(tmp_path / "theirs", CASE, make_weights(CASE), is_flat=True)


def refusal(place: Path, name: str = "pai_gpt_moe", reads: bool = False, **options: Any) -> str:
    """Return the one line with which a checkpoint is refused, at opening, or (`reads`) when its weights are read."""
    with pytest.raises(CheckpointError) as refused:
        foreign = all_importers().get(name)(place, ImportOptions(**options), None)
        if reads:
            for _, tensor in foreign.tensors():
                if isinstance(tensor, PartedTensor):
                    list(tensor.parts())
    assert "\n" not in str(refused.value)
    assert str(place) in str(refused.value)
    return str(refused.value)


def change_main(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        content = torch.load(place / MAIN, weights_only=True)
        change(content["module"])
        torch.save(content, place / MAIN)

    return changed


def change_expert(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        content = torch.load(place / EXPERT, weights_only=True)
        change(content)
        torch.save(content, place / EXPERT)

    return changed


def set_config(**changes: Any) -> Callable[[Path], None]:
    def changed(place: Path) -> None:
        (place / "config.json").write_text(json.dumps({**pai_config(CASE), **changes}), encoding="utf-8")

    return changed


OTHER = Path("model") / "layer_2_expert_0_mp_rank_00_model_states.pt"
LAYER = "language_model.encoder.layers."
PART = EXPERT_KEY.format(layer=3, expert=2, part="dense_h_to_4h.weight")


def rename_part(old: str, new: str) -> Callable[[Path], None]:
    return change_expert(lambda e: e.update({PART.replace(old, new): e.pop(PART)}))


def add_a_tensor_parallel_part(place: Path) -> None:
    other = place / "model" / "mp_rank_01" / "model_rng.pt"
    other.parent.mkdir()
    other.touch()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_main(lambda m: m.pop(f"{LAYER}0.input_layernorm.bias")), ["1 missing (layers.0.input_layernorm.bias)"]),
        (change_main(lambda m: m.pop(f"{LAYER}1.mlp.coefficient.bias")), ["1 missing (layers.1.mlp.coefficient.bias)"]),
        (change_main(lambda m: m.pop("language_model.embedding.word_embeddings.weight")), ["word_embeddings.weight"]),
        (change_main(lambda m: m.update({f"{LAYER}0.extra.weight": torch.ones(2)})), ["1 left over (layers.0.extra.weight)"]),
        (change_main(lambda m: m.update({f"{LAYER}9.input_layernorm.bias": torch.ones(2)})), ["left over", "layers.9"]),
        (change_main(lambda m: m.update({"lm_head.weight": torch.ones(2)})), ["1 left over (lm_head.weight)"]),
        (change_main(lambda m: m.update({"encoder.final_layernorm.bias": torch.ones(24)})), ["final_layernorm.bias twice"]),
        (change_main(lambda m: m.update({"steps": 3})), ["steps is a int"]),
        (change_main(lambda m: m.update({f"{LAYER}0.input_layernorm.bias": torch.ones(5)})), ["shape (5,)", "(24,)"]),
        (change_main(lambda m: m.update({f"{LAYER}0.input_layernorm.bias": torch.ones(24).int()})), ["torch.int32"]),
        (change_expert(lambda e: e.pop(PART)), ["1 missing (layer_1_expert_2", "dense_h_to_4h.weight"]),
        (change_expert(lambda e: e.update({"more": torch.ones(2)})), ["1 left over (layer_1_expert_2", "more"]),
        (change_expert(lambda e: e.update({PART: torch.ones(2, 3)})), ["shape (2, 3)", "(96, 24)"]),
        (rename_part("experts.2", "experts.1"), ["expert 2 of layer 3", "experts.1"]),
        (rename_part("layers.3", "layers.1"), ["expert 2 of layer 3", "layers.1"]),
        (lambda place: (place / EXPERT).unlink(), ["1 missing (layer_1_expert_2"]),
        (lambda place: torch.save({}, place / OTHER), ["left over", "layer_2_expert_0"]),
        (lambda place: (place / MAIN).unlink(), ["holds none of model/mp_rank_00/model_rng.pt"]),
        (lambda place: (place / MAIN).rename(place / MAIN.parent / "weights.pt"), ["holds none of"]),
        (lambda place: torch.save({}, place / MAIN.parent / "model_optim_rng.pt"), ["holds both"]),
        (lambda place: torch.save({"weights": {}}, place / MAIN), ["neither 'module' nor 'model'", "weights"]),
        (lambda place: torch.save([1], place / MAIN), ["holds a list"]),
        (lambda place: (place / MAIN).write_bytes((place / MAIN).read_bytes()[:5000]), ["model_rng.pt", "damaged"]),
        (lambda place: (place / EXPERT).write_bytes((place / EXPERT).read_bytes()[:-100]), [EXPERT.name, "damaged"]),
        (lambda place: (place / MAIN).write_text("hello", encoding="utf-8"), ["damaged, or not saved by torch"]),
        (lambda place: (place / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda place: (place / "config.json").write_text("[]", encoding="utf-8"), ["expected a JSON object"]),
        (set_config(num_experts=[3, 5]), ["gate.wg.weight has shape (4, 24)", "(5, 24)"]),
        (set_config(num_experts=[3, 3]), ["gate.wg.weight has shape (4, 24)", "(3, 24)"]),
        (set_config(num_experts=[0]), ["missing", "left over"]),
        (set_config(num_experts=[3, 4, 4]), ["3 entries"]),
        (set_config(num_experts="many"), ["num_experts is 'many'"]),
        (set_config(hidden_size=25), ["makes no model"]),
        (set_config(hidden_size=48), ["has shape"]),
        (set_config(hidden_size="wide"), ["hidden_size is 'wide'"]),
        (set_config(num_hidden_layers=5), ["missing", "layers.4"]),
        (set_config(max_position_embeddings=32), ["position_embeddings", "shape (20, 24)", "(32, 24)"]),
        (set_config(vocab_size=71), ["70 rows", "vocabulary of 71"]),
        (set_config(vocab_size=69), ["70 rows", "vocab_size"]),
        (set_config(bias_gelu_fusion="no"), ["bias_gelu_fusion is 'no'"]),
        (set_config(layernorm_epsilon=0), ["layernorm_epsilon is 0"]),
        (set_config(apply_residual_connection_post_layernorm=True), ["apply_residual_connection_post_layernorm is True"]),
        (add_a_tensor_parallel_part, ["tensor-parallel parts"]),
    ],
)  # fmt: skip
def test_what_is_unexplained_is_named(damage: Callable[[Path], object], words: list[str], place: Path) -> None:
    damage(place)
    said = refusal(place)
    for word in words:
        assert word in said, said


@pytest.mark.parametrize("file", [MAIN, EXPERT])
def test_a_flipped_byte_is_found_by_its_checksum(file: Path, place: Path) -> None:
    content = bytearray((place / file).read_bytes())
    content[len(content) // 2] ^= 1
    (place / file).write_bytes(bytes(content))
    assert "Bad CRC-32" in refusal(place, reads=True)
    foreign = all_importers().get("pai_gpt_moe")(place, ImportOptions(checks_sums=False), None)
    assert len(list(foreign.tensors())) > 20


@pytest.mark.parametrize("where", ["beside the weights", "in place of an expert", "raw"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_in_it_is_refused_unrun(where: str, is_zip: bool, place: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = Trap(sprung)
    pickle.loads(pickle.dumps(trap))
    assert sprung.exists()
    sprung.unlink()
    if where == "raw":
        (place / MAIN).write_bytes(pickle.dumps({"module": trap}, protocol=2 if is_zip else 4))
    elif where == "in place of an expert":
        torch.save({PART: trap}, place / EXPERT, _use_new_zipfile_serialization=is_zip)
    else:
        content = torch.load(place / MAIN, weights_only=True)
        torch.save({**content, "args": trap}, place / MAIN, _use_new_zipfile_serialization=is_zip)
    said = refusal(place)
    assert "could run code" in said or "not saved by torch" in said
    assert not sprung.exists()


def test_no_other_class_is_let_through(tmp_path: Path) -> None:
    torch.save({"where": Path("x")}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="pathlib.*and reading it could run code; only .* argparse.Namespace"):
        read_pickled(tmp_path / "file.pt")
    torch.save({"args": megatron_args(CASE)}, tmp_path / "file.pt")
    assert read_pickled(tmp_path / "file.pt")["args"].hidden_size == CASE.hidden
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pt", weights_only=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topk": 2}, "topk is 2, and only 1 is served"),
        ({"expert_interval": 1}, "expert_interval is 1"),
        ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size is 2"),
        ({"normalization": "rmsnorm"}, "normalization is 'rmsnorm'"),
        ({"swiglu": True}, "swiglu is True"),
        ({"kv_channels": 16}, "kv_channels is 16, and only 8"),
        ({"untie_embeddings_and_output_weights": True}, "untie_embeddings_and_output_weights"),
        ({"num_layers": None}, "num_layers is missing"),
        ({"hidden_size": True}, "hidden_size is True"),
    ],
)
def test_a_run_that_made_another_kind_of_model_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    place = write_megatron(tmp_path, CASE, make_weights(CASE), megatron_args(CASE, **changes))
    assert words in refusal(place, "megatron_deepspeed")


def test_other_signs_of_another_layout_are_refused(tmp_path: Path) -> None:
    place = write_megatron(tmp_path, CASE, make_weights(CASE), tag="global_step7")
    (place / "latest").write_text("../elsewhere", encoding="utf-8")
    assert "no directory beside it" in refusal(place, "megatron_deepspeed")
    (place / "latest").write_text("global_step7", encoding="utf-8")
    main = place / "global_step7" / "mp_rank_00_model_states.pt"
    (main.parent / "kept").write_bytes(main.read_bytes())  # a mapped file must not be written over
    content = read_pickled(main.parent / "kept")
    torch.save({**content, "checkpoint_version": 1.0}, main)
    assert "query_key_value" in refusal(place, "megatron_deepspeed")
    torch.save({"module": content["module"]}, main)
    assert "has no args" in refusal(place, "megatron_deepspeed")


def test_options_that_no_import_can_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drop_tokens: .*at random"):
        ImportOptions(drop_tokens=True)
    with pytest.raises(ConfigError, match="vocab_size: 0"):
        ImportOptions(vocab_size=0)
    both = Foreign(experts=(3, 4), is_residual=True, has_network=True)
    place = write_pai(tmp_path, both, make_weights(both))
    with pytest.raises(ConfigError, match="residual_axis: batch cannot be imported exactly"):
        from adapt.checkpoint.import_options import ResidualAxis

        all_importers().get("pai_gpt_moe")(place, ImportOptions(residual_axis=ResidualAxis.BATCH), None)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in all_importers():
        assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere", name)
