"""What must be true when the trouble is over: nothing missing, and nothing left over."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from tests.sim.host import SimHost
from tests.sim.laws import MAX_PEER_OFFERS, Broken
from tests.sim.world import Probe, World
from tunsec.daemon.engine import Engine
from tunsec.machines import pair
from tunsec.machines.flow import FlowState
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import SaId
from tunsec.model.sp import SpAction
from tunsec.policy.desired import inbound_sps, outbound_sps

PROBES = 3
"""Packets sent on every child at the end."""


def nothing_missing_nothing_left(world: World) -> None:
    """Kernels hold what the machines know, machines hold what the policy wants, the directory holds
    what they say to each other, memory is free.

    Raises Broken.
    """
    for host in world.hosts.values():
        for problem in (*_kernel(world, host), *_records(world, host), *_memory(world, host)):
            raise Broken(f"{host.name}: {problem}\n{world.tale()}")
    every_child_delivers(world)


def _kernel(world: World, host: SimHost) -> Iterator[str]:
    engine = host.engine
    if engine is None:
        yield "no daemon"
        return
    flows = [flow for _, flow in engine.flows()]
    if {flow.child.id for flow in flows} != {child.id for child in engine.scope.children}:
        yield "machines and policy know different children"
    known = {sa_id for flow in flows for sa_id in _ids(flow)}
    held = {sa_id for sa_id, sa in host.kernel.all_sas() if is_our_sa(sa)}
    if held != known:
        yield f"SAs that only the kernel or only the machines know: {held ^ known}"
    for state, flow in engine.flows():
        if not world.in_the_way(host, flow.child):
            if (len(flow.inbound), len(flow.outbound)) != (1, 1):
                yield f"{flow.child.id} has not one SA each way"
            continue
        reason = pair.blocked_reason(state, flow)
        if world.obstructed_here(host, flow.child) and "another program" not in reason:
            yield f"{flow.child.id} does not say what is in its way: {reason!r}"
    yield from _sps(world, host, engine, flows)


def _sps(world: World, host: SimHost, engine: Engine, flows: Sequence[FlowState]) -> Iterator[str]:
    wanted = {sp.id for sp in engine.scope.blocks}
    for flow in flows:
        mine = inbound_sps(flow.child)
        if flow.active_outbound is not None:
            mine += outbound_sps(flow.child, flow.active_outbound.spi)
        in_the_way = world.obstructed_here(host, flow.child)
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


def _ids(flow: FlowState) -> list[SaId]:
    child = flow.child.id
    return [
        *(SaId(child.local, sa.spi) for sa in flow.inbound),
        *(SaId(child.remote, sa.spi) for sa in flow.outbound),
    ]


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
