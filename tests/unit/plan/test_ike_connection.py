"""The connection of a pair: names that tell apart, two ends that fit, nothing charon misreads."""

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId, Keying, Kind, RekeyRule
from tunsec.model.ike import (
    GIVES_UP_AFTER,
    MAX_NAME,
    MAX_NUMBER,
    NAME_PREFIX,
    SLOTS,
    CertificateAuth,
    ConnectionId,
    IkeAuth,
    IkeConnection,
    IkeRules,
    Limits,
    PskAuth,
    Revocation,
    Unique,
)
from tunsec.model.ike_sa import Algorithms
from tunsec.model.names import FlowName, HostName, Mark, Reqid, TenantName
from tunsec.model.ownership import REQID_FIRST
from tunsec.model.selector import TCP, UDP, PortMatch, Selector
from tunsec.plan.ike_connection import (
    VARIANTS,
    IkeSetup,
    Slot,
    child_name,
    ike_connection,
    slots,
)
from tunsec.plan.sas import lifetimes
from tunsec.policy.values import read_flow_name, read_host_name, read_tenant_name
from tunsec.wire.strongswan_conf import parse_settings
from tunsec.wire.vici.requests import MAX_LABEL, encode_connection

DROP_IN = Path(__file__).parents[3] / "systemd" / "charon-tunsec.conf"
RULES = IkeRules(
    IkeAuth.CERTIFICATE, Seconds(14_400.0), None, Seconds(5.0), Revocation.STRICT, None
)
ABLE = Algorithms(
    frozenset({"AES_GCM_16", "CHACHA20_POLY1305"}),
    frozenset({"PRF_HMAC_SHA2_256"}),
    frozenset({"CURVE_25519", "ML_KEM_768"}),
)
SETUP = IkeSetup(
    ABLE,
    CertificateAuth((b"leaf",), (b"root",), Revocation.STRICT),
    None,
    (Aead.CHACHA20_POLY1305, Aead.AES_256_GCM, Aead.AES_128_GCM),
    RULES,
)
RULE = RekeyRule(Seconds(3600.0), 0.1, Seconds(28_800.0), 2**38, 2**32)
A, B = HostName("a.example.com"), HostName("b.example.com")
IDENTITIES = {A: "alpha.example.com", B: B}
V4 = (ipaddress.ip_address("192.0.2.11"), ipaddress.ip_address("192.0.2.12"))
LONGEST = HostName(".".join(["x" * 63] * 3 + ["y" * 61]))
WIDEST = (
    ipaddress.ip_address("2001:db8:1111:2222:3333:4444:5555:6666"),
    ipaddress.ip_address("2001:db8:1111:2222:3333:4444:5555:7777"),
)


def child(
    flow: str = "overlay",
    *,
    peer: HostName = B,
    tenant: str | None = None,
    ends: Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address] = V4,
    proto: int = UDP,
    rekey: RekeyRule = RULE,
    aeads: tuple[Aead, ...] = tuple(Aead),
) -> Child:
    """A child of the host that is not `peer`, with the first of `ends`."""
    local, remote = ends
    here, there = ipaddress.ip_network(local), ipaddress.ip_network(remote)
    port = PortMatch(4789)
    return Child(
        id=ChildId(
            peer, FlowName(flow), None if tenant is None else TenantName(tenant), local, remote
        ),
        kind=Kind.VXLAN,
        keying=Keying.IKE,
        reqid=Reqid(REQID_FIRST + 7),
        outbound=(Selector(here, there, proto, dport=port),),
        inbound=(Selector(there, here, proto, dport=port),),
        priority=1,
        rekey=rekey,
        aeads=aeads,
        replay_window=1024,
    )


def connection(
    *children: Child, setup: IkeSetup = SETUP, host: HostName = A, variant: int = 0
) -> IkeConnection:
    """What `host` loads for these children."""
    first = children[0].id
    return ike_connection(
        ConnectionId(first.peer, first.local, first.remote),
        children,
        host=host,
        identities=IDENTITIES | {LONGEST: LONGEST},
        setup=setup,
        variant=variant,
    )


