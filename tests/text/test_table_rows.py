"""csv and tsv: every cell as it was written, every row counted, or one line that says where."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from adapt.text.rows.contract import Quotes
from adapt.text.rows.reading import header_of, open_rows, rows_of
from tests.support.row_files import ROWS, as_csv, places, planted, records, refusal


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.tsv", "a.TSV", "a.csv.gz", "a.tsv.GZ"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_are_read_whatever_their_ending_and_line_ends(tmp_path: Path, name: str, end: str, mark: str) -> None:
    delimiter = "\t" if ".tsv" in name.lower() else ","
    path = planted(tmp_path / name, mark + as_csv(ROWS, delimiter, end))
    assert records(path) == ROWS
    assert places(path) == ["line 2", "line 3"]
    assert header_of(open_rows(path)) == ["id", "sentence"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_random_cells_come_back_as_they_were_written(tmp_path: Path, kind: str) -> None:
    random.seed(5)
    signs = ["a", "好", '"', ",", " ", "\n", "\r\n", "\r", "'", "\u2028", ";", "\x0b", "\\", "1"] + (
        ["\t"] if kind == "csv" else []
    )
    delimiter = "," if kind == "csv" else "\t"
    for _ in range(300):
        rows = [{"x y": "".join(random.choices(signs, k=random.randrange(9))), "b": f"r{n}"} for n in range(5)]
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, ["x y", "b"], delimiter=delimiter, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        assert records(planted(tmp_path / f"a.{kind}", stream.getvalue())) == rows


def test_cells_of_any_length_and_with_line_breaks_are_kept(tmp_path: Path) -> None:
    long = "这家店" * 60_000
    path = planted(tmp_path / "a.csv", f'id,s\r\n0,"{long}"\r\n1,"a\r\nb\n\nc"\r\n2,x\r\n')
    assert [row["s"] for row in records(path)] == [long, "a\r\nb\n\nc", "x"]
    assert places(path) == ["line 2", "line 3", "line 7"]


def test_empty_lines_are_no_rows_and_a_header_alone_is_a_table(tmp_path: Path) -> None:
    assert records(planted(tmp_path / "a.csv", "id,s\n\n0,x\n\n\n")) == [{"id": "0", "s": "x"}]
    assert records(planted(tmp_path / "b.csv", "id,s\n")) == []
    assert header_of(open_rows(tmp_path / "b.csv")) == ["id", "s"]
    assert header_of(open_rows(planted(tmp_path / "c.csv", ""))) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,s\n0,x\n1\n", ", line 3: has 1 cells, the header has 2 columns"),
        ("id,s\n0,x\n1,a,b\n", ", line 3: has 3 cells"),
        ("id,s,s\n", ", line 1: two columns are called 's'"),
        ("id,,\n", ", line 1: several columns have no name"),
        ("id;s\n0;x\n", ", line 1: columns are separated by semicolons, not commas"),
        ("id\ts\n0\tx\n", ", line 1: columns are separated by tabs, not commas; let its name end in .tsv"),
        ("id,s\n0,x\n\ufeffid,s\n1,y\n", ", line 3: a byte order mark inside the file"),
        ("id,s\n0,x\nid,s\n1,y\n", ", line 3: is the header again"),
        ("id,s\n0,x\x00\n", ", line 2: has a NUL character"),
        ('id,s\n0,"x\n1,y\n2,z\n', ", line 2: a quote is not closed"),
        ('id,s\n0,x\n1,"y" z\n', ", line 3: a quoted cell goes on behind its closing quote"),
        ('id,s\n0,x\n1,"y\n2,"z"\n', ", line 3: a quoted cell goes on behind its closing quote (found out in line 4)"),
        ('id,s\n1,x\n2,"y\n3,z\n4,w"\n', ", line 3: a quoted cell runs on to line 5, over what look like rows"),
        ('id,s\n1,x\n2,"y\n3,w"\n', ", line 3: a quoted cell runs on to line 4, over what look like rows"),
        ('id,s,label\nx1,"好的，pos\nx9,不行",neg\n', ", line 2: a quoted cell runs on to line 3, over what look like rows"),
        ('id,s\nr-07,"x\nr-12,y\nr-03,z"\n', ", line 2: a quoted cell runs on to line 4, over what look like rows"),
        ('id,s\n0007,"x\n0008,y"\n', ", line 2: a quoted cell runs on to line 3, over what look like rows"),
        ("id,s\n0,x\r1,y\n", ", line 2: ends in another way"),
    ],
)
def test_what_is_no_row_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(planted(tmp_path / "a.csv", text)).startswith(message)


def test_glued_rows_of_a_tsv_and_of_many_lines_are_refused(tmp_path: Path) -> None:
    tsv = 's\tlabel\nx\t1\n"y\t0\nz\t1\nw"\t1\n'
    assert refusal(planted(tmp_path / "a.tsv", tsv)).startswith(", line 3: a quoted cell runs on to line 5")
    table = "s,label\n" + 'x,1\n"y,0\n' + "z,1\n" * 6 + 'w",1\n'
    assert refusal(planted(tmp_path / "a.csv", table)).startswith(", line 3: a quoted cell runs on to line 10")


@pytest.mark.parametrize("cell", ["Dear all,\nit was good, mostly.\nBye", "1,cheap\n2,fast", "a\nb", "3\n4,5"])
def test_texts_of_several_lines_are_not_taken_for_glued_rows(tmp_path: Path, cell: str) -> None:
    path = planted(tmp_path / "a.csv", f'id,s\n0,"{cell}"\n1,y\n')
    assert [row["s"] for row in records(path)] == [cell, "y"]


@pytest.mark.parametrize("cell", ["第一行\n第二行，x2,很好", "see\ny2,no", "x2\nx3", "好\nx2,b,c"])
def test_texts_of_several_lines_beside_ids_of_letters_stay(tmp_path: Path, cell: str) -> None:
    path = planted(tmp_path / "a.csv", f'id,s\nx1,"{cell}"\nx2,y\n')
    assert [row["s"] for row in records(path)] == [cell, "y"]


def test_quotes_in_the_middle_of_a_cell_are_text(tmp_path: Path) -> None:
    path = planted(tmp_path / "a.csv", 'id,s\n0,他说"好"吧\n1,"说""好"""\n2,\'单引号\'\n')
    assert [row["s"] for row in records(path)] == ['他说"好"吧', '说"好"', "'单引号'"]


