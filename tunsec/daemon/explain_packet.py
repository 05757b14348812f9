"""What becomes of one packet that this host sends or receives, and why."""

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from tunsec.daemon.explain_parts import (
    PROTOCOLS,
    View,
    action,
    guard_reports,
    guards,
    label,
    mark_text,
    relation,
    sp_report,
)
from tunsec.model.flow import Child, Kind
from tunsec.model.guard import GuardedFlow, TunnelDevice
from tunsec.model.names import Address, Network, Spi, Vni, spi_hex
from tunsec.model.ownership import block_priority, is_our_sp
from tunsec.model.packet import Packet
from tunsec.model.sa import Sa, SaId
from tunsec.model.selector import UDP, PortMatch, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection
from tunsec.plan import devices as overlays
from tunsec.plan.lookup import Match, carriers, protects, ruling, selector_match, sp_match
from tunsec.policy.desired import inbound_sps, outbound_sps
from tunsec.policy.kinds import ON_WIRE, selectors
from tunsec.wire.control_explain import Explanation, SpReport, Verdict

NEAREST: Final = 2
"""Flows that are named for a packet that none covers."""
MAX_DIFFERENCES: Final = 2

_NAMES: Final = {
    0: "names the destination port alone",
    1: "names a port on either side",
    2: "names no port outbound",
}
"""By precedence (policy/kinds.py)."""


