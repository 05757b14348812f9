"""RDS messages from one host to another: each sent back and compared byte by byte, or a stream of
numbered ones.

One process at each end, of this file, started without the rest of the package so that it starts
fast. Python's socket module knows RDS over IPv4 only, so libc is called with the addresses as the
kernel has them.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tunsec_lab.host import Host
    from tunsec_lab.process import Process

AF_RDS: Final = 21
PORT: Final = 4000
"""Of the listener's RDS socket; nothing to do with TCP's."""
LARGEST: Final = 1 << 20
"""net/rds/rds.h, RDS_MAX_MSG_SIZE."""
SIZES: Final = (1, 7, 4095, 4096, 4097, 65536, 300_001, LARGEST)
PAUSE_SECONDS: Final = 0.02
"""Between messages of a talker without an end: others need the processor too."""
BUFFER_BYTES: Final = 64 * LARGEST
"""More than a stream sends while nothing comes: RDS takes each message at once and keeps it."""
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
CLONE_NEWNET: Final = 0x40000000
NUMBERED: Final = struct.Struct("!QQ?")
"""Number, sent at (monotonic nanoseconds), whether it is the last one."""
CHECKSUM_BYTES: Final = 4
STREAM_SIZES: Final = (64, 1000, 5000)
"""Of numbered messages, in turn; the largest is more than one TCP segment."""
SILENCE_NANOSECONDS: Final = 100_000_000
"""A message that has to wait so long, and none comes before it, makes a gap."""
LOOK_NANOSECONDS: Final = 100_000_000
"""A stream looks so often at what TCP counts."""
TROUBLES: Final = ("TCPTimeouts", "ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets")
"""Counters of TCP (SNMP's and Linux's own): it had to send again or to connect."""
BEAT_NANOSECONDS: Final = 50_000_000
"""A sink wakes up so often; when it does later, nobody on this machine got the processor."""
HOLES_TOLD: Final = 8


class RdsReport(NamedTuple):
    """Messages that a talker sent, and those that came back as they had gone."""

    sent: int
    echoed: int
    bytes: int


class RdsTalk:
    """A talker on one host whose every message the other host sends back.

    `with RdsTalk(a, b, sizes=SIZES) as talk: talk.wait()`. Without sizes it goes on with messages
    of 8,000 bytes until the end of the block; then there is `talk.report`. `far` is an address that
    the other host has besides its own.
    """

    def __init__(
        self,
        source: "Host",
        target: "Host",
        *,
        version: int = 4,
        far: str = "",
        sizes: Iterable[int] = (),
        port: int = PORT,
    ) -> None:
        self.source, self.target, self.port = source, target, port
        self.near = str(source.ipv4 if version == 4 else source.ipv6)
        self.far = far or str(target.ipv4 if version == 4 else target.ipv6)
        self.sizes = tuple(sizes)
        self.report = RdsReport(0, 0, 0)

    def __enter__(self) -> "RdsTalk":
        self.echo = self._start(self.target, "echo", f"--near={self.far}")
        self.echo.wait_for_line("^ready")
        sizes = [str(size) for size in self.sizes]
        self.talker = self._start(
            self.source, "talk", f"--near={self.near}", f"--far={self.far}", *sizes
        )
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.stop()

    def _start(self, host: "Host", role: str, *options: str) -> "Process":
        return program(host, role, f"--port={self.port}", *options)

    def progress(self) -> int:
        """Messages that have come back so far."""
        return self.talker.output().count("back ")

    def wait_for_more(self, count: int = 6, *, timeout: float = 30.0) -> None:
        """Until so many more messages are back."""
        self.talker.wait_for_line(rf"^back {self.progress() + count}$", timeout=timeout)

    def wait(self, *, timeout: float = 60.0) -> RdsReport:
        """Until every message of the given sizes is back."""
        said = json.loads(self.talker.wait_for_line(r"^\{.*\}$", timeout=timeout).group())
        self.report = RdsReport(said["sent"], said["echoed"], said["bytes"])
        return self.report

    def stop(self) -> RdsReport:
        """Ends both ends; the message under way still comes back."""
        self.talker.signal(signal.SIGTERM)
        self.wait()
        self.talker.wait()
        self.echo.terminate()
        return self.report


def program(host: "Host", role: str, *options: str) -> "Process":
    """An end of this file's on a host."""
    argv = [sys.executable, "-I", "-S", __file__, role, *options]
    return host.spawn(argv, name=f"rds-{role}")


