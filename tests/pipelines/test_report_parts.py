"""The page's parts on experts, teachers, prompts, cost, forgetting and commands: right numbers, nothing where there is nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from adapt.core.artifacts import FIGURES_FILE, METRICS_FILE, Artifact, ArtifactStore, InputRef, StageKey, open_artifact
from adapt.core.errors import CheckpointError
from adapt.core.typed import to_plain
from adapt.text.tokenizer import Tokenizer
from adapt.train.expert_loads import ExpertLoads, MeasuredLoads, StepLoads
from pipelines.config.locations import conf_dir
from pipelines.report_page.charts import Chart
from pipelines.report_page.page import Section
from pipelines.stages.changed_settings import changed_settings
from pipelines.stages.disagreement import TOGETHER, LabelFigures, TeacherViews, noise_bins
from pipelines.stages.products import Adaptation, GeneralPerplexity
from pipelines.stages.progress_record import ProgressRecord, records_of
from pipelines.stages.report import STAGE
from pipelines.stages.report_costs import commands_section, cost_section, forgetting_section
from pipelines.stages.report_experts import expert_parts
from pipelines.stages.report_prompts import prompts_section
from pipelines.stages.report_teachers import noise_chart, teacher_parts
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskRow, load_task
from tests.support.command_line import composed

TASK = load_task("demo_reviews", [conf_dir() / "task"])
ROWS = [TaskRow(id=i, texts={"sentence": f"text {i}"}, label="Positive", candidates=None, line=i + 1) for i in range(4)]
EMPTY = Artifact(path=Path("/nowhere"), stage="evaluate", key="", digest="", config={}, inputs={}, metrics={}, created="")


def words(parts: Any) -> str:
    """Return the text of parts, tags and breaks as single spaces."""
    whole = " ".join(str(part).replace("<", " <") for part in parts if not isinstance(part, Chart))
    return " ".join(Markup(whole).striptags().split())


def charts(parts: Any) -> list[Chart]:
    return [part for part in parts if isinstance(part, Chart)]


def cells(chart: Chart) -> Mapping[tuple[str, str], float]:
    return {(row[0], row[1]): float(row[2]) for row in chart.rows}


def test_loads_are_drawn_over_time_and_before_against_after(tmp_path: Path) -> None:
    steps = [StepLoads(step=s, shares=[[0.25, 0.75], [0.5, 0.5]]) for s in range(1, 42)]
    loads = ExpertLoads(
        steps=steps, measured={"news": MeasuredLoads(before=[[1.0, 0.0], [0.5, 0.5]], after=[[0.4, 0.6], [0.5, 0.5]])}
    )
    loads.write(tmp_path / FIGURES_FILE)
    first, second, news = charts(expert_parts(replace(EMPTY, path=tmp_path)))
    assert (first.title, second.title) == tuple(f"Experts of MoE layer {n} of 2 by training step" for n in (1, 2))
    over_time = cells(first)
    assert {step for _, step in over_time} == {str(s) for s in range(2, 42, 3)}, "at most 20 steps, the last among them"
    assert {over_time["1", "41"], over_time["2", "41"]} == {0.5, 1.5}
    assert cells(news)["layer 1 before", "1"] == 2.0
    assert cells(news)["layer 1 after", "2"] == 1.2


def test_a_deep_model_shows_some_layers_over_time_and_a_dense_one_nothing(tmp_path: Path) -> None:
    assert expert_parts(replace(EMPTY, path=tmp_path)) == []
    ExpertLoads(steps=[StepLoads(step=1, shares=[[1 / 64] * 64] * 24)]).write(tmp_path / FIGURES_FILE)
    titles = [chart.title for chart in charts(expert_parts(replace(EMPTY, path=tmp_path)))]
    assert len(titles) == 6
    assert titles[0].startswith("Experts of MoE layer 1 of 24")
    assert titles[-1].startswith("Experts of MoE layer 24 of 24")


def test_teachers_are_compared_and_the_surest_dispute_comes_first(tmp_path: Path) -> None:
    model = np.asarray([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])  # Negative, Positive, Positive, Negative
    lexical = np.asarray([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.2]])  # Negative, Negative, Negative, Positive
    views = TeacherViews.of(ROWS, TASK, {"model": model, "lexical": lexical}, model + lexical)
    assert views.agreement["model"]["lexical"] == 0.25
    assert views.agreement["lexical"][TOGETHER] == 0.75, "ties go to the first label"
    assert views.counts["model"] == {"Negative": 2, "Positive": 2}
    assert (views.n_disputed, [row.line for row in views.disputed]) == (3, [3, 2, 4])
    LabelFigures(views=views).write(tmp_path / FIGURES_FILE)
    parts = teacher_parts(replace(EMPTY, path=tmp_path), None)
    assert "3 get several labels" in words(parts)
    assert "Positive (0.95) Negative (0.95)" in words(parts)
    assert "text" not in words(parts).replace("unlabeled", ""), "no text of the data without the data"
    assert cells(charts(parts)[0])["model", "lexical"] == 25.0


def test_the_noise_of_labels_is_drawn_by_confidence(tmp_path: Path) -> None:
    noise = noise_bins([0.55, 0.57, 1.0, 0.91], [True, False, True, True])
    assert [(one.low, one.n, one.accuracy) for one in noise] == [(0.5, 2, 0.5), (0.9, 2, 1.0)]
    assert noise_bins([], []) == []
    assert noise_chart(replace(EMPTY, path=tmp_path)) == []
    LabelFigures(noise=noise).write(tmp_path / FIGURES_FILE)
    [chart] = noise_chart(replace(EMPTY, path=tmp_path))
    assert chart.rows[1] == ["0.56", "-", "0.5000", "0.5000"]
    assert teacher_parts(replace(EMPTY, path=tmp_path), None) == [], "a single teacher disputes nothing"


def evaluated(tmp_path: Path, tokenizer: Tokenizer) -> Artifact:
    """Return an evaluation on a base of which only what reads text is there."""
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": tokenizer.vocab_size, "context_length": 64}), encoding="utf-8")
    base = {"path": str(tmp_path), "digest": ""}
    config = {"task": to_plain(TASK), "prompts": ["reference"], "form": "clm"}
    return replace(EMPTY, config=config, inputs={"base": InputRef(**base)})


def test_a_prompt_reads_token_by_token_with_every_label(tmp_path: Path, tokenizer: Tokenizer) -> None:
    section = prompts_section("demo_reviews", evaluated(tmp_path, tokenizer), ROWS)
    html = "".join(str(part) for part in section.parts)
    lines = [line for line in html.split("<p ") if line.startswith('class="tokens"')]
    assert [line.split("<b>")[1].split(":")[0] for line in lines] == ["label Negative", "label Positive"]
    for line, label in zip(lines, TASK.labels, strict=True):
        boxes = [piece.split("<")[0] for piece in line.split('class="token label">')[1:]]
        assert "".join(boxes) == TASK.label_words[label]
        ids = tokenizer.encode(TASK.label_words[label])
        assert len(boxes) == len(ids)
        context = line.count('class="token context"')
        assert context == 1 + len(tokenizer.encode(ROWS[0].texts["sentence"])), "the start of the document, and the text"


def test_a_prompt_shows_no_text_where_none_is_at_hand_and_says_what_is_gone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = evaluated(tmp_path, tokenizer)
    section = prompts_section("demo_reviews", found, [])
    assert "Texts are left out" in words(section.parts)
    assert "text 0" not in words(section.parts)
    (tmp_path / "config.json").unlink()
    assert "Not shown: " in words(prompts_section("demo_reviews", found, ROWS).parts)
    gone = replace(found, inputs={})
    assert "is gone" in words(prompts_section("demo_reviews", gone, ROWS).parts)


def adapted(**more: Any) -> Artifact:
    made = Adaptation(is_adapted=True, steps=12, tokens_per_s=3456.0, held_out={}, **more)
    return replace(EMPTY, stage="continue_pretrain", metrics=made.metrics(), seconds=61.24)


def test_cost_has_time_speed_and_memory_against_the_plan() -> None:
    found = {
        "evaluate/t": replace(EMPTY, seconds=10.0),
        "continue_pretrain/t": adapted(peak_bytes=2 * 10**9, planned_bytes=5 * 10**8),
    }
    text = words(cost_section(found).parts)
    assert "All stages together took 71 s" in text
    assert "continue_pretrain/t 61.2 12 3,456 2 GB 500 MB" in text
    assert "evaluate/t 10.0 - - - -" in text
    assert "The time was not recorded" in words(cost_section({"evaluate/t": EMPTY}).parts)


def test_forgetting_has_general_text_before_and_after(tmp_path: Path) -> None:
    assert forgetting_section({"continue_pretrain/t": adapted()}, shows_texts=True) is None
    general = GeneralPerplexity(before=10.0, after=12.0, increase=0.2, ci95=(0.1, 0.3), tokens=1234)
    section = forgetting_section({"continue_pretrain/t": adapted(general=general)}, shows_texts=True)
    assert isinstance(section, Section)
    assert "t 10.0 12.0 +20.0 +10.0 to +30.0 1,234" in words(section.parts)
    assert charts(section.parts)[0].rows == [["t", "adapted", "20.0", "10.0 to 30.0"]]


def test_the_last_command_can_be_copied_and_the_others_are_listed() -> None:
    one, two = ("2026-01-01 00:00:00", "python -m pipelines.run a=1", "failed: no"), ("2026-01-02 00:00:00", "python -m b", "done")
    section = commands_section([one, two])
    assert str(section.parts[0]) == '<pre tabindex="0">python -m b</pre>'
    assert "failed: no" in words(section.parts)
    assert "an earlier version" in words(commands_section([]).parts)


def test_figures_are_no_part_of_a_digest_and_time_is_recorded(tmp_path: Path) -> None:
    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (result / "content.txt").write_text("same", encoding="utf-8")
        for name in (FIGURES_FILE, METRICS_FILE):
            if with_figures:
                (result / name).write_text("{}", encoding="utf-8")
        return {}

    digests = []
    for with_figures in (False, True):
        store = ArtifactStore(tmp_path / str(with_figures))
        made, _ = store.produce(StageKey(stage="s", config={}), build, force=False, created=str)
        digests.append(made.digest)
        assert made.seconds is not None
        assert made.seconds >= 0
    assert digests[0] == digests[1]
    (made.path / FIGURES_FILE).write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="its content differs"):
        open_artifact(made.path)


def test_a_page_that_is_drawn_by_itself_has_the_settings_and_commands_of_the_walk(smallest_run: Path) -> None:
    config = composed("report", [f"run.dir={smallest_run.parent}", "run.name=demo", "tasks=[demo_reviews]"])
    reads = STAGE.reads(Run(config), None)
    assert reads.settings["pretrain.steps"] == "12"
    assert "pretrain.steps" not in changed_settings(config)
    assert reads.commands
    assert {"pretrain", "pseudo_label/demo_reviews", "continue_pretrain/demo_reviews"} <= set(reads.figures.paths)


def test_a_record_says_how_the_command_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "-m", "pipelines.run", "tasks=[a,b]", "run.name=x y"])
    with ProgressRecord(tmp_path / "x", "x").going_on(["run"], {}):
        pass
    [record] = records_of(tmp_path / "x")
    assert record.command == "python -m pipelines.run 'tasks=[a,b]' 'run.name=x y'"
    assert record.process == os.getpid()
