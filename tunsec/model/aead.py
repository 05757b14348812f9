"""The AEADs that tunsec uses for ESP."""

from dataclasses import dataclass
from enum import StrEnum


class Aead(StrEnum):
    """An AEAD for ESP; all have a 4-byte salt and a 16-byte ICV."""

    AES_128_GCM = "aes-128-gcm"  # RFC 4106
    AES_256_GCM = "aes-256-gcm"  # RFC 4106
    CHACHA20_POLY1305 = "chacha20-poly1305"  # RFC 7634

    @property
    def key_bytes(self) -> int:
        """Key without salt, in bytes."""
        return 16 if self is Aead.AES_128_GCM else 32

    @property
    def salt_bytes(self) -> int:
        """Implicit nonce part that follows the key in the kernel's alg_key, in bytes."""
        return 4

    @property
    def icv_bits(self) -> int:
        """Length of the integrity check value, in bits (xfrm_algo_aead.alg_icv_len)."""
        return 128

    @property
    def kernel_name(self) -> str:
        """Name of the IPsec template in the kernel's crypto API."""
        if self is Aead.CHACHA20_POLY1305:
            return "rfc7539esp(chacha20,poly1305)"
        return "rfc4106(gcm(aes))"

    @property
    def af_alg_name(self) -> str:
        """Name of the plain AEAD for AF_ALG, to measure speed."""
        if self is Aead.CHACHA20_POLY1305:
            return "rfc7539(chacha20,poly1305)"
        return "gcm(aes)"


@dataclass(frozen=True, slots=True)
class AeadSpeed:
    """What one core does with an AEAD, in bytes per second; 0 is not measured."""

    aead: Aead
    bytes_per_second: int
