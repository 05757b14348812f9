"""Whether a certificate speaks for a host: path building and validation, RFC 5280 section 6.

Deliberately narrow: Ed25519 and ECDSA P-256 only, at most two intermediates, DNS and IP name
constraints honoured, and every critical extension that is not known here refuses the certificate.
A path that holds is remembered by the fingerprints of its certificates; its validity period is
compared with the time at every use. Revocation lists, once there are any, belong into
`Trust.judge`, after a path was found and before it is remembered as good for that moment.
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


class _Unfit(Exception):
    """A certificate cannot stand where the path needs it."""


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
    """A leaf that chains to a trusted root: whose it is, its key, and until when it is valid."""

    names: frozenset[str]
    key: PublicKey
    valid_until: WallTime

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
class _Judged:
    names: frozenset[str]
    key: PublicKey
    windows: tuple[Window, ...]


class Trust:
    """The roots a host trusts, and the chains that were found good under them.

    One Trust can serve many rings.
    """

    def __init__(self, roots: Iterable[x509.Certificate]) -> None:
        self._roots = tuple(roots)
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
        for window in judged.windows:
            if window.first - SKEW <= wall_now <= window.last + SKEW:
                return Speaker(judged.names, judged.key, window.last)
        if all(wall_now < window.first for window in judged.windows):
            raise RecordRefused(
                RefusalReason.NOT_YET_VALID,
                path,
                f"its certificate is valid from Unix time {judged.windows[0].first:.0f}",
            )
        raise RecordRefused(
            RefusalReason.EXPIRED_CERTIFICATE,
            path,
            f"its certificate was valid until Unix time {judged.windows[0].last:.0f}",
        )

    def _judge(self, chain: tuple[bytes, ...], path: str) -> _Judged:
        """Everything that does not depend on the time."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what the library warns of, RFC 5280 forbids
                certificates = [x509.load_der_x509_certificate(der) for der in chain]
                return self._judged_chain(certificates, path)
        except _Unfit as unfit:
            raise RecordRefused(RefusalReason.BAD_CERTIFICATE, path, str(unfit)) from None
        except UNREADABLE as error:  # parts of a certificate are parsed only when they are used
            raise RecordRefused(
                RefusalReason.BAD_CERTIFICATE, path, f"a certificate cannot be read: {error}"
            ) from None

    def _judged_chain(self, chain: list[x509.Certificate], path: str) -> _Judged:
        leaf, *others = chain
        key, names = _check_leaf(leaf)
        flaws: list[str] = []
        windows = tuple(self._windows(leaf, tuple(others), flaws))
        if windows:
            return _Judged(names, key, windows)
        if flaws:
            raise _Unfit(flaws[0])
        raise RecordRefused(
            RefusalReason.UNKNOWN_CA,
            path,
            f"{_subject(leaf)!r}, issued by {leaf.issuer.rfc4514_string()[:200]!r}, "
            "leads to no trusted CA",
        )

    def _windows(
        self, leaf: x509.Certificate, others: tuple[x509.Certificate, ...], flaws: list[str]
    ) -> Iterator[Window]:
        """The window of every path from the leaf to a root."""
        pending: list[tuple[x509.Certificate, ...]] = [(leaf,)]
        while pending:
            below = pending.pop()
            for root in self._roots:
                if _issued(below[-1], root) and _fits(root, below, flaws):
                    yield _common_window((*below, root))
            if len(below) > MAX_INTERMEDIATES:
                continue
            pending.extend(
                (*below, issuer)
                for issuer in others
                if issuer not in below
                and issuer not in self._roots
                and _issued(below[-1], issuer)
                and _fits(issuer, below, flaws)
            )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's name and key stand behind a certificate; weak signatures do not."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        _public_key(issuer)
        algorithm = certificate.signature_hash_algorithm
        if algorithm is not None and algorithm.digest_size < hashes.SHA256.digest_size:
            return False
        certificate.verify_directly_issued_by(issuer)
    except (_Unfit, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _fits(issuer: x509.Certificate, below: tuple[x509.Certificate, ...], flaws: list[str]) -> bool:
    """Whether a certificate may be the issuer above these; if not, tells why in `flaws`."""
    try:
        _check_issuer(issuer, below)
    except _Unfit as unfit:
        flaws.append(str(unfit))
        return False
    return True


def _check_leaf(leaf: x509.Certificate) -> tuple[PublicKey, frozenset[str]]:
    _check_extensions(leaf)
    basic = _extension(leaf, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise _Unfit("a CA's certificate does not speak for a host")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise _Unfit("its key usage lacks digitalSignature")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and LEAF_USES.isdisjoint(extended):
        raise _Unfit("its extended key usage has neither serverAuth nor clientAuth")
    alternative = _extension(leaf, x509.SubjectAlternativeName)
    names = alternative.get_values_for_type(x509.DNSName) if alternative is not None else []
    if not names:
        raise _Unfit("it has no DNS subject alternative name")
    return _public_key(leaf), frozenset(names)


def _check_issuer(issuer: x509.Certificate, below: tuple[x509.Certificate, ...]) -> None:
    """RFC 5280 section 6.1.4 (h) to (o) and 6.1.3 (b), (c)."""
    _check_extensions(issuer)
    basic = _extension(issuer, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise _Unfit(f"{_subject(issuer)!r} is no CA")
    intermediates = len(below) - 1
    if basic.path_length is not None and intermediates > basic.path_length:
        raise _Unfit(f"{_subject(issuer)!r} allows only {basic.path_length} intermediates")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise _Unfit(f"the key usage of {_subject(issuer)!r} lacks keyCertSign")
    constraints = _extension(issuer, x509.NameConstraints)
    if constraints is not None:
        for certificate in below:
            _check_constraints(constraints, certificate)


def _check_extensions(certificate: x509.Certificate) -> None:
    if certificate.version is not x509.Version.v3:
        raise _Unfit(f"{_subject(certificate)!r} is no version 3 certificate")
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in KNOWN_EXTENSIONS:
            raise _Unfit(f"unknown critical extension {extension.oid.dotted_string}")


def _check_constraints(constraints: x509.NameConstraints, certificate: x509.Certificate) -> None:
    """Names of kinds that a constraint mentions must lie inside it (RFC 5280 section 4.2.1.10)."""
    permitted = list(constraints.permitted_subtrees or ())
    excluded = list(constraints.excluded_subtrees or ())
    if any(isinstance(subtree, x509.DirectoryName) for subtree in (*permitted, *excluded)):
        raise _Unfit("name constraints on directory names are not supported")
    alternative = _extension(certificate, x509.SubjectAlternativeName)
    for name in alternative or ():
        rules = [subtree for subtree in permitted if type(subtree) is type(name)]
        if rules and not any(_covers(rule, name) for rule in rules):
            raise _Unfit(f"{name.value!r} is outside of what its CA may issue for")
        if any(_covers(rule, name) for rule in excluded if type(rule) is type(name)):
            raise _Unfit(f"{name.value!r} is excluded from what its CA may issue for")


def _covers(rule: x509.GeneralName, name: x509.GeneralName) -> bool:
    if isinstance(rule, x509.DNSName) and isinstance(name, x509.DNSName):
        suffix, host = rule.value.lower(), name.value.lower()
        if suffix.startswith("."):  # as other implementations read it: below, not the name itself
            return host.endswith(suffix)
        return not suffix or host == suffix or host.endswith(f".{suffix}")
    if isinstance(rule, x509.IPAddress) and isinstance(name, x509.IPAddress):
        network, address = rule.value, name.value
        if not isinstance(network, Network) or isinstance(address, Network):
            raise _Unfit("an IP name constraint cannot be read")
        return address in network
    raise _Unfit(f"name constraints on {type(rule).__name__} are not supported")


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _public_key(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise _Unfit(f"the key of {_subject(certificate)!r} is neither Ed25519 nor ECDSA P-256")


def _common_window(path: tuple[x509.Certificate, ...]) -> Window:
    window = validity(path[0])
    for certificate in path[1:]:
        window = window.within(validity(certificate))
    return window


def validity(certificate: x509.Certificate) -> Window:
    """The period a certificate states for itself."""
    return Window(_unix(certificate.not_valid_before_utc), _unix(certificate.not_valid_after_utc))


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def _unix(moment: datetime) -> WallTime:
    return WallTime(moment.timestamp())


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200]
