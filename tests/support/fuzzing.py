"""Hostile inputs from sound ones, byte-wise and by structure, and the one rule for what they may lead to.

Inputs are drawn by hypothesis from a fixed seed: the same ones every time.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt.core.errors import AdaptError

T = TypeVar("T")
ALLOWED_S = 20.0
PIECES = [
    b'"', b"'", b",", b"\t", b";", b"\n", b"\r", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]",
    b"[" * 2000, b'{"a":' * 2000, b"\\u", b"\\ud83d", b"\\u0000", b"NaN", b"-", b"1e999", b"9" * 4400, b"0x" + b"f" * 5000,
    b"null", b"true", b":", b"a", b"7", b"#", b"&a ", b"*a", b"!!bool ", b"!!int ", b"!!python/name:os.system ", b"<<", b"---\n",
    b"? ", b"| ", b"> ", b"%", b"@", b"../", "好".encode(), "好吃".encode("gb18030"), b"\x80", b"\xe5", b"  ", b"\x1b[31m",
    b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\xc2\x85",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, 10**40, -(10**20), 0.5, 1e308, float("inf"), float("nan"), "", " ", ".", "..",
    "../x", "/etc/passwd", "a/b", "\ud83d", "\0", "a\nb", "\x1b[31m", "\u202eabc", "x" * 5000, "好", "<b>", "{", "{label}", "{}",
    [], [[]], {}, {"": 1}, {"a": None}, ["a", "a"], [None], "0", "true", "nan", "1e999",
]  # fmt: skip
_NAMES = ["", "name", "path", "a", "..", "\0", "\ud83d", "label", "好", "__class__"]


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Draw bytes in which something was cut, repeated, replaced or put in, once or several times."""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from([0, 0, 1, 3, 20])))
        piece = draw(st.sampled_from([*PIECES, b"", raw[start:end] * 2]) | st.binary(min_size=1, max_size=2))
        raw = raw[:start] + piece + raw[end:]
    return raw


@st.composite
def distorted(draw: st.DrawFn, value: Any) -> Any:
    """Draw a plain value in which one to three parts were replaced, dropped, renamed or put in."""
    root = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(_places(root))))
        what = draw(st.sampled_from(["replace", "replace", "drop", "rename", "nest", "repeat"]))
        if what == "replace" or key == "":
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif what == "nest":
            holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key])) if what == "repeat" else holder.pop(key)
        elif what == "drop":
            del holder[key]
        else:
            holder[draw(st.sampled_from(_NAMES))] = copy.deepcopy(holder[key])
    return root[""]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def fuzz(inputs: st.SearchStrategy[T], check: Callable[[T], bool], count: int) -> int:
    """Check that many inputs, each within `ALLOWED_S`; return how many were accepted. A failing one is made smaller and shown."""
    accepted = 0

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def each(one: T) -> None:
        nonlocal accepted
        with _limited():
            accepted += check(one)

    each()
    return accepted


def accepted(action: Callable[[], object]) -> bool:
    """Say whether an action ends well; it may only fail with one line of this project's errors."""
    try:
        action()
    except AdaptError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 100_000
        str(error).encode()
        return False
    return True


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"took more than {ALLOWED_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, ALLOWED_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
