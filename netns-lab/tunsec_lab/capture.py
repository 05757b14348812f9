"""The leak watch: sees every packet that enters the wires of a lab, and fails on a clear one.

One AF_PACKET socket in the switch namespace hears all ports, those of hosts that are made anew
too. A frame is counted where it enters the switch, so each is counted once and before anything
the wire may do to it. Frames come through a memory-mapped ring; if the kernel had to drop one,
the watch is an error and never a pass.
"""

import contextlib
import ctypes
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.host import MARK_IN, MARK_OUT, Lab
from tunsec_lab.namespaces import inside
from tunsec_lab.packets import (
    ESP,
    ETHERNET_BYTES,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Classifier,
    ClearPacket,
    EspFlow,
    Protected,
    Verdict,
    sample_frames,
)

ETH_P_ALL: Final = 3
SOL_PACKET: Final = 263
SO_ATTACH_FILTER: Final = 26
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V2: Final = 1
TP_STATUS_USER: Final = 1
TP_STATUS_KERNEL: Final = bytes(4)
RING_HEADER: Final = struct.Struct("=IIIHHII")  # struct tpacket2_hdr up to tp_nsec
LINK_ADDRESS_AT: Final = 32  # struct sockaddr_ll behind it; its ifindex is 4 bytes further
SNAP_BYTES: Final = 144
FRAME_BYTES: Final = 256
BLOCK_BYTES: Final = 1 << 20
BLOCKS: Final = 16  # 65,536 frames: 3 s of 20,000 packets a second
SETTLE_SECONDS: Final = 10.0
MARK_TYPE: Final = b"\x88\xb5"  # IEEE 802 local experimental ethertype
MARK: Final = struct.Struct("!Q")

# Classic BPF (linux/filter.h): load half word or byte, jump if equal, return.
LDW, LDH, LDB, JEQ, RET = 0x20, 0x28, 0x30, 0x15, 0x06
PACKET_TYPE_AT: Final = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
PACKET_OUTGOING: Final = 4


class LeakFound(AssertionError):
    """A clear packet of a protected flow was on the wire, or the watch cannot vouch for none."""


@dataclass(frozen=True)
class Report:
    """What a watch saw from its start until now."""

    clear: int
    clear_examples: tuple[ClearPacket, ...]
    esp: int
    esp_flows: dict[EspFlow, int]
    """Packets per SA; empty in a watch that only counts ESP."""
    ike: int
    control: int
    quoted: int
    """ICMP errors that carry the start of a clear packet of a protected flow."""
    other: int
    other_kinds: dict[str, int]
    dropped: int
    """Packets the watch could not take."""
    proven: int
    """Clear packets it saw while protection was off, in `prove_sees`."""

    def assert_closed(self, *, needs_esp: bool = True, needs_proof: bool = True) -> None:
        """Raises unless not one protected packet was clear and the watch can vouch for it."""
        if self.dropped:
            raise LeakFound(f"the watch lost {self.dropped} packets and cannot vouch for them")
        if self.clear:
            shown = "\n".join(f"  {packet}" for packet in self.clear_examples)
            raise LeakFound(f"{self.clear} clear packets of protected flows:\n{shown}")
        if needs_esp and not self.esp:
            raise LeakFound("no clear packet, but no ESP packet either: nothing was tested")
        if needs_proof and not self.proven:
            raise LeakFound("the watch was never shown clear packets (prove_sees)")

    def __str__(self) -> str:
        return (
            f"clear {self.clear}, esp {self.esp} in {len(self.esp_flows)} SAs, ike {self.ike}, "
            f"control {self.control}, other {self.other}, dropped {self.dropped}"
        )


