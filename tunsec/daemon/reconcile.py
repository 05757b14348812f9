"""Holds the kernel against what it should hold: adoption at start, drift ever after (law 5)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tunsec.machines.facts import Adopted, AdoptedSa
from tunsec.machines.flow import FlowState
from tunsec.machines.ike_facts import Adopted as IkeAdopted
from tunsec.machines.ike_facts import KernelSa
from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId, Keying
from tunsec.model.names import Address, Mark, Reqid, Spi
from tunsec.model.ownership import BLOCK_PRIORITIES, is_our_sa, is_our_sp
from tunsec.model.sa import UNLIMITED, Sa, SaDirection, SaId
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId
from tunsec.model.underlay import Nic
from tunsec.plan.image import Image, Wanted, WantedSa, wanted
from tunsec.plan.sas import inbound_sa, outbound_sa
from tunsec.policy.desired import Sharing, inbound_sps, outbound_sps


def held_marks(children: Iterable[Child], sps: Mapping[SpId, Sp]) -> dict[Sharing, Mark]:
    """Marks that our SPs in the kernel already give to tenants. The reqid tells whose SP it is."""
    by_reqid = {child.reqid: child for child in children if child.mark is not None}
    held: dict[Sharing, Mark] = {}
    for sp in sps.values():
        if sp.id.mark is not None and sp.templates and is_our_sp(sp):
            child = by_reqid.get(sp.templates[0].reqid)
            if child is not None:
                held[child.id.flow, child.id.tenant] = sp.id.mark
    return held


def marked_otherwise(children: Iterable[Child], sas: Mapping[SaId, Sa]) -> frozenset[ChildId]:
    """Children whose inbound SAs set another mark than their SPs ask for, so that nothing that
    these SAs decrypt is let in: the policy has other `marks`, or the flow had other tenants."""
    by_reqid = {child.reqid: child for child in children}
    return frozenset(
        child.id
        for sa in sas.values()
        if not sa.larval and (child := by_reqid.get(sa.reqid)) is not None
        if sa.id.dst == child.id.local and sa.output_mark != child.mark
    )


def held_reqids(
    children: Iterable[Child], sps: Mapping[SpId, Sp], *, moving: Collection[Address] = ()
) -> dict[ChildId, Reqid]:
    """Reqids that our SPs in the kernel already give to children; not to those over `moving`
    addresses, whose SPs do not tell with whom they were: with the holder, or one before it."""
    held: dict[ChildId, Reqid] = {}
    for child in children:
        if child.id.local in moving or child.id.remote in moving:
            continue
        for sp in inbound_sps(child):
            actual = sps.get(sp.id)
            if actual is not None and actual.templates and is_our_sp(actual):
                held[child.id] = actual.templates[0].reqid
    return held


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an earlier life of the daemon left: per peer, per child of IKE, and what nobody can use
    any more. `moving` children have SAs of the other keying than the policy's."""

    by_peer: Mapping[str, Adopted]
    useless: tuple[SaId, ...]
    ike: tuple[IkeAdopted, ...] = ()
    moving: frozenset[ChildId] = frozenset()


def adopt(children: Mapping[ChildId, Child], have: Image) -> Adoption:
    """Sort our SAs in the kernel by maker, child and direction; the policy may have changed since.

    An outbound SA of directory keying counts only if the child's SPs pin it; the others were never
    switched to. Those that charon made are sorted by their machines.
    """
    by_reqid = {child.reqid: child for child in children.values()}
    pinned = {child.id: _pinned(child, have) for child in children.values()}
    inbound: dict[str, list[AdoptedSa]] = {}
    outbound: dict[str, list[AdoptedSa]] = {}
    useless: list[SaId] = []
    charons: dict[ChildId, list[Sa]] = {
        child.id: [] for child in children.values() if child.keying is Keying.IKE
    }
    for sa in sorted(have.sas.values(), key=lambda sa: sa.usage.added_at):
        if not is_our_sa(sa):
            continue
        child = by_reqid.get(sa.reqid)
        if child is not None and sa.larval and child.keying is Keying.IKE:
            continue  # charon is at work on it
        if child is None or sa.larval:
            useless.append(sa.id)
        elif _is_charons(sa):
            charons.setdefault(child.id, []).append(sa)
        elif sa.aead is None:
            useless.append(sa.id)
        elif _runs(sa, child, inbound=True):
            entry = AdoptedSa(child.id, sa.id.spi, sa.aead, sa.replay.esn)
            inbound.setdefault(child.id.peer, []).append(entry)
        elif _runs(sa, child, inbound=False) and pinned[child.id] == sa.id.spi:
            entry = AdoptedSa(child.id, sa.id.spi, sa.aead, sa.replay.esn)
            outbound.setdefault(child.id.peer, []).append(entry)
        else:
            useless.append(sa.id)
    kept = {entry.child for entries in (*inbound.values(), *outbound.values()) for entry in entries}
    moving = {one for one in kept if children[one].keying is Keying.IKE}
    moving |= {one for one in charons if children[one].keying is Keying.DIRECTORY}
    return Adoption(
        {
            peer: Adopted(tuple(inbound.get(peer, ())), tuple(outbound.get(peer, ())))
            for peer in sorted({child.peer for child in children})
        },
        tuple(useless),
        tuple(_adopt_ike(children[one], sas, pinned[one]) for one, sas in charons.items()),
        frozenset(moving),
    )