def tcp_connections(host: "Host") -> list[str]:
    """Those of RDS in the kernel, as `ss` shows them; the listening ones left out."""
    listed = host.run(["ss", "-Htn", "sport = :16385 or dport = :16385"]).stdout
    return listed.splitlines()


# -- the two ends, as programs ----------------------------------------------------------------


class RdsSocket:
    """A bound RDS socket of either family."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.socket(AF_RDS, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self.taken = ctypes.create_string_buffer(LARGEST + 1)
        self.libc = ctypes.CDLL(None, use_errno=True)
        name = socket_address(address, port)
        self._checked(self.libc.bind(self.socket.fileno(), name, len(name)))

    def send(self, message: bytes, name: bytes) -> None:
        """To a socket address; returns when RDS has it."""
        self._checked(
            self.libc.sendto(
                self.socket.fileno(), message, ctypes.c_size_t(len(message)), 0, name, len(name)
            )
        )

    def receive(self, flags: int = 0) -> tuple[bytes, bytes]:
        """A message, and the socket address it came from."""
        name, length = ctypes.create_string_buffer(28), ctypes.c_uint(28)
        taken = self._checked(
            self.libc.recvfrom(
                self.socket.fileno(),
                self.taken,
                ctypes.c_size_t(len(self.taken)),
                flags,
                name,
                ctypes.byref(length),
            )
        )
        return ctypes.string_at(self.taken, taken), name.raw[: length.value]

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def socket_address(address: str, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return struct.pack("=H2sI16sI", socket.AF_INET6, port.to_bytes(2), 0, packed, 0)
    packed = socket.inet_aton(address)
    return struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2), packed)


def echo(options: argparse.Namespace) -> None:
    sock = RdsSocket(options.near, options.port)
    print("ready", flush=True)
    while True:
        sock.send(*sock.receive())


def talk(options: argparse.Namespace) -> None:
    """One message at a time; a message of another size or content than was sent does not count."""
    sock, far = RdsSocket(options.near, 0), socket_address(options.far, options.port)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    signal.siginterrupt(signal.SIGTERM, False)
    sizes = iter(options.sizes) if options.sizes else iter(lambda: 8000, 0)
    sent = echoed = total = 0
    for size in sizes:
        if stopping:
            break
        message = os.urandom(size)
        sock.send(message, far)
        sent += 1
        back, _ = sock.receive()
        echoed += back == message
        total += size
        print(f"back {sent}", flush=True)
        time.sleep(0.0 if options.sizes else PAUSE_SECONDS)
    print(json.dumps({"sent": sent, "echoed": echoed, "bytes": total}), flush=True)


def stream(options: argparse.Namespace) -> None:
    """Numbered messages at a rate, each to so many ports; the last one at SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sock = RdsSocket(options.near, 0)
    ports = range(options.port, options.port + options.copies)
    names = [socket_address(options.far, port) for port in ports]
    print("ready", flush=True)
    start = time.monotonic()
    sent = sent_at = looked_at = 0
    counted, troubled_at = 0, []
    last = False
    while not last:
        ahead = start + sent / options.rate - time.monotonic()
        last = signal.sigtimedwait({signal.SIGTERM}, max(0.0, ahead)) is not None
        sent_at = time.monotonic_ns()
        message = numbered(sent, sent_at, last=last)
        for name in names:
            sock.send(message, name)
        sent += 1
        if sent_at - looked_at >= LOOK_NANOSECONDS:
            looked_at, before, counted = sent_at, counted, tcp_troubles()
            troubled_at += [sent_at] if counted != before else []
    said = {
        "sent": sent,
        "refused": 0,
        "began_at": int(start * 1e9),
        "ended_at": sent_at,
        "troubled_at": troubled_at,
    }
    print(json.dumps(said), flush=True)


def tcp_troubles() -> int:
    """How often TCP had any, in this namespace."""
    total = 0
    for table in ("snmp", "netstat"):
        with open(f"/proc/self/net/{table}") as file:  # noqa: PTH123 - pathlib starts slowly
            lines = file.read().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counters = dict(zip(names.split(), values.split(), strict=True))
            total += sum(int(counters.get(name, 0)) for name in TROUBLES)
    return total


