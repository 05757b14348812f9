"""IKEv2 as tunsec asks charon for it: connections, their children, credentials (RFC 7296).

Names follow swanctl.conf(5), where each field's meaning is told at length.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.flow import OffloadWish
from tunsec.model.names import Address, HostName, Mark, Network, Reqid
from tunsec.model.secret import Secret

NAME_PREFIX: Final = "tunsec-"
"""Connections, shared secrets and authorities with other names in charon are not tunsec's."""

OLDEST_CHARON: Final = (6, 0)
"""Older ones lose track of rekey collisions."""


GIVES_UP_AFTER: Final = Seconds(4.0)
"""How long a charon with systemd/charon-tunsec.conf asks a silent peer again (3.6 s)."""

SLOTS: Final = 3
"""CHILD_SAs of one flow and sender at a time: previous, current, next."""

MAX_NAME: Final = 200
"""Section names have one byte for their length, and list-sas adds an id to a child's."""

MAX_NUMBER: Final = 10**15 - 1
"""charon reads numbers into char[16]: parse_bytes, parse_uint64, parse_time (vici_config.c)."""


@dataclass(frozen=True, slots=True)
class ConnectionId:
    """One IKE_SA's ends: transport mode knows one pair of addresses for each."""

    peer: HostName
    local: Address
    remote: Address

    @property
    def name(self) -> str:
        """The connection's name in charon. A very long host name is told by its hash."""
        name = f"{NAME_PREFIX}{self.peer}-{self.local}-{self.remote}"
        if len(name) <= MAX_NAME:
            return name
        digest = hashlib.sha256(self.peer.encode()).hexdigest()[:32]
        return f"{NAME_PREFIX}{digest}-{self.local}-{self.remote}"


class KeyExchange(StrEnum):
    """Key exchange methods (RFC 7296 section 3.3.2, RFC 9370); the value is charon's keyword."""

    X25519 = "x25519"  # RFC 8031
    ECP256 = "ecp256"  # RFC 5903
    ECP384 = "ecp384"
    ML_KEM_768 = "mlkem768"  # only beside another one: a second exchange, RFC 9370


class Prf(StrEnum):
    """Pseudo-random functions of an IKE_SA; the value is charon's keyword."""

    SHA256 = "prfsha256"
    SHA384 = "prfsha384"
    SHA512 = "prfsha512"


@dataclass(frozen=True, slots=True)
class IkeProposal:
    """What may protect an IKE_SA. The peers settle on one PRF and one key exchange of these."""

    aead: Aead
    prfs: tuple[Prf, ...]
    key_exchanges: tuple[KeyExchange, ...]
    additional: KeyExchange | None = None
    """A second exchange that must take place too."""


@dataclass(frozen=True, slots=True)
class EspProposal:
    """What may protect a CHILD_SA. With key exchanges every rekey has forward secrecy."""

    aead: Aead
    key_exchanges: tuple[KeyExchange, ...]
    additional: KeyExchange | None = None
    esn: bool = True


class Revocation(StrEnum):
    """What a certificate needs of revocation lists; a revoked one is refused in any case."""

    RELAXED = "relaxed"  # without any knowledge it is good
    IF_URI = "ifuri"  # as strict when the certificate says where to ask
    STRICT = "strict"  # without knowledge it is refused


@dataclass(frozen=True, slots=True)
class CertificateAuth:
    """Both sides sign. Certificates are DER."""

    certificates: tuple[bytes, ...]
    """This host's own; the first is the leaf."""
    authorities: tuple[bytes, ...]
    """The peer's chain must end in one of these: other CAs that charon knows do not count."""
    revocation: Revocation = Revocation.RELAXED


@dataclass(frozen=True, slots=True)
class PskAuth:
    """Both sides prove that they know a secret that is loaded as a SharedSecret."""


@dataclass(frozen=True, slots=True)
class TrafficSelector:
    """One side of a CHILD_SA's traffic; protocol 0 is any, ports in host order, both included."""

    network: Network
    proto: int = 0
    first_port: int = 0
    last_port: int = 0xFFFF