def late_of_charon(children: Iterable[Child], have: Image) -> tuple[IkeAdopted, ...]:
    """What charon has for children that IKE does not carry any more: it was begun before."""
    by_reqid = {child.reqid: child for child in children}
    found: dict[ChildId, list[Sa]] = {}
    for sa in have.sas.values():
        child = by_reqid.get(sa.reqid)
        if child is not None and not sa.larval and _is_charons(sa):
            found.setdefault(child.id, []).append(sa)
    known = {child.id: child for child in by_reqid.values()}
    return tuple(
        _adopt_ike(known[one], sas, _pinned(known[one], have)) for one, sas in found.items()
    )


def _is_charons(sa: Sa) -> bool:
    """charon writes the addresses into an SA's selector too; directory keying writes none."""
    return sa.selector is not None


def _adopt_ike(child: Child, sas: Iterable[Sa], pinned: Spi | None) -> IkeAdopted:
    """What the kernel holds of charon's for a child."""
    inbound = [KernelSa(sa.id.spi, sa.aead) for sa in sas if _runs(sa, child, inbound=True)]
    outbound = [KernelSa(sa.id.spi, sa.aead) for sa in sas if _runs(sa, child, inbound=False)]
    return IkeAdopted(
        child.id, tuple(inbound), next((sa for sa in outbound if sa.spi == pinned), None)
    )


def _runs(sa: Sa, child: Child, *, inbound: bool) -> bool:
    ends = (child.id.remote, child.id.local) if inbound else (child.id.local, child.id.remote)
    return (sa.src, sa.id.dst) == ends


def _pinned(child: Child, have: Image) -> Spi | None:
    """The SPI that all outbound SPs of a child pin, or None."""
    spis: set[Spi | None] = set()
    for sp in outbound_sps(child, Spi(0)):
        actual = have.sps.get(sp.id)
        spis.add(actual.templates[0].spi if actual is not None and actual.templates else None)
    return spis.pop() if len(spis) == 1 else None


@dataclass(frozen=True, slots=True)
class IkeHolding:
    """A child whose SAs are charon's: ours are the SPs, which pin one of them or none."""

    child: Child
    pinned: Spi | None


def want(
    flows: Iterable[FlowState],
    blocks: Iterable[Sp],
    ike: Iterable[IkeHolding] = (),
    *,
    have: Image,
) -> Wanted:
    """What the kernel must hold of ours, by the machines' word; SPs as offloaded as the SAs that
    they let through are in `have`.

    SAs carry no keys: one that is gone can only be replaced (law 3). What charon makes is neither
    wanted here nor extra (`without_charons`).
    """
    sas: list[WantedSa] = []
    sps: list[Sp] = list(blocks)
    carriers = {
        sa.reqid: sa.offload
        for sa in have.sas.values()
        if sa.offload is not None and sa.offload.inbound
    }
    for holding in ike:
        sps += inbound_sps(holding.child, carriers.get(holding.child.reqid))
        if holding.pinned is not None:
            sps += _pinning(holding.child, holding.pinned, have)
    for flow in flows:
        child = flow.child
        sas += [
            WantedSa(inbound_sa(child, sa.spi, aead=sa.aead, key=None), SaDirection.INBOUND)
            for sa in flow.inbound
        ]
        sas += [
            WantedSa(outbound_sa(child, sa.spi, aead=sa.aead, key=None), SaDirection.OUTBOUND)
            for sa in flow.outbound
        ]
        sps += inbound_sps(child, carriers.get(child.reqid))
        active = flow.active_outbound
        if active is not None:
            sps += _pinning(child, active.spi, have)
    return wanted(sas, sps)


def _pinning(child: Child, spi: Spi, have: Image) -> tuple[Sp, ...]:
    sa = have.sas.get(SaId(child.id.remote, spi))
    return outbound_sps(child, spi, None if sa is None else sa.offload)


def without_charons(have: Image, want: Wanted, ike: Iterable[IkeHolding]) -> Image:
    """The image without the SAs that charon keeps, or left behind."""
    reqids = {holding.child.reqid for holding in ike}
    if not reqids:
        return have
    kept = {
        sa_id: sa for sa_id, sa in have.sas.items() if sa.reqid not in reqids or sa_id in want.sas
    }
    return replace(have, sas=kept)


