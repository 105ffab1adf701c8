"""Counts and times of requests, as Prometheus reads them (text exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FIRST_ERROR = 400


class Metrics:
    """What happened since the start. `paths` are told apart, all others are counted together, so that nobody can add lines."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = frozenset(paths)
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds = [0] * (len(_BOUNDS_S) + 1)
        self._total_s = 0.0
        self.rows = 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests[path if path in self._paths else "other", status] += 1
        self._seconds[bisect_left(_BOUNDS_S, seconds)] += 1
        self._total_s += seconds

    def text(self, queued_rows: int) -> str:
        """Return all of it, with the length of the queue."""
        lines = ["# HELP serve_requests_total Answered requests.", "# TYPE serve_requests_total counter"]
        for (path, status), number in sorted(self._requests.items()):
            lines.append(f'serve_requests_total{{path="{path}",status="{status}"}} {number}')
        errors = sum(number for (_, status), number in self._requests.items() if status >= _FIRST_ERROR)
        lines += _one("serve_errors_total", "counter", "Requests that were answered with a status of 400 or more.", errors)
        lines += _one("serve_rows_total", "counter", "Rows that got a label.", self.rows)
        lines += _one("serve_queue_rows", "gauge", "Rows that wait for a batch.", queued_rows)
        lines += ["# HELP serve_request_seconds From a request's head to the end of its answer."]
        lines += ["# TYPE serve_request_seconds histogram"]
        below = 0
        for bound, number in zip((*_BOUNDS_S, "+Inf"), self._seconds, strict=True):
            below += number
            lines.append(f'serve_request_seconds_bucket{{le="{bound}"}} {below}')
        lines += [f"serve_request_seconds_sum {self._total_s:.6f}", f"serve_request_seconds_count {below}"]
        return "\n".join(lines) + "\n"


def _one(name: str, kind: str, says: str, value: int) -> list[str]:
    return [f"# HELP {name} {says}", f"# TYPE {name} {kind}", f"{name} {value}"]
