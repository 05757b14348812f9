"""Which revocation lists are believed. Each case bends one thing of a list that is."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.keying.cluster import DAY, NOW, ca, identity, signing_key
from tests.unit.keying.lists import crl, der, pem, revocation
from tests.unit.keying.test_chain import CA_BASIC, authority, certificate, named, usage
from tunsec.keying.ca import KeyType, next_number, period, sign_list
from tunsec.keying.crl import believed, read_lists, what_it_says
from tunsec.keying.revocation import (
    CertificateId,
    certificate_id,
    name_id,
    newest_of_each,
    why_revoked,
)
from tunsec.model.clock import WallTime

ROOT = ca().certificate
GOOD = crl(5, 9, issuer=ROOT.subject, key=ca().key, number=7)


@pytest.mark.parametrize("kind", list(KeyType))
def test_what_tunsec_ca_signs_is_believed(kind: KeyType) -> None:
    issuer = ca(kind=kind)
    since = {3: WallTime(NOW - 50.0), 2**159 - 1: NOW}
    valid = period(wall_now=NOW, days=30)
    signed = sign_list(since, ca=issuer.certificate, ca_key=issuer.key, number=12, valid=valid)
    [read] = read_lists(pem(signed))
    said = believed(read, [issuer.certificate])
    assert said.revoked == since
    assert said.number == 12
    assert (said.this_update, said.next_update) == (valid.first, valid.last)
    assert said.issuer == issuer.certificate.subject.rfc4514_string()
    assert said.der == der(signed)
    # RFC 5280 section 5.2.1: charon finds the list of a CA by it
    key_id = read.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert key_id.key_identifier == own.digest


def test_a_file_has_one_list_or_several() -> None:
    other = crl(issuer=named("other"), key=signing_key("other"))
    assert read_lists(pem(GOOD, other)) == (GOOD, other)
    assert read_lists(b"# made by hand\n" + pem(GOOD) + b"\n") == (GOOD,)
    assert read_lists(der(GOOD)) == (GOOD,)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "holds no CRL"),
        (b"junk\n", "holds no CRL"),
        (b"0 is no length", "is no CRL"),
        (pem(GOOD)[:-30], "no whole CRL"),
        (pem(GOOD)[:-30] + pem(GOOD), "no whole CRL"),
        (pem(GOOD) + pem(GOOD)[:40], "no whole CRL"),
        (pem(GOOD) + ROOT.public_bytes(serialization.Encoding.PEM), "no whole CRL"),
        (ROOT.public_bytes(serialization.Encoding.PEM), "no whole CRL"),
        (ROOT.public_bytes(serialization.Encoding.DER), "is no CRL"),
        (pem(GOOD).replace(b"MII", b"MIJ").replace(b"MIH", b"MIJ"), "is no CRL"),
        (der(GOOD)[:-1], "is no CRL"),
        (der(GOOD) + b"\0", "is no CRL"),
    ],
)
def test_files_that_are_not_lists(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_lists(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_a_value_error(body: bytes) -> None:
    for prefix in (b"", b"0", b"-----BEGIN X509 CRL-----\n"):
        with pytest.raises(ValueError):
            read_lists(prefix + body)


@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    """Bits that end a signature and have no meaning may change."""
    raw = der(GOOD)
    place = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[place]))
    try:
        [read] = read_lists(raw[:place] + bytes([value]) + raw[place + 1 :])
        said = believed(read, [ROOT])
    except ValueError:
        return
    assert said.revoked == what_it_says(GOOD).revoked
    assert said.number == 7
    assert said.next_update == what_it_says(GOOD).next_update


# Who signed


def test_a_list_of_an_unknown_ca() -> None:
    with pytest.raises(ValueError, match="who is no CA here"):
        believed(crl(issuer=named("x"), key=signing_key("x")), [ROOT])
    with pytest.raises(ValueError, match="who is no CA here"):
        believed(GOOD, [])


def test_a_list_that_another_signed_under_the_name_of_the_ca() -> None:
    forged = crl(5, issuer=ROOT.subject, key=signing_key("thief"))
    with pytest.raises(ValueError, match="has not signed"):
        believed(forged, [ROOT])


def test_either_of_two_cas_of_one_name() -> None:
    """A CA that was replaced under its name: each signs for itself."""
    new = certificate(
        "root",
        signing_key("new"),
        CA_BASIC,
        (usage(), True),
        issuer="root",
        issuer_key=signing_key("new"),
    )
    for key in ("root", "new"):
        signed = crl(5, issuer=named("root"), key=signing_key(key))
        assert believed(signed, [authority("root"), new]).revoked.keys() == {5}


def test_a_ca_that_may_not_sign_lists() -> None:
    signed = crl(5, issuer=named("root"), key=signing_key("root"))
    assert believed(signed, [authority("root")])
    assert believed(signed, [authority("root", CA_BASIC)]), "no key usage allows all"
    only_certificates = authority("root", CA_BASIC, (usage(crl_sign=False), True))
    with pytest.raises(ValueError, match="has not signed"):
        believed(signed, [only_certificates])


def test_a_weak_signature_is_none() -> None:
    issuer = ca(kind=KeyType.P256)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(datetime.fromtimestamp(NOW, UTC))
        .next_update(datetime.fromtimestamp(NOW + DAY, UTC))
    )
    assert believed(builder.sign(issuer.key, hashes.SHA256()), [issuer.certificate])
    weak = builder.sign(issuer.key, hashes.SHA224())
    assert weak.is_signature_valid(issuer.key.public_key())
    with pytest.raises(ValueError, match="has not signed"):
        believed(weak, [issuer.certificate])


# What it says


@pytest.mark.parametrize(
    ("extensions", "oid"),
    [
        ((x509.DeltaCRLIndicator(3), True), ExtensionOID.DELTA_CRL_INDICATOR),
        (
            (
                x509.IssuingDistributionPoint(
                    full_name=None,
                    relative_name=None,
                    only_contains_user_certs=True,
                    only_contains_ca_certs=False,
                    only_some_reasons=None,
                    indirect_crl=False,
                    only_contains_attribute_certs=False,
                ),
                True,
            ),
            ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ),
    ],
)
def test_parts_of_lists_are_refused(
    extensions: tuple[x509.ExtensionType, bool], oid: x509.ObjectIdentifier
) -> None:
    part = crl(5, issuer=ROOT.subject, key=ca().key, extensions=[extensions])
    with pytest.raises(ValueError, match=oid.dotted_string):
        believed(part, [ROOT])


def test_an_entry_for_another_ca_is_refused() -> None:
    elsewhere = x509.CertificateIssuer([x509.DirectoryName(named("other"))])
    indirect = crl(5, issuer=ROOT.subject, key=ca().key, of_entries=[(elsewhere, True)])
    with pytest.raises(ValueError, match=CRLEntryExtensionOID.CERTIFICATE_ISSUER.dotted_string):
        believed(indirect, [ROOT])


def test_what_is_not_critical_is_ignored() -> None:
    reason = x509.CRLReason(x509.ReasonFlags.certificate_hold)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"x")
    said = believed(
        crl(
            5,
            issuer=ROOT.subject,
            key=ca().key,
            number=None,
            extensions=[(unknown, False)],
            of_entries=[(reason, False)],
        ),
        [ROOT],
    )
    assert said.revoked.keys() == {5}, "held back is revoked"
    assert said.number == 0


def test_a_list_without_end_is_refused() -> None:
    """nextUpdate is cut out of the DER, a UTCTime of 15 bytes; the signature is not looked at."""
    raw = bytearray(der(crl(issuer=ROOT.subject, key=ca().key, number=None)))
    _, ends_at = [at for at in range(len(raw)) if raw[at : at + 2] == b"\x17\x0d"]
    del raw[ends_at : ends_at + 15]
    assert (raw[0], raw[1], raw[3]) == (0x30, 0x81, 0x30)
    raw[2] -= 15  # the length of the list
    raw[4] -= 15  # the length of what is signed
    [read] = read_lists(bytes(raw))
    assert read.next_update_utc is None
    with pytest.raises(ValueError, match="does not say when"):
        what_it_says(read)


# Which list counts, and whom it names


def test_the_newest_list_of_each_ca_counts() -> None:
    def of_lab(*serials: int, number: int, first: float = NOW) -> x509.CertificateRevocationList:
        return crl(*serials, issuer=ROOT.subject, key=ca().key, number=number, first=first)

    other = believed(crl(5, issuer=named("root"), key=signing_key("root")), [authority("root")])
    old, new = (believed(of_lab(number, number=number), [ROOT]) for number in (8, 9))
    later = believed(of_lab(7, number=9, first=NOW + 1), [ROOT])
    for lists in ((old, new, other), (other, new, old)):
        assert {one.der for one in newest_of_each(lists)} == {new.der, other.der}
    assert newest_of_each([later, new, old]) == (later,)


def test_a_certificate_is_known_by_issuer_and_serial_number() -> None:
    leaf = identity("db1").chain[0]
    said = revocation(leaf)
    lists = {said.issuer_id: said}
    own = certificate_id(leaf)
    assert said.names(own)
    why = why_revoked([own], lists)
    assert f"{leaf.serial_number:x}" in why
    assert "CN=lab" in why
    assert why_revoked([certificate_id(identity("db2").chain[0])], lists) == ""
    elsewhere = CertificateId(name_id(named("other")), leaf.serial_number)
    assert not said.names(elsewhere)
    assert why_revoked([elsewhere], lists) == ""
    assert why_revoked([elsewhere, own], lists) == why


def test_a_name_is_the_same_in_any_encoding() -> None:
    def encoded(kind: x509.name._ASN1Type) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab", _type=kind)])

    utf8, printable = x509.name._ASN1Type.UTF8String, x509.name._ASN1Type.PrintableString
    assert encoded(utf8).public_bytes() != encoded(printable).public_bytes()
    assert name_id(encoded(utf8)) == name_id(encoded(printable))
    assert name_id(named("lab")) != name_id(named("lab2"))


@given(st.integers(0, 2**40), st.floats(0, 2**33))
def test_numbers_only_rise(number: int, wall_now: float) -> None:
    last = believed(crl(issuer=ROOT.subject, key=ca().key, number=number), [ROOT])
    assert next_number(last, wall_now=WallTime(wall_now)) > number
    assert next_number(None, wall_now=WallTime(wall_now)) == int(wall_now)
