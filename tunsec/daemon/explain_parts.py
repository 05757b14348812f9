"""What `tunsec explain` shows of policy and kernel: relations, SPs, SAs, rules of the guard."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from tunsec.daemon.engine import Engine
from tunsec.daemon.install import inbound_id, outbound_id
from tunsec.model.clock import WallTime
from tunsec.model.flow import Child, ChildId, Keying
from tunsec.model.guard import GuardDrops, GuardedFlow
from tunsec.model.names import Address, Mark, Reqid, Vni, spi_hex
from tunsec.model.ownership import is_our_sp
from tunsec.model.packet import Packet
from tunsec.model.sa import Sa, SaId
from tunsec.model.selector import TCP, UDP
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId
from tunsec.plan.lookup import protects
from tunsec.policy.kinds import ON_WIRE, Ports
from tunsec.ports import OverlayDevice
from tunsec.wire.control import FlowStatus
from tunsec.wire.control_explain import GuardReport, Relation, SaReport, SpReport
from tunsec.wire.nft_text import CLEAR_IN, CLEAR_OUT, CROSS_TENANT, LOCAL_INJECTION, flow_label

PROTOCOLS: Final = {TCP: "tcp", UDP: "udp"}

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class View:
    """Everything at one moment: the machines, and dumps of the kernel."""

    engine: Engine
    statuses: tuple[FlowStatus, ...]
    sas: Mapping[SaId, Sa]
    sps: Mapping[SpId, Sp]
    drops: Mapping[str, GuardDrops]
    held: frozenset[Address]
    """Addresses that devices of this host have now."""
    devices: tuple[OverlayDevice, ...]
    ways: Mapping[Address, int | None]
    """MTU of the way to peers that devices without a way of their own may send to."""
    wall: WallTime

    @cached_property
    def children(self) -> tuple[Child, ...]:
        """Relations that this host protects."""
        known = self._status_of
        return tuple(child for child in self.engine.scope.declared if _key(child.id) in known)

    @cached_property
    def by_reqid(self) -> dict[Reqid, Child]:
        """The relation that a reqid stands for."""
        return {child.reqid: child for child in self.children}

    @cached_property
    def sas_by_reqid(self) -> dict[Reqid, list[Sa]]:
        """SAs, foreign ones too."""
        found: dict[Reqid, list[Sa]] = {}
        for sa in self.sas.values():
            found.setdefault(sa.reqid, []).append(sa)
        return found

    @cached_property
    def sps_by_reqid(self) -> dict[Reqid, list[Sp]]:
        """SPs that protect."""
        found: dict[Reqid, list[Sp]] = {}
        for sp in self.sps.values():
            if sp.templates:
                found.setdefault(sp.templates[0].reqid, []).append(sp)
        return found

    @cached_property
    def guarded(self) -> dict[str, GuardedFlow]:
        """Flows that the guard watches, by name."""
        return {one.flow: one for one in self.engine.scope.guarded}

    @cached_property
    def _status_of(self) -> dict[Key, FlowStatus]:
        return {_status_key(one): one for one in self.statuses}

    @cached_property
    def _child_of(self) -> dict[Key, Child]:
        return {_key(child.id): child for child in self.children}

    def status(self, child: ChildId) -> FlowStatus:
        """How one of the children stands."""
        return self._status_of[_key(child)]

    def child(self, status: FlowStatus) -> Child | None:
        """The relation that a line of the status tells of; None for flows that are not kept up."""
        return self._child_of.get(_status_key(status))

    def vni(self, child: Child) -> Vni | None:
        """The VNI of a relation's tenant."""
        tenants = self.guarded[child.id.flow].tenants
        return next((one.vni for one in tenants if one.tenant == child.id.tenant), None)

    def since(self, at: int) -> float | None:
        """Seconds since the kernel's wall time; None for never."""
        return max(0.0, self.wall - at) if at else None


def _key(child: ChildId) -> Key:
    return (child.flow, child.tenant or "", child.peer, str(child.local), str(child.remote))


def _status_key(status: FlowStatus) -> Key:
    return (status.flow, status.tenant or "", status.peer, status.local, status.remote)