class LeakWatch:
    """Watches all wires of a lab for packets of protected flows.

    `count_esp_only` leaves ESP packets in the kernel and only counts them (no SPIs), for
    throughput tests that the watch must not slow down.
    """

    def __init__(
        self, lab: Lab, *, protected: Iterable[Protected], count_esp_only: bool = False
    ) -> None:
        self.lab = lab
        self.protected = tuple(protected)
        self.count_esp_only = count_esp_only
        self.classifier = Classifier(self.protected)
        self.dropped = 0
        self.esp_counted = 0
        self.proven = 0
        self.failure: BaseException | None = None
        self.open = False

    # -- life -------------------------------------------------------------------------------

    def __enter__(self) -> "LeakWatch":
        self._stack = contextlib.ExitStack()
        try:
            self._open()
            self._prove_itself()
        except BaseException:
            self._stop()
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._settle()
                self._prove_itself()
        finally:
            self._stop()
            self._stack.close()

    def _open(self) -> None:
        keep = self._stack.enter_context
        with inside(self.lab.switch):
            # They hear from here on; making the ring throws away what came before the filter.
            ring_socket = keep(packet_socket(ETH_P_ALL))
            counter = keep(packet_socket(ETH_P_ALL if self.count_esp_only else 0))
            marker = keep(packet_socket(0))
            self.mark_index = socket.if_nametoindex(MARK_OUT)
            marker.bind((MARK_IN, 0))
        self.ring_socket, self.marker, self.counter = ring_socket, marker, counter
        esp_taken = 0 if self.count_esp_only else SNAP_BYTES
        attach_filter(ring_socket, frame_program(esp=esp_taken, rest=SNAP_BYTES))
        self.ring = Ring(ring_socket)
        self._stack.callback(self.ring.close)
        if self.count_esp_only:
            # A socket that nobody reads: its statistics count what passed its filter.
            attach_filter(counter, frame_program(esp=1, rest=0))
            counter.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        self.arrived = threading.Condition()
        self.mark_sent = self.mark_seen = 0
        self.marked_verdicts: list[Verdict] = []
        self.ports: dict[int, str] = {}
        wake_read, self.wake_write = os.pipe()
        self._stack.callback(os.close, wake_read)
        self._stack.callback(os.close, self.wake_write)
        self.reader = threading.Thread(
            target=self._read, args=(wake_read,), name="leak watch", daemon=True
        )
        for sock in (ring_socket, counter):
            statistics(sock)
        self.reader.start()
        self.open = True

    def _stop(self) -> None:
        if self.open:
            os.write(self.wake_write, b".")
            self.reader.join(SETTLE_SECONDS)
            self._take_statistics()
        self.open = False

    # -- what the scenario asks -------------------------------------------------------------

    def report(self) -> Report:
        """Everything that was on the wire before this call."""
        if self.open:
            self._settle()
        counts = self.classifier.counts
        flows = counts.esp_flows()
        return Report(
            clear=counts.clear,
            clear_examples=tuple(counts.clear_examples),
            esp=sum(flows.values()) + self.esp_counted,
            esp_flows=flows,
            ike=counts.ike,
            control=counts.control,
            quoted=counts.quoted,
            other=counts.other,
            other_kinds=dict(counts.other_kinds),
            dropped=self.dropped,
            proven=self.proven,
        )

    def prove_sees(self, action: Callable[[], object]) -> int:
        """With protection off, `action` sends clear packets: this watch must count them.

        Nothing that is on the wire during `action` is held against the scenario, so an action in
        the middle of one also turns protection off and on again. Returns how many there were.
        """
        self._settle()
        before = self.classifier.counts.copy()
        esp_before = self.esp_counted
        action()
        self._settle()
        seen = self.classifier.counts.clear - before.clear
        self.classifier.counts = before
        self.esp_counted = esp_before
        if not seen:
            raise LeakFound("with protection off the watch saw no clear packet: it is blind")
        self.proven += seen
        return seen

    def assert_closed(self, *, needs_esp: bool = True, needs_proof: bool = True) -> None:
        self.report().assert_closed(needs_esp=needs_esp, needs_proof=needs_proof)

    # -- how it works -----------------------------------------------------------------------

    def _prove_itself(self) -> None:
        """Sends a sample of each protected flow through its own pair of devices."""
        frames = [frame for flow in self.protected for frame in sample_frames(flow)]
        del self.marked_verdicts[:]
        for frame in frames:
            self.marker.send(frame)
        self._settle()
        if self.marked_verdicts != [Verdict.CLEAR] * len(frames):
            raise LeakFound(f"the watch took clear samples for {self.marked_verdicts}")

    def _settle(self) -> None:
        """Returns when everything that was on the wire by now has been judged."""
        self.mark_sent += 1
        self.marker.send(bytes(12) + MARK_TYPE + MARK.pack(self.mark_sent))
        with self.arrived:
            came = self.arrived.wait_for(
                lambda: self.mark_seen >= self.mark_sent or self.failure is not None,
                SETTLE_SECONDS,
            )
        if self.failure:
            raise LabError(f"the leak watch failed: {self.failure!r}") from self.failure
        if not came:
            self._take_statistics()
            raise LeakFound(f"the watch is deaf ({self.dropped} packets dropped)")
        self._take_statistics()

    def _take_statistics(self) -> None:
        """The kernel's counters go to zero as they are read."""
        self.dropped += statistics(self.ring_socket)[1]
        if self.count_esp_only:
            self.esp_counted += statistics(self.counter)[0]

    def _read(self, wake: int) -> None:
        poll = select.poll()
        poll.register(self.ring_socket, select.POLLIN | select.POLLERR)
        poll.register(wake, select.POLLIN)
        try:
            while not any(descriptor == wake for descriptor, _ in poll.poll()):
                self.ring.drain(self._take)
        except BaseException as error:  # noqa: BLE001 - told to the scenario by _settle
            with self.arrived:
                self.failure = error
                self.arrived.notify_all()

    def _take(self, frame: bytes, interface: int, at: float) -> None:
        if interface == self.mark_index:
            self._take_mark(frame)
            return
        port = self.ports.get(interface)
        if port is None:
            port = self.ports[interface] = self._port_name(interface)
        # What a bridge passes up to the switch itself was counted at its port.
        if port:
            self.classifier.see(frame, at, port)

    def _take_mark(self, frame: bytes) -> None:
        if frame[12:14] == MARK_TYPE:
            with self.arrived:
                (self.mark_seen,) = MARK.unpack_from(frame, 14)
                self.arrived.notify_all()
        else:
            verdict, _ = self.classifier.judge(frame)
            self.marked_verdicts.append(verdict)

    def _port_name(self, interface: int) -> str:
        """Empty for a bridge."""
        try:
            with inside(self.lab.switch):
                name = socket.if_indextoname(interface)
        except OSError:  # the host was destroyed meanwhile; its last packets still count
            return f"port {interface}"
        return name if "." in name else ""


