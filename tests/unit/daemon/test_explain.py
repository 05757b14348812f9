"""What `tunsec explain` says of packets of every kind on a host whose peers are not there yet, and
of questions that make no sense. tests/sim and tests/lab hold it against what kernels do."""

import dataclasses

import pytest

from tests.sim.host import SimHost
from tests.sim.test_explain import ask
from tests.sim.world import World
from tunsec.model.names import HostName, Mark, Reqid, Spi
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, Step, UpdateSp
from tunsec.plan.sas import outbound_sa
from tunsec.policy.desired import outbound_sps
from tunsec.policy.intent import parse_policy
from tunsec.wire.control import Malformed
from tunsec.wire.control_explain import EspBody, ExplainBody, Explanation, PacketBody, Verdict

POLICY = """
version: 1
hosts:
  h0: {address: [192.0.2.10, "2001:db8::10"]}
  h1: {address: [192.0.2.11, "2001:db8::11"]}
flows:
  overlay: {kind: vxlan, between: all, tenants: {red: 41, blue: 42}, strangers: blocked}
  shared: {kind: geneve, between: all, tenants: {red: 41}, other_tenants: shared}
  plain: {kind: vxlan, port: 4790, between: all}
  bus: {kind: rds-tcp, between: all}
  storage: {kind: rocev2, between: all}
  base: {kind: tcp, port: 5432, between: all}
"""


@pytest.fixture
def world() -> World:
    """h0 runs alone."""
    made = World(1, parse_policy(POLICY, "p.yaml"), start_within=None)
    made.start(made.hosts[HostName("h0")])
    return made


@pytest.fixture
def host(world: World) -> SimHost:
    return world.hosts[HostName("h0")]


def asked(world: World, line: str, vni: int | None = None) -> Explanation:
    """`PROTO SRC SPORT DST DPORT`, * for a port that is not known."""
    proto, src, sport, dst, dport = line.split()
    ports = [None if port == "*" else int(port) for port in (sport, dport)]
    packet = PacketBody(proto, src, dst, ports[0], ports[1], vni)
    return ask(world, world.hosts[HostName("h0")], ExplainBody(packet=packet))


@pytest.mark.parametrize(
    ("line", "vni", "verdict", "why"),
    [
        ("udp 192.0.2.10 1 192.0.2.11 4789", 41, "blocked", "flow overlay/red with h1: "),
        ("udp 2001:db8::10 1 2001:db8::11 4789", 42, "blocked", "flow overlay/blue with h1: "),
        ("udp 192.0.2.10 1 192.0.2.11 4789", None, "blocked", "flow overlay/"),
        ("udp 192.0.2.10 1 192.0.2.11 4789", 43, "blocked", "no tenant has VNI 43 (red 41, "),
        ("udp 192.0.2.10 1 198.51.100.1 4789", 41, "blocked", "is no host of flow overlay"),
        ("udp 198.51.100.1 1 192.0.2.10 4789", None, "blocked", "is no host of flow overlay"),
        ("udp 192.0.2.10 1 192.0.2.11 6081", 43, "blocked", "flow shared with h1: "),
        ("udp 192.0.2.11 * 192.0.2.10 6081", 41, "blocked", "flow shared/red with h1: "),
        ("tcp 192.0.2.10 16385 192.0.2.11 9", None, "blocked", "flow bus with h1: "),
        ("tcp 192.0.2.11 5432 192.0.2.10 9", None, "blocked", "flow base with h1: "),
        ("udp 192.0.2.10 9 192.0.2.11 53", None, "blocked", "flow storage with h1: "),
        ("udp 192.0.2.11 9 192.0.2.10 4791", None, "blocked", "flow storage with h1: "),
        ("udp 192.0.2.11 9 192.0.2.10 53", None, "in clear", "flow storage makes the peer send"),
        ("tcp 192.0.2.10 9 192.0.2.11 22", None, "in clear", "no flow of the policy names it"),
        ("udp 192.0.2.10 9 198.51.100.1 53", None, "in clear", "no flow of the policy names it"),
        ("tcp 192.0.2.10 * 192.0.2.11 *", None, "depends", "if the destination port is 16385"),
        ("tcp 192.0.2.10 1 192.0.2.10 5432", None, "elsewhere", "both ends are this host"),
        ("tcp 192.0.2.11 1 192.0.2.12 5432", None, "elsewhere", "192.0.2.11 is h1's"),
    ],
)
def test_packets_of_every_kind(
    world: World, line: str, vni: int | None, verdict: str, why: str
) -> None:
    found = asked(world, line, vni)
    assert found.verdict == verdict
    assert why in found.why
    assert found.on_the_wire == ()


