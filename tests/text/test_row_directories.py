"""Directories as files of rows: data sets saved by `datasets`, folders of Parquet parts, and hostile ones in one line."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from adapt.text.corpus import find_corpus, read_documents
from adapt.text.rows.directories import files_of, is_rows
from adapt.text.rows.reading import header_of, open_rows, rows_of
from tests.support.row_files import records, refusal, saved

TEXTS = ["菜不错", "太贵了", "还行"]


def test_a_data_set_that_datasets_saved_is_read(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["差", "好"])})
    whole = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.filter(lambda row: row["label"] >= 0)}).save_to_disk(tmp_path / "d")
    assert [(row["text"], row["label"]) for row in records(tmp_path / "d" / "train")] == list(zip(TEXTS, [1, 0, -1], strict=True))
    assert [row["text"] for row in records(tmp_path / "d" / "test")] == TEXTS[:2]
    assert header_of(open_rows(tmp_path / "d" / "train")) == ["text", "label"]
    assert "holds several splits (train, test)" in refusal(tmp_path / "d")


def test_rows_of_several_files_are_numbered_on(tmp_path: Path) -> None:
    place = saved(tmp_path / "d", {"text": TEXTS[:2]}, {"text": TEXTS[2:]})
    assert [(row.place, row.record["text"]) for row in rows_of(open_rows(place))] == [
        (f"row {number}", text) for number, text in enumerate(TEXTS, start=1)
    ]
    assert list(files_of(place)) == ["/data-00000-of-00002.arrow", "/data-00001-of-00002.arrow"]


def test_a_folder_of_parquet_parts_is_one_file(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / f"part-{number}.parquet")
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    assert [row["text"] for row in records(tmp_path)] == TEXTS
    (document, *_) = read_documents(find_corpus([str(tmp_path)])[0])
    assert document.text == TEXTS[0]


def test_parquet_parts_are_read_by_their_numbers_and_the_key_says_the_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"{number}"]}), tmp_path / f"part-{number}.parquet")
    assert [row["text"] for row in records(tmp_path)] == ["1", "2", "10"]
    assert list(files_of(tmp_path)) == ["/0/part-1.parquet", "/1/part-2.parquet", "/2/part-10.parquet"]
    inner = tmp_path / "more" / "deep"
    inner.mkdir(parents=True)
    assert len(records(tmp_path)) == 3, "a folder without parts is left"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), inner / "part-3.parquet")
    assert "more of them in its folder more" in refusal(tmp_path)


def test_parquet_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for name in ("mixed/train-00000-of-00001", "mixed/test-00000-of-00001", "part/train-00000-of-00002", "other/a-0", "other/a-1"):
        place = tmp_path / f"{name}.parquet"
        place.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"text" if name != "other/a-1" else "t": ["x"]}), place)
    assert "several data sets (test, train)" in refusal(tmp_path / "mixed")
    assert "has 1 of 2 Parquet parts" in refusal(tmp_path / "part")
    assert "a-1.parquet has other columns" in refusal(tmp_path / "other")


def test_a_parquet_file_that_claims_rows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.text.rows.parquet_rows._MOST_ROWS", 1000)
    place = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 500_000}), place)
    assert "claims 500,000 rows" in refusal(place)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "not one of the directory"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "not one of the directory"),
        ({"_data_files": ["data-00000-of-00001.arrow"]}, "not one of the directory"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow is missing"),
        ({"_data_files": [{"filename": "link.arrow"}]}, "leads out"),
        ({"_data_files": [{"filename": "data-00000-of-00001.arrow"}] * 2}, "names a file twice"),
        ({"_data_files": {}}, "names no files"),
        ({"_data_files": [], "_indices_data_files": [{"filename": "x"}]}, "a selection of its rows"),
    ],
)
def test_a_state_that_lies_is_one_line(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    place = saved(tmp_path / "d", {"text": TEXTS}, state=state)
    (tmp_path / "secret.arrow").write_bytes((place / "data-00000-of-00001.arrow").read_bytes())
    (place / "link.arrow").symlink_to(tmp_path / "secret.arrow")
    assert message in refusal(place)


def test_files_that_are_no_arrow_are_one_line(tmp_path: Path) -> None:
    place = saved(tmp_path / "d", {"text": TEXTS})
    file = place / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for content in (b"", pickle.dumps({"text": TEXTS}), whole[:-8], whole[:100], b"\xff" * 64 + whole[-8:]):
        file.write_bytes(content)
        assert "data-00000-of-00001.arrow is" in refusal(place), content
    (place / "state.json").write_text("{" * 100_000, encoding="utf-8")
    assert "not valid JSON" in refusal(place)
    assert not is_rows(tmp_path)


def test_types_of_its_own_and_other_columns_are_one_line(tmp_path: Path) -> None:
    odd = pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([b"0123456789abcdef"], pyarrow.binary(16)))
    assert "a type of its own" in refusal(saved(tmp_path / "a", {"text": odd}))
    assert "other columns" in refusal(saved(tmp_path / "b", {"text": ["x"]}, {"t": ["x"]}))