# -- names ---------------------------------------------------------------------------------------

label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
long_label = st.from_regex(r"x{55}[a-z0-9-]{0,7}[a-z0-9]", fullmatch=True)
hosts = st.builds(
    lambda labels, last: HostName(".".join((*labels, last))),
    st.lists(label, max_size=2) | st.lists(long_label, min_size=2, max_size=3),
    st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True).filter(lambda word: word != "all"),
)
addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
connection_ids = st.builds(ConnectionId, hosts, addresses, addresses)


@given(st.lists(connection_ids, unique=True, min_size=2, max_size=6))
def test_connections_have_names_of_their_own(ids: list[ConnectionId]) -> None:
    names = [one.name for one in ids]
    assert len(set(names)) == len(ids)
    assert all(name.startswith(NAME_PREFIX) and len(name) <= MAX_NAME for name in names)
    assert all(read_host_name(one.peer) for one in ids), "or these are no names of a policy"


def test_a_name_tells_what_it_is_of() -> None:
    assert ConnectionId(HostName("db2"), *V4).name == "tunsec-db2-192.0.2.11-192.0.2.12"


def test_hosts_that_differ_at_the_end_of_a_long_name() -> None:
    other = HostName(LONGEST[:-1] + "z")
    assert ConnectionId(LONGEST, *WIDEST).name != ConnectionId(other, *WIDEST).name
    assert len(ConnectionId(LONGEST, *WIDEST).name) <= MAX_NAME


plain = st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True) | st.sampled_from(["a", "b"])
child_ids = st.builds(
    ChildId,
    peer=st.just(B),
    flow=plain.map(FlowName),
    tenant=st.none() | plain.map(TenantName),
    local=st.just(V4[0]),
    remote=st.just(V4[1]),
)


@given(st.lists(child_ids, unique=True, min_size=1, max_size=5))
def test_both_hosts_read_the_same_out_of_every_name(ids: list[ChildId]) -> None:
    ours = slots([replace(child(), id=one) for one in ids], A)
    mirrored = [replace(one, peer=A, local=one.remote, remote=one.local) for one in ids]
    theirs = slots([replace(child(), id=one) for one in mirrored], B)
    assert len(ours) == 2 * SLOTS * len(ids), "two things have one name"
    assert ours.keys() == theirs.keys()
    back = dict(zip(mirrored, ids, strict=True))
    assert ours == {
        name: Slot(back[slot.child], not slot.own, slot.slot) for name, slot in theirs.items()
    }
    assert all(len(name) <= min(MAX_NAME, MAX_LABEL) for name in ours)
    assert all(read_flow_name(one.flow) for one in ids), "or these are no names of a policy"
    assert all(read_tenant_name(one.tenant) for one in ids if one.tenant is not None)


def test_a_child_has_a_name_for_each_sender_and_slot() -> None:
    red = child(tenant="red")
    assert list(slots([red], A).items()) == [
        (f"overlay.red.{letter}.{slot}", Slot(red.id, letter == "a", slot))
        for letter in "ab"
        for slot in (0, 1, 2)
    ]
    assert child_name(child().id, sender=B, receiver=A, slot=1) == "overlay.b.1"


# -- two ends ------------------------------------------------------------------------------------


