"""Certificates for clusters without a PKI: a root, leaves for hosts, and what the root has revoked
(RFC 5280).

Pure: keys, serial numbers and times are given. The leaf serves charon too, so it carries
digitalSignature, serverAuth and clientAuth.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunsec.keying.chain import PublicKey, Window, validity
from tunsec.keying.identity import SigningKey
from tunsec.keying.paths import is_host_name
from tunsec.keying.revocation import RevocationList, certificate_id
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.errors import PolicyError, Problem
from tunsec.model.names import Address, HostName

BACKDATED: Final = Seconds(300.0)
"""New certificates start this much earlier, so that a host with a slow clock believes them."""
MAX_COMMON_NAME: Final = 64
"""ub-common-name, RFC 5280 appendix A.1."""


class KeyType(StrEnum):
    """Kinds of identity keys."""

    ED25519 = "ed25519"
    P256 = "p256"


@dataclass(frozen=True, slots=True)
class CertificateSummary:
    """What `tunsec ca show` tells of a certificate. Times are Unix seconds."""

    subject: str
    issuer: str
    serial: int
    ca: bool
    key: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    not_before: WallTime
    not_after: WallTime
    sha256: str
    revoked_at: WallTime | None


def period(*, wall_now: WallTime, days: float, within: Window | None = None) -> Window:
    """From a little before now for so many days, but not beyond the issuer's own period."""
    window = Window(
        WallTime(float(int(wall_now - BACKDATED))), WallTime(float(int(wall_now + days * 86_400)))
    )
    return window if within is None else window.within(within)


def make_root(
    name: str, *, key: SigningKey, serial: int, valid: Window, path_length: int = 2
) -> x509.Certificate:
    """A self-signed root of the cluster called `name`."""
    if not 0 < len(name) <= MAX_COMMON_NAME or not name.isprintable():
        raise PolicyError(
            [Problem("--name", f"{name!r} cannot be a CA's name", "1 to 64 printable characters")]
        )
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tunsec"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = (
        _builder(subject, subject, key, serial=serial, valid=valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(key)), critical=False
        )
    )
    return builder.sign(key, _hash(key))


def issue(
    host: HostName,
    addresses: Iterable[Address],
    *,
    key: SigningKey,
    ca: x509.Certificate,
    ca_key: SigningKey,
    serial: int,
    valid: Window,
) -> x509.Certificate:
    """A leaf for a host, which may bear addresses beside its name."""
    if not is_host_name(host):
        raise PolicyError(
            [Problem("HOST", f"{host!r} cannot be a host's name", "letters, digits, - _ and .")]
        )
    # The name is in the SAN; a common name is only for people, and has a bound (RFC 6125 6.4.4).
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:MAX_COMMON_NAME])])
    builder = (
        _builder(subject, ca.subject, key, serial=serial, valid=valid)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(host), *(x509.IPAddress(address) for address in addresses)]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(ca_key)), critical=False
        )
    )
    return builder.sign(ca_key, _hash(ca_key))


def sign_list(
    revoked: Mapping[int, WallTime],
    *,
    ca: x509.Certificate,
    ca_key: SigningKey,
    number: int,
    valid: Window,
) -> x509.CertificateRevocationList:
    """A list of all that a CA has revoked: serial numbers, and since when."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(datetime.fromtimestamp(valid.first, UTC))
        .next_update(datetime.fromtimestamp(valid.last, UTC))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(ca_key)), critical=False
        )
    )
    for serial, since in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial)
        entry = entry.revocation_date(datetime.fromtimestamp(since, UTC))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca_key, _hash(ca_key))


def next_number(last: RevocationList | None, *, wall_now: WallTime) -> int:
    """Unix time, or one above the last: rises also when the last list was lost."""
    return max(int(wall_now), 0 if last is None else last.number + 1)


def summarize(
    certificate: x509.Certificate, crls: Iterable[RevocationList] = ()
) -> CertificateSummary:
    """What a certificate says of itself, and lists of it; nothing is verified."""
    names, addresses = alternative_names(certificate)
    window = validity(certificate)
    own = certificate_id(certificate)
    since = [crl.revoked[own.serial] for crl in crls if crl.names(own)]
    return CertificateSummary(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=certificate.serial_number,
        ca=_is_ca(certificate),
        key=_key_name(certificate),
        names=names,
        addresses=tuple(str(address) for address in addresses),
        not_before=window.first,
        not_after=window.last,
        sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        revoked_at=min(since, default=None),
    )


def alternative_names(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...], tuple[Address, ...]]:
    """DNS names and addresses of a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    return (
        tuple(names.get_values_for_type(x509.DNSName)),
        tuple(
            address
            for address in names.get_values_for_type(x509.IPAddress)
            if isinstance(address, Address)
        ),
    )


def same_key(certificate: x509.Certificate, key: SigningKey) -> bool:
    """Whether a private key is the one a certificate speaks of."""
    return certificate.public_key() == key.public_key()


def key_type(key: object) -> KeyType | None:
    """The kind of a private or public key; None when it is none of ours."""
    if isinstance(key, (Ed25519PrivateKey, Ed25519PublicKey)):
        return KeyType.ED25519
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return KeyType.P256
    return None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: SigningKey, *, serial: int, valid: Window
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(valid.first, UTC))
        .not_valid_after(datetime.fromtimestamp(valid.last, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _hash(key: SigningKey) -> hashes.SHA256 | None:
    return None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()


def _public(key: SigningKey) -> PublicKey:
    return key.public_key()


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_name(certificate: x509.Certificate) -> str:
    return key_type(certificate.public_key()) or type(certificate.public_key()).__name__
