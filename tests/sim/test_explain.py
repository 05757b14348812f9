"""What `tunsec explain` says of a packet, in every trouble, is what the kernel does with it."""

import random
from dataclasses import replace

import pytest

from tests.sim.cast import EPOCH, without_flows
from tests.sim.chaos import Chaos
from tests.sim.host import SimHost
from tests.sim.ike_chaos import IkeChaos
from tests.sim.ike_trial import ike_stage
from tests.sim.kernel import Packet, same_carrier
from tests.sim.script import Script
from tests.sim.strangers import move_in, stand_in_the_way
from tests.sim.test_moves import apply, finish, other
from tests.sim.test_stories import Two, quiet
from tests.sim.trial import stage
from tests.sim.world import World
from tunsec.daemon.explain import explain
from tunsec.model.clock import Instant, WallTime
from tunsec.model.flow import Child, Keying
from tunsec.model.names import FlowName, spi_hex
from tunsec.model.ownership import is_our_sp
from tunsec.model.selector import UDP
from tunsec.model.sp import SpAction, SpDirection
from tunsec.wire.control_explain import EspBody, ExplainBody, Explanation, PacketBody, Verdict

SEEDS = 8
SPORT = 49152


def ask(world: World, host: SimHost, body: ExplainBody) -> Explanation:
    """What the daemon of a host says."""
    assert host.engine is not None
    return explain(
        host.engine,
        body,
        kernel=host.kernel,
        guard=host.guard,
        links=host.links,
        now=Instant(world.now),
        wall=WallTime(EPOCH + world.now),
    )


OTHER_VNI = 9999
"""Of no tenant."""


def packet_of(child: Child, direction: SpDirection) -> Packet:
    """A packet of a relation, with the mark that its device, or its SA, gives it."""
    ends = (child.id.local, child.id.remote)
    src, dst = ends if direction is SpDirection.OUT else reversed(ends)
    mark = 0 if child.mark is None else child.mark.value
    return Packet(src, dst, UDP, SPORT, child.outbound[0].dport.port, mark)


def asked_of(host: SimHost, child: Child, direction: SpDirection) -> ExplainBody:
    """The question of what becomes of it."""
    assert host.engine is not None
    packet = packet_of(child, direction)
    ends = (str(packet.src), str(packet.dst), packet.sport, packet.dport)
    flow = next(one for one in host.engine.scope.guarded if one.flow == child.id.flow)
    vnis = {str(one.tenant): int(one.vni) for one in flow.tenants}
    vni = vnis.get(str(child.id.tenant), OTHER_VNI)
    return ExplainBody(packet=PacketBody("udp", *ends, vni=vni if vnis else None))


def done_by_kernel(host: SimHost, packet: Packet, direction: SpDirection) -> tuple[str, set[str]]:
    """The verdict, and the SPIs on which the packet may go."""
    sp = host.kernel.lookup(direction, packet)
    if sp is None:
        return Verdict.CLEAR, set()
    if not is_our_sp(sp):
        return Verdict.FOREIGN, set()
    if sp.action is SpAction.BLOCK:
        return Verdict.BLOCKED, set()
    [template] = sp.templates
    spis = {
        spi_hex(sa_id.spi)
        for sa_id, sa, _ in host.kernel.keyed_sas()
        if (sa.reqid, sa_id.dst) == (template.reqid, template.dst)
        and template.spi in (None, sa_id.spi)
        and (direction is SpDirection.IN or same_carrier(sp, sa))
    }
    return (Verdict.PROTECTED if spis else Verdict.BLOCKED), spis


def look(world: World) -> set[str]:
    """Every running daemon is right about every packet; the verdicts there were."""
    seen: set[str] = set()
    for host in world.hosts.values():
        if host.engine is None or host.kernel.silent:
            continue
        host.kernel.expire()
        for child in host.engine.scope.children:
            for direction in (SpDirection.OUT, SpDirection.IN):
                found = ask(world, host, asked_of(host, child, direction))
                verdict, spis = done_by_kernel(host, packet_of(child, direction), direction)
                assert found.verdict == verdict, f"{found}\n{world.tale()}"
                told = {line.partition("spi=0x")[2][:8] for line in found.on_the_wire}
                assert told == spis, f"{found}\n{world.tale()}"
                assert found.why
                seen.add(verdict)
        for flow in host.engine.scope.guarded:
            assert ask(world, host, ExplainBody(flow=flow.flow)).why
    return seen