def test_what_differs_from_the_nearest_flows(world: World) -> None:
    notes = asked(world, "tcp 192.0.2.10 9 192.0.2.11 22").notes
    assert "nearest: flow base, but destination port 5432 or source port 5432" in notes


def test_what_a_flow_blocks_is_not_told_of_a_wider_one(world: World) -> None:
    found = asked(world, "udp 192.0.2.10 1 192.0.2.11 4789", 43)
    assert (found.relations, found.verdict) == ((), Verdict.BLOCKED)


@pytest.mark.parametrize(
    ("line", "vni", "note"),
    [
        ("udp 192.0.2.10 1 192.0.2.11 4790", 7, "flow plain has no tenants: all VNIs share"),
        ("tcp 192.0.2.10 1 192.0.2.11 22", 7, "the VNI makes no difference"),
        ("udp 192.0.2.10 1 192.0.2.11 4789", 41, "flow storage (rocev2) covers it too, but"),
        ("udp 192.0.2.10 9 192.0.2.11 53", None, "storage covers all UDP to h1"),
        ("udp 192.0.2.10 9 192.0.2.11 53", None, "shared (geneve, port 6081)"),
        ("tcp 192.0.2.10 5432 192.0.2.11 16385", None, "both are of one rank"),
    ],
)
def test_notes(world: World, line: str, vni: int | None, note: str) -> None:
    assert any(note in one for one in asked(world, line, vni).notes)


def test_the_guard_looks_at_the_flows_own_port(world: World) -> None:
    found = asked(world, "udp 192.0.2.10 1 192.0.2.11 4789", 41)
    assert [one.counter for one in found.guard] == ["local_injection.overlay", "clear_out.overlay"]
    found = asked(world, "udp 192.0.2.11 1 192.0.2.10 4789", 41)
    assert [one.counter for one in found.guard] == ["clear_in.overlay", "cross_tenant.overlay"]
    assert asked(world, "udp 192.0.2.10 9 192.0.2.11 53").guard == ()


def test_a_tenants_packet_goes_by_its_own_sa(world: World, host: SimHost) -> None:
    """Both tenants have keys: their SPs differ by mark alone."""
    red, blue = (
        next(
            child
            for child in host.scope.children
            if (child.id.flow, child.id.tenant, child.id.local.version) == ("overlay", tenant, 4)
        )
        for tenant in ("red", "blue")
    )
    for spi, child in ((Spi(0xC001), red), (Spi(0xC002), blue)):
        aead = child.aeads[0]
        key = Secret(bytes(aead.key_bytes + aead.salt_bytes))
        sa = outbound_sa(child, spi, aead=aead, key=key)
        steps: list[Step] = [AddSa(sa, SaDirection.OUTBOUND)]
        steps += map(AddSp, outbound_sps(child, spi))
        assert [host.kernel.by_hand(step) for step in steps] == [None] * len(steps)
    line = "udp 192.0.2.10 1 192.0.2.11 4789"
    for vni, shown in ((41, "0000c001"), (42, "0000c002")):
        found = asked(world, line, vni)
        assert (found.verdict, found.relations[0].vni) == (Verdict.PROTECTED, vni)
        assert f"SPI {shown}" in found.why
        assert "ip[20:4]" in found.on_the_wire[0]
    assert asked(world, line, 43).verdict == Verdict.BLOCKED
    found = asked(world, line)
    assert found.verdict == Verdict.DEPENDS
    assert "protected if the VNI is 41 (tenant red)" in found.why
    assert "protected if the VNI is 42 (tenant blue)" in found.why
    assert found.why.endswith("blocked otherwise")


