"""Algorithms of an SA: struct xfrm_algo, xfrm_algo_auth and xfrm_algo_aead."""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.secret import Secret
from tunsec.wire.netlink import Buffer, Malformed, encode_attribute
from tunsec.wire.xfrm.consts import Attr
from tunsec.wire.xfrm.structs import Reader, need

_PLAIN: Final = struct.Struct("=64sI")
"""Name and key length in bits."""
_WITH_ICV: Final = struct.Struct("=64sII")
"""Name, key length and ICV length in bits."""


class AlgorithmKind(StrEnum):
    """Which attribute carries it; AUTH_TRUNC names its ICV length, AUTH takes the default one."""

    AUTH = "auth"
    AUTH_TRUNC = "auth-trunc"
    CRYPT = "enc"
    COMP = "comp"
    AEAD = "aead"


_ATTR: Final[dict[AlgorithmKind, Attr]] = {
    AlgorithmKind.AUTH: Attr.ALG_AUTH,
    AlgorithmKind.AUTH_TRUNC: Attr.ALG_AUTH_TRUNC,
    AlgorithmKind.CRYPT: Attr.ALG_CRYPT,
    AlgorithmKind.COMP: Attr.ALG_COMP,
    AlgorithmKind.AEAD: Attr.ALG_AEAD,
}
ALGORITHM_ATTRS: Final[dict[int, AlgorithmKind]] = {attr: kind for kind, attr in _ATTR.items()}
ALGORITHM_TYPES: Final = frozenset(attr.value for attr in _ATTR.values())
"""The attribute types as plain numbers."""
_HAS_ICV: Final = frozenset({AlgorithmKind.AUTH_TRUNC, AlgorithmKind.AEAD})
_AEADS: Final[dict[tuple[str, int, int], Aead]] = {
    (aead.kernel_name, 8 * (aead.key_bytes + aead.salt_bytes), aead.icv_bits): aead for aead in Aead
}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One algorithm; `key` (with salt) is None when it was dropped at decoding.

    `icv_bits` is None for kinds that carry none.
    """

    kind: AlgorithmKind
    name: str
    key_bits: int
    icv_bits: int | None = None
    key: Secret | None = None

    @property
    def aead(self) -> Aead | None:
        """The AEAD of ours that this is, if it is one."""
        if self.kind is not AlgorithmKind.AEAD or self.icv_bits is None:
            return None
        return _AEADS.get((self.name, self.key_bits, self.icv_bits))


def algorithm_of(aead: Aead, key: Secret) -> Algorithm:
    """`aead` under key and salt; raises Malformed when the key is not as long as it must be."""
    if len(key) != aead.key_bytes + aead.salt_bytes:
        raise Malformed(
            f"{aead} takes {aead.key_bytes} bytes of key and {aead.salt_bytes} of salt, "
            f"not {len(key)} in all"
        )
    return Algorithm(AlgorithmKind.AEAD, aead.kernel_name, 8 * len(key), aead.icv_bits, key)


def aead_head(aead: Aead) -> bytes:
    """struct xfrm_algo_aead up to its key."""
    bits = 8 * (aead.key_bytes + aead.salt_bytes)
    return _WITH_ICV.pack(aead.kernel_name.encode(), bits, aead.icv_bits)


def encode_algorithm(algorithm: Algorithm) -> bytes:
    """XFRMA_ALG_*; raises Malformed when the key was dropped or is not `key_bits` long."""
    raw = algorithm.key.reveal() if algorithm.key is not None else b""
    if len(raw) != _key_bytes(algorithm.key_bits):
        had = "dropped at decoding" if algorithm.key is None else f"{len(raw)} bytes long"
        raise Malformed(f"{algorithm.name} needs a key of {algorithm.key_bits} bits, it is {had}")
    name = algorithm.name.encode()
    if len(name) > 63:
        raise Malformed(f"algorithm name {algorithm.name} is longer than 63 bytes")
    if algorithm.kind in _HAS_ICV:
        head = _WITH_ICV.pack(name, algorithm.key_bits, algorithm.icv_bits or 0)
    else:
        head = _PLAIN.pack(name, algorithm.key_bits)
    return encode_attribute(_ATTR[algorithm.kind], head + raw)


def decode_algorithm(
    buffer: Buffer, start: int, end: int, *, kind: AlgorithmKind, keep_key: bool
) -> Algorithm:
    """One XFRMA_ALG_* payload; raises Malformed."""
    icv_bits: int | None = None
    if kind in _HAS_ICV:
        need(start, end, _WITH_ICV.size, f"algorithm {kind}")
        raw_name, key_bits, icv_bits = _WITH_ICV.unpack_from(buffer, start)
        key_start = start + _WITH_ICV.size
    else:
        need(start, end, _PLAIN.size, f"algorithm {kind}")
        raw_name, key_bits = _PLAIN.unpack_from(buffer, start)
        key_start = start + _PLAIN.size
    need(key_start, end, _key_bytes(key_bits), f"key of algorithm {kind}")
    key = None
    if keep_key:
        key = Secret(bytes(buffer[key_start : key_start + _key_bytes(key_bits)]))
    return Algorithm(kind, _name(raw_name), key_bits, icv_bits, key)


def read_aead(buffer: Buffer, start: int, end: int, reader: Reader) -> Aead | None:
    """Which AEAD of ours an XFRMA_ALG_AEAD payload names, key unread; raises Malformed."""
    need(start, end, _WITH_ICV.size, "algorithm aead")
    return reader.aead(bytes(buffer[start : start + _WITH_ICV.size]), _parse_aead)


def _parse_aead(head: bytes) -> Aead | None:
    raw_name, key_bits, icv_bits = _WITH_ICV.unpack(head)
    return _AEADS.get((_name(raw_name), key_bits, icv_bits))


def _key_bytes(bits: int) -> int:
    return (bits + 7) // 8


def _name(raw: bytes) -> str:
    name, _, _ = raw.partition(b"\0")
    if len(name) == len(raw) or not name.isascii():
        raise Malformed("algorithm name is not ASCII text that ends in a zero byte")
    return name.decode("ascii")
