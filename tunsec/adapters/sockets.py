"""TCP connections of this network namespace, and the news that one ended."""

from typing import Final, Self

from tunsec.adapters.netlink import NetlinkSocket, Overrun
from tunsec.model.connection import Connection, ConnectionEnded, EndsLost
from tunsec.model.errors import Refused
from tunsec.wire import sock_diag
from tunsec.wire.netlink import Control, Malformed, decode_answer, messages
from tunsec.wire.sock_diag import IPV4, IPV6, NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY

ATTEMPTS: Final = 3


class Sockets:
    """Asks for connections by their port."""

    def __init__(self) -> None:
        """Open the socket; raises Refused."""
        self._socket = NetlinkSocket(NETLINK_SOCK_DIAG)
        self._seq = 0

    def connections(self, port: int) -> tuple[Connection, ...]:
        """All TCP connections with this port at either end; raises Refused or Unavailable."""
        found: list[Connection] = []
        for family in (IPV4, IPV6):
            found += self._dump(port, family)
        return tuple(found)

    def _dump(self, port: int, family: int) -> list[Connection]:
        for _ in range(ATTEMPTS):
            self._seq += 1
            try:
                self._socket.send(sock_diag.encode_dump(port, family, seq=self._seq))
                return self._answer()
            except Overrun:
                continue
            except OSError as error:
                raise Refused("list connections", errno=error.errno) from error
        raise Refused("list connections", reason="answers were lost again and again")

    def _answer(self) -> list[Connection]:
        found: list[Connection] = []
        while True:
            datagram = self._socket.receive()
            if datagram is None:
                continue
            for message in messages(datagram):
                if message.seq != self._seq:
                    continue
                if message.kind in (Control.DONE, Control.ERROR):
                    answer = decode_answer(datagram, message)
                    if answer.errno:
                        raise Refused("list connections", errno=answer.errno, reason=answer.text)
                    return found
                if message.kind == SOCK_DIAG_BY_FAMILY:
                    found.append(sock_diag.decode_connection(datagram, message))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SocketEvents:
    """Hears of every TCP socket that is destroyed, the kernel's own too."""

    def __init__(self) -> None:
        """Join the groups; raises Refused when the kernel does not tell."""
        self._socket = NetlinkSocket(
            NETLINK_SOCK_DIAG, groups=sock_diag.DESTROY_GROUPS, answer_seconds=None
        )

    def fileno(self) -> int:
        """For the loop: readable when there is something to read()."""
        return self._socket.fileno()

    def read(self) -> list[ConnectionEnded | EndsLost]:
        """Take everything that waits. Never blocks."""
        found: list[ConnectionEnded | EndsLost] = []
        while True:
            try:
                datagram = self._socket.receive(wait=False)
            except Overrun:
                found.append(EndsLost())
                continue
            if datagram is None:
                return found
            try:
                found += [
                    ConnectionEnded(sock_diag.decode_connection(datagram, message))
                    for message in messages(datagram)
                    if message.kind == SOCK_DIAG_BY_FAMILY
                ]
            except Malformed:
                found.append(EndsLost())

    def close(self) -> None:
        """Leave the groups."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
