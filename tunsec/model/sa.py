"""Security Associations: one direction each, in the kernel's SAD."""

from dataclasses import dataclass, field
from enum import StrEnum

from tunsec.model.aead import Aead
from tunsec.model.names import Address, IfId, Mark, Proto, Reqid, Spi, spi_hex
from tunsec.model.secret import Secret
from tunsec.model.selector import Selector


class IpsecMode(StrEnum):
    """XFRM_MODE_*; tunsec's own SAs are all transport."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"
    BEET = "beet"
    ROUTEOPTIMIZATION = "ro"
    IN_TRIGGER = "in_trigger"
    IPTFS = "iptfs"


class SaDirection(StrEnum):
    """XFRMA_SA_DIR, Linux 6.10 and newer."""

    INBOUND = "in"
    OUTBOUND = "out"


class OffloadKind(StrEnum):
    """How much of ESP the NIC does."""

    CRYPTO = "crypto"
    PACKET = "packet"


@dataclass(frozen=True, slots=True)
class Offload:
    """XFRMA_OFFLOAD_DEV: the device that carries the SA or SP."""

    kind: OffloadKind
    ifindex: int
    inbound: bool


@dataclass(frozen=True, slots=True)
class SaId:
    """What the kernel looks an SA up by."""

    dst: Address
    spi: Spi
    proto: Proto = Proto.ESP
    mark: Mark | None = None

    def __hash__(self) -> int:
        """Of what differs: ids are looked up all the time, and hashing an address is slow."""
        return hash((int(self.dst), self.spi, self.mark))

    def __str__(self) -> str:
        mark = f" mark {self.mark}" if self.mark else ""
        return f"{self.proto} {spi_hex(self.spi)} to {self.dst}{mark}"


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Limits of an SA or SP (struct xfrm_lifetime_cfg); None is no limit.

    `*_seconds` count from installation, `*_use_seconds` from first use.
    """

    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None
    soft_seconds: int | None = None
    hard_seconds: int | None = None
    soft_use_seconds: int | None = None
    hard_use_seconds: int | None = None


UNLIMITED = Lifetimes()


@dataclass(frozen=True, slots=True)
class Usage:
    """What went through an SA or SP (struct xfrm_lifetime_cur); times are Unix seconds, 0 never."""

    usage_bytes: int = 0
    usage_packets: int = 0
    added_at: int = 0
    used_at: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """Anti-replay state (xfrm_replay_state_esn, or xfrm_replay_state without ESN).

    `window` is in packets; `oseq` and `seq` are the last numbers sent and received, 64 bits with
    ESN (RFC 4303 section 2.2.1).
    """

    window: int = 0
    esn: bool = False
    oseq: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class SaDrops:
    """Packets an SA refused (struct xfrm_stats)."""

    replay_window: int = 0
    replay: int = 0
    integrity_failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.replay_window + self.replay + self.integrity_failed


@dataclass(frozen=True, slots=True)
class Sa:
    """One SA as we want it or as the kernel shows it.

    `key` is key and salt, given when installing and never kept from a dump. `aead` is None for
    another program's SA that uses something else. `selector` is None when it covers everything.
    """

    id: SaId
    src: Address
    reqid: Reqid
    aead: Aead | None
    key: Secret | None = field(default=None, compare=False)
    mode: IpsecMode = IpsecMode.TRANSPORT
    selector: Selector | None = None
    lifetimes: Lifetimes = UNLIMITED
    replay: Replay = Replay()
    flags: int = 0
    output_mark: Mark | None = None
    if_id: IfId | None = None
    offload: Offload | None = None
    direction: SaDirection | None = None
    cpu: int | None = None
    usage: Usage = field(default=Usage(), compare=False)
    drops: SaDrops = field(default=SaDrops(), compare=False)
    larval: bool = False
    """Allocated (ALLOCSPI) or acquired, without keys yet."""
