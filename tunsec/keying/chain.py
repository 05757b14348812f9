"""Whether a certificate speaks for a host: path building and validation, RFC 5280 section 6.

Deliberately narrow: Ed25519 and ECDSA P-256 only, at most two intermediates, DNS and IP name
constraints honoured, and every critical extension that is not known here refuses the certificate.
A path that holds is remembered by the fingerprints of its certificates; its validity period is
compared with the time at every use, and its certificates with the revocation lists. The CAs that
are trusted by themselves cannot be revoked: they are taken out of the list of roots.
"""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.revocation import (
    CertificateId,
    RevocationList,
    certificate_id,
    newest_of_each,
    why_revoked,
)
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.names import Network

SKEW: Final = Seconds(60.0)
"""How far the clocks of two hosts may lie apart."""
MAX_INTERMEDIATES: Final = 2
REMEMBERED: Final = 8_192

KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
    }
)
LEAF_USES: Final = frozenset(
    {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        ExtendedKeyUsageOID.IPSEC_IKE,
    }
)

UNREADABLE: Final = (
    Warning,
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

T = TypeVar("T", bound=x509.ExtensionType)
PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey


class Unfit(Exception):
    """A certificate or a list cannot stand where it is needed."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which all certificates of a path are valid, both ends included."""

    first: WallTime
    last: WallTime

    def within(self, other: "Window") -> "Window":
        """The time common to both."""
        return Window(max(self.first, other.first), min(self.last, other.last))


@dataclass(frozen=True, slots=True)
class Speaker:
    """A leaf that chains to a trusted root: whose it is, its key, and until when it is valid.

    `signers` are the certificates below the root, any of which may be revoked one day.
    """

    names: frozenset[str]
    key: PublicKey
    valid_until: WallTime
    signers: tuple[CertificateId, ...]

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this key signed the message."""
        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, message)
            else:
                self.key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Path:
    """From a leaf to a root; `signers` are the certificates below the root."""

    window: Window
    signers: tuple[CertificateId, ...]


@dataclass(frozen=True, slots=True)
class _Judged:
    names: frozenset[str]
    key: PublicKey
    paths: tuple[_Path, ...]


class Trust:
    """The roots a host trusts, what their CAs have revoked, and the chains found good under them.

    One Trust can serve many rings.
    """

    def __init__(
        self, roots: Iterable[x509.Certificate], crls: Iterable[RevocationList] = ()
    ) -> None:
        self._roots = tuple(roots)
        self._crls = {crl.issuer_id: crl for crl in newest_of_each(crls)}
        self._judged: OrderedDict[bytes, _Judged] = OrderedDict()

    def judge(self, chain: tuple[bytes, ...], *, path: str, wall_now: WallTime) -> Speaker:
        """Who speaks with the leaf of this DER chain; raises RecordRefused with `path`."""
        fingerprint = hashlib.sha256(
            b"".join(hashlib.sha256(certificate).digest() for certificate in chain)
        ).digest()
        judged = self._judged.pop(fingerprint, None) or self._judge(chain, path)
        self._judged[fingerprint] = judged
        if len(self._judged) > REMEMBERED:
            self._judged.popitem(last=False)
        standing = [one for one in judged.paths if not self.revoked(one.signers)]
        if not standing:
            raise RecordRefused(
                RefusalReason.REVOKED_CERTIFICATE, path, self.revoked(judged.paths[0].signers)
            )
        for one in standing:
            if one.window.first - SKEW <= wall_now <= one.window.last + SKEW:
                return Speaker(judged.names, judged.key, one.window.last, one.signers)
        window = standing[0].window
        if all(wall_now < one.window.first for one in standing):
            raise RecordRefused(
                RefusalReason.NOT_YET_VALID,
                path,
                f"its certificate is valid from Unix time {window.first:.0f}",
            )
        raise RecordRefused(
            RefusalReason.EXPIRED_CERTIFICATE,
            path,
            f"its certificate was valid until Unix time {window.last:.0f}",
        )

    def revoked(self, signers: Iterable[CertificateId]) -> str:
        """Which of these certificates is revoked and by whom; empty when none is."""
        return why_revoked(signers, self._crls)

    def _judge(self, chain: tuple[bytes, ...], path: str) -> _Judged:
        """Everything that does not depend on the time."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what the library warns of, RFC 5280 forbids
                certificates = [x509.load_der_x509_certificate(der) for der in chain]
                return self._judged_chain(certificates, path)
        except Unfit as unfit:
            raise RecordRefused(RefusalReason.BAD_CERTIFICATE, path, str(unfit)) from None
        except UNREADABLE as error:  # parts of a certificate are parsed only when they are used
            raise RecordRefused(
                RefusalReason.BAD_CERTIFICATE, path, f"a certificate cannot be read: {error}"
            ) from None

    def _judged_chain(self, chain: list[x509.Certificate], path: str) -> _Judged:
        leaf, *others = chain
        key, names = _check_leaf(leaf)
        flaws: list[str] = []
        paths = tuple(self._paths(leaf, tuple(others), flaws))
        if paths:
            return _Judged(names, key, paths)
        if flaws:
            raise Unfit(flaws[0])
        raise RecordRefused(
            RefusalReason.UNKNOWN_CA,
            path,
            f"{_subject(leaf)!r}, issued by {leaf.issuer.rfc4514_string()[:200]!r}, "
            "leads to no trusted CA",
        )

    def _paths(
        self, leaf: x509.Certificate, others: tuple[x509.Certificate, ...], flaws: list[str]
    ) -> Iterator[_Path]:
        """Every path from the leaf to a root."""
        pending: list[tuple[x509.Certificate, ...]] = [(leaf,)]
        while pending:
            below = pending.pop()
            for root in self._roots:
                if issued_by(below[-1], root) and _fits(root, below, flaws):
                    yield _Path(_common_window((*below, root)), _ids(below))
            if len(below) > MAX_INTERMEDIATES:
                continue
            pending.extend(
                (*below, issuer)
                for issuer in others
                if issuer not in below
                and issuer not in self._roots
                and issued_by(below[-1], issuer)
                and _fits(issuer, below, flaws)
            )


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's name and key stand behind a certificate; weak signatures do not."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        public_key(issuer)
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.digest_size < hashes.SHA256.digest_size:
            return False
        certificate.verify_directly_issued_by(issuer)
    except (Unfit, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _fits(issuer: x509.Certificate, below: tuple[x509.Certificate, ...], flaws: list[str]) -> bool:
    """Whether a certificate may be the issuer above these; if not, tells why in `flaws`."""
    try:
        _check_issuer(issuer, below)
    except Unfit as unfit:
        flaws.append(str(unfit))
        return False
    return True


def _check_leaf(leaf: x509.Certificate) -> tuple[PublicKey, frozenset[str]]:
    _check_extensions(leaf)
    basic = extension_of(leaf, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise Unfit("a CA's certificate does not speak for a host")
    usage = extension_of(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise Unfit("its key usage lacks digitalSignature")
    extended = extension_of(leaf, x509.ExtendedKeyUsage)
    if extended is not None and LEAF_USES.isdisjoint(extended):
        raise Unfit("its extended key usage has neither serverAuth nor clientAuth")
    alternative = extension_of(leaf, x509.SubjectAlternativeName)
    names = alternative.get_values_for_type(x509.DNSName) if alternative is not None else []
    if not names:
        raise Unfit("it has no DNS subject alternative name")
    return public_key(leaf), frozenset(names)


def _check_issuer(issuer: x509.Certificate, below: tuple[x509.Certificate, ...]) -> None:
    """RFC 5280 section 6.1.4 (h) to (o) and 6.1.3 (b), (c)."""
    _check_extensions(issuer)
    basic = extension_of(issuer, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise Unfit(f"{_subject(issuer)!r} is no CA")
    intermediates = len(below) - 1
    if basic.path_length is not None and intermediates > basic.path_length:
        raise Unfit(f"{_subject(issuer)!r} allows only {basic.path_length} intermediates")
    usage = extension_of(issuer, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise Unfit(f"the key usage of {_subject(issuer)!r} lacks keyCertSign")
    constraints = extension_of(issuer, x509.NameConstraints)
    if constraints is not None:
        for certificate in below:
            _check_constraints(constraints, certificate)


def _check_extensions(certificate: x509.Certificate) -> None:
    if certificate.version is not x509.Version.v3:
        raise Unfit(f"{_subject(certificate)!r} is no version 3 certificate")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in KNOWN_EXTENSIONS:
            raise Unfit(f"unknown critical extension {extension.oid.dotted_string}")


def _check_constraints(constraints: x509.NameConstraints, certificate: x509.Certificate) -> None:
    """Names of kinds that a constraint mentions must lie inside it (RFC 5280 section 4.2.1.10)."""
    permitted = list(constraints.permitted_subtrees or ())
    excluded = list(constraints.excluded_subtrees or ())
    if any(isinstance(subtree, x509.DirectoryName) for subtree in (*permitted, *excluded)):
        raise Unfit("name constraints on directory names are not supported")
    alternative = extension_of(certificate, x509.SubjectAlternativeName)
    for name in alternative or ():
        rules = [subtree for subtree in permitted if type(subtree) is type(name)]
        if rules and not any(_covers(rule, name) for rule in rules):
            raise Unfit(f"{name.value!r} is outside of what its CA may issue for")
        if any(_covers(rule, name) for rule in excluded if type(rule) is type(name)):
            raise Unfit(f"{name.value!r} is excluded from what its CA may issue for")


def _covers(rule: x509.GeneralName, name: x509.GeneralName) -> bool:
    if isinstance(rule, x509.DNSName) and isinstance(name, x509.DNSName):
        suffix, host = rule.value.lower(), name.value.lower()
        if suffix.startswith("."):  # as other implementations read it: below, not the name itself
            return host.endswith(suffix)
        return not suffix or host == suffix or host.endswith(f".{suffix}")
    if isinstance(rule, x509.IPAddress) and isinstance(name, x509.IPAddress):
        network, address = rule.value, name.value
        if not isinstance(network, Network) or isinstance(address, Network):
            raise Unfit("an IP name constraint cannot be read")
        return address in network
    raise Unfit(f"name constraints on {type(rule).__name__} are not supported")


def extension_of(certificate: x509.Certificate, kind: type[T]) -> T | None:
    """An extension of a certificate, if it has it."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def public_key(certificate: x509.Certificate) -> PublicKey:
    """The key of a certificate; raises Unfit when it is of another kind than we use."""
    key = certificate.public_key()
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise Unfit(f"the key of {_subject(certificate)!r} is neither Ed25519 nor ECDSA P-256")


def _common_window(path: tuple[x509.Certificate, ...]) -> Window:
    window = validity(path[0])
    for certificate in path[1:]:
        window = window.within(validity(certificate))
    return window


def _ids(path: tuple[x509.Certificate, ...]) -> tuple[CertificateId, ...]:
    return tuple(certificate_id(certificate) for certificate in path)


def validity(certificate: x509.Certificate) -> Window:
    """The period a certificate states for itself."""
    return Window(
        unix_time(certificate.not_valid_before_utc), unix_time(certificate.not_valid_after_utc)
    )


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def unix_time(moment: datetime) -> WallTime:
    """A moment as Unix time."""
    return WallTime(moment.timestamp())


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200]
