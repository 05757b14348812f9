"""How flows that IKE keys stand: off their machines, the kernel and what charon last told."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tunsec.daemon.engine import Engine
from tunsec.daemon.ike_desk import Connection
from tunsec.daemon.install import inbound_id, outbound_id
from tunsec.daemon.offload import carried
from tunsec.daemon.report_child import child_status, unmet_offload
from tunsec.daemon.tally import Tally
from tunsec.machines import pair
from tunsec.machines.flow import PROTECTED
from tunsec.machines.ike_flow import IkeFlow
from tunsec.machines.ike_peer import blocked_reason, trouble
from tunsec.model.clock import Instant
from tunsec.model.flow import Child, Keying
from tunsec.model.names import spi_hex
from tunsec.model.sa import Sa, SaId
from tunsec.plan.image import Image
from tunsec.wire.control import ChildSaStatus, FlowStatus, IkeStatus


def ike_flow_statuses(engine: Engine, *, have: Image, now: Instant) -> Iterator[FlowStatus]:
    """Every relation that IKE carries, with the counters of the SAs that are given."""
    for connection, flow in engine.ike.flows():
        if not flow.taken and not (flow.pinned is None and engine.is_moving(flow.child.id)):
            yield _flow_status(engine, connection, flow, have=have, now=now)


def _flow_status(
    engine: Engine,
    connection: Connection,
    flow: IkeFlow,
    *,
    have: Image,
    now: Instant,
) -> FlowStatus:
    child = flow.child
    phase = flow.phase(now)
    active = flow.active
    tally = engine.tallies.get(child.id, Tally())
    for sa in _installed(flow, have.sas):
        tally = tally.plus(sa, inbound=sa.id.dst == child.id.local)
    inbound = next((one.spi_in for one in reversed(flow.held) if not one.own), None)
    if inbound is None:
        inbound = active.spi_in if active is not None else None
    stands_in_the_way = trouble(connection.state, flow)
    reason = (
        engine.troubles.guard
        or (engine.offloads.refusal(child) if phase not in PROTECTED else "")
        or blocked_reason(connection.state, flow, now)
        or engine.gates.closed_reason(child.id)
    )
    return replace(
        child_status(child, Keying.IKE, phase, reason),
        spi_in=None if inbound is None else spi_hex(inbound),
        spi_out=None if flow.pinned is None else spi_hex(flow.pinned),
        aead=active.aead if active is not None else None,
        offload=carried(child, inbound, flow.pinned, have),
        age=None if active is None else max(0.0, now - active.since),
        next_rollover=None if flow.rekey_at is None else max(0.0, flow.rekey_at - now),
        rekeys=flow.rekeys,
        in_bytes=tally.in_bytes,
        out_bytes=tally.out_bytes,
        in_packets=tally.in_packets,
        out_packets=tally.out_packets,
        drops=tally.drops,
        warnings=(
            *((stands_in_the_way,) if stands_in_the_way and phase in PROTECTED else ()),
            *_moving_to_directory(engine, child),
            *unmet_offload(engine, child, phase),
        ),
        ike=_ike_status(connection, flow, stands_in_the_way, now),
    )


def moving_to_ike(engine: Engine, child: Child, now: Instant) -> tuple[str, ...]:
    """What a flow waits for that directory keying still carries for IKE."""
    if child.keying is not Keying.IKE:
        return ()
    return tuple(
        _on_its_way(child, blocked_reason(connection.state, flow, now))
        for connection in engine.ike.connections
        if (flow := connection.state.flows.get(child.id)) is not None
    )


def _moving_to_directory(engine: Engine, child: Child) -> tuple[str, ...]:
    """What a flow waits for that IKE still carries for directory keying."""
    if child.keying is not Keying.DIRECTORY:
        return ()
    state = engine.pairs[child.id.peer]
    return (_on_its_way(child, pair.blocked_reason(state, state.flows[child.id])),)


def _on_its_way(child: Child, reason: str) -> str:
    return f"on its way to keying {child.keying}{reason and ': '}{reason}"


def _installed(flow: IkeFlow, sas: Mapping[SaId, Sa]) -> Iterator[Sa]:
    child = flow.child
    ids = {inbound_id(child, one.spi_in) for one in flow.held}
    ids |= {outbound_id(child, one.spi_out) for one in flow.held}
    for stray in flow.strays:
        ids.add((inbound_id if stray.inbound else outbound_id)(child, stray.spi))
    for sa_id in ids:
        if sa_id in sas:
            yield sas[sa_id]


def _ike_status(connection: Connection, flow: IkeFlow, error: str, now: Instant) -> IkeStatus:
    """Of the IKE_SA that carries what we send, or else the youngest one."""
    children = tuple(
        ChildSaStatus(
            one.own,
            one.state,
            spi_hex(one.spi_in),
            spi_hex(one.spi_out),
            max(0.0, now - one.since),
        )
        for one in flow.held
    )
    active = flow.active
    known = connection.ikes
    told = known.get(active.ike) if active is not None else None
    if told is None and known:
        told = known[max(known)]
    if told is None:
        state = "CONNECTING" if flow.attempt is not None else "NONE"
        return IkeStatus(state, child_sas=children, error=error)
    ike, at = told
    age = now - at
    return IkeStatus(
        ike.state,
        ike.initiator,
        None if ike.established_for is None else ike.established_for + age,
        None if ike.rekey_in is None else max(0.0, ike.rekey_in - age),
        None if ike.reauth_in is None else max(0.0, ike.reauth_in - age),
        ike.algorithms,
        ike.ppk,
        children,
        error,
    )
