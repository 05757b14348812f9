"""What charon ignored: the kernel's SAs of a CHILD_SA beside what its configuration asks (law 5).

charon passes over settings that its plugins or its kernel do not know, and a peer narrows what was
proposed. So a CHILD_SA counts only when both its SAs are as asked.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from tunsec.model.flow import OffloadWish
from tunsec.model.ike import IkeChild, Limits, TrafficSelector
from tunsec.model.ike_sa import ChildSa, IkeSa
from tunsec.model.names import Address, Network, Reqid, Spi
from tunsec.model.sa import IpsecMode, OffloadKind, Sa, SaId
from tunsec.model.selector import PortMatch


class Leeway(Enum):
    """What may excuse a difference: a CHILD_SA goes by the policy of its time. Until its successor
    is there it may carry traffic, for it protects all the same."""

    NONE = "nothing: no packet would come through, or the wrong ones"
    POLICY = "a policy of before that asked for just that"
    LIFE = "that an earlier life of the daemon may have had such a policy"


@dataclass(frozen=True, slots=True)
class Ignored:
    """An option of a child, in swanctl's words, that is not in the kernel as asked."""

    option: str
    asked: str
    found: str
    leeway: Leeway = Leeway.NONE

    def __str__(self) -> str:
        return f"{self.option}: asked for {self.asked}, the kernel has {self.found}"


def ignored_options(
    asked: IkeChild,
    child: ChildSa,
    kernel: Mapping[SaId, Sa],
    *,
    local: Address,
    remote: Address,
) -> tuple[Ignored, ...]:
    """Every option that is not as asked; none when the CHILD_SA may carry traffic.

    `child` is what charon tells of it, `kernel` the whole SAD or at least its two SAs.
    """
    if child.keyed is None:
        return (Ignored("SAs", "two", f"none yet ({child.state})"),)
    inbound = _find(kernel, asked, spi=child.keyed.spi_in, dst=local, inbound=True)
    outbound = _find(kernel, asked, spi=child.keyed.spi_out, dst=remote, inbound=False)
    found: list[Ignored] = []
    for sa, name, src in ((inbound, "inbound", remote), (outbound, "outbound", local)):
        if sa is None or sa.larval:
            found.append(Ignored(f"{name} SA", "one", "none"))
            continue
        found += _common(asked, sa, name)
        if sa.src != src:
            found.append(Ignored(f"{name} address", str(src), str(sa.src)))
    found += _directed(asked, inbound, outbound)
    return tuple(found)


def orphaned_sas(
    kernel: Iterable[Sa], listed: Iterable[IkeSa], *, reqids: Collection[Reqid]
) -> tuple[SaId, ...]:
    """SAs of these reqids that no charon keeps any more, as a crashed one leaves behind.

    `kernel` must have been dumped before charon's SAs were listed: what is added between the two
    is not taken for an orphan then. Nor is anything of a reqid of which charon has a CHILD_SA
    under way, whose SPIs it does not tell yet.
    """
    children = [child for ike in listed for child in ike.children]
    busy = {child.reqid for child in children if child.keyed is None}
    kept = {
        spi
        for child in children
        if child.keyed is not None
        for spi in (child.keyed.spi_in, child.keyed.spi_out)
    }
    return tuple(
        sa.id
        for sa in kernel
        if sa.reqid in reqids and sa.reqid not in busy and not sa.larval and sa.id.spi not in kept
    )


def _find(
    kernel: Mapping[SaId, Sa], asked: IkeChild, *, spi: Spi, dst: Address, inbound: bool
) -> Sa | None:
    """The SA with the mark that was asked for, else one with any mark, to tell of the mark."""
    mark = asked.mark_in if inbound else asked.mark_out
    exact = kernel.get(SaId(dst, spi, mark=mark))
    if exact is not None:
        return exact
    return next((sa for sa_id, sa in kernel.items() if (sa_id.dst, sa_id.spi) == (dst, spi)), None)


