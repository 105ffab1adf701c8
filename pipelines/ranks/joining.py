"""A command that was started as several processes (see `surroundings`): rank 0 runs it, the others run their ranks of its jobs.

Every other process keeps a connection to rank 0. A job goes over it as to a host behind a remote shell (see `node`): an order,
perhaps `stop`, and answers; its end ends the rank. Then the process connects again and waits for the next job, or for the exit code
with which all leave. The ranks are processes of their own, as everywhere: a job has its own process group, memory and signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, ConfigError, TrainingError
from adapt.core.runtime import set_up_logging
from adapt.core.typed import digest_of, from_plain
from adapt.train.engine_config import EngineConfig
from pipelines.ranks.local import LOOPBACK, POLL_S, Death, LocalRanks, Meeting, ended_on_failure, free_port
from pipelines.ranks.node import STOP, TOKEN_FILE, NodeOrder, Orders, obey, say
from pipelines.ranks.remote import RanksElsewhere
from pipelines.ranks.surroundings import Place

_MEET_S = 300.0  # for all processes of a command to start
_AGAIN_S = 10.0  # for a process to connect again behind a job
_LEAVE_S = 5.0
_SAME_WISH_S = 5.0  # a terminal and a launcher both pass Ctrl-C on
_LOST_CODE = 1
_PORT_KEY = "moe_adapt/port"


@dataclass(frozen=True, kw_only=True)
class _Hello:
    """What a process says of itself when it connects; `command` is the same for all that belong together."""

    rank: int
    local_rank: int
    host: str
    command: str


class _Waiting(RanksElsewhere):
    """A process that waits for a job or runs its rank of one."""

    def __init__(self, connection: socket.socket, orders: TextIO, answers: TextIO, hello: _Hello) -> None:
        super().__init__(hello.host, hello.rank, orders, answers)
        self.hello = hello
        self._connection = connection

    @property
    def is_running(self) -> bool:
        return self.end is None and not self.is_silent

    def hang_up(self) -> None:
        """End the connection, and the rank with it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def lost(self) -> str:
        return (
            f"rank {self.hello.rank} on {self.name} was lost: its process is gone, or the connection to it; the same command goes "
            "on from the last saved state"
        )


class Company:
    """The other processes, as rank 0 sees them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.own = _hello(place)
        self._hellos = {0: self.own}
        self._waiting: dict[int, _Waiting] = {}
        self._expected = set(range(1, place.world_size))
        self._listener = _listener(place)

    def on_host_of(self, rank: int) -> int:
        """Return how many ranks share the host of one."""
        return sum(hello.host == self._hellos[rank].host for hello in self._hellos.values())

    def taken(self, n_ranks: int) -> list[_Waiting]:
        """Return the processes of the ranks from 1 on, below `n_ranks`; each serves one job.

        Raises:
            TrainingError: one of all processes does not come.
        """
        self._gather(_MEET_S if len(self._hellos) < self.place.world_size else _AGAIN_S)
        lacking = sorted(set(range(1, self.place.world_size)).difference(self._waiting))
        if lacking:
            raise TrainingError(
                f"rank {lacking[0]} of the {self.place.world_size} that {self.place.starter} started is not there; the same "
                "command goes on from the last saved state"
            )
        return [self._waiting.pop(rank) for rank in range(1, n_ranks)]

    def forget(self, process: _Waiting) -> None:
        """Expect a process no more that was lost."""
        self._expected.discard(process.hello.rank)

    def dismiss(self, code: int) -> None:
        """Let all leave with an exit code, and wait until they have."""
        _leave_in_peace()
        self._gather(_AGAIN_S)
        for process in self._waiting.values():
            process.tell(json.dumps({"leave": code}))
        deadline = time.monotonic() + _LEAVE_S
        while any(not process.is_silent for process in self._waiting.values()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self._listener.close()

    def _gather(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._expected.issubset(self._waiting) and time.monotonic() < deadline:
            self._listener.settimeout(max(deadline - time.monotonic(), 0.01))
            with contextlib.suppress(TimeoutError):
                self._welcome(self._listener.accept()[0])

    def _welcome(self, connection: socket.socket) -> None:
        connection.settimeout(_AGAIN_S)
        answers, orders = _streams(connection)
        try:
            hello = from_plain(_Hello, json.loads(answers.readline()), "hello")
        except (OSError, ValueError, AdaptError):  # nothing of ours
            connection.close()
            return
        connection.settimeout(None)
        process = _Waiting(connection, orders, answers, hello)
        if hello.command != self.own.command or not 0 < hello.rank < self.place.world_size:
            process.tell(json.dumps({"leave": 2}))
            process.hang_up()
            return
        self._hellos[hello.rank] = hello
        self._waiting[hello.rank] = process


class JoinedRanks:
    """The ranks of a job in the processes that were started together; used as a context, which ends those that are left."""

    def __init__(self, frozen: Path, engine: EngineConfig, company: Company, n_ranks: int) -> None:
        self._frozen, self._engine, self._company, self._n_ranks = frozen, engine, company, n_ranks
        self._others: list[_Waiting] = []
        self._own: LocalRanks | None = None

    def __enter__(self) -> JoinedRanks:
        token, place = secrets.token_hex(16), self._company.place
        write_atomically(self._frozen.with_name(TOKEN_FILE), token)
        with ended_on_failure(self):
            self._others = self._company.taken(self._n_ranks)
            port = free_port(_bound_to(place))
            for process in self._others:
                order = NodeOrder(
                    host=process.name,
                    frozen=str(self._frozen),
                    token=token,
                    first=process.hello.rank,
                    count=1,
                    world_size=self._n_ranks,
                    address=place.address,
                    port=port,
                    threads=self._engine.threads,
                    first_local=process.hello.local_rank,
                    on_host=self._company.on_host_of(process.hello.rank),
                )
                process.tell(json.dumps(asdict(order)))
            meeting = Meeting(address=place.address, port=port, world_size=self._n_ranks)
            on_host = self._company.on_host_of(0)
            own = LocalRanks(self._frozen, 0, 1, meeting, self._engine.threads, first_local=place.local_rank, on_host=on_host)
            self._own = own.__enter__()
        return self

    @property
    def are_running(self) -> bool:
        return self._own is not None and self._own.are_running or any(process.is_running for process in self._others)

    @property
    def were_stopped(self) -> bool:
        return self._own is not None and self._own.were_stopped or any(process.was_stopped for process in self._others)

    @property
    def wish(self) -> int | None:
        """Return a signal that another process has got and passes on."""
        return next((process.wish for process in self._others if process.wish is not None), None)

    def deaths(self) -> list[Death]:
        """Return those that failed so far."""
        own = [] if self._own is None else self._own.deaths()
        return [*own, *(death for process in self._others for death in process.deaths())]

    def ask_to_stop(self) -> None:
        """Ask all to leave at the next step boundary, behind their saved state."""
        if self._own is not None:
            self._own.ask_to_stop()
        for process in self._others:
            process.tell(STOP)

    def __exit__(self, *_: object) -> None:
        for process in self._others:
            if process.end is None and process.is_silent:
                self._company.forget(process)
            process.hang_up()
        if self._own is not None:
            self._own.__exit__()


_company: Company | None = None  # this command's, where this process is its rank 0


def company() -> Company | None:
    """Return the processes that this command was started with; None where it starts ranks itself, as a sweep's processes do."""
    return _company


