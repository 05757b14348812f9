"""The control socket: who may ask, what can be asked, and how the answer travels.

Decides nothing about flows: it calls a ControlTarget. A client can be slow, hostile or many; it
costs a bounded amount of memory and time, and never the daemon.
"""

import asyncio
import contextlib
import errno
import grp
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar

from tunsec.daemon import metrics
from tunsec.daemon.http import BadRequest, Exchange, Gone, Request, Response
from tunsec.daemon.socket_file import SocketFile
from tunsec.model.errors import Bug, PolicyError, Refused, Unavailable
from tunsec.wire.control import (
    ApplyReport,
    ErrorBody,
    FlowStatus,
    Malformed,
    PlanReport,
    PolicyBody,
    ReleaseBody,
    ReleaseReport,
    Status,
    WaitBody,
    WaitReport,
    decode,
    encode,
)
from tunsec.wire.control_explain import ExplainBody, Explanation

MAX_CONNECTIONS: Final = 64
MAX_WAITING: Final = 48
"""Connections that may be in a long poll at once, so that others still get an answer."""
MAX_POLL: Final = 25.0
"""Seconds after which a long poll is answered as things stand; the client asks again."""
COALESCE: Final = 0.05
"""Seconds between a change and the look at it: changes come in bursts, and a look reads the
kernel."""
MAX_READERS: Final = 16
"""Connections of users who may not change anything."""
ACCEPT_PAUSE: Final = 0.2
"""Seconds to wait when there is no file descriptor for another client."""
CONTROL_GROUP: Final = "tunsec"

_SO_PEERGROUPS: Final = 59
_PEERGROUPS_BYTES: Final = 1024  # as many as socket.getsockopt() takes
_UCRED: Final = struct.Struct("=iII")
_READABLE: Final = ("/status", "/metrics")
_SHORTAGES: Final = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_JSON: Final = "application/json"

log = logging.getLogger("tunsec.control")

Body = TypeVar("Body")