class AskedPacket:
    """One packet that this host sends or receives."""

    def __init__(self, view: View, packet: Packet, direction: SpDirection, vni: Vni | None) -> None:
        self.view = view
        self.direction = direction
        self.vni = vni
        outbound = direction is SpDirection.OUT
        self.local = packet.src if outbound else packet.dst
        self.remote = packet.dst if outbound else packet.src
        most_specific_first = sorted(view.engine.scope.guarded, key=_precedence)
        self.flows = [
            flow
            for flow in most_specific_first
            if flow_match(flow, direction, packet) is not Match.NO
        ]
        self.packet = Packet(
            *(packet.src, packet.dst, packet.proto, packet.sport, packet.dport),
            mark=self._mark(packet),
        )
        self.guarding = [flow for flow in most_specific_first if guards(flow, packet, self.remote)]
        self.found = ruling(view.sps.values(), direction, self.packet)

    def _mark(self, packet: Packet) -> int | None:
        """What tunnel devices, or the SA that decrypts it, give the packet."""
        guard = self.view.engine.scope.guard(())
        for flow in self.flows:
            if not ON_WIRE[flow.kind].has_networks:
                continue
            if packet.dport is None or (flow.tenants and self.vni is None):
                return None
            sender = TunnelDevice("", 0, flow.kind, packet.dport, self.vni)
            mark = guard.device_mark(sender).value
            if self.direction is SpDirection.IN and mark == guard.tunnel_mark.value:
                return 0  # no SA gives it one
            return mark
        return 0

    # The answer

    def answer(self) -> Explanation:
        """All of it."""
        outcomes = [*self.found.may, self.found.rules]
        verdicts = {self._verdict(sp) for sp in outcomes}
        depends = len(verdicts) > 1
        verdict = Verdict.DEPENDS if depends else verdicts.pop()
        if depends or (verdict is Verdict.PROTECTED and self.found.may):
            why = "; ".join(f"{self._verdict(sp)} {self._when(sp)}" for sp in outcomes)
        else:
            why = self._why(self.found.rules, verdict)
        children = self._children(outcomes)
        direction = "out" if self.direction is SpDirection.OUT else "in"
        return Explanation(
            asked=f"{direction}: {asked_text(self.packet, self.vni)}",
            verdict=verdict,
            why=why,
            on_the_wire=tuple(self._on_the_wire(outcomes)),
            sps=tuple(self._sps()),
            relations=tuple(relation(self.view, child) for child in children),
            guard=guard_reports(self.view, self.guarding, (self.direction,)),
            notes=tuple(self._notes(children)),
        )

    def _verdict(self, sp: Sp | None) -> Verdict:
        if sp is None:
            return Verdict.CLEAR
        if not is_our_sp(sp):
            return Verdict.FOREIGN
        if sp.action is SpAction.BLOCK or not self._carriers(sp):
            return Verdict.BLOCKED
        return Verdict.PROTECTED

    def _carriers(self, sp: Sp) -> tuple[Sa, ...]:
        return carriers(sp, self.view.sas_by_reqid.get(sp.templates[0].reqid, ()))

    def _children(self, outcomes: Iterable[Sp | None]) -> list[Child]:
        """Relations whose SPs rule it, or else those that should."""
        ruling_it = [
            child
            for sp in outcomes
            if sp is not None and sp.templates
            if (child := self.view.by_reqid.get(sp.templates[0].reqid)) is not None
        ]
        return list(dict.fromkeys(ruling_it)) or self._meant()[:1]

    def _meant(self) -> list[Child]:
        """Relations of the most specific flow for the packet: what it blocks, no other one may
        carry."""
        first = {
            flow.flow for flow in self.flows if _precedence(flow) == _precedence(self.flows[0])
        }
        return [
            child
            for child in self.view.children
            if child.id.flow in first
            and (child.id.local, child.id.remote) == (self.local, self.remote)
            and any(
                sp_match(sp, self.direction, self.packet) is not Match.NO
                for sp in (*inbound_sps(child), *outbound_sps(child, Spi(0)))
            )
        ]

    # Why

    def _when(self, sp: Sp | None) -> str:
        if sp is None or sp is self.found.rules:
            return "otherwise"
        return f"if {self._condition(sp)}"

    def _condition(self, sp: Sp) -> str:
        return " and ".join(conditions(sp, self.packet, self.flows))

    def _why(self, sp: Sp | None, verdict: Verdict) -> str:
        match verdict:
            case Verdict.CLEAR:
                return self._why_clear()
            case Verdict.FOREIGN if sp is not None:
                return self._why_foreign(sp)
            case Verdict.PROTECTED if sp is not None:
                return self._why_protected(sp)
            case _:
                return self._why_blocked(sp)

    def _why_protected(self, sp: Sp) -> str:
        child = self.view.by_reqid.get(sp.templates[0].reqid)
        flow = "a former flow" if child is None else f"flow {label(child.id)}"
        peer = self.remote if child is None else child.id.peer
        way = "leaves to" if self.direction is SpDirection.OUT else "arrives from"
        spi = spi_hex(self._carriers(sp)[0].id.spi)
        return f"{flow}: {way} {peer} in ESP, SPI {spi}"

    def _why_clear(self) -> str:
        scope = self.view.engine.scope
        for flow in scope.released_here:
            if flow_match(flow, self.direction, self.packet) is not Match.NO:
                said = "until the policy is applied again"
                return f"an admin released flow {flow.flow}, {said}"
        sent = [
            flow
            for flow in scope.guarded
            if flow.kind is Kind.ROCEV2 and self.remote in flow.peers and self.packet.proto == UDP
        ]
        if sent and self.direction is SpDirection.IN:
            said = "it is delivered in ESP and in clear alike: no inbound SP is for its ports"
            return f"{said}; what flow {sent[0].flow} makes the peer send of it comes in ESP"
        return "no flow of the policy names it"

    def _why_foreign(self, sp: Sp) -> str:
        does = {"pass": "lets it pass in clear", "block": "drops it", "protect": "protects it"}
        said = f"another program's SP, of priority {sp.priority}, {does[action(sp)]}"
        if self.guarding and not protects(sp) and sp.action is not SpAction.BLOCK:
            said += f"; the guard drops it, for flow {self.guarding[0].flow} names it"
        return said

    def _why_blocked(self, sp: Sp | None) -> str:
        if sp is not None and sp.templates:
            return self._why_no_sa(sp)
        retired = self.view.engine.scope.retired
        gone = next((one for one in retired if sp in one.blocks), None)
        if gone is not None:
            opens = f"`tunsec release {gone.flow}` opens it"
            return f"flow {gone.flow} is no longer in the policy, and blocked: {opens}"
        flows = [
            flow
            for flow in self.flows
            if sp is not None and sp.priority == block_priority(_precedence(flow))
        ]
        if not flows:
            return "a block SP of an earlier policy, which nobody has released, holds it"
        return self._why_not_protected(flows[0])

    def _why_no_sa(self, sp: Sp) -> str:
        child = self.view.by_reqid.get(sp.templates[0].reqid)
        if child is None:
            return "its SP is a former policy's, and has no SA"
        reason = self.view.status(child.id).reason or "no SA is in the kernel"
        return f"flow {label(child.id)} with {child.id.peer}: {reason}"

    def _why_not_protected(self, flow: GuardedFlow) -> str:
        """Why a flow of the policy has no SP that protects the packet."""
        if self.remote not in flow.peers:
            said = f"{self.remote} is no host of flow {flow.flow}"
            return f"{said}, which has `strangers: blocked`"
        unheld = self._why_not_held()
        if unheld:
            return f"flow {flow.flow}: {unheld}"
        if self.local not in self.view.engine.scope.addresses:
            said = f"the policy does not give {self.local} to this host"
            return f"flow {flow.flow}: {said}, so there are no SAs for it"
        tenants = {one.vni: one.tenant for one in flow.tenants}
        if tenants and self.vni is not None and self.vni not in tenants and flow.others is None:
            named = ", ".join(f"{tenant} {vni}" for vni, tenant in sorted(tenants.items()))
            said = f"no tenant has VNI {self.vni} ({named}), and other VNIs are blocked"
            return f"flow {flow.flow}: {said}"
        child = next((one for one in self._meant() if one.id.flow == flow.flow), None)
        if child is None:
            return f"flow {flow.flow} has no relation for it"
        status = self.view.status(child.id)
        return f"flow {label(child.id)} with {child.id.peer}: {status.reason or status.state}"

    def _why_not_held(self) -> str:
        """Why there are no SAs over a service address: its holder is not this end of the packet, or
        nobody is."""
        scope = self.view.engine.scope
        for service in scope.services:
            holder = scope.holders.get(service.name)
            here = self.local in service.addresses and holder != scope.host
            if here or (self.remote in service.addresses and holder is None):
                address = self.local if here else self.remote
                said = f"{holder or 'nobody'} holds {address}, service address {service.name}"
                return f"{said}: `tunsec status` shows whose it is"
        return ""

    # What a capture shows, and what the kernel holds

    def _on_the_wire(self, outcomes: Iterable[Sp | None]) -> Iterator[str]:
        shown: set[SaId] = set()
        for sp in outcomes:
            if sp is None or not protects(sp):
                continue
            # Inbound any SA of the reqid will do, outbound the kernel takes the first.
            carrying = self._carriers(sp)
            for sa in carrying[:1] if self.direction is SpDirection.OUT else carrying:
                if sa.id not in shown:
                    shown.add(sa.id)
                    yield on_the_wire(sa)

    def _sps(self) -> Iterator[SpReport]:
        for sp in self.found.may:
            yield sp_report(self.view, sp, when=f"if {self._condition(sp)}")
        if self.found.rules is not None:
            yield sp_report(self.view, self.found.rules)
        for sp in self.found.behind:
            yield sp_report(self.view, sp, when="not reached")

    # What else there is to know

    def _notes(self, children: list[Child]) -> Iterator[str]:
        yield from self._vni_notes()
        if children:
            yield from self._flows_behind(children[0])
            status = self.view.status(children[0].id)
            if not status.protected:
                said = status.reason or "not both ways yet"
                yield f"{label(children[0].id)} with {status.peer} is {status.state}: {said}"
        elif not self.flows and self.found.rules is None:
            yield from nearest(self.view, self.packet, self.direction)
        if self.local not in self.view.held:
            yield f"no device of this host has {self.local} now"
        yield from moves(self.view, children)
        yield from composition(self.view, children)
        yield from mtu_notes(self.view, self.flows, self.vni)

    def _vni_notes(self) -> Iterator[str]:
        networks = [flow for flow in self.flows if ON_WIRE[flow.kind].has_networks]
        if self.vni is not None and not networks:
            yield "no overlay's flow names its port: the VNI makes no difference"
        elif self.vni is not None and not any(flow.tenants for flow in networks):
            yield f"flow {networks[0].flow} has no tenants: all VNIs share its SAs"

    def _flows_behind(self, child: Child) -> Iterator[str]:
        """Other flows that cover it, and why they come later; no SA is shared between flows."""
        first = ON_WIRE[child.kind].precedence
        for flow in self.flows:
            behind = _precedence(flow)
            if flow.flow != child.id.flow and behind >= first:
                reason = f"it {_NAMES[behind]}, {child.id.flow} {_NAMES[first]}"
                if behind == first:
                    reason = f"both are of one rank ({_NAMES[first]}): the older SP goes first"
                said = f"flow {flow.flow} ({flow.kind}) covers it too, but comes later: {reason}"
                yield f"{said}; each has SAs of its own"