class Ring:
    """PACKET_RX_RING, version 2: one slot a frame, no timer that would tick in virtual time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        frames = BLOCKS * BLOCK_BYTES // FRAME_BYTES
        wanted = struct.pack("=IIII", BLOCK_BYTES, BLOCKS, FRAME_BYTES, frames)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, wanted)
        self.size = BLOCKS * BLOCK_BYTES
        self.memory = mmap.mmap(sock.fileno(), self.size)
        self.position = 0

    def close(self) -> None:
        self.memory.close()

    def drain(self, take: Callable[[bytes, int, float], None]) -> None:
        """Hands over every frame that is there and gives its slot back."""
        memory, at = self.memory, self.position
        while True:
            status, _, kept, begin, _, seconds, nanoseconds = RING_HEADER.unpack_from(memory, at)
            if not status & TP_STATUS_USER:
                break
            start = at + begin
            frame = memory[start : start + kept]
            (interface,) = struct.unpack_from("=i", memory, at + LINK_ADDRESS_AT + 4)
            memory[at : at + 4] = TP_STATUS_KERNEL
            at = (at + FRAME_BYTES) % self.size
            self.position = at
            take(frame, interface, seconds + nanoseconds / 1e9)


def packet_socket(ethertype: int) -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))


def statistics(sock: socket.socket) -> tuple[int, int]:
    """Packets that passed the filter (dropped ones too), and dropped ones, since the last call."""
    packets, drops = struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return packets, drops


def frame_program(*, esp: int, rest: int) -> bytes:
    """A filter for frames that enter the switch: how many bytes to take of ESP and of others."""
    lines = (
        (LDW, 0, 0, PACKET_TYPE_AT),
        (JEQ, 9, 0, PACKET_OUTGOING),
        (LDH, 0, 0, 12),
        (JEQ, 0, 2, ETHERTYPE_IPV4),
        (LDB, 0, 0, ETHERNET_BYTES + 9),
        (JEQ, 4, 3, ESP),
        (JEQ, 0, 2, ETHERTYPE_IPV6),
        (LDB, 0, 0, ETHERNET_BYTES + 6),
        (JEQ, 1, 0, ESP),
        (RET, 0, 0, rest),
        (RET, 0, 0, esp),
        (RET, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def attach_filter(sock: socket.socket, program: bytes) -> None:
    memory = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: number of instructions and where they are.
    pointer = struct.pack("@HP", len(program) // 8, ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
