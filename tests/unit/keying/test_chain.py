"""Which certificates speak for a host. Each case bends one thing of a chain that holds."""

import ipaddress
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.keying.cluster import DAY, NOW, ca, identity, serial, signing_key
from tests.unit.keying.lists import crl
from tunsec.keying.ca import KeyType
from tunsec.keying.chain import Speaker, Trust, certificate_der
from tunsec.keying.crl import believed
from tunsec.keying.identity import SigningKey
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.keying.revocation import RevocationList, certificate_id
from tunsec.model.clock import WallTime

PATH = "offers/db1"
CA_USAGE = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": True,
    "crl_sign": True,
    "encipher_only": False,
    "decipher_only": False,
}


def usage(**changes: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**{**CA_USAGE, **changes})


def named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    subject: str,
    key: SigningKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    *extensions: tuple[x509.ExtensionType, bool],
    issuer: str,
    issuer_key: SigningKey | rsa.RSAPrivateKey,
    first: float = NOW - DAY,
    last: float = NOW + DAY,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(serial(subject, issuer))
        .not_valid_before(datetime.fromtimestamp(first, UTC))
        .not_valid_after(datetime.fromtimestamp(last, UTC))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if isinstance(issuer_key, Ed25519PrivateKey):
        return builder.sign(issuer_key, None)
    return builder.sign(issuer_key, hashes.SHA256())


CA_BASIC = (x509.BasicConstraints(ca=True, path_length=None), True)
CA_KEY_USAGE = (usage(), True)
SAN = (x509.SubjectAlternativeName([x509.DNSName("db1")]), False)


def authority(
    name: str,
    *extensions: tuple[x509.ExtensionType, bool],
    issuer: str | None = None,
    first: float = NOW - DAY,
    last: float = NOW + DAY,
) -> x509.Certificate:
    issuer = issuer or name
    return certificate(
        name,
        signing_key(name),
        *(extensions or (CA_BASIC, CA_KEY_USAGE)),
        issuer=issuer,
        issuer_key=signing_key(issuer),
        first=first,
        last=last,
    )


def leaf(
    *extensions: tuple[x509.ExtensionType, bool], issuer: str = "root", first: float = NOW - DAY
) -> x509.Certificate:
    return certificate(
        "db1",
        signing_key("db1"),
        *(extensions or (SAN,)),
        issuer=issuer,
        issuer_key=signing_key(issuer),
        first=first,
    )


def judge(
    *chain: x509.Certificate, roots: tuple[x509.Certificate, ...] | None = None, at: float = NOW
) -> Speaker:
    trust = Trust((authority("root"),) if roots is None else roots)
    der = tuple(certificate_der(entry) for entry in chain)
    return trust.judge(der, path=PATH, wall_now=WallTime(at))


def refused(
    *chain: x509.Certificate, roots: tuple[x509.Certificate, ...] | None = None, at: float = NOW
) -> RecordRefused:
    with pytest.raises(RecordRefused) as caught:
        judge(*chain, roots=roots, at=at)
    return caught.value


@pytest.mark.parametrize("kind", list(KeyType))
def test_what_tunsec_ca_issues_holds_and_signs(kind: KeyType) -> None:
    own = identity("db1", kind=kind)
    trust = Trust([ca(kind=kind).certificate])
    speaker = trust.judge(own.der_chain, path=PATH, wall_now=NOW)
    assert speaker.names == {"db1"}
    assert speaker.valid_until == NOW + 30 * DAY
    assert speaker.verify(own.sign(b"hello"), b"hello")
    assert not speaker.verify(own.sign(b"hello"), b"hullo")
    assert own.sign(b"hello") == own.sign(b"hello"), "signing draws no randomness"


def test_no_intermediate_one_and_two_hold_three_do_not() -> None:
    first = authority("first", issuer="root")
    second = authority("second", issuer="first")
    third = authority("third", issuer="second")
    assert judge(leaf()).names == {"db1"}
    judge(leaf(issuer="first"), first)
    judge(leaf(issuer="second"), first, second)
    assert refused(leaf(issuer="third"), third, second, first).reason is RefusalReason.UNKNOWN_CA


