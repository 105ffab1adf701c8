"""`precision=auto` in commands: keys, frozen jobs and results hold what it came to, and one line says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import adapt.checkpoint.open_checkpoint
import adapt.core.precision
import pseudo_label.predictor
from adapt.core.precision import Precision
from adapt.scoring.scorer_config import ScorerConfig
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.config.schema import PipelineConfig
from pipelines.stages import pretrain, scores
from pipelines.stages.rows import TaskData
from pipelines.stages.run import Run
from pipelines.walk.order import STAGES, stage_named
from pseudo_label.tasks import read_split
from pseudo_label.zero_shot import passes_for
from tests.support.command_line import SMALLEST, composed, in_process

RunHere = Callable[[str, list[str]], str]
Machine = Callable[[Precision], None]
AUTO = ["engine.precision=auto", "scorer.precision=auto"]
TASK = "demo_topics"
DEV = demo_dir() / "clue" / TASK / "dev.json"
SAID = {
    Precision.FP32: "precision: fp32 (this CPU has no bf16 instructions; bf16 would be slower)",
    Precision.BF16: "precision: bf16 (this CPU multiplies in bf16)",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that turns this process's CPU into one whose fast precision is given; ranks still see the real one."""

    def turn_into(precision: Precision) -> None:
        flags = tmp_path / "cpuinfo"
        flags.write_text("flags : avx2" + (" avx512_bf16" if precision is Precision.BF16 else ""), encoding="utf-8")
        monkeypatch.setattr(adapt.core.precision, "_CPU_FLAGS", flags)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)

    return turn_into


def precision_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("precision: ")]


def config_of(runs: Path, *more: str) -> PipelineConfig:
    return composed("run", [*SMALLEST, f"tasks=[{TASK}]", f"run.dir={runs}", *more])


