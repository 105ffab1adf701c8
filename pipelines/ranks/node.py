"""A host's part of a job on several hosts: started there through the remote shell by `pipelines.ranks.remote`, never by hand.

`pipelines.ranks.joining` has processes that were started otherwise obey in the same way, over a connection instead.

Orders come in on standard input: a line that says which ranks to run, then perhaps `stop`; its end, which is also that of the
connection or of the command that started it all, ends the ranks at once. Standard output carries lines of JSON back: the port that
rank 0's host has chosen, a refusal, how a rank died, and that all is over. Standard error is rank 0's, where what ranks write to
standard output goes too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from adapt.core.errors import AdaptError, ConfigError
from adapt.core.typed import from_plain, to_plain
from adapt.train.stopping import STOPPED_CODE
from pipelines.ranks.local import POLL_S, LocalRanks, Meeting, free_port

STOP = "stop"
TOKEN_FILE = "hosts.token"
_SHARED_WAIT_S = 10.0
_FAILED_CODE = 1


@dataclass(frozen=True, kw_only=True)
class NodeOrder:
    """What a host is told: the job's file, its ranks, where all meet, and what else its ranks find in their environment.

    Without a `port` the host chooses one and says so. `token` is what the file beside the job must hold, as the sender wrote it.
    Of the `on_host` ranks on this host (absent: `count`) these are the ones from `first_local` on.
    """

    host: str
    frozen: str
    token: str
    first: int
    count: int
    world_size: int
    address: str
    port: int | None
    threads: int | None
    environment: dict[str, str] = field(default_factory=dict)
    first_local: int = 0
    on_host: int | None = None


class Orders:
    """What has come in: the first line, and what followed; `wishes` are signals that this process gets meanwhile."""

    def __init__(self, stream: TextIO, wishes: Sequence[int] = ()) -> None:
        self.first: str | None = None
        self.is_stopping = False
        self.is_cut_off = False
        self.wishes = wishes
        self._stream = stream
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # a connection that breaks ends too
            for line in self._stream:
                if self.first is None:
                    self.first = line
                self.is_stopping |= line.strip() == STOP
        self.is_cut_off = True


def main() -> int:
    """Run this host's ranks; return an exit code that its starter knows from a rank's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starter's to pass on
    answers = _answers()
    orders = Orders(sys.stdin)
    while orders.first is None and not orders.is_cut_off:
        time.sleep(POLL_S)
    if orders.first is None:
        return _FAILED_CODE
    return obey(from_plain(NodeOrder, json.loads(orders.first), "order"), orders, answers)


def obey(order: NodeOrder, orders: Orders, answers: TextIO) -> int:
    """Run the ranks of an order and say how they ended; return that as an exit code."""
    try:
        check_shared(order)
        port = order.port
        if port is None:
            port = free_port("")
            say(answers, port=port)
        os.environ.update(order.environment)
        meeting = Meeting(address=order.address, port=port, world_size=order.world_size)
        ranks = LocalRanks(
            Path(order.frozen),
            order.first,
            order.count,
            meeting,
            order.threads,
            first_local=order.first_local,
            on_host=order.on_host,
        )
        with ranks:
            code = _watch(ranks, orders, answers)
    except AdaptError as error:
        say(answers, error=str(error))
        code = _FAILED_CODE
    say(answers, end=code)
    return code


def check_shared(order: NodeOrder) -> None:
    """Raise ConfigError where the job's directory is not the one that the starter sees."""
    place = Path(order.frozen).with_name(TOKEN_FILE)
    deadline = time.monotonic() + _SHARED_WAIT_S  # network file systems show new files late
    while time.monotonic() < deadline:
        if place.is_file() and place.read_text(encoding="utf-8") == order.token:
            return
        time.sleep(POLL_S)
    raise ConfigError(
        f"{order.host}: {place.parent} is not the directory that the command writes to; with engine.hostfile, run.dir, the code "
        "and the data must be at the same place on a file system that all hosts share"
    )


def _watch(ranks: LocalRanks, orders: Orders, answers: TextIO) -> int:
    was_asked = has_passed_on = False
    while ranks.are_running:
        if orders.wishes and not has_passed_on:
            say(answers, wish=orders.wishes[0])
            has_passed_on = True
        if orders.is_cut_off:
            ranks.kill()
        if orders.is_stopping and not was_asked:
            ranks.ask_to_stop()
            was_asked = True
        if ranks.deaths():
            break
        time.sleep(POLL_S)
    if orders.is_cut_off:
        return _FAILED_CODE
    deaths = ranks.deaths()
    for death in deaths:
        say(answers, death=to_plain(death))
    return _FAILED_CODE if deaths else STOPPED_CODE if ranks.were_stopped else 0


def _answers() -> TextIO:
    """Keep standard output for answers only: what is started from here on finds standard error in its place."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def say(answers: TextIO, **message: Any) -> None:
    """Send a line of JSON."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    # A host that is told to end passes that on as if its connection were gone.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a thread still listens on standard input, which Python would wait for