def _precedence(flow: GuardedFlow) -> int:
    return ON_WIRE[flow.kind].precedence


def flow_match(flow: GuardedFlow, direction: SpDirection, packet: Packet) -> Match:
    """Whether a flow of the policy is about a packet, whoever its local end is."""
    remote = packet.dst if direction is SpDirection.OUT else packet.src
    anywhere = any_network(remote.version)
    there: Network
    if flow.strangers_blocked:
        there = anywhere
    elif remote in flow.peers:
        there = ipaddress.ip_network(remote)
    else:
        return Match.NO
    src, dst = (anywhere, there) if direction is SpDirection.OUT else (there, anywhere)
    return max(
        selector_match(selector, packet)
        for port in flow.ports
        for selector in selectors(flow.kind, direction, port=port, src=src, dst=dst)
    )


def asked_text(packet: Packet, vni: int | None) -> str:
    """`udp 192.0.2.11:49152 > 192.0.2.12:4789 VNI 41`."""
    proto = PROTOCOLS.get(packet.proto, f"protocol {packet.proto}")
    ends = f"{_end(packet.src, packet.sport)} > {_end(packet.dst, packet.dport)}"
    return f"{proto} {ends}" + ("" if vni is None else f" VNI {vni}")


def _end(address: Address, port: int | None) -> str:
    shown = f"[{address}]" if address.version == 6 else str(address)
    return f"{shown}:{'*' if port is None else port}"


