"""How things stand, for the control API: read off the machines and the kernel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import tunsec
from tunsec.daemon import vip_desk
from tunsec.daemon.engine import Engine
from tunsec.daemon.install import inbound_id, outbound_id
from tunsec.daemon.offload import carried
from tunsec.daemon.report_child import child_status, unmet_offload
from tunsec.daemon.report_ike import ike_flow_statuses, moving_to_ike
from tunsec.daemon.tally import Tally
from tunsec.machines.flow import FlowState, Phase
from tunsec.machines.pair import PairState, blocked_reason
from tunsec.model.clock import Instant
from tunsec.model.errors import TunsecError
from tunsec.model.flow import Keying, Kind, Mode
from tunsec.model.names import spi_hex
from tunsec.model.sa import OffloadKind, Sa, SaId
from tunsec.plan import devices as overlays
from tunsec.plan.image import Image
from tunsec.plan.rdma import roce_warnings
from tunsec.ports import GuardTable, Kernel, Links, OverlayDevice
from tunsec.wire.control import (
    DirectoryStatus,
    DriftStatus,
    FlowDrops,
    FlowStatus,
    GuardStatus,
    PolicyStatus,
    ServiceStatus,
    Status,
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engine does not know: where the policy came from, how the directory does."""

    started_at: Instant
    policy: PolicyStatus
    directory_url: str
    directory_trouble: str
    private_values: int
    warnings: tuple[str, ...]


def status(
    engine: Engine,
    around: Surroundings,
    *,
    kernel: Kernel,
    guard: GuardTable,
    links: Links,
    now: Instant,
) -> Status:
    """Everything `tunsec status` shows. A part that cannot be read becomes a warning."""
    warnings = [*around.warnings, *engine.troubles.lines(), *_twin(engine)]
    have = Image()
    drops: Mapping[str, FlowDrops] = {}
    try:
        have = _image(kernel)
        drops = {
            flow: FlowDrops(one.clear_out, one.clear_in, one.local_injection, one.cross_tenant)
            for flow, one in guard.drops().items()
        }
        devices = links.overlay_devices()
        scope = engine.scope
        warnings += device_warnings(engine, links, devices)
        warnings += overlays.uncovered_devices(scope.guarded, scope.declared, devices)
    except TunsecError as error:
        warnings.append(str(error))
    warnings += vip_desk.warnings(engine.vips.standings())
    counters = engine.counters
    return Status(
        host=engine.host,
        version=tunsec.__version__,
        uptime=now - around.started_at,
        flows=flow_statuses(engine, have=have, now=now),
        policy=around.policy,
        directory=DirectoryStatus(
            url=around.directory_url,
            reachable=not (around.directory_trouble or engine.outbox.error),
            trouble=around.directory_trouble or engine.outbox.error,
            own_offers=len(engine.offers.offers),
            private_keys_held=around.private_values,
            refused={reason.value: count for reason, count in engine.post.refusals.counts.items()},
        ),
        guard=GuardStatus(not engine.troubles.guard, engine.troubles.guard, drops),
        drift=DriftStatus(
            counters.repaired_sas,
            counters.repaired_sps,
            counters.repaired_guard,
            counters.overruns,
        ),
        warnings=tuple(warnings),
        services=tuple(_service_status(one) for one in engine.vips.standings()),
        troubles={part.value: text for part, text in engine.troubles.parts.items()},
    )


def _service_status(one: vip_desk.Standing) -> ServiceStatus:
    claim = one.claim
    holder = claim.owner if claim is not None and claim.held else None
    seen = "HELD" if holder else "FREE"
    return ServiceStatus(
        service=one.service.name,
        addresses=tuple(map(str, one.service.addresses)),
        owners=one.service.owners,
        holder=holder,
        token=0 if claim is None else claim.token,
        state=seen if one.own is None else one.own.phase,
        here=one.here,
    )


def _image(kernel: Kernel) -> Image:
    """What the kernel holds; SPs only where they tell whether a NIC carries a flow."""
    sas = kernel.sas()
    kinds = {sa.offload.kind for sa in sas.values() if sa.offload is not None}
    return Image(sas, kernel.sps() if OffloadKind.PACKET in kinds else {})


def flow_statuses(engine: Engine, *, have: Image, now: Instant) -> tuple[FlowStatus, ...]:
    """Every relation, with the counters of the SAs that are given, and what was dropped."""
    flows = [
        _flow_status(engine, state, flow, have=have, now=now)
        for state, flow in engine.flows()
        if not flow.taken and not engine.pinned_by_ike(flow.child.id)
    ]
    flows += ike_flow_statuses(engine, have=have, now=now)
    flows += _unable(engine)
    flows.sort(key=lambda one: (one.flow, one.tenant or "", one.local, one.peer, one.remote))
    return (*flows, *_retired(engine), *_released(engine))


