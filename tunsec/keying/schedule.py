"""The key schedule of directory keying: from two offers to the key of one SA.

::

    salt  = SHA-256(len || lower host's offer body || len || upper host's offer body)
    PRK   = HKDF-Extract(salt, X25519(own private, peer public) [|| PPK])
    MAC   = HKDF-Expand(PRK, "tunsec 1 confirmation" || author || reader, 32)
    SA    = HKDF-Expand(PRK, "tunsec 1 esp" || flow || tenant || sender || receiver
                             || src || dst || SPI || AEAD, key and salt)

HKDF is RFC 5869 with SHA-256; X25519 is RFC 7748. Every variable part of an info is preceded by
its length (32 bits, network order), an absent tenant is one zero byte and a present one starts with
one byte 1: two different SAs never have one info. The SPI is 32 bits in network order.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tunsec.model.aead import Aead
from tunsec.model.names import Address, FlowName, HostName, Spi, TenantName
from tunsec.model.record import PUBLIC_BYTES
from tunsec.model.secret import Secret

PRIVATE_BYTES: Final = 32
MAC_KEY_BYTES: Final = 32
ESP_LABEL: Final = b"tunsec 1 esp"
CONFIRMATION_LABEL: Final = b"tunsec 1 confirmation"
PPK_ID_LABEL: Final = b"tunsec 1 ppk id"
PPK_ID_BYTES: Final = 16
MIN_PPK: Final = 32
"""Bytes: 256 bits of entropy leave 128 against Grover's algorithm (RFC 8784 section 6)."""


class WeakKey(ValueError):
    """A public value that makes the shared secret zero, whatever the private one is."""


@dataclass(frozen=True, slots=True)
class SaName:
    """What one SA's key is bound to; `sender` sends from `src`, `receiver` receives on `dst`."""

    flow: FlowName
    tenant: TenantName | None
    sender: HostName
    receiver: HostName
    src: Address
    dst: Address
    spi: Spi
    aead: Aead


def public_value(private: Secret) -> bytes:
    """The X25519 public value of 32 private bytes."""
    public = X25519PrivateKey.from_private_bytes(private.reveal()).public_key()
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def shared_secret(private: Secret, public: bytes) -> Secret:
    """X25519 of our private and the peer's public value, 32 bytes.

    Raises WeakKey for a public value of small order (RFC 7748 section 6.1).
    """
    try:
        raw = X25519PrivateKey.from_private_bytes(private.reveal()).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:  # OpenSSL refuses an all-zero result by itself
        raise WeakKey("the public value gives a zero secret") from None
    if hmac.compare_digest(raw, bytes(PUBLIC_BYTES)):
        raise WeakKey("the public value gives a zero secret")
    return Secret(raw)


def is_weak(public: bytes) -> bool:
    """Whether a public value is of small order: its product with any private value is zero."""
    try:
        shared_secret(Secret(bytes(PRIVATE_BYTES)), public)
    except WeakKey:
        return True
    return False


def pair_salt(one: tuple[HostName, bytes], other: tuple[HostName, bytes]) -> bytes:
    """The salt of a pair from (host, offer body) twice, in any order; 32 bytes."""
    (_, lower), (_, upper) = sorted((one, other))
    return hashlib.sha256(_counted(lower) + _counted(upper)).digest()


def pair_secret(shared: Secret, *, salt: bytes, ppk: Secret | None) -> Secret:
    """The PRK of a pair of offers, 32 bytes."""
    material = shared.reveal() + (ppk.reveal() if ppk else b"")
    return Secret(hmac.digest(salt, material, "sha256"))  # HKDF-Extract, RFC 5869 section 2.2


def confirmation_key(prk: Secret, *, author: HostName, reader: HostName) -> Secret:
    """The key that authenticates what `author` tells `reader`, 32 bytes."""
    info = CONFIRMATION_LABEL + _counted(author.encode()) + _counted(reader.encode())
    return _expand(prk, info, MAC_KEY_BYTES)


def sa_key(prk: Secret, name: SaName) -> Secret:
    """Key and salt of one SA, in the order of the kernel's alg_key."""
    return _expand(prk, _sa_label(name), name.aead.key_bytes + name.aead.salt_bytes)


def ppk_id(ppk: Secret) -> str:
    """What hosts compare to know that they mix in the same PPK, 32 hex digits.

    It is public: a PPK that can be guessed can be guessed from it, so a PPK must be random.
    """
    prk = Secret(hmac.digest(bytes(hashes.SHA256.digest_size), ppk.reveal(), "sha256"))
    with prk, _expand(prk, PPK_ID_LABEL, PPK_ID_BYTES) as name:
        return name.reveal().hex()


def _sa_label(name: SaName) -> bytes:
    tenant = b"\0" if name.tenant is None else b"\1" + _counted(name.tenant.encode())
    return b"".join(
        (
            ESP_LABEL,
            _counted(name.flow.encode()),
            tenant,
            _counted(name.sender.encode()),
            _counted(name.receiver.encode()),
            _counted(name.src.packed),
            _counted(name.dst.packed),
            name.spi.to_bytes(4, "big"),
            _counted(name.aead.value.encode()),
        )
    )


def _counted(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def _expand(prk: Secret, info: bytes, length: int) -> Secret:
    return Secret(HKDFExpand(hashes.SHA256(), length, info).derive(prk.reveal()))
