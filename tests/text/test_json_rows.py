"""JSON lines and arrays: as many rows as there are objects, and what no row may hold is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapt.text.rows import json_rows as json_module
from adapt.text.rows.reading import open_rows, rows_of
from tests.support.row_files import ROWS, json_lines, places, planted, records, refusal


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.JSONL", "a.Json", "a.jsonl.gz", "A.JSON.GZ"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_are_read_whatever_their_name_and_line_ends(tmp_path: Path, name: str, end: str) -> None:
    path = planted(tmp_path / name, json_lines(ROWS).replace("\n", end))
    assert records(path) == ROWS
    assert places(path) == ["line 1", "line 2"]


@pytest.mark.parametrize("layout", ["indented", "one line", "object a line", "space"])
def test_an_array_is_read_like_lines(tmp_path: Path, layout: str) -> None:
    text = {
        "indented": json.dumps(ROWS, ensure_ascii=False, indent=2),
        "one line": json.dumps(ROWS, ensure_ascii=False),
        "object a line": "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n]\n",
        "space": "\n \t" + json.dumps(ROWS).replace(",", " ,\r\n ") + "  \n",
    }[layout]
    path = planted(tmp_path / "a.json", "\ufeff" + text)
    assert records(path) == ROWS
    assert places(path) == ["row 1", "row 2"]


def test_an_array_is_read_piece_by_piece_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "text": '字\\"\n\u2028' * n, "deep": {"a": [n, None, True, -1.5e-3]}} for n in range(40)]
    path = planted(tmp_path / "a.json", json.dumps(rows, ensure_ascii=True, indent=1))
    text = path.read_text()
    for size in (1, 2, 3, 7, 50, 1000):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        monkeypatch.setattr(json_module, "pieces_of", lambda _, pieces=pieces: iter(pieces))
        assert records(path) == rows


@pytest.mark.parametrize("text", ["", " \n\n", "[]", " [ \n ] \n", "\ufeff"])
def test_a_file_without_objects_has_no_rows(tmp_path: Path, text: str) -> None:
    assert records(planted(tmp_path / "a.json", text)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', ", line 1: not valid JSON (expected ']' of the array, found the end of the file)"),
        ('[{"a": 1},\n]', ", row 2 (line 2): expected a JSON object, found ']'"),
        ('[{"a": 1}\n{"a": 2}]', ", line 2: not valid JSON (expected ']' of the array, found '{')"),
        ('[{"a": 1},\n{"a": 2]', ", row 2 (line 2): not valid JSON"),
        ('[{"a": 1}]\n[', ", line 2: something stands behind the end of the array"),
        ('[\n"a"]', ", row 1 (line 2): expected a JSON object, found '\"'"),
        ('[{"a": "b', ", row 1 (line 1): not valid JSON (Unterminated string starting)"),
        ('[{"a": 1, "a": 2}]', ", row 1 (line 1): has 'a' twice"),
    ],
)
def test_a_broken_array_is_named_by_row_and_line(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(planted(tmp_path / "a.json", text)).startswith(message)


NUMBER = "9" * 5000
DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize("in_array", [False, True])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": "x\\ud83d"}', "its a has half a surrogate pair"),
        ('{"a": "\\udc4dx"}', "its a has half a surrogate pair"),
        ('{"a": [{"b": "\\udc4d"}]}', "its b has half a surrogate pair"),
        ('{"a\\ud83d": 1}', "a key has half a surrogate pair"),
        ('{"a": "x\\u0000"}', "its a has a NUL"),
        ('{"a": [1, ["\\u0000"]]}', "its a has a NUL"),
        (f'{{"a": {NUMBER}}}', "a number of thousands of digits"),
        (f'{{"a": {DEEP}}}', "nested deeper than 32"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32"),
        ('{"a": ' + '{"a": ' * 40 + "1" + "}" * 41, "nested deeper than 32"),
        ('{"a": 1, "b": 2, "a": 3}', "has 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "has 'b' twice"),
    ],
)
def test_what_no_row_may_hold_is_refused_by_line(tmp_path: Path, line: str, reason: str, in_array: bool) -> None:
    text = f'[{{"a": 1}},\n{line}]' if in_array else f'{{"a": 1}}\n\n{line}\n'
    message = refusal(planted(tmp_path / "a.json", text))
    assert message.startswith(", row 2 (line 2): " if in_array else ", line 3: "), message
    assert reason in message


def test_whole_surrogate_pairs_odd_signs_and_long_numbers_are_kept(tmp_path: Path) -> None:
    line = '{"a": "\\ud83d\\udc4d\\u2028\\u0085\\u000b", "n": 123456789012345678901234567890, "z": [null, true, {"k": [1]}]}'
    assert records(planted(tmp_path / "a.jsonl", line)) == [
        {"a": "👍\u2028\u0085\x0b", "n": 123456789012345678901234567890, "z": [None, True, {"k": [1]}]}
    ]


def test_only_line_feeds_end_lines_of_json(tmp_path: Path) -> None:
    path = planted(tmp_path / "a.jsonl", '{"a": "x\u2028y\x85z"}\n{"a": "x\x1cy"}\n'.replace("\x1c", "\u2029"))
    assert places(path) == ["line 1", "line 2"]


def test_two_joined_files_are_refused(tmp_path: Path) -> None:
    assert ", line 2: a byte order mark inside the file" in refusal(
        planted(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\ufeff{"a": 2}\n')
    )


def test_a_file_without_line_ends_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.text.rows.encodings.MAX_CHARACTERS", 1000)
    monkeypatch.setattr("adapt.text.rows.json_rows.MAX_CHARACTERS", 1000)
    assert "longer than 1,000" in refusal(planted(tmp_path / "a.jsonl", '{"a": "' + "x" * 5000))
    assert "longer than 1,000" in refusal(planted(tmp_path / "a.json", '[{"a": "' + "x" * 5000))


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = planted(tmp_path / "a.jsonl", json_lines(ROWS) + "{")
    rows = rows_of(open_rows(path))
    assert [dict(next(rows).record), dict(next(rows).record)] == ROWS
