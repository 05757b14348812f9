"""A kernel that really looks up: SPD and SAD as in net/xfrm, without the packets' bytes.

The contract tests in tests/contract run on it and on the real one.
"""

import errno
import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.sim.cast import EPOCH
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.event import (
    Acquired,
    HardExpired,
    KernelEvent,
    SaAdded,
    SadFlushed,
    SaRemoved,
    SoftExpired,
    SpChanged,
    SpdFlushed,
)
from tunsec.model.names import Address, Network, Spi
from tunsec.model.sa import Lifetimes, Offload, OffloadKind, Sa, SaDirection, SaId, Usage
from tunsec.model.selector import PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.model.underlay import EspFeature

ACQUIRE_SECONDS = 30
"""net.core.xfrm_acq_expires."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of a flow, in clear. `mark` is what its tunnel device, or its SA, has set."""

    src: Address
    dst: Address
    proto: int
    sport: int
    dport: int
    mark: int = 0
    _hash: int = field(init=False, repr=False, compare=False)
    """Kept: packets are looked up all the time, and hashing addresses is slow."""

    def __post_init__(self) -> None:
        ports = (self.proto, self.sport, self.dport)
        mine = hash((int(self.src), int(self.dst), *ports, self.mark))
        object.__setattr__(self, "_hash", mine)

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class EspPacket:
    """A packet of a flow, protected."""

    spi: Spi
    key: bytes
    seq: int
    inner: Packet


@dataclass(slots=True)
class FakeNic:
    """A device that may carry SAs, as far as net/xfrm/xfrm_device.c asks it."""

    ifindex: int
    name: str
    esp: EspFeature = EspFeature.ON
    takes: frozenset[OffloadKind] = frozenset(OffloadKind)
    aeads: frozenset[Aead] = frozenset({Aead.AES_128_GCM, Aead.AES_256_GCM})
    esn: bool = True
    silent: bool = False
    """Its driver knows no crypto offload: the kernel says yes and does the work itself."""
    room: int = 1000
    """SAs."""


@dataclass(slots=True)
class Held:
    """An SA in the SAD with what goes on in it."""

    sa: Sa
    key: bytes
    added_at: Instant
    out_seq: int = 0
    seen: set[int] = field(default_factory=set)
    packets: int = 0
    dying: bool = False
    by_others: bool = False
    shown: Sa | None = None
    """As it was asked for last: looked at all the time, and mostly as it was."""