def label(child: ChildId) -> str:
    """`flow` or `flow/tenant`."""
    return f"{child.flow}/{child.tenant}" if child.tenant else child.flow


def rule_text(view: View, child: Child) -> str:
    """The policy's rule of a relation, in words."""
    guarded = view.guarded[child.id.flow]
    proto = PROTOCOLS.get(guarded.proto, str(guarded.proto))
    ports = "/".join(map(str, guarded.ports))
    on_wire = ON_WIRE[child.kind]
    outbound = f", outbound all {proto}" if Ports.ANY in on_wire.outbound else ""
    sides = " on either side" if on_wire.either_side else ""
    return f"{child.kind}, {proto} port {ports}{sides}{outbound}{_networks(view, child)}"


def _networks(view: View, child: Child) -> str:
    vni = view.vni(child)
    if vni is not None:
        return f", VNI {vni} (tenant {child.id.tenant})"
    if view.guarded[child.id.flow].tenants:
        return ", VNIs that no tenant names"
    return ", all VNIs" if ON_WIRE[child.kind].has_networks else ""


def relation(view: View, child: Child) -> Relation:
    """A relation with what the kernel holds for it."""
    status = view.status(child.id)
    sas = view.sas_by_reqid.get(child.reqid, [])
    sps = view.sps_by_reqid.get(child.reqid, [])
    return Relation(
        status=status,
        rule=rule_text(view, child),
        vni=view.vni(child),
        mark=None if child.mark is None else str(child.mark),
        sps=tuple(sp_report(view, sp) for sp in sorted(sps, key=_sp_place)),
        sas=tuple(sa_report(view, sa, child) for sa in sorted(sas, key=_sa_place)),
    )


def _sp_place(sp: Sp) -> tuple[object, ...]:
    return (sp.id.direction is not SpDirection.OUT, sp.priority, sp.index)


def _sa_place(sa: Sa) -> tuple[object, ...]:
    return (sa.usage.added_at, str(sa.id))


def sp_report(view: View, sp: Sp, *, when: str = "") -> SpReport:
    """An SP as the kernel shows it."""
    pinned = sp.templates[0].spi if sp.templates else None
    return SpReport(
        direction=sp.id.direction,
        selector=str(sp.id.selector),
        action=action(sp),
        priority=sp.priority,
        index=sp.index,
        whose=whose(view, sp),
        mark=None if sp.id.mark is None else str(sp.id.mark),
        reqid=f"{sp.templates[0].reqid:#x}" if sp.templates else None,
        spi=None if pinned is None else spi_hex(pinned),
        used=view.since(sp.usage.used_at),
        when=when,
    )


def action(sp: Sp) -> str:
    """What an SP does with its packets."""
    if sp.action is SpAction.BLOCK:
        return "block"
    return "protect" if protects(sp) else "pass"


def whose(view: View, sp: Sp) -> str:
    """The relation or the part of tunsec that an SP is of, or `another program`."""
    if not is_our_sp(sp):
        return "another program"
    child = view.by_reqid.get(sp.templates[0].reqid) if sp.templates else None
    return "tunsec" if child is None else f"{label(child.id)} {child.id.peer}"


def sa_report(view: View, sa: Sa, child: Child | None) -> SaReport:
    """An SA as the kernel shows it, with its machine's word."""
    inbound = sa.id.dst in view.held or (child is not None and sa.id.dst == child.id.local)
    states = {} if child is None else sa_states(view.engine, child)
    status = None if child is None else view.status(child.id)
    used_spi = None if status is None else (status.spi_in if inbound else status.spi_out)
    life, usage = sa.lifetimes, sa.usage
    age = view.since(usage.added_at) or 0.0
    return SaReport(
        direction="in" if inbound else "out",
        spi=spi_hex(sa.id.spi),
        src=str(sa.src),
        dst=str(sa.id.dst),
        reqid=f"{sa.reqid:#x}",
        aead=sa.aead,
        state="larval" if sa.larval else states.get(sa.id, ""),
        in_use=spi_hex(sa.id.spi) == used_spi,
        age=age,
        used=view.since(usage.used_at),
        carried_bytes=usage.usage_bytes,
        packets=usage.usage_packets,
        esn=sa.replay.esn,
        replay_window=sa.replay.window,
        sequence=sa.replay.seq if inbound else sa.replay.oseq,
        drops=sa.drops.total,
        mark=None if sa.id.mark is None else str(sa.id.mark),
        output_mark=None if sa.output_mark is None else str(sa.output_mark),
        soft_after=_left(life.soft_seconds, age),
        hard_after=_left(life.hard_seconds, age),
        hard_bytes=life.hard_bytes,
        hard_packets=life.hard_packets,
        offload=None if sa.offload is None else sa.offload.kind.value,
    )


