"""Splits under names of one's own (`data.files`) and saved data sets: read everywhere, and part of keys by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapt.core.errors import AdaptError
from adapt.text.rows.contract import Quotes
from pipelines.config.locations import demo_dir
from pipelines.stages.contract import key_of
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.rows import TaskData
from pipelines.stages.run import Run
from tests.support.command_line import composed, in_process, refused
from tests.support.row_files import records, saved

TASK = "demo_reviews"
SENTENCES = ["菜不错", "太贵了", "还行"]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def rows_in(place: Path, sentences: list[str] = SENTENCES) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("sentence,label\n" + "".join(f"{text},Positive\n" for text in sentences), encoding="utf-8")
    return place


def data_of(words: list[str], task: str = TASK) -> TaskData:
    run = Run(composed("evaluate", [f"tasks=[{task}]", *words]))
    return TaskData.of(run, run.tasks()[0], ["dev", "test"])


def key(words: list[str]) -> str:
    return key_of("any", 1, data_of(words)).digest()


def test_splits_of_one_task_and_of_several_are_read(tmp_path: Path) -> None:
    own = rows_in(tmp_path / "a.csv")
    (tmp_path / "root").mkdir()
    for words in ([f"data.files={{dev: {own}}}"], [f"data.root={tmp_path}/root", f"data.files={{{TASK}: {{dev: {own}}}}}"]):
        data = data_of(words)
        assert data.existing(["dev", "test"]) == ["dev"]
        assert [row.texts["sentence"] for row in data.read("dev")] == SENTENCES


def test_a_file_of_ones_own_goes_before_that_of_the_root(tmp_path: Path) -> None:
    rows_in(tmp_path / TASK / "dev.csv", ["别的"])
    rows_in(tmp_path / TASK / "test.csv", ["试"])
    data = data_of([f"data.root={tmp_path}", f"data.files={{dev: {rows_in(tmp_path / 'b.csv')}}}"])
    assert [len(data.read(split)) for split in ("dev", "test")] == [3, 1]


def test_a_key_holds_what_is_in_a_file_and_not_where_it_is(tmp_path: Path) -> None:
    rows_in(tmp_path / "root" / TASK / "dev.csv")
    first = key([f"data.root={tmp_path}/root"])
    assert key([f"data.files={{dev: {rows_in(tmp_path / 'x.csv')}}}"]) == first
    assert key([f"data.files={{dev: {rows_in(tmp_path / 'y.csv')}}}"]) == first
    assert key([f"data.files={{dev: {rows_in(tmp_path / 'z.csv', ['别的'])}}}"]) != first
    assert key([f"data.files={{test: {tmp_path}/x.csv}}"]) != first
    same_name = [f"data.files={{dev: {tmp_path}/x.csv, test: {rows_in(tmp_path / 'other' / 'x.csv', ['别的'])}}}"]
    assert len(data_of(same_name).files.paths) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.files={dev: /nowhere/a.csv}"], "data.files.demo_reviews.dev: /nowhere/a.csv: no such file"),
        (["data.files={demo_revews: {dev: /a.csv}}"], "no such file"),
        (["data.files={../dev: {file}}"], "no name of a split"),
        (["data.files={dev: {file}}", "tasks=[demo_reviews,demo_topics]"], "there are 2 tasks"),
        (["data.files={demo_revews: {dev: {file}}}"], "unknown task 'demo_revews' (did you mean 'demo_reviews'?)"),
    ],
)
def test_files_that_say_nothing_clear_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    file = rows_in(tmp_path / "a.csv")
    with pytest.raises(AdaptError) as caught:
        data_of([word.replace("{file}", str(file)) for word in words])
    assert message in str(caught.value)


def test_a_split_that_no_stage_reads_is_refused_and_one_that_is_asked_for_is_not(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    base = demo_dir() / "base"
    own = [f"task={TASK}", f"checkpoint={base}", f"run.dir={tmp_path}/runs", "evaluate.methods=[raw]", "evaluate.method=raw"]
    for name, words in (("unlabelled", ["no stage reads", "'unlabelled'", "did you mean 'unlabeled'"]), ("mine", ["'mine'"])):
        files = f"data.files={{{name}: {rows_in(tmp_path / 'a.csv')}}}"
        refused("evaluate", [*own, files], words, monkeypatch, capsys)
    code, text = in_process("evaluate", [*own, files, "split=mine"], monkeypatch, capsys)
    assert code == 0, text


def test_a_saved_data_set_is_a_split_an_input_and_a_corpus(
    tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "root" / TASK).mkdir(parents=True)
    place = saved(tmp_path / "root" / TASK / "dev", {"sentence": SENTENCES, "text": SENTENCES, "label": ["Positive", "-", None]})
    data = data_of([f"data.root={tmp_path}/root"])
    assert [(row.texts["sentence"], row.label) for row in data.read("dev")] == [
        ("菜不错", "Positive"), ("太贵了", None), ("还行", None),
    ]  # fmt: skip
    output = tmp_path / "o.csv"
    words = [f"checkpoint={tiny_export}", f"input={place}", f"output={output}", f"run.dir={tmp_path}/runs"]
    assert in_process("predict", words, monkeypatch, capsys)[0] == 0
    assert [row["sentence"] for row in records(output)] == SENTENCES
    corpus = CorpusReads.of(composed("tokenizer", [f"data.corpus=[{place}]"]).data)
    assert list(corpus.files.paths) == ["0 dev/data-00000-of-00001.arrow"]


def test_another_content_of_a_saved_data_set_is_another_key(tmp_path: Path) -> None:
    (tmp_path / TASK).mkdir()
    place = saved(tmp_path / TASK / "dev", {"sentence": SENTENCES})
    first = key([f"data.root={tmp_path}"])
    (place / "cache-of-others.arrow").write_bytes(b"x")
    assert key([f"data.root={tmp_path}"]) == first
    shutil.rmtree(place)
    saved(place, {"sentence": SENTENCES[:2]})
    assert key([f"data.root={tmp_path}"]) != first


def test_quotes_of_a_command_are_those_of_its_tasks_and_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / TASK).mkdir()
    (tmp_path / TASK / "dev.tsv").write_text('sentence\tlabel\n"好" 吃\tPositive\n', encoding="utf-8")
    with pytest.raises(AdaptError, match="data.quotes=text"):
        data_of([f"data.root={tmp_path}"]).read("dev")
    data = data_of([f"data.root={tmp_path}", "data.quotes=text"])
    assert data.task.quotes is Quotes.TEXT
    assert [row.texts["sentence"] for row in data.read("dev")] == ['"好" 吃']
    assert key([f"data.root={tmp_path}"]) != key([f"data.root={tmp_path}", "data.quotes=text"])


def test_several_splits_are_no_input(tmp_path: Path, tiny_export: Path, monkeypatch: Patch, capsys: Capture) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', encoding="utf-8")
    words = [f"checkpoint={tiny_export}", f"input={tmp_path}/d", f"run.dir={tmp_path}/runs"]
    refused("predict", words, ["holds several splits (train, test)", "d/train"], monkeypatch, capsys)
