"""The command `tokenizer_doctor`: its table, its file, its refusals; and the warnings of a walk, once for each task."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from adapt.core.runtime import set_up_logging
from pipelines.command_line.plain_options import parsed, run_plainly
from pipelines.config.locations import demo_dir
from pipelines.stages.run import Run
from pipelines.tools import tokenizer_doctor
from pipelines.tools.tokenizer_doctor import DoctorConfig
from pipelines.walk import order
from pipelines.walk.tokenizer_warnings import warn_of_tokenizer, warnings_on
from pseudo_label.task_config import FieldConfig, PromptConfig, TaskConfig, TaskRow
from tests.support.command_line import composed
from tests.support.hf_checkpoints import BYTE_LEVEL, add_tokenizer
from tests.support.planted_tokenizers import LongestMatch
from tests.support.row_files import json_lines

TASK = """
fields: {text: {path: text}}
label_words: {0: 薅羊毛, 1: 满意}
prompts: {reference: {template: "{text}我%s{label}"}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(TASK % "很", encoding="utf-8")
    (tmp_path / "rows" / "mine").mkdir(parents=True)
    rows = [{"text": "东西不错，下次还来"}, {"text": "薅薅薅薅薅薅薅薅"}]
    (tmp_path / "rows" / "mine" / "unlabeled.jsonl").write_text(json_lines(rows * 20), encoding="utf-8")
    (tmp_path / "news_one.txt").write_text("股市上涨。\n\n球队夺冠。\n", encoding="utf-8")
    return tmp_path


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pipelines.tokenizer_doctor", *words])
    code = run_plainly(DoctorConfig, tokenizer_doctor.main, tokenizer_doctor.__doc__ or "")
    said = capsys.readouterr()
    return code, said.out, said.err


def of_task(place: Path) -> list[str]:
    return ["task=mine", f"task_dir={place}/tasks", f"data.root={place}/rows"]


def test_it_prints_texts_by_task_and_domain_and_what_to_change_and_writes_all_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*of_task(place), f"data.corpus=[{place}/*.txt]", f"output={place}/out/found.json"]
    code, out, err = run(words, monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "task mine" in out and "corpus news" in out
    assert "tokens are parts of a character (most often of: 薅)" in out
    assert "'薅羊毛'" in out and "spelt in parts of characters" in out
    found: dict[str, Any] = json.loads((place / "out" / "found.json").read_text(encoding="utf-8"))
    assert [text["name"] for text in found["texts"]] == ["task mine", "corpus news"]
    assert [text["texts"] for text in found["texts"]] == [40, 2]
    assert found["vocab_size"] == 8000
    assert found["label_words"]["mine"]["reference"]["满意"] == ["满", "意"]
    assert {finding["level"] for finding in found["findings"]} == {"warning", "note"}
    assert sorted(path.name for path in (place / "out").iterdir()) == ["found.json"]


def test_a_hugging_face_tokenizer_and_a_sentencepiece_file_are_read(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "hf").mkdir()
    add_tokenizer(place / "hf", BYTE_LEVEL)
    for tokenizer in (place / "hf", place / "hf" / "tokenizer.json", demo_dir() / "base" / "tokenizer.model"):
        code, out, _ = run([f"tokenizer={tokenizer}", *of_task(place)], monkeypatch, capsys)
        assert code == 0
        assert out.startswith(f"tokenizer {tokenizer}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to look at; give task=NAME"),
        (["task=nowhere"], "unknown task 'nowhere'"),
        (["task=mine", "task_dir={tmp}/none"], "none is no directory"),
        (["task=mine", "task_dir={tmp}/tasks", "data.root={tmp}/tasks"], "has no rows of task 'mine'; check data.root"),
        (["tokenizer={tmp}/rows", "task=tnews"], "no such tokenizer"),
        (["tokenizer={tmp}/news_one.txt", "task=tnews"], "not a SentencePiece model"),
        (["data.corpus=[{tmp}/none*]"], "nothing matches"),
        (["task=tnews", "output={tmp}/found.txt"], "is written as JSON"),
        (["task=tnews", "rows=0"], "rows: 0 is less than 1"),
        (["task=tnews", "data.rood=x"], "rood: unknown key (did you mean 'root'?)"),
        (["task=tnews", "data.root=x", "data.root=y"], "data.root is given twice"),
        (["task=tnews", "data=x", "data.root=y"], "data"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run([word.replace("{tmp}", str(place)) for word in words], monkeypatch, capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and says in err


def test_a_dotted_word_fills_a_field_of_a_field() -> None:
    config = parsed(DoctorConfig, ["task=a", "data.root=.", "data.corpus=[x, y]", "rows=3"])
    assert (config.data.root, config.data.corpus, config.rows) == (".", ["x", "y"], 3)


def test_a_walk_warns_of_words_and_bytes_and_not_of_what_is_only_good_to_know() -> None:
    words = {"0": "葩", "1": "很不满意失", "2": "好"}
    prompts = {"reference": PromptConfig(template="{text}：{label}")}
    task = TaskConfig(name="mine", fields={"text": FieldConfig(path="text")}, label_words=words, prompts=prompts)
    rows = [TaskRow(id=1, texts={"text": "很满意很满意犟"}, label=None, candidates=None, line=1)]
    said = [str(finding) for finding in warnings_on(task, LongestMatch("很不满意失好："), rows)]
    assert len(said) == 3
    assert "'葩'" in said[0] and "more than 4 pieces" in said[1] and "parts of a character (most often of: 犟)" in said[2]


def test_before_labelling_a_walk_says_each_warning_of_a_task_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, rows, tasks = demo_dir() / "base", place / "rows", place / "tasks"
    words = ["tasks=[mine]", f"task_dir={tasks}", f"data.root={rows}", f"checkpoint={base}", f"run.dir={place}/runs"]
    current = Run(composed("pseudo_label", words))
    set_up_logging()
    try:
        for _ in range(2):
            warn_of_tokenizer(current, current.tasks()[0])
    finally:
        logging.getLogger("pipelines").handlers.clear()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("warning: task 'mine'") for line in said)
    without_model = Run(composed("pseudo_label", [*words, "pseudo_label.teachers=[lexical]"]))
    warn_of_tokenizer(without_model, current.tasks()[0])
    assert capsys.readouterr().err == ""


def test_a_walk_warns_before_it_labels_each_task(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(order, "check_ahead", lambda *_: None)
    monkeypatch.setattr(order, "warn_of_tokenizer", lambda _, task: done.append(f"warns of {task.name}"))
    monkeypatch.setattr(Run, "run_stage", lambda _, stage, task: done.append(f"{stage.name} {task.name}"))
    words = ["tasks=[mine, tnews]", f"task_dir={place}/tasks", f"data.root={place}/rows", f"checkpoint={demo_dir() / 'base'}"]
    order.walk(composed("run", [*words, "stages=[pseudo_label,evaluate]", f"run.dir={place}/runs"]))
    assert done == [
        "warns of mine", "pseudo_label mine", "warns of tnews", "pseudo_label tnews", "evaluate mine", "evaluate tnews",
    ]  # fmt: skip