def _flow_status(
    engine: Engine,
    state: PairState,
    flow: FlowState,
    *,
    have: Image,
    now: Instant,
) -> FlowStatus:
    child = flow.child
    inbound, outbound = flow.newest_inbound, flow.active_outbound
    spi_in = inbound.spi if inbound else None
    spi_out = outbound.spi if outbound else None
    tally = engine.tallies.get(child.id, Tally())
    for sa in _installed(flow, have.sas):
        tally = tally.plus(sa, inbound=sa.id.dst == child.id.local)
    since = engine.active_since.get(child.id)
    rollover = engine.offers.rollover_at
    reason = (
        engine.troubles.guard or blocked_reason(state, flow) or engine.gates.closed_reason(child.id)
    )
    return replace(
        child_status(child, Keying.DIRECTORY, flow.phase, reason),
        spi_in=None if spi_in is None else spi_hex(spi_in),
        spi_out=None if spi_out is None else spi_hex(spi_out),
        aead=outbound.aead if outbound else None,
        offload=carried(child, spi_in, spi_out, have),
        age=None if since is None else max(0.0, now - since),
        next_rollover=None if rollover is None else max(0.0, rollover - now),
        rekeys=flow.rekeys,
        in_bytes=tally.in_bytes,
        out_bytes=tally.out_bytes,
        in_packets=tally.in_packets,
        out_packets=tally.out_packets,
        drops=tally.drops,
        warnings=(*moving_to_ike(engine, child, now), *unmet_offload(engine, child, flow.phase)),
    )


def _installed(flow: FlowState, sas: Mapping[SaId, Sa]) -> Iterator[Sa]:
    ids = [inbound_id(flow.child, sa.spi) for sa in flow.inbound]
    ids += [outbound_id(flow.child, sa.spi) for sa in flow.outbound]
    for sa_id in ids:
        if sa_id in sas:
            yield sas[sa_id]


def _unable(engine: Engine) -> Iterator[FlowStatus]:
    """Relations that nothing here can protect: nothing is keyed for them."""
    for child, reason in engine.scope.unable:
        yield child_status(child, child.keying, Phase.BLOCKED, reason)


def _retired(engine: Engine) -> Iterator[FlowStatus]:
    """Flows that the policy dropped: blocked until released."""
    for gone in engine.scope.retired:
        peers = [str(peer) for peer in gone.guarded.peers]
        for peer in sorted(peers) or ["any"]:
            yield FlowStatus(
                flow=gone.flow,
                kind=gone.guarded.kind,
                peer=peer,
                tenant=None,
                mode=Mode.ESP,
                keying="none",
                local="any",
                remote=peer,
                state=Phase.BLOCKED,
                reason=f"no longer in the policy; `tunsec release {gone.flow}` opens it",
                protected=False,
                declared=False,
            )


def _released(engine: Engine) -> Iterator[FlowStatus]:
    """Flows of the policy that an admin released: declared, and open."""
    for guarded in engine.scope.released_here:
        for peer in sorted(guarded.peers, key=str):
            yield FlowStatus(
                flow=guarded.flow,
                kind=guarded.kind,
                peer=str(peer),
                tenant=None,
                mode=Mode.ESP,
                keying="none",
                local="any",
                remote=str(peer),
                state="RELEASED",
                reason="released by an admin: goes in clear until the policy is applied again",
                protected=False,
            )


def _twin(engine: Engine) -> list[str]:
    return [engine.post.twin] if engine.post.twin else []


def device_warnings(
    engine: Engine, links: Links, devices: tuple[OverlayDevice, ...]
) -> tuple[str, ...]:
    """Devices and RoCE flows that lose packets: too large for ESP, or flooded to a group; raises
    TunsecError."""
    guarded = engine.scope.guarded
    ways = {peer: links.underlay_mtu(peer) for peer in overlays.ways_wanted(guarded, devices)}
    roce = [child for child in engine.scope.children if child.kind is Kind.ROCEV2]
    underlay = {child.id.remote: links.underlay_mtu(child.id.remote) for child in roce}
    return (
        *overlays.mtu_warnings(guarded, devices, ways),
        *overlays.group_warnings(guarded, devices),
        *roce_warnings(roce, underlay),
    )