def test_another_programs_sp_and_sa(world: World, host: SimHost) -> None:
    child = next(child for child in host.scope.children if child.id.flow == "base")
    selector = dataclasses.replace(child.outbound[0], proto=0)
    front = Sp(SpId(selector, SpDirection.OUT), 7, SpAction.ALLOW)
    assert host.kernel.by_hand(AddSp(front)) is None
    found = asked(world, f"tcp {child.id.local} 1 {child.id.remote} 5432")
    assert (found.verdict, found.sps[0].whose) == (Verdict.FOREIGN, "another program")
    assert "lets it pass in clear" in found.why
    assert "the guard drops it, for flow base names it" in found.why
    id_ = SaId(child.id.remote, Spi(0xDEADBEEF), mark=Mark(1))
    foreign = Sa(id_, child.id.local, Reqid(7), child.aeads[0], Secret(bytes(36)))
    assert host.kernel.by_hand(AddSa(foreign, SaDirection.OUTBOUND)) is None
    found = ask(world, host, ExplainBody(esp=EspBody("deadbeef")))
    assert (found.verdict, found.relations) == (Verdict.FOREIGN, ())
    assert "reqid 7" in found.why
    template = Template(child.id.local, child.id.remote, Reqid(7))
    guarding = dataclasses.replace(front, templates=(template,))
    assert host.kernel.by_hand(UpdateSp(guarding, front)) is None
    unmarked = dataclasses.replace(foreign, id=dataclasses.replace(id_, mark=None))
    assert host.kernel.by_hand(AddSa(unmarked, SaDirection.OUTBOUND)) is None
    found = asked(world, f"tcp {child.id.local} 1 {child.id.remote} 5432")
    assert "of priority 7, protects it" in found.why
    assert "the guard" not in found.why
    assert "ESP(spi=0xdeadbeef)" in found.on_the_wire[0]
    found = ask(world, host, ExplainBody(esp=EspBody("0xcafe", "198.51.100.9")))
    assert found.verdict == Verdict.UNKNOWN
    assert "neither this host nor a peer" in found.why


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (ExplainBody(), "one of flow, packet and esp"),
        (ExplainBody(flow="overlay", esp=EspBody("c001")), "one of flow, packet and esp"),
        (ExplainBody(flow="overlay", tenant="grey"), "has no tenant 'grey' here (blue, red)"),
        (ExplainBody(flow="base", tenant="red"), "(it has none)"),
        (ExplainBody(esp=EspBody("xyz")), "is no SPI"),
        (ExplainBody(esp=EspBody("1c0000000")), "is no SPI"),
        (ExplainBody(packet=PacketBody("udp", "here", "192.0.2.11")), "is no address"),
        (ExplainBody(packet=PacketBody("udp", "::1", "192.0.2.11")), "not of one family"),
        (ExplainBody(packet=PacketBody("ip", "::1", "::2")), "is no protocol"),
        (ExplainBody(packet=PacketBody("256", "::1", "::2")), "is no protocol"),
        (ExplainBody(packet=PacketBody("udp", "::1", "::2", 1 << 16)), "is no port"),
        (ExplainBody(packet=PacketBody("udp", "::1", "::2", vni=-1)), "is no VNI"),
    ],
)
def test_questions_that_make_no_sense(
    world: World, host: SimHost, body: ExplainBody, said: str
) -> None:
    with pytest.raises(Malformed) as caught:
        ask(world, host, body)
    assert said in str(caught.value)
