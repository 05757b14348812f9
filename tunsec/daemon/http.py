"""HTTP/1.1 on one accepted Unix socket, for one request: h11 with bounds and deadlines.

One request a connection: nothing here can be kept busy by a client that pipelines, and a client
that is slow to speak or to listen is cut off.
"""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlsplit

import h11

MAX_HEAD_BYTES: Final = 16 << 10
MAX_BODY_BYTES: Final = 4 << 20
"""More than any policy (policy/document.py holds it to less)."""
REQUEST_TIMEOUT: Final = 10.0
"""Seconds for the whole request to arrive."""
RESPONSE_TIMEOUT: Final = 10.0
"""Seconds for the whole response to be taken."""

_CHUNK_BYTES: Final = 64 << 10


class BadRequest(Exception):
    """The client's fault; `status` is what to answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        self.status = status
        super().__init__(message)


class Gone(Exception):
    """The client has left; there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the client asks. `query` holds each name once."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """What it gets."""

    status: HTTPStatus
    content_type: str
    body: bytes


class Exchange:
    """One request and its response on a non-blocking socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def receive(self) -> Request:
        """The request; raises BadRequest or Gone."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                return await self._receive()
        except TimeoutError:
            raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the request took too long") from None
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            raise BadRequest(status, f"not HTTP: {error}") from error

    async def respond(self, response: Response) -> None:
        """Send the response; raises Gone when the client does not take it."""
        head = h11.Response(
            status_code=response.status.value,
            reason=response.status.phrase.encode(),
            headers=[
                ("Content-Type", response.content_type),
                ("Content-Length", str(len(response.body))),
                ("Connection", "close"),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ],
        )
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                await self._send((head, h11.Data(data=response.body), h11.EndOfMessage()))
        except (TimeoutError, h11.LocalProtocolError) as error:
            raise Gone("the client does not take its response") from error

    async def _receive(self) -> Request:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = await self._next_event()
            match event:
                case h11.Request():
                    head = event
                case h11.Data():
                    body += event.data
                    if len(body) > MAX_BODY_BYTES:
                        raise BadRequest(
                            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                            f"the body is larger than {MAX_BODY_BYTES} bytes",
                        )
                case h11.EndOfMessage() if head is not None:
                    return _request(head, bytes(body))
                case _:
                    raise Gone("the client closed its end")

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        loop = asyncio.get_running_loop()
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send((h11.InformationalResponse(status_code=100, headers=[]),))
            try:
                self._http.receive_data(await loop.sock_recv(self._connection, _CHUNK_BYTES))
            except OSError as error:
                raise Gone("the client is away") from error
        return event

    async def _send(self, events: Iterable[h11.Event]) -> None:
        raw = b"".join(self._http.send(event) or b"" for event in events)
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, raw)
        except TimeoutError:
            raise
        except OSError as error:
            raise Gone("the client is away") from error


def _request(head: h11.Request, body: bytes) -> Request:
    try:
        target = urlsplit(head.target.decode("ascii"))
        query = parse_qs(target.query, strict_parsing=bool(target.query), max_num_fields=8)
    except ValueError as error:
        raise BadRequest(HTTPStatus.BAD_REQUEST, f"cannot read the target: {error}") from error
    if any(len(values) > 1 for values in query.values()):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "a query parameter stands twice")
    return Request(
        method=head.method.decode("ascii"),
        path=target.path,
        query={name: values[0] for name, values in query.items()},
        body=body,
    )
