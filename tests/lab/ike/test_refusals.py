"""Peers that must not get in: what charon says of them, and where it can be heard."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.lab.ike.pair import (
    CHILD,
    Pair,
    Side,
    connection_name,
    der,
    issue,
    make_ca,
    pair_of,
    psk_of,
)
from tunsec.adapters import ca_files
from tunsec.model.clock import WallTime
from tunsec.model.errors import Refused
from tunsec.model.ike import CertificateAuth, IkeConnection, Revocation
from tunsec.model.ike_sa import ChildEstablished, IkeEnded
from tunsec.model.secret import Secret
from tunsec_lab.host import Lab

pytestmark = pytest.mark.needs("esp-ipv4", "esn")


def run(lab: Lab, scenario: Callable[[Pair], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with pair_of(lab) as pair:
            await scenario(pair)

    asyncio.run(whole())


async def presenting(pair: Pair, side: Side, identity: Path) -> IkeConnection:
    """A connection of a side with the certificate and key of a folder, under the true CA."""
    await side.ike.load_key(Secret((identity / "key.pem").read_bytes()))
    auth = CertificateAuth((der(identity / "cert.pem"),), (der(side.identity / "ca.pem"),))
    return replace(pair.connection(side, 4), auth=auth)


async def refused(pair: Pair) -> str:
    """a cannot make a CHILD_SA; what it is told."""
    with pytest.raises(Refused) as caught:
        await pair.a.ike.initiate(connection_name(4), CHILD, seconds=10)
    await pair.a.wait_event(IkeEnded)
    await pair.b.wait_event(IkeEnded)
    async with asyncio.timeout(5):  # charon tells of the end before the SAs leave the kernel
        while pair.a.sas() or pair.b.sas():  # noqa: ASYNC110 - the kernel tells no event here
            await asyncio.sleep(0.01)
    assert not pair.a.events(ChildEstablished)
    return caught.value.reason


def test_a_certificate_for_another_name(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        mallory = issue(lab.folder / "mallory", lab.folder / "ike" / "ca", "mallory")
        await pair.load(pair.a, versions=[4])
        await pair.b.ike.load_connection(await presenting(pair, pair.b, mallory))
        reason = await refused(pair)
        assert "establishing CHILD_SA 'overlay.0' failed" in reason
        # charon sends the certificate's own name when the configured one is not in it.
        assert "mallory" in reason
        await pair.a.wait_words("mallory")

    run(lab, scenario)


def test_an_identity_that_is_not_the_peers(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        mallory = issue(lab.folder / "mallory", lab.folder / "ike" / "ca", "mallory")
        await pair.load(pair.a, versions=[4])
        connection = await presenting(pair, pair.b, mallory)
        await pair.b.ike.load_connection(replace(connection, local_identity="mallory"))
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words("no matching peer config found")

    run(lab, scenario)


def test_an_expired_certificate(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        at, days = time.time() - 200, 100 / 86_400
        expired = issue(lab.folder / "old", lab.folder / "ike" / "ca", "b", days=days, at=at)
        await pair.load(pair.a, versions=[4])
        await pair.b.ike.load_connection(await presenting(pair, pair.b, expired))
        assert "subject certificate invalid (valid from" in await refused(pair)

    run(lab, scenario)


def test_a_certificate_of_an_unknown_ca(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        evil = make_ca(lab.folder / "evil", name="evil")
        await pair.load(pair.b, versions=[4])
        identity = issue(lab.folder / "other", evil, "a")
        await pair.a.ike.load_connection(await presenting(pair, pair.a, identity))
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words('no issuer certificate found for "CN=a"')
        await pair.b.wait_words('issuer is "O=tunsec, CN=evil"')

    run(lab, scenario)


def test_a_ca_that_charon_trusts_for_others(lab: Lab) -> None:
    """Another program's CA in the same charon does not let its hosts into our flows."""

    async def scenario(pair: Pair) -> None:
        evil = make_ca(lab.folder / "evil", name="evil")
        await pair.load(pair.b, versions=[4])
        await pair.b.ike.load_certificate(der(evil / "ca.pem"))
        identity = issue(lab.folder / "other", evil, "a")
        await pair.a.ike.load_connection(await presenting(pair, pair.a, identity))
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words("authentication of 'a' with ED25519 successful")
        await pair.b.wait_words("no alternative config found")

    run(lab, scenario)


@pytest.mark.parametrize("revocation", [Revocation.RELAXED, Revocation.STRICT])
def test_a_revoked_certificate(lab: Lab, revocation: Revocation) -> None:
    async def scenario(pair: Pair) -> None:
        pair.revocation = revocation
        await pair.load(pair.a, versions=[4])
        await pair.load(pair.b, versions=[4])
        for side in pair.sides:
            await side.ike.load_crl(crl(lab.folder / "ike" / "ca", revoked=pair.b.identity))
        assert "certificate was revoked" in await refused(pair)

    run(lab, scenario)


def test_without_a_list_strict_refuses(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        pair.revocation = Revocation.STRICT
        await pair.load(pair.a, versions=[4])
        await pair.load(pair.b, versions=[4])
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words("certificate status is not available")
        await pair.a.ike.load_crl(crl(lab.folder / "ike" / "ca", revoked=None))
        await pair.b.ike.load_crl(crl(lab.folder / "ike" / "ca", revoked=None))
        await pair.a.ike.initiate(connection_name(4), CHILD, seconds=10)

    run(lab, scenario)


def crl(ca: Path, *, revoked: Path | None) -> bytes:
    """A revocation list with one certificate or none, DER."""
    now = datetime.now(UTC)
    authority = ca_files.load(ca, wall_now=WallTime(now.timestamp()))
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - timedelta(minutes=1))
        .next_update(now + timedelta(days=1))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    if revoked is not None:
        leaf = x509.load_pem_x509_certificate((revoked / "cert.pem").read_bytes())
        entry = x509.RevokedCertificateBuilder().serial_number(leaf.serial_number)
        entry = entry.revocation_date(now - timedelta(minutes=1))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, None).public_bytes(Encoding.DER)


def test_a_wrong_psk(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.load_both(psk=True)
        await pair.b.ike.load_secret(psk_of(pair.b, pair.a, b"something else altogether"))
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words("tried 1 shared key for 'b' - 'a', but MAC mismatched")
        for side in pair.sides:
            assert await side.ike.loaded_secrets() == ("tunsec-psk",)
            await side.ike.unload_secret("tunsec-psk")
            assert await side.ike.loaded_secrets() == ()
            assert "correct horse" not in side.words() + side.charon.log()

    run(lab, scenario)


def test_a_peer_without_the_ppk(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.load_both()
        await pair.b.ike.load_connection(replace(pair.connection(pair.b, 4), ppk_id="cluster-1"))
        assert "AUTHENTICATION_FAILED" in await refused(pair)
        await pair.b.wait_words("PPK required but peer does not support PPK")

    run(lab, scenario)


def test_a_connection_that_charon_cannot_read(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        bad = CertificateAuth((b"no certificate",), (b"nor this",))
        connection = replace(pair.connection(pair.a, 4), auth=bad)
        with pytest.raises(Refused, match="invalid value for: certs"):
            await pair.a.ike.load_connection(connection)
        assert await pair.a.ike.loaded_connections() == ()

    run(lab, scenario)