def conditions(sp: Sp, packet: Packet, flows: Iterable[GuardedFlow]) -> Iterator[str]:
    """What must be true of the unknown part of a packet for an SP to apply to it."""
    selector = sp.id.selector
    if packet.sport is None and selector.sport.mask:
        yield f"the source port is {selector.sport}"
    if packet.dport is None and selector.dport.mask:
        yield f"the destination port is {selector.dport}"
    if packet.mark is None and sp.id.mark is not None:
        yield mark_text(sp.id.mark, flows)
    if selector.ifindex:
        yield f"it goes by device {selector.ifindex}"


def nearest(view: View, packet: Packet, direction: SpDirection) -> Iterator[str]:
    """The flows that come nearest to a packet that none covers, and what differs."""
    differing: dict[str, tuple[str, ...]] = {}
    for child in view.children:
        found = tuple(_differences(child, packet, direction))
        known = differing.get(child.id.flow)
        if len(found) <= MAX_DIFFERENCES and (known is None or len(found) < len(known)):
            differing[child.id.flow] = found
    for flow in sorted(differing, key=lambda flow: (len(differing[flow]), flow))[:NEAREST]:
        yield f"nearest: flow {flow}, but {', '.join(differing[flow])}"


def _differences(child: Child, packet: Packet, direction: SpDirection) -> Iterator[str]:
    outbound = direction is SpDirection.OUT
    local, remote = (packet.src, packet.dst) if outbound else (packet.dst, packet.src)
    if remote != child.id.remote:
        yield f"its peer is {child.id.peer} ({child.id.remote})"
    if local != child.id.local:
        yield f"its address here is {child.id.local}"
    chosen = child.outbound if outbound else child.inbound
    if all(one.proto != packet.proto for one in chosen):
        yield f"it is {PROTOCOLS.get(chosen[0].proto, str(chosen[0].proto))}"
    if not any(
        _may_be(one.sport, packet.sport) and _may_be(one.dport, packet.dport) for one in chosen
    ):
        yield " or ".join(
            f"{side} port {match}"
            for one in chosen
            for side, match in (("source", one.sport), ("destination", one.dport))
            if match.mask
        )


def _may_be(match: PortMatch, port: int | None) -> bool:
    return port is None or (port ^ match.port) & match.mask == 0


def on_the_wire(sa: Sa) -> str:
    """How a capture shows an SA's packets, and a filter for it."""
    spi = f"0x{spi_hex(sa.id.spi)}"
    where = "ip[20:4]" if sa.src.version == 4 else "ip6[40:4]"
    family = "ip" if sa.src.version == 4 else "ip6"
    wanted = f"{family} proto 50 and dst host {sa.id.dst} and {where} = {spi}"
    return f"{sa.src} > {sa.id.dst}: ESP(spi={spi})   tcpdump -n '{wanted}'"


def moves(view: View, children: Iterable[Child]) -> Iterator[str]:
    """What flows wait for that go from one keying to the other, and what else is the matter."""
    for child in children:
        for warning in view.status(child.id).warnings:
            yield f"{label(child.id)} with {child.id.peer}: {warning}"


def composition(view: View, children: Iterable[Child]) -> Iterator[str]:
    """What else the SP of a flow covers that names no port outbound."""
    told: set[tuple[str, str]] = set()
    for child in children:
        if child.kind is not Kind.ROCEV2 or (child.id.flow, child.id.peer) in told:
            continue
        told.add((child.id.flow, child.id.peer))
        first = [
            f"{flow.flow} ({flow.kind}, port {'/'.join(map(str, flow.ports))})"
            for flow in view.engine.scope.guarded
            if flow.proto == UDP
            and child.id.remote in flow.peers
            and _precedence(flow) < ON_WIRE[child.kind].precedence
        ]
        yield (
            f"{child.id.flow} covers all UDP to {child.id.peer} that no flow before it names, "
            f"because Soft-RoCE asks for its route without ports: such packets leave in its ESP too"
        )
        if first:
            yield f"before it, each with SAs of its own: {', '.join(sorted(first))}"


def mtu_notes(view: View, flows: Iterable[GuardedFlow], vni: Vni | None) -> tuple[str, ...]:
    """Tunnel devices of flows whose full-size packets do not fit."""
    devices = [one for one in view.devices if vni is None or one.vni in (None, vni)]
    return overlays.mtu_warnings(tuple(flows), devices, view.ways)
