"""Task files, tables, label files, labels and candidates by the thousand: each is read right, or refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import strategies as st

from adapt.core.errors import AdaptError
from adapt.text.rows.reading import open_rows, rows_of
from pseudo_label.task_config import TaskConfig, TaskRow
from pseudo_label.tasks import labels_of, load_task, read_split, row_from, split_path
from pseudo_label.teachers.file import read_label_file
from tests.support.fuzzing import VALUES, accepted, damaged, distorted, fuzz

Check = Callable[[Any], bool]
TASK: dict[str, Any] = {
    "folder": "parcel",
    "fields": {"s": {"path": "text.s", "drop": "#"}, "keys": {"path": "keys", "join": "、", "is_optional": True}},
    "label_path": "gold",
    "id_paths": ["id"],
    "label_words": {"good": "好", "bad": "坏", "1": "一般"},
    "prompts": {
        "reference": {"template": "{s}，{label}。"},
        "other": {"template": "{label}：{s}{keys}", "synonyms": {"good": ["棒"]}, "criterion": "mean"},
    },
    "ensemble": ["reference"],
    "shorten": ["s"],
    "label_tree": {"a": ["good", "1"], "b": ["bad"]},
    "rules": [{"measure": "pattern", "fields": ["s"], "pattern": "不|没", "weights": {"bad": 1.0}}],
    "lexical": {"rounds": 1, "share": 0.5},
    "prior": {"good": 0.5, "bad": 0.25, "1": 0.25},
    "encoding": "utf-8",
}
CHOOSING: dict[str, Any] = {
    "fields": {"s": {"path": "s", "blank": "_"}}, "candidates": "options", "prompts": {"reference": {"template": "{s}"}},
}  # fmt: skip
RECORD = {"id": 7, "text": {"s": "好#吃"}, "keys": ["甲", "乙"], "gold": "good"}
SHARES = {"task bytes": 4_000, "task values": 4_000, "tables": 4_000, "label files": 4_000, "labels": 2_000, "candidates": 2_000}
TOTAL = sum(SHARES.values())
assert TOTAL == 20_000


def loaded(place: Path, content: Mapping[str, Any]) -> TaskConfig:
    (place / "t.yaml").write_text(yaml.safe_dump(dict(content), allow_unicode=True), encoding="utf-8")
    return load_task("t", [place])


def task_file(place: Path) -> Check:
    """Check a task file, and that what it names is looked for nowhere but below the root."""
    root = place / "root"
    (root / "parcel").mkdir(parents=True)
    (root / "parcel" / "dev.json").write_text(json.dumps(RECORD, ensure_ascii=False) + "\n", encoding="utf-8")

    def read(raw: bytes) -> bool:
        (place / "t.yaml").write_bytes(raw)

        def go() -> None:
            task = load_task("t", [place])
            assert split_path(root, task, "dev").resolve().is_relative_to(root.resolve())
            for name in [task.name, task.submission_file or "x"]:
                assert Path(name).name == name
            rows = read_split(root, task, "dev")
            assert len(rows) == 1 and set(rows[0].texts) == set(task.fields)

        return accepted(go)

    return read


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["好吃", 'a "b"', "x,y", "x\ty", "a\nb", "a\r\nb", "  ", "=1+1", "'", "\ufeff", "\u2028", "NA", "007", "{", "1e5"]
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "gb18030"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes, str | None, list[dict[str, str]]]:
    """Draw a file of rows as Python's own writers make it: its name, bytes, the encoding it is read in, and its rows."""
    names = draw(st.lists(texts.filter(lambda t: t.strip("\r\n\ufeff ") != ""), min_size=2, max_size=3, unique=True))
    rows = [dict(zip(names, cells, strict=True)) for cells in draw(
        st.lists(st.lists(texts, min_size=len(names), max_size=len(names)), max_size=5))]  # fmt: skip
    kind, encoding = draw(st.sampled_from(["csv", "tsv", "jsonl", "json"])), draw(st.sampled_from(ENCODINGS))
    target = io.StringIO()
    if kind in ("csv", "tsv"):
        has_returns = any("\r" in cell for cells in [names, *(row.values() for row in rows)] for cell in cells)
        # Python's writer leaves a carriage return unquoted where lines end with a line feed.
        quotes_all = has_returns or draw(st.booleans())
        end = draw(st.sampled_from(["\n", "\r\n"]))
        delimiter = "," if kind == "csv" else "\t"
        quoting: Literal[0, 1] = csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL
        writer = csv.writer(target, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([names, *(row.values() for row in rows)])
    elif kind == "jsonl":
        target.write("".join(json.dumps(row, ensure_ascii=draw(st.booleans())) + "\n" for row in rows))
    else:
        json.dump(rows, target, ensure_ascii=False, indent=draw(st.sampled_from([None, 1])))
    raw = target.getvalue().encode(encoding)
    is_packed = draw(st.booleans())
    said = encoding if encoding == "gb18030" or draw(st.booleans()) else None
    return f"t.{kind}" + ".gz" * is_packed, gzip.compress(raw, 1, mtime=0) if is_packed else raw, said, rows


def table(place: Path) -> Check:
    def read(given: tuple[str, bytes, str | None, list[dict[str, str]]]) -> bool:
        name, raw, encoding, rows = given
        (place / name).write_bytes(raw)
        found: list[Any] = []
        if not accepted(lambda: found.extend(dict(row.record) for row in rows_of(open_rows(place / name, encoding=encoding)))):
            return False
        assert found == rows
        return True

    return read


LABELS: list[dict[str, Any]] = [
    {"id": 0, "label": "good"}, {"id": 1, "probabilities": {"good": 0.25, "bad": 0.75}}, {"s": "好吃", "keys": "", "label": "1"},
]  # fmt: skip


def packed(rows: Any) -> bytes:
    """Return rows as Parquet where they can be, else as JSON lines."""
    try:
        target = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
        return target.getvalue()
    except (pyarrow.ArrowException, TypeError, AttributeError, KeyError, ValueError, OverflowError, UnicodeError):
        return lines(rows)


def lines(rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])).encode()