def test_the_two_ends_of_a_connection_fit() -> None:
    flows = [("overlay", None), ("overlay-b", "red"), ("overlay-b", "blue")]
    ours = connection(*[child(flow, tenant=tenant) for flow, tenant in flows])
    theirs = connection(
        *[child(flow, tenant=tenant, peer=A, ends=V4[::-1]) for flow, tenant in reversed(flows)],
        host=B,
    )
    assert (ours.local, ours.remote) == (theirs.remote, theirs.local)
    assert (ours.local_identity, ours.remote_identity) == ("alpha.example.com", "b.example.com")
    assert (theirs.local_identity, theirs.remote_identity) == (B, "alpha.example.com")
    assert ours.proposals == theirs.proposals
    mirrored = {one.name: one for one in theirs.children}
    for one in ours.children:
        other = mirrored.pop(one.name)
        assert one == replace(other, local=other.remote, remote=other.local)
        assert one.label == one.name
    assert not mirrored


def test_what_a_tenants_sas_decrypt_bears_its_mark() -> None:
    """Outbound it is the SPs that look at the mark; the SA is pinned by its SPI."""
    mark = Mark(0x8100_0000, 0xFF00_0000)
    asked = connection(child(), replace(child(tenant="red"), mark=mark))
    by_mark = {one.set_mark_in: one for one in asked.children}
    assert set(by_mark) == {None, mark}
    for one in asked.children:
        assert (one.mark_in, one.mark_out, one.set_mark_out) == (None, None, None)


def test_nothing_of_charons_own_will_is_left() -> None:
    """tunsec rekeys and asks for proof; no IKE_SA is ended because the peer made another."""
    made = connection(child())
    assert all(one.seconds.rekey is None for one in made.children)
    assert all((one.volume.rekey, one.packets.rekey) == (None, None) for one in made.children)
    assert made.reauth_after is None
    assert made.unique is Unique.NEVER


def test_selectors_are_the_pair_and_the_protocol_of_the_flow() -> None:
    for proto in (UDP, TCP):
        (one, *_) = connection(child(proto=proto)).children
        (local,), (remote,) = one.local, one.remote
        assert (str(local.network), str(remote.network)) == ("192.0.2.11/32", "192.0.2.12/32")
        assert (local.proto, remote.proto) == (proto, proto)
        assert (local.first_port, local.last_port) == (0, 0xFFFF)
        assert (remote.first_port, remote.last_port) == (0, 0xFFFF)


def test_aeads_come_in_the_hosts_order_and_no_others_than_the_flow_allows() -> None:
    made = connection(child("any"), child("strict", aeads=(Aead.AES_128_GCM, Aead.AES_256_GCM)))
    chosen = {one.name: [proposal.aead for proposal in one.proposals] for one in made.children}
    # each of them with and without ML-KEM
    assert chosen["any.a.0"] == [*SETUP.aeads, *SETUP.aeads]
    assert chosen["strict.a.0"] == 2 * [Aead.AES_256_GCM, Aead.AES_128_GCM]
    with pytest.raises(
        Refused, match=r"strict refused: this host has no aes-128-gcm or aes-256-gcm"
    ):
        connection(
            child("strict", aeads=(Aead.AES_128_GCM, Aead.AES_256_GCM)),
            setup=replace(SETUP, aeads=(Aead.CHACHA20_POLY1305,)),
        )


# -- how long ------------------------------------------------------------------------------------


@given(
    span=st.floats(60.0, 30 * 86_400.0),
    variants=st.tuples(st.integers(0, 10**6), st.integers(1, VARIANTS - 1)),
)
def test_the_variants_of_a_connection_differ_in_its_end_alone(
    span: float, variants: tuple[int, int]
) -> None:
    setup = replace(SETUP, rules=replace(RULES, rekey_after=Seconds(span)))
    one, step = variants
    first = connection(child(), setup=setup, variant=one)
    later = connection(child(), setup=setup, variant=one + step)
    assert first.seconds.life != later.seconds.life
    assert replace(later, seconds=first.seconds) == first
    assert connection(child(), setup=setup, variant=one + VARIANTS) == first
    for made in (first, later):
        rekey, life = made.seconds.rekey, made.seconds.life
        assert rekey is not None
        assert life is not None
        assert span <= rekey < life < 1.25 * (rekey + 1) + VARIANTS
        assert 0 < made.seconds.jitter < rekey