@pytest.mark.parametrize("by_ike", [False, True])
def test_in_every_trouble(by_ike: bool) -> None:
    seen = set[str]().union(*(trouble(seed, by_ike=by_ike) for seed in range(SEEDS)))
    assert seen >= {Verdict.PROTECTED, Verdict.BLOCKED}


def trouble(seed: int, *, by_ike: bool) -> set[str]:
    """A cluster in trouble, looked at again and again; the verdicts there were."""
    script = Script(seed)
    played = ike_stage(script) if by_ike else stage(script)
    dice = random.Random(f"explain {seed}")
    world = World(seed, played.intent)
    for host in world.hosts.values():
        if dice.random() < 0.4:
            move_in(world, host)
    if dice.random() < 0.3:
        host = dice.choice(list(world.hosts.values()))
        child = dice.choice(host.scope.children).id
        opening = dice.random() < 0.5
        stand_in_the_way(world, host, child, direction=SpDirection.OUT, opening=opening)
    chaos = IkeChaos(world, script) if by_ike else Chaos(world, script)
    chaos.begin()
    seen: set[str] = set()
    while world.now < 1000.0 + script.trouble:
        world.run(dice.uniform(0.05, 0.6))
        seen |= look(world)
    return seen


def test_a_flow_between_two_keyings() -> None:
    two = Two(quiet()).start()
    for keying in (Keying.IKE, Keying.DIRECTORY):
        apply(two, keying, two.left)
        two.world.run(5.0)
        assert look(two.world) == {Verdict.PROTECTED}
        found = ask(two.world, two.left, ExplainBody(flow="overlay0"))
        assert any(f"on its way to keying {keying}" in note for note in found.notes)
        assert found.relations[0].status.keying == other(keying)
        apply(two, keying, two.right)
        finish(two, keying)
        assert look(two.world) == {Verdict.PROTECTED}


def test_every_sa_of_ours_is_attributed() -> None:
    two = Two(quiet(flows=2)).start()
    for host in two.both:
        ways = set()
        for sa_id in two.ours(host):
            body = ExplainBody(esp=EspBody(spi_hex(sa_id.spi), str(sa_id.dst)))
            found = ask(two.world, host, body)
            assert found.verdict == Verdict.PROTECTED
            assert ", in use" in found.why
            ways.add(found.why)
        assert len(ways) == 4


def test_a_flow_that_is_dropped_and_released() -> None:
    two = Two(quiet(flows=2)).start()
    two.stream.stop()
    [child] = [child for child in two.left.scope.children if child.id.flow == "overlay1"]
    body = asked_of(two.left, child, SpDirection.OUT)
    two.world.apply(two.left, without_flows(two.world.intent, ["overlay1"]))
    found = ask(two.world, two.left, body)
    assert (found.verdict, found.relations) == (Verdict.BLOCKED, ())
    assert "`tunsec release overlay1` opens it" in found.why
    assert ask(two.world, two.left, ExplainBody(flow="overlay1")).verdict == Verdict.BLOCKED
    two.world.release(two.left, FlowName("overlay1"))
    found = ask(two.world, two.left, body)
    assert found.verdict == Verdict.CLEAR
    assert any(note.startswith("nearest: flow overlay0, but ") for note in found.notes)
    two.world.release(two.left, FlowName("overlay0"))
    [child] = [child for child in two.right.scope.children if child.id.flow == "overlay0"]
    found = ask(two.world, two.left, asked_of(two.right, child, SpDirection.IN))
    assert found.why.startswith("an admin released flow overlay0")


def test_what_a_flow_left_behind_when_its_port_changed() -> None:
    two = Two(quiet()).start()
    [child] = two.left.scope.children
    body = asked_of(two.left, child, SpDirection.OUT)
    [flow] = two.world.intent.flows
    moved = replace(two.world.intent, flows=(replace(flow, port=5000),))
    for host in two.both:
        two.world.apply(host, moved)
    two.world.run(5.0)
    found = ask(two.world, two.left, body)
    assert found.verdict == Verdict.BLOCKED
    assert "`tunsec release overlay0.former` opens it" in found.why
    former = ask(two.world, two.left, ExplainBody(flow="overlay0.former"))
    assert (former.verdict, former.relations[0].sas) == (Verdict.BLOCKED, ())
    assert look(two.world) == {Verdict.PROTECTED}
