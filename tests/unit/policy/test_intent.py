"""Policy text -> Intent: defaults, inheritance, digest."""

import pytest
from hypothesis import given

from tests.unit.policy.written import HEAD, document_pairs
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import PolicyError
from tunsec.model.flow import Keying, Mode, OffloadWish, OnReconnect, RekeyRule
from tunsec.model.ike import IkeAuth, IkeRules, Revocation
from tunsec.model.names import Mark
from tunsec.plan.sas import lifetimes
from tunsec.policy.intent import Flow, Marks, parse_policy
from tunsec.policy.values import LocalSenders, OtherTenants, Ppk, Strangers

MINUTE = 60.0
HOUR = 3600.0


def flow_of(flow: str, *, defaults: str = "{}") -> Flow:
    """The only flow of a policy."""
    text = f"{HEAD}defaults: {defaults}\nflows:\n  x: {flow}\n"
    (only,) = parse_policy(text, "p").flows
    return only


def rekey_of(rekey: str, *, defaults: str = "{}") -> RekeyRule:
    """The rule that holds for a flow."""
    flow = f"{{kind: vxlan, between: [db1, db2], rekey: {rekey}}}"
    return flow_of(flow, defaults=f"{{rekey: {defaults}}}").rekey


def test_every_default_is_filled_in() -> None:
    flow = flow_of("{kind: vxlan, between: [db2, db1]}")
    assert flow == Flow(
        name=flow.name,
        kind=flow.kind,
        mode=Mode.ESP,
        keying=Keying.DIRECTORY,
        port=4789,
        hosts=flow.hosts,
        service_addresses=(),
        aeads=tuple(Aead),
        rekey=RekeyRule(
            after=flow.rekey.after,
            jitter=0.1,
            hard_after=flow.rekey.hard_after,
            soft_bytes=2**38,
            soft_packets=2**32,
        ),
        tenants=(),
        other_tenants=OtherTenants.SHARED,
        on_reconnect=OnReconnect.KEEP,
        offload=OffloadWish.NONE,
        esn=True,
        local_senders=LocalSenders.TUNNEL_ONLY,
        strangers=Strangers.BLOCKED,
    )
    assert flow.hosts == ("db1", "db2")
    assert (flow.rekey.after, flow.rekey.hard_after) == (HOUR, 8 * HOUR)


def test_a_flow_overrides_the_defaults() -> None:
    defaults = "{aead: aes-256-gcm, local_senders: any, strangers: allowed}"
    inherited = flow_of("{kind: vxlan, between: [db1, db2]}", defaults=defaults)
    assert inherited.aeads == (Aead.AES_256_GCM,)
    assert inherited.local_senders is LocalSenders.ANY
    assert inherited.strangers is Strangers.ALLOWED
    own = flow_of(
        "{kind: vxlan, between: [db1, db2], aead: auto, local_senders: tunnel-only, "
        "strangers: blocked, port: 8472}",
        defaults=defaults,
    )
    assert own.aeads == tuple(Aead)
    assert own.local_senders is LocalSenders.TUNNEL_ONLY
    assert own.strangers is Strangers.BLOCKED
    assert own.port == 8472


@pytest.mark.parametrize("kind", ["rds-tcp", "rocev2", "tcp", "udp"])
def test_where_the_kernel_sends_from_sockets_of_its_own_programs_do_not(kind: str) -> None:
    port = ", port: 5432" if kind in ("tcp", "udp") else ""
    flow = f"kind: {kind}{port}, between: [db1, db2]"
    closed = LocalSenders.ANY if port else LocalSenders.TUNNEL_ONLY
    assert flow_of(f"{{{flow}}}").local_senders is closed
    assert flow_of(f"{{{flow}}}", defaults="{local_senders: any}").local_senders is LocalSenders.ANY


