"""Small inputs that once gave wrong answers without a word, where the folder with them is there: each as its README says.

`MOE_ADAPT_CASES` names the folder; otherwise it is looked for as `shared/cases` in the project's directory and beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.core.artifacts import open_artifact
from adapt.text.rows.reading import open_rows, rows_of
from tests.support.command_line import refused
from tests.support.tiny_models import ROOT

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
RunHere = Callable[[str, list[str]], str]
_PLACES = [Path(os.environ.get("MOE_ADAPT_CASES", "nowhere")), ROOT / "shared" / "cases", ROOT.parent / "shared" / "cases"]
CASES = next((place for place in _PLACES if place.is_dir()), None)
pytestmark = pytest.mark.skipif(CASES is None, reason="the folder shared/cases is not here")


def case(number: str, name: str = "") -> Path:
    assert CASES is not None
    return CASES / number / name


def evaluating(number: str, task: str, tiny_export: Path, tmp_path: Path) -> list[str]:
    place = case(number)
    return [
        f"task={task}", f"task_dir={place}/tasks", f"data.root={place}/data", f"checkpoint={tiny_export}",
        f"run.dir={tmp_path}/runs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "name", "texts"),
    [
        ("02", "rows.csv", None),
        ("03", "rows.csv", ["菜不错\r\n就是上得慢", "not good\nat all", "还行"]),
        ("04", "rows.csv", ["菜不错", "太贵了"]),
        ("04", "rows.jsonl", ["菜不错", "太贵了"]),
        ("06", "pair.jsonl", ["菜不错👍"]),
        ("08", "ROWS.CSV", ["菜不错"]),
        ("08", "gbk.csv", ["菜不错"]),
        ("08", "utf16.csv", ["菜不错"]),
        ("08", "array.json", ["菜不错"]),
        ("08", "rows (1).csv", ["菜不错"]),
        ("08", "rows,2.csv", ["菜不错"]),
        ("09", "数据/评论.csv", ["菜不错"]),
    ],
)
def test_rows_that_are_read(
    number: str, name: str, texts: list[str] | None, tiny_export: Path, tmp_path: Path, run_here: RunHere
) -> None:
    output = tmp_path / "o.jsonl"
    run_here(
        "predict", [f"checkpoint={tiny_export}", f"input={case(number, name)}", f"output={output}", f"run.dir={tmp_path}/runs"]
    )
    found = [json.loads(line)["sentence"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert found == texts if texts is not None else [len(text) > 100_000 for text in found] == [True, False]


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        ("01", "rows.tsv", ["rows.tsv, line 3", "quote"]),
        ("01", "last_row.tsv", ["last_row.tsv, line 6", "quote"]),
        ("01", "inch.csv", ["inch.csv, line 2", "quote"]),
        ("06", "rows.jsonl", ["rows.jsonl, line 2", "half a surrogate pair"]),
        ("06", "other_column.jsonl", ["other_column.jsonl, line 1", "half a surrogate pair"]),
        ("07", "rows.jsonl", ["rows.jsonl, line 3", "NUL"]),
        ("07", "rows.csv", ["rows.csv, line 4", "NUL"]),
        ("07", "joined.jsonl", ["joined.jsonl, line 2", "byte order mark"]),
        ("08", "twice.csv", ["twice.csv, line 1", "'sentence'"]),
        ("08", "prediction.csv", ["prediction.csv", "'prediction'", "predict.prefix="]),
        ("08", "deep.jsonl", ["deep.jsonl, line 1", "nested"]),
        ("08", "bigint.jsonl", ["bigint.jsonl, line 1", "number"]),
        ("08", "semicolon.csv", ["semicolon.csv, line 1", "semicolons"]),
        ("08", "noheader.tsv", ["noheader.tsv, line 2", "has no 'sentence'"]),
    ],
)
def test_rows_that_are_refused(
    number: str, name: str, words: list[str], tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    output = tmp_path / "o.jsonl"
    arguments = [f"checkpoint={tiny_export}", f"input={case(number, name)}", f"output={output}", f"run.dir={tmp_path}/runs"]
    refused("predict", arguments, words, monkeypatch, capsys)
    assert not output.exists()


def test_07_without_nul_lines_are_counted_by_line_feed_alone(tmp_path: Path) -> None:
    for name, mark in (("rows.jsonl", b"\\u0000"), ("rows.csv", b"\x00")):
        place = tmp_path / name
        place.write_bytes(case("07", name).read_bytes().replace(mark, b""))
        assert len(list(rows_of(open_rows(place)))) == 3


def test_09_chinese_names_of_tasks_runs_and_directories(tiny_export: Path, tmp_path: Path, run_here: RunHere) -> None:
    shutil.copytree(case("11", "data/onenull"), tmp_path / "数据" / "评论")
    shutil.copytree(case("11", "tasks"), tmp_path / "任务")
    (tmp_path / "任务" / "onenull.yaml").rename(tmp_path / "任务" / "评论.yaml")
    run_here("evaluate", [
        "task=评论", f"task_dir={tmp_path}/任务", f"data.root={tmp_path}/数据", "run.name=运行", f"checkpoint={tiny_export}",
        f"run.dir={tmp_path}/runs",
    ])  # fmt: skip
    assert (tmp_path / "runs" / "运行" / "evaluate" / "评论" / "manifest.json").is_file()


def test_11_a_split_that_is_labelled_in_part_is_measured_on_that_part(tiny_export: Path, tmp_path: Path, run_here: RunHere) -> None:
    said = run_here("evaluate", evaluating("11", "onenull", tiny_export, tmp_path))
    assert "onenull dev: 9 of 10 rows have a label" in said
    table = json.loads((tmp_path / "runs" / "default" / "evaluate" / "onenull" / "metrics.json").read_text(encoding="utf-8"))
    assert {row["n"] for row in table} == {9}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("text", ["dev.json, line 1", "is the text of candidate 1"]),
        ("letter", ["dev.json, line 1", "is a letter"]),
        ("onebased", ["dev.json, line 4", "count from 1?"]),
        ("bool", ["dev.json, line 1", "label is true"]),
    ],
)
def test_12_labels_that_are_no_place_are_refused(
    task: str, words: list[str], tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    refused("evaluate", evaluating("12", task, tiny_export, tmp_path), words, monkeypatch, capsys)


def test_12_places_may_be_strings(tiny_export: Path, tmp_path: Path, run_here: RunHere) -> None:
    run_here("evaluate", evaluating("12", "intstr", tiny_export, tmp_path))
    answers = json.loads((tmp_path / "runs" / "default" / "evaluate" / "intstr" / "answers.json").read_text(encoding="utf-8"))
    assert {tuple(line["gold"]) for line in answers} == {("1", "0", "2", "3")}


@pytest.mark.parametrize("task", ["half", "halfid"])
def test_14_half_a_surrogate_pair_is_one_line(
    task: str, tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    refused("evaluate", evaluating("14", task, tiny_export, tmp_path), ["line", "half a surrogate pair"], monkeypatch, capsys)


def test_15_texts_that_are_cut_are_counted(tiny_export: Path, tmp_path: Path, run_here: RunHere) -> None:
    said = run_here("evaluate", evaluating("15", "long", tiny_export, tmp_path))
    assert "long dev: 10 of 10 rows are longer than the model's context of 96 tokens and were cut (the longest has " in said


@pytest.mark.parametrize(("task", "words"), [("spec", ["spec.yaml", "{sentence:.20}"]), ("noshort", ["does not fit", "shorten"])])
def test_15_what_cannot_be_cut_or_formatted_is_refused(
    task: str, words: list[str], tiny_export: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    refused("evaluate", evaluating("15", task, tiny_export, tmp_path), words, monkeypatch, capsys)


@pytest.mark.parametrize("name", ["mixed.jsonl", "long.jsonl", "cut.jsonl", "cr.txt"])
def test_17_long_texts_make_a_tokenizer_too(name: str, tmp_path: Path, run_here: RunHere) -> None:
    run_here("tokenizer", [f"data.corpus=[{case('17', name)}]", "tokenizer.vocab_size=2100", f"run.dir={tmp_path}/runs"])
    metrics = open_artifact((tmp_path / "runs" / "default" / "tokenizer").resolve()).metrics
    assert metrics["documents"] > 1


def test_18_a_file_that_changed_beside_one_of_its_name_is_noticed(tmp_path: Path, run_here: RunHere) -> None:
    for folder in ("a", "b"):
        shutil.copytree(case("18", folder), tmp_path / folder, copy_function=shutil.copyfile)
    (tmp_path / "a").chmod(0o755)
    arguments = [
        f"data.corpus=[{tmp_path}/a/train.jsonl,{tmp_path}/b/train.jsonl]", "tokenizer.vocab_size=2100", f"run.dir={tmp_path}/runs",
    ]  # fmt: skip
    run_here("tokenizer", arguments)
    shutil.copyfile(case("18", "a_new.jsonl"), tmp_path / "a" / "train.jsonl")
    assert "skipped" not in run_here("tokenizer", arguments)


def test_19_rows_of_a_sorted_file_come_from_all_over_it(tiny_export: Path, tmp_path: Path, run_here: RunHere) -> None:
    settings = ["pseudo_label.max_rows=50", "pseudo_label.held_out_share=0"]
    said = run_here("pseudo_label", [*evaluating("19", "sorted", tiny_export, tmp_path), *settings])
    assert "sorted: 50 of 100 unlabeled rows (sampled with seed 0)" in said
    import pyarrow.parquet

    labels = pyarrow.parquet.read_table(tmp_path / "runs" / "default" / "pseudo_label" / "sorted" / "labels.parquet")
    gold = json.loads(case("19", "gold.json").read_text(encoding="utf-8"))
    classes = [gold[line - 1] for line in labels["line"].to_pylist()]
    assert len(classes) == 50 and 12 <= classes.count("good") <= 38
