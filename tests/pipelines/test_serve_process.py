"""`pipelines.serve` as a process of its own: under load, with a body of 100 MB, a slow client, and SIGTERM in the middle."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs httpx")

from tests.support.command_line import ROOT, command
from tests.support.request_load import Load

pytestmark = pytest.mark.slow
ROWS = [f"a text with the number {number} that nobody may log" for number in range(50)]
_PART = b"x" * 1_000_000


@contextmanager
def serving(export: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server and yield its process and address."""
    words = [f"checkpoint={export}", "serve.port=0", "scorer.precision=fp32", *more]
    process = subprocess.Popen(
        command("serve", *words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found is not None, process.communicate()[1]
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def resident_mb(process: subprocess.Popen[str]) -> float:
    text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found.group(1)) / 1000


def test_large_bodies_and_slow_clients_hold_nobody_up(tiny_export: Path) -> None:
    with serving(tiny_export) as (process, address):
        place = urlsplit(address)
        assert place.hostname is not None
        before = resident_mb(process)
        slow = socket.create_connection((place.hostname, place.port or 0))
        slow.sendall(b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{"ro')
        for is_chunked in (False, True):
            connection = http.client.HTTPConnection(place.netloc, timeout=60)
            headers = {} if is_chunked else {"content-length": str(100 * len(_PART))}
            connection.request("POST", "/predict", (_PART for _ in range(100)), headers, encode_chunked=is_chunked)
            answer = connection.getresponse()
            assert answer.status == 413
            assert "1,000,000 bytes" in json.loads(answer.read())["detail"]
            connection.close()
        assert resident_mb(process) - before < 50
        load = Load()
        asyncio.run(load.at_rate(address, ROWS, per_second=50, seconds=4))
        assert load.ends == {"200": 200}
        slow.sendall(b'ws": ["a text"]}')
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 ")
        slow.close()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "nobody may log" not in output + errors
        assert "Traceback" not in errors


def test_sigterm_under_load_answers_what_has_come_and_refuses_the_rest(tiny_export: Path) -> None:
    with serving(tiny_export) as (process, address):
        load = Load()

        async def whole() -> None:
            sends = asyncio.ensure_future(load.at_rate(address, ROWS, per_second=50, seconds=6))
            while load.ends["200"] < 50 and not sends.done():
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            await sends

        asyncio.run(whole())
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert set(load.ends) <= {"200", "503", "ConnectError"}, load.ends  # nothing was taken and then dropped
        assert load.ends["200"] >= 50
        assert load.ends["ConnectError"] > 0
        assert sum(load.ends.values()) == 300
        assert "nobody may log" not in output + errors
        assert "Traceback" not in errors