def label_files() -> st.SearchStrategy[tuple[str, bytes]]:
    csv_text = b'id,label\n0,good\n1,bad\n"2",1\n'
    damage = st.sampled_from([("l.csv", csv_text), ("l.jsonl", lines(LABELS))]).flatmap(
        lambda file: damaged(file[1]).map(lambda raw: (file[0], raw))
    )
    shapes = distorted(LABELS)
    return damage | shapes.map(lambda rows: ("l.jsonl", lines(rows))) | shapes.map(lambda rows: ("l.parquet", packed(rows)))


def label_file(place: Path) -> Check:
    task = loaded(place, TASK)
    rows = [
        TaskRow(id=n, texts={"s": s, "keys": ""}, label=None, candidates=None, line=n + 1) for n, s in enumerate(["a", "b", "好吃"])
    ]

    def read(given: tuple[str, bytes]) -> bool:
        (place / given[0]).write_bytes(given[1])

        def go() -> None:
            scores = read_label_file(place / given[0], task).fitted(rows).scores(rows)
            assert scores.shape == (3, 3) and np.isfinite(scores).all()

        return accepted(go)

    return read


def row(place: Path, content: Mapping[str, Any]) -> Check:
    task = loaded(place, content)

    def read(record: Any) -> bool:
        if not isinstance(record, dict):
            return False
        try:
            found = row_from(record, task, "rows", 1)
        except AdaptError as error:
            assert str(error).isprintable() or "\n" not in str(error)
            return False
        assert found.label is None or found.label in labels_of(found, task)
        assert all(isinstance(text, str) for text in found.texts.values())
        return True

    return read


def labelled() -> st.SearchStrategy[Any]:
    return distorted(RECORD) | st.sampled_from(VALUES).map(lambda value: {**RECORD, "gold": value})


def choosing() -> st.SearchStrategy[Any]:
    record = {"s": "一_二", "options": ["甲", "乙"], "label": 1}
    return distorted(record) | st.lists(st.sampled_from(VALUES), max_size=3).map(lambda options: {**record, "options": options})


def run(what: str, place: Path, count: int) -> int:
    """Check so many inputs of a kind; return how many were accepted."""
    written = yaml.safe_dump(TASK, allow_unicode=True)
    if what == "task bytes":
        return fuzz(st.just(written.encode()) | damaged(written.encode()), task_file(place), count)
    if what == "task values":
        as_file = distorted(TASK).map(lambda value: yaml.dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"))
        return fuzz(as_file | distorted(TASK).map(lambda value: json.dumps(value).encode()), task_file(place), count)
    if what == "tables":
        return fuzz(tables(), table(place), count)
    if what == "label files":
        return fuzz(label_files(), label_file(place), count)
    if what == "labels":
        return fuzz(labelled(), row(place, {key: value for key, value in TASK.items() if key != "folder"}), count)
    return fuzz(choosing(), row(place, CHOOSING), count)


@pytest.mark.parametrize("what", SHARES)
def test_inputs_are_right_or_one_line(what: str, tmp_path: Path) -> None:
    assert run(what, tmp_path, 40) > 0


@pytest.mark.slow
@pytest.mark.parametrize("what", SHARES)
def test_many_inputs_are_right_or_one_line(what: str, tmp_path: Path) -> None:
    assert run(what, tmp_path, SHARES[what]) > 0