def test_each_key_of_rekey_is_inherited_by_itself() -> None:
    rule = rekey_of("{after: 30m}", defaults="{after: 2h, bytes: 1GiB, jitter: 0%}")
    assert rule == RekeyRule(
        after=rule.after,
        jitter=0.0,
        hard_after=rule.hard_after,
        soft_bytes=2**30,
        soft_packets=2**32,
    )
    assert (rule.after, rule.hard_after) == (30 * MINUTE, 4 * HOUR)


def test_none_is_no_limit_and_not_the_default() -> None:
    rule = rekey_of("{bytes: none, packets: none}", defaults="{bytes: 1GiB, packets: 1000}")
    assert (rule.soft_bytes, rule.soft_packets) == (None, None)


@pytest.mark.parametrize(
    ("rekey", "hard"),
    [("{after: 1s}", 10 * MINUTE), ("{after: 2m}", 16 * MINUTE), ("{after: 1s, hard: 5s}", 5.0)],
)
def test_hard_is_eight_times_after_but_ten_minutes_at_least(rekey: str, hard: float) -> None:
    assert rekey_of(rekey).hard_after == hard


def test_a_nic_that_must_do_the_work_gets_an_aead_that_it_knows() -> None:
    for wish in ("crypto", "packet"):
        flow = flow_of(f"{{kind: vxlan, between: [db1, db2], offload: {wish}}}")
        assert flow.aeads == (Aead.AES_128_GCM, Aead.AES_256_GCM)
    assert flow_of("{kind: vxlan, between: [db1, db2], offload: auto}").aeads == tuple(Aead)


@pytest.mark.parametrize(
    ("packets", "soft"), [("none", 2**31), ("4294967296", 2**31), ("1000000000", 10**9)]
)
def test_short_sequence_numbers_end_before_they_run_out(packets: str, soft: int) -> None:
    flow = flow_of(
        "{kind: vxlan, between: [db1, db2], sequence_numbers: 32-bit, "
        f"rekey: {{packets: {packets}}}}}"
    )
    assert flow.esn is False
    assert flow.rekey.soft_packets == soft
    for inbound in (True, False):
        hard = lifetimes(flow.rekey, inbound=inbound).hard_packets
        assert hard is not None
        assert hard < 2**32


def test_marks_and_ppk() -> None:
    flows = "flows:\n  x: {kind: vxlan, between: [db1, db2]}\n"
    usual = parse_policy(f"{HEAD}{flows}", "p")
    assert usual.marks == Marks(24, 31)
    assert usual.marks.mask == 0xFF00_0000
    assert usual.marks.tunnel == Mark(0x8000_0000, 0x8000_0000)
    assert usual.ppk is Ppk.NONE
    other = parse_policy(f"{HEAD}{flows}marks: {{bits: 16-19}}\ndefaults: {{ppk: required}}\n", "p")
    assert other.marks.mask == 0x000F_0000
    assert other.marks.tunnel == Mark(0x0008_0000, 0x0008_0000)
    assert other.ppk is Ppk.REQUIRED
    assert other.digest != usual.digest


@pytest.mark.parametrize(
    ("defaults", "rds", "tcp"),
    [("{}", "keep", "keep"), ("{on_reconnect: rekey}", "rekey", "rekey")],
)
def test_what_a_new_connection_needs_is_asked_of_kinds_that_have_connections(
    defaults: str, rds: str, tcp: str
) -> None:
    text = (
        f"{HEAD}defaults: {defaults}\nflows:\n"
        "  bus: {kind: rds-tcp, between: [db1, db2]}\n"
        "  copy: {kind: tcp, port: 5432, between: [db1, db2]}\n"
        "  own: {kind: tcp, port: 5433, between: [db1, db2], on_reconnect: keep}\n"
        "  x: {kind: vxlan, between: [db1, db2]}\n"
    )
    found = {flow.name: flow.on_reconnect for flow in parse_policy(text, "p").flows}
    assert found == {"bus": rds, "copy": tcp, "own": "keep", "x": "keep"}


