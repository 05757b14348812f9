"""Reading certificate revocation lists (RFC 5280 section 5): bytes to a list that is believed.

Deliberately narrow, as keying/chain.py: complete lists that a CA signed for itself, no deltas, no
parts and no indirect ones. A list that cannot be understood as a whole is an error, for a revoked
host could hide in what was passed over.
"""

import re
import warnings
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from tunsec.keying.chain import UNREADABLE, Unfit, extension_of, public_key, unix_time
from tunsec.keying.revocation import RevocationList, name_id

BEGIN: Final = b"-----BEGIN "
HEAD: Final = b"-----BEGIN X509 CRL-----"
BLOCK: Final = re.compile(HEAD + rb"\s.*?-----END X509 CRL-----", re.DOTALL)
DER_SEQUENCE: Final = b"\x30"
"""A DER file starts with it, and no text does but one that starts with a zero."""


def read_lists(body: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    """All lists of a file, at least one: PEM one after the other, or one in DER.

    Raises ValueError with what is wrong. Nothing is believed yet.
    """
    blocks = BLOCK.findall(body)
    if len(blocks) != body.count(BEGIN):
        raise ValueError("holds something that is no whole CRL")
    try:
        if blocks:
            return tuple(x509.load_pem_x509_crl(block) for block in blocks)
        if body.startswith(DER_SEQUENCE):
            return (x509.load_der_x509_crl(body),)
    except UNREADABLE as error:
        raise ValueError(f"is no CRL: {error}") from None
    raise ValueError("holds no CRL")


def what_it_says(crl: x509.CertificateRevocationList) -> RevocationList:
    """The content of a list, whoever signed it; ValueError when it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what the library warns of, RFC 5280 forbids
            return _content(crl)
    except Unfit as unfit:
        raise ValueError(str(unfit)) from None
    except UNREADABLE as error:  # parts of a list are parsed only when they are used
        raise ValueError(f"is no CRL: {error}") from None


def believed(
    crl: x509.CertificateRevocationList, signers: Iterable[x509.Certificate]
) -> RevocationList:
    """What a list says, if one of these CAs signed it; ValueError when none did."""
    said = what_it_says(crl)
    named = [signer for signer in signers if name_id(signer.subject) == said.issuer_id]
    if not named:
        raise ValueError(f"is a CRL of {said.issuer[:200]!r}, who is no CA here")
    if not any(_signed(crl, signer) for signer in named):
        raise ValueError(f"is a CRL that {said.issuer[:200]!r} has not signed")
    return said


def _content(crl: x509.CertificateRevocationList) -> RevocationList:
    _check_extensions(crl.extensions)
    ends = crl.next_update_utc
    if ends is None:
        raise Unfit("the CRL does not say when the next one comes")
    revoked = {}
    for entry in crl:
        _check_extensions(entry.extensions)
        revoked[entry.serial_number] = unix_time(entry.revocation_date_utc)
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return RevocationList(
        issuer=crl.issuer.rfc4514_string(),
        issuer_id=name_id(crl.issuer),
        number=number,
        this_update=unix_time(crl.last_update_utc),
        next_update=unix_time(ends),
        revoked=revoked,
        der=crl.public_bytes(serialization.Encoding.DER),
    )


def _check_extensions(extensions: x509.Extensions) -> None:
    """What is critical says that the list is a delta, a part, or speaks for other CAs."""
    for extension in extensions:
        if extension.critical:
            raise Unfit(f"a CRL with critical extension {extension.oid.dotted_string}")


def _signed(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    """RFC 5280 section 6.3.3 (f), (g); a weak signature is none."""
    try:
        usage = extension_of(signer, x509.KeyUsage)
        if usage is not None and not usage.crl_sign:
            return False
        algorithm = crl.signature_hash_algorithm
        if algorithm is not None and algorithm.digest_size < hashes.SHA256.digest_size:
            return False
        return crl.is_signature_valid(public_key(signer))
    except (Unfit, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
