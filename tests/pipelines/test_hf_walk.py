"""Stages over Hugging Face bases, dense and sparse, as a user runs them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import pseudo_label
from adapt.core.artifacts import open_artifact
from adapt.model.hf_families import SPARSE_FAMILIES
from pipelines.config.locations import demo_dir
from tests.support.command_line import FP32_SCORES, SMALL_DEMO, in_process, run_inside
from tests.support.hf_checkpoints import PREPENDED, make_checkpoint

TASK = "demo_reviews"
SMALLEST = [
    f"task={TASK}",
    f"data.root={SMALL_DEMO}",
    "pseudo_label.max_rows=40",
    "evaluate.fit_rows=20",
    "evaluate.splits=[dev]",
    "continue_pretrain.epochs=4",
    "continue_pretrain.batch_rows=8",
    "continue_pretrain.optimizer.lr=0.003",
    "objective.weights.context=1",
    "pseudo_label.weighting=fixed",  # a random base agrees with nobody
    "gate.action=warn",  # so large a learning rate changes what a base says
    "engine.threads=1",
]
# As `pipelines.run model=hf` walks them: the stages that make a base are left out.
STAGES = "stages=[tokenizer,pretrain,pseudo_label,continue_pretrain,evaluate]"
DENSE, SPARSE, BIASED = "dense, tied, one shard", "sparse, untied, many shards", "sparse, with routers that keep a bias"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    DENSE: ("qwen3", {"tie_word_embeddings": True}),
    SPARSE: ("olmoe", {"max_shard_size": "60KB"}),
    BIASED: ("deepseek_v3", {}),
}


@pytest.fixture(scope="module", params=[*(pytest.param(kind, marks=pytest.mark.slow) for kind in (DENSE, BIASED)), SPARSE])
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return the base, the run's directory and what a finished walk wrote."""
    family, changes = KINDS[request.param]
    place = tmp_path_factory.mktemp(family)
    base = make_checkpoint(place / "base", family, **changes)
    done = run_inside("run", "model=hf", f"model.path={base}", f"run.dir={place}/runs", *SMALLEST, STAGES)
    assert done.returncode == 0, done.stderr
    return base, place / "runs" / "default", done.stderr


def test_a_walk_labels_adapts_and_evaluates(walked: tuple[Path, Path, str]) -> None:
    _, place, text = walked
    assert "tokenizer, pretrain: left out, model=hf brings its own" in text
    assert not (place / "pretrain").exists()
    metrics = json.loads((place / "evaluate" / TASK / "metrics.json").read_text(encoding="utf-8"))
    assert {row["model"] for row in metrics} == {"lexical", "base", "adapted"}
    held_out = json.loads((place / "continue_pretrain" / TASK / "held_out.json").read_text(encoding="utf-8"))[TASK]
    assert held_out["after"]["context"]["value"] < held_out["before"]["context"]["value"]
    divergence = {when: held_out[when]["base_divergence"] for when in ("before", "after")}
    assert abs(divergence["before"]["value"]) < 1e-6 < divergence["after"]["value"]
    assert divergence["after"]["count"] == held_out["after"]["context"]["count"]


def test_a_student_joins_the_lexical_labeller_with_its_ensemble_led_by_the_prompt_it_learnt(walked: tuple[Path, Path, str]) -> None:
    _, place, _ = walked
    decision = json.loads((place / "evaluate" / TASK / "decision.json").read_text(encoding="utf-8"))["decision"]
    assert decision["method"] == "combined"
    labels = decision["labels"]
    assert labels["weights"] == {"reference": float(len(labels["prompts"]) - 1)}
    assert any(abs(bias) > 0 for bias in labels["biases"])


def test_the_balance_loss_is_there_for_a_sparse_base_only(walked: tuple[Path, Path, str]) -> None:
    base, place, _ = walked
    lines = (place / "continue_pretrain" / TASK / "history.jsonl").read_text(encoding="utf-8").splitlines()
    is_sparse = json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"] in SPARSE_FAMILIES
    for line in map(json.loads, lines):
        assert (line["loss/balance"] > 0.5) if is_sparse else (line["loss/balance"] == 0.0)
        assert ("router/max_load/1" in line) is is_sparse


def test_the_adapted_model_is_a_hugging_face_directory_again(walked: tuple[Path, Path, str]) -> None:
    base, place, _ = walked
    adapted = place / "continue_pretrain" / TASK
    assert (adapted / "config.json").read_bytes() == (base / "config.json").read_bytes()
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(adapted, dtype=torch.float32).state_dict()
    assert before.keys() == after.keys()
    is_state = "e_score_correction_bias"  # of a router, which adaptation leaves as it is
    assert {name for name, weight in before.items() if torch.equal(weight, after[name])} == {n for n in before if is_state in n}