class FakeKernel:
    """One host's kernel. Implements tunsec.ports.Kernel; survives the daemon, not a reboot."""

    def __init__(self, now: Callable[[], Instant]) -> None:
        self._now = now
        self._sas: dict[SaId, Held] = {}
        self._sps: dict[SpId, Sp] = {}
        self._index = 0
        self.installed_keys: list[tuple[SaId, bytes]] = []
        self.before_step: Callable[[Step], None] = lambda step: None
        self.listeners: list[Callable[[KernelEvent, bool], None]] = []
        self.somebody_listens: Callable[[], bool] = lambda: False
        """Whether a daemon would hear an acquire."""
        self.silent = False
        """The command lane does not answer: requests raise Unavailable."""
        self.version = 0
        """Rises with every change of the SAD or SPD."""
        self.spd_version = 0
        """Rises with every change of the SPD."""
        self.nics: dict[int, FakeNic] = {}
        self._due: Instant | None = None
        self._rulings: dict[SpDirection, dict[Packet, Sp | None]] = {}

    # The port

    def apply(self, steps: Sequence[Step]) -> list[Refused | None]:
        """Carry out steps in order; a refused one does not stop the later ones."""
        self._answer()
        return [self._apply(step) for step in steps]

    def sas(self) -> dict[SaId, Sa]:
        """Every SA, without keys."""
        self._answer()
        self.expire()
        return {sa_id: self._shown(held) for sa_id, held in self._sas.items()}

    def sps(self) -> dict[SpId, Sp]:
        """Every SP, newest first."""
        self._answer()
        return dict(reversed(self._sps.items()))

    def sa(self, sa_id: SaId) -> Sa | None:
        """One SA, or None."""
        self._answer()
        self.expire()
        held = self._sas.get(sa_id)
        return None if held is None else self._shown(held)

    def sp(self, sp_id: SpId) -> Sp | None:
        """One SP, or None."""
        self._answer()
        return self._sps.get(sp_id)

    def _answer(self) -> None:
        if self.silent:
            raise Unavailable("the kernel does not answer")

    def spd(self) -> list[Sp]:
        """Every SP, as the simulation sees it."""
        return list(self._sps.values())

    def _shown(self, held: Held) -> Sa:
        if held.shown is None or held.shown.usage.usage_packets != held.packets:
            usage = Usage(
                usage_bytes=held.packets * 100,
                usage_packets=held.packets,
                added_at=int(EPOCH + held.added_at),
            )
            held.shown = replace(held.sa, usage=usage)
        return held.shown

    def _apply(self, step: Step, *, ours: bool = True) -> Refused | None:
        self.before_step(step)
        match step:
            case AddSa(sa):
                if sa.id in self._sas:
                    return Refused(str(step), errno=errno.EEXIST, reason="File exists")
                if sa.key is None:
                    return Refused(str(step), errno=errno.EINVAL, reason="Missing key")
                offload, no = self._given_to_nic(sa)
                if no:
                    return Refused(str(step), errno=errno.EINVAL, reason=no)
                key = hashlib.sha256(sa.key.reveal()).digest()
                self.installed_keys.append((sa.id, key))
                added = Held(
                    replace(sa, key=None, offload=offload), key, self._now(), by_others=not ours
                )
                self._sas[sa.id] = added
                self._watch(added)
                self._tell(SaAdded(sa.id, sa.reqid), ours)
            case RemoveSa(sa_id):
                held = self._sas.pop(sa_id, None)
                if held is None:
                    return Refused(str(step), errno=errno.ESRCH, reason="No such process")
                self._tell(SaRemoved(sa_id, held.sa.reqid), ours)
            case AddSp(sp):
                if sp.id in self._sps:
                    return Refused(str(step), errno=errno.EEXIST, reason="File exists")
                if not self._sp_fits_nic(sp):
                    reason = "Policy offload is not supported"
                    return Refused(str(step), errno=errno.EINVAL, reason=reason)
                self._put(sp)
                self._tell(SpChanged(sp.id, removed=False), ours)
            case UpdateSp(sp):
                if not self._sp_fits_nic(sp):
                    reason = "Policy offload is not supported"
                    return Refused(str(step), errno=errno.EINVAL, reason=reason)
                self._put(sp)
                self._tell(SpChanged(sp.id, removed=False), ours)
            case RemoveSp(sp):
                if self._sps.pop(sp.id, None) is None:
                    return Refused(str(step), errno=errno.ENOENT, reason="No such file")
                self._rulings.clear()
                self._tell(SpChanged(sp.id, removed=True), ours)
        return None

    def _given_to_nic(self, sa: Sa) -> tuple[Offload | None, str]:
        """What became of an SA's offload, or why the SA is refused (xfrm_dev_state_add)."""
        if sa.offload is None:
            return None, ""
        nic, kind = self.nics.get(sa.offload.ifindex), sa.offload.kind
        if nic is None or nic.silent or not nic.takes:
            whole = kind is OffloadKind.PACKET
            return None, "Device failed to offload this state" if whole else ""
        if kind is OffloadKind.CRYPTO and sa.replay.esn and not nic.esn:
            return None, "Device doesn't support offload with ESN"
        if kind not in nic.takes:
            return None, "Unsupported ipsec offload type"
        if sa.aead not in nic.aeads:
            return None, "Failed to get key data for SA table"
        if sum(one.sa.offload is not None for one in self._sas.values()) >= nic.room:
            return None, "No space for SA in Rx table!"
        return sa.offload, ""

    def _sp_fits_nic(self, sp: Sp) -> bool:
        """Whether an SP's device takes SPs (xfrm_dev_policy_add)."""
        if sp.offload is None:
            return True
        nic = self.nics.get(sp.offload.ifindex)
        return nic is not None and OffloadKind.PACKET in nic.takes and not sp.offload.inbound

    def unplug(self, ifindex: int) -> None:
        """A device goes, with what it carried; nobody is told (xfrm_dev_unregister)."""
        del self.nics[ifindex]
        for sa_id in [one.sa.id for one in self._sas.values() if _is_of(one.sa.offload, ifindex)]:
            del self._sas[sa_id]
        for sp_id in [one.id for one in self._sps.values() if _is_of(one.offload, ifindex)]:
            del self._sps[sp_id]
        self._rulings.clear()
        self.version += 1
        self.spd_version += 1

    def _put(self, sp: Sp) -> None:
        self._index += 8
        self._rulings.clear()
        before = self._sps.pop(sp.id, None)
        self._sps[sp.id] = replace(sp, index=before.index if before else self._index)

    def _tell(self, event: KernelEvent, ours: bool) -> None:
        self.version += 1
        self.spd_version += isinstance(event, SpChanged | SpdFlushed)
        for listener in self.listeners:
            listener(event, ours)

    # Other programs and the admin's hand

    def by_hand(self, step: Step) -> Refused | None:
        """Another program's step: the same act, reported as foreign."""
        hook, self.before_step = self.before_step, lambda step: None
        try:
            return self._apply(step, ours=False)
        finally:
            self.before_step = hook

    def reserve(self, sa: Sa) -> None:
        """Another program's SPI, without keys yet (XFRM_MSG_ALLOCSPI); nobody is told."""
        self._sas[sa.id] = Held(replace(sa, larval=True), b"", self._now())
        self._watch(self._sas[sa.id])
        self.version += 1

    def key_reserved(self, reserved: SaId, sa: Sa) -> Refused | None:
        """An SA in the place of a reserved SPI (XFRM_MSG_UPDSA); refused when that is gone."""
        if self._sas.pop(reserved, None) is None:
            return Refused(f"update SA {sa.id}", errno=errno.ESRCH, reason="No such process")
        return self.by_hand(AddSa(sa, SaDirection.INBOUND))

    def flush_sas(self) -> None:
        """`ip xfrm state flush`."""
        self._sas.clear()
        self._tell(SadFlushed(), False)

    def flush_sps(self) -> None:
        """`ip xfrm policy flush`."""
        self._sps.clear()
        self._rulings.clear()
        self._tell(SpdFlushed(), False)

    # Time

    def expire(self) -> None:
        """Soft and hard lifetimes by time (xfrm_timer_handler)."""
        now = self._now()
        if self._due is None or self._due > now:
            return
        for sa_id, held in list(self._sas.items()):
            life = held.sa.lifetimes
            if _over(held, life.hard_seconds, now):
                del self._sas[sa_id]
                self._tell(HardExpired(sa_id, held.sa.reqid), False)
            elif _over(held, life.soft_seconds, now) and not held.dying:
                held.dying = True
                self._tell(SoftExpired(sa_id, held.sa.reqid), False)

        self._due = None
        for held in self._sas.values():
            self._watch(held)

    def expiring(self) -> list[SaId]:
        """SAs that are at their end by time and still there."""
        now = self._now()
        return [
            sa_id
            for sa_id, held in self._sas.items()
            if _over(held, held.sa.lifetimes.hard_seconds, now)
        ]

    def next_expiry(self) -> Instant | None:
        """When an SA may reach a limit by time: never later than it does."""
        return self._due

    def _watch(self, held: Held) -> None:
        """Its limits are limits from now on."""
        limits = (
            held.sa.lifetimes.hard_seconds,
            None if held.dying else held.sa.lifetimes.soft_seconds,
        )
        for limit in limits:
            if limit is not None:
                at = Instant(held.added_at + limit)
                self._due = at if self._due is None else min(self._due, at)

    def _may_carry(self, held: Held) -> bool:
        """Soft and hard limits by packets, then count (xfrm_state_check_expire)."""
        life = held.sa.lifetimes
        if life.hard_packets is not None and held.packets >= life.hard_packets:
            del self._sas[held.sa.id]
            self._tell(HardExpired(held.sa.id, held.sa.reqid), False)
            return False
        if life.soft_packets is not None and held.packets >= life.soft_packets and not held.dying:
            held.dying = True
            self._tell(SoftExpired(held.sa.id, held.sa.reqid), False)
        held.packets += 1
        return True

    # Packets

    def lookup(self, direction: SpDirection, packet: Packet) -> Sp | None:
        """The SP that rules a packet: lowest priority number first, then the oldest."""
        rulings = self._rulings.setdefault(direction, {})
        if packet not in rulings:
            matching = [
                sp
                for sp in self._sps.values()
                if sp.id.direction is direction and sp.id.if_id is None and covers(sp.id, packet)
            ]
            first = min(matching, key=lambda sp: (sp.priority, sp.index), default=None)
            rulings[packet] = first
        return rulings[packet]

    def send(self, packet: Packet) -> Packet | EspPacket | None:
        """What leaves this host: the packet in clear, protected, or nothing."""
        sp = self.lookup(SpDirection.OUT, packet)
        if sp is None:
            return packet
        if sp.action is SpAction.BLOCK:
            return None
        if not sp.templates:
            return packet
        held = self._outbound(sp)
        if held is None:
            self._acquire(sp.templates[0], packet)
            return None
        if not self._may_carry(held):
            return None
        held.out_seq += 1
        return EspPacket(held.sa.id.spi, held.key, held.out_seq, packet)

    def would_send_clear(self, packet: Packet) -> bool:
        """Whether a packet would leave in clear; nothing is counted."""
        sp = self.lookup(SpDirection.OUT, packet)
        return sp is None or (sp.action is SpAction.ALLOW and not sp.templates)

    def all_sas(self) -> list[tuple[SaId, Sa]]:
        """Every SA, without letting time act."""
        return [(sa_id, held.sa) for sa_id, held in self._sas.items()]

    def _outbound(self, sp: Sp) -> Held | None:
        template = sp.templates[0]
        return next(
            (
                held
                for held in reversed(self._sas.values())
                if held.sa.reqid == template.reqid
                and held.sa.id.dst == template.dst
                and template.spi in (None, held.sa.id.spi)
                and not held.sa.larval
                and same_carrier(sp, held.sa)
            ),
            None,
        )

    def _acquire(self, template: Template, packet: Packet) -> None:
        """Ask for an SA if somebody listens: a larval one stands in its place (km_query)."""
        sa_id = SaId(template.dst, template.spi or Spi(0))
        if sa_id in self._sas or not self.somebody_listens():
            return
        larval = Sa(
            sa_id,
            template.src,
            template.reqid,
            None,
            lifetimes=Lifetimes(hard_seconds=ACQUIRE_SECONDS),
            larval=True,
        )
        self._sas[sa_id] = Held(larval, b"", self._now())
        self._watch(self._sas[sa_id])
        selector = Selector(ipaddress.ip_network(packet.src), ipaddress.ip_network(packet.dst))
        self._tell(Acquired(selector, template.src, template.dst, template.reqid), False)

    def receive(self, packet: Packet | EspPacket) -> bool:
        """Whether a packet from the wire is delivered."""
        if isinstance(packet, Packet):
            sp = self.lookup(SpDirection.IN, packet)
            return sp is None or (sp.action is SpAction.ALLOW and not sp.templates)
        held = self._sas.get(SaId(packet.inner.dst, packet.spi))
        if held is None or held.sa.larval or held.key != packet.key or packet.seq in held.seen:
            return False
        if not self._may_carry(held):
            return False
        held.seen.add(packet.seq)
        mark = held.sa.output_mark
        sp = self.lookup(
            SpDirection.IN, replace(packet.inner, mark=0 if mark is None else mark.value)
        )
        if sp is None:
            return True
        if sp.action is SpAction.BLOCK:
            return False
        return all(template.reqid == held.sa.reqid for template in sp.templates)

    def keyed_sas(self) -> list[tuple[SaId, Sa, bytes]]:
        """Every SA that could carry a packet, with the digest of its key."""
        return [
            (sa_id, held.sa, held.key) for sa_id, held in self._sas.items() if not held.sa.larval
        ]

    def made_by_others(self, sa_id: SaId) -> bool:
        """Whether an SA is there that the daemon did not install."""
        held = self._sas.get(sa_id)
        return held is not None and held.by_others

    def age_of(self, sa_id: SaId) -> float:
        """Seconds since an SA was installed."""
        return self._now() - self._sas[sa_id].added_at

    def key_of(self, sa_id: SaId) -> bytes | None:
        """Digest of an SA's key, or None when there is no such SA."""
        held = self._sas.get(sa_id)
        return None if held is None else held.key

    def out_seq(self, sa_id: SaId) -> int:
        """The last sequence number sent on an SA."""
        return self._sas[sa_id].out_seq


