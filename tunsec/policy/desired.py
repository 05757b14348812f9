"""What one host's kernel must hold for an Intent. Pure: SPIs and keys come later, from others.

guarded, blocks   hold from the first moment until `tunsec release`
children          one per flow, peer and pair of addresses; each has SAs and protecting SPs
inbound_sps       accept only what an SA of the child's reqid has decrypted
outbound_sps      send only by one SA, pinned by its SPI
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tunsec.model.errors import Bug
from tunsec.model.flow import Child, ChildId, Mode
from tunsec.model.guard import GuardedFlow
from tunsec.model.names import Address, HostName, Mark, Network, Reqid, Spi
from tunsec.model.ownership import (
    PRIORITY_BLOCK,
    PRIORITY_PROTECT,
    REQID_FIRST,
    REQID_LAST,
    is_our_reqid,
)
from tunsec.model.selector import Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.policy.intent import Flow, Host, Intent
from tunsec.policy.kinds import ON_WIRE, selectors
from tunsec.policy.values import LocalSenders, Strangers

REPLAY_WINDOW: Final = 1024
"""Packets. 64, the usual choice, drops honest packets that several queues put out of order."""

_REQIDS: Final = REQID_LAST - REQID_FIRST + 1


@dataclass(frozen=True, slots=True)
class Desired:
    """What a host must hold. Two hosts' children mirror each other, but for their reqids."""

    host: HostName
    children: tuple[Child, ...]
    blocks: tuple[Sp, ...]
    guarded: tuple[GuardedFlow, ...]
    tunnel_mark: Mark


def child_ids(intent: Intent, host: str) -> tuple[ChildId, ...]:
    """The children of a host, sorted; raises PolicyError when the policy does not name it."""
    own = intent.host(host)
    return tuple(
        sorted(
            (
                child_id
                for flow in intent.flows
                for child_id, _ in _children(intent, own, flow=flow)
            ),
            key=child_order,
        )
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
    digest = hashlib.sha256("\n".join(str(part) for part in parts).encode()).digest()
    offset = int.from_bytes(digest[:8], "big") % _REQIDS
    while Reqid(REQID_FIRST + offset) in taken:
        offset = (offset + 1) % _REQIDS
    return Reqid(REQID_FIRST + offset)


def desired(intent: Intent, host: str, *, reqids: Mapping[ChildId, Reqid]) -> Desired:
    """What `host` must hold; `reqids` has one for each of its `child_ids`.

    Raises PolicyError when the policy does not name the host.
    """
    own = intent.host(host)
    flows = [flow for flow in intent.flows if own.name in flow.hosts]
    children = [
        _child(child_id, flow=flow, reqids=reqids)
        for flow in flows
        for child_id, _ in _children(intent, own, flow=flow)
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
        guarded=tuple(_guarded(intent, own, flow=flow) for flow in flows),
        tunnel_mark=intent.marks.tunnel,
    )


def inbound_sps(child: Child) -> tuple[Sp, ...]:
    """The SPs that accept a child's traffic.

    Any SA of its reqid will do, so a rekey leaves them as they are.
    """
    template = Template(src=child.id.remote, dst=child.id.local, reqid=child.reqid)
    return tuple(
        _protect(selector, SpDirection.IN, template=template, priority=child.priority)
        for selector in child.inbound
    )


def outbound_sps(child: Child, spi: Spi) -> tuple[Sp, ...]:
    """The SPs that send a child's traffic by one SA: the template pins its SPI.

    Without it the kernel would take the newest SA of the reqid, to the second.
    """
    template = Template(src=child.id.local, dst=child.id.remote, reqid=child.reqid, spi=spi)
    return tuple(
        _protect(selector, SpDirection.OUT, template=template, priority=child.priority)
        for selector in child.outbound
    )


def _protect(
    selector: Selector, direction: SpDirection, *, template: Template, priority: int
) -> Sp:
    return Sp(SpId(selector, direction), priority, SpAction.ALLOW, (template,))


def _peers(intent: Intent, own: Host, *, flow: Flow) -> list[Host]:
    names = set(flow.hosts) - {own.name} if own.name in flow.hosts else set()
    return [host for host in intent.hosts if host.name in names]


def _children(intent: Intent, own: Host, *, flow: Flow) -> Iterator[tuple[ChildId, Host]]:
    """Every pair of a local and a remote address of one family."""
    for peer in _peers(intent, own, flow=flow):
        for local in own.addresses:
            for remote in peer.addresses:
                if local.version == remote.version:
                    yield ChildId(peer.name, flow.name, None, local, remote), peer


def _child(child_id: ChildId, *, flow: Flow, reqids: Mapping[ChildId, Reqid]) -> Child:
    if child_id not in reqids:
        raise Bug(f"no reqid for {child_id}")
    if flow.mode is not Mode.ESP or flow.tenants or flow.service_addresses:
        raise Bug(f"flow {flow.name} was not refused: {flow}")
    local, remote = _network(child_id.local), _network(child_id.remote)
    return Child(
        id=child_id,
        kind=flow.kind,
        keying=flow.keying,
        reqid=reqids[child_id],
        outbound=selectors(flow.kind, SpDirection.OUT, port=flow.port, src=local, dst=remote),
        inbound=selectors(flow.kind, SpDirection.IN, port=flow.port, src=remote, dst=local),
        priority=PRIORITY_PROTECT + ON_WIRE[flow.kind].precedence,
        rekey=flow.rekey,
        aeads=flow.aeads,
        replay_window=REPLAY_WINDOW,
        offload=flow.offload,
    )


def _blocked(intent: Intent, own: Host, *, flow: Flow) -> list[Network]:
    """From and to where nothing of a flow may pass in clear: its peers, or simply anywhere.

    A tunnel device takes packets from anybody and learns where to send from them (RFC 7348
    section 4.1), so one clear packet of a stranger could draw the overlay's traffic to itself.
    """
    if flow.strangers is Strangers.BLOCKED:
        return [any_network(4), any_network(6)]
    peers = _peers(intent, own, flow=flow)
    return [_network(address) for peer in peers for address in peer.addresses]


def _blocks(flow: Flow, *, there: Network) -> Iterator[Sp]:
    """Drops what no child protects, to and from any address of this host, listed or not."""
    anywhere = any_network(there.version)
    for direction, src, dst in (
        (SpDirection.OUT, anywhere, there),
        (SpDirection.IN, there, anywhere),
    ):
        for selector in selectors(flow.kind, direction, port=flow.port, src=src, dst=dst):
            yield Sp(SpId(selector, direction), PRIORITY_BLOCK, SpAction.BLOCK)


def _guarded(intent: Intent, own: Host, *, flow: Flow) -> GuardedFlow:
    on_wire = ON_WIRE[flow.kind]
    return GuardedFlow(
        flow=flow.name,
        kind=flow.kind,
        proto=on_wire.proto,
        ports=(flow.port,),
        either_side=on_wire.either_side,
        peers=frozenset(
            address for peer in _peers(intent, own, flow=flow) for address in peer.addresses
        ),
        tunnel_only=flow.local_senders is LocalSenders.TUNNEL_ONLY,
        strangers_blocked=flow.strangers is Strangers.BLOCKED,
    )


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
