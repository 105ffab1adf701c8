"""LoRA on a Hugging Face base as a user runs it: labelled, adapted, evaluated, exported as a delta and merged; early refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import pseudo_label
from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import CheckpointError
from adapt.model.lora_config import LoraConfig
from pipelines.config.locations import demo_dir
from tests.support.command_line import FP32_SCORES, in_process, run_inside
from tests.support.hf_checkpoints import make_checkpoint
from tests.support.lora_cases import saved_delta, with_lora

TASKS = ("demo_reviews", "demo_topics")
SETTINGS = [
    f"tasks=[{','.join(TASKS)}]",
    f"data.root={demo_dir()}/clue",
    "pseudo_label.max_rows=30",
    "evaluate.fit_rows=10",
    "evaluate.splits=[dev]",
    "evaluate.methods=[raw]",
    "evaluate.method=raw",
    "continue_pretrain.epochs=1",
    "continue_pretrain.batch_rows=8",
    "continue_pretrain.optimizer.lr=0.02",
    "gate.action=warn",  # so large a learning rate changes what a base says
    "continue_pretrain.trains=lora",
    "continue_pretrain.lora.rank=2",
    "continue_pretrain.lora.targets=[attention,experts,router]",
    "engine.threads=1",
    "engine.precision=fp32",
    "scorer.precision=fp32",
]
STAGES = "stages=[pseudo_label,continue_pretrain,evaluate,export]"


def rows_of(task: str) -> list[dict[str, Any]]:
    lines = (demo_dir() / "clue" / task / "dev.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:12]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bare") / "base", "mixtral")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return the base, the run's directory and what a finished walk wrote."""
    place = tmp_path_factory.mktemp("lora")
    base = make_checkpoint(place / "base", "mixtral")
    arguments = ["model=hf", f"model.path={base}", f"run.dir={place}/runs", *SETTINGS, STAGES, "export.form=delta"]
    done = run_inside("run", *arguments)
    assert done.returncode == 0, done.stderr
    return base, place / "runs" / "default", done.stderr


@pytest.mark.slow
def test_a_walk_says_what_is_trained_and_leaves_deltas(walked: tuple[Path, Path, str]) -> None:
    base, place, text = walked
    assert "LoRA: " in text and "attention " in text and "experts " in text and "router " in text
    weights = (base / "model.safetensors").stat().st_size
    for stage in ("continue_pretrain", "export"):
        for task in TASKS:
            delta = place / stage / task
            assert not list(delta.glob("model*"))
            assert (delta / "adapter_model.safetensors").stat().st_size < weights / 10
    factors = [(place / "continue_pretrain" / task / "adapter_model.safetensors").read_bytes() for task in TASKS]
    assert factors[0] != factors[1]


