"""Claims: what an owner signs comes back, and everything else is refused by name."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.sim.cast import EPOCH, identity, trust
from tunsec.keying.canonical import decode_canonical, encode_canonical, from_base64, to_base64
from tunsec.keying.claims import ClaimBook, KnownClaims
from tunsec.keying.paths import ClaimPath, parse_path
from tunsec.keying.records import CLAIM_TYPE, OFFER_TYPE
from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.names import Boot, HostName
from tunsec.model.record import Claim

OWNERS = {"vip": {HostName("h0"): "h0", HostName("h1"): "h1"}}
BOOT = Boot("5" * 32)


def book(host: str = "h2", known: KnownClaims | None = None) -> ClaimBook:
    """A host's claim book."""
    return ClaimBook(identity(host), trust(), owners=OWNERS, known=known or KnownClaims())


def made(claim: Claim, by: str | None = None) -> bytes:
    """The record of a claim, signed by its owner or somebody else."""
    return book(by or claim.owner).sign(claim, wall_now=EPOCH)


def claim(token: int, owner: str = "h0", *, held: bool = True, service: str = "vip") -> Claim:
    """A claim."""
    return Claim(service, HostName(owner), token, BOOT, held)


def read(reader: ClaimBook, token: int, record: bytes, service: str = "vip") -> Claim:
    """What a reader makes of a record at the place of a token."""
    return reader.accept(ClaimPath(service, token), record, wall_now=EPOCH)


def refused(reader: ClaimBook, token: int, record: bytes) -> RefusalReason:
    """Why a reader does not believe a record; it believes what it did."""
    before = reader.remember(frozenset())
    with pytest.raises(RecordRefused) as caught:
        read(reader, token, record)
    assert reader.remember(frozenset()) == before
    return caught.value.reason


def test_what_an_owner_signs_is_believed_and_may_be_read_again() -> None:
    reader = book()
    for _ in range(2):
        assert read(reader, 3, made(claim(3))) == claim(3)
    assert reader.newest("vip") == claim(3)
    assert reader.newest("other") is None


def test_a_lower_token_is_refused_over_a_restart_too() -> None:
    reader = book()
    read(reader, 2, made(claim(2, "h1")))
    again = book(known=KnownClaims.decode(reader.remember(frozenset({"vip"})).encode()))
    for one in (reader, again):
        assert refused(one, 1, made(claim(1))) is RefusalReason.STALE
        assert refused(one, 2, made(claim(2))) is RefusalReason.REPLAYED
        assert refused(one, 2, made(claim(2, "h1", held=False))) is RefusalReason.REPLAYED
        assert read(one, 3, made(claim(3))) == claim(3)


def test_only_an_owner_and_only_for_itself() -> None:
    reader = book()
    assert refused(reader, 1, made(claim(1, "h2"))) is RefusalReason.NOT_AN_OWNER
    assert refused(reader, 1, made(claim(1, "h0"), by="h1")) is RefusalReason.WRONG_NAME
    assert refused(reader, 2, made(claim(1))) is RefusalReason.WRONG_NAME
    foreign = made(claim(1, service="other"))
    with pytest.raises(RecordRefused, match="not-an-owner"):
        read(reader, 1, foreign, service="other")


def forged(change: Callable[[dict[str, object]], None]) -> bytes:
    """A record changed after it was signed."""
    envelope = decode_canonical(made(claim(1)))
    assert isinstance(envelope, dict)
    change(envelope)
    return encode_canonical(envelope)


def test_a_changed_record_is_refused() -> None:
    def another_token(envelope: dict[str, object]) -> None:
        body = decode_canonical(from_base64(str(envelope["body"])))
        assert isinstance(body, dict)
        envelope["body"] = to_base64(encode_canonical({**body, "token": 9}))

    def another_type(envelope: dict[str, object]) -> None:
        assert envelope["type"] == CLAIM_TYPE
        envelope["type"] = OFFER_TYPE

    assert refused(book(), 9, forged(another_token)) is RefusalReason.FORGED
    assert refused(book(), 1, forged(another_type)) is RefusalReason.UNKNOWN_TYPE
    assert refused(book(), 1, made(claim(1))[:-1]) is RefusalReason.TRUNCATED
    assert refused(book(), 1, b"x" * 70_000) is RefusalReason.OVERSIZED


def test_a_revoked_owner_is_not_believed() -> None:
    reader = book()
    reader.renew_identity(identity("h2"), trust(frozenset({("h0", 1)})))
    assert refused(reader, 1, made(claim(1))) is RefusalReason.REVOKED_CERTIFICATE
    assert read(reader, 2, made(claim(2, "h1"))).owner == "h1"


def test_an_own_claim_counts_when_it_has_landed() -> None:
    own = book("h0")
    own.landed(claim(4))
    assert read(own, 4, made(claim(4))) == claim(4)
    with pytest.raises(RecordRefused):
        own.landed(replace(claim(4), held=False))


@pytest.mark.parametrize("name", ["vip", "rds-vip", "a.b", "vip.7"])
@pytest.mark.parametrize("token", [1, 10, 10**17])
def test_a_path_names_one_service_and_one_token(name: str, token: int) -> None:
    path = ClaimPath(name, token)
    assert parse_path(str(path)) == path


@pytest.mark.parametrize("name", ["vip", "vip.", "vip.0", "vip.01", "vip.-1", ".1", "a/b.1", "é.1"])
def test_other_paths_are_none(name: str) -> None:
    with pytest.raises(RecordRefused, match="bad-name"):
        parse_path(f"claims/{name}")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"claims":[],"served":[],"version":2}'])
def test_a_memory_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        KnownClaims.decode(body)
