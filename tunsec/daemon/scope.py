"""What this daemon answers for: the policy's part for this host, less what was released, plus what
the policy dropped and nobody has released yet."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from tunsec.daemon.reconcile import retired_blocks
from tunsec.keying.judgement import Grant
from tunsec.machines.offer import RolloverRule
from tunsec.model.clock import Seconds
from tunsec.model.flow import Child, ChildId, Keying, Kind
from tunsec.model.guard import Guard, GuardedFlow, TunnelDevice, VniMarks
from tunsec.model.names import Address, FlowName, HostName, Mark
from tunsec.model.overlay import LookupFault
from tunsec.model.sp import Sp, SpId
from tunsec.plan.image import Image
from tunsec.policy.desired import NOBODY, NOTHING_HELD, Desired, Held, Holders, desired
from tunsec.policy.intent import Intent, ServiceAddress
from tunsec.policy.kinds import ON_WIRE
from tunsec.ports import OverlayDevice

OFFER_LIFETIME = Seconds(2 * 3600.0)
"""Least validity of an offer: survives clocks that differ, and a directory that is away."""


DEFAULT_TUNNEL_MARK = Mark(1 << 31, 1 << 31)
"""As docs/policy.md has it, for a host that has no policy yet."""


@dataclass(frozen=True, slots=True)
class Retired:
    """A flow that a policy once named and a later one does not: it stays blocked."""

    flow: FlowName
    blocks: tuple[Sp, ...]
    guarded: GuardedFlow


@dataclass(frozen=True)
class Scope:
    """One host's responsibilities. `held` are the numbers that children already have, `holders`
    the hosts that hold service addresses, `faults` what this kernel cannot protect: its children
    stay blocked."""

    host: HostName
    intent: Intent | None = None
    source: str = ""
    released: frozenset[FlowName] = frozenset()
    retired: tuple[Retired, ...] = ()
    held: Held = NOTHING_HELD
    holders: Holders = field(default_factory=lambda: NOBODY)
    bypassed: Mapping[ChildId, str] = field(default_factory=dict)
    """Children that a device would carry past the kernel, and why: they stay blocked."""
    faults: tuple[LookupFault, ...] = ()
    """What this kernel does not do for tunnels of a kind and IP version: they stay blocked."""

    @classmethod
    def empty(cls, host: HostName) -> "Scope":
        """Nothing at all: before the first policy."""
        return cls(host)

    @cached_property
    def managed(self) -> Intent | None:
        """The policy without released flows."""
        if self.intent is None or not self.released:
            return self.intent
        kept = tuple(flow for flow in self.intent.flows if flow.name not in self.released)
        return replace(self.intent, flows=kept)

    @cached_property
    def _desired(self) -> Desired | None:
        if self.managed is None:
            return None
        return desired(self.managed, self.host, held=self.held, holders=self.holders)

    @cached_property
    def children(self) -> tuple[Child, ...]:
        """Protected relations of this host."""
        return tuple(child for child in self.declared if not self._why_unable(child))

    @property
    def unable(self) -> tuple[tuple[Child, str], ...]:
        """Relations of the policy that nothing here can protect, and why: they stay blocked."""
        found = ((child, self._why_unable(child)) for child in self.declared)
        return tuple((child, reason) for child, reason in found if reason)

    @property
    def declared(self) -> tuple[Child, ...]:
        """All relations of this host, with those that cannot be protected."""
        return self._desired.children if self._desired else ()

    def _why_unable(self, child: Child) -> str:
        what = (child.kind, child.id.local.version)
        faults = [one.reason for one in self.faults if (one.kind, one.version) == what]
        return self.bypassed.get(child.id) or next(iter(faults), "")

    @cached_property
    def blocks(self) -> tuple[Sp, ...]:
        """Block SPs, of retired flows too."""
        now = self._desired.blocks if self._desired else ()
        blocks: dict[SpId, Sp] = {sp.id: sp for sp in now}
        for gone in self.retired:
            blocks |= {sp.id: sp for sp in gone.blocks}
        return tuple(blocks.values())

    def all_blocks(self, have: Image) -> tuple[Sp, ...]:
        """Block SPs, and any of ours in the kernel that nobody remembers: they stay too."""
        blocks = {sp.id: sp for sp in self.blocks}
        return (*self.blocks, *retired_blocks(blocks, have))

    @property
    def guarded(self) -> tuple[GuardedFlow, ...]:
        """What the guard table watches."""
        now = self._desired.guarded if self._desired else ()
        named = {guarded.flow for guarded in now}
        return (*now, *(gone.guarded for gone in self.retired if gone.flow not in named))

    def guard(self, devices: Iterable[OverlayDevice]) -> Guard:
        """The guard table for the tunnel devices there are now."""
        ports = {(flow.kind, port) for flow in self.guarded for port in flow.ports}
        tunnels = tuple(map(tunnel_device, devices))
        return Guard(
            self.guarded,
            tuple(device for device in tunnels if (device.kind, device.port) in ports),
            self.tunnel_mark,
        )

    def vni_marks(self, devices: Iterable[OverlayDevice]) -> tuple[VniMarks, ...]:
        """What packets of each `external` device bear by their VNIs, nothing for most of them."""
        guard = self.guard(())
        external = (tunnel_device(device) for device in devices if device.external)
        return tuple(map(guard.vni_marks, external))

    @property
    def tunnel_mark(self) -> Mark:
        """The mark that tells the kernel's tunnels from users' sockets."""
        return self._desired.tunnel_mark if self._desired else DEFAULT_TUNNEL_MARK

    @property
    def addresses(self) -> frozenset[Address]:
        """Addresses that the policy gives this host."""
        if self.intent is None:
            return frozenset()
        return frozenset(self.intent.host(self.host).addresses)

    @property
    def grants(self) -> dict[HostName, Grant]:
        """What every host of the policy may claim."""
        if self.intent is None:
            return {}
        return {
            host.name: Grant(
                host.identity,
                frozenset(host.addresses).union(
                    *(
                        one.addresses
                        for one in self.intent.service_addresses
                        if host.name in one.owners
                    )
                ),
            )
            for host in self.intent.hosts
        }

    @property
    def services(self) -> tuple[ServiceAddress, ...]:
        """Service addresses of the flows in which this host takes part."""
        if self.managed is None:
            return ()
        names = {
            name
            for flow in self.managed.flows
            if self.host in flow.hosts
            for name in flow.service_addresses
        }
        return tuple(one for one in self.managed.service_addresses if one.name in names)

    @property
    def rollover(self) -> RolloverRule | None:
        """One offer serves all flows, so the most demanding one sets the pace."""
        return self.rollover_with(frozenset())

    def rollover_with(self, carried: Collection[ChildId]) -> RolloverRule | None:
        """The same, with children that directory keying still carries for IKE."""
        rules = [
            child.rekey
            for child in self.children
            if child.keying is Keying.DIRECTORY or child.id in carried
        ]
        if not rules:
            return None
        quickest = min(rules, key=lambda rule: rule.after)
        longest = max(rule.hard_after for rule in rules)
        return RolloverRule(quickest.after, quickest.jitter, Seconds(max(longest, OFFER_LIFETIME)))

    def with_held(self, held: Held) -> "Scope":
        """The same, with children keeping the numbers they have in the kernel."""
        return replace(self, held=held)

    def with_holders(self, holders: Holders) -> "Scope":
        """The same, with service addresses where they are now."""
        return replace(self, holders=holders)

    def with_bypassed(self, bypassed: Mapping[ChildId, str]) -> "Scope":
        """The same, without children that no SA of the kernel's can protect."""
        return replace(self, bypassed=bypassed)

    def with_policy(self, intent: Intent, source: str, *, keep_released: bool = False) -> "Scope":
        """The next policy.

        Every block SP that it no longer asks for is retired, whether its flow is gone or has
        another port or fewer peers: nothing opens because a line was changed. `keep_released`
        leaves flows released that are declared as they were; else all are managed again.
        """
        then = Scope(self.host, intent, source, holders=self.holders, faults=self.faults)
        if keep_released and self.intent is not None:
            same = set(self.intent.flows) & set(intent.flows)
            still = self.released & {flow.name for flow in same}
            then = replace(then, released=still)
        kept = {sp.id for sp in then.blocks}
        closed = {_port_of(sp) for sp in then.blocks if _from_and_to_anybody(sp)}
        taken = {flow.name for flow in intent.flows}
        retired: list[Retired] = []
        for part in (*self.retired, *self._parts()):
            left = tuple(
                sp for sp in part.blocks if sp.id not in kept and _port_of(sp) not in closed
            )
            if left:
                name = _free_name(part.flow, taken)
                taken.add(name)
                guarded = _left_guarded(part.guarded, then.guarded)
                retired.append(Retired(name, left, replace(guarded, flow=name)))
        return replace(then, retired=tuple(retired))

    def without(self, flow: FlowName | None) -> "Scope":
        """A flow (None: every flow) released: neither managed nor retired."""
        managed = frozenset(part.flow for part in self._parts())
        retired = frozenset(one.flow for one in self.retired)
        gone = managed | retired if flow is None else frozenset([flow])
        return replace(
            self,
            released=self.released | (gone & managed),
            retired=tuple(one for one in self.retired if one.flow not in gone),
        )

    def with_faults(self, faults: Iterable[LookupFault]) -> "Scope":
        """The same on a kernel with these faults."""
        return replace(self, faults=tuple(faults))

    @property
    def tunnels(self) -> tuple[tuple[Kind, int], ...]:
        """Kinds of tunnel devices that the policy protects, with IP versions of the underlay."""
        used = {(child.kind, child.id.local.version) for child in self.declared}
        return tuple(sorted(one for one in used if ON_WIRE[one[0]].has_networks))

    @property
    def released_here(self) -> tuple[GuardedFlow, ...]:
        """Flows of the policy that an admin released: declared, and open."""
        if self.intent is None:
            return ()
        everything = replace(self, released=frozenset(), retired=())
        return tuple(one for one in everything.guarded if one.flow in self.released)

    def knows(self, flow: FlowName) -> bool:
        """Whether a flow is managed or retired here."""
        return any(guarded.flow == flow for guarded in self.guarded)

    def _parts(self) -> tuple[Retired, ...]:
        """Each managed flow as it would be retired."""
        if self.managed is None or self._desired is None:
            return ()
        return tuple(
            Retired(
                guarded.flow,
                replace(
                    self,
                    intent=replace(
                        self.managed,
                        flows=tuple(f for f in self.managed.flows if f.name == guarded.flow),
                    ),
                    retired=(),
                ).blocks,
                guarded,
            )
            for guarded in self._desired.guarded
        )