def test_an_unknown_ca_of_the_same_name_is_unknown() -> None:
    stranger = certificate(
        "db1", signing_key("db1"), SAN, issuer="root", issuer_key=signing_key("another")
    )
    assert refused(stranger).reason is RefusalReason.UNKNOWN_CA
    assert refused(leaf(), roots=()).reason is RefusalReason.UNKNOWN_CA
    assert refused(leaf(issuer="first")).reason is RefusalReason.UNKNOWN_CA


def test_a_leaf_is_no_ca_for_others() -> None:
    middle = certificate(
        "middle", signing_key("middle"), SAN, issuer="root", issuer_key=signing_key("root")
    )
    error = refused(leaf(issuer="middle"), middle)
    assert error.reason is RefusalReason.BAD_CERTIFICATE
    assert "is no CA" in error.detail


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        (((x509.BasicConstraints(ca=True, path_length=None), True),), "keyCertSign"),
        ((CA_BASIC, (usage(key_cert_sign=False), True)), "keyCertSign"),
        (((x509.BasicConstraints(ca=False, path_length=None), True), CA_KEY_USAGE), "no CA"),
        ((CA_KEY_USAGE,), "no CA"),
        (
            (CA_BASIC, CA_KEY_USAGE, (x509.InhibitAnyPolicy(0), True)),
            "unknown critical extension",
        ),
        (
            (
                CA_BASIC,
                CA_KEY_USAGE,
                (x509.NameConstraints([x509.DNSName("example.org")], None), True),
            ),
            "outside",
        ),
        (
            (CA_BASIC, CA_KEY_USAGE, (x509.NameConstraints(None, [x509.DNSName("db1")]), True)),
            "excluded",
        ),
        (
            (
                CA_BASIC,
                CA_KEY_USAGE,
                (x509.NameConstraints([x509.DirectoryName(named("x"))], None), True),
            ),
            "directory names",
        ),
    ],
)
def test_issuers_that_do_not_fit(
    extensions: tuple[tuple[x509.ExtensionType, bool], ...], why: str
) -> None:
    as_root = refused(leaf(), roots=(authority("root", *extensions),))
    as_intermediate = refused(
        leaf(issuer="middle"), authority("middle", *extensions, issuer="root")
    )
    for error in (as_root, as_intermediate):
        assert error.reason is RefusalReason.BAD_CERTIFICATE
        assert why in error.detail


def test_path_length_counts_intermediates() -> None:
    tight = authority("root", (x509.BasicConstraints(ca=True, path_length=0), True), CA_KEY_USAGE)
    judge(leaf(), roots=(tight,))
    error = refused(leaf(issuer="middle"), authority("middle", issuer="root"), roots=(tight,))
    assert "allows only 0" in error.detail


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ((SAN, CA_BASIC), "CA's certificate"),
        ((SAN, (usage(), True)), "digitalSignature"),
        ((SAN, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)), "serverAuth"),
        (((x509.BasicConstraints(ca=False, path_length=None), True),), "no DNS"),
        (((x509.SubjectAlternativeName([x509.RFC822Name("a@b")]), False),), "no DNS"),
        (
            (
                SAN,
                (
                    x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"x"),
                    True,
                ),
            ),
            "1.3.6.1.4.1.99999.1",
        ),
    ],
)
def test_leaves_that_do_not_fit(
    extensions: tuple[tuple[x509.ExtensionType, bool], ...], why: str
) -> None:
    error = refused(leaf(*extensions))
    assert error.reason is RefusalReason.BAD_CERTIFICATE
    assert why in error.detail


def test_an_unknown_extension_that_is_not_critical_is_ignored() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"x")
    judge(leaf(SAN, (unknown, False)))


