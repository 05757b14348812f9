"""The control API's `explain`: what is asked, and what tunsecd answers. Bodies as in control.py."""

from dataclasses import dataclass
from enum import StrEnum

from tunsec.wire.control import FlowStatus


class Verdict(StrEnum):
    """What becomes of a packet, or what an SPI is."""

    PROTECTED = "protected"
    BLOCKED = "blocked"
    CLEAR = "in clear"
    FOREIGN = "foreign"
    """Another program's SP or SA."""
    DEPENDS = "depends"
    """On a port or a VNI that was not given."""
    ELSEWHERE = "elsewhere"
    """Neither end of the packet is this host."""
    UNKNOWN = "unknown"
    """An SPI that no SA here has: gone, or never this host's."""


@dataclass(frozen=True, slots=True)
class PacketBody:
    """A packet as captured in clear; `proto` is tcp, udp or a number, None is not known."""

    proto: str
    src: str
    dst: str
    sport: int | None = None
    dport: int | None = None
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class EspBody:
    """An ESP packet as captured: its SPI, and to whom it goes if that is known."""

    spi: str
    dst: str | None = None


@dataclass(frozen=True, slots=True)
class ExplainBody:
    """One of the three: a flow (of a tenant), a packet, an ESP packet."""

    flow: str | None = None
    tenant: str | None = None
    packet: PacketBody | None = None
    esp: EspBody | None = None


@dataclass(frozen=True, slots=True)
class SpReport:
    """An SP in the kernel. `whose` is a relation of a flow, `tunsec` or `another program`.

    `when` is the condition under which it rules the packet, empty when it does; `used` is seconds
    since a packet last met it, None for never.
    """

    direction: str
    selector: str
    action: str
    priority: int
    index: int
    whose: str
    mark: str | None = None
    reqid: str | None = None
    spi: str | None = None
    used: float | None = None
    when: str = ""


@dataclass(frozen=True, slots=True)
class SaReport:
    """An SA in the kernel. `state` is its machine's word, `in_use` whether packets go on it.

    `age`, `used` and the two `*_after` are seconds since and until; `sequence` is the last number
    sent or received.
    """

    direction: str
    spi: str
    src: str
    dst: str
    reqid: str
    aead: str | None
    state: str
    in_use: bool
    age: float
    used: float | None
    carried_bytes: int
    packets: int
    esn: bool
    replay_window: int
    sequence: int
    drops: int
    mark: str | None = None
    output_mark: str | None = None
    soft_after: float | None = None
    hard_after: float | None = None
    hard_bytes: int | None = None
    hard_packets: int | None = None
    offload: str | None = None


@dataclass(frozen=True, slots=True)
class GuardReport:
    """A rule of the guard that applies, its named counter, and what it has dropped."""

    rule: str
    counter: str
    packets: int


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of a flow: how it stands, and what the kernel holds for it."""

    status: FlowStatus
    rule: str
    """The policy's, in words."""
    vni: int | None = None
    mark: str | None = None
    sps: tuple[SpReport, ...] = ()
    sas: tuple[SaReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. `why` is one sentence; `on_the_wire` is what a capture shows.

    `sps` are those that apply to the packet, in the kernel's order: the first one without `when`
    rules it.
    """

    asked: str
    verdict: str
    why: str
    on_the_wire: tuple[str, ...] = ()
    sps: tuple[SpReport, ...] = ()
    relations: tuple[Relation, ...] = ()
    guard: tuple[GuardReport, ...] = ()
    notes: tuple[str, ...] = ()