def test_an_unclosed_quote_does_not_read_the_whole_file_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.text.rows.table_rows.MAX_CHARACTERS", 1000)
    message = refusal(planted(tmp_path / "a.csv", 'id,s\n0,"x\n' + "some text\n" * 1000))
    assert message.startswith(", line 2: a cell of more than 1,000 characters (found out in line 10")
    csv.field_size_limit(1 << 25)


def test_a_table_of_very_many_columns_is_read(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(50_000)]
    (row,) = records(planted(tmp_path / "a.csv", ",".join(names) + "\n" + "x," * 49_999 + "y\n"))
    assert len(row) == 50_000
    assert "two columns are called 'c0'" in refusal(planted(tmp_path / "b.csv", ",".join([*names, "c0"]) + "\n"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id;text, long;label\n1;a,b;0\n", "line 2: columns are separated by semicolons"),
        ("a.csv", "编号，文本\n1，好\n", "line 1: columns are separated by full-width commas"),
        ("a.csv", "id|text\n1|好\n", "line 1: columns are separated by bars"),
        ("a.tsv", "id,text\n1,好\n", "line 1: columns are separated by commas"),
        ("a.csv", "sep=;\nid;text\n1;好\n", "line 1: columns are separated by semicolons"),
        ("a.csv", 'id,text\n1, "好"\n', "line 2: a space stands before a quoted cell"),
        ("a.csv", 'id,text\n1, "好, 吃"\n', "line 2: a space stands before a quoted cell"),
        ("a.tsv", 'text\n"好\n吃"\n', "line 2: a quoted cell runs on to line 3"),
        ("a.tsv", 'who\ttext\na\t"好\nb\t吃"\n', "line 2: a quoted cell runs on to line 3"),
        ("a.csv", "<html><body>", "is a page of HTML"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_what_only_looks_like_a_table_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    assert message in refusal(planted(tmp_path / name, text))


def test_other_signs_in_texts_and_a_note_to_spreadsheets_are_no_separators(tmp_path: Path) -> None:
    assert records(planted(tmp_path / "a.csv", "sep=,\nid,text\n1,a;b\n")) == [{"id": "1", "text": "a;b"}]
    assert records(planted(tmp_path / "b.csv", "id,text (a;b;c)\n1,好\n")) == [{"id": "1", "text (a;b;c)": "好"}]
    assert records(planted(tmp_path / "c.csv", '"text, or; or"\n"a;b,c"\n')) == [{"text, or; or": "a;b,c"}]
    odd = {"a": ' "x" ,', "b": ' " ,'}
    text = 'a,b\n" ""x"" ,"," "" ,"\n'
    assert records(planted(tmp_path / "d.csv", text)) == [odd]


def test_quotes_are_letters_or_cells_where_that_is_said(tmp_path: Path) -> None:
    bare = planted(tmp_path / "a.tsv", 'id\ttext\n1\t"好" 他说\n2\t"贵\n3\t5"\n')
    assert "line 2: a quoted cell goes on behind its closing quote" in refusal(bare)
    assert "data.quotes=text" in refusal(bare)
    read = [dict(row.record)["text"] for row in rows_of(open_rows(bare, quotes=Quotes.TEXT))]
    assert read == ['"好" 他说', '"贵', '5"']
    meant = planted(tmp_path / "b.tsv", 'who\ttext\na\t"好\nb\t吃"\n')
    assert [row.record["text"] for row in rows_of(open_rows(meant, quotes=Quotes.CELLS))] == ["好\nb\t吃"]
    assert [row.record["text"] for row in rows_of(open_rows(meant, quotes=Quotes.TEXT))] == ['"好', '吃"']
