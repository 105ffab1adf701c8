"""Messages of errors are one line, whatever of a user's file is in them."""

from __future__ import annotations

import pytest

from adapt.core.errors import DataError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("label '好' – \"x\"", "label '好' – \"x\""),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_act_on_is_written_as_an_escape(text: str, shown: str) -> None:
    assert str(DataError(text)) == shown