@pytest.mark.slow
def test_plain_peft_opens_an_exported_delta_as_the_merged_export_is(
    walked: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, place, _ = walked
    arguments = ["model=hf", f"model.path={base}", f"run.dir={place.parent}", *SETTINGS, "export.form=merged"]
    delta = shutil.copytree(place / "export" / TASKS[0], place.parent.parent / "delta")
    answers = pseudo_label.load(delta, FP32_SCORES).predict(rows_of(TASKS[0]))
    code, text = in_process("export", arguments, monkeypatch, capsys)
    assert code == 0, text
    merged = place / "export" / TASKS[0]
    assert not (merged / "delta.json").exists() and not (merged / "adapter_config.json").exists()
    ids = torch.arange(5, 45)[None]
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(delta)).eval()
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(adapter(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)
    assert pseudo_label.load(merged, FP32_SCORES).predict(rows_of(TASKS[0])) == answers


@pytest.mark.slow
def test_tasks_take_turns_on_one_base(walked: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, place, _ = walked
    exports = {task: (place / "continue_pretrain" / task) for task in TASKS}
    alone = {}
    for task, export in list(exports.items()):
        exports[task] = whole_export(place, export, task)
        alone[task] = pseudo_label.load(exports[task], FP32_SCORES).predict(rows_of(task))
    before = sha256_of_file(base / "model.safetensors")
    predictor = pseudo_label.load(exports[TASKS[0]], FP32_SCORES)
    monkeypatch.setattr("adapt.checkpoint.delta.load_hf_model", None)  # the base is not read again
    for task in (*TASKS, *TASKS):
        predictor.switch_to(exports[task])
        assert predictor.predict(rows_of(task)) == alone[task]
    assert sha256_of_file(base / "model.safetensors") == before
    with pytest.raises(CheckpointError, match="is not an export"):
        predictor.switch_to(base)
    assert predictor.predict(rows_of(TASKS[1])) == alone[TASKS[1]]


def whole_export(place: Path, adapted: Path, task: str) -> Path:
    """Put an adapted delta and how its task is answered together, whatever form the run's export has now."""
    target = place.parent.parent / f"turn-{task}"
    if not target.is_dir():
        shutil.copytree(adapted, target, ignore=shutil.ignore_patterns("manifest.json"))
        shutil.copyfile(place / "export" / task / "predictor.json", target / "predictor.json")
    return target


@pytest.mark.slow
def test_predict_opens_a_delta_whose_base_moved(
    walked: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, place, _ = walked
    export = shutil.copytree(whole_export(place, place / "continue_pretrain" / TASKS[0], TASKS[0]), tmp_path / "export")
    record = json.loads((export / "delta.json").read_text(encoding="utf-8"))
    (export / "delta.json").write_text(json.dumps({**record, "base": "/nowhere/base"}), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(TASKS[0])), encoding="utf-8")
    arguments = [f"checkpoint={export}", f"input={tmp_path}/rows.jsonl", f"output={tmp_path}/out.jsonl", f"run.dir={tmp_path}/r"]
    code, text = in_process("predict", arguments, monkeypatch, capsys)
    assert code == 2 and "/nowhere/base" in text and "model.path=DIR" in text
    code, text = in_process("predict", [*arguments, "model=hf", f"model.path={base}"], monkeypatch, capsys)
    assert code == 0, text
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["continue_pretrain.lora.targets=[mlp]"], ["continue_pretrain.lora.targets", "no parameters of the group 'mlp'"]),
        (["continue_pretrain.lora.targets=[]"], ["lora.targets", "is empty"]),
        (["continue_pretrain.lora.rank=0"], ["continue_pretrain.lora.rank", "1 or more"]),
        (["continue_pretrain.trains=all", "export.form=delta"], ["export.form=delta", "trains=all", "export.form=merged"]),
        (["engine.memory_gb=0.0001"], ["engine.memory_gb", "LoRA: ", "are trained beside"]),
        (["checkpoint={delta}"], ["trains=lora", "is a delta itself", "export.form=merged"]),
        (["checkpoint={own}"], ["continue_pretrain.trains=lora", "is for Hugging Face bases"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_labelled(
    arguments: list[str], words: list[str], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "checkpoint={delta}" in arguments:
        saved_delta(tmp_path / "delta", with_lora(base, LoraConfig(rank=2)), base)
    places = {"{delta}": str(tmp_path / "delta"), "{own}": f"{demo_dir()}/base"}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    given = ["model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", *SETTINGS, STAGES, *arguments]
    code, text = in_process("run", given, monkeypatch, capsys)
    assert code == 2, text
    assert all(word in text for word in words), text
    assert not (tmp_path / "runs" / "default").exists()


def test_groups_that_a_dense_base_has_not_are_refused_by_its_configuration_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")  # nothing else is looked at
    given = ["model=hf", f"model.path={tmp_path}/base", f"run.dir={tmp_path}/runs", *SETTINGS, STAGES]
    for own, words in (
        ("continue_pretrain.lora.targets=[attention,experts]", "has no parameters of the group 'experts'; it has: attention, mlp"),
        ("continue_pretrain.trains=experts", "is a dense model; use all, dense or head"),
    ):
        code, text = in_process("run", [*given, own], monkeypatch, capsys)
        assert code == 2 and words in text, text
        assert not (tmp_path / "runs").exists()


def test_the_plan_counts_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "llama")
    arguments = ["model=hf", f"model.path={base}", "continue_pretrain.trains=lora", "continue_pretrain.lora.targets=[attention]"]
    code, text = in_process("plan", arguments, monkeypatch, capsys)
    assert code == 0, text
    # q and o: 2 (32 + 32) each, k and v: 2 (32 + 16) each, of rank 8 in 2 layers.
    assert f"LoRA: {8 * 2 * (2 * 64 + 2 * 48):,} parameters are trained beside" in text
    assert "rows of 96 tokens" in text
    code, text = in_process("plan", [*arguments[:3], "continue_pretrain.lora.targets=[experts]"], monkeypatch, capsys)
    assert code == 2 and "continue_pretrain.lora.targets" in text


@pytest.mark.slow
def test_a_walk_of_chosen_experts_leaves_deltas_that_answer_as_merged_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen3_moe")
    own = ["continue_pretrain.trains=experts", "continue_pretrain.expert_coverage=0.4", "pseudo_label.weighting=fixed"]
    arguments = ["model=hf", f"model.path={base}", f"run.dir={tmp_path}/runs", *SETTINGS, *own]
    code, text = in_process("run", [*arguments, STAGES, "export.form=delta"], monkeypatch, capsys)
    assert code == 0, text
    assert "of 45 tensors of its base changed" in text
    exports, deltas = tmp_path / "runs" / "default" / "export", {}
    for task in TASKS:
        deltas[task] = shutil.copytree(exports / task, tmp_path / f"delta-{task}")
        assert (deltas[task] / "changed_tensors.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 4
    assert f"export {TASKS[0]}: adapted in " in text and "held-out loss per token" in text
    code, text = in_process("export", [*arguments, "export.form=merged"], monkeypatch, capsys)
    assert code == 0, text
    assert "was in form delta and is now in form merged" in text
    wanted = {task: pseudo_label.load(exports / task, FP32_SCORES).predict(rows_of(task)) for task in TASKS}
    predictor = pseudo_label.load(deltas[TASKS[0]], FP32_SCORES)
    for task in (TASKS[1], TASKS[0], TASKS[1]):
        predictor.switch_to(deltas[task])
        assert predictor.predict(rows_of(task)) == wanted[task]
