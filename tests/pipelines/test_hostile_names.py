"""Names and texts from elsewhere: none leads out of the run directory, and none acts on a terminal or a page."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from adapt.core.errors import ConfigError, DataError, shown
from adapt.core.runtime import set_up_logging
from pipelines.config.schema import RunConfig
from pseudo_label.splits import place_of_split
from tests.support.command_line import refused

HOSTILE = '<script>alert(1)</script>"\x1b[2J\u202e\u2066\u200b\r\x00\x9b&'
ACTED_ON = "\x1b\u202e\u2066\u200b\r\x00\x9b"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../b", "a//b", "/tmp/x", "a/", "store", "store/x", "a\nb", "\x1b[31m", "a\x00b", "../a"]
)
def test_a_runs_name_leads_nowhere_else(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a run"):
        RunConfig(name=name)


@pytest.mark.parametrize("name", ["news", "运行", "a.b", "news/long", "..a", "1"])
def test_plain_names_of_runs_stay(name: str) -> None:
    assert RunConfig(name=name).name == name


@pytest.mark.parametrize("split", ["", ".", "..", "../dev", "a/../dev", "/etc/passwd", "a\x00", "dev\n"])
def test_a_splits_name_leads_nowhere_else(split: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no plain name"):
        place_of_split(tmp_path, split)


def test_a_runs_name_is_refused_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("tokenizer", ["run.name=a/../../b", f"run.dir={tmp_path}/runs"], ["run.name", "a/../../b"], monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_errors_and_log_lines_hold_nothing_that_a_terminal_acts_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    logging.getLogger("adapt").info("%s: labels 好\u3000👍 %s", "a\nb.csv", HOSTILE)
    said = capsys.readouterr().err + str(DataError(f"{HOSTILE}: no such file"))
    assert not set(ACTED_ON) & set(said)
    assert "好\u3000👍" in said and "\\x1b[2J" in said
    assert "\n" not in str(DataError("a\nb\u2028c"))


def test_log_lines_go_to_what_is_standard_error_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    set_up_logging()
    first.close()
    monkeypatch.setattr(sys, "stderr", later)
    logging.getLogger("adapt").info("here")
    assert later.getvalue() == "here\n"


def test_text_without_marks_is_shown_as_it_is() -> None:
    assert shown("全角\u3000空格, e\u0301, 👍") == "全角\u3000空格, e\u0301, 👍"
