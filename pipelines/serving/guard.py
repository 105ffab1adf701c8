"""The door of the application (ASGI 3): a body is counted while it is read, and nothing of it is logged.

A request reaches the application with its whole body, so a slow client holds nothing but its own connection. A body that is too
large is answered at once; what still comes is dropped until the client has sent it or its time is over, since many clients look
for an answer only then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from pipelines.serving.metrics import Metrics

logger = logging.getLogger("pipelines")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class _Gone(Exception):
    """The client has left."""


class _TooLarge(Exception):
    """A body is larger than it may be."""


class Guard:
    """An application behind limits: `body_bytes` of a body, `timeout_s` seconds to receive it."""

    def __init__(self, app: App, metrics: Metrics, *, body_bytes: int, timeout_s: float) -> None:
        self._app, self._metrics, self._body_bytes, self._timeout_s = app, metrics, body_bytes, timeout_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, counted)
        except _Gone:
            return
        except Exception as error:
            logger.error("a request could not be answered: %s", type(error).__name__)  # its message may have a row's text
            if not status:
                await _refuse(counted, HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log names the error")
        finally:
            if status:
                self._metrics.count(scope["path"], status, time.monotonic() - began)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._body(scope, receive)
        except TimeoutError:
            says = f"the request was not received within {self._timeout_s:g} seconds"
            await _refuse(send, HTTPStatus.REQUEST_TIMEOUT, says)
            return
        except _TooLarge:
            says = f"the body is larger than {self._body_bytes:,} bytes; send fewer rows at a time"
            await _refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, says, more_body=True)
            await self._drop(receive)
            await send({"type": "http.response.body", "body": b""})
            return
        sent = False

        async def replayed() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replayed, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._body_bytes:
            raise _TooLarge
        parts, n_bytes = [], 0
        more = True
        while more:
            message = await _received(receive)
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self._body_bytes:
                raise _TooLarge
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _drop(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while (await _received(receive)).get("more_body", False):
                    pass
        except TimeoutError:
            return


async def _received(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    return message


async def _refuse(send: Send, status: HTTPStatus, says: str, *, more_body: bool = False) -> None:
    """Send a refusal and let the connection end with it."""
    body = json.dumps({"detail": says}).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
