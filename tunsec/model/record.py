"""What hosts tell each other through the directory: offers, confirmations of inbound SAs, and who
holds a service address."""

from dataclasses import dataclass
from typing import Final

from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import WallTime
from tunsec.model.names import (
    Address,
    Boot,
    ConfirmationSeq,
    FlowName,
    HostName,
    OfferSeq,
    Spi,
    TenantName,
)

PUBLIC_BYTES: Final = 32
"""An X25519 public value (RFC 7748 section 5)."""

NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Offer:
    """A host's signed, short-lived Diffie-Hellman offer, valid for every peer."""

    host: HostName
    sequence: OfferSeq
    boot: Boot
    public: bytes
    """X25519 public value, 32 bytes."""
    nonce: bytes
    """32 random bytes: no two offers give the same salt."""
    addresses: tuple[Address, ...]
    """Addresses the host holds now, ascending, IPv4 first."""
    fencing: tuple[tuple[Address, int], ...]
    """Fencing token by service address, ascending by address."""
    aeads: tuple[AeadSpeed, ...]
    """What the host's kernel can do and how fast, each AEAD once, ordered by name."""
    ppk: str | None
    """Id of the pre-shared key that is mixed in, 32 hex digits; None without one."""
    not_after: WallTime
    """Unix time in whole seconds after which no new keys are made from this offer."""


@dataclass(frozen=True, slots=True)
class Receives:
    """An inbound SA that is in the author's kernel; `src` is the reader's address, `dst` its own.

    The offers are those its key was made from.
    """

    flow: FlowName
    tenant: TenantName | None
    src: Address
    dst: Address
    spi: Spi
    aead: Aead
    author_offer: OfferSeq
    reader_offer: OfferSeq
    esn: bool = True


@dataclass(frozen=True, slots=True)
class Sends:
    """The reader's SPI that the author's outbound SPs now pin; `src` is the author's address."""

    flow: FlowName
    tenant: TenantName | None
    src: Address
    dst: Address
    spi: Spi


@dataclass(frozen=True, slots=True)
class Renews:
    """A relation whose connection broke: `src` is the author's address. Nothing may go on under an
    offer of the author up to `author_spent` or, where new `proof` is asked of both, of the reader
    up to `reader_spent`; without it one of the two must be newer. `done` says that the author has
    nothing of that left, in either direction.
    """

    flow: FlowName
    tenant: TenantName | None
    src: Address
    dst: Address
    author_spent: OfferSeq
    reader_spent: OfferSeq
    proof: bool
    done: bool


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The word of `author`, a receiver, to `reader`, who sends to it; one per ordered pair.

    It is authenticated under the pair of offers it names.
    """

    author: HostName
    reader: HostName
    author_offer: OfferSeq
    reader_offer: OfferSeq
    sequence: ConfirmationSeq
    receives: tuple[Receives, ...]
    sends: tuple[Sends, ...]
    heard: ConfirmationSeq
    """The newest confirmation of the reader that the author has acted on, 0 for none: what it named
    and `sends` does not is not used, and never will be."""
    renews: tuple[Renews, ...] = ()
    """Relations that were ever renewed in this life of the author, with the last time."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An owner's word on a service address: it holds it now, or (`held` false) gives it up.

    Of all claims on a service the one with the highest fencing token is true.
    """

    service: str
    owner: HostName
    token: int
    """Fencing token; each number is used once, by the owner that the directory let have it."""
    boot: Boot
    held: bool
