"""A server process: it listens, says where, answers until it is stopped, and ends in order. Needs the extra `serve` (uvicorn).

SIGTERM and Ctrl-C close the port; requests that came before are answered, and then the process ends. A second one ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
from contextlib import closing, suppress
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapt.core.errors import ConfigError
from pipelines.config.serve_settings import ServeConfig
from pipelines.serving.application import application
from pipelines.serving.batches import Batches
from pseudo_label.predictor import Predictor

logger = logging.getLogger("pipelines")
_LOOPBACK = ("127.", "::1")
_BACKLOG = 1024
_LATE_S = 0.3


class _Server(uvicorn.Server):
    """Says when it is ready, and remembers what stopped it."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready
        self.stopped_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"{self._ready}\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port first; connections made until then are taken, and read for a moment before idle ones are closed."""
        kept = [bound.dup() for bound in sockets or []]
        for server in self.servers:
            server.close()
        late = [connection for bound in kept for connection in _taken_at_last(bound)]
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(_LATE_S)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = H11Protocol(config=self.config, server_state=self.server_state, app_state={})
        return made

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopped_by is None:
            logger.info("serve: takes no more requests; what has come is answered")
        self.stopped_by = sig
        super().handle_exit(sig, frame)


def _taken_at_last(bound: socket.socket) -> list[socket.socket]:
    """Accept what waits at a port, and close it at once."""
    found = []
    bound.setblocking(False)
    with closing(bound), suppress(BlockingIOError):
        while True:
            found.append(bound.accept()[0])
    return found


def listening(settings: ServeConfig) -> socket.socket:
    """Return a socket that is bound to the address.

    Raises:
        ConfigError: there is no such address, or it is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"serve.host: '{settings.host}' is no address of this machine ({error}); 127.0.0.1 is") from error
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        says = error.strerror or str(error)
        raise ConfigError(
            f"serve.port: cannot listen on {settings.host}:{settings.port} ({says}); serve.port=0 takes a free port"
        ) from error


def serve(predictor: Predictor, settings: ServeConfig, bound: socket.socket) -> int:
    """Answer requests on a socket until a signal comes; return the signal's number."""
    batches = Batches(predictor.predict_rows, batch_rows=settings.batch_rows, queue_rows=settings.queue_rows)
    task = predictor.spec.task
    host, port = bound.getsockname()[:2]
    if not host.startswith(_LOOPBACK):
        logger.warning("serve: listens on %s, so that other machines reach it; there is no password", host)
    address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    config = uvicorn.Config(
        application(task, batches, settings),
        http=H11Protocol,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(2 * settings.timeout_s) + 1,  # longest to receive a request and to answer it
    )
    server = _Server(config, f"serving {task.name} at {address} (Ctrl-C ends it)")
    with batches:
        try:
            server.run([bound])
        except KeyboardInterrupt:  # uvicorn raises the signal again once it has ended
            if server.stopped_by is None:
                raise
    return server.stopped_by or signal.SIGTERM
