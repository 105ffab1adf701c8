"""`python -m pipelines.distil`: a dense student that learns from its sparse base, own or foreign, and that other stages take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.checkpoint.weights import load_model, save_model
from adapt.core.artifacts import open_artifact
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import demo_dir
from pipelines.stages.distil import Student
from tests.support.command_line import SMALL_DEMO, digests, refused
from tests.support.dense_checkpoints import make_dense
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.tiny_models import tiny_config

TRAINED = [
    f"data.corpus=[{demo_dir()}/corpus/general.txt]", "distil.steps=6", "distil.batch_rows=8", "distil.row_tokens=48",
    "distil.merge.rows=12", "distil.held_out_share=0.1", "distil.held_out_rows=12", "distil.optimizer.lr=0.001",
    "distil.save_every_steps=2", "engine.threads=1", "engine.micro_batch=8",
]  # fmt: skip
ADAPTATION = [
    "task=demo_reviews", f"data.root={SMALL_DEMO}", "stages=[pseudo_label,continue_pretrain,evaluate]", "pseudo_label.max_rows=40",
    "pseudo_label.prompts=[reference]", "evaluate.fit_rows=20", "evaluate.splits=[dev]", "continue_pretrain.epochs=3",
    "continue_pretrain.batch_rows=8", "continue_pretrain.optimizer.lr=0.003", "gate.action=warn", "engine.threads=1",
]  # fmt: skip
Here = Callable[[str, list[str]], str]


def sparse_base(place: Path) -> Path:
    """Write a sparse base whose experts have nothing in common."""
    place.mkdir()
    tokenizer = Tokenizer.load(demo_dir() / "base")
    config = tiny_config([4], n_layers=2, vocab_size=tokenizer.vocab_size, context_length=64, init_std=0.6)
    save_model(place, config, named_state(materialize(GPT(config), seed=3)), tokenizer)
    return place


def test_a_student_comes_nearer_to_its_sparse_base(tmp_path: Path, run_here: Here) -> None:
    base = sparse_base(tmp_path / "sparse")
    arguments = [f"checkpoint={base}", f"run.dir={tmp_path}/runs", "run.name=d", *TRAINED]
    said = run_here("distil", arguments)
    place = tmp_path / "runs" / "d" / "distil"
    found = Student.of(open_artifact(place.resolve()))
    [held_out] = found.held_out.values()
    assert held_out.after["distillation"].value < 0.95 * held_out.before["distillation"].value
    assert held_out.before["context"].count == held_out.before["distillation"].count > 100
    assert list(found.source_loss) == ["general"] and found.source_loss["general"] > 0
    assert found.weights < found.source_weights
    assert "weights of" in said and "the sparse source's loss: general" in said
    assert [sum(shares) for shares in found.usage] == pytest.approx([1], abs=1e-3)
    student = load_model(place)
    assert isinstance(student, GPT) and student.expert_counts == ()
    assert "unchanged, skipped" in run_here("distil", arguments)


@pytest.mark.slow
def test_a_killed_distillation_ends_with_the_same_bits(tmp_path: Path, run_here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    base = sparse_base(tmp_path / "sparse")

    def arguments(name: str) -> list[str]:
        return [f"checkpoint={base}", f"run.dir={tmp_path}/{name}", "run.name=d", *TRAINED]

    run_here("distil", arguments("whole"))
    from pipelines.stages import distil

    launch = distil.launch

    def killed(job: dict[str, object], work: Path, engine: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distil, "launch", killed)  # after the student was merged
    with pytest.raises(AssertionError):
        run_here("distil", arguments("killed"))
    monkeypatch.setattr(distil, "launch", launch)
    run_here("distil", arguments("killed"))
    assert digests(tmp_path / "whole" / "d" / "distil") == digests(tmp_path / "killed" / "d" / "distil") != {}


@pytest.mark.slow
def test_students_and_sparse_models_are_bases_like_others(tmp_path: Path, run_here: Here) -> None:
    base = sparse_base(tmp_path / "sparse")
    run_here("distil", [f"checkpoint={base}", f"run.dir={tmp_path}/runs", "run.name=d", *TRAINED])
    for name, place in (("student", tmp_path / "runs" / "d" / "distil"), ("sparse", base)):
        run_here("run", [f"checkpoint={place}", f"run.dir={tmp_path}/runs", f"run.name={name}", *ADAPTATION])
        assert (tmp_path / "runs" / name / "evaluate" / "demo_reviews" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_hugging_face_base_gives_its_familys_dense_sibling(tmp_path: Path, run_here: Here) -> None:
    base = make_checkpoint(tmp_path / "mixtral", "mixtral")
    arguments = ["model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", "run.name=d"]
    run_here("distil", [*arguments, *TRAINED])
    place = tmp_path / "runs" / "d" / "distil"
    [held_out] = Student.of(open_artifact(place.resolve())).held_out.values()
    assert held_out.after["distillation"].value < held_out.before["distillation"].value
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    assert model.config.model_type == "llama"


def test_bases_without_a_dense_student_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = make_dense(tmp_path / "dense")
    arguments = [f"run.dir={tmp_path}/runs", "run.name=d", *TRAINED]
    refused("distil", [f"checkpoint={dense}", *arguments], ["is dense already"], monkeypatch, capsys)
    refused("distil", [f"checkpoint={dense}", *arguments, "distil.weight=0"], ["nothing would be learned"], monkeypatch, capsys)
    (tmp_path / "olmoe").mkdir()
    base = make_checkpoint(tmp_path / "olmoe", "olmoe")
    capsys.readouterr()  # what transformers says when it is imported
    refused("distil", [f"checkpoint={base}", *arguments], ["no dense sibling", "over all heads"], monkeypatch, capsys)
    assert not (tmp_path / "runs" / "d" / "distil").exists()