def lead(place: Place, command: Callable[[], NoReturn]) -> None:
    """Run a command as rank 0 and let all processes leave with its exit code."""
    global _company
    _company = Company(place)
    code = 1
    try:
        command()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise
    finally:
        _company.dismiss(code)
        _company = None


def follow(place: Place) -> int:
    """Run this process's ranks of rank 0's jobs until it says with which exit code to leave."""
    set_up_logging(place.rank)
    wishes: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: wishes.append(number))
    hello, patience_s = _hello(place), _MEET_S
    port = _port_of_rank_0(place)
    while True:
        connection = _connected(place.address, port, patience_s, wishes)
        if connection is None:
            return 128 + wishes[0] if wishes else _LOST_CODE
        patience_s = _AGAIN_S
        code = _served(connection, hello, wishes)
        if code is not None:
            return code


def _served(connection: socket.socket, hello: _Hello, wishes: list[int]) -> int | None:
    """Do what rank 0 orders: a job, after which to connect again (None), or to leave with an exit code."""
    incoming, answers = _streams(connection)
    with connection, answers, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        say(answers, **asdict(hello))
        orders = Orders(incoming, wishes)
        while orders.first is None and not orders.is_cut_off:
            time.sleep(POLL_S)
        if orders.first is None:
            return _LOST_CODE
        first: dict[str, Any] = json.loads(orders.first)
        if "leave" in first:
            _leave_in_peace()
            return int(first["leave"])
        obey(from_plain(NodeOrder, first, "order"), orders, answers)
        while not orders.is_cut_off:  # rank 0 hangs up when all ranks are done
            time.sleep(POLL_S)
    return None


def _connected(address: str, port: int, patience_s: float, wishes: list[int]) -> socket.socket | None:
    """Connect to rank 0; None where it is not there in time, or a signal came first."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and not wishes:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((address, port), timeout=_AGAIN_S)
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return connection
        time.sleep(POLL_S)
    return None


def _listener(place: Place) -> socket.socket:
    port = 0 if place.has_agent else place.port
    try:
        listener = socket.create_server((_bound_to(place), port), backlog=place.world_size)
    except OSError as error:
        raise ConfigError(
            f"MASTER_PORT: rank 0 cannot listen on port {port} ({error.strerror}); export another MASTER_PORT to all processes"
        ) from error
    if place.has_agent:
        _agent_store(place).set(_PORT_KEY, str(listener.getsockname()[1]))
    return listener


def _port_of_rank_0(place: Place) -> int:
    return int(_agent_store(place).get(_PORT_KEY)) if place.has_agent else place.port


def _agent_store(place: Place) -> Any:
    """Return the store that torchrun's agent keeps at the meeting point, which so is no place to listen."""
    from torch.distributed import PrefixStore, TCPStore

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}", TCPStore(place.address, place.port, is_master=False))


def _bound_to(place: Place) -> str:
    return LOOPBACK if place.address in ("localhost", LOOPBACK) else ""


def _hello(place: Place) -> _Hello:
    command = digest_of([sys.argv, str(Path.cwd()), place.world_size])
    return _Hello(rank=place.rank, local_rank=place.local_rank, host=socket.gethostname(), command=command)


def _streams(connection: socket.socket) -> tuple[TextIO, TextIO]:
    """Return a connection's incoming and outgoing lines."""
    return connection.makefile("r", encoding="utf-8"), connection.makefile("w", encoding="utf-8")


def _leave_in_peace() -> None:
    """Ignore signals from here on: a launcher that sees one process leave with an error ends the others, which have a code too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def take_repeated_signals_as_one() -> None:
    """Let a signal that comes again within seconds be the same wish: launchers pass on what the terminal has sent already."""
    came: list[float] = []

    def once(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if came and time.monotonic() - came[0] < _SAME_WISH_S:
                return
            came.append(time.monotonic())
            handler(number, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):
            signal.signal(number, once(handler))