def test_name_constraints_are_honoured() -> None:
    def under(constraints: x509.NameConstraints, *names: x509.GeneralName) -> None:
        root = authority("root", CA_BASIC, CA_KEY_USAGE, (constraints, True))
        judge(leaf((x509.SubjectAlternativeName(names), False)), roots=(root,))

    org = x509.NameConstraints([x509.DNSName("example.org")], None)
    under(org, x509.DNSName("example.org"))
    under(org, x509.DNSName("db1.example.org"))
    for name in ("badexample.org", "example.org.evil", "org"):
        with pytest.raises(RecordRefused):
            under(org, x509.DNSName(name))
    net = x509.NameConstraints(
        [x509.DNSName("db1"), x509.IPAddress(ipaddress.ip_network("192.0.2.0/24"))], None
    )
    under(net, x509.DNSName("db1"), x509.IPAddress(ipaddress.ip_address("192.0.2.7")))
    for address in ("198.51.100.1", "2001:db8::1"):
        with pytest.raises(RecordRefused):
            under(net, x509.DNSName("db1"), x509.IPAddress(ipaddress.ip_address(address)))


def test_keys_and_signatures_of_other_kinds_are_refused() -> None:
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    by_root = {"issuer": "root", "issuer_key": signing_key("root")}
    error = refused(certificate("db1", big, SAN, **by_root))  # type: ignore[arg-type]
    assert "neither Ed25519 nor ECDSA P-256" in error.detail
    other_curve = ec.generate_private_key(ec.SECP384R1())
    refused(certificate("db1", other_curve, SAN, **by_root))  # type: ignore[arg-type]
    rsa_root = certificate("root", big, CA_BASIC, CA_KEY_USAGE, issuer="root", issuer_key=big)
    signed = certificate("db1", signing_key("db1"), SAN, issuer="root", issuer_key=big)
    assert refused(signed, roots=(rsa_root,)).reason is RefusalReason.UNKNOWN_CA


def test_validity_is_that_of_the_whole_path_at_every_look() -> None:
    middle = authority("middle", issuer="root", first=NOW - 100, last=NOW + 100)
    chain = (leaf(issuer="middle"), middle)
    trust = Trust((authority("root"),))
    der = tuple(certificate_der(entry) for entry in chain)
    assert trust.judge(der, path=PATH, wall_now=NOW).valid_until == NOW + 100
    trust.judge(der, path=PATH, wall_now=WallTime(NOW + 160))  # within the skew
    for at, reason in (
        (NOW + 161, RefusalReason.EXPIRED_CERTIFICATE),
        (NOW - 161, RefusalReason.NOT_YET_VALID),
    ):
        with pytest.raises(RecordRefused) as caught:
            trust.judge(der, path=PATH, wall_now=WallTime(at))
        assert caught.value.reason is reason
    trust.judge(der, path=PATH, wall_now=NOW)


def test_either_of_two_roots_during_a_rollover_of_the_ca() -> None:
    old = authority("root", first=NOW - 10 * DAY, last=NOW - DAY)
    new = authority("root")
    own = leaf(first=NOW - 10 * DAY)
    for roots in ((old, new), (new, old)):
        judge(own, roots=roots)
        judge(own, roots=roots, at=NOW - 5 * DAY)
        assert refused(own, roots=roots, at=NOW + 3 * DAY).reason is (
            RefusalReason.EXPIRED_CERTIFICATE
        )


def test_a_remembered_chain_costs_no_signature() -> None:
    """A thousand offers under one leaf: what is remembered is looked up, and still judged."""
    own = identity("db1")
    trust = Trust([ca().certificate])
    first = trust.judge(own.der_chain, path=PATH, wall_now=NOW)
    assert trust.judge(own.der_chain, path=PATH, wall_now=NOW).key is first.key


# Revocation


def judge_with(
    chain: tuple[x509.Certificate, ...],
    *crls: RevocationList,
    roots: tuple[x509.Certificate, ...] | None = None,
    at: float = NOW,
) -> Speaker:
    trust = Trust((authority("root"),) if roots is None else roots, crls)
    der = tuple(certificate_der(entry) for entry in chain)
    return trust.judge(der, path=PATH, wall_now=WallTime(at))


def revokes(
    issuer: str, *certificates: x509.Certificate, last: float = NOW + DAY
) -> RevocationList:
    """The list of an issuer, with these on it."""
    serials = [one.serial_number for one in certificates]
    signed = crl(*serials, issuer=named(issuer), key=signing_key(issuer), last=last)
    return believed(signed, [authority(issuer)])


def is_revoked(*args: Any, **more: Any) -> str:
    with pytest.raises(RecordRefused) as caught:
        judge_with(*args, **more)
    assert caught.value.reason is RefusalReason.REVOKED_CERTIFICATE
    return caught.value.detail


