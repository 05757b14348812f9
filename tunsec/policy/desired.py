"""What one host's kernel must hold for an Intent. Pure: SPIs and keys come later, from others.

guarded, blocks   hold from the first moment until `tunsec release`
children          one per flow, peer and pair of addresses; each has SAs and protecting SPs. A
                  service address counts as its holder's; over one without holder there are none
inbound_sps       accept only what an SA of the child's reqid has decrypted
outbound_sps      send only by one SA, pinned by its SPI
"""

import functools
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tunsec.model.errors import Bug
from tunsec.model.flow import Child, ChildId, Kind, Mode, OnReconnect
from tunsec.model.guard import GuardedFlow, TenantMark
from tunsec.model.names import (
    Address,
    FlowName,
    HostName,
    Mark,
    Network,
    Reqid,
    Spi,
    TenantName,
    Vni,
)
from tunsec.model.ownership import (
    REQID_FIRST,
    REQID_TRIAL,
    block_priority,
    is_our_reqid,
    protect_priority,
)
from tunsec.model.sa import Offload, OffloadKind
from tunsec.model.selector import Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.policy.intent import Flow, Host, Intent, ServiceAddress
from tunsec.policy.kinds import ON_WIRE, selectors
from tunsec.policy.values import LocalSenders, OtherTenants, Strangers

REPLAY_WINDOW: Final = 1024
"""Packets. 64, the usual choice, drops honest packets that several queues put out of order."""

_REQIDS: Final = REQID_TRIAL - REQID_FIRST

Holders = Mapping[str, HostName]
"""Who holds a service address now, by its name; one that nobody holds is not in it."""

NOBODY: Final[Holders] = {}

Sharing = tuple[FlowName, TenantName | None]
"""Whose packets one mark names: a tenant's of a flow, or (None) all VNIs without a tenant."""

_Marked = tuple[Kind, int, Vni | None]
"""What a tunnel device can tell: its port, and the VNI, or (None) any that no tenant has."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What a host must hold. Two hosts' children mirror each other, but for their reqids."""

    host: HostName
    children: tuple[Child, ...]
    blocks: tuple[Sp, ...]
    guarded: tuple[GuardedFlow, ...]
    tunnel_mark: Mark


def child_ids(intent: Intent, host: str, holders: Holders = NOBODY) -> tuple[ChildId, ...]:
    """The children of a host, sorted; raises PolicyError when the policy does not name it."""
    own = intent.host(host)
    ids = (
        child_id
        for flow in intent.flows
        for child_id in _children(intent, own, flow=flow, held=_held_by(intent, flow, holders))
    )
    return tuple(sorted(ids, key=child_order))


def possible_ids(intent: Intent, host: str) -> frozenset[ChildId]:
    """Every child that a host may have under a policy, whoever comes to hold service addresses.

    Each draws a reqid of its own: no SA with one owner may ever pass for one with another.
    """
    own = intent.host(host)
    return frozenset(
        child_id
        for flow in intent.flows
        for child_id in _children(intent, own, flow=flow, held=_ownable(intent, flow))
    )


def child_order(child_id: ChildId) -> tuple[object, ...]:
    """What children are sorted by; addresses of two families have no order of their own."""
    return (
        child_id.peer,
        child_id.flow,
        child_id.tenant or "",
        child_id.local.version,
        int(child_id.local),
        int(child_id.remote),
    )


def assign_reqids(ids: Iterable[ChildId], held: Mapping[ChildId, Reqid]) -> dict[ChildId, Reqid]:
    """A reqid for each child: the one it holds, else one drawn from its id by SHA-256.

    `held` may name children that are no more: their reqids stay taken, since their SAs may still
    drain. What is held twice or outside tunsec's range counts as not held.
    """
    kept: dict[Reqid, ChildId] = {}
    for child_id in sorted(held, key=child_order):
        if is_our_reqid(held[child_id]):
            kept.setdefault(held[child_id], child_id)
    assigned = {child_id: reqid for reqid, child_id in kept.items()}
    wanted = sorted(set(ids), key=child_order)
    for child_id in wanted:
        if child_id not in assigned:
            assigned[child_id] = _free_reqid(child_id, kept)
            kept[assigned[child_id]] = child_id
    return {child_id: assigned[child_id] for child_id in wanted}


