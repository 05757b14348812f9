"""Answers `tunsec explain`: which rule covers a packet, what the kernel does with it now, and why.

The kernel's part is looked up in dumps of its SPs and SAs (plan/lookup.py), so that SPs of other
programs count as they do there; the policy's part is read off the scope and the machines.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from tunsec.daemon import report
from tunsec.daemon.engine import Engine
from tunsec.daemon.explain_packet import (
    AskedPacket,
    asked_text,
    composition,
    moves,
    mtu_notes,
    on_the_wire,
)
from tunsec.daemon.explain_parts import View, guard_reports, label, relation, sa_report
from tunsec.daemon.reconcile import overtaken
from tunsec.model.clock import Instant, WallTime
from tunsec.model.errors import TunsecError
from tunsec.model.flow import Child
from tunsec.model.guard import GuardDrops
from tunsec.model.names import Address, Spi, Vni, spi_hex
from tunsec.model.ownership import is_our_sa
from tunsec.model.packet import Packet
from tunsec.model.sa import Sa
from tunsec.model.selector import TCP, UDP
from tunsec.model.sp import SpDirection
from tunsec.plan.devices import ways_wanted
from tunsec.plan.image import Image
from tunsec.ports import GuardTable, Kernel, Links
from tunsec.wire.control import FlowStatus, Malformed
from tunsec.wire.control_explain import (
    EspBody,
    ExplainBody,
    Explanation,
    PacketBody,
    Relation,
    Verdict,
)

_NAMED: Final = {"tcp": TCP, "udp": UDP}


def explain(
    engine: Engine,
    body: ExplainBody,
    *,
    kernel: Kernel,
    guard: GuardTable,
    links: Links,
    now: Instant,
    wall: WallTime,
) -> Explanation:
    """The answer to one question; raises Malformed for one that makes no sense here."""
    have, devices = Image(kernel.sas(), kernel.sps()), links.overlay_devices()
    drops: dict[str, GuardDrops] = {}
    trouble = engine.troubles.guard
    try:
        drops = guard.drops()
    except TunsecError as error:
        trouble = trouble or str(error)
    view = View(
        engine,
        report.flow_statuses(engine, have=have, now=now),
        have.sas,
        have.sps,
        drops,
        frozenset(links.addresses()),
        devices,
        {peer: links.underlay_mtu(peer) for peer in ways_wanted(engine.scope.guarded, devices)},
        wall,
    )
    answer = _answer(view, body)
    if not trouble:
        return answer
    note = f"the guard is not in force: {trouble}"
    return replace(answer, notes=(*answer.notes, note))


def _answer(view: View, body: ExplainBody) -> Explanation:
    match (body.flow, body.packet, body.esp):
        case (str() as flow, None, None):
            return _flow(view, flow, body.tenant)
        case (None, PacketBody() as packet, None):
            return _packet(view, packet)
        case (None, None, EspBody() as esp):
            return _esp(view, esp)
        case _:
            raise Malformed("one of flow, packet and esp is explained at a time")


# A flow


def _flow(view: View, flow: str, tenant: str | None) -> Explanation:
    """Every relation of a flow, or of one of its tenants."""
    statuses = [one for one in view.statuses if one.flow == flow]
    if tenant is not None:
        tenants = sorted({one.tenant for one in statuses if one.tenant})
        statuses = [one for one in statuses if one.tenant == tenant]
        if not statuses:
            known = ", ".join(tenants) or "it has none"
            raise Malformed(f"flow {flow} has no tenant {tenant!r} here ({known})")
    children = [child for one in statuses if (child := view.child(one)) is not None]
    guarded = [view.guarded[flow]] if flow in view.guarded else []
    return Explanation(
        asked=f"flow {flow}" + (f", tenant {tenant}" if tenant else ""),
        verdict=_verdict_of(statuses),
        why=_standing(statuses),
        relations=tuple(_relations(view, statuses)),
        guard=guard_reports(view, guarded, (SpDirection.OUT, SpDirection.IN)),
        notes=(
            *_strangers(view, children),
            *moves(view, children),
            *composition(view, children),
            *mtu_notes(view, guarded, None),
        ),
    )


def _relations(view: View, statuses: Iterable[FlowStatus]) -> Iterator[Relation]:
    for status in statuses:
        child = view.child(status)
        yield Relation(status, status.kind) if child is None else relation(view, child)


def _verdict_of(statuses: list[FlowStatus]) -> Verdict:
    if any(not one.protected and one.state == "RELEASED" for one in statuses):
        return Verdict.CLEAR
    protected = all(one.protected for one in statuses)
    return Verdict.PROTECTED if protected and statuses else Verdict.BLOCKED


def _standing(statuses: list[FlowStatus]) -> str:
    if not statuses:
        return "no peer on this host"
    protected = sum(one.protected for one in statuses)
    said = f"{protected} of {len(statuses)} protected"
    reasons = sorted({one.reason for one in statuses if not one.protected and one.reason})
    return f"{said}: {'; '.join(reasons)}" if reasons else said


def _strangers(view: View, children: list[Child]) -> Iterator[str]:
    for child, sp in overtaken(children, Image(view.sas, view.sps)):
        yield f"another program's SP comes before those of {label(child)} {child.peer}: {sp}"


# A packet


def _packet(view: View, body: PacketBody) -> Explanation:
    packet = _parsed(body)
    here = view.held | view.engine.scope.addresses
    asked = asked_text(packet, body.vni)
    if packet.src in here and packet.dst in here:
        why = "both ends are this host: the packet stays inside of it"
        return Explanation(asked, Verdict.ELSEWHERE, why)
    if packet.src in here:
        direction = SpDirection.OUT
    elif packet.dst in here:
        direction = SpDirection.IN
    else:
        return Explanation(asked, Verdict.ELSEWHERE, _elsewhere(view, packet))
    vni = None if body.vni is None else Vni(body.vni)
    return AskedPacket(view, packet, direction, vni).answer()


def _parsed(body: PacketBody) -> Packet:
    src, dst = _address(body.src), _address(body.dst)
    if src.version != dst.version:
        raise Malformed(f"{src} and {dst} are not of one family")
    for port in (body.sport, body.dport):
        if port is not None and not 0 <= port <= 0xFFFF:
            raise Malformed(f"{port} is no port")
    if body.vni is not None and not 0 <= body.vni < 1 << 24:
        raise Malformed(f"{body.vni} is no VNI: it has 24 bits")
    proto = _NAMED.get(body.proto)
    if proto is None:
        if not body.proto.isascii() or not body.proto.isdecimal() or int(body.proto) > 255:
            raise Malformed(f"{body.proto!r} is no protocol (tcp, udp, or its number)")
        proto = int(body.proto)
    return Packet(src, dst, proto, body.sport, body.dport)


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise Malformed(f"{text!r} is no address") from error


def _elsewhere(view: View, packet: Packet) -> str:
    intent = view.engine.scope.intent
    owners = {
        address: host.name
        for host in (intent.hosts if intent else ())
        for address in host.addresses
    }
    ends = [f"{one} is {owners[one]}'s" for one in (packet.src, packet.dst) if one in owners]
    said = "neither end of the packet is this host"
    return f"{said}: ask there ({', '.join(ends)})" if ends else said


# An ESP packet


def _esp(view: View, body: EspBody) -> Explanation:
    """Whose an SPI is: every ESP packet of tunsec's belongs to one flow, tenant, peer and way."""
    spi = _spi(body.spi)
    dst = None if body.dst is None else _address(body.dst)
    asked = f"ESP{'' if dst is None else f' to {dst}'}, SPI {spi_hex(spi)}"
    found = [sa for sa in view.sas.values() if sa.id.spi == spi and dst in (None, sa.id.dst)]
    ours = [sa for sa in found if is_our_sa(sa)]
    children = [child for sa in ours if (child := view.by_reqid.get(sa.reqid)) is not None]
    if children:
        why = "; ".join(_attributed(view, sa) for sa in ours)
        verdict = Verdict.PROTECTED
    elif ours:
        why = "an SA of tunsec's, of a flow that this host has no more"
        verdict = Verdict.UNKNOWN
    elif found:
        why = "; ".join(_stranger(sa) for sa in found)
        verdict = Verdict.FOREIGN
    else:
        return Explanation(asked, Verdict.UNKNOWN, _no_sa(view, dst))
    return Explanation(
        asked=asked,
        verdict=verdict,
        why=why,
        on_the_wire=tuple(on_the_wire(sa) for sa in found),
        relations=tuple(relation(view, child) for child in dict.fromkeys(children)),
        notes=tuple(moves(view, children)),
    )


