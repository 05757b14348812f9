"""A host's own name, certificate chain and signing key."""

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tunsec.keying.chain import certificate_der
from tunsec.model.names import HostName

SigningKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
"""The key itself stays inside OpenSSL; the object prints as its type only."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a host proves itself with. `chain` is the leaf and its intermediates, without root."""

    host: HostName
    chain: tuple[x509.Certificate, ...]
    key: SigningKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 (RFC 8032), or ECDSA with SHA-256 and deterministic nonces (RFC 6979), in DER."""
        if isinstance(self.key, Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    @property
    def der_chain(self) -> tuple[bytes, ...]:
        """The chain as it is attached to records."""
        return tuple(certificate_der(certificate) for certificate in self.chain)
