"""`predict` from file to file: every row and column comes out, in the format that the output's name says, or one line says why."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import ConfigError, DataError
from adapt.text.rows.reading import open_rows, rows_of
from pipelines.command_line.points import refuse_one_output
from pipelines.stages import predict
from pseudo_label.predictor import load, read_spec
from tests.support.command_line import in_process, refused

ADDED = ["prediction", "probability"]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Predict = Callable[..., str]


@pytest.fixture
def predict_here(tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> Predict:
    """Return a function that predicts with the tiny export and demands success."""

    def go(source: Path | str, output: Path | str, *more: str) -> str:
        arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={output}", f"run.dir={tmp_path}/runs", *more]
        code, text = in_process("predict", arguments, monkeypatch, capsys)
        assert code == 0, text
        return text

    return go


def planted(place: Path, text: str) -> Path:
    place.write_bytes(text.encode())
    return place


def read(path: Path) -> list[dict[str, object]]:
    return [dict(row.record) for row in rows_of(open_rows(path))]


@pytest.mark.parametrize("output", ["o.csv", "o.tsv", "o.jsonl"])
def test_every_row_and_column_comes_out(tmp_path: Path, predict_here: Predict, output: str) -> None:
    source = planted(tmp_path / "rows.csv", 'no,sentence,label,who\r\n1,"菜不错\r\n就是慢",x,\r\n2,"""好""评",,b\r\n')
    predict_here(source, tmp_path / output)
    rows = read(tmp_path / output)
    assert [{name: row[name] for name in row if name not in ADDED} for row in rows] == read(source)
    assert [list(row)[-2:] for row in rows] == [ADDED, ADDED]
    assert {row["prediction"] for row in rows} <= {"Positive", "Negative"}
    assert all(0.5 <= float(str(row["probability"])) <= 1 for row in rows)


def test_a_file_that_grows_while_it_is_read_is_refused_and_poisons_nothing(
    tmp_path: Path, tiny_export: Path, predict_here: Predict, monkeypatch: Patch, capsys: Capture
) -> None:
    source, output = planted(tmp_path / "rows.csv", "sentence\n菜不错\n很慢\n"), tmp_path / "o.jsonl"
    survey_of = predict.survey_of

    def grows(*arguments: Any) -> Any:
        found = survey_of(*arguments)
        with source.open("a", encoding="utf-8") as stream:
            stream.write("还行\n")
        return found

    monkeypatch.setattr(predict, "survey_of", grows)
    arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={output}", f"run.dir={tmp_path}/runs"]
    code, text = in_process("predict", arguments, monkeypatch, capsys)
    assert code == 2 and "rows.csv: changed while it was read" in text and not output.exists()
    monkeypatch.setattr(predict, "survey_of", survey_of)
    planted(source, "sentence\n菜不错\n很慢\n")
    predict_here(source, output)
    assert [row["sentence"] for row in read(output)] == ["菜不错", "很慢"]


