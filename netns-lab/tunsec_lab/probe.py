"""A steady stream of numbered packets from one host to another: what was lost, for how long.

One process at each end, of this file, started without the rest of the package so that it starts
fast. The receiver waits in select and the sender in sleep, so in virtual time waiting is free.
"""

import argparse
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType

    from tunsec_lab.host import Host
    from tunsec_lab.process import Process

PACKET: Final = struct.Struct("!QQ")  # sequence number, sent at (monotonic nanoseconds)
PORT: Final = 9999
RECEIVE_BUFFER_BYTES: Final = 1 << 23
SO_RCVBUFFORCE: Final = 33
LINGER_SECONDS: Final = 1.0  # packets still on their way when the sender has stopped
HOLES_TOLD: Final = 8
GAP_NANOSECONDS: Final = 10_000_000
"""Packets that are missing for so long make a gap."""
IP_FREEBIND: Final = 15
IPV6_FREEBIND: Final = 78


class ProbeReport(NamedTuple):
    """`longest_gap_ms` is between two packets that arrived one after the other.

    `refused` packets never left: the sender's own kernel said no. `holes` are the first packets
    that are missing, as (number, how many). `gaps` are the spans of at least 10 ms without a
    packet in which some were lost, from the last one that came to the next. Instants are
    monotonic seconds, of which namespaces have but one kind; 0.0 where there was no packet.
    """

    sent: int
    received: int
    duplicated: int
    reordered: int
    longest_gap_ms: float
    longest_delay_ms: float
    refused: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    began_at: float = 0.0
    """When the first packet was sent; `ended_at`: the last one."""
    ended_at: float = 0.0
    first_at: float = 0.0
    """When the first packet came; `last_at`: the last one."""
    last_at: float = 0.0

    @property
    def lost(self) -> int:
        return self.sent - self.received


class Probe:
    """`with Probe(a, b, to=address, rate=1000) as probe: ...`, then `probe.report`.

    With `count` it ends by itself: `probe.wait()` returns when all packets are sent.
    """

    def __init__(
        self,
        source: "Host",
        target: "Host",
        *,
        to: object,
        rate: float = 1000.0,
        count: int = 0,
        port: int = PORT,
        size: int = 64,
    ) -> None:
        self.source, self.target = source, target
        self.to, self.port = str(to), port
        self.options = [f"--rate={rate}", f"--count={count}", f"--size={size}"]
        self.report = ProbeReport(0, 0, 0, 0, 0.0, 0.0)

    def __enter__(self) -> "Probe":
        self.receiver = self._start(self.target, "receive")
        self.receiver.wait_for_line("^ready")
        self.sender = self._start(self.source, "send", *self.options)
        self.sender.wait_for_line("^ready")
        return self

    def _start(self, host: "Host", role: str, *options: str) -> "Process":
        end = [f"--address={self.to}", f"--port={self.port}"]
        argv = [sys.executable, "-I", "-S", __file__, role, *end, *options]
        return host.spawn(argv, name=f"probe-{role}")

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        trace: "TracebackType | None",
    ) -> None:
        if error is None:
            self.stop()

    def wait(self, *, timeout: float = 1e9) -> None:
        self.sender.wait(timeout=timeout)

    def stop(self) -> ProbeReport:
        """Ends both ends; what is still on its way is waited for."""
        said = self._end(self.sender)
        heard = self._end(self.receiver)
        holes = [(int(first), int(count)) for first, count in heard["holes"]]
        if said["sent"] > heard["highest"] + 1:
            holes.append((heard["highest"] + 1, said["sent"] - heard["highest"] - 1))
        self.report = ProbeReport(
            said["sent"],
            heard["received"],
            heard["duplicated"],
            heard["reordered"],
            heard["longest_gap_ms"],
            heard["longest_delay_ms"],
            said["refused"],
            tuple(holes),
            tuple((began / 1e9, ended / 1e9) for began, ended in heard["gaps"]),
            *(instant / 1e9 for instant in (said["began_at"], said["ended_at"])),
            *(instant / 1e9 for instant in (heard["first_at"], heard["last_at"])),
        )
        return self.report

    @staticmethod
    def _end(process: "Process") -> dict[str, Any]:
        process.signal(signal.SIGTERM)
        process.wait()
        line = process.wait_for_line(r"^\{.*\}$").group()
        said: dict[str, Any] = json.loads(line)
        return said