def test_a_revoked_leaf_does_not_speak() -> None:
    own = leaf()
    assert judge_with((own,), revokes("root")).names == {"db1"}
    detail = is_revoked((own,), revokes("root", own))
    assert f"{own.serial_number:x}" in detail
    assert "CN=root" in detail


def test_a_list_that_has_ended_keeps_its_force() -> None:
    own = leaf()
    is_revoked((own,), revokes("root", own, last=NOW - 1))


def test_who_is_revoked_and_expired_is_revoked() -> None:
    own = leaf()
    is_revoked((own,), revokes("root", own), at=NOW + 2 * DAY)


def test_a_revoked_intermediate_silences_all_below_it() -> None:
    first, second = authority("first", issuer="root"), authority("second", issuer="first")
    own = leaf(issuer="second")
    chain = (own, first, second)
    signers = judge_with(chain).signers
    assert signers == tuple(certificate_id(one) for one in (own, second, first))
    for issuer, revoked in (("root", first), ("first", second), ("second", own)):
        assert f"{revoked.serial_number:x}" in is_revoked(chain, revokes(issuer, revoked))
    judge_with(chain, revokes("root", second), revokes("root", own))  # those are not the root's


def test_another_path_may_stand() -> None:
    """An intermediate with two issuers: one revokes it, the other does not."""
    cross = authority("middle", issuer="root"), authority("middle", issuer="other")
    own, roots = leaf(issuer="middle"), (authority("root"), authority("other"))
    for revoked, stands in (cross, cross[::-1]):
        issuer = revoked.issuer.rfc4514_string().removeprefix("CN=")
        speaker = judge_with((own, *cross), revokes(issuer, revoked), roots=roots)
        assert speaker.signers == (certificate_id(own), certificate_id(stands))
    both = [revokes(one.issuer.rfc4514_string().removeprefix("CN="), one) for one in cross]
    is_revoked((own, *cross), *both, roots=roots)


def test_a_certificate_that_is_attached_and_not_needed_may_be_revoked() -> None:
    unneeded = authority("first", issuer="root")
    judge_with((leaf(), unneeded), revokes("root", unneeded))


def test_a_trusted_ca_is_not_revoked_by_its_own_list() -> None:
    judge_with((leaf(),), revokes("root", authority("root")))


def test_of_two_lists_the_newer_counts() -> None:
    own = leaf()
    old = believed(
        crl(own.serial_number, issuer=named("root"), key=signing_key("root"), number=1),
        [authority("root")],
    )
    new = believed(
        crl(issuer=named("root"), key=signing_key("root"), number=2), [authority("root")]
    )
    judge_with((own,), old, new)
    judge_with((own,), new, old)


def test_a_serial_number_that_rfc_5280_forbids() -> None:
    der = identity("db1").der_chain[0]
    serial_at = der.index(b"\x02\x10") + 2 if b"\x02\x10" in der else der.index(b"\x02\x0f") + 2
    negative = der[:serial_at] + bytes([der[serial_at] | 0x80]) + der[serial_at + 1 :]
    error = refused_der(negative)
    assert error.reason is RefusalReason.BAD_CERTIFICATE
    assert "serial" in error.detail


def refused_der(der: bytes) -> RecordRefused:
    with pytest.raises(RecordRefused) as caught:
        Trust([ca().certificate]).judge((der,), path=PATH, wall_now=NOW)
    return caught.value


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_bytes_that_are_no_certificate(chain: list[bytes]) -> None:
    with pytest.raises(RecordRefused) as caught:
        Trust([ca().certificate]).judge(tuple(chain), path=PATH, wall_now=NOW)
    assert caught.value.reason is RefusalReason.BAD_CERTIFICATE


@given(st.data())
def test_a_changed_byte_of_a_certificate_is_refused(data: st.DataObject) -> None:
    der = identity("db1").der_chain[0]
    place = data.draw(st.integers(0, len(der) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != der[place]))
    changed = der[:place] + bytes([value]) + der[place + 1 :]
    with pytest.raises(RecordRefused):
        Trust([ca().certificate]).judge((changed,), path=PATH, wall_now=NOW)