def test_rows_are_answered_in_parts_alike_and_go_on_after_a_kill(
    tmp_path: Path, predict_here: Predict, monkeypatch: Patch, scorings: list[str]
) -> None:
    source = planted(tmp_path / "rows.jsonl", "".join(json.dumps({"sentence": f"菜 {n} 不错"}) + "\n" for n in range(10)))
    predict_here(source, tmp_path / "whole.jsonl")
    monkeypatch.setattr(predict, "_PART_ROWS", 3)
    original = predict._lines
    calls: list[int] = []

    def killed(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise DataError("killed here")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_lines", killed)
    with pytest.raises(AssertionError, match="killed here"):
        predict_here(source, tmp_path / "parts.jsonl", "force=true")
    assert not (tmp_path / "parts.jsonl").exists()
    scorings.clear()
    predict_here(source, tmp_path / "parts.jsonl", "force=true")
    assert len(read(tmp_path / "parts.jsonl")) == 10
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_no_rows_give_no_rows(tmp_path: Path, predict_here: Predict) -> None:
    predict_here(planted(tmp_path / "rows.csv", "id,sentence\n"), tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == "id,sentence,prediction,probability\n"
    predict_here(planted(tmp_path / "rows.jsonl", ""), tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", "", ["rows.csv", "is empty", "no rows"]),
        ("rows.tsv", "菜不错\t1\n", ["rows.tsv", "no column 'sentence'", "菜不错"]),
        ("rows.csv", "id,sentence,prediction\n0,x,y\n", ["a column 'prediction'", "predict.prefix="]),
        ("rows.jsonl", '{"sentence": "x"}\n{"sentence": "y", "probability": 1}\n', ["a column 'probability'", "predict.prefix="]),
        ("rows.jsonl", '{"sentence": "x", "n": 1e999}\n', ["rows.jsonl, line 1", "infinite number"]),
        ("rows.jsonl", '{"sentence": NaN}\n', ["rows.jsonl, line 1", "is nan, which is no text"]),
        ("rows.jsonl", '{"sentence": "x"}\n{"sentence": ["a", null]}\n', ["rows.jsonl, line 2", "item 1: is null"]),
        ("rows.json", '[{"sentence": "x"}, {"text": "y"}]', ["rows.json, row 2", "has no 'sentence'"]),
        ("rows.doc", "x", ["rows.doc", "does not say what kind"]),
    ],
)
def test_rows_that_cannot_be_labelled_are_one_line(
    tmp_path: Path, tiny_export: Path, name: str, content: str, words: list[str], monkeypatch: Patch, capsys: Capture
) -> None:
    source = planted(tmp_path / name, content)
    arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={tmp_path}/o.csv", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, words, monkeypatch, capsys)
    assert not (tmp_path / "o.csv").exists()


def test_a_prefix_keeps_columns_of_ones_own(tmp_path: Path, predict_here: Predict) -> None:
    source = planted(tmp_path / "rows.csv", "sentence,prediction,probability\n好,人工,0.1\n")
    predict_here(source, tmp_path / "o.csv", "predict.prefix=model_")
    (row,) = read(tmp_path / "o.csv")
    assert list(row) == ["sentence", "prediction", "probability", "model_prediction", "model_probability"]
    assert (row["prediction"], row["probability"]) == ("人工", "0.1")


def test_a_kept_column_without_a_value_stays_without_one(tmp_path: Path, predict_here: Predict) -> None:
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "好", "n": NaN, "m": [NaN, 1], "k": null}\n')
    predict_here(source, tmp_path / "o.jsonl")
    (row,) = read(tmp_path / "o.jsonl")
    assert {name: row[name] for name in ("n", "m", "k")} == {"n": None, "m": [None, 1], "k": None}


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_to_the_input_is_the_input(
    tmp_path: Path, tiny_export: Path, link: str, monkeypatch: Patch, capsys: Capture
) -> None:
    source, other = planted(tmp_path / "rows.csv", "sentence\n好\n"), tmp_path / "other.csv"
    getattr(other, link)(source)
    arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={other}", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, ["is the input"], monkeypatch, capsys)
    assert source.read_text() == "sentence\n好\n"


@pytest.mark.parametrize("output", ["o.parquet", "o.xlsx", "o.txt"])
def test_an_output_of_another_kind_is_refused(
    tmp_path: Path, tiny_export: Path, output: str, monkeypatch: Patch, capsys: Capture
) -> None:
    source = planted(tmp_path / "rows.csv", "sentence\n好\n")
    arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={tmp_path}/{output}", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, [output, ".csv"], monkeypatch, capsys)


def test_a_pipe_is_read_and_nothing_is_left_of_it(tmp_path: Path, predict_here: Predict) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b'{"sentence": "a"}\n{"sentence": "b"}\n'))
    writer.start()
    predict_here(pipe, tmp_path / "o.jsonl")
    writer.join()
    assert [row["sentence"] for row in read(tmp_path / "o.jsonl")] == ["a", "b"]
    assert not list((tmp_path / "runs").glob(".input*"))


def test_standard_input_and_output(
    tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "好"}\n{"sentence": "坏"}\n')
    saved = os.dup(0)
    with source.open("rb") as stream:
        os.dup2(stream.fileno(), 0)
    try:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        code, text = in_process(
            "predict", [f"checkpoint={tiny_export}", "input=-", "output=-", f"run.dir={tmp_path}/runs"], monkeypatch, capfd
        )
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert code == 0, text
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [(row["sentence"], set(ADDED) <= set(row)) for row in rows] == [("好", True), ("坏", True)]
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("name", ["评论 数据.csv", "rows (1).csv", "rows,2.csv", "a=b.csv", "it's.csv", "[1].csv", "{x}.csv"])
def test_files_of_any_name_need_no_quotes(tmp_path: Path, predict_here: Predict, name: str) -> None:
    source = planted(tmp_path / name, "sentence\n好\n")
    predict_here(source, tmp_path / f"out {name}")
    assert [row["sentence"] for row in read(tmp_path / f"out {name}")] == ["好"]


