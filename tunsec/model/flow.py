"""What an admin declares: kinds of flows, ways to protect them and to agree on keys."""

from dataclasses import dataclass
from enum import StrEnum

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.names import Address, FlowName, HostName, Mark, Reqid, TenantName
from tunsec.model.selector import Selector


class Kind(StrEnum):
    """What the kernel tunnels."""

    VXLAN = "vxlan"
    GENEVE = "geneve"
    RDS_TCP = "rds-tcp"
    ROCEV2 = "rocev2"
    TCP = "tcp"
    UDP = "udp"


class Mode(StrEnum):
    """How a flow is protected."""

    ESP = "esp"
    KTLS = "ktls"


class Keying(StrEnum):
    """How the two hosts agree on ESP keys."""

    DIRECTORY = "directory"
    IKE = "ike"


class OnReconnect(StrEnum):
    """What a new transport connection of a flow needs."""

    REAUTH = "reauth"
    REKEY = "rekey"
    KEEP = "keep"


class OffloadWish(StrEnum):
    """What a flow asks of the NIC."""

    NONE = "none"
    CRYPTO = "crypto"
    PACKET = "packet"
    AUTO = "auto"


class SequenceNumbers(StrEnum):
    """How long the sequence numbers of a flow's SAs are; both ends must agree."""

    EXTENDED = "64-bit"  # ESN, RFC 4303 section 2.2.1
    SHORT = "32-bit"


@dataclass(frozen=True, slots=True)
class RekeyRule:
    """When traffic keys are replaced, and when they end even if they could not be.

    Spans in seconds; counts per SA; None is no limit; `jitter` is the fraction of `after` by
    which a rollover may come early.
    """

    after: Seconds
    jitter: float
    hard_after: Seconds
    soft_bytes: int | None
    soft_packets: int | None


@dataclass(frozen=True, slots=True)
class ChildId:
    """One protected relation of this host: a flow (of a tenant) with a peer between two addresses.

    It has one SA in each direction at a time, and both hosts name it alike, with `local` and
    `remote` exchanged.
    """

    peer: HostName
    flow: FlowName
    tenant: TenantName | None
    local: Address
    remote: Address

    def __hash__(self) -> int:
        """Ids are looked up all the time, and hashing an address is slow."""
        ends = int(self.local), int(self.remote)
        return hash((self.peer, self.flow, self.tenant, *ends))

    def __str__(self) -> str:
        tenant = f"/{self.tenant}" if self.tenant else ""
        return f"{self.flow}{tenant} {self.local} - {self.peer} {self.remote}"


@dataclass(frozen=True, slots=True)
class Child:
    """A child with everything the kernel needs but its SPIs and keys."""

    id: ChildId
    kind: Kind
    keying: Keying
    reqid: Reqid
    outbound: tuple[Selector, ...]
    inbound: tuple[Selector, ...]
    priority: int
    rekey: RekeyRule
    aeads: tuple[Aead, ...]
    """What the policy allows; one name when it fixes it."""
    replay_window: int
    offload: OffloadWish = OffloadWish.NONE
    on_reconnect: OnReconnect = OnReconnect.KEEP
    esn: bool = True
    """Whether sequence numbers have 64 bits."""
    mark: Mark | None = None
    """What tells its packets from those of the flow's other tenants: its SPs match it, and what its
    inbound SAs decrypt bears it. None where a flow has no tenants."""
