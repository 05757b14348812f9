"""The key schedule against RFC vectors, against its own file, and against a second derivation."""

import hashlib
import hmac
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.keying.schedule import (
    SaName,
    WeakKey,
    confirmation_key,
    is_weak,
    pair_salt,
    pair_secret,
    ppk_id,
    public_value,
    sa_key,
    shared_secret,
)
from tunsec.model.aead import Aead
from tunsec.model.names import FlowName, HostName, Spi, TenantName
from tunsec.model.secret import Secret

VECTORS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vectors.json").read_text())[
    "vectors"
]

SMALL_ORDER = (  # https://cr.yp.to/ecdh.html#validate: points whose multiples are few
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand by hand (RFC 5869 section 2.3)."""
    block = out = b""
    counter = 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out += block
        counter += 1
    return out[:length]


def counted(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def name_of(row: dict[str, Any]) -> SaName:
    return SaName(
        flow=FlowName(row["flow"]),
        tenant=None if row["tenant"] is None else TenantName(row["tenant"]),
        sender=HostName(row["sender"]),
        receiver=HostName(row["receiver"]),
        src=ipaddress.ip_address(row["src"]),
        dst=ipaddress.ip_address(row["dst"]),
        spi=Spi(int(row["spi"], 16)),
        aead=Aead(row["aead"]),
    )


def prk_of(vector: dict[str, Any], *, side: str = "a", other: str = "b") -> Secret:
    private = Secret(bytes.fromhex(vector[side]["private"]))
    shared = shared_secret(private, bytes.fromhex(vector[other]["public"]))
    salt = pair_salt(
        *((HostName(vector[end]["host"]), vector[end]["body"].encode()) for end in (side, other))
    )
    ppk = vector["ppk"]
    return pair_secret(shared, salt=salt, ppk=Secret(bytes.fromhex(ppk)) if ppk else None)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["title"])
def test_vectors_hold_on_both_sides(vector: dict[str, Any]) -> None:
    for side, other in (("a", "b"), ("b", "a")):
        private = Secret(bytes.fromhex(vector[side]["private"]))
        assert public_value(private).hex() == vector[side]["public"]
        prk = prk_of(vector, side=side, other=other)
        assert prk.reveal().hex() == vector["prk"]
        for row in vector["confirmation_keys"]:
            author, reader = HostName(row["author"]), HostName(row["reader"])
            key = confirmation_key(prk, author=author, reader=reader)
            assert key.reveal().hex() == row["key"]
        for row in vector["sa_keys"]:
            assert sa_key(prk, name_of(row)).reveal().hex() == row["key"]
    if vector["ppk"]:
        assert ppk_id(Secret(bytes.fromhex(vector["ppk"]))) == vector["ppk_id"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["title"])
def test_vectors_follow_from_the_text_of_the_schedule(vector: dict[str, Any]) -> None:
    """A second derivation, from hashlib and hmac alone."""
    lower, upper = sorted((vector["a"], vector["b"]), key=lambda end: end["host"])
    salt = hashlib.sha256(
        counted(lower["body"].encode()) + counted(upper["body"].encode())
    ).digest()
    material = bytes.fromhex(vector["shared"]) + bytes.fromhex(vector["ppk"] or "")
    prk = hmac.digest(salt, material, "sha256")
    assert (salt.hex(), prk.hex()) == (vector["salt"], vector["prk"])
    for row in vector["confirmation_keys"]:
        ends = counted(row["author"].encode()) + counted(row["reader"].encode())
        assert expand(prk, b"tunsec 1 confirmation" + ends, 32).hex() == row["key"]
    for row in vector["sa_keys"]:
        tenant = b"\0" if row["tenant"] is None else b"\1" + counted(row["tenant"].encode())
        label = (
            b"tunsec 1 esp"
            + counted(row["flow"].encode())
            + tenant
            + counted(row["sender"].encode())
            + counted(row["receiver"].encode())
            + counted(ipaddress.ip_address(row["src"]).packed)
            + counted(ipaddress.ip_address(row["dst"]).packed)
            + bytes.fromhex(row["spi"])
            + counted(row["aead"].encode())
        )
        length = 20 if row["aead"] == "aes-128-gcm" else 36
        assert expand(prk, label, length).hex() == row["key"]


def test_x25519_is_that_of_rfc_7748_section_5_2() -> None:
    base = (9).to_bytes(32, "little")
    assert shared_secret(Secret(base), base).reveal().hex() == (
        "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    )


def test_extraction_is_that_of_rfc_5869_appendix_a_1() -> None:
    prk = pair_secret(Secret(b"\x0b" * 22), salt=bytes(range(13)), ppk=None)
    assert prk.reveal().hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused(point: str) -> None:
    public = bytes.fromhex(point)
    assert is_weak(public)
    with pytest.raises(WeakKey):
        shared_secret(Secret(b"\x55" * 32), public)


def test_an_honest_public_value_is_not_weak() -> None:
    assert not is_weak(public_value(Secret(b"\x55" * 32)))


NAMES = st.builds(
    SaName,
    flow=st.sampled_from(["ab", "a", "abc"]).map(FlowName),
    tenant=st.sampled_from([None, "b", "c", "bc"]).map(lambda name: name and TenantName(name)),
    sender=st.sampled_from(["db1", "db2"]).map(HostName),
    receiver=st.sampled_from(["db1", "db2"]).map(HostName),
    src=st.sampled_from(["192.0.2.1", "192.0.2.2", "::c000:201"]).map(ipaddress.ip_address),
    dst=st.sampled_from(["192.0.2.1", "192.0.2.2", "::c000:201"]).map(ipaddress.ip_address),
    spi=st.sampled_from([0x100, 0x101, 0xFFFF_FFFF]).map(Spi),
    aead=st.sampled_from(Aead),
)


@given(NAMES, NAMES)
def test_two_sas_share_a_key_only_if_they_are_the_same(one: SaName, other: SaName) -> None:
    prk = Secret(bytes(range(32)))
    left, right = sa_key(prk, one).reveal(), sa_key(prk, other).reveal()
    assert (left[:20] == right[:20]) == (one == other)
    assert len(left) == one.aead.key_bytes + one.aead.salt_bytes


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_the_salt_knows_where_one_offer_ends(left: bytes, right: bytes) -> None:
    one, other = (HostName("a"), left), (HostName("b"), right)
    assert pair_salt(one, other) == pair_salt(other, one)
    if right:
        shifted = pair_salt((HostName("a"), left + right[:1]), (HostName("b"), right[1:]))
        assert shifted != pair_salt(one, other)


def test_no_secret_is_printed() -> None:
    vector = VECTORS[0]
    prk = prk_of(vector)
    key = sa_key(prk, name_of(vector["sa_keys"][0]))
    for secret in (prk, key):
        assert secret.reveal().hex()[:8] not in repr(secret)
        assert "bytes" in repr(secret)