def test_another_column_that_is_added_answers_anew(tmp_path: Path, predict_here: Predict, monkeypatch: Patch) -> None:
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "菜不错"}\n')
    assert "unchanged" not in predict_here(source, tmp_path / "o.csv")
    assert "unchanged" in predict_here(source, tmp_path / "o.csv")
    monkeypatch.setattr(predict, "added_columns", lambda config: ["answer", "certainty"])
    assert "unchanged" not in predict_here(source, tmp_path / "o.csv")
    assert [list(row) for row in read(tmp_path / "o.csv")] == [["sentence", "answer", "certainty"]]


def test_an_output_below_a_file_is_refused_before_anything_is_scored(
    tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, scorings: list[str]
) -> None:
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "菜不错"}\n')
    arguments = [f"checkpoint={tiny_export}", f"input={source}", f"output={source}/o.csv", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, [f"output={source}/o.csv: cannot be written (at {source}: "], monkeypatch, capsys)
    assert scorings == []
    assert not (tmp_path / "runs").exists()


def test_an_output_that_its_file_system_does_not_take_is_refused_before_anything_is_scored(
    tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, scorings: list[str]
) -> None:
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "菜不错"}\n')
    arguments = [f"checkpoint={tiny_export}", f"input={source}", "output=/proc/answers", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, ["output=/proc/answers: cannot be written"], monkeypatch, capsys)
    assert scorings == []
    assert not (tmp_path / "runs" / "store" / "predict").exists()


def test_an_answer_says_whether_its_row_was_cut(tiny_export: Path) -> None:
    predictor = load(tiny_export)
    rows = [predictor.read({"sentence": text}, "rows", 1) for text in ("好", "好" * 8000, "坏" * 8000, "坏")]
    assert [answer.is_cut for answer in predictor.predict_rows(rows)] == [False, True, True, False]


def test_cut_rows_repeated_ids_and_unknown_characters_are_said(tmp_path: Path, predict_here: Predict, tiny_export: Path) -> None:
    long = "这家店的菜我们吃了很多次" * 60
    texts = [f"{long}很好", "好", f"{long}很差", "여기는 맛있어요"]
    source = planted(tmp_path / "rows.csv", "id,sentence\n" + "".join(f"{n // 2},{text}\n" for n, text in enumerate(texts)))
    said = predict_here(source, tmp_path / "o.csv")
    assert "2 of 4 rows are longer than the model's context of " in said
    assert "2 of them (lines 2, 4) differ only in what was cut" in said
    assert "2 rows have the id of an earlier row (the first at line 3)" in said
    assert re.search(r"warning: .*rows.csv: .* % of the tokens are (parts of a character|unknown)", said)
    again = predict_here(source, tmp_path / "p.csv")
    assert "2 of 4 rows are longer" in again
    assert "unchanged, skipped" in again


def test_rows_without_text_are_said(tmp_path: Path, predict_here: Predict) -> None:
    source = planted(tmp_path / "i.csv", "id,sentence\n1,好吃\n2,\n3,  \n")
    text = predict_here(source, tmp_path / "o.csv")
    assert "2 rows have no text, and are labelled all the same (the first at line 3)" in text


