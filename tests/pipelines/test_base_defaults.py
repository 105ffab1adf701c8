"""What settings that are left open come to, by a base's kind and size, and what guards a base from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapt.checkpoint.delta import write_empty_delta
from adapt.checkpoint.weights import count_weights
from adapt.core.errors import TrainingError
from adapt.objective_config import ObjectiveConfig, PartWeights
from adapt.train.optimizer_config import OptimizerConfig, learning_rate
from adapt.train.train_config import Trained
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.config.locations import demo_dir
from pipelines.config.schema import GateAction, GateConfig
from pipelines.stages import base_defaults
from pipelines.stages.base_defaults import BaseDefaults, said
from pipelines.stages.forgetting import continuations_of, general_perplexity, is_rolled_back
from pipelines.stages.models import open_model_artifact
from pipelines.stages.own_text import own_text_rows
from tests.support.command_line import in_process, refused
from tests.support.hf_checkpoints import make_checkpoint, make_model

TASK = ["task=demo_reviews", f"data.root={demo_dir()}/clue", "engine.threads=1"]


def test_a_shipped_base_keeps_its_large_steps() -> None:
    found = BaseDefaults.of(open_model_artifact(demo_dir() / "base"))
    settings, objective = found.settings(AdaptConfig(), has_corpus=False), found.objective(ObjectiveConfig())
    assert (settings.optimizer.lr, settings.optimizer.warmup_share, settings.epochs) == (3e-4, 0.1, 2.0)
    assert (objective.weights.context, objective.weights.prompt) == (1.0, 1.0)
    assert (settings.replay_share, settings.divergence_weight) == (0.0, 0.0)
    assert found.gate(GateConfig()).max_general_ppl_increase is None


def test_a_hugging_face_base_gets_small_steps_no_prompt_loss_and_a_gate(tmp_path: Path) -> None:
    found = BaseDefaults.of(open_model_artifact(make_model(tmp_path, "llama", 70)))
    settings, objective = found.settings(AdaptConfig(), has_corpus=False), found.objective(ObjectiveConfig())
    assert 1e-5 <= (settings.optimizer.lr or 0) <= 5e-5
    assert (objective.weights.context, objective.weights.prompt) == (0.1, 0.0)
    gate = found.gate(GateConfig())
    assert gate.max_general_ppl_increase == 0.03
    assert gate.action is GateAction.SHRINK
    assert (settings.replay_share, settings.divergence_weight) == (0.25, 1.0)
    assert found.settings(AdaptConfig(), has_corpus=True).replay_share == 0.0
    assert "prompt words not trained, kept near the base at weight 1, 25 % of the rows replayed" in said(settings, objective)


@pytest.mark.parametrize(("n_weights", "is_foreign", "lr"), [
    (50_000_000, False, 3e-4), (16_000_000_000, False, 1e-5), (135_000_000, True, 3e-5), (1_700_000_000, True, 2e-5),
    (7_000_000_000, True, 1e-5),
])  # fmt: skip
def test_the_learning_rate_falls_with_size(n_weights: int, is_foreign: bool, lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.checkpoint.weights.count_weights", lambda place: n_weights)
    monkeypatch.setattr(base_defaults, "is_hf_directory", lambda place: is_foreign)
    monkeypatch.setattr(base_defaults, "weights_of", lambda base: Path())
    base = open_model_artifact(demo_dir() / "base")
    assert BaseDefaults.of(base).settings(AdaptConfig(), has_corpus=False).optimizer.lr == lr


def test_a_change_of_low_rank_takes_larger_steps_and_a_delta_counts_its_base(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    delta = tmp_path / "delta"
    delta.mkdir()
    write_empty_delta(delta, base)
    assert count_weights(delta) == count_weights(base) > 0
    found = BaseDefaults.of(open_model_artifact(base))
    assert found.settings(AdaptConfig(trains=Trained.LORA), has_corpus=True).optimizer.lr == 3e-4
    assert found.settings(AdaptConfig(), has_corpus=False).optimizer.lr == 3e-5


def test_what_is_set_stays_set(tmp_path: Path) -> None:
    found = BaseDefaults.of(open_model_artifact(make_model(tmp_path, "llama", 70)))
    optimizer = OptimizerConfig(lr=1e-3, warmup_share=0.0)
    own = AdaptConfig(epochs=5, optimizer=optimizer, replay_share=0.5, divergence_weight=0)
    assert found.settings(own, has_corpus=False) == own
    assert found.objective(ObjectiveConfig(weights=PartWeights(prompt=0.5))).weights.prompt == 0.5
    assert found.gate(GateConfig(max_general_ppl_increase=0.5)).action is GateAction.STOP
    assert found.gate(GateConfig(action=GateAction.WARN)).max_general_ppl_increase == 0.03


def test_an_open_learning_rate_never_trains() -> None:
    with pytest.raises(AssertionError, match="settled by the base"):
        learning_rate(OptimizerConfig(lr=None), 0, 10)


def test_pretraining_needs_a_learning_rate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = in_process("pretrain", ["pretrain.optimizer.lr=null", "data.corpus=[x.txt]"], monkeypatch, capsys)
    assert code == 2
    assert "pretrain.optimizer: lr and warmup_share need numbers" in text


def _losses(rise: float) -> tuple[np.ndarray, np.ndarray]:
    before = np.asarray([[200.0, 100.0]] * 8)
    return before, before + np.asarray([rise * 100, 0.0])


@pytest.mark.parametrize("rise", [0.0, 0.2])
def test_the_same_words_everywhere_are_taken_back_though_perplexity_may_stand(rise: float) -> None:
    """So a model looks that was trained to say its prompt."""
    saner = [{"beginning": str(i), "before": f"a b{i} c{i} d{i} e{i}", "after": f"a b{i} c{i} d{i} f{i}"} for i in range(10)]
    stuck = [{**one, "after": f"{i} This news is about technology"} for i, one in enumerate(saner)]
    gate = GateConfig(max_general_ppl_increase=0.1, action=GateAction.ROLL_BACK)
    general = general_perplexity(*_losses(rise))
    assert is_rolled_back(gate, general, continuations_of(saner)) is (rise > 0.1)
    assert is_rolled_back(gate, general, continuations_of(stuck))
    assert not is_rolled_back(GateConfig(max_general_ppl_increase=0.1, action=GateAction.WARN), general, continuations_of(stuck))
    with pytest.raises(TrainingError, match="gate.action=roll_back"):
        is_rolled_back(GateConfig(max_general_ppl_increase=0.1), general, continuations_of(stuck))


def test_a_base_without_a_corpus_is_measured_on_what_it_says_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    arguments = [
        "model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", *TASK, "pseudo_label.max_rows=40", "gate.general_rows=8",
        "pseudo_label.estimates_noise=false",
        "gate.continuations=4", "continue_pretrain.epochs=2", "continue_pretrain.batch_rows=8",
        "continue_pretrain.optimizer.lr=0.02", "gate.max_general_ppl_increase=0.1", "gate.action=roll_back",
        "stages=[pseudo_label,continue_pretrain]",
    ]  # fmt: skip
    code, text = in_process("run", arguments, monkeypatch, capsys)
    assert code == 0, text
    assert "rolled back, the base model stands: general perplexity" in text
    assert "nats a token" in text
    assert "greedy continuations changed" in text
    place = tmp_path / "runs" / "default"
    assert len(own_text_rows(place / "own_text")) == 8
    measured, replayed = (own_text_rows(place / name) for name in ("own_text", "own_text_replayed"))
    texts = {tuple(replayed.row(at, 0)[0].inputs_T[1:]) for at in range(len(replayed))}
    assert not texts & {tuple(measured.row(at, 0)[0].inputs_T[1:]) for at in range(len(measured))}
    metrics = json.loads((place / "continue_pretrain" / "demo_reviews" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["general"]["after"] > 1.1 * metrics["general"]["before"]
    assert metrics["continuations"]["count"] == 4


@pytest.mark.parametrize("trains", [pytest.param("all", marks=pytest.mark.slow), "lora"])
def test_a_change_is_shrunk_to_what_general_text_allows(
    trains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights that are written lie on the line between the base and those of a run that keeps all of the change."""
    base = make_checkpoint(tmp_path / "base", "llama")
    found = {}
    for action in ("shrink", "warn"):
        arguments = [
            "model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", f"run.name={action}", *TASK, "pseudo_label.max_rows=40",
            "gate.general_rows=8", "pseudo_label.estimates_noise=false", "gate.continuations=0", "continue_pretrain.epochs=2",
            "continue_pretrain.batch_rows=8", "continue_pretrain.optimizer.lr=0.02", "gate.max_general_ppl_increase=0.05",
            f"continue_pretrain.trains={trains}", f"gate.action={action}", "stages=[pseudo_label,continue_pretrain]",
        ]  # fmt: skip
        if trains == "lora" and action == "shrink":  # the same bits, as the factors A below show
            arguments += ["offload.frozen_weights=mapped", "engine.activation_checkpointing=full"]
        code, text = in_process("run", arguments, monkeypatch, capsys)
        assert code == 0, text
        place = tmp_path / "runs" / action / "continue_pretrain" / "demo_reviews"
        metrics = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["metrics"]
        weights = load_file(next(iter(sorted(place.glob("*.safetensors")))))
        found[action] = (metrics["kept_change"], metrics["general"]["increase"], weights, text)
    share, increase, shrunk, text = found["shrink"]
    assert 0 < share < 1
    assert 0 < increase <= 0.05 < found["warn"][1]
    assert f"{100 * share:.0f} % of the change kept" in text
    assert found["warn"][0] == 1
    start = load_file(next(iter(sorted(base.glob("*.safetensors")))))
    for name, whole in found["warn"][2].items():
        if ".lora_A." in name:
            assert torch.equal(shrunk[name], whole)
        else:
            origin = torch.zeros_like(whole) if trains == "lora" else start[name]
            torch.testing.assert_close(shrunk[name], origin.lerp(whole, share), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("arguments", "words"), [
    (["continue_pretrain.trains=experts"], ["continue_pretrain.trains=experts", "dense"]),
    (["offload.frozen_weights=mapped"], ["offload.frozen_weights=mapped", "trains=all freezes nothing", "lora"]),
    (["engine.memory_gb=0.00001"], ["engine.memory_gb", "a rank needs"]),
    (["engine.expert_parallel=2", "engine.world_size=2"], ["expert_parallel"]),
])  # fmt: skip
def test_what_a_base_cannot_do_is_refused_before_labelling(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    line = ["model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", *TASK, "stages=[pseudo_label,continue_pretrain]"]
    refused("run", [*line, *arguments], words, monkeypatch, capsys)
    assert not (tmp_path / "runs" / "default").exists()
