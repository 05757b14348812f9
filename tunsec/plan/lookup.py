"""Which SP rules a packet, and which SA carries it: the kernel's own look-up over a dump.

As in net/xfrm (xfrm_policy_lookup_bytype, xfrm_state_find). A packet of which something is not
known (a port, the mark) may be ruled by one of several SPs: each but the last has a condition.
SPs of sockets (IP_XFRM_POLICY) are in no dump and come first for that socket's packets.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from tunsec.model.names import Mark, Network
from tunsec.model.packet import Packet
from tunsec.model.sa import Offload, OffloadKind, Sa
from tunsec.model.selector import PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection


class Match(IntEnum):
    """Whether an SP applies; MAYBE hangs on what is not known of the packet."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Ruling:
    """SPs that apply to a packet, in the kernel's order.

    `may` rule it if their conditions hold, `rules` rules it else (None: it passes in clear), and
    `behind` would if that one were not there.
    """

    may: tuple[Sp, ...]
    rules: Sp | None
    behind: tuple[Sp, ...]


def ruling(sps: Iterable[Sp], direction: SpDirection, packet: Packet) -> Ruling:
    """What the kernel finds for a packet. SPs come newest first, as in its dumps."""
    found = [(sp, match) for sp in sps if (match := sp_match(sp, direction, packet))]
    ordered = _in_kernels_order([sp for sp, _ in found])
    certain = {sp.id for sp, match in found if match is Match.YES}
    place = next((at for at, sp in enumerate(ordered) if sp.id in certain), len(ordered))
    return Ruling(
        tuple(ordered[:place]),
        ordered[place] if place < len(ordered) else None,
        tuple(ordered[place + 1 :]),
    )


def sp_match(sp: Sp, direction: SpDirection, packet: Packet) -> Match:
    """xfrm_policy_match. SPs of an XFRM interface see only what is sent through it."""
    if sp.id.direction is not direction or sp.id.if_id:
        return Match.NO
    return min(selector_match(sp.id.selector, packet), _mark_match(sp.id.mark, packet))


def selector_match(selector: Selector, packet: Packet) -> Match:
    """xfrm_selector_match. What leaves by a certain device is not known here."""
    if selector.version != packet.dst.version or not (
        packet.src in selector.src and packet.dst in selector.dst
    ):
        return Match.NO
    if selector.proto not in (0, packet.proto):
        return Match.NO
    return min(
        _port_match(selector.sport, packet.sport),
        _port_match(selector.dport, packet.dport),
        Match.MAYBE if selector.ifindex else Match.YES,
    )


def protects(sp: Sp) -> bool:
    """Whether what an SP rules must be in ESP (or whatever its templates name)."""
    return sp.action is SpAction.ALLOW and any(not one.optional for one in sp.templates)


def carriers(sp: Sp, sas: Iterable[Sa]) -> tuple[Sa, ...]:
    """SAs that serve the first template of an SP, the one that the kernel takes first.

    It is the newest (xfrm_state_look_at); inbound any of them will do.
    """
    template, mark = sp.templates[0], sp.id.mark
    sought = 0 if mark is None else mark.value & mark.mask
    found = [
        sa
        for sa in sas
        if not sa.larval
        and (sa.id.dst, sa.src) == (template.dst, template.src)
        and (sa.id.proto, sa.mode) == (template.proto, template.mode)
        and sa.reqid == template.reqid
        and template.spi in (None, sa.id.spi)
        and (sa.id.mark is None or sought & sa.id.mark.mask == sa.id.mark.value)
        and (sp.id.direction is not SpDirection.OUT or _one_carrier(sp.offload, sa.offload))
    ]
    return tuple(sorted(found, key=lambda sa: -sa.usage.added_at))


def _one_carrier(of_sp: Offload | None, of_sa: Offload | None) -> bool:
    """What a NIC protects wholly needs SP and SA on that NIC; else neither is (xfrm_state_find)."""
    whole = of_sa if of_sa is not None and of_sa.kind is OffloadKind.PACKET else None
    if of_sp is None or whole is None:
        return of_sp is None and whole is None
    return of_sp.ifindex == whole.ifindex


def _in_kernels_order(newest_first: list[Sp]) -> list[Sp]:
    """Lowest priority number first; among equals the one that was there first.

    An SP that is updated keeps its place in its list of the kernel, and counts as new beside those
    of other lists (`pos` in struct xfrm_policy). What the NIC does itself goes before all else.
    """
    age = {sp.id: -place for place, sp in enumerate(newest_first)}
    lists: dict[object, list[Sp]] = {}
    for sp in newest_first:
        lists.setdefault(_list_of(sp.id.selector), []).append(sp)
    queues = [
        sorted(found, key=lambda sp: (sp.offload is None, sp.priority, sp.index), reverse=True)
        for found in lists.values()
    ]
    ordered: list[Sp] = []
    while queues := [queue for queue in queues if queue]:
        heads = (queue[-1] for queue in queues)
        first = min(heads, key=lambda sp: (sp.offload is None, sp.priority, age[sp.id]))
        next(queue for queue in queues if queue[-1] is first).pop()
        ordered.append(first)
    return ordered


def _list_of(selector: Selector) -> object:
    """Which of the kernel's lists an SP stands on, among those that apply to one packet: networks
    that hold one address share a list (xfrm_policy_inexact_alloc_chain)."""
    if selector.src.prefixlen == selector.dst.prefixlen == selector.dst.max_prefixlen:
        return "hosts"
    return tuple(_is_wide(network) for network in (selector.src, selector.dst))


def _is_wide(network: Network) -> bool:
    """Whether a network counts as any (xfrm_pol_inexact_addr_use_any_list)."""
    return network.prefixlen < (16 if network.version == 4 else 48)


def _port_match(match: PortMatch, port: int | None) -> Match:
    if match.mask == 0:
        return Match.YES
    if port is None:
        return Match.MAYBE
    return Match.YES if (port ^ match.port) & match.mask == 0 else Match.NO


def _mark_match(mark: Mark | None, packet: Packet) -> Match:
    if mark is None or mark.mask == 0:
        return Match.YES
    if packet.mark is None:
        return Match.MAYBE
    return Match.YES if packet.mark & mark.mask == mark.value else Match.NO
