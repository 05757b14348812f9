"""The daemon's control API over its Unix socket. Blocking, one request a connection."""

import math
import socket
import struct
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlencode

from tunsec.cli.exits import Exit
from tunsec.wire.control import (
    ApplyReport,
    ErrorBody,
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

ANSWER_TIMEOUT: Final = 60.0
"""Seconds; more than any long poll (daemon/control.py) or change of policy takes."""
ROOM_TO_ANSWER: Final = 5.0
"""Seconds beyond those for which the daemon is asked to wait."""
MAX_ANSWER_BYTES: Final = 64 << 20

Body = TypeVar("Body")


class Failed(Exception):
    """The command cannot go on: one line for the operator, and its exit status."""

    def __init__(
        self, what: str, status: Exit, *, remedy: str = "", body: ErrorBody | None = None
    ) -> None:
        self.what = what
        self.status = status
        self.remedy = remedy
        self.body = body
        super().__init__(f"{what} ({remedy})" if remedy else what)


class Client:
    """Asks the tunsecd that listens on `path`. Every method raises Failed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def status(self, *, wait: float = 0.0) -> Status:
        """How things stand; with `wait`, when something changes or that many seconds pass."""
        query = f"?{urlencode({'wait': wait})}" if wait else ""
        return self._ask(Status, "GET", f"/status{query}")

    def explain(self, body: ExplainBody) -> Explanation:
        """What becomes of a packet, how a flow stands, or whose an SPI is."""
        return self._ask(Explanation, "POST", "/explain", body)

    def plan(self, policy: PolicyBody | None) -> PlanReport:
        """What a policy would change; without one, what is still to be done."""
        if policy is None:
            return self._ask(PlanReport, "GET", "/plan")
        return self._ask(PlanReport, "POST", "/plan", policy)

    def apply(self, policy: PolicyBody) -> ApplyReport:
        """Replace the policy in force."""
        return self._ask(ApplyReport, "POST", "/apply", policy)

    def reload(self) -> ApplyReport:
        """Have policy and identity read again."""
        return self._ask(ApplyReport, "POST", "/reload")

    def release(self, flow: str | None) -> ReleaseReport:
        """Stop managing a flow, or all."""
        return self._ask(ReleaseReport, "POST", "/release", ReleaseBody(flow))

    def wait(self, flow: str | None, timeout: float) -> WaitReport:
        """Wait at most `timeout` seconds; the daemon may answer sooner."""
        patience = timeout + ROOM_TO_ANSWER
        body = WaitBody(flow, timeout)
        return self._ask(WaitReport, "POST", "/wait", body, patience=patience)

    def metrics(self) -> str:
        """The Prometheus text."""
        return self._exchange("GET", "/metrics").decode()

    def _ask(
        self,
        shape: type[Body],
        method: str,
        path: str,
        body: object = None,
        *,
        patience: float = ANSWER_TIMEOUT,
    ) -> Body:
        answer = self._exchange(method, path, body, patience=patience)
        try:
            return decode(shape, answer)
        except Malformed as error:
            raise Failed(
                f"tunsecd speaks another version of the control API: {error}",
                Exit.BROKEN,
                remedy="restart it after an upgrade",
            ) from error

    def _exchange(
        self, method: str, path: str, body: object = None, *, patience: float = ANSWER_TIMEOUT
    ) -> bytes:
        connection = _UnixConnection(self._path, patience)
        try:
            connection.request(
                method,
                path,
                body=None if body is None else encode(body),
                headers={"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Failed(
                f"tunsecd is not running here, nobody listens on {self._path}",
                Exit.AWAY,
                remedy="start it with `systemctl start tunsecd`",
            ) from error
        except PermissionError as error:
            raise Failed(
                f"{self._path} is not open to you",
                Exit.DENIED,
                remedy="use sudo, or join the group tunsec",
            ) from error
        except (OSError, HTTPException) as error:
            raise Failed(
                f"tunsecd on {self._path} does not answer: {str(error) or type(error).__name__}",
                Exit.AWAY,
                remedy="see `journalctl -u tunsecd`",
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise _failure(response.status, answer)
        return answer


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, patience: float) -> None:
        super().__init__("tunsecd", timeout=patience)
        self._path = path
        self._patience = patience

    def connect(self) -> None:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The socket blocks until it is connected: a full backlog is EAGAIN for others.
            patience = struct.pack("@ll", math.ceil(self._patience), 0)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
            opened.connect(str(self._path))
            opened.settimeout(self._patience)
        except BaseException:
            opened.close()
            raise
        self.sock = opened


def _failure(status: int, answer: bytes) -> Failed:
    try:
        body = decode(ErrorBody, answer)
    except Malformed:
        return Failed(f"tunsecd answered with HTTP status {status}", Exit.BROKEN)
    exits = {
        "policy": Exit.NO,
        "unavailable": Exit.AWAY,
        "denied": Exit.DENIED,
        "refused": Exit.REFUSED,
        "request": Exit.USAGE,
    }
    return Failed(body.message, exits.get(body.kind, Exit.BROKEN), body=body)
