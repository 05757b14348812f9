"""A raw netlink socket: bytes out, datagrams in, errors translated once.

Only datagrams that the kernel itself sent are taken. The receive buffer is one and the same for
every datagram and is overwritten when the socket closes, since a dump of SAs carries keys.
"""

import errno
import socket
import struct
from array import array
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from tunsec.model.errors import Refused, Unavailable
from tunsec.wire.netlink import Malformed

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10  # errors repeat the header only, not the request with its keys
_NETLINK_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26
_BPF_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_BPF_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_BPF_RETURN: Final = 0x06  # BPF_RET | BPF_K: how many bytes pass
_BPF_INSTRUCTION: Final = struct.Struct("=HBBI")
_WHOLE_DATAGRAM: Final = 0xFFFF_FFFF
_PORTID_AT: Final = 12  # struct nlmsghdr.nlmsg_pid
_DATAGRAM_BYTES: Final = 1 << 16  # netlink_dump fills at most 32 KiB
_NOTICES_BYTES: Final = 1 << 20
_NOTICE_BYTES: Final = 1 << 18
ANSWER_SECONDS: Final = 5.0  # the kernel answers within `send`; only a fault makes us wait


class Overrun(Exception):
    """The kernel dropped datagrams for this socket (ENOBUFS)."""


class NetlinkSocket:
    """One AF_NETLINK socket in the network namespace of the calling thread."""

    def __init__(
        self,
        protocol: int,
        *,
        groups: Iterable[int] = (),
        receive_bytes: int = 1 << 22,
        answer_seconds: float | None = ANSWER_SECONDS,
    ) -> None:
        """Open and bind; `receive_bytes` is what may wait unread. Raises Refused.

        `answer_seconds` is how long `receive` waits; None is not at all, for an event lane.
        """
        self._buffer = bytearray(_DATAGRAM_BYTES)
        self._view = memoryview(self._buffer)
        self._answer_seconds = answer_seconds
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            reason = "the kernel lacks this netlink family (for XFRM: CONFIG_XFRM_USER)"
            raise Refused(f"open netlink {protocol}", errno=error.errno, reason=reason) from error
        try:
            self._prepare(groups, receive_bytes)
        except OSError as error:
            self._socket.close()
            raise Refused(
                f"bind netlink {protocol}", errno=error.errno, reason=error.strerror or ""
            ) from error

    def _prepare(self, groups: Iterable[int], receive_bytes: int) -> None:
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._size_buffer(_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_bytes)
        self._size_buffer(_SO_SNDBUFFORCE, socket.SO_SNDBUF, 4 * _DATAGRAM_BYTES)
        self._socket.bind((0, sum(1 << (group - 1) for group in set(groups))))
        if self._answer_seconds is None:
            self._socket.setblocking(False)
        else:
            whole, part = divmod(self._answer_seconds, 1)
            wait = struct.pack("@ll", int(whole), int(part * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def _size_buffer(self, force: int, plain: int, size: int) -> None:
        """Beyond net.core.*mem_max with CAP_NET_ADMIN, else as far as that goes."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, plain, size)

    def refuse_portids(self, portids: Iterable[int]) -> None:
        """From now on the kernel drops notifications of requests that bore one of these numbers.

        A classic BPF filter on nlmsg_pid, which stands in host order where BPF loads in network
        order (Documentation/networking/filter.rst).
        """
        tests = [socket.htonl(portid) for portid in portids]
        if not tests:
            return
        program = [(_BPF_LOAD_WORD, 0, 0, _PORTID_AT)]
        for left, number in zip(reversed(range(len(tests))), tests, strict=True):
            program.append((_BPF_JUMP_EQUAL, left + 1, 0, number))
        program += [(_BPF_RETURN, 0, 0, _WHOLE_DATAGRAM), (_BPF_RETURN, 0, 0, 0)]
        code = array("B", b"".join(_BPF_INSTRUCTION.pack(*row) for row in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(program), code.buffer_info()[0]),
        )

    @property
    def send_bytes(self) -> int:
        """The longest datagram that one `send` takes (netlink_sendmsg: sk_sndbuf less 32)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32

    def fileno(self) -> int:
        """For select, poll and asyncio."""
        return self._socket.fileno()

    def send(self, datagram: bytes | bytearray) -> None:
        """One send; the kernel has carried out every request in it on return. Raises OSError."""
        self._socket.sendto(datagram, (0, 0))

    def receive(self, *, wait: bool = True) -> memoryview | None:
        """The next datagram, valid until the next call; None when nothing waits.

        Raises Overrun when the kernel dropped some, Unavailable when nothing came in time.
        """
        while True:
            try:
                size, sender = self._socket.recvfrom_into(
                    self._view, 0, 0 if wait else socket.MSG_DONTWAIT
                )
            except BlockingIOError as error:
                if wait and self._answer_seconds is not None:
                    what = f"the kernel gave no netlink answer within {self._answer_seconds:g} s"
                    raise Unavailable(what) from error
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Overrun from error
                raise Unavailable(f"netlink receive: {error.strerror}") from error
            if sender[0] == 0:
                return self._view[:size]

    def close(self) -> None:
        """Close, and overwrite what was received last."""
        self._socket.close()
        self._buffer[:] = bytes(len(self._buffer))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Monitor:
    """Hears what the kernel tells of its own accord in this network namespace, our own changes
    included."""

    def __init__(self, protocol: int, groups: Iterable[int], *, what: str) -> None:
        """Joins groups; raises Unavailable when the kernel lacks the family or one of them."""
        self._what = what
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NOTICES_BYTES)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise Unavailable(f"cannot watch {what}: {error.strerror}") from error

    def fileno(self) -> int:
        """For the loop: readable when there is something to read()."""
        return self._socket.fileno()

    def _take(self, note: Callable[[bytes], None]) -> bool:
        """Gives `note`, which may raise Malformed, every datagram that waits; whether some were
        lost or make no sense. Never blocks."""
        lost = False
        while True:
            try:
                datagram, (sender, _) = self._socket.recvfrom(_NOTICE_BYTES)
                if sender == 0:  # the kernel; other processes may send to us too
                    note(datagram)
            except BlockingIOError:
                return lost
            except Malformed:
                lost = True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise Unavailable(f"cannot watch {self._what}: {error.strerror}") from error
                lost = True

    def close(self) -> None:
        """Leave the groups."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TouchMonitor(Monitor):
    """Hears of every change of one kind."""

    def __init__(
        self, protocol: int, group: int, *, what: str, touches: Callable[[bytes], bool]
    ) -> None:
        """Joins a group; `touches` tells whether a datagram is of something of ours, or raises
        Malformed. Raises Unavailable when the kernel lacks the family or the group."""
        super().__init__(protocol, (group,), what=what)
        self._touches = touches

    def read(self) -> bool:
        """Take everything that waits; whether something of ours may have been touched.

        True as well when notifications were lost, or one makes no sense. Never blocks.
        """
        touched = False

        def look(datagram: bytes) -> None:
            nonlocal touched
            touched = touched or self._touches(datagram)

        return self._take(look) or touched
