"""One VICI connection: packets out and in, with a deadline on every wait.

The `vici` package knows the packets (vici.protocol). Its Session is not used: it waits for ever
once the first byte of an answer has come, throws away events that come before a confirmation, and
wraps charon's words in its own.
"""

import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

from vici.exception import DeserializationException
from vici.protocol import Message as Codec
from vici.protocol import Packet

from tunsec.model.errors import Refused, Unavailable
from tunsec.model.ike_sa import CharonVersion
from tunsec.wire.vici.answers import decode_version
from tunsec.wire.vici.requests import Message
from tunsec.wire.vici.values import Malformed

MAX_PACKET_BYTES: Final = 1 << 24
"""charon itself keeps to 512 KiB (VICI_MESSAGE_SIZE_MAX)."""
_HEADER: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("@iII")  # struct ucred
_RECEIVE_BYTES: Final = 1 << 16
_UNREADABLE: Final = (DeserializationException, struct.error, UnicodeDecodeError, ValueError)

Answer = Mapping[str, Any]
T = TypeVar("T")


class Received(NamedTuple):
    """A packet: an event with its name, or the answer to a request (`event` None)."""

    event: str | None
    kind: int
    body: Answer


class ViciSocket:
    """A connection to charon; one command at a time. Every method may raise Unavailable, after
    which only `close` is of use."""

    def __init__(self, path: Path, *, seconds: float) -> None:
        """Connect within so many seconds."""
        self._path = path
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"no charon on {path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of charon; 0 when it lives in a PID namespace that is not to be seen here."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(raw)
        return int(pid)

    def close(self) -> None:
        """Close; charon drops what it still had to say."""
        self._socket.close()

    def shutdown(self) -> None:
        """End the connection from another thread: a wait that is under way ends at once."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # charon was faster

    def stale(self) -> bool:
        """Whether charon has closed a connection on which nothing is under way."""
        try:
            self._socket.settimeout(0)
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def request(self, command: str, message: Message | None = None, *, seconds: float) -> Answer:
        """The answer to a command, whatever it says; raises Refused for an unknown command."""
        return self.stream(command, None, message, seconds=seconds, see=lambda _: None)

    def stream(
        self,
        command: str,
        event: str | None,
        message: Message | None = None,
        *,
        seconds: float,
        see: Callable[[Answer], None],
    ) -> Answer:
        """The answer to a command; `see` gets each event of the kind that it streams before."""
        until = time.monotonic() + seconds
        if event is not None:
            self.register(event, seconds=seconds)
        self.send(command, message)
        while (received := self._receive(until, seconds)).event is not None:
            if received.event == event:
                see(received.body)
        if received.kind != Packet.CMD_RESPONSE:
            raise Refused(command, reason="charon does not know this command")
        if event is not None:
            self._registration(Packet.unregister_event(event), until, seconds)
        return received.body

    def register(self, event: str, *, seconds: float) -> tuple[bool, list[Received]]:
        """Ask for events of a kind: whether charon has it, and events that came meanwhile."""
        until = time.monotonic() + seconds
        return self._registration(Packet.register_event(event), until, seconds)

    def send(self, command: str, message: Message | None = None) -> None:
        """Send a command; `receive` gives its answer."""
        body = None if message is None else Codec.serialize(message)
        self._send(Packet.request(command, body))

    def receive(self, *, seconds: float) -> Received | None:
        """The next packet, None when none came in time. What came of one so far is kept."""
        try:
            return self._receive(time.monotonic() + seconds, seconds)
        except _Late:
            return None

    def version(self, *, seconds: float) -> CharonVersion:
        """Who is there; raises Refused when it cannot be understood."""
        return decoded("version", lambda: decode_version(self.request("version", seconds=seconds)))

    def _registration(
        self, packet: bytes, until: float, seconds: float
    ) -> tuple[bool, list[Received]]:
        self._send(packet)
        meanwhile: list[Received] = []
        while (received := self._receive(until, seconds)).event is not None:
            meanwhile.append(received)
        return received.kind == Packet.EVENT_CONFIRM, meanwhile

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.sendall(_HEADER.pack(len(packet)) + packet)
        except OSError as error:
            raise self._gone(error) from error

    def _receive(self, until: float, seconds: float) -> Received:
        """The next packet; raises _Late, which is Unavailable, at the instant `until`."""
        while (packet := self._take_packet()) is None:
            self._socket.settimeout(max(until - time.monotonic(), 1e-3))
            try:
                received = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError as error:
                raise _Late(f"charon gave no answer within {seconds:g} s") from error
            except OSError as error:
                raise self._gone(error) from error
            if not received:
                raise Unavailable(f"charon on {self._path} has closed the connection")
            self._buffer += received
        try:
            return _parse(packet)
        except _UNREADABLE as error:
            raise Unavailable(f"charon on {self._path} sent what is no VICI packet") from error

    def _take_packet(self) -> bytes | None:
        """The first packet of the buffer, None when it is not whole yet."""
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > MAX_PACKET_BYTES:
            raise Unavailable(f"charon on {self._path} announced a packet of {size} bytes")
        end = _HEADER.size + size
        if len(self._buffer) < end:
            return None
        packet = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return packet

    def _gone(self, error: OSError) -> Unavailable:
        return Unavailable(f"charon on {self._path}: {error.strerror or error}")


class _Late(Unavailable):
    """Nothing came in time."""


def decoded(what: str, decode: Callable[[], T]) -> T:
    """What `decode` makes of an answer; one that cannot be understood is Refused."""
    try:
        return decode()
    except Malformed as error:
        raise Refused(what, reason=str(error)) from error


def _parse(packet: bytes) -> Received:
    parsed = Packet.parse(packet)
    if parsed.response_type == Packet.EVENT:
        return Received(
            parsed.event_type.decode(), parsed.response_type, Codec.deserialize(parsed.payload)
        )
    answered = parsed.response_type == Packet.CMD_RESPONSE
    return Received(
        None, parsed.response_type, Codec.deserialize(parsed.payload) if answered else {}
    )