def _common(asked: IkeChild, sa: Sa, name: str) -> Iterator[Ignored]:
    """What is asked of both SAs alike."""
    if sa.mode is not IpsecMode.TRANSPORT:
        yield Ignored(f"mode ({name})", "transport", sa.mode)
    if sa.reqid != asked.reqid:
        yield Ignored(f"reqid ({name})", f"{asked.reqid:#x}", f"{sa.reqid:#x}")
    wanted = [proposal for proposal in asked.proposals if proposal.aead is sa.aead]
    if not wanted:
        names = " or ".join(dict.fromkeys(proposal.aead for proposal in asked.proposals))
        found = sa.aead or "another algorithm"
        leeway = Leeway.POLICY if sa.aead is not None else Leeway.NONE
        yield Ignored(f"esp_proposals ({name})", names, found, leeway)
    elif all(proposal.esn is not sa.replay.esn for proposal in wanted):
        numbers = ("ESN", "32-bit sequence numbers")
        asked_for, has = reversed(numbers) if sa.replay.esn else numbers
        yield Ignored(f"esp_proposals ({name})", asked_for, has, Leeway.POLICY)
    yield from _limits(asked, sa, name)
    if not _covers(asked, sa, inbound=name == "inbound"):
        yield Ignored(f"traffic selectors ({name})", _shown(asked), str(sa.selector))
    yield from _offload(asked, sa, name)


def _limits(asked: IkeChild, sa: Sa, name: str) -> Iterator[Ignored]:
    """charon draws the soft limits between `rekey - jitter` and `rekey`."""
    has = sa.lifetimes
    for kind, limits, soft, hard in (
        ("time", asked.seconds, has.soft_seconds, has.hard_seconds),
        ("bytes", asked.volume, has.soft_bytes, has.hard_bytes),
        ("packets", asked.packets, has.soft_packets, has.hard_packets),
    ):
        if hard != (limits.life or None):
            yield Ignored(f"life_{kind} ({name})", str(limits.life), str(hard), Leeway.LIFE)
        if not _drawn(limits, soft):
            earliest = (limits.rekey or 0) - limits.jitter
            span = f"{earliest} to {limits.rekey}"
            yield Ignored(f"rekey_{kind} ({name})", span, str(soft), Leeway.LIFE)


def _drawn(limits: Limits, soft: int | None) -> bool:
    if not limits.rekey:
        return soft is None
    if soft is None:  # without jitter charon leaves the soft limit to one of the two SAs
        return limits.jitter == 0
    return limits.rekey - limits.jitter <= soft <= limits.rekey


def _directed(asked: IkeChild, inbound: Sa | None, outbound: Sa | None) -> Iterator[Ignored]:
    """What differs by direction."""
    if inbound is not None and not inbound.larval:
        if inbound.replay.window < asked.replay_window:
            window = str(inbound.replay.window)
            yield Ignored("replay_window", str(asked.replay_window), window, Leeway.POLICY)
        if inbound.id.mark != asked.mark_in:
            yield Ignored("mark_in", str(asked.mark_in), str(inbound.id.mark))
        if inbound.output_mark != asked.set_mark_in:
            yield Ignored("set_mark_in", str(asked.set_mark_in), str(inbound.output_mark))
    if outbound is not None and not outbound.larval:
        if outbound.id.mark != asked.mark_out:
            yield Ignored("mark_out", str(asked.mark_out), str(outbound.id.mark))
        if outbound.output_mark != asked.set_mark_out:
            yield Ignored("set_mark_out", str(asked.set_mark_out), str(outbound.output_mark))


def _offload(asked: IkeChild, sa: Sa, name: str) -> Iterator[Ignored]:
    has = sa.offload.kind if sa.offload is not None else None
    wanted = {OffloadWish.CRYPTO: OffloadKind.CRYPTO, OffloadWish.PACKET: OffloadKind.PACKET}
    if asked.offload is OffloadWish.NONE and has is not None:
        yield Ignored(f"hw_offload ({name})", "none", has, Leeway.POLICY)
    elif asked.offload in wanted and has is not wanted[asked.offload]:
        yield Ignored(f"hw_offload ({name})", asked.offload, has or "none", Leeway.POLICY)


def _covers(asked: IkeChild, sa: Sa, *, inbound: bool) -> bool:
    """Whether the SA's own selector lets all that was asked for pass."""
    selector = sa.selector
    if selector is None:
        return True
    sources, targets = (asked.remote, asked.local) if inbound else (asked.local, asked.remote)
    return all(
        own.network.version == selector.version
        and _within(own, selector.src, selector.sport)
        and selector.proto in (0, own.proto)
        for own in sources
    ) and all(
        own.network.version == selector.version and _within(own, selector.dst, selector.dport)
        for own in targets
    )


def _within(own: TrafficSelector, network: Network, port: PortMatch) -> bool:
    inside = own.network.prefixlen >= network.prefixlen and own.network.network_address in network
    one_port = own.first_port == own.last_port
    return inside and (
        port.mask == 0 or (one_port and own.first_port & port.mask == port.port & port.mask)
    )


def _shown(asked: IkeChild) -> str:
    sides = (asked.local, asked.remote)
    return " - ".join(", ".join(str(own.network) for own in side) for side in sides)
