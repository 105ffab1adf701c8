"""`prompt_search` judges prompts without labels, measures them where there are some, and scores no prompt twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config.locations import conf_dir, demo_dir
from pseudo_label.tasks import load_task
from tests.support.command_line import SMALLEST, in_process

PROMPTS = """
- {name: stars, label_words: {Negative: 差评, Positive: 好评}}
- name: says
  template: "{sentence}这句话表达的是{label}"
- name: total
  template: "{sentence}总之，{label}"
  label_words: [task, stars, {Negative: 很差, Positive: 很好}]
"""
MORE = """
- name: first
  template: "{label}，{sentence}"
  criterion: channel
"""


def command_of(smallest_run: Path, runs: Path, *more: str) -> list[str]:
    """Return a command line on the smallest base; `more` overrides keys of it."""
    base = ["tasks=[demo_reviews]", f"checkpoint={smallest_run}/pretrain", f"run.dir={runs}", "prompt_search.rows=40"]
    given = dict(a.split("=", 1) for a in [*SMALLEST, *base, *more])
    return [f"{key}={value}" for key, value in given.items()]


def found_in(runs: Path) -> dict[str, Any]:
    text = (runs / "demo" / "prompt_search" / "demo_reviews" / "prompts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_tasks_own_prompts_are_judged_and_measured(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = in_process("prompt_search", command_of(smallest_run, tmp_path, "prompt_search.top=2"), monkeypatch, capsys)
    assert code == 0, text
    found = found_in(tmp_path)
    scores = [line["score"] for line in found["prompts"]]
    assert scores == sorted(scores, reverse=True)
    assert {line["prompt"] for line in found["prompts"]} == {"reference", "verdict", "label_first"}
    assert found["ensemble"]["prompts"] == [line["prompt"] for line in found["prompts"]][:2]
    assert found["labelled"] == {"splits": ["dev"], "rows": 60}
    assert -1 <= found["rank_correlation"] <= 1
    for said in (
        "agreement x confidence",
        "rank correlation of 3 scores",
        "suggested ensemble",
        "prior, % [95 %]",
        "until you copy",
    ):
        assert said in text
    place = tmp_path / "demo" / "prompt_search" / "demo_reviews"
    page = (place / "prompts.html").read_text(encoding="utf-8")
    assert (page.count("<figure>"), "Accuracy, prior-matched" in page) == (1, True)
    suggested = yaml.safe_load((place / "ensemble.yaml").read_text(encoding="utf-8"))
    assert list(suggested["prompts"]) == suggested["ensemble"] == found["ensemble"]["prompts"]


def test_the_reference_prompt_is_as_accurate_as_evaluate_says(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process("prompt_search", command_of(smallest_run, tmp_path), monkeypatch, capsys)[0] == 0
    reference = next(line for line in found_in(tmp_path)["prompts"] if line["prompt"] == "reference")
    evaluated = json.loads((smallest_run / "evaluate" / "demo_reviews" / "metrics.json").read_text(encoding="utf-8"))
    for row in evaluated:
        if (row["split"], row["model"]) == ("dev", "base") and row["method"] in ("raw", "prior"):
            assert reference[row["method"]]["accuracy"] == row["accuracy"]


def test_a_file_is_crossed_and_a_longer_one_scores_only_what_is_new(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(PROMPTS, encoding="utf-8")
    arguments = command_of(smallest_run, tmp_path / "runs", f"prompt_search.file={file}")
    assert in_process("prompt_search", arguments, monkeypatch, capsys)[0] == 0
    names = {"says", "total.task", "total.stars", "total.3"}
    assert {line["prompt"] for line in found_in(tmp_path / "runs")["prompts"]} == names
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/store/score/*/manifest.json")}
    assert len(before) == 2 * len(names), "each prompt's scores of unlabeled and of dev"
    file.write_text(PROMPTS + MORE, encoding="utf-8")
    assert in_process("prompt_search", arguments, monkeypatch, capsys)[0] == 0
    assert {line["prompt"] for line in found_in(tmp_path / "runs")["prompts"]} == {*names, "first"}
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/store/score/*/manifest.json")}
    assert len(after) == len(before) + 2
    assert {path: after[path] for path in before} == before
    file.rename(tmp_path / "elsewhere.yaml")
    arguments[-1] = f"prompt_search.file={tmp_path}/elsewhere.yaml"
    assert "unchanged, skipped" in in_process("prompt_search", arguments, monkeypatch, capsys)[1]


@pytest.mark.parametrize("more", [[], ["prompt_search.labelled_rows=0"]])
def test_without_labels_there_is_a_score_and_no_accuracy(
    more: list[str], smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_dir() / "clue", tmp_path / "clue")
    if not more:
        for split in ("dev", "few"):
            (tmp_path / "clue" / "demo_reviews" / f"{split}.json").unlink()
    arguments = command_of(smallest_run, tmp_path / "runs", f"data.root={tmp_path}/clue", *more)
    code, text = in_process("prompt_search", arguments, monkeypatch, capsys)
    assert code == 0, text
    found = found_in(tmp_path / "runs")
    assert found["labelled"] == {"splits": [], "rows": 0}
    assert found["rank_correlation"] is None
    assert all("prior" not in line for line in found["prompts"])
    assert "prior, %" not in text
    assert "rank correlation" not in text
    page = (tmp_path / "runs" / "demo" / "prompt_search" / "demo_reviews" / "prompts.html").read_text(encoding="utf-8")
    assert (page.count("<figure>"), "Accuracy, prior-matched" in page) == (1, False)


def test_the_suggested_prompts_label_when_they_are_pasted(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(PROMPTS, encoding="utf-8")
    assert (
        in_process("prompt_search", command_of(smallest_run, tmp_path / "runs", f"prompt_search.file={file}"), monkeypatch, capsys)[
            0
        ]
        == 0
    )
    suggested = tmp_path / "runs" / "demo" / "prompt_search" / "demo_reviews" / "ensemble.yaml"
    own = yaml.safe_load((conf_dir() / "task" / "demo_reviews.yaml").read_text(encoding="utf-8"))
    content = own | yaml.safe_load(suggested.read_text(encoding="utf-8"))
    content |= {"folder": "demo_reviews", "reference": content["ensemble"][0]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert len(load_task("mine", [tmp_path]).ensemble_names()) == 3
    arguments = command_of(smallest_run, tmp_path / "runs", "tasks=[mine]", f"task_dir={tmp_path}")
    code, text = in_process("pseudo_label", arguments, monkeypatch, capsys)
    assert code == 0, text


@pytest.mark.parametrize(
    ("arguments", "prompts", "words"),
    [
        (["prompt_search.file=/nowhere/prompts.yaml"], None, ["/nowhere/prompts.yaml", "cannot be read"]),
        ([], "- {name: a, template: '{sentense}{label}'}", ["prompts.yaml, entry 1 ('a')", "unknown field 'sentense'"]),
        (
            [],
            "- {name: a, template: '{sentence}{label}', label_words: {Neutral: 中}}",
            ["entry 1 ('a')", "unknown label 'Neutral'"],
        ),
        ([], "- {name: a, template: '{sentence}{label}', label_words: {Positive: 好, Negative: 好}}", ["'a'", "same"]),
        (["prompt_search.rows=0"], None, ["prompt_search.rows: 0", "1 or more"]),
        (["split=test"], None, ["test.json", "no row has a label"]),
        (["split=nowhere"], None, ["nowhere.json", "no such file"]),
        (["tasks=[]"], None, ["no task given"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], prompts: str | None, words: list[str], smallest_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if prompts is not None:
        (tmp_path / "prompts.yaml").write_text(prompts, encoding="utf-8")
        arguments = [*arguments, f"prompt_search.file={tmp_path}/prompts.yaml"]
    code, text = in_process("prompt_search", command_of(smallest_run, tmp_path / "runs", *arguments), monkeypatch, capsys)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), text
    assert "Traceback" not in text
    for word in words:
        assert word in errors[0]
    assert not list(tmp_path.glob("runs/**/manifest.json"))