def test_a_host_is_known_by_its_name_or_its_identity() -> None:
    text = f"{HEAD}  db7: {{address: 192.0.2.17, identity: seven.example.com}}\n"
    intent = parse_policy(f"{text}flows:\n  x: {{kind: vxlan, between: [db1, db7]}}\n", "p")
    assert intent.host("db1").identity == "db1"
    assert intent.host("db7").identity == "seven.example.com"


def test_a_host_that_the_policy_does_not_name() -> None:
    intent = parse_policy(f"{HEAD}flows:\n  x: {{kind: vxlan, between: [db1, db2]}}\n", "p")
    with pytest.raises(PolicyError) as caught:
        intent.host("bd1")
    (problem,) = caught.value.problems
    assert str(problem) == "host bd1: the policy does not name it (did you mean 'db1'?)"


@given(document_pairs())
def test_order_and_style_mean_nothing(pair: tuple[str, str]) -> None:
    one, other = (parse_policy(text, "p") for text in pair)
    assert one == other
    assert one.digest == other.digest


def test_writing_a_default_out_changes_nothing() -> None:
    short = "{kind: vxlan, between: [db1, db2]}"
    long = (
        "{kind: vxlan, port: 4789, mode: esp, aead: auto, between: [db2, db1], rekey: {after: 60m}}"
    )
    digests = {parse_policy(f"{HEAD}flows: {{x: {flow}}}\n", "p").digest for flow in (short, long)}
    assert len(digests) == 1


def test_the_digest_does_not_change_between_runs_and_versions() -> None:
    """Hosts compare digests, so it may only change when what it says changes."""
    text = "version: 1\nhosts: {a: {address: 192.0.2.1}, b: {address: 192.0.2.2}}\n"
    intent = parse_policy(f"{text}flows: {{x: {{kind: vxlan, between: all}}}}\n", "p")
    assert intent.digest == "5bec124431b495efa26d579b4d6d14688b2469860612d571c621f0ab3bf1e2d2"


def ike_of(ike: str) -> IkeRules:
    """What a policy says of IKE_SAs."""
    flows = "flows:\n  x: {kind: vxlan, keying: ike, between: [db1, db2]}\n"
    return parse_policy(f"{HEAD}{flows}ike: {ike}\n", "p").ike


def test_every_rule_of_ike_has_a_default() -> None:
    assert ike_of("{}") == IkeRules(
        auth=IkeAuth.CERTIFICATE,
        rekey_after=Seconds(4 * HOUR),
        reauth_after=None,
        dead_after=Seconds(5.0),
        revocation=Revocation.RELAXED,
        psk_file=None,
    )


def test_rules_of_ike_are_taken_as_they_are_given() -> None:
    told = ike_of("{rekey: 90s, reauth: 24h, dead_after: never, revocation: strict}")
    assert told == IkeRules(
        IkeAuth.CERTIFICATE, Seconds(90.0), Seconds(24 * HOUR), None, Revocation.STRICT
    )
    shared = ike_of("{auth: psk, psk_file: /etc/tunsec/psk, reauth: never}")
    assert (shared.auth, shared.psk_file) == (IkeAuth.PSK, "/etc/tunsec/psk")
    assert shared.reauth_after is None


def test_rules_of_ike_count_where_a_flow_uses_it() -> None:
    """A digest that others compare must not change by what means nothing."""
    texts = [
        f"{HEAD}flows:\n  x: {{kind: vxlan, keying: {keying}, between: [db1, db2]}}\n{ike}"
        for keying in ("directory", "ike")
        for ike in ("", "ike: {dead_after: 9s}\n")
    ]
    plain, unused, used, other = [parse_policy(text, "p") for text in texts]
    assert plain.digest == unused.digest
    assert len({plain.digest, used.digest, other.digest}) == 3
    assert [intent.uses_ike for intent in (plain, unused, used, other)] == [0, 0, 1, 1]
