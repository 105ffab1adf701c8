"""Corpus files are read whatever their packing, and every mistake in them is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from adapt.core.errors import DataError
from adapt.text.corpus import (
    CorpusFile,
    Document,
    domains_of,
    find_corpus,
    is_held_out,
    read_documents,
    read_lines,
    text_digest,
)
from adapt.text.rows.json_rows import parse_object

TEXTS = ["第一篇，完。", "second text", "三\n行"]
JSON_LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def planted(place: Path, content: str | bytes) -> CorpusFile:
    raw = content.encode() if isinstance(content, str) else content
    place.write_bytes(gzip.compress(raw) if place.suffix == ".gz" else raw)
    return CorpusFile(path=place, domain="d")


def texts_of(file: CorpusFile) -> list[str]:
    return [document.text for document in read_documents(file)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_json_lines_are_read_with_any_packing_bom_and_line_end(tmp_path: Path, name: str, prefix: str, ending: str) -> None:
    file = planted(tmp_path / name, prefix + JSON_LINES.replace("\n", ending))
    assert list(read_documents(file)) == [Document(text=text, domain="d") for text in TEXTS]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_each_line_of_a_text_file_is_a_document(tmp_path: Path, name: str, prefix: str, ending: str) -> None:
    file = planted(tmp_path / name, prefix + ending.join(["一", "", "  ", "{not json", "四"]))
    assert texts_of(file) == ["一", "{not json", "四"]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\u0085c\x0cd\re"
    assert texts_of(planted(tmp_path / "a.txt", odd + "\n")) == [odd]
    assert list(read_lines(tmp_path / "a.txt")) == [(1, odd)]
    (tmp_path / "a.txt").write_bytes(b" a \r\n\r\nb")
    assert list(read_lines(tmp_path / "a.txt")) == [(1, " a "), (2, ""), (3, "b")]


def test_empty_documents_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    assert texts_of(planted(tmp_path / "a.jsonl", '{"text": "  "}\n\n{"text": " a "}\n  \n{"text": ""}')) == ["a"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str) -> None:
    assert texts_of(planted(tmp_path / name, "")) == []


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "not valid JSON"),
        ("plain words", "not valid JSON .*; mend the line or take it out"),
        ('["a"]', "expected a JSON object, found list"),
        ("null", "expected a JSON object, found NoneType"),
        ('{"body": "a"}', "has no text field"),
        ("{}", "has no text field"),
        ('{"text": null}', "has no text field"),
        ('{"text": 3}', "has no text field"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, name: str, line: str, reason: str) -> None:
    file = planted(tmp_path / name, f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(DataError, match=f"{name}, line 3: {reason}"):
        list(read_documents(file))


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8"):
        list(read_documents(planted(tmp_path / "a.txt", "好\n".encode() + "好\n".encode("gb18030"))))


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "checksum", "trailing bytes"])
def test_a_damaged_gzip_is_named_by_file(tmp_path: Path, damage: str) -> None:
    random = np.random.default_rng(0)
    whole = gzip.compress("\n".join(str(x) for x in random.random(3000)).encode())
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "not gzip": b"plain text\n",
        "checksum": whole[:-8] + b"\x00" * 8,
        "trailing bytes": whole + b"junk",
    }
    (tmp_path / "a.txt.gz").write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"a\.txt\.gz(, after line \d+: a damaged|: is not a) gzip file"):
        list(read_lines(tmp_path / "a.txt.gz"))


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere.jsonl.gz", ""])
def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_lines(tmp_path / name))


def test_json_is_parsed_with_its_column_in_the_error() -> None:
    assert parse_object('{"a": [1]}', "here, line 1") == {"a": [1]}
    with pytest.raises(DataError, match="line 7: not valid JSON .*, column 6"):
        parse_object('{"a":}', "here, line 7")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("formal_licensed.jsonl.gz", "formal_more.jsonl", "web.txt", "notes.md", "deep/web_two.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def names(files: list[CorpusFile]) -> list[str]:
    return [file.path.name for file in files]


def test_globs_and_names_are_found_sorted_and_each_once(corpus: Path) -> None:
    files = find_corpus([f"{corpus}/web.txt", f"{corpus}/*.txt", f"{corpus}/formal*", f"{corpus}/web.txt"])
    assert names(files) == ["formal_licensed.jsonl.gz", "formal_more.jsonl", "web.txt"]


def test_the_order_of_patterns_changes_nothing(corpus: Path) -> None:
    patterns = [f"{corpus}/web.txt", f"{corpus}/formal*", f"{corpus}/deep/*"]
    assert find_corpus(patterns) == find_corpus(patterns[::-1])


def test_a_domain_is_the_file_name_up_to_the_first_mark(corpus: Path) -> None:
    files = find_corpus([f"{corpus}/**/*.txt", f"{corpus}/formal*"])
    assert {file.path.name: file.domain for file in files} == {
        "formal_licensed.jsonl.gz": "formal",
        "formal_more.jsonl": "formal",
        "web.txt": "web",
        "web_two.txt": "web",
    }


@pytest.mark.parametrize("pattern", ["../*.txt", "../web.txt", "../deep/../web.txt", "./../w?b.txt"])
def test_relative_patterns_may_go_up(corpus: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(corpus / "deep")
    assert names(find_corpus([pattern])) == ["web.txt"]


@pytest.mark.parametrize("pattern", ["web.txt", "w*.txt", "**/web.txt"])
def test_relative_patterns_start_at_the_working_directory(corpus: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(corpus)
    assert names(find_corpus([pattern])) == ["web.txt"]


def test_a_name_with_glob_marks_in_it_is_taken_literally_when_it_exists(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("")
    assert names(find_corpus([f"{tmp_path}/a[1].txt"])) == ["a[1].txt"]


@pytest.mark.parametrize("pattern", ["nothing*.txt", "nothing.txt", "nowhere/*.txt", "deep"])
def test_a_pattern_that_matches_no_file_is_named(corpus: Path, pattern: str) -> None:
    with pytest.raises(DataError) as caught:
        find_corpus([f"{corpus}/web.txt", f"{corpus}/{pattern}"])
    assert f"nothing matches {corpus}/{pattern}" in str(caught.value)


def test_no_pattern_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"set data\.corpus"):
        find_corpus([])


def test_a_file_of_an_unknown_kind_is_refused_with_the_known_endings(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"notes\.md: not a corpus file; known endings: \.jsonl"):
        find_corpus([f"{corpus}/*"])


def test_the_digest_ignores_white_space_and_nothing_else() -> None:
    assert text_digest("一 二\n三\u3000") == text_digest("一二三")
    assert text_digest("一二三") != text_digest("一三二")
    assert text_digest("Ab") != text_digest("ab")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_about_the_right_share_is_held_out(share: float) -> None:
    n = 5000
    held_out = sum(is_held_out(f"文本 {i}", share) for i in range(n))
    assert abs(held_out - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_the_ends_of_the_share_hold_nothing_and_everything_out() -> None:
    assert not any(is_held_out(str(i), 0.0) for i in range(200))
    assert all(is_held_out(str(i), 1.0) for i in range(200))


def test_holding_out_is_a_function_of_the_text_and_grows_with_the_share() -> None:
    texts = [f"text {i}" for i in range(500)]
    small, large = ({t for t in texts if is_held_out(t, share)} for share in (0.1, 0.3))
    assert small < large
    assert small == {t for t in reversed(texts) if is_held_out(f"  {t}\n", 0.1)}


def test_a_field_of_the_line_can_say_the_domain(tmp_path: Path) -> None:
    file = tmp_path / "formal_x.jsonl"
    file.write_text('{"text": "a", "source": "news"}\n\n{"text": "b", "source": "laws"}\n', encoding="utf-8")
    by_name, by_line = find_corpus([str(file)]), find_corpus([str(file)], "source")
    assert [d.domain for d in read_documents(by_name[0])] == ["formal", "formal"]
    assert [d.domain for d in read_documents(by_line[0])] == ["news", "laws"]
    assert domains_of(by_name) == ["formal"] and domains_of(by_line) == ["laws", "news"]
    with pytest.raises(DataError, match="line 1: has no genre field"):
        domains_of(find_corpus([str(file)], "genre"))
    plain = tmp_path / "plain.txt"
    plain.write_text("a", encoding="utf-8")
    with pytest.raises(DataError, match=r"plain text has no field 'source'.*data\.domain_field=null"):
        find_corpus([str(plain)], "source")
