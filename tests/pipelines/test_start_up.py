"""What composes a configuration, refuses it or reads tasks imports neither a model nor what comes with it."""

from __future__ import annotations

import subprocess
import sys

from pipelines.walk.order import STAGES
from tests.support.command_line import ROOT

HEAVY = ("torch", "datasets", "pandas", "transformers", "wandb", "deepspeed", "sklearn", "scipy")
SAY = f"import sys; print('heavy:', [name for name in {HEAVY} if name in sys.modules])"


def heavy_imports(code: str) -> str:
    """Run code in a process of its own; return what it imported of the heavy packages, as text."""
    return said_by(code)[-1]


def said_by(code: str) -> list[str]:
    """Run code in a process of its own; return the lines that it wrote."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def after_each(*commands: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Do in one process what `python -m pipelines.<stage>` does for each command; return what was imported by its end."""
    said = said_by("".join(command(*words) for words in commands))
    return dict(zip(commands, [line for line in said if line.startswith("heavy: ")], strict=True))


def command(stage: str, *arguments: str) -> str:
    """Return code that does what `python -m pipelines.<stage>` does, and says what it imported."""
    return f"""
import runpy, sys
sys.argv = [{stage!r}, *{arguments!r}]
try:
    runpy.run_module("pipelines.{stage}", run_name="__main__", alter_sys=True)
except SystemExit as left:
    print("code", left.code)
{SAY}
"""


def test_help_and_refusals_need_no_model() -> None:
    commands = [
        ("run", "--help"),
        *((stage, "--help") for stage in ("pretrain", "evaluate", "plan", "study")),
        ("run", "--cfg", "job"),
        ("run", "foo=1"),
        ("run", "model=smal"),
        ("run", "pretrain.steps=many", "model/router=expert_choice"),
        ("run", "stages=[pretrian]"),
        ("watch", "run.dir=tests", "--once"),
    ]
    assert after_each(*commands) == dict.fromkeys(commands, "heavy: []")


def test_every_stage_can_be_found_without_a_model() -> None:
    names = "[stage_named(name).name for name in STAGES]"
    code = f"from pipelines.walk.order import STAGES, stage_named\nassert {names} == {list(STAGES)}\n{SAY}"
    assert heavy_imports(code) == "heavy: []"


def test_tasks_are_read_without_a_model_and_what_answers_is_there_when_it_is_asked_for() -> None:
    assert heavy_imports(f"import pseudo_label.tasks\n{SAY}") == "heavy: []"
    assert "numpy" not in heavy_imports("import sys, pseudo_label.tasks; print(sorted(sys.modules))")
    assert heavy_imports("import pseudo_label; print(pseudo_label.load.__module__)") == "pseudo_label.predictor"


def test_every_point_of_a_sweep_is_composed_without_a_model() -> None:
    sweep = ["-m", "model/router=top1,large_margin", "tasks=[nowhere]", "stages=[evaluate]"]
    assert heavy_imports(command("run", *sweep)) == "heavy: []"
