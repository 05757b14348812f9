"""What a certificate revocation list says, once it is believed: see keying/crl.py for that."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509

from tunsec.model.clock import WallTime


@dataclass(frozen=True, slots=True)
class CertificateId:
    """What identifies a certificate: its issuer, as a digest of the name, and its serial number
    (RFC 5280 section 4.1.2.2)."""

    issuer: bytes
    serial: int


@dataclass(frozen=True, slots=True)
class RevocationList:
    """All that one CA has revoked: serial numbers, and since when.

    It counts beyond `next_update`: then a newer one should be there, but what was revoked stays so.
    """

    issuer: str
    issuer_id: bytes
    number: int
    this_update: WallTime
    next_update: WallTime
    revoked: Mapping[int, WallTime] = field(repr=False)
    der: bytes = field(repr=False)

    def names(self, certificate: CertificateId) -> bool:
        """Whether a certificate is on the list."""
        return certificate.issuer == self.issuer_id and certificate.serial in self.revoked


def certificate_id(certificate: x509.Certificate) -> CertificateId:
    """How lists name a certificate."""
    return CertificateId(name_id(certificate.issuer), certificate.serial_number)


def name_id(name: x509.Name) -> bytes:
    """A digest of a name that does not depend on how its text is encoded."""
    return hashlib.sha256(name.rfc4514_string().encode()).digest()


def newest_of_each(lists: Iterable[RevocationList]) -> tuple[RevocationList, ...]:
    """Of each CA the newest list, as charon chooses it too: a list is complete, so an older one
    says nothing more."""
    newest: dict[bytes, RevocationList] = {}
    for one in lists:
        known = newest.get(one.issuer_id)
        if known is None or _age(known) < _age(one):
            newest[one.issuer_id] = one
    return tuple(newest.values())


def why_revoked(
    certificates: Iterable[CertificateId], lists: Mapping[bytes, RevocationList]
) -> str:
    """Which certificate is revoked and by whom; empty when none is. `lists` are by `issuer_id`."""
    for certificate in certificates:
        found = lists.get(certificate.issuer)
        if found is not None and found.names(certificate):
            return f"certificate {certificate.serial:x} was revoked by {found.issuer[:200]}"
    return ""


def _age(one: RevocationList) -> tuple[int, WallTime]:
    return one.number, one.this_update