def settled(want: Wanted, have: Image) -> Wanted:
    """`want` with the lifetimes, replay protection and NIC that each SA was given when it was
    installed.

    A policy that changes them changes the SAs to come; the ones in use are no drift.
    """
    return replace(
        want,
        sas={
            sa_id: replace(
                wanted_sa,
                sa=replace(
                    wanted_sa.sa,
                    lifetimes=actual.lifetimes if actual is not None else UNLIMITED,
                    replay=replace(
                        wanted_sa.sa.replay, window=actual.replay.window, esn=actual.replay.esn
                    )
                    if actual is not None
                    else wanted_sa.sa.replay,
                    offload=actual.offload if actual is not None else None,
                ),
            )
            for sa_id, wanted_sa in want.sas.items()
            for actual in (have.sas.get(sa_id),)
        },
    )


def retired_blocks(wanted_sps: Mapping[SpId, Sp], have: Image) -> tuple[Sp, ...]:
    """Block SPs of ours in the kernel that the policy no longer names.

    They stay until an admin releases them: a flow does not open because a line was deleted.
    """
    return tuple(
        sp
        for sp_id, sp in have.sps.items()
        if is_our_sp(sp) and sp.action is SpAction.BLOCK and sp_id not in wanted_sps
    )


def overtaken(children: Iterable[Child], have: Image) -> tuple[tuple[ChildId, Sp], ...]:
    """Other programs' SPs that come before ours for a packet of a flow: they could open it."""
    foreign = [
        sp
        for sp in have.sps.values()
        if not is_our_sp(sp) and sp.priority <= max(BLOCK_PRIORITIES) and sp.id.if_id is None
    ]
    if not foreign:
        return ()
    by_remote: dict[Address, list[Child]] = {}
    for child in children:
        by_remote.setdefault(child.id.remote, []).append(child)
    return tuple(
        (child.id, sp)
        for sp in foreign
        for child in _behind(sp, by_remote)
        if any(_overlap(sp, selector_sp) for selector_sp in _own_sps(child))
    )


def _behind(sp: Sp, by_remote: Mapping[Address, list[Child]]) -> Iterable[Child]:
    """Children whose remote address an SP covers: a thousand of each must not be a million."""
    selector = sp.id.selector
    network = selector.dst if sp.id.direction is SpDirection.OUT else selector.src
    if network.prefixlen == network.max_prefixlen:
        return by_remote.get(network.network_address, ())
    return [
        child
        for remote, children in by_remote.items()
        if remote.version == network.version and remote in network
        for child in children
    ]


def _own_sps(child: Child) -> tuple[Sp, ...]:
    return (*inbound_sps(child), *outbound_sps(child, Spi(0)))


def _overlap(one: Sp, other: Sp) -> bool:
    a, b = one.id.selector, other.id.selector
    if one.id.direction is not other.id.direction or one.id.direction is SpDirection.FWD:
        return False
    if a.version != b.version:
        return False
    ports = all(
        (x.port ^ y.port) & x.mask & y.mask == 0
        for x, y in ((a.sport, b.sport), (a.dport, b.dport))
    )
    protos = a.proto in (0, b.proto) or b.proto == 0
    return protos and ports and _meet(a.src, b.src) and _meet(a.dst, b.dst)


def _meet(one: object, other: object) -> bool:
    return bool(one.overlaps(other))  # type: ignore[attr-defined]


def outgrown(
    flows: Iterable[FlowState], have: Mapping[SaId, Sa], nic: Callable[[Child, Aead], Nic | None]
) -> Iterator[tuple[SaId, str]]:
    """SAs in use that would be made otherwise now, and how: by another NIC, or by none.

    Where nothing does the work as the policy wishes, what is there is not replaced.
    """
    for flow in flows:
        inbound, outbound = flow.newest_inbound, flow.active_outbound
        for dst, slot in ((flow.child.id.local, inbound), (flow.child.id.remote, outbound)):
            sa = None if slot is None else have.get(SaId(dst, slot.spi))
            if flow.taken or slot is None or sa is None:
                continue
            try:
                now = nic(flow.child, slot.aead)
            except Refused:
                continue
            is_carried = None if sa.offload is None else (sa.offload.kind, sa.offload.ifindex)
            if is_carried != (None if now is None else (now.kind, now.ifindex)):
                by = "the CPU" if now is None else f"{now.name} ({now.kind})"
                yield sa.id, f"{flow.child.id} goes by {by} now"
            elif sa.replay.esn is not flow.child.esn:
                yield sa.id, f"{flow.child.id} has other sequence numbers now"
