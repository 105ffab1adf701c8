"""Regular expressions of task files are bounded: repeats of repeats are refused, and slow ones end."""

from __future__ import annotations

import pytest

from adapt.core.errors import ConfigError
from pseudo_label import patterns
from pseudo_label.patterns import is_found, problem_of


@pytest.mark.parametrize("pattern", ["(a+)+$", "((ab)*c)*", "(?:.*a)*b", "(?=(a+)+)x", "(?:a|b+)*", "(a{1,})+", "(?P<x>a*)*(?P=x)"])
def test_a_repeat_inside_a_repeat_is_refused(pattern: str) -> None:
    assert "repeats a repeat" in str(problem_of(pattern))


@pytest.mark.parametrize("pattern", ["[0-9]+元", "(a|b)+c", "(a{1,3}){2}", "(x(?:yz)?)+", "[.*+]+", r"\(a+\)+"])
def test_other_patterns_are_taken(pattern: str) -> None:
    assert problem_of(pattern) is None


def test_what_is_no_pattern_is_said() -> None:
    assert "not a regular expression" in str(problem_of("(a"))
    assert problem_of(None) == problem_of("") == "missing"


def test_a_slow_pattern_ends_and_names_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_SECONDS", 0.1)
    assert is_found("[0-9]+元", "花了50元" * 100_000, "rules[0].pattern")
    with pytest.raises(ConfigError, match=r"task .x., rules\[1\].pattern: searching a text of 41 characters .* fewer"):
        is_found("(a|a)*$", "a" * 40 + "b", "task 'x', rules[1].pattern")
    assert not is_found("c", "ab", "after it")