def sink(options: argparse.Namespace) -> None:
    """Takes what comes in any of the namespaces, each at a port of its own, until the last message
    of the stream or SIGTERM."""
    sockets = {}
    for port, netns in enumerate(options.netns, start=options.port):
        enter(netns)
        sock = RdsSocket(options.near, port)
        sockets[sock.socket.fileno()] = sock
    poll = select.poll()
    for number in sockets:
        poll.register(number, select.POLLIN)
    arrivals = Arrivals()
    signal.signal(signal.SIGTERM, raise_told)
    print("ready", flush=True)
    beat_at = time.monotonic_ns()
    try:
        while not arrivals.ended:
            ready = poll.poll(BEAT_NANOSECONDS / 1e6)
            slept_at, beat_at = beat_at, time.monotonic_ns()
            arrivals.late(beat_at - slept_at - BEAT_NANOSECONDS)
            for number, _ in ready:
                # RDS also wakes whoever waits when there is nothing to be read.
                with suppress(BlockingIOError):
                    message, _ = sockets[number].receive(socket.MSG_DONTWAIT)
                    arrivals.take(message, time.monotonic_ns())
    except Told:
        pass
    print(json.dumps(arrivals.summary()), flush=True)


def enter(netns: str) -> None:
    """From now on this process makes its sockets in a network namespace."""
    opened = os.open(netns, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(opened, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), netns)
    os.close(opened)


class Told(Exception):
    """SIGTERM: the last message does not come."""


def raise_told(*_: object) -> None:
    raise Told


def numbered(number: int, sent_at: int, *, last: bool = False) -> bytes:
    """A message that tells whether it came as it was sent."""
    size = STREAM_SIZES[number % len(STREAM_SIZES)]
    body = NUMBERED.pack(number, sent_at, last)
    body += os.urandom(size - len(body) - CHECKSUM_BYTES)
    return body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES)


class Arrivals:
    """What became of a stream's messages, of which RDS promises that each comes once, unaltered and
    in order. `received` are those that did."""

    def __init__(self) -> None:
        self.ended = False
        self.highest = -1
        self.missing: set[int] = set()
        self.in_order = self.duplicated = self.reordered = self.altered = 0
        self.first_at = self.last_at = 0
        self.gaps: list[tuple[int, int]] = []
        self.longest_gap = self.longest_delay = 0
        self.lateness = 0

    def late(self, nanoseconds: int) -> None:
        """So long, if at all, the machine had no time for this process: no message waited for that
        time on account of the network."""
        self.lateness += max(0, nanoseconds)

    def take(self, message: bytes, now: int) -> None:
        """A message came at an instant, in nanoseconds."""
        body, checksum = message[:-CHECKSUM_BYTES], message[-CHECKSUM_BYTES:]
        if zlib.crc32(body).to_bytes(CHECKSUM_BYTES) != checksum:
            self.altered += 1
            return
        number, sent_at, last = NUMBERED.unpack_from(body)
        if number > self.highest:
            self.missing.update(range(self.highest + 1, number))
            self.highest = number
            self.in_order += 1
        elif number in self.missing:
            self.missing.remove(number)
            self.reordered += 1
        else:
            self.duplicated += 1
        self._wait(sent_at, now)
        self.ended |= last

    def _wait(self, sent_at: int, now: int) -> None:
        """Nothing came from the last message to this one. What was not sent did not have to wait:
        a sender that got no processor makes no gap, and neither does this process."""
        if now - max(self.last_at, sent_at) - self.lateness >= SILENCE_NANOSECONDS:
            self.gaps.append((self.last_at or sent_at, now))
        self.lateness = 0
        if self.last_at:
            self.longest_gap = max(self.longest_gap, now - self.last_at)
        self.longest_delay = max(self.longest_delay, now - sent_at)
        self.first_at = self.first_at or now
        self.last_at = now

    def summary(self) -> dict[str, object]:
        """As the probe of packets tells it (probe.py)."""
        return {
            "highest": self.highest,
            "holes": [(number, 1) for number in sorted(self.missing)[:HOLES_TOLD]],
            "received": self.in_order - self.duplicated,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "altered": self.altered,
            "gaps": self.gaps,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "longest_gap_ms": self.longest_gap / 1e6,
            "longest_delay_ms": self.longest_delay / 1e6,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("talk", "echo", "stream", "sink"))
    parser.add_argument("--near", required=True)
    parser.add_argument("--far", default="")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--netns", nargs="*", default=[])
    parser.add_argument("sizes", type=int, nargs="*")
    options = parser.parse_args(arguments)
    {"talk": talk, "echo": echo, "stream": stream, "sink": sink}[options.role](options)


if __name__ == "__main__":
    main()
