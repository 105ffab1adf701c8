"""Ranks on several hosts, each host behind a remote shell: the same to whoever waits for them as ranks on this machine.

A host is sent its orders over the shell's standard input and answers on its standard output (see `pipelines.ranks.node`), so that
nothing is quoted, no port is guessed, and a connection that ends takes its ranks with it. Every host goes through the remote shell,
the one that the command runs on too.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from adapt.core.artifacts import write_atomically
from adapt.core.errors import ConfigError
from adapt.core.typed import from_plain, to_plain
from adapt.train.engine_config import EngineConfig
from adapt.train.stopping import STOPPED_CODE
from pipelines.ranks.hosts import HostRanks
from pipelines.ranks.local import POLL_S, Death, ended_on_failure
from pipelines.ranks.node import STOP, TOKEN_FILE, NodeOrder

_GRACE_S = 8.0  # a host gives its ranks five
# What a user sets for all hosts; which devices are visible is a host's own affair.
_PASSED = ("NCCL_", "GLOO_", "TP_", "UCX_", "CUDA_", "TORCH_", "DS_", "MALLOC_", "GLIBC_", "KMP_", "WANDB_", "LD_LIBRARY_PATH")
_NOT_PASSED = ("CUDA_VISIBLE_DEVICES",)


class RanksElsewhere(ABC):
    """Ranks at the other end of a connection that carries orders there and answers back (see `pipelines.ranks.node`)."""

    def __init__(self, name: str, first: int, orders: IO[str], answers: IO[str]) -> None:
        self.name = name
        self.port: int | None = None
        self.end: int | None = None
        self.wish: int | None = None
        self._first = first
        self._orders, self._answers = orders, answers
        self._said: list[Death] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Say whether the ranks have not ended yet."""

    @property
    def is_silent(self) -> bool:
        """Say whether the other end has closed the connection."""
        return not self._listener.is_alive()

    @property
    def was_stopped(self) -> bool:
        return not self.is_running and self.end == STOPPED_CODE

    @abstractmethod
    def lost(self) -> str:
        """Say in a line that the connection ended before its ranks did."""

    def tell(self, line: str) -> None:
        """Send a line; who is gone is told nothing."""
        with contextlib.suppress(OSError, ValueError):
            self._orders.write(line + "\n")
            self._orders.flush()

    def deaths(self) -> list[Death]:
        """Return what failed there: ranks, or the connection, which is not to end before it was said that all is over."""
        if not self.is_running:
            self._listener.join(1.0 if self.end is None else 0.0)
            if self.end is None and not self._said:
                return [Death(rank=self._first, code=1, said=self.lost(), host=self.name)]
        return list(self._said)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a connection that breaks, or is closed here
            for line in self._answers:
                self._hear(_parsed(line))

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "port" in message:
            self.port = int(message["port"])
        elif "error" in message:
            self._said.append(Death(rank=self._first, code=1, said=message["error"], host=self.name))
        elif "death" in message:
            self._said.append(from_plain(Death, {**message["death"], "host": self.name}, "death"))
        elif "wish" in message:
            self.wish = int(message["wish"])
        elif "end" in message:
            self.end = int(message["end"])


class _Host(RanksElsewhere):
    """A host's ranks behind the process of the remote shell."""

    def __init__(self, ranks: HostRanks, shell: str, log: Path | None, order: NodeOrder) -> None:
        self._log = log
        with contextlib.ExitStack() as stack:
            stderr = None if log is None else stack.enter_context(log.open("wb"))
            self._process = _started(shell, ranks.host, stderr)
        assert self._process.stdin is not None and self._process.stdout is not None
        super().__init__(ranks.host, ranks.first, self._process.stdin, self._process.stdout)
        self.port = order.port
        self.tell(json.dumps(to_plain(order)))

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self, deadline: float) -> None:
        try:
            self._process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def lost(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n") if self._log is not None else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "what it said stands above")
        code = self._process.poll()
        return (
            f"host {self.name} cannot be used, or was lost (exit code {code}: {last}); see that engine.remote_shell reaches it and "
            f"that {sys.executable}, the code and run.dir are there too; the same command goes on from the last saved state"
        )


class RemoteRanks:
    """The ranks of a job on several hosts; used as a context, which ends those that are left."""

    def __init__(self, frozen: Path, engine: EngineConfig, parts: list[HostRanks]) -> None:
        self._frozen, self._engine, self._parts = frozen, engine, parts
        self._token = secrets.token_hex(16)
        self._hosts: list[_Host] = []
        write_atomically(frozen.with_name(TOKEN_FILE), self._token)

    def __enter__(self) -> RemoteRanks:
        with ended_on_failure(self):
            first = self._start(0, None)
            while first.port is None and first.is_running:
                time.sleep(POLL_S)
            if first.port is not None:
                for index in range(1, len(self._parts)):
                    self._start(index, first.port)
        return self

    @property
    def are_running(self) -> bool:
        return any(host.is_running for host in self._hosts)

    @property
    def were_stopped(self) -> bool:
        return any(host.was_stopped for host in self._hosts)

    @property
    def wish(self) -> int | None:
        """Return a signal that another process passes on: there is none that would."""
        return None

    def deaths(self) -> list[Death]:
        """Return those that failed so far."""
        return [death for host in self._hosts for death in host.deaths()]

    def ask_to_stop(self) -> None:
        """Ask all to leave at the next step boundary, behind their saved state."""
        for host in self._hosts:
            host.tell(STOP)

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.hang_up()
        deadline = time.monotonic() + _GRACE_S
        for host in self._hosts:
            host.close(deadline)

    def _start(self, index: int, port: int | None) -> _Host:
        part = self._parts[index]
        order = NodeOrder(
            host=part.host,
            frozen=str(self._frozen),
            token=self._token,
            first=part.first,
            count=part.count,
            world_size=sum(part.count for part in self._parts),
            address=self._engine.master_address or self._parts[0].host,
            port=port,
            threads=self._engine.threads,
            environment=passed_on(os.environ),
        )
        log = self._frozen.with_name(f"host-{index}.log") if index else None
        self._hosts.append(_Host(part, self._engine.remote_shell, log, order))
        return self._hosts[-1]


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that ranks on other hosts find in their environment too."""
    return {name: value for name, value in environment.items() if name.startswith(_PASSED) and name not in _NOT_PASSED}


def _started(shell: str, host: str, stderr: IO[bytes] | None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [*shlex.split(shell), host, _remote_command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is not for the remote shell
            text=True,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine.remote_shell: '{shell}' cannot be started ({error}); give a command like ssh") from error


def _parsed(line: str) -> Mapping[str, Any]:
    """Read a line of a host; what its login shell says besides is nothing."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _remote_command() -> str:
    root = Path(__file__).resolve().parents[2]
    start = shlex.join(["env", f"PYTHONPATH={root}", sys.executable, "-m", "pipelines.ranks.node"])
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {start}"