counts = st.none() | st.integers(10, 2**63 - 1)


@given(
    after=st.floats(1.0, 30 * 86_400.0),
    factor=st.floats(1.1, 12.0),
    soft_bytes=counts,
    soft_packets=counts,
)
def test_sas_end_when_those_of_directory_keying_do(
    after: float, factor: float, soft_bytes: int | None, soft_packets: int | None
) -> None:
    """And later than their successors are asked for, however charon must be told."""
    rule = RekeyRule(Seconds(after), 0.1, Seconds(after * factor), soft_bytes, soft_packets)
    (one, *_) = connection(child(rekey=rule)).children
    ends = lifetimes(rule, inbound=True)
    assert one.seconds == Limits(None, ends.hard_seconds)
    for limits, hard in ((one.volume, ends.hard_bytes), (one.packets, ends.hard_packets)):
        assert (limits.life is None) is (hard is None)
        if hard is None or limits.life is None:
            continue
        assert limits.life == hard or MAX_NUMBER <= limits.life < hard
    if one.volume.life is not None and ends.hard_bytes is not None:
        assert one.volume.life > 0.999999 * ends.hard_bytes


@pytest.mark.parametrize(
    ("dead_after", "dpd_after"),
    [(None, None), (5.0, 1.0), (5.9, 1.0), (6.0, 2.0), (30.0, 26.0), (86_400.0, 86_396.0)],
)
def test_a_silent_peer_is_asked_in_time(dead_after: float | None, dpd_after: float | None) -> None:
    span = None if dead_after is None else Seconds(dead_after)
    made = connection(child(), setup=replace(SETUP, rules=replace(RULES, dead_after=span)))
    assert made.dpd_after == dpd_after


def test_the_drop_in_gives_a_peer_up_as_soon_as_the_rules_count_on() -> None:
    found = parse_settings(DROP_IN.read_text(), DROP_IN.name, lambda *_: ())

    def number(name: str) -> float:
        value = found.value(f"charon.{name}")
        assert value is not None
        return float(value)

    timeout, base = number("retransmit_timeout"), number("retransmit_base")
    tries = int(number("retransmit_tries"))
    assert sum(timeout * base**one for one in range(tries + 1)) <= GIVES_UP_AFTER


# -- what charon gets ----------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    flow=child_ids,
    peer=hosts | st.just(LONGEST),
    ends=st.just(WIDEST) | st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
    after=st.floats(1.0, 30 * 86_400.0),
    soft=counts,
    psk=st.booleans(),
    rekey_after=st.floats(60.0, 30 * 86_400.0),
    dead_after=st.none() | st.floats(5.0, 86_400.0),
    variant=st.integers(0, 2**40),
)
def test_whatever_a_policy_says_can_be_said_to_charon(
    flow: ChildId,
    peer: HostName,
    ends: tuple[ipaddress.IPv6Address, ipaddress.IPv6Address],
    after: float,
    soft: int | None,
    psk: bool,
    rekey_after: float,
    dead_after: float | None,
    variant: int,
) -> None:
    rules = replace(
        RULES,
        rekey_after=Seconds(rekey_after),
        dead_after=None if dead_after is None else Seconds(dead_after),
    )
    rule = RekeyRule(Seconds(after), 0.1, Seconds(after * 8), soft, soft)
    local, remote = ends
    one = replace(
        child(ends=ends, rekey=rule),
        id=ChildId(peer, flow.flow, flow.tenant, local, remote),
    )
    made = ike_connection(
        ConnectionId(peer, local, remote),
        [one],
        host=A,
        identities={A: LONGEST, peer: peer},
        setup=replace(SETUP, rules=rules, auth=PskAuth() if psk else SETUP.auth, ppk_id="tunsec"),
        variant=variant,
    )
    assert list(encode_connection(made)) == [ConnectionId(peer, local, remote).name]
