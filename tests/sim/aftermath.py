"""What must be true when the trouble is over: nothing missing, and nothing left over."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from tests.sim.host import SimHost
from tests.sim.laws import MAX_PEER_OFFERS, Broken
from tests.sim.standing import Standing
from tests.sim.world import Probe, World
from tunsec.daemon.engine import Engine
from tunsec.model.flow import Keying
from tunsec.model.ike_sa import IkeState
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sp import SpAction
from tunsec.policy.desired import inbound_sps, outbound_sps

SAS_OF = {Keying.DIRECTORY: 2, Keying.IKE: 4}
"""SAs of a child: one each way, or two CHILD_SAs."""
LOOKS = 3
PROBES = 3
"""Packets sent on every child at the end."""


def nothing_missing_nothing_left(world: World) -> None:
    """Kernels hold what the machines know, machines hold what the policy wants, the directory holds
    what they say to each other, memory is free.

    Raises Broken.
    """
    for _ in range(LOOKS):
        found = [problem for host in world.hosts.values() for problem in _problems(world, host)]
        if not found:
            break
        world.run(0.3)  # an IKE_SA that is rekeyed has ended here and not yet there
    else:
        raise Broken(f"{found[0]}\n{world.tale()}")
    every_child_delivers(world)


def _problems(world: World, host: SimHost) -> Iterator[str]:
    for look in (_kernel, _charon, _records, _memory):
        for problem in look(world, host):
            yield f"{host.name}: {problem}"


def _kernel(world: World, host: SimHost) -> Iterator[str]:
    engine = host.engine
    if engine is None:
        yield "no daemon"
        return
    standings = world.standings(host)
    by_pair = {flow.child.id for _, flow in engine.flows()}
    by_ike = {flow.child.id for _, flow in engine.ike.flows()}
    if by_pair != {one.child.id for one in standings if one.child.keying is Keying.DIRECTORY}:
        yield "pairs have other children than the policy"
    if by_ike != {one.child.id for one in standings if one.child.keying is Keying.IKE}:
        yield "connections have other children than the policy"
    known = {sa_id for one in standings for sa_id in one.sas}
    charons = engine.ike.reqids()
    held = {
        sa_id
        for sa_id, sa in host.kernel.all_sas()
        if is_our_sa(sa) and not (sa.larval and sa.reqid in charons)  # it ends by itself
    }
    if held != known:
        yield f"SAs that only the kernel or only the machines know: {held ^ known}"
    for one in standings:
        if not world.in_the_way(host, one.child):
            if len(one.sas) != SAS_OF[one.child.keying]:
                yield f"{one.child.id} has {len(one.sas)} SAs"
        elif world.obstructed_here(host, one.child) and "another program" not in one.reason:
            yield f"{one.child.id} does not say what is in its way: {one.reason!r}"
    yield from _sps(world, host, engine, standings)


def _sps(
    world: World, host: SimHost, engine: Engine, standings: Iterable[Standing]
) -> Iterator[str]:
    wanted = {sp.id for sp in engine.scope.blocks}
    for one in standings:
        mine = inbound_sps(one.child)
        if one.pinned is not None:
            mine += outbound_sps(one.child, one.pinned)
        in_the_way = world.obstructed_here(host, one.child)
        wanted |= {sp.id for sp in mine if not in_the_way or host.kernel.sp(sp.id) == sp}
    ours = {sp.id: sp for sp in host.kernel.spd() if is_our_sp(sp)}
    if missing := wanted - ours.keys():
        yield f"SPs that are missing: {missing}"
    # Blocks that nobody remembers stay until they are released.
    extra = [sp for sp in ours.values() if sp.id not in wanted and sp.action is SpAction.ALLOW]
    if extra:
        yield f"SPs that nobody wants: {extra}"
    drift = engine.plan_for(engine.scope)
    if drift.steps or drift.lost:
        yield f"drift: {drift}"


def _charon(world: World, host: SimHost) -> Iterator[str]:
    """charon holds what the machines know, and nothing else; both ends of it."""
    engine, link = host.engine, host.link
    if engine is None or link is None or not link.used:
        return  # a daemon that never had to do with charon leaves an earlier life's there
    connections = list(engine.ike.connections)
    if host.charon.loaded.keys() != {one.id.name for one in connections}:
        yield f"charon has connections {sorted(host.charon.loaded)}"
    known = {
        (held.ike, held.id, held.spi_in, held.spi_out)
        for one in connections
        for flow in one.state.flows.values()
        for held in flow.held
    }
    ikes = [ike for ike in host.charon.ikes if ike.state is not IkeState.REKEYED]
    held = {
        (ike.id, child.id, child.spi_in, child.spi_out) for ike in ikes for child in ike.children
    }
    if held != known:
        yield f"CHILD_SAs that only charon or only the machines know: {held ^ known}"
    for ike in ikes:
        if not ike.children:
            yield f"IKE_SA #{ike.id} carries nothing, {ike.state}"
        peers = [one for one in world.hosts.values() if ike.remote in one.links.held]
        known_to = [other for one in peers for other in one.charon.ikes]
        if not any(other.initiator_spi == ike.initiator_spi for other in known_to):
            yield f"IKE_SA #{ike.id} is not known to {', '.join(one.name for one in peers)}"
    for one in connections:
        if untold := one.state.ikes.keys() - one.ikes.keys():
            yield f"of IKE_SAs #{', #'.join(map(str, sorted(untold)))} status knows nothing"
    for _, flow in engine.ike.flows():
        if sorted(one.own for one in flow.held) != [False, True]:
            yield f"{flow.child.id} has not one CHILD_SA of each host"


def _records(world: World, host: SimHost) -> Iterator[str]:
    engine = host.engine
    if engine is None:
        return
    wanted = {f"confirmations/{peer}/{host.name}" for peer in engine.pairs}
    if engine.scope.rollover is not None:
        wanted.add(f"offers/{host.name}")
    there = world.records_of(host)
    if missing := wanted - there:
        yield f"records that are missing: {missing}"
    if extra := there - wanted:
        yield f"records that nobody wants: {extra}"


def _memory(world: World, host: SimHost) -> Iterator[str]:
    """What the daemon keeps is bounded by the policy, not by what has happened."""
    engine, ring = host.engine, host.ring
    if engine is None or ring is None:
        return
    if ring.private_values != len(engine.offers.offers):
        yield f"{ring.private_values} private keys for {len(engine.offers.offers)} offers"
    if engine.scope.rollover is None and ring.private_values:
        yield f"{ring.private_values} private keys of no use"
    peers = [name for name in world.hosts if name != host.name]
    kept = {peer: len(ring.peer_offers(peer)) for peer in peers}
    if max(kept.values()) > MAX_PEER_OFFERS:
        yield f"offers of peers pile up: {kept}"
    if ring.pair_secrets > ring.private_values * sum(kept.values()):
        yield f"{ring.pair_secrets} secrets of pairs for {kept}"


def weight(root: object) -> int:
    """How many values tunsec's own objects keep, reached from here: what grows shows."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset | deque):
            waiting += one
        elif type(one).__module__.startswith("tunsec."):
            names = [
                *getattr(one, "__dict__", ()),
                *(name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())),
            ]
            waiting += [getattr(one, name) for name in names if hasattr(one, name)]
    return len(seen)


def every_child_delivers(world: World) -> None:
    """Packets of every child arrive."""
    probes = {(host.name, child): Probe() for host, child in world.children()}
    for _ in range(PROBES):
        for host, child in world.children():
            world.probe(probes[host.name, child], host, child)
        world.run(0.1)
    lost = [f"{name}: {child}" for (name, child), probe in probes.items() if probe.lost]
    if lost:
        raise Broken(f"no packets arrive from {lost}\n{world.tale()}")
