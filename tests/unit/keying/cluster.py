"""A cluster in memory: a CA, hosts with real certificates, and rings. Everything from a number."""

import hashlib
import ipaddress
from dataclasses import dataclass
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tunsec.keying.ca import KeyType, issue, make_root, period
from tunsec.keying.chain import Trust, Window
from tunsec.keying.identity import Identity, SigningKey
from tunsec.keying.judgement import Grant
from tunsec.keying.newest import NOTHING_KNOWN, Newest
from tunsec.keying.ring import Keyring
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import WallTime
from tunsec.model.names import Address, Boot, HostName, OfferSeq
from tunsec.model.record import Offer
from tunsec.model.secret import Secret

NOW = WallTime(1_800_000_000.0)
DAY = 86_400.0
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

SPEEDS = (
    AeadSpeed(Aead.AES_128_GCM, 4_000_000_000),
    AeadSpeed(Aead.AES_256_GCM, 3_000_000_000),
    AeadSpeed(Aead.CHACHA20_POLY1305, 1_000_000_000),
)


def drawn(*words: object, count: int = 32) -> bytes:
    """Bytes that follow from the words: tests are repeatable, and no two are alike."""
    return hashlib.shake_256(repr(words).encode()).digest(count)


def signing_key(*words: object, kind: KeyType = KeyType.ED25519) -> SigningKey:
    if kind is KeyType.ED25519:
        return Ed25519PrivateKey.from_private_bytes(drawn("sign", *words))
    number = int.from_bytes(drawn("sign", *words, count=48), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())


def serial(*words: object) -> int:
    return int.from_bytes(drawn("serial", *words, count=15), "big") + 1


@dataclass(frozen=True, slots=True)
class Ca:
    certificate: x509.Certificate
    key: SigningKey


@cache
def ca(name: str = "lab", kind: KeyType = KeyType.ED25519) -> Ca:
    key = signing_key("ca", name, kind=kind)
    valid = period(wall_now=WallTime(NOW - 100 * DAY), days=1_000)
    return Ca(make_root(name, key=key, serial=serial("ca", name), valid=valid), key)


@cache
def identity(
    host: str,
    *,
    under: str = "lab",
    kind: KeyType = KeyType.ED25519,
    first: float = NOW - DAY,
    last: float = NOW + 30 * DAY,
    again: int = 0,
) -> Identity:
    """`again` counts certificates of one host, each with its own key and serial number."""
    words = (host, under, again) if again else (host, under)
    issuer, key = ca(under, kind), signing_key("host", *words, kind=kind)
    leaf = issue(
        HostName(host),
        (),
        key=key,
        ca=issuer.certificate,
        ca_key=issuer.key,
        serial=serial(*words),
        valid=Window(WallTime(first), WallTime(last)),
    )
    return Identity(HostName(host), (leaf,), key)


def address_of(host: str, version: int = 4) -> Address:
    number = int.from_bytes(drawn("address", host, count=1), "big")
    if version == 4:
        return ipaddress.ip_address(f"192.0.2.{number}")
    return ipaddress.ip_address(f"2001:db8::{number:x}")


def grants(*hosts: str) -> dict[HostName, Grant]:
    return {
        HostName(host): Grant(host, frozenset({address_of(host), address_of(host, 6)}))
        for host in hosts
    }


def ring(
    host: str,
    *others: str,
    kind: KeyType = KeyType.ED25519,
    newest: Newest = NOTHING_KNOWN,
    ppk: bytes | None = None,
    trust: Trust | None = None,
) -> Keyring:
    return Keyring(
        identity(host, kind=kind),
        trust or Trust([ca(kind=kind).certificate]),
        grants=grants(host, *others),
        newest=newest,
        ppk=Secret(ppk) if ppk else None,
    )


def offer(
    ring: Keyring,
    host: str,
    *,
    wall_now: float = NOW,
    lifetime: float = DAY,
    life: int = 1,
    draw: object = 0,
    addresses: frozenset[Address] | None = None,
) -> tuple[Offer, bytes]:
    return ring.make_offer(
        wall_now=WallTime(wall_now),
        not_after=WallTime(wall_now + lifetime),
        boot=Boot(f"{life:032x}"),
        private=Secret(drawn("private", host, wall_now, life, draw)),
        nonce=drawn("nonce", host, wall_now, life, draw),
        addresses=frozenset({address_of(host)}) if addresses is None else addresses,
        aeads=SPEEDS,
    )


def introduced(one: str = "db1", other: str = "db2") -> tuple[Keyring, Keyring, OfferSeq, OfferSeq]:
    """Two rings that hold each other's offers."""
    left, right = ring(one, other), ring(other, one)
    left_offer, left_record = offer(left, one)
    right_offer, right_record = offer(right, other)
    left.accept_offer(HostName(other), right_record, wall_now=NOW)
    right.accept_offer(HostName(one), left_record, wall_now=NOW)
    return left, right, left_offer.sequence, right_offer.sequence