def _spi(text: str) -> Spi:
    try:
        spi = int(text.removeprefix("0x"), 16)
    except ValueError as error:
        raise Malformed(f"{text!r} is no SPI: 8 hex digits") from error
    if not 0 < spi < 1 << 32:
        raise Malformed(f"{text!r} is no SPI: 8 hex digits")
    return Spi(spi)


def _attributed(view: View, sa: Sa) -> str:
    child = view.by_reqid.get(sa.reqid)
    if child is None:
        return f"an SA of tunsec's to {sa.id.dst}, of a flow that this host has no more"
    report = sa_report(view, sa, child)
    way = "sent to" if report.direction == "out" else "received from"
    vni = view.vni(child)
    tenant = "" if vni is None else f" (VNI {vni})"
    use = "in use" if report.in_use else f"not in use ({report.state or 'no machine knows it'})"
    return f"flow {label(child.id)}{tenant}, {way} {child.id.peer}, {use}"


def _stranger(sa: Sa) -> str:
    larval = ", without keys yet" if sa.larval else ""
    return f"another program's SA, {sa.src} to {sa.id.dst}, reqid {sa.reqid}{larval}"


def _no_sa(view: View, dst: Address | None) -> str:
    said = "no SA of this host has this SPI: it was replaced since, or is not this host's"
    here = view.held | view.engine.scope.addresses
    peers = {child.id.remote: child.id.peer for child in view.children}
    if dst is not None and dst not in here and dst not in peers:
        return f"{said}; {dst} is neither this host nor a peer of its flows"
    return said
