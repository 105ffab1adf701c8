"""Encodings are recognised or chosen, never guessed at: right text, or one line that says what to set."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from adapt.core.errors import ConfigError, DataError
from adapt.text.corpus import read_lines
from adapt.text.rows import encodings
from adapt.text.rows.contract import MAX_UNPACKED_BYTES
from adapt.text.rows.encodings import check_encoding
from tests.support.row_files import ROWS, as_csv, json_lines, planted, records, refusal

TEXT = "这家酒店的早餐太差了，咖啡都是凉的"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_common_encodings_are_recognised_and_said_once(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(encodings.logger, "info", lambda form, *values: said.append(form % values))
    path = planted(tmp_path / name, json_lines(ROWS) if "json" in name else as_csv(ROWS), encoding)
    assert records(path) == records(path) == ROWS
    assert len(said) == (0 if encoding.startswith("utf-8") else 1)


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "shift_jis", "latin-1", "utf-16-be", "utf-8"])
def test_an_encoding_can_be_chosen(tmp_path: Path, encoding: str) -> None:
    text = {"latin-1": "café", "shift_jis": "とても良い"}.get(encoding, "很好")
    path = planted(tmp_path / "a.csv", f"s\n{text}\n", encoding)
    assert records(path, encoding) == [{"s": text}]


@pytest.mark.parametrize(
    ("encoding", "text"), [("big5", "這家酒店的早餐"), ("shift_jis", "とても良い"), ("latin-1", "très bon café")]
)
def test_other_encodings_are_not_taken_for_gb18030(tmp_path: Path, encoding: str, text: str) -> None:
    message = refusal(planted(tmp_path / "a.csv", f"id,s\n0,good\n1,{text}\n", encoding))
    assert message.startswith(", line 3: not UTF-8") and "data.encoding" in message


def test_a_file_in_two_encodings_is_refused_by_line(tmp_path: Path) -> None:
    lines = [f'{{"s": "{TEXT}"}}\n'.encode("gb18030"), '{"s": "很好好吃"}\n'.encode()]
    assert ", line 2: is UTF-8, and other lines are GB18030" in refusal(planted(tmp_path / "a.jsonl", b"".join(lines)))
    assert refusal(planted(tmp_path / "b.jsonl", b"".join(lines[::-1]))).startswith((", line 1: is UTF-8", ", line 2: not UTF-8"))
    late = b'{"s": "good"}\n' * 200_000
    assert ", line 200001: not UTF-8" in refusal(planted(tmp_path / "c.jsonl", lines[1] + late[:-14] + b"\xff\n"))


def test_gb18030_is_recognised_however_late_it_begins(tmp_path: Path) -> None:
    path = planted(tmp_path / "a.jsonl", b'{"s": "good"}\n' * 100_000 + f'{{"s": "{TEXT}"}}\n'.encode("gb18030"))
    assert records(path)[-1] == {"s": TEXT}


@pytest.mark.parametrize(("mark", "chosen"), [("utf-8-sig", "gb18030"), ("utf-16", "gb18030"), ("utf-16", "utf-8")])
def test_a_mark_that_contradicts_the_chosen_encoding_is_refused(tmp_path: Path, mark: str, chosen: str) -> None:
    assert "begins with the mark of" in refusal(planted(tmp_path / "a.csv", as_csv(ROWS), mark), chosen)


@pytest.mark.parametrize("chosen", ["utf-8", "utf-8-sig", "UTF8"])
def test_a_mark_that_fits_the_chosen_encoding_is_taken_off(tmp_path: Path, chosen: str) -> None:
    assert records(planted(tmp_path / "a.csv", as_csv(ROWS), "utf-8-sig"), chosen) == ROWS


@pytest.mark.parametrize("name", ["utf9", "zip", "hex", "undefined", "rot13", ""])
def test_what_is_no_text_encoding_is_refused_by_key(name: str) -> None:
    with pytest.raises(ConfigError, match="data.encoding: .* is not a text encoding"):
        check_encoding(name, "data.encoding")


def test_a_choice_that_does_not_decode_is_named_by_line(tmp_path: Path) -> None:
    assert ", line 2: not ascii" in refusal(planted(tmp_path / "a.csv", as_csv(ROWS)), "ascii")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"PAR1rest", "a Parquet file"),
        (b"%PDF-1.4", "a PDF"),
        (gzip.compress(b"a\n", mtime=0), "a gzip file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, raw: bytes, what: str) -> None:
    assert f": is {what}" in refusal(planted(tmp_path / "a.csv", raw))


def test_a_bomb_ends_at_a_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(MAX_UNPACKED_BYTES // (1 << 22) + 2):
            stream.write(b"\n" * (1 << 22))
    assert f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes" in refusal(path)


def test_a_text_with_carriage_returns_only_has_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一\r二\r三".encode())
    assert list(read_lines(tmp_path / "a.txt")) == [(1, "一"), (2, "二"), (3, "三")]
    (tmp_path / "b.txt").write_bytes("一\n二\x00\n".encode())
    with pytest.raises(DataError, match=r"b\.txt, line 2: has a NUL"):
        list(read_lines(tmp_path / "b.txt"))


@pytest.mark.parametrize("name", ["idna", "utf-7", "punycode", "unicode_escape", "charmap", "UTF7"])
def test_codecs_that_are_no_encoding_of_files_are_refused_by_key(name: str) -> None:
    with pytest.raises(ConfigError, match=f"data.encoding: '{name}' is not an encoding of files"):
        check_encoding(name, "data.encoding")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("euc-kr", "이 식당은 정말 맛있어요 다시 오고 싶어요"), ("euc-jp", "このレストランはとても美味しいです")],
)
def test_korean_and_japanese_are_not_taken_for_chinese(tmp_path: Path, encoding: str, text: str) -> None:
    path = planted(tmp_path / "a.csv", f"text\n{text}\n", encoding)
    assert "line 2: not UTF-8" in refusal(path)
    assert records(path, encoding) == [{"text": text}]


def test_a_wide_encoding_of_a_plain_file_and_what_is_no_gzip_are_refused(tmp_path: Path) -> None:
    assert "is plain ASCII, and data.encoding=utf-16-le" in refusal(planted(tmp_path / "a.csv", "text\nabc\n"), "utf-16-le")
    (tmp_path / "b.csv.gz").write_bytes(b"PK\x03\x04" + b"x" * 50)
    assert "is not a gzip file but a zip archive" in refusal(tmp_path / "b.csv.gz")