def _is_of(offload: Offload | None, ifindex: int) -> bool:
    return offload is not None and offload.ifindex == ifindex


def same_carrier(sp: Sp, sa: Sa) -> bool:
    """An SP finds an SA only if one NIC carries both wholly, or none does (xfrm_state_find)."""
    whole = sa.offload is not None and sa.offload.kind is OffloadKind.PACKET
    if sp.offload is None or sa.offload is None:
        return sp.offload is None and not whole
    return whole and sp.offload.ifindex == sa.offload.ifindex


def _over(held: Held, limit: int | None, now: Instant) -> bool:
    return limit is not None and held.added_at + limit <= now


def covers(sp_id: SpId, packet: Packet) -> bool:
    """Whether a selector and a mark match a packet (xfrm_policy_match, net/xfrm/xfrm_policy.c)."""
    selector: Selector = sp_id.selector
    mark = sp_id.mark
    if mark is not None and packet.mark & mark.mask != mark.value:
        return False
    return (
        _inside(packet.src, selector.src)
        and _inside(packet.dst, selector.dst)
        and selector.proto in (0, packet.proto)
        and _port(packet.sport, selector.sport)
        and _port(packet.dport, selector.dport)
    )


def _inside(address: Address, network: Network) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return isinstance(network, ipaddress.IPv4Network) and address in network
    return isinstance(network, ipaddress.IPv6Network) and address in network


def _port(port: int, match: PortMatch) -> bool:
    return port & match.mask == match.port & match.mask
