"""Requests to a server at a fixed rate, whether or not earlier ones were answered: `python -m tests.support.request_load URL`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # each request has a connection of its own


@dataclass(kw_only=True)
class Load:
    """What came of requests: how many ended in which way, and the seconds of those that were answered with 200."""

    ends: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def at_rate(self, url: str, rows: Sequence[str], *, per_second: float, seconds: float, most_rows: int = 4) -> None:
        """Send requests of one to `most_rows` rows; a latency counts from the moment at which a request was due."""
        async with httpx.AsyncClient(limits=_LIMITS, timeout=60, trust_env=False) as client:
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for number in range(round(per_second * seconds)):
                    due = began + number / per_second
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    first = number % len(rows)
                    group.create_task(self._one(client, f"{url}predict", [*rows[first : first + number % most_rows + 1]], due))

    async def _one(self, client: httpx.AsyncClient, url: str, rows: list[str], due: float) -> None:
        try:
            found = await client.post(url, json={"rows": rows})
        except httpx.TransportError as error:
            self.ends[type(error).__name__] += 1
            return
        if found.status_code == 200 and len(found.json()["predictions"]) != len(rows):
            self.ends["other rows"] += 1
            return
        self.ends[str(found.status_code)] += 1
        if found.status_code == 200:
            self.seconds.append(time.monotonic() - due)


def main(url: str, per_second: float = 50, seconds: float = 120, most_rows: float = 4) -> None:
    """Print how requests ended, and their latencies."""
    load = Load()
    rows = [f"row {number}: the food was {'good' if number % 2 else 'bad'} and came late" for number in range(200)]
    asyncio.run(load.at_rate(url, rows, per_second=per_second, seconds=seconds, most_rows=int(most_rows)))
    quantiles = np.quantile(load.seconds, [0.5, 0.99, 1.0]) * 1000
    sys.stdout.write(f"{dict(load.ends)}; p50, p99 and longest latency in ms: {', '.join(f'{q:.1f}' for q in quantiles)}\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