def test_no_shipped_configuration_sets_a_precision() -> None:
    for path in [*conf_dir().glob("*.yaml"), *conf_dir().glob("engine/*.yaml"), *conf_dir().glob("experiment/*.yaml")]:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section in ("engine", "scorer"):
            assert "precision" not in (content.get(section) or {}), path
        assert "precision" not in content, path


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_keys_hold_what_auto_came_to(copied_run: Path, machine: Machine, precision: Precision) -> None:
    machine(precision)
    explicit = [f"engine.precision={precision.value}", f"scorer.precision={precision.value}"]
    auto, given = (Run(config_of(copied_run, *settings)) for settings in (AUTO, explicit))
    with_precision = set()
    for stage in map(stage_named, STAGES):
        if stage.name == "import_checkpoint":
            continue
        task = auto.tasks()[0] if stage.is_per_task else None
        key = stage.key(stage.reads(auto, task))
        assert key.digest() == stage.key(stage.reads(given, task)).digest(), stage.name
        if key.config.get("precision") is not None:  # cleaning a corpus computes only where a base is asked
            assert key.config["precision"] == precision.value
            with_precision.add(stage.name)
    assert with_precision >= {"pretrain", "pseudo_label", "continue_pretrain", "evaluate", "predict", "label_tree", "prompt_search"}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_frozen_jobs_hold_what_auto_came_to(
    copied_run: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    class Frozen(Exception):
        """Ends a stage where its ranks would start."""

    jobs: list[dict[str, Any]] = []

    def freeze(job: dict[str, Any], *_: object) -> None:
        jobs.append(job)
        raise Frozen

    for module in (pretrain, scores):
        monkeypatch.setattr(module, "launch", freeze)
    monkeypatch.setattr(scores, "_CHUNK_ROWS", 16)
    machine(precision)
    run = Run(config_of(copied_run, *AUTO, "engine.world_size=2", "force=true"))
    (tmp_path / "work").mkdir()
    with pytest.raises(Frozen):
        pretrain.STAGE.build(pretrain.STAGE.reads(run, None), run.workshop, tmp_path / "result", tmp_path / "work")
    task = run.tasks()[0]
    rows = read_split(run.splits(), task, "dev")
    scoring = pseudo_label.predictor.ScoringConfig(prompts=[task.reference])
    passes = passes_for(scoring.pairs(task), scoring.form, with_groups=False)
    with pytest.raises(Frozen):
        scores.scores_of(run.workshop, scores.ScorerReads.of(run), TaskData.of(run, task, ["dev"]), run.base(), "dev", rows, passes)
    training, scored = jobs
    assert training["job"]["engine"]["precision"] == scored["job"]["scorer"]["precision"] == precision.value
    assert "auto" not in json.dumps({**training["job"]["engine"], **scored["job"]["scorer"], "layout": None}).split('"')


def test_ranks_take_the_commands_choice(copied_run: Path, machine: Machine, run_here: RunHere) -> None:
    machine(Precision.FP32)
    text = run_here("pretrain", [*SMALLEST, f"run.dir={copied_run}", "pretrain.steps=1", *AUTO])
    assert precision_lines(text) == [SAID[Precision.FP32]]
    told = json.loads((copied_run / "demo" / "pretrain" / "deepspeed.json").read_text(encoding="utf-8"))
    assert not told["bf16"]["enabled"]
    assert not told["fp16"]["enabled"]


def test_auto_that_comes_to_fp32_finds_what_fp32_made_and_says_so_once(
    copied_run: Path, machine: Machine, run_here: RunHere
) -> None:
    machine(Precision.FP32)
    text = run_here("run", [*SMALLEST, f"run.dir={copied_run}", *AUTO])
    assert precision_lines(text) == [SAID[Precision.FP32]]
    stages = [line for line in text.splitlines() if "unchanged, skipped" in line]
    assert len(stages) >= 8, "tokenizer, pretrain, and at least three stages of each task"
    assert not any("pretrain:" in line and "skipped" not in line for line in text.splitlines())


def test_a_sweep_says_it_once(copied_run: Path, machine: Machine, run_here: RunHere) -> None:
    machine(Precision.FP32)
    points = ["-m", *SMALLEST, f"run.dir={copied_run}", f"checkpoint={copied_run}/demo/pretrain", "task=demo_reviews,demo_topics"]
    text = run_here("pseudo_label", [*points, *AUTO])
    assert text.count("unchanged, skipped") == 2
    assert precision_lines(text) == [SAID[Precision.FP32]]


def test_training_and_scoring_say_different_choices_a_line_each(copied_run: Path, machine: Machine, run_here: RunHere) -> None:
    machine(Precision.BF16)
    arguments = [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}", *AUTO, "engine.zero_stage=0"]
    text = run_here("pretrain", [*arguments, "pretrain.steps=1"])
    assert precision_lines(text) == ["precision: fp32 (for training: engine.zero_stage=0 keeps no fp32 masters)"]
    export = f"checkpoint={copied_run}/demo/export/{TASK}"
    text = run_here("predict", [*arguments, "run.name=labelled", export, f"input={DEV}"])
    assert precision_lines(text) == [SAID[Precision.BF16]]


def test_explicit_precisions_and_stages_without_one_say_nothing(copied_run: Path, machine: Machine, run_here: RunHere) -> None:
    machine(Precision.BF16)
    arguments = [*SMALLEST, f"run.dir={copied_run}"]
    assert precision_lines(run_here("run", arguments)) == []
    assert precision_lines(run_here("tokenizer", [*arguments, *AUTO])) == []
    assert precision_lines(run_here("report", [*arguments, *AUTO])) == []


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_an_export_resolves_on_loading(
    smallest_run: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    asked: list[Precision] = []
    original = adapt.checkpoint.open_checkpoint.open_checkpoint

    def watched(place: Path, scorer: ScorerConfig, *rest: Any) -> Any:
        asked.append(scorer.precision)
        return original(place, scorer, *rest)

    monkeypatch.setattr(adapt.checkpoint.open_checkpoint, "open_checkpoint", watched)
    machine(precision)
    place = smallest_run / "export" / TASK
    pseudo_label.predictor.load(place)
    pseudo_label.predictor.load(place, ScorerConfig(max_batch_tokens=512))
    pseudo_label.predictor.load(place, ScorerConfig(precision=Precision.FP32))
    assert asked == [precision, precision, Precision.FP32]


def test_the_plan_and_the_memory_check_count_the_resolved_precision(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["model=small", *AUTO, "engine.micro_batch=16"]
    totals = {}
    for precision in (Precision.FP32, Precision.BF16):
        machine(precision)
        code, text = in_process("plan", arguments, monkeypatch, capsys)
        assert code == 0, text
        assert precision_lines(text) == [SAID[precision]]
        assert f"(ZeRO-2, {precision.value}," in text
        totals[precision] = float(text.splitlines()[-1].split()[1])
    assert totals[Precision.BF16] < totals[Precision.FP32]
    between = f"engine.memory_gb={(totals[Precision.FP32] + totals[Precision.BF16]) / 2}"
    assert in_process("plan", [*arguments, between], monkeypatch, capsys)[0] == 0
    machine(Precision.FP32)
    code, text = in_process("plan", [*arguments, between], monkeypatch, capsys)
    assert code == 2, text
    assert "error: engine.memory_gb" in text
