"""Revocation lists for tests: right ones, and ones with something bent."""

from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.keying.cluster import DAY, NOW, ca
from tunsec.keying.crl import believed
from tunsec.keying.identity import SigningKey
from tunsec.keying.revocation import RevocationList


def crl(
    *serials: int,
    issuer: x509.Name,
    key: SigningKey,
    number: int | None = 1,
    first: float = NOW - DAY,
    last: float = NOW + DAY,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    of_entries: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateRevocationList:
    """A list that revokes these serial numbers."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(datetime.fromtimestamp(first, UTC))
        .next_update(datetime.fromtimestamp(last, UTC))
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        entry = entry.revocation_date(datetime.fromtimestamp(first, UTC))
        for extension, critical in of_entries:
            entry = entry.add_extension(extension, critical=critical)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256())


def revocation(*certificates: x509.Certificate, number: int = 1) -> RevocationList:
    """What the lab's CA has revoked."""
    issuer = ca()
    serials = [certificate.serial_number for certificate in certificates]
    signed = crl(*serials, issuer=issuer.certificate.subject, key=issuer.key, number=number)
    return believed(signed, [issuer.certificate])


def pem(*lists: x509.CertificateRevocationList) -> bytes:
    """One after the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in lists)


def der(one: x509.CertificateRevocationList) -> bytes:
    """One in DER."""
    return one.public_bytes(serialization.Encoding.DER)