# -- the two ends, as programs ----------------------------------------------------------------


def open_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM)


def send(options: argparse.Namespace) -> None:
    """Keeps the rate on average: after a delay it catches up.

    It looks for SIGTERM only between packets: what is counted as sent was sent.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sock = open_socket(options.address)
    padding = bytes(max(0, options.size - PACKET.size))
    sent = refused = sent_at = 0
    print("ready", flush=True)
    start = time.monotonic()
    while not options.count or sent < options.count:
        ahead = start + sent / options.rate - time.monotonic()
        if signal.sigtimedwait({signal.SIGTERM}, max(0.0, ahead)) is not None:
            break
        sent_at = time.monotonic_ns()
        try:
            # Not connected: a host that was just switched on may have no route yet.
            sock.sendto(PACKET.pack(sent, sent_at) + padding, (options.address, options.port))
        except OSError:  # no route, blocked by a policy, refused: a lost packet
            refused += 1
        sent += 1
    said = {"sent": sent, "refused": refused, "began_at": int(start * 1e9), "ended_at": sent_at}
    print(json.dumps(said), flush=True)


def receive(options: argparse.Namespace) -> None:
    sock = open_socket(options.address)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    # On a host that was just switched on the address may still be on a device that is down.
    if sock.family is socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    sock.bind((options.address, options.port))
    sock.setblocking(False)
    tally = Tally()
    told = told_by_sigterm()
    print("ready", flush=True)
    watched, patience = [sock.fileno(), told], None
    while True:
        try:
            packet = sock.recv(2048)
        except BlockingIOError:
            ready, _, _ = select.select(watched, [], [], patience)
            if told in ready:
                # Packets may still be under way.
                watched, patience = [sock.fileno()], LINGER_SECONDS
            elif not ready:
                break
        else:
            tally.take(packet, time.monotonic_ns())
    print(json.dumps(tally.summary()), flush=True)


def told_by_sigterm() -> int:
    """A descriptor that is readable once SIGTERM has come. (A handler that raises could do so
    between a packet and its being counted.)"""
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return told


class Tally:
    """Counts packets by their numbers."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.below = 0  # every number below has come; keeps `seen` small
        self.received = self.duplicated = self.reordered = 0
        self.highest = -1
        self.first_at = self.last_at = 0
        self.gaps: list[tuple[int, int, int, int]] = []
        self.longest_gap = self.longest_delay = 0

    def take(self, packet: bytes, now: int) -> None:
        number, sent_at = PACKET.unpack_from(packet)
        if number < self.below or number in self.seen:
            self.duplicated += 1
            return
        self.received += 1
        if self.last_at and number > self.highest + 1 and now - self.last_at >= GAP_NANOSECONDS:
            self.gaps.append((self.last_at, now, self.highest + 1, number))
        if number < self.highest:
            self.reordered += 1
        self.highest = max(self.highest, number)
        self.seen.add(number)
        while self.below in self.seen:
            self.seen.remove(self.below)
            self.below += 1
        if self.last_at:
            self.longest_gap = max(self.longest_gap, now - self.last_at)
        else:
            self.first_at = now
        self.longest_delay = max(self.longest_delay, now - sent_at)
        self.last_at = now

    def holes(self) -> list[tuple[int, int]]:
        """What is missing below the highest number that came."""
        found: list[tuple[int, int]] = []
        at = self.below
        for number in sorted(self.seen):
            if number > at:
                found.append((at, number - at))
            at = number + 1
        return found[:HOLES_TOLD]

    def silent(self) -> list[tuple[int, int]]:
        """From when to when nothing came, where what was missing then never came."""
        return [
            (began, ended)
            for began, ended, first, beyond in self.gaps
            if any(n >= self.below and n not in self.seen for n in range(first, beyond))
        ]

    def summary(self) -> dict[str, object]:
        return {
            "highest": self.highest,
            "holes": self.holes(),
            "received": self.received,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "gaps": self.silent(),
            "first_at": self.first_at,
            "last_at": self.last_at,
            "longest_gap_ms": self.longest_gap / 1e6,
            "longest_delay_ms": self.longest_delay / 1e6,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("send", "receive"))
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args(arguments)
    if options.role == "send":
        send(options)
    else:
        receive(options)


if __name__ == "__main__":
    main()