def test_the_base_is_known_by_content(
    walked: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, place, _ = walked
    labels = open_artifact((place / "pseudo_label" / TASK).resolve())
    shutil.copytree(base, tmp_path / "elsewhere")
    arguments = [f"checkpoint={tmp_path}/elsewhere", f"run.dir={place.parent}", *SMALLEST]
    code, text = in_process("pseudo_label", arguments, monkeypatch, capsys)
    assert code == 0, text
    assert "unchanged, skipped" in text
    assert labels.inputs["base"].path == str(base.resolve())


def test_an_export_answers_and_is_a_base_itself(
    walked: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, place, _ = walked
    arguments = ["model=hf", f"model.path={base}", f"run.dir={place.parent}", *SMALLEST]
    code, text = in_process("export", arguments, monkeypatch, capsys)
    assert code == 0, text
    rows = (demo_dir() / "clue" / TASK / "dev.json").read_text(encoding="utf-8").splitlines()
    answers = pseudo_label.load(place / "export" / TASK, FP32_SCORES).predict([json.loads(row) for row in rows])
    written = (place / "evaluate" / TASK / f"dev_{TASK}_predict.json").read_text(encoding="utf-8").splitlines()
    assert [answer.label for answer in answers] == [json.loads(line)["label"] for line in written]
    arguments = [f"checkpoint={place}/export/{TASK}", f"run.dir={place.parent}", "run.name=again", *SMALLEST]
    code, text = in_process("evaluate", arguments, monkeypatch, capsys)
    assert code == 0, text


@pytest.mark.slow
def test_bf16_training_under_a_llama_2_tokenizer_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen3_moe", PREPENDED)
    own = ["engine.precision=bf16", "pseudo_label.teachers=[model]"]
    arguments = ["model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", *SMALLEST, *own]
    code, text = in_process("run", [*arguments, "stages=[pseudo_label,continue_pretrain]"], monkeypatch, capsys)
    assert code == 0, text
    held_out = json.loads((tmp_path / "runs" / "default" / "continue_pretrain" / TASK / "held_out.json").read_text())[TASK]
    assert held_out["after"]["context"]["value"] < held_out["before"]["context"]["value"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base, and directories that are none, by name."""
    found = {name: tmp_path_factory.mktemp("places") / name for name in ("base", "pickles", "broken", "other")}
    make_checkpoint(found["base"], "llama")
    for name, config in (("pickles", '{"model_type": "llama"}'), ("broken", "{"), ("other", "{}")):
        found[name].mkdir()
        (found[name] / "config.json").write_text(config, encoding="utf-8")
        (found[name] / "pytorch_model.bin").write_bytes(b"\x80")
    return found


@pytest.mark.parametrize(
    ("stage", "arguments", "words"),
    [
        ("pseudo_label", ["model=hf"], ["model.path"]),
        ("pseudo_label", ["model=hf", "model.path=/nowhere/at/all"], ["/nowhere/at/all", "model.path", "Hugging Face directory"]),
        ("pseudo_label", ["model=small", "model.path={base}"], ["model.path", "add model=hf"]),
        ("pseudo_label", ["model=hf", "model.path={base}", "model.n_layers=3"], ["model.n_layers", "leave it out"]),
        ("pseudo_label", ["model=hf", "model.path={base}", "objective.pseudo_label=mlm"], ["<mask>", "objective.pseudo_label=clm"]),
        ("pretrain", ["model=hf", "model.path={base}"], ["model=hf", "leave tokenizer and pretrain out of stages"]),
        ("tokenizer", ["model=hf", "model.path={base}"], ["leave tokenizer and pretrain out of stages"]),
        ("pseudo_label", ["checkpoint={pickles}"], ["pickled weights", "safetensors"]),
        ("pseudo_label", ["checkpoint={broken}"], ["config.json", "not valid JSON"]),
        ("pseudo_label", ["checkpoint={other}"], ["no complete artifact", "model_type"]),
        ("plan", ["model=hf", "model.path={other}"], ["Hugging Face directory"]),
    ],
)
def test_a_mistake_is_one_line(
    stage: str, arguments: list[str], words: list[str], places: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [argument.format(**places) for argument in arguments]
    code, text = in_process(stage, [f"run.dir={tmp_path}/runs", *SMALLEST, *filled], monkeypatch, capsys)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2, text
    assert len(errors) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0]
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_the_plan_counts_a_sparse_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_checkpoint(tmp_path, "qwen3_moe")
    code, text = in_process("plan", ["model=hf", f"model.path={base}"], monkeypatch, capsys)
    assert code == 0, text
    counts = {name: int(count.replace(",", "")) for name, count in re.findall(r"^(\w+) +([\d,]+) ", text, re.MULTILINE)}
    model = AutoModelForCausalLM.from_pretrained(base)
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["experts"] == 2 * 4 * 3 * 32 * 16
    assert counts["active"] == counts["total"] - counts["experts"] // 2