@dataclass(frozen=True, slots=True)
class Limits:
    """When something is replaced and when it ends; None is never. Seconds, bytes or packets.

    A replacement comes up to `jitter` before `rekey`, drawn anew for each SA.
    """

    rekey: int | None
    life: int | None
    jitter: int = 0


NO_LIMITS: Final = Limits(None, None)


@dataclass(frozen=True, slots=True)
class IkeChild:
    """A CHILD_SA configuration: transport mode, no policies (tunsec owns the SPs), one reqid."""

    name: str
    reqid: Reqid
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    proposals: tuple[EspProposal, ...]
    replay_window: int
    """Packets."""
    seconds: Limits
    volume: Limits = NO_LIMITS
    """Bytes."""
    packets: Limits = NO_LIMITS
    label: str | None = None
    """Negotiated beside the traffic selectors and must be equal on both sides (RFC 9478): tells
    children with the same selectors apart. Never reaches the kernel."""
    mark_in: Mark | None = None
    """Looked up with the inbound SA."""
    mark_out: Mark | None = None
    """Looked up with the outbound SA."""
    set_mark_in: Mark | None = None
    """Given to packets that the inbound SA has decrypted."""
    set_mark_out: Mark | None = None
    """Given to packets that the outbound SA has encrypted."""
    offload: OffloadWish = OffloadWish.NONE


class Unique(StrEnum):
    """What becomes of an IKE_SA when the same peer makes another one."""

    REPLACE = "replace"
    KEEP = "keep"
    NO = "no"  # both stay, unless the peer says INITIAL_CONTACT
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class IkeConnection:
    """An IKE_SA configuration with its children. Nothing starts by itself (start_action none)."""

    name: str
    local: tuple[Address, ...]
    remote: tuple[Address, ...]
    local_identity: str
    """A host name, sent as ID_FQDN (RFC 7296 section 3.5); must be a DNS SAN of the leaf."""
    remote_identity: str
    auth: CertificateAuth | PskAuth
    proposals: tuple[IkeProposal, ...]
    children: tuple[IkeChild, ...]
    seconds: Limits
    """Rekeying of the IKE_SA; it ends at `life`."""
    reauth_after: Seconds | None = None
    """New proof of identity after this long; rekeying does not ask for one."""
    dpd_after: Seconds | None = None
    """Probe a silent peer after this long."""
    unique: Unique = Unique.REPLACE
    ppk_id: str | None = None
    """Mix in the PPK of this id (RFC 8784), and refuse a peer that does not."""
    port: int = 500
    """UDP port of both sides."""


class SharedKind(StrEnum):
    """What a shared secret is for; the value is VICI's word."""

    PSK = "IKE"
    PPK = "PPK"


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """A secret for charon."""

    id: str
    kind: SharedKind
    secret: Secret = field(compare=False)
    owners: tuple[str, ...]
    """The two hosts of a PSK; the id of a PPK."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that charon is to trust until it is unloaded; DER."""

    name: str
    certificate: bytes


class IkeAuth(StrEnum):
    """How hosts prove who they are."""

    CERTIFICATE = "certificate"
    PSK = "psk"


@dataclass(frozen=True, slots=True)
class IkeRules:
    """What the policy says of all IKE_SAs."""

    auth: IkeAuth
    rekey_after: Seconds
    """Of IKE_SAs; CHILD_SAs go by the flows' own rules."""
    reauth_after: Seconds | None
    """New proof of identity after this long; rekeying does not ask for one. None: never."""
    dead_after: Seconds | None
    """A peer whose charon is silent for so long is dead, and its SAs end here. None: they stay."""
    revocation: Revocation
    psk_file: str | None = None

    @property
    def dpd_after(self) -> Seconds | None:
        """When a silent peer is asked for a sign of life: what the asking takes comes on top."""
        if self.dead_after is None:
            return None
        return Seconds(max(1.0, float(int(self.dead_after - GIVES_UP_AFTER))))