def tunnel_device(device: OverlayDevice) -> TunnelDevice:
    """What the guard must know of a device."""
    return TunnelDevice(device.name, device.ifindex, device.kind, device.port, device.vni)


def _port_of(sp: Sp) -> tuple[object, ...]:
    """What a block SP blocks, but for the addresses."""
    selector = sp.id.selector
    return (sp.id.direction, selector.version, selector.proto, selector.sport, selector.dport)


def _from_and_to_anybody(sp: Sp) -> bool:
    selector = sp.id.selector
    return selector.src.prefixlen == selector.dst.prefixlen == 0


def _free_name(flow: FlowName, taken: set[FlowName]) -> FlowName:
    """The flow's own name, or, where a policy goes on using it, `NAME.former`, `NAME.former2`."""
    base = flow.split(".former")[0]
    names = (f"{base}.former{number or ''}" for number in (0, *range(2, len(taken) + 3)))
    return next(FlowName(name) for name in (flow, *names) if name not in taken)


def _left_guarded(old: GuardedFlow, now: tuple[GuardedFlow, ...]) -> GuardedFlow:
    """What the guard must still watch of a former flow: the peers that no flow on its port has."""
    covered = frozenset(
        peer for one in now if (one.kind, one.ports) == (old.kind, old.ports) for peer in one.peers
    )
    return replace(old, peers=old.peers - covered)
