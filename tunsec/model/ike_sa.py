"""IKE_SAs and CHILD_SAs as charon tells of them: lists, events, what it can do."""

from dataclasses import dataclass
from enum import StrEnum

from tunsec.model.aead import Aead
from tunsec.model.names import Address, Mark, Reqid, Spi


class IkeState(StrEnum):
    """States of an IKE_SA (sa/ike_sa.h)."""

    CREATED = "CREATED"
    CONNECTING = "CONNECTING"
    ESTABLISHED = "ESTABLISHED"
    PASSIVE = "PASSIVE"
    REKEYING = "REKEYING"
    REKEYED = "REKEYED"
    DELETING = "DELETING"
    DESTROYING = "DESTROYING"
    OTHER = "OTHER"  # a state of a charon newer than this list


class ChildState(StrEnum):
    """States of a CHILD_SA (sa/child_sa.h)."""

    CREATED = "CREATED"
    ROUTED = "ROUTED"
    INSTALLING = "INSTALLING"
    INSTALLED = "INSTALLED"
    UPDATING = "UPDATING"
    REKEYING = "REKEYING"
    REKEYED = "REKEYED"
    RETRYING = "RETRYING"
    DELETING = "DELETING"
    DELETED = "DELETED"
    DESTROYING = "DESTROYING"
    OTHER = "OTHER"  # a state of a charon newer than this list


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through a CHILD_SA one way."""

    volume: int
    """Bytes."""
    packets: int
    idle_for: int | None
    """Seconds since the last packet; None when there was none."""


@dataclass(frozen=True, slots=True)
class ChildSaKeyed:
    """The part of a CHILD_SA that exists once it has keys. Spans are seconds from now on."""

    spi_in: Spi
    spi_out: Spi
    aead: Aead | None
    """None for an algorithm that tunsec does not use."""
    esn: bool
    udp_encapsulated: bool
    key_exchanges: tuple[str, ...]
    """charon's names; empty for the first CHILD_SA, whose keys come of the IKE_SA's exchange."""
    mark_in: Mark | None
    mark_out: Mark | None
    inbound: Traffic
    outbound: Traffic
    installed_for: int
    rekey_in: int | None
    ends_in: int | None


@dataclass(frozen=True, slots=True)
class ChildSa:
    """A pair of SAs as charon sees it; `name` is its configuration's."""

    name: str
    id: int
    reqid: Reqid
    state: ChildState
    mode: str
    """TRANSPORT, TUNNEL, ..."""
    label: str | None
    local: tuple[str, ...]
    """Traffic selectors in charon's writing, to be shown only."""
    remote: tuple[str, ...]
    keyed: ChildSaKeyed | None


@dataclass(frozen=True, slots=True)
class IkeRef:
    """Which IKE_SA is meant. charon counts ids from 1 after each start: the SPI makes it one."""

    name: str
    id: int
    initiator_spi: int


@dataclass(frozen=True, slots=True)
class IkeSa:
    """An authenticated parent (or one on its way); `name` is its configuration's."""

    name: str
    id: int
    state: IkeState
    version: int
    """IKE version, 2 for ours."""
    initiator: bool
    local: Address | None
    remote: Address | None
    """None before charon has settled on one."""
    local_identity: str
    remote_identity: str
    """Proven only when the state is ESTABLISHED or later."""
    initiator_spi: int
    responder_spi: int
    algorithms: tuple[str, ...]
    """Cipher, PRF and key exchanges in charon's names."""
    ppk: bool
    """Whether a PPK was mixed in."""
    established_for: int | None
    rekey_in: int | None
    reauth_in: int | None
    """Seconds."""
    tasks: tuple[str, ...]
    """What it is at, queued or active."""
    children: tuple[ChildSa, ...]

    @property
    def ref(self) -> IkeRef:
        """How it is named in a request."""
        return IkeRef(self.name, self.id, self.initiator_spi)


@dataclass(frozen=True, slots=True)
class CharonVersion:
    """Who answers on the VICI socket."""

    daemon: str
    version: str
    kernel: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number; (0, 0) when the version starts with something else."""
        parts = self.version.split(".")
        if len(parts) < 2 or not parts[0].isdecimal():
            return 0, 0
        digits = len(parts[1]) - len(parts[1].lstrip("0123456789"))
        return int(parts[0]), int(parts[1][:digits] or 0)


@dataclass(frozen=True, slots=True)
class CharonStats:
    """How busy charon is."""

    workers: int
    idle_workers: int
    queued_jobs: int
    ike_sas: int
    half_open: int
    plugins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadedConnection:
    """A connection that charon holds, with the names of its children."""

    name: str
    local: tuple[str, ...]
    remote: tuple[str, ...]
    children: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Algorithms:
    """What charon has implementations of, in its own names (AES_GCM_16, CURVE_25519, ...)."""

    aeads: frozenset[str]
    prfs: frozenset[str]
    key_exchanges: frozenset[str]


@dataclass(frozen=True, slots=True)
class IkeEstablished:
    """An IKE_SA is up: the peer has proven its identity."""

    ike: IkeSa


@dataclass(frozen=True, slots=True)
class IkeEnded:
    """An IKE_SA is gone, and with it its CHILD_SAs."""

    ike: IkeSa


@dataclass(frozen=True, slots=True)
class IkeRekeyed:
    """An IKE_SA was replaced; its CHILD_SAs moved to the new one as they are."""

    old: IkeSa
    new: IkeSa


@dataclass(frozen=True, slots=True)
class IkeMoving:
    """The addresses of an IKE_SA are about to change; `ike` has the old ones."""

    ike: IkeSa
    local: Address | None
    remote: Address | None


@dataclass(frozen=True, slots=True)
class ChildEstablished:
    """A CHILD_SA is up: both its SAs are in this host's kernel, so charon says. Not told of one
    that replaces another (ChildRekeyed)."""

    ike: IkeSa
    child: ChildSa


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """A CHILD_SA is gone. Not told of one that was replaced."""

    ike: IkeSa
    child: ChildSa


@dataclass(frozen=True, slots=True)
class ChildRekeyed:
    """A CHILD_SA was replaced."""

    ike: IkeSa
    old: ChildSa
    new: ChildSa


@dataclass(frozen=True, slots=True)
class CharonAlert:
    """Something went wrong, in one of charon's fixed words: `cert-expired`, `peer-auth-failed`,
    `retransmit-send-timeout`. charon 6.0.3 and newer."""

    kind: str
    ike: IkeSa | None


@dataclass(frozen=True, slots=True)
class CharonSaid:
    """A line of charon's log at level 0 or 1, to be shown and never to be understood."""

    group: str
    level: int
    ike_name: str | None
    ike_id: int | None
    words: str


@dataclass(frozen=True, slots=True)
class CharonLinked:
    """The event lane is up. What happened before is unknown: list again, load again."""

    version: CharonVersion


@dataclass(frozen=True, slots=True)
class CharonLost:
    """charon is not there or does not answer; told once until it is linked again."""

    reason: str


@dataclass(frozen=True, slots=True)
class CharonUnfit:
    """charon answers but cannot be used; told once until it is linked again."""

    reason: str


@dataclass(frozen=True, slots=True)
class EventUnread:
    """An event of charon could not be read: list again."""

    reason: str


IkeEvent = (
    IkeEstablished
    | IkeEnded
    | IkeRekeyed
    | IkeMoving
    | ChildEstablished
    | ChildEnded
    | ChildRekeyed
    | CharonAlert
    | CharonSaid
    | CharonLinked
    | CharonLost
    | CharonUnfit
    | EventUnread
)
