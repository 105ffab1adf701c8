"""The README of an export shows texts of a task as they are, whatever marks they hold."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

from adapt.core.artifacts import Artifact
from pipelines.config.locations import conf_dir
from pipelines.stages.export_card import ForTransformers, card, escaped
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.labelling import ScoringConfig
from pseudo_label.predictor import PredictorSpec
from pseudo_label.task_config import FieldConfig, TaskConfig
from pseudo_label.tasks import load_task

BASE = Artifact(path=Path("/models/base"), stage="pretrain", key="k", digest="ab12", config={}, inputs={}, metrics={}, created="")
ADAPTED = {"is_adapted": True, "steps": 1200}
LINE = {"split": "dev", "model": "adapted", "method": "raw", "n": 60, "accuracy": 0.865, "ci95": [0.8, 0.91]}


def card_of(task: TaskConfig, gain: str | None = "gained", transformers: ForTransformers | None = None) -> str:
    decision = Decision(method=Method.RAW, labels=FittedScores(prompts=["reference"]), groups=None, n_fitted=0)
    spec = PredictorSpec(task=task, scoring=ScoringConfig(prompts=["reference"]), decision=decision)
    return card(spec, [LINE, {**LINE, "model": "base"}], gain, BASE, replace(BASE, digest="cd34", metrics=ADAPTED), transformers)


def test_marks_of_markdown_and_html_and_control_characters_are_shown() -> None:
    said = escaped("a|b\n# c <img src=x onerror=1> [x](http://e.vil) `r` *s* www.e.vil\x1b[31m\u202e")
    assert "\n" not in said
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert said.startswith("a\\|b # c &lt;img src=x onerror=1&gt; \\[x\\](http\\://e.vil) \\`r\\` \\*s\\* www\\.e.vil")


def test_a_card_of_a_hostile_task_keeps_its_tables_and_its_python_runs() -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    [name] = task.fields
    hostile = replace(
        task,
        label_words={**dict.fromkeys(task.labels, "好|坏\n## <b>"), "a|b": "x"},
        fields={name: FieldConfig(path="row.``te'xt\n\u202e")},
    )
    text = card_of(hostile, "lost; every answer is '</td>|'")
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == rows[0].count("|") for line in rows[: 2 + len(hostile.label_words)])
    assert "<b>" not in text
    assert "</td>" not in text
    assert "\u202e" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# demo\\_reviews", "## Labels", "## Prompts", "## How to use it", "## Data", "## Figures",
        "## Where it comes from", "## Licence",
    ]  # fmt: skip
    shown = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    call = ast.parse(next(line for line in shown if "predict([" in line))
    [rows_given] = [node for node in ast.walk(call) if isinstance(node, ast.List) and isinstance(node.ctx, ast.Load)]
    assert ast.literal_eval(rows_given) == [{"row": {"``te'xt\n\u202e": "..."}}]


def test_a_card_has_figures_with_intervals_and_where_it_comes_from() -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    text = card_of(task)
    assert "| dev | adapted | raw | 60 | 86.5 | 80.0 to 91.0 |" in text
    assert "| dev | base | raw |" in text
    assert "| base (base) | `ab12` |" in text
    unadapted = card_of(task, None)
    assert "adapted |" not in unadapted
    assert "Compared" not in unadapted
    many = replace(task, label_words={f"l{i}": "x" for i in range(200)})
    assert "And 140 more" in card_of(many)
    cloze = load_task("chid", [conf_dir() / "task"])
    assert "Every row brings its own candidates" in card_of(cloze)


def test_a_card_says_prompts_data_and_how_other_programs_open_the_export() -> None:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    plain = card_of(task)
    assert "| reference | `{sentence}这句话表达的是{label}` |  | sum |" in plain
    assert "in 1,200 steps; no label was read. Measured on dev (60 rows)." in plain
    assert "trust_remote_code" not in plain and "lm_eval" not in plain
    own = card_of(task, transformers=ForTransformers(has_code=True, has_tasks=True, family="Its layers are its own."))
    assert own.startswith("---\nlibrary_name: transformers\n")
    assert "Its layers are its own." in own
    assert "--model_args pretrained=DIR,trust_remote_code=True --tasks moe_adapt_demo_reviews --include_path DIR" in own
    foreign = card_of(task, None, ForTransformers(has_code=False, has_tasks=False))
    assert 'AutoModelForCausalLM.from_pretrained("DIR")' in foreign
    assert "lm_eval" not in foreign and "Nothing was adapted." in foreign