class ControlTarget(Protocol):
    """What the control API acts on. Errors are the four of model.errors."""

    def status(self) -> Status:
        """How things stand now."""
        ...

    def flows(self) -> tuple[FlowStatus, ...]:
        """How flows stand, without asking the kernel: no counters."""
        ...

    async def explain(self, body: ExplainBody) -> Explanation:
        """Which rule covers what is asked, and what the kernel does with it now."""
        ...

    async def plan(self, policy: PolicyBody | None) -> PlanReport:
        """What applying a policy would change; None: what the policy in force still wants."""
        ...

    async def apply(self, policy: PolicyBody) -> ApplyReport:
        """Replace the policy in force; it stays on any error."""
        ...

    async def reload(self) -> ApplyReport:
        """Read policy and identity from their files again."""
        ...

    async def release(self, flow: str | None) -> ReleaseReport:
        """Stop managing a flow, or all: their traffic may go in clear from now on."""
        ...

    async def changed(self) -> None:
        """Returns when the status may have changed. Must not suspend before it listens."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the socket: root, the daemon's own user and members of `gid`. Others may read
    status and metrics if `anyone_reads`."""

    gid: int | None
    anyone_reads: bool = False

    @classmethod
    def of_group(cls, name: str = CONTROL_GROUP, *, anyone_reads: bool = False) -> Self:
        """Access for a group by name; for root and the daemon's user alone if it is not there."""
        try:
            return cls(grp.getgrnam(name).gr_gid, anyone_reads)
        except KeyError:
            return cls(None, anyone_reads)


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end, as the kernel vouches for it (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gids: frozenset[int]


Endpoint = Callable[[Request], Awaitable[Response]]


class ControlServer:
    """Listens on a Unix socket. `run()` serves until it is cancelled."""

    def __init__(self, path: Path, target: ControlTarget, *, access: Access) -> None:
        """Binds at once, so that a socket that is there answers soon.

        Raises Refused when another daemon listens, Unavailable when the path cannot be used.
        """
        self._target = target
        self._access = access
        self._waiting = 0
        self._readers = 0
        mode = 0o666 if access.anyone_reads else 0o660
        self._socket_file = SocketFile(path, mode=mode, gid=access.gid)
        self._endpoints: dict[tuple[str, str], Endpoint] = {
            ("GET", "/status"): self._status,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/explain"): self._explain,
            ("GET", "/plan"): self._plan_now,
            ("POST", "/plan"): self._plan,
            ("POST", "/apply"): self._apply,
            ("POST", "/reload"): self._reload,
            ("POST", "/release"): self._release,
            ("POST", "/wait"): self._wait,
        }

    async def run(self) -> None:
        """Serve. Ends with an exception group when a Bug shows; block SPs stay."""
        slots = asyncio.Semaphore(MAX_CONNECTIONS)
        async with asyncio.TaskGroup() as clients:
            while True:
                await slots.acquire()
                try:
                    connection = await self._accepted()
                except OSError as error:
                    slots.release()
                    if error.errno not in _SHORTAGES:
                        raise Unavailable(f"the control socket broke: {error}") from error
                    await asyncio.sleep(ACCEPT_PAUSE)
                    continue
                task = clients.create_task(self._serve(connection))
                task.add_done_callback(partial(_ended, connection, slots))

    async def _accepted(self) -> socket.socket:
        """The next client. `loop.sock_accept` would leave one open that it has accepted in the
        moment in which the server ends."""
        while True:
            try:
                connection, _ = self._socket_file.listener.accept()
            except BlockingIOError:
                await _readable(self._socket_file.listener)
            else:
                return connection

    def close(self) -> None:
        """Stop listening and take the socket file away, if it is still ours."""
        self._socket_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            exchange = Exchange(connection)
            try:
                await exchange.respond(await self._answer(connection, exchange))
                _finish(connection)
            except Gone:
                return
            except Exception as error:
                bug = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "bug", f"tunsecd stops: {error!r}")
                with contextlib.suppress(Gone):
                    await exchange.respond(bug)
                raise Bug(f"control: {error!r}") from error

    async def _answer(self, connection: socket.socket, exchange: Exchange) -> Response:
        caller = _caller(connection)
        trusted = caller.uid in (0, os.geteuid()) or self._access.gid in caller.gids
        try:
            with self._seat(trusted=trusted):
                request = await exchange.receive()
                endpoint = self._endpoint(request)
                if not trusted and not (self._access.anyone_reads and request.path in _READABLE):
                    log.warning("control request denied uid=%d pid=%d", caller.uid, caller.pid)
                    return _error(HTTPStatus.FORBIDDEN, "denied", _denial(caller))
                return await endpoint(request)
        except BadRequest as error:
            return _error(error.status, "request", str(error))
        except Malformed as error:
            return _error(HTTPStatus.BAD_REQUEST, "request", str(error))
        except PolicyError as error:
            body = ErrorBody("policy", "the policy is not taken", error.problems)
            return Response(HTTPStatus.UNPROCESSABLE_ENTITY, _JSON, encode(body))
        except Unavailable as error:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))
        except Refused as error:
            return _error(HTTPStatus.CONFLICT, "refused", str(error))

    @contextlib.contextmanager
    def _seat(self, *, trusted: bool) -> Iterator[None]:
        """A place for a client; those who may only read never take them all."""
        if trusted:
            yield
            return
        if self._readers >= MAX_READERS:
            raise Unavailable("too many clients at once: try again later")
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def _endpoint(self, request: Request) -> Endpoint:
        found = self._endpoints.get((request.method, request.path))
        if found is not None:
            return found
        if any(path == request.path for _, path in self._endpoints):
            raise BadRequest(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} does not take {request.method}"
            )
        known = ", ".join(sorted({path for _, path in self._endpoints}))
        raise BadRequest(HTTPStatus.NOT_FOUND, f"there is no {request.path} ({known})")

    async def _status(self, request: Request) -> Response:
        """`?wait=SECONDS` answers when something has changed, or then."""
        wait = _seconds(request.query.get("wait", "0"))
        if wait > 0:
            await self._poll(lambda: False, wait, once=True)
        return _json(self._target.status())

    async def _metrics(self, _: Request) -> Response:
        return Response(
            HTTPStatus.OK, metrics.CONTENT_TYPE, metrics.exposition(self._target.status)
        )

    async def _explain(self, request: Request) -> Response:
        body = decode(ExplainBody, request.body)
        self._check_flow(body.flow)
        return _json(await self._target.explain(body))

    async def _plan_now(self, _: Request) -> Response:
        return _json(await self._target.plan(None))

    async def _plan(self, request: Request) -> Response:
        return _json(await self._target.plan(decode(PolicyBody, request.body)))

    async def _apply(self, request: Request) -> Response:
        return _json(await self._target.apply(decode(PolicyBody, request.body)))

    async def _reload(self, _: Request) -> Response:
        return _json(await self._target.reload())

    async def _release(self, request: Request) -> Response:
        body = decode(ReleaseBody, request.body)
        self._check_flow(body.flow)
        return _json(await self._target.release(body.flow))

    async def _wait(self, request: Request) -> Response:
        body = decode(WaitBody, request.body)
        self._check_flow(body.flow)
        await self._poll(lambda: not self._waiting_for(body.flow), body.timeout, once=False)
        waiting = self._waiting_for(body.flow)
        return _json(WaitReport(protected=not waiting, waiting_for=waiting))

    async def _poll(self, done: Callable[[], bool], seconds: float, *, once: bool) -> None:
        """Until done, until the first change if `once`, or until time is up."""
        if done() or seconds <= 0:
            return
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many clients wait already: try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(min(seconds, MAX_POLL)):
                while not done():
                    await self._target.changed()
                    await asyncio.sleep(COALESCE)  # what changes meanwhile is seen by done()
                    if once:
                        return
        except TimeoutError:
            return
        finally:
            self._waiting -= 1

    def _waiting_for(self, flow: str | None) -> tuple[str, ...]:
        return tuple(
            f"{one.flow} {one.peer}: {one.reason or one.state}"
            for one in self._target.flows()
            if not one.protected and (one.declared if flow is None else one.flow == flow)
        )

    def _check_flow(self, flow: str | None) -> None:
        if flow is None:
            return
        known = sorted({one.flow for one in self._target.flows()})
        if flow not in known:
            raise BadRequest(
                HTTPStatus.NOT_FOUND,
                f"there is no flow {flow!r} on this host ({', '.join(known) or 'it has none'})",
            )


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


def _ended(connection: socket.socket, slots: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    """A client is done with, or was cut off before anybody had begun with it."""
    connection.close()
    slots.release()


def _json(body: object) -> Response:
    return Response(HTTPStatus.OK, _JSON, encode(body))


def _error(status: HTTPStatus, kind: str, message: str) -> Response:
    return Response(status, _JSON, encode(ErrorBody(kind, message)))


def _denial(caller: Caller) -> str:
    return f"user {caller.uid} may not do this: be root or a member of group {CONTROL_GROUP}"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise BadRequest(HTTPStatus.BAD_REQUEST, f"wait={text!r} is no number of seconds")
    return seconds


def _caller(connection: socket.socket) -> Caller:
    pid, uid, gid = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_BYTES)
    except OSError:
        raw = b""  # in more groups than fit: its first group still counts
    groups = struct.unpack(f"={len(raw) // 4}I", raw)
    return Caller(pid, uid, frozenset((gid, *groups)))


def _finish(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