def _free_reqid(child_id: ChildId, taken: Mapping[Reqid, ChildId]) -> Reqid:
    """The first free reqid at or after the one that the id hashes to."""
    if len(taken) >= _REQIDS:
        raise Bug(f"more than {_REQIDS} children")
    parts = (child_id.peer, child_id.flow, child_id.tenant or "", child_id.local, child_id.remote)
    offset = _hashed(parts) % _REQIDS
    while Reqid(REQID_FIRST + offset) in taken:
        offset = (offset + 1) % _REQIDS
    return Reqid(REQID_FIRST + offset)


def _hashed(parts: Iterable[object]) -> int:
    digest = hashlib.sha256("\n".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def assign_marks(intent: Intent, host: str, held: Mapping[Sharing, Mark]) -> dict[Sharing, Mark]:
    """A mark for each tenant of a host's flows: the one it holds, else one drawn from its name.

    Flows on one port share the mark of a VNI: one tunnel device sends for all of them, and what
    keeps their SPs apart is the peers. Marks are a host's own business: its peers may use others.
    What is held twice, or lies outside of the policy's bits, counts as not held.
    """
    own = intent.host(host)
    wanted = {
        (flow.name, tenant): (flow.kind, flow.port, vni)
        for flow in intent.flows
        if flow.tenants and own.name in flow.hosts
        for tenant, vni in _tenants(flow).items()
    }
    assigned: dict[_Marked, int] = {}
    for sharing, marked in wanted.items():
        number = intent.marks.number(held[sharing]) if sharing in held else None
        if number is not None and number not in assigned.values():
            assigned.setdefault(marked, number)
    taken = set(assigned.values())
    for sharing, marked in wanted.items():
        if marked in assigned:
            continue
        number = _hashed((sharing[0], sharing[1] or "")) % intent.marks.tenants + 1
        while number in taken:
            number = number % intent.marks.tenants + 1
        taken.add(number)
        assigned[marked] = number
    return {sharing: intent.marks.tenant(assigned[marked]) for sharing, marked in wanted.items()}


@dataclass(frozen=True, slots=True)
class Held:
    """Numbers that children already have: they keep them, whatever the policy now says."""

    reqids: Mapping[ChildId, Reqid] = field(default_factory=dict)
    marks: Mapping[Sharing, Mark] = field(default_factory=dict)


NOTHING_HELD: Final = Held()


def desired(
    intent: Intent, host: str, *, held: Held = NOTHING_HELD, holders: Holders = NOBODY
) -> Desired:
    """What `host` must hold. Raises PolicyError when the policy does not name the host."""
    own = intent.host(host)
    reqids = assign_reqids(possible_ids(intent, host), held.reqids)
    marks = assign_marks(intent, host, held.marks)
    flows = [flow for flow in intent.flows if own.name in flow.hosts]
    children = [
        _child(child_id, flow=flow, reqids=reqids, marks=marks)
        for flow in flows
        for child_id in _children(intent, own, flow=flow, held=_held_by(intent, flow, holders))
    ]
    blocks = {
        sp.id: sp
        for flow in flows
        for there in _blocked(intent, own, flow=flow)
        for sp in _blocks(flow, there=there)
    }
    return Desired(
        host=own.name,
        children=tuple(sorted(children, key=lambda child: child_order(child.id))),
        blocks=tuple(sorted(blocks.values(), key=_sp_order)),
        guarded=tuple(_guarded(intent, own, flow=flow, marks=marks) for flow in flows),
        tunnel_mark=intent.marks.tunnel,
    )


def inbound_sps(child: Child, offload: Offload | None = None) -> tuple[Sp, ...]:
    """The SPs that accept a child's traffic, which comes by SAs with this offload.

    Any SA of its reqid will do, so a rekey leaves them as they are. A NIC gets them only where it
    delivers packets past the kernel, RDMA: of a packet without ESP, the kernel takes an SP that a
    NIC has for checked (net/xfrm/xfrm_policy.c __xfrm_policy_check), and would let it in.
    """
    template = Template(src=child.id.remote, dst=child.id.local, reqid=child.reqid)
    device = _of_whole_packets(offload) if child.kind is Kind.ROCEV2 else None
    return tuple(
        _protect(selector, SpDirection.IN, template=template, child=child, offload=device)
        for selector in child.inbound
    )


def outbound_sps(child: Child, spi: Spi, offload: Offload | None = None) -> tuple[Sp, ...]:
    """The SPs that send a child's traffic by one SA, with this offload: the template pins its SPI.

    Without it the kernel would take the newest SA of the reqid, to the second. An SA that a NIC
    carries wholly is found only by an SP that the same NIC has (net/xfrm/xfrm_state.c
    xfrm_state_find), and the other way round.
    """
    template = Template(src=child.id.local, dst=child.id.remote, reqid=child.reqid, spi=spi)
    device = _of_whole_packets(offload)
    return tuple(
        _protect(selector, SpDirection.OUT, template=template, child=child, offload=device)
        for selector in child.outbound
    )


def _of_whole_packets(offload: Offload | None) -> Offload | None:
    """What an SP needs for an SA with this offload. Its direction is in its id: the kernel refuses
    to be told it twice."""
    if offload is None or offload.kind is not OffloadKind.PACKET:
        return None
    return replace(offload, inbound=False)


def _protect(
    selector: Selector,
    direction: SpDirection,
    *,
    template: Template,
    child: Child,
    offload: Offload | None,
) -> Sp:
    sp_id = SpId(selector, direction, mark=child.mark)
    return Sp(sp_id, child.priority, SpAction.ALLOW, (template,), offload=offload)


def _peers(intent: Intent, own: Host, *, flow: Flow) -> list[Host]:
    names = set(flow.hosts) - {own.name} if own.name in flow.hosts else set()
    return [host for host in intent.hosts if host.name in names]


_Moving = Mapping[HostName, tuple[Address, ...]]
"""Service addresses of a flow by host."""


def _children(intent: Intent, own: Host, *, flow: Flow, held: _Moving) -> Iterator[ChildId]:
    """Every pair of a local and a remote address of one family, for each tenant."""
    for peer in _peers(intent, own, flow=flow):
        for local in (*own.addresses, *held.get(own.name, ())):
            for remote in (*peer.addresses, *held.get(peer.name, ())):
                if local.version == remote.version and local != remote:
                    for tenant in _tenants(flow):
                        yield ChildId(peer.name, flow.name, tenant, local, remote)


def _services(intent: Intent, flow: Flow) -> list[ServiceAddress]:
    return [one for one in intent.service_addresses if one.name in flow.service_addresses]


def _held_by(intent: Intent, flow: Flow, holders: Holders) -> _Moving:
    """What each host holds of a flow's service addresses; who is no owner holds nothing."""
    held: dict[HostName, tuple[Address, ...]] = {}
    for service in _services(intent, flow):
        holder = holders.get(service.name)
        if holder is not None and holder in service.owners:
            held[holder] = (*held.get(holder, ()), *service.addresses)
    return held


def _ownable(intent: Intent, flow: Flow) -> _Moving:
    """What each host may come to hold of a flow's service addresses."""
    held: dict[HostName, tuple[Address, ...]] = {}
    for service in _services(intent, flow):
        for owner in service.owners:
            held[owner] = (*held.get(owner, ()), *service.addresses)
    return held


def _tenants(flow: Flow) -> dict[TenantName | None, Vni | None]:
    """Who has SAs of a flow, for which VNI: each tenant, and (None) all other VNIs together,
    unless they are blocked."""
    named: dict[TenantName | None, Vni | None] = {one.name: one.vni for one in flow.tenants}
    return {**named, None: None} if flow.other_tenants is OtherTenants.SHARED else named


def _child(
    child_id: ChildId,
    *,
    flow: Flow,
    reqids: Mapping[ChildId, Reqid],
    marks: Mapping[Sharing, Mark],
) -> Child:
    if flow.mode is not Mode.ESP:
        raise Bug(f"flow {flow.name} was not refused: {flow}")
    local, remote = _network(child_id.local), _network(child_id.remote)
    return Child(
        id=child_id,
        kind=flow.kind,
        keying=flow.keying,
        reqid=reqids[child_id],
        outbound=selectors(flow.kind, SpDirection.OUT, port=flow.port, src=local, dst=remote),
        inbound=selectors(flow.kind, SpDirection.IN, port=flow.port, src=remote, dst=local),
        priority=protect_priority(ON_WIRE[flow.kind].precedence),
        rekey=flow.rekey,
        aeads=flow.aeads,
        replay_window=REPLAY_WINDOW,
        offload=flow.offload,
        on_reconnect=flow.on_reconnect,
        esn=flow.esn,
        mark=marks[flow.name, child_id.tenant] if flow.tenants else None,
    )


def _blocked(intent: Intent, own: Host, *, flow: Flow) -> list[Network]:
    """From and to where nothing of a flow may pass in clear: its peers and service addresses,
    whoever holds them, or simply anywhere.

    A tunnel device takes packets from anybody and learns where to send from them (RFC 7348
    section 4.1), so one clear packet of a stranger could draw the overlay's traffic to itself.
    """
    if flow.strangers is Strangers.BLOCKED:
        return [any_network(4), any_network(6)]
    return [_network(address) for address in _others(intent, own, flow=flow)]


def _others(intent: Intent, own: Host, *, flow: Flow) -> list[Address]:
    """Addresses of a flow that are another host's, or may be."""
    peers = _peers(intent, own, flow=flow)
    found = [address for peer in peers for address in peer.addresses]
    services = _services(intent, flow)
    return [*found, *(address for service in services for address in service.addresses)]


def _blocks(flow: Flow, *, there: Network) -> Iterator[Sp]:
    """Drops what no child protects, to and from any address of this host, listed or not."""
    anywhere = any_network(there.version)
    for direction, src, dst in (
        (SpDirection.OUT, anywhere, there),
        (SpDirection.IN, there, anywhere),
    ):
        for selector in selectors(flow.kind, direction, port=flow.port, src=src, dst=dst):
            priority = block_priority(ON_WIRE[flow.kind].precedence)
            yield Sp(SpId(selector, direction), priority, SpAction.BLOCK)


def _guarded(
    intent: Intent, own: Host, *, flow: Flow, marks: Mapping[Sharing, Mark]
) -> GuardedFlow:
    on_wire = ON_WIRE[flow.kind]
    return GuardedFlow(
        flow=flow.name,
        kind=flow.kind,
        proto=on_wire.proto,
        ports=(flow.port,),
        either_side=on_wire.either_side,
        peers=frozenset(_others(intent, own, flow=flow)),
        tunnel_only=flow.local_senders is LocalSenders.TUNNEL_ONLY,
        strangers_blocked=flow.strangers is Strangers.BLOCKED,
        tenants=tuple(
            TenantMark(tenant.name, tenant.vni, marks[flow.name, tenant.name])
            for tenant in flow.tenants
        ),
        gated=flow.on_reconnect is not OnReconnect.KEEP,
        others=marks.get((flow.name, None)),
    )


@functools.lru_cache(maxsize=4096)
def _network(address: Address) -> Network:
    return ipaddress.ip_network(address)


def _sp_order(sp: Sp) -> tuple[object, ...]:
    selector = sp.id.selector
    networks = (int(selector.src.network_address), int(selector.dst.network_address))
    return (
        selector.version,
        networks,
        sp.id.direction,
        selector.proto,
        selector.sport,
        selector.dport,
    )