def test_quotes_that_are_letters_come_out_as_they_went_in(tmp_path: Path, predict_here: Predict) -> None:
    source = planted(tmp_path / "i.tsv", 'id\tsentence\n1\t"好吃"的店\n2\t一般\n')
    predict_here(source, tmp_path / "o.tsv", "data.quotes=text")
    lines = (tmp_path / "o.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["id", "sentence"], ["1", '"好吃"的店'], ["2", "一般"]]
    predict_here(source, tmp_path / "o.csv", "data.quotes=text")  # another kind has quotes of its own
    assert '1,"""好吃""的店",' in (tmp_path / "o.csv").read_text(encoding="utf-8")


def test_rows_that_are_refused_leave_no_work_behind(tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture) -> None:
    source = planted(tmp_path / "i.csv", "id,sentence\n1,好吃,多余\n")
    words = [f"checkpoint={tiny_export}", f"input={source}", f"run.dir={tmp_path}/runs"]
    refused("predict", words, ["i.csv"], monkeypatch, capsys)
    assert [place.name for place in (tmp_path / "runs" / "store" / "predict").glob(".*") if not place.name.endswith(".lock")] == []


def test_a_task_that_is_not_the_exports_own_is_refused(
    tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    source = planted(tmp_path / "i.csv", "id,sentence\n1,好吃\n")
    own = read_spec(tiny_export).task.name
    other = next(name for name in ("demo_topics", "demo_reviews") if name != own)
    words = [f"checkpoint={tiny_export}", f"input={source}", f"run.dir={tmp_path}/runs", f"task={other}"]
    refused("predict", words, [f"is an export of task '{own}', not of {other}", "leave task= out"], monkeypatch, capsys)


def test_a_method_that_is_not_the_exports_is_refused(
    tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    own = read_spec(tiny_export).decision.method.value
    other = next(method for method in ("raw", "prior") if method != own)
    words = [f"checkpoint={tiny_export}", f"input={tmp_path}/i.csv", f"run.dir={tmp_path}/runs", f"evaluate.method={other}"]
    refused("predict", words, [f"evaluate.method={other}: ", f"decided by {own}", "export anew"], monkeypatch, capsys)


def test_counts_of_cut_rows_survive_a_kill(tmp_path: Path, predict_here: Predict, monkeypatch: Patch) -> None:
    monkeypatch.setattr(predict, "_PART_ROWS", 2)
    long = "这家店的菜我们吃了很多次" * 60
    source = planted(tmp_path / "rows.csv", "sentence\n" + f"{long}一\n好\n{long}二\n好\n")
    write, written = predict.write_atomically, list[Path]()

    def stopped(path: Path, text: str) -> None:
        if path.suffix == ".jsonl" and len(written) == 1:
            raise KeyboardInterrupt
        written.extend([path] if path.suffix == ".jsonl" else [])
        write(path, text)

    monkeypatch.setattr(predict, "write_atomically", stopped)
    with pytest.raises(AssertionError):
        predict_here(source, tmp_path / "o.csv")
    monkeypatch.setattr(predict, "write_atomically", write)
    assert "2 of them (lines 2, 4) differ only in what was cut" in predict_here(source, tmp_path / "o.csv")


@pytest.mark.parametrize("value", ["1e999", "[[-Infinity]]", '{"a": {"b": Infinity}}'])
def test_a_number_that_cannot_be_written_is_refused_before_anything_is_scored(
    tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture, value: str
) -> None:
    monkeypatch.setattr(predict, "_answer", None)  # never reached
    source = planted(tmp_path / "rows.jsonl", '{"sentence": "好"}\n{"sentence": "好", "x": ' + value + "}\n")
    words = [f"checkpoint={tiny_export}", f"input={source}", f"run.dir={tmp_path}/runs"]
    refused("predict", words, ["rows.jsonl, line 2: has an infinite number"], monkeypatch, capsys)


@pytest.mark.parametrize("output", ["o.jsonl", "o_${run.dir}.jsonl"])
def test_points_of_a_sweep_do_not_write_one_file(
    tmp_path: Path, tiny_export: Path, output: str, monkeypatch: Patch, capsys: Capture
) -> None:
    first, second = (planted(tmp_path / f"{name}.jsonl", '{"sentence": "好"}\n') for name in "ab")
    line = ["-m", f"checkpoint={tiny_export}", f"input={first},{second}", f"run.dir={tmp_path}/runs", f"output={output}"]
    refused("predict", line, ["of 2 points only", "o_", "${input}.jsonl"], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("output", "varied", "is_one"),
    [
        ("o.jsonl", ["seed=1,2"], True),
        ("o.jsonl", ["output=a,b"], False),
        ("-", ["seed=1,2"], False),
        ("o_${seed}.jsonl", ["seed=1,2"], False),
        ("o_${model.router.name}", ["model/router=top1,top2"], False),
        ("o_${hydra:job.num}", ["seed=1,2"], False),
        (None, ["seed=1,2"], False),
    ],
)
def test_an_output_that_follows_what_points_vary_is_taken(output: str | None, varied: list[str], is_one: bool) -> None:
    settings = {"output": output, "stages": ["predict"], "runs": []}
    with pytest.raises(ConfigError, match="last of 2 points") if is_one else nullcontext():
        refuse_one_output(settings, varied, 2)
    refuse_one_output({**settings, "stages": ["evaluate"]}, varied, 2)
    refuse_one_output(settings, varied, 1)
