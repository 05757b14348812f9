"""Which packets on a wire are clear and which are not. Pure: bytes in, verdicts out.

The rules are strict where the wire is not: a fragment without ports counts as clear if any
protected flow of its protocol and address pair could own it and its first fragment was not seen
to be something else.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.topology import Address

ETHERNET_BYTES: Final = 14
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_IPV6: Final = 0x86DD
ICMP, TCP, UDP, ESP, ICMPV6 = 1, 6, 17, 50, 58
FRAGMENT_HEADER: Final = 44
EXTENSION_HEADERS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options
# MLD (130-132, 143), router and neighbour discovery (133-137).
ICMPV6_CONTROL: Final = frozenset({*range(130, 138), 143})
ICMP_ERRORS: Final = frozenset({3, 4, 5, 11, 12})
ICMPV6_ERRORS: Final = frozenset({1, 2, 3, 4})
IKE_PORT: Final = 500
NAT_T_PORT: Final = 4500
NON_ESP_MARKER: Final = bytes(4)  # RFC 3948 section 2.2
LONGEST_ESP_START: Final = ETHERNET_BYTES + 40 + 4  # up to the SPI behind an IPv6 header
FRAGMENTS_KEPT: Final = 4096
EXAMPLES_KEPT: Final = 20
OTHERS_KEPT: Final = 64


class FlowKind(StrEnum):
    VXLAN = "vxlan"
    GENEVE = "geneve"
    RDS_TCP = "rds-tcp"
    ROCEV2 = "rocev2"
    TCP = "tcp"
    UDP = "udp"


# Protocol, port, and whether the port also marks a packet as source port.
WIRE: Final = {
    FlowKind.VXLAN: (UDP, 4789, False),
    FlowKind.GENEVE: (UDP, 6081, False),
    FlowKind.RDS_TCP: (TCP, 16385, True),
    FlowKind.ROCEV2: (UDP, 4791, False),
    FlowKind.TCP: (TCP, 0, True),
    FlowKind.UDP: (UDP, 0, True),
}


@dataclass(frozen=True, slots=True)
class Protected:
    """A flow no packet of which may be clear.

    `port` is needed for tcp and udp and may move the others. `between`: only packets from an
    address of one group to one of the other; without it, any packet.
    """

    kind: FlowKind
    port: int = 0
    between: tuple[frozenset[Address], frozenset[Address]] | None = None

    def __post_init__(self) -> None:
        if not self.port and not WIRE[self.kind][1]:
            raise LabError(f"a protected {self.kind} flow needs its port")

    @property
    def proto(self) -> int:
        return WIRE[self.kind][0]

    @property
    def wire_port(self) -> int:
        return self.port or WIRE[self.kind][1]

    @property
    def either_port(self) -> bool:
        return WIRE[self.kind][2]

    def owns_pair(self, src: bytes, dst: bytes) -> bool:
        if self.between is None:
            return True
        one, other = (frozenset(address.packed for address in side) for side in self.between)
        return (src in one and dst in other) or (src in other and dst in one)

    def owns_ports(self, sport: int, dport: int) -> bool:
        return dport == self.wire_port or (self.either_port and sport == self.wire_port)


def protect(
    kind: FlowKind | str,
    *,
    port: int = 0,
    between: tuple[Iterable[Address], Iterable[Address]] | None = None,
) -> Protected:
    """Short way to write a matcher: protect("vxlan"), protect("tcp", port=5432)."""
    sides = None if between is None else (frozenset(between[0]), frozenset(between[1]))
    return Protected(FlowKind(kind), port, sides)


class Verdict(StrEnum):
    CLEAR = "clear"  # a packet of a protected flow, readable
    ESP = "esp"
    IKE = "ike"
    CONTROL = "control"  # ARP, neighbour discovery, MLD
    QUOTED = "quoted"  # an ICMP error that carries the start of a clear packet of a protected flow
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class EspFlow:
    """One direction of an SA as the wire shows it."""

    src: Address
    dst: Address
    spi: int

    def __str__(self) -> str:
        return f"{self.src} -> {self.dst} spi {self.spi:08x}"


@dataclass(frozen=True, slots=True)
class ClearPacket:
    """`at` is in wall-clock seconds."""

    at: float
    port: str
    summary: str

    def __str__(self) -> str:
        return f"{self.at:.6f} {self.port} {self.summary}"


@dataclass(slots=True)
class Counts:
    """What a wire carried."""

    clear: int = 0
    clear_examples: list[ClearPacket] = field(default_factory=list)
    esp: Counter[bytes] = field(default_factory=Counter)
    """Keyed by source, destination and SPI as they stand in the packet."""
    ike: int = 0
    control: int = 0
    quoted: int = 0
    other: int = 0
    other_kinds: Counter[str] = field(default_factory=Counter)

    def esp_flows(self) -> dict[EspFlow, int]:
        return {esp_flow(key): count for key, count in self.esp.items()}

    def copy(self) -> "Counts":
        return Counts(
            self.clear,
            list(self.clear_examples),
            self.esp.copy(),
            self.ike,
            self.control,
            self.quoted,
            self.other,
            self.other_kinds.copy(),
        )


def esp_flow(key: bytes) -> EspFlow:
    half = (len(key) - 4) // 2
    src, dst, spi = key[:half], key[half:-4], key[-4:]
    return EspFlow(ip_address(src), ip_address(dst), int.from_bytes(spi))


class Classifier:
    """Judges frames one after the other; remembers fragments."""

    def __init__(self, protected: Iterable[Protected]) -> None:
        self.protected = tuple(protected)
        self.counts = Counts()
        self.fragments: dict[bytes, bool] = {}

    def see(self, frame: bytes, at: float, port: str) -> Verdict:
        """Judges and counts one Ethernet frame (its first 128 bytes are enough)."""
        counts = self.counts
        ethertype = frame[12:14]
        # The two ways nearly every packet of a protected wire looks, first.
        if len(frame) < LONGEST_ESP_START:
            pass
        elif ethertype == b"\x08\x00" and frame[23] == ESP and frame[14] == 0x45:
            if not frame[20] & 0x1F and not frame[21]:
                counts.esp[frame[26:38]] += 1
                return Verdict.ESP
        elif ethertype == b"\x86\xdd" and frame[20] == ESP:
            counts.esp[frame[22:58]] += 1
            return Verdict.ESP
        verdict, summary = self.judge(frame)
        match verdict:
            case Verdict.CLEAR:
                counts.clear += 1
                if len(counts.clear_examples) < EXAMPLES_KEPT:
                    counts.clear_examples.append(ClearPacket(at, port, summary))
            case Verdict.ESP:
                pass  # counted by its SPI in judge_ip, or a fragment of one that was
            case Verdict.IKE:
                counts.ike += 1
            case Verdict.CONTROL:
                counts.control += 1
            case Verdict.QUOTED:
                counts.quoted += 1
            case Verdict.OTHER:
                counts.other += 1
                if summary in counts.other_kinds or len(counts.other_kinds) < OTHERS_KEPT:
                    counts.other_kinds[summary] += 1
        return verdict

    def judge(self, frame: bytes) -> tuple[Verdict, str]:
        if len(frame) < ETHERNET_BYTES:
            return Verdict.OTHER, "runt"
        ethertype = int.from_bytes(frame[12:14])
        if ethertype == ETHERTYPE_ARP:
            return Verdict.CONTROL, "arp"
        if ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            return Verdict.OTHER, f"ethertype {ethertype:04x}"
        return self.judge_ip(frame[ETHERNET_BYTES:])

    def judge_ip(self, packet: bytes, *, quoted: bool = False) -> tuple[Verdict, str]:
        try:
            layer = parse_ip(packet)
        except (IndexError, struct.error):
            return Verdict.OTHER, "truncated ip"
        owners = [
            flow
            for flow in self.protected
            if flow.proto == layer.proto and flow.owns_pair(layer.src, layer.dst)
        ]
        if layer.offset:
            return self.judge_later_fragment(layer, owners)
        verdict = self.judge_payload(layer, owners, quoted=quoted)
        if layer.more:
            self.remember(layer, clear=verdict is Verdict.CLEAR)
        return verdict, summary_of(layer)

    def judge_later_fragment(
        self, layer: "IpLayer", owners: list[Protected]
    ) -> tuple[Verdict, str]:
        if layer.proto == ESP:
            return Verdict.ESP, summary_of(layer)
        is_clear = self.fragments.get(layer.fragment_key(), bool(owners))
        return (Verdict.CLEAR if is_clear and owners else Verdict.OTHER), summary_of(layer)

    def remember(self, layer: "IpLayer", *, clear: bool) -> None:
        if len(self.fragments) >= FRAGMENTS_KEPT:
            self.fragments.clear()
        self.fragments[layer.fragment_key()] = clear

    def judge_payload(self, layer: "IpLayer", owners: list[Protected], *, quoted: bool) -> Verdict:
        payload = layer.payload
        if layer.proto == ESP and len(payload) >= 4:
            self.count_esp(layer, payload[:4], quoted=quoted)
            return Verdict.ESP
        if layer.proto in (TCP, UDP):
            if len(payload) < 4:  # too short to tell its ports: on purpose or by a bug, not closed
                return Verdict.CLEAR if owners else Verdict.OTHER
            sport, dport = struct.unpack_from("!HH", payload)
            if any(flow.owns_ports(sport, dport) for flow in owners):
                return Verdict.CLEAR
            if layer.proto == UDP and NAT_T_PORT in (sport, dport) and len(payload) >= 12:
                if payload[8:12] == NON_ESP_MARKER:
                    return Verdict.IKE
                self.count_esp(layer, payload[8:12], quoted=quoted)
                return Verdict.ESP
            if layer.proto == UDP and IKE_PORT in (sport, dport):
                return Verdict.IKE
            return Verdict.OTHER
        return self.judge_icmp(layer, quoted=quoted)

    def count_esp(self, layer: "IpLayer", spi: bytes, *, quoted: bool) -> None:
        if not quoted:
            self.counts.esp[layer.src + layer.dst + spi] += 1

    def judge_icmp(self, layer: "IpLayer", *, quoted: bool) -> Verdict:
        if not layer.payload or layer.proto not in (ICMP, ICMPV6):
            return Verdict.OTHER
        kind = layer.payload[0]
        if layer.proto == ICMPV6 and kind in ICMPV6_CONTROL:
            return Verdict.CONTROL
        errors = ICMP_ERRORS if layer.proto == ICMP else ICMPV6_ERRORS
        if kind in errors and not quoted and len(layer.payload) > 8:
            inside, _ = self.judge_ip(bytes(layer.payload[8:]), quoted=True)
            return Verdict.QUOTED if inside is Verdict.CLEAR else Verdict.OTHER
        return Verdict.OTHER


@dataclass(frozen=True, slots=True)
class IpLayer:
    version: int
    src: bytes
    dst: bytes
    proto: int
    payload: bytes
    ident: bytes
    offset: int
    more: bool

    def fragment_key(self) -> bytes:
        return self.src + self.dst + self.ident + bytes([self.proto])


def parse_ip(packet: bytes) -> IpLayer:
    """Raises IndexError or struct.error if the packet ends within its headers."""
    if len(packet) < (20 if packet[0] >> 4 == 4 else 40):
        raise IndexError("shorter than its IP header")
    if packet[0] >> 4 == 4:
        start = (packet[0] & 0x0F) * 4
        bits = int.from_bytes(packet[6:8])
        return IpLayer(
            4,
            packet[12:16],
            packet[16:20],
            packet[9],
            packet[start:],
            packet[4:6],
            bits & 0x1FFF,
            bool(bits & 0x2000),
        )
    return parse_ipv6(packet)


def parse_ipv6(packet: bytes) -> IpLayer:
    proto, start = packet[6], 40
    ident, offset, more = b"", 0, False
    while proto in EXTENSION_HEADERS or proto == FRAGMENT_HEADER:
        if proto == FRAGMENT_HEADER:
            (bits,) = struct.unpack_from("!H", packet, start + 2)
            offset, more = bits >> 3, bool(bits & 1)
            ident = packet[start + 4 : start + 8]
            length = 8
        else:
            length = (packet[start + 1] + 1) * 8
        proto = packet[start]
        start += length
        if offset:
            break  # what follows is payload, not a header
    return IpLayer(6, packet[8:24], packet[24:40], proto, packet[start:], ident, offset, more)


PROTO_NAMES: Final = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ESP: "esp", ICMPV6: "icmpv6"}


def summary_of(layer: IpLayer) -> str:
    name = PROTO_NAMES.get(layer.proto, f"proto {layer.proto}")
    src, dst = ip_address(layer.src), ip_address(layer.dst)
    if layer.offset:
        return f"{name} {src} > {dst} fragment at {layer.offset * 8}"
    if layer.proto in (TCP, UDP) and len(layer.payload) >= 4:
        sport, dport = struct.unpack_from("!HH", layer.payload)
        return f"{name} {src}.{sport} > {dst}.{dport}"
    return f"{name} {src} > {dst}"


def sample_frames(flow: Protected) -> Iterator[bytes]:
    """A clear frame of the flow in each family it can have: a watch must recognise them."""
    ports = struct.pack("!HHHH", 49152, flow.wire_port, 8, 0) + bytes(12)
    for version in (4, 6):
        pair = sample_pair(flow, version)
        if pair is None:
            continue
        src, dst = pair
        if version == 4:
            header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, flow.proto, 0) + src + dst
            yield bytes(12) + b"\x08\x00" + header + ports
        else:
            header = struct.pack("!IHBB", 6 << 28, 20, flow.proto, 64) + src + dst
            yield bytes(12) + b"\x86\xdd" + header + ports


def sample_pair(flow: Protected, version: int) -> tuple[bytes, bytes] | None:
    if flow.between is None:
        length = 4 if version == 4 else 16
        return bytes(length - 1) + b"\1", bytes(length - 1) + b"\2"
    one, other = (
        sorted(ip.packed for ip in side if ip.version == version) for side in flow.between
    )
    return (one[0], other[0]) if one and other else None