def _left(limit: int | None, age: float) -> float | None:
    return None if limit is None else max(0.0, limit - age)


def sa_states(engine: Engine, child: Child) -> dict[SaId, str]:
    """What the machines that carry a relation say of its SAs; while it moves there are two."""
    return dict((*_directory_states(engine, child), *_ike_states(engine, child)))


def _directory_states(engine: Engine, child: Child) -> Iterator[tuple[SaId, str]]:
    pair = engine.pairs.get(child.id.peer)
    flow = None if pair is None else pair.flows.get(child.id)
    if flow is not None:
        said = f", {Keying.DIRECTORY}" if engine.is_moving(child.id) else ""
        yield from ((inbound_id(child, sa.spi), f"{sa.state}{said}") for sa in flow.inbound)
        yield from ((outbound_id(child, sa.spi), f"{sa.state}{said}") for sa in flow.outbound)


def _ike_states(engine: Engine, child: Child) -> Iterator[tuple[SaId, str]]:
    flow = engine.ike.flow(child.id)
    if flow is not None:
        for held in flow.held:
            said = f"{held.state}, {'own' if held.own else 'the peer'} CHILD_SA"
            yield inbound_id(child, held.spi_in), said
            yield outbound_id(child, held.spi_out), said
        for stray in flow.strays:
            make = inbound_id if stray.inbound else outbound_id
            yield make(child, stray.spi), "no charon keeps it"


def guard_reports(
    view: View, flows: Iterable[GuardedFlow], directions: Iterable[SpDirection]
) -> tuple[GuardReport, ...]:
    """The guard's rules for these flows."""
    return tuple(
        GuardReport(rule, f"{what}.{flow_label(flow.flow)}", count)
        for flow in flows
        for direction in directions
        for what, rule, count in _guard_rules(flow, direction, view.drops.get(flow.flow))
    )


def guards(flow: GuardedFlow, packet: Packet, remote: Address) -> bool:
    """Whether the guard's rules for a flow may be about a packet: it looks at the flow's own port,
    whatever more the SPs cover."""
    ports = (packet.dport, packet.sport) if flow.either_side else (packet.dport,)
    return (
        flow.proto == packet.proto
        and (flow.strangers_blocked or remote in flow.peers)
        and any(port is None or port in flow.ports for port in ports)
    )


def _guard_rules(
    flow: GuardedFlow, direction: SpDirection, drops: GuardDrops | None
) -> Iterator[tuple[str, str, int]]:
    counted = drops or GuardDrops()
    if direction is SpDirection.IN:
        yield CLEAR_IN, "drops what did not arrive in ESP", counted.clear_in
        if flow.tenants:
            said = "drops what another tenant's SA decrypted"
            yield CROSS_TENANT, said, counted.cross_tenant
        return
    if flow.tunnel_only:
        sends = "tunnel device" if ON_WIRE[flow.kind].has_networks else "socket of the kernel's"
        said = f"drops what no {sends} sent"
        yield LOCAL_INJECTION, said, counted.local_injection
    yield CLEAR_OUT, "drops what no SP protects", counted.clear_out


def mark_text(mark: Mark, guarded: Iterable[GuardedFlow]) -> str:
    """Whose a mark is: `VNI 41`, or the bare number."""
    for flow in guarded:
        for one in flow.tenants:
            if one.mark == mark:
                return f"the VNI is {one.vni} (tenant {one.tenant})"
        if flow.tenants and flow.others == mark:
            return "no tenant names the VNI"
    return f"its mark is {mark}"
