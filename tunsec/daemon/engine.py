"""The engine: facts from the kernel, the directory and the clock go to the machines, and what they
order is performed. Synchronous and without a loop of its own, so that the simulation runs it as it
is; daemon/service.py feeds it from asyncio.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tunsec.daemon.alarm import Alarms
from tunsec.daemon.drift import Drift
from tunsec.daemon.gates import Gates
from tunsec.daemon.guarding import Guarding
from tunsec.daemon.health import Counters, Part, Troubles
from tunsec.daemon.ike_desk import IkeDesk
from tunsec.daemon.install import Installer
from tunsec.daemon.journal import fields, log_transition
from tunsec.daemon.offload import Offloads
from tunsec.daemon.post import News, PostRoom
from tunsec.daemon.reconcile import IkeHolding, outgrown
from tunsec.daemon.sa_index import SaIndex
from tunsec.daemon.scope import Scope
from tunsec.daemon.tally import Tally
from tunsec.daemon.vip_desk import VipDesk
from tunsec.keying.chain import Trust
from tunsec.keying.claims import ClaimBook
from tunsec.keying.identity import Identity
from tunsec.keying.paths import ConfirmationPath, OfferPath
from tunsec.machines import offer as offers
from tunsec.machines import outbox, pair
from tunsec.machines.facts import (
    ChildrenChanged,
    InboundTaken,
    OfferMade,
    OfferPublished,
    OutboundTaken,
    OwnOffered,
    RecordPublished,
    RenewalWanted,
    RolloverWanted,
    SaLost,
    SaSoftExpired,
    TimerFired,
)
from tunsec.machines.flow import FlowState
from tunsec.machines.ike_facts import Adopted as IkeAdopted
from tunsec.machines.orders import (
    Action,
    BlockOutbound,
    ForgetOffer,
    InstallInbound,
    InstallOutbound,
    MakeOffer,
    PassOver,
    PublishOffer,
    PublishRecord,
    ReadUsage,
    RemoveInbound,
    RemoveOutbound,
    WantRollover,
    WithdrawOffer,
)
from tunsec.machines.outbox import Delivered, Withdraw, Write
from tunsec.machines.reconnect import Standing
from tunsec.machines.slots import SaState
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.connection import ConnectionEnded, EndsLost, Syn
from tunsec.model.errors import Bug, Refused, Unavailable
from tunsec.model.event import (
    Acquired,
    EventsLost,
    HardExpired,
    KernelEvent,
    SaAdded,
    SadFlushed,
    SaRemoved,
    SoftExpired,
    SpChanged,
    SpdFlushed,
)
from tunsec.model.flow import Child, ChildId, Keying, Kind, OffloadWish, OnReconnect
from tunsec.model.ike_sa import IkeEvent
from tunsec.model.names import Address, HostName, OfferSeq, Reqid
from tunsec.model.ownership import is_our_reqid
from tunsec.model.sa import Sa, SaId
from tunsec.plan.diff import Plan
from tunsec.plan.ike_connection import IkeSetup
from tunsec.plan.rdma import bypassed
from tunsec.ports import (
    Clock,
    Directory,
    Entropy,
    GuardTable,
    Ike,
    Kernel,
    Links,
    Rdma,
    Record,
    Sockets,
    SynGate,
    VniMarking,
)

DUMP_EVERY: Final = Seconds(300.0)
"""Drift is seen through events; this dump finds what they missed."""
COALESCE: Final = Seconds(0.03)
"""A flush by hand is thousands of events and one repair."""
RETRY: Final = Seconds(2.0)
HEAR_AGAIN: Final = Seconds(1.0)
"""How often we look whether a peer sends by IKE, while it may still send by directory keying."""
FAREWELL: Final = Seconds(10.0)
"""How long the last word to a former peer, which says that nothing is received or sent any more,
stays in the directory: a peer that polls must read it before it goes."""

log = logging.getLogger("tunsec.engine")


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that the engine acts on; without `ike` no flow can be keyed by IKE."""

    kernel: Kernel
    guard: GuardTable
    marks: VniMarking
    links: Links
    rdma: Rdma
    directory: Directory
    clock: Clock
    entropy: Entropy
    ike: Ike | None = None
    sockets: Sockets | None = None
    syns: SynGate | None = None
    """Both are needed where new connections of a flow must wait for fresh authentication."""


OFFERS: Final = "offers"
OUTBOX: Final = "outbox"
DUMP: Final = "dump"
GUARD: Final = "guard"
MOVES: Final = "moves"
Target = str | tuple[str, HostName]


@dataclass(slots=True)
class _Queued:
    target: Target
    event: object


class Engine:
    """One host's control plane. Every public method runs until nothing is left to do."""

    def __init__(
        self,
        *,
        host: HostName,
        ports: Ports,
        post: PostRoom,
        claims: ClaimBook,
        served: Collection[str] = (),
        look_every: Seconds = DUMP_EVERY,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`served` are service addresses that an earlier life had here and had claimed;
        `look_every` is how often all that kernel and charon hold is read, whatever they told."""
        self.host = host
        self.post = post
        self.pairs: dict[HostName, pair.PairState] = {}
        self.offers = offers.OffersState()
        self.outbox = outbox.OutboxState()
        self.counters = Counters()
        self.troubles = Troubles()
        self.scope = Scope.empty(host)
        self.active_since: dict[ChildId, Instant] = {}
        self.tallies: dict[ChildId, Tally] = {}
        self._ports = ports
        self._look_every = look_every
        self._changed = changed
        self._children: dict[ChildId, Child] = {}
        self._index = SaIndex()
        self._contents: dict[str, Record] = {}
        self._tokens: dict[str, OfferSeq | tuple[HostName, int]] = {}
        self._moving: set[ChildId] = set()
        """Children that one keying still carries for the other."""
        self._by_ike: dict[ChildId, int] = {}
        """Packets that had come in for those by IKE when last looked."""
        self._alarms: Alarms[Target] = Alarms()
        self._queue: deque[_Queued] = deque()
        self._here: frozenset[Address] = frozenset()
        """Addresses of this host, when they were last seen."""
        self._closed = False
        self._outgrown: frozenset[SaId] = frozenset()
        """SAs whose successors were asked for."""
        self.offloads = Offloads(kernel=ports.kernel, links=ports.links, entropy=ports.entropy)
        self._installer = Installer(
            kernel=ports.kernel,
            keys=post,
            entropy=ports.entropy,
            children=self._keyed_by_pair,
            offloads=self.offloads,
        )
        self.ike = IkeDesk(
            host=host,
            kernel=ports.kernel,
            ike=ports.ike,
            installer=self._installer,
            clock=ports.clock,
            entropy=ports.entropy,
            tallies=self.tallies,
            is_directorys=lambda sa_id: self._index.owner(sa_id) is not None,
            on_pinned=self._ike_pinned,
            remove=lambda child, sa_id, inbound: self._remove(child, sa_id, inbound=inbound),
            wake=self._run,
            list_every=look_every,
        )
        self.gates = Gates(
            sockets=ports.sockets,
            syns=ports.syns,
            clock=ports.clock,
            entropy=ports.entropy,
            standing=self._standing,
            renew=self._renew,
        )
        self.vips = VipDesk(
            host=host,
            boot=post.boot,
            book=claims,
            served=served,
            directory=ports.directory,
            clock=ports.clock,
            entropy=ports.entropy,
            refuse=post.refuse,
            wake=self._run,
        )
        self._drift = Drift(kernel=ports.kernel, counters=self.counters, troubles=self.troubles)
        self._guarding = Guarding(
            table=ports.guard,
            marks=ports.marks,
            links=ports.links,
            counters=self.counters,
            troubles=self.troubles,
        )

    # What the outside calls

    def start(self, scope: Scope) -> None:
        """Close first, then look: blocks and guard, adoption of what is there, then keys.

        Raises Unavailable or Refused when the kernel cannot hold block SPs: the caller must not
        run on, for nothing would be closed.
        """
        self.vips.enter(scope, self._addresses_here())
        self.scope = scope = self._for_this_host(scope.with_holders(self.vips.holders()))
        self._drift.close(scope)
        self._put_guard()
        self._adopt(scope)
        self._end(self._drift.marked_otherwise(scope))
        self._withdraw_leftovers()
        self._look()
        self.gates.set_children(self.scope.children, self._stands)
        self._begin_keying()
        self._run()

    def change_scope(self, scope: Scope) -> None:
        """Another policy, or flows released: close what is new, key it, end what is gone.

        Raises Refused, with the running scope untouched, when the kernel does not take the new
        block SPs.
        """
        before = self.scope
        scope = self._for_this_host(scope.with_holders(before.holders))
        otherwise = self._drift.marked_otherwise(scope)
        self._drift.close(scope)
        self.scope = scope
        self._put_guard()
        self._end(otherwise)
        self._enter(scope)
        self.gates.set_children(self.scope.children, self._stands)
        self.vips.enter(scope, self._addresses_here())
        self._follow_holders()
        self._tell_pairs(self.post.renew_grants(scope.grants))
        self._look()
        self._begin_keying()
        if before.addresses != scope.addresses:
            self._queue.append(_Queued(OFFERS, RolloverWanted("the policy changed our addresses")))
        self._run()

    def renew_identity(self, identity: Identity, trust: Trust) -> None:
        """Another certificate, other roots or revocation lists: who is revoked is cut off now.

        A certificate of ours that is new is shown at once: the one before may be revoked next.
        """
        renewed = identity.der_chain != self.post.chain
        self._tell_pairs(self.post.renew_identity(identity, trust))
        self.vips.renew_identity(identity, trust, renewed=renewed)
        if renewed:
            self._queue.append(_Queued(OFFERS, RolloverWanted("our certificate is another one")))
        self._run()

    def release(self, scope: Scope) -> int:
        """The admin opens flows: `scope` is the running one without them. Blocks go last.

        Returns how many block SPs were removed.
        """
        before = self.scope
        self.change_scope(scope)
        return self._drift.open(self.scope, known=before)

    def close(self) -> None:
        """Stop acting. The kernel stays as it is: protected."""
        self._closed = True
        self._queue.clear()

    def deadline(self) -> Deadline | None:
        """When `tick` must be called at the latest."""
        found = (
            self._alarms.next(),
            self.ike.deadline(),
            self.vips.deadline(),
            self.gates.deadline(),
        )
        return min((one for one in found if one is not None), default=None)

    def tick(self) -> None:
        """Time has passed."""
        self.ike.tick()
        self.vips.tick()
        self.gates.tick()
        now = self._ports.clock.now()
        for target in self._alarms.due(now):
            match target:
                case "dump":
                    self._check_bypasses()
                    self._look()
                    self.vips.look(self._addresses_here())
                    self._check_guard()
                case "guard":
                    self._check_guard()
                case "moves":
                    self._hear_peers()
                case ("expiry", peer):
                    self._expire(peer)
                case ("farewell", peer):
                    self._drop(self._word_to(peer))
                case _:
                    self._queue.append(_Queued(target, TimerFired()))
        self._run()

    def on_kernel_events(self, events: Iterable[tuple[KernelEvent, bool]]) -> None:
        """Facts from the XFRM event lane; the flag says that our own request caused it."""
        for event, ours in events:
            self._on_kernel_event(event, ours)
        self._run()

    def on_records(self, records: Sequence[Record]) -> None:
        """Records of the directory that are new or changed.

        Claims first: what they take from a host must not be confirmed to it any more.
        """
        self.vips.take(records)
        self._follow_holders()
        self._tell_pairs(self.post.take(records, frozenset(self.pairs)))
        self._watch_expiries()
        self._run()

    def on_written(self, error: Exception | None) -> None:
        """The directory finished a write or a withdrawal."""
        self._queue.append(_Queued(OUTBOX, outbox.WriteEnded(str(error) if error else "")))
        self._run()

    def on_directory_back(self) -> None:
        """The directory can be reached again."""
        self._queue.append(_Queued(OUTBOX, outbox.DirectoryBack()))
        self.vips.on_directory_back()
        self._run()

    def on_ike_event(self, event: IkeEvent) -> None:
        """charon told something of an IKE_SA, a CHILD_SA, or what it is about."""
        self.ike.on_event(event)
        self._run()

    def on_charon_ready(self, setup: IkeSetup) -> None:
        """charon answers, and has this host's credentials."""
        self.ike.on_charon_ready(setup)
        self._run()

    def on_charon_away(self, reason: str) -> None:
        """charon cannot be used; the kernel goes on with what it has."""
        self.ike.on_charon_away(reason)
        self._run()

    def on_syn(self, syn: Syn) -> None:
        """The kernel holds a new connection of a gated flow."""
        self.gates.on_syn(syn)
        self._run()

    def on_connections(self, events: Iterable[ConnectionEnded | EndsLost]) -> None:
        """Connections ended, whosever."""
        self.gates.on_ended(events)
        self._run()

    def want_proof(self, reason: str) -> None:
        """Every peer that IKE keys must prove anew who it is."""
        self.ike.want_proof(reason)
        self._run()

    def on_guard_changed(self) -> None:
        """Somebody, perhaps we, touched the guard table or filters that mark."""
        self._alarms.put(GUARD, Deadline(self._after(COALESCE), "guard table changed"))

    def on_links_changed(self, ifindexes: Collection[int] | None = None) -> None:
        """These devices, or (None) any, or their addresses changed: the guard lists tunnel devices,
        NICs carry SAs, and a service address may have come or gone. With a NIC the kernel drops
        what it carried, and tells nobody."""
        self.vips.look(self._addresses_here())
        self._follow_holders()
        self._check_guard()
        self._check_bypasses()
        self.offloads.forget(ifindexes)
        if any(child.offload is not OffloadWish.NONE for child in self.scope.children):
            self._look_soon("devices changed")
        self._run()

    def plan_for(self, scope: Scope) -> Plan:
        """What `change_scope` would do to the kernel, besides the keys that follow."""
        then = self._for_this_host(scope)
        return self._drift.foresee(self._flows(), self._holdings(), then)

    @property
    def uses_ike(self) -> bool:
        """Whether a flow of this host is keyed by IKE, or still carried by it."""
        return bool(self.ike.reqids())

    def is_moving(self, child: ChildId) -> bool:
        """Whether one keying still carries a child for the other."""
        return child in self._moving

    def pinned_by_ike(self, child: ChildId) -> bool:
        """Whether what a child sends goes by IKE."""
        flow = self.ike.flow(child)
        return flow is not None and flow.pinned is not None

    def flows(self) -> Iterable[tuple[pair.PairState, FlowState]]:
        """Every child with its pair."""
        for state in self.pairs.values():
            for flow in state.flows.values():
                yield state, flow

    # Service addresses

    def _addresses_here(self) -> frozenset[Address]:
        """Addresses of this host; those that were there last while the kernel does not tell."""
        try:
            self._here = frozenset(self._ports.links.addresses())
        except (Refused, Unavailable) as error:
            self.troubles.note(Part.LINKS, str(error))
        else:
            self.troubles.note(Part.LINKS, "")
        return self._here

    def _follow_holders(self) -> bool:
        """Law 8: SAs over a service address are with its holder; those with the one before go in
        the same step. Whether there was a move."""
        holders = self.vips.holders()
        if holders == self.scope.holders:
            return False
        log.info("service addresses moved", extra=fields(dict(holders)))
        before = self.scope
        moved = before.with_holders(holders)
        try:
            scope = self._for_this_host(moved)
            self._drift.close(scope)
            self._drift.forsake(before, scope)
        except (Refused, Unavailable) as error:
            # What is wanted of the kernel is asked again; what was given to the one before goes.
            self.troubles.note(Part.KERNEL, str(error))
            scope = moved
            self._look_soon("service addresses moved")
        self.scope = scope
        self._enter(scope)
        self.gates.set_children(self.scope.children, self._stands)
        self._look()
        self._begin_keying()
        return True

    # Scope

    def _for_this_host(self, scope: Scope) -> Scope:
        """A scope with the numbers that its children have, without those that devices bypass."""
        return self._bypasses(self._drift.with_held(scope, self.scope))

    def _bypasses(self, scope: Scope) -> Scope:
        """When devices cannot be looked at, what is protected stays so, and nothing else begins."""
        roce = [child for child in scope.declared if child.kind is Kind.ROCEV2]
        if not roce:
            return scope.with_bypassed({})
        try:
            devices, holders = self._ports.rdma.devices(), self._ports.links.addresses()
        except (Refused, Unavailable) as error:
            known = {child.id for child in self.scope.children}
            return scope.with_bypassed(
                {child.id: str(error) for child in roce if child.id not in known}
            )
        return scope.with_bypassed(bypassed(roce, devices, holders))

    def _check_bypasses(self) -> None:
        """RDMA devices come and go, and addresses move between devices."""
        before, now = self.scope.bypassed, self._bypasses(self.scope).bypassed
        if now == before:
            return
        for child, reason in now.items():
            if child not in before:
                log.error("cannot be protected", extra=fields({"child": child, "reason": reason}))
        try:
            self.change_scope(self.scope)
        except (Refused, Unavailable) as error:
            self.troubles.note(Part.KERNEL, str(error))

    def _adopt(self, scope: Scope) -> None:
        """Take over what an earlier life left, each SA with the keying that made it: the policy
        may have changed while nobody ran, and a move may not have been done."""
        adopted = self._drift.adopt({child.id: child for child in scope.children})
        self._enter(scope, adopted.moving)
        for peer, event in adopted.by_peer.items():
            self._queue.append(_Queued(("pair", HostName(peer)), event))
        self.ike.adopt(adopted.ike)
        self._tell_pairs(self.post.revoked_before())
        self._run()
        self._tell_who_pins(adopted.moving)
        self._run()

    def _end(self, ended: Collection[ChildId]) -> None:
        """Children whose SAs nobody can use any more: they end, to begin anew."""
        if ended:
            self._enter(self.scope, ended=ended)
            self._enter(self.scope)

    def _enter(
        self, scope: Scope, adopted: Collection[ChildId] = (), *, ended: Collection[ChildId] = ()
    ) -> None:
        """Give every pair its children, but for `ended` ones; pairs that lose them all end. SAs of
        `adopted` children, made by another keying than the policy's, are told of next."""
        children = [child for child in scope.children if child.id not in ended]
        self._children.update({child.id: child for child in children})
        carried = {
            child.id for child in children if child.id in adopted or self._carried_by_other(child)
        }
        self._tell_who_pins(carried)
        by_peer: dict[HostName, list[Child]] = {}
        for child in children:
            if child.keying is Keying.DIRECTORY or child.id in carried:
                by_peer.setdefault(child.id.peer, []).append(child)
        self._give_ike(
            (child for child in children if child.keying is Keying.IKE or child.id in carried),
            known=children,
        )
        self.post.set_addresses(scope.addresses)
        # Who loses children comes first: another peer may get the same addresses.
        left = {child.id for child in scope.children}
        losing = [peer for peer, state in self.pairs.items() if state.flows.keys() - left]
        for peer in dict.fromkeys((*losing, *by_peer, *self.pairs)):
            if peer not in self.pairs:
                self.pairs[peer] = pair.PairState(peer)
            event = ChildrenChanged(tuple(by_peer.get(peer, ())))
            self._queue.append(_Queued(("pair", peer), event))
        self._run()
        for peer in [peer for peer in self.pairs if peer not in by_peer]:
            del self.pairs[peer]
            self._alarms.put(("pair", peer), None)
            self._alarms.put(("expiry", peer), None)
            goes = Deadline(self._after(FAREWELL), "the word to a former peer goes")
            self._alarms.put(("farewell", peer), goes)
        for peer in by_peer:
            self._alarms.put(("farewell", peer), None)
        self._moving = {
            child.id for child in children if child.id in adopted or self._carried_by_other(child)
        }
        wanted = {child.id for child in children}
        for child_id in [child_id for child_id in self._children if child_id not in wanted]:
            del self._children[child_id]
            self.active_since.pop(child_id, None)
            self.tallies.pop(child_id, None)

    def _give_ike(self, children: Iterable[Child], *, known: Sequence[Child]) -> None:
        """What charon shall carry, with a NIC or without; `known` are all there are."""
        settled = [self.offloads.settled(child) for child in children]
        self.ike.set_children(settled, self.scope.intent, known=known)

    def _check_moves(self) -> bool:
        """Children on their way from one keying to the other: the old one ends when it is empty.

        Whether there is more to do.
        """
        finished: set[ChildId] = set()
        told = False
        for child_id in self._in_order(self._moving):
            if not self._carried_by_other(self._children[child_id]):
                finished.add(child_id)
            elif self._awaits_peer(child_id) and self._alarms.get(MOVES) is None:
                soon = Deadline(self._after(HEAR_AGAIN), "peers may have moved")
                self._alarms.put(MOVES, soon)
            elif self._peer_has_left_ike(child_id):
                self.ike.leave(child_id)
                told = True
        if finished:
            self._moving -= finished
            self._enter(self.scope)
            self._begin_keying()
        return told or bool(self._queue)

    def _peer_has_left_ike(self, child: ChildId) -> bool:
        """Whether the peer's record says for the first time that it sends by directory keying, and
        IKE has not been told."""
        old, new = self.ike.flow(child), self._flow_of_pair(child)
        return (
            old is not None
            and old.taken
            and not old.left
            and new is not None
            and any(sa.state is SaState.ACTIVE for sa in new.inbound)
        )

    def _in_order(self, children: Collection[ChildId]) -> list[ChildId]:
        """The policy's order: what is done must not hang on the order of a set."""
        if not children:
            return []
        return [child.id for child in self.scope.children if child.id in children]

    def _hear_peers(self) -> None:
        """Inbound SAs of directory keying go when the peer's records say that it has left them.
        Where no record can come any more, what arrives by IKE tells it: a CHILD_SA alone does
        not, for the peer's daemon may have died before it sent on it, nor does what it carried
        before, for the peer may have sent by IKE until a moment ago."""
        before, self._by_ike = self._by_ike, {}
        for child_id in self._in_order(self._moving):
            if not self._awaits_peer(child_id):
                continue
            packets = self._packets_by_ike(child_id)
            if packets is None:
                continue  # it is looked at again
            if packets > before.get(child_id, packets):
                self._queue.append(_Queued(("pair", child_id.peer), InboundTaken(child_id)))
            self._by_ike[child_id] = packets

    def _awaits_peer(self, child: ChildId) -> bool:
        """Whether only the peer still sends by directory keying, as far as we know."""
        flow = self._flow_of_pair(child)
        return (
            flow is not None
            and flow.taken
            and any(sa.state is not SaState.REKEYED for sa in flow.inbound)
        )

    def _packets_by_ike(self, child: ChildId) -> int | None:
        """What has come in on the newest CHILD_SA on which the peer sends; None if unknown."""
        flow = self.ike.flow(child)
        theirs = [] if flow is None else [one for one in flow.held if not one.own]
        try:
            found = [self._ports.kernel.sa(SaId(child.local, one.spi_in)) for one in theirs]
        except (Refused, Unavailable):
            return None
        return max((sa.usage.usage_packets for sa in found if sa is not None), default=0)

    def _tell_who_pins(self, children: Collection[ChildId]) -> None:
        """A child may have come to the keying that has its SPs already: the other one drains."""
        for child in self._in_order(children):
            if self.pinned_by_ike(child):
                self._ike_pinned(child)
            elif self._pinned_by_pair(child):
                self._directory_pinned(child)

    def _ike_pinned(self, child: ChildId) -> None:
        """IKE has the outbound SPs of a child: what directory keying has of it drains."""
        known = self._children.get(child)
        if known is not None and known.offload is not OffloadWish.NONE:
            self._look_soon("charon's SAs may be a NIC's: the inbound SPs follow them")
        if known is not None and known.keying is Keying.IKE and self._carried_by_pair(child):
            self._queue.appendleft(_Queued(("pair", child.peer), OutboundTaken(child)))

    def _directory_pinned(self, child: ChildId) -> None:
        """Directory keying has the outbound SPs of a child: what IKE has of it drains."""
        if self._children[child].keying is Keying.DIRECTORY and self._carried_by_ike(child):
            self.ike.take(child)

    def _stands(self, child: ChildId) -> bool:
        """Whether a child has SAs, of whichever keying."""
        return self._carried_by_pair(child) or self._carried_by_ike(child)

    def _standing(self, child: ChildId) -> Standing:
        """What a gate must know of a child. While it moves from one keying to the other, nothing
        counts as renewed before the move is done."""
        known = self._children[child]
        pair_state = self.pairs.get(child.peer)
        by_pair = Standing() if pair_state is None else pair.standing(pair_state, child)
        by_ike = self.ike.standing(child)
        mine, other = (by_ike, by_pair) if known.keying is Keying.IKE else (by_pair, by_ike)
        return Standing(
            mine.sends or other.sends,
            mine.fresh | other.fresh,
            mine.stale | other.stale,
            mine.renewed and child not in self._moving,
        )

    def _renew(self, child: ChildId, reason: str) -> None:
        """A connection of a child broke: fresh authentication, or fresh keys, at both ends."""
        known = self._children[child]
        proof = known.on_reconnect is OnReconnect.REAUTH
        log.warning("connection broke", extra=fields({"child": child, "reason": reason}))
        if known.keying is Keying.IKE:
            self.ike.renew(child, proof=proof)
        else:
            self._queue.append(_Queued(("pair", child.peer), RenewalWanted(child, proof)))

    def _flow_of_pair(self, child: ChildId) -> FlowState | None:
        pair_state = self.pairs.get(child.peer)
        return pair_state.flows.get(child) if pair_state is not None else None

    def _pinned_by_pair(self, child: ChildId) -> bool:
        flow = self._flow_of_pair(child)
        return flow is not None and flow.active_outbound is not None

    def _carried_by_other(self, child: Child) -> bool:
        """Whether the keying that the policy does not name has SAs of a child."""
        if child.keying is Keying.DIRECTORY:
            return self._carried_by_ike(child.id)
        return self._carried_by_pair(child.id)

    def _keyed_by_pair(self, child: ChildId) -> Child | None:
        """A child that directory keying may install SAs for. Peers confirm what their policy has,
        also what is IKE's here by now, or nobody's."""
        state = self.pairs.get(child.peer)
        known = state is not None and child in state.flows
        return self._children.get(child) if known else None

    def _carried_by_pair(self, child: ChildId) -> bool:
        """Whether directory keying has SAs of a child."""
        flow = self._flow_of_pair(child)
        return flow is not None and not flow.empty

    def _carried_by_ike(self, child: ChildId) -> bool:
        """Whether IKE keying has SAs of a child."""
        flow = self.ike.flow(child)
        return flow is not None and not flow.empty

    def _begin_keying(self) -> None:
        """Own offers and what is known of peers go to the pairs; nothing while the guard is not
        in force."""
        rule = self._rollover()
        if rule is None:
            self._queue.append(_Queued(OFFERS, offers.RuleEnded()))
            return
        if self.troubles.guard:
            return
        own = OwnOffered(self._current(), self.offers.holds)
        for peer in self.pairs:
            self._queue.append(_Queued(("pair", peer), own))
        self._tell_pairs(self.post.reintroduce(frozenset(self.pairs)))
        self._queue.append(_Queued(OFFERS, offers.RuleChanged(rule)))

    def _rollover(self) -> offers.RolloverRule | None:
        """The pace of own offers: also for what directory keying still carries for IKE."""
        return self.scope.rollover_with(self._moving)

    def _withdraw_leftovers(self) -> None:
        """What an earlier life said and did not live to take back. Nobody here wants it any more:
        it has no pair, or nothing is keyed by directory."""
        wanted = {self._word_to(peer) for peer in self.pairs}
        if self._rollover() is not None:
            wanted.add(str(OfferPath(self.host)))
        for path in sorted(self.post.published_before() - wanted):
            self._drop(path)

    # Guard

    def _put_guard(self) -> None:
        if not self._guarding.put(self.scope):
            self._alarms.put(GUARD, Deadline(self._after(RETRY), "guard is tried again"))

    def _check_guard(self) -> None:
        failed = bool(self.troubles.guard)
        if not self._guarding.check(self.scope):
            self._alarms.put(GUARD, Deadline(self._after(RETRY), "guard is tried again"))
        if failed and not self.troubles.guard:
            self._begin_keying()

    # Kernel

    def _on_kernel_event(self, event: KernelEvent, ours: bool) -> None:
        match event:
            case SoftExpired(sa_id):
                self._tell_owner(
                    sa_id, lambda child, inbound: SaSoftExpired(child, sa_id.spi, inbound)
                )
            case HardExpired(sa_id, reqid):
                self.ike.on_sa_gone(sa_id, reqid)
                self._tell_owner(
                    sa_id,
                    lambda child, inbound: SaLost(child, sa_id.spi, inbound, "hard lifetime"),
                )
            case SaRemoved(sa_id, reqid):
                self.ike.on_sa_gone(sa_id, reqid)
                self._sas_changed(sa_id, reqid, ours)
            case SaAdded(sa_id, reqid):
                self._sas_changed(sa_id, reqid, ours)
            case SpChanged():
                if not ours:
                    self._look_soon("SPs changed by another")
            case SadFlushed() | SpdFlushed():
                self._look_soon("flushed by another")
            case EventsLost():
                self.counters.overruns += 1
                self._look_soon("events lost")
            case Acquired():
                pass  # an SP of ours without its SA holds the packet; the SA is being asked for

    def _sas_changed(self, sa_id: SaId, reqid: Reqid, ours: bool) -> None:
        charons = reqid in self.ike.reqids() and self._index.owner(sa_id) is None
        if not ours and not charons and is_our_reqid(reqid):
            self._look_soon("SAs changed by another")

    def _tell_owner(self, sa_id: SaId, event: Callable[[ChildId, bool], pair.PairEvent]) -> None:
        owner = self._index.owner(sa_id)
        if owner is not None:
            fact = event(owner.child, owner.inbound)
            self._queue.append(_Queued(("pair", owner.child.peer), fact))

    def _look_soon(self, reason: str) -> None:
        soon = Deadline(self._after(COALESCE), reason)
        planned = self._alarms.get(DUMP)
        if planned is None or planned.at > soon.at:
            self._alarms.put(DUMP, soon)

    def _look(self) -> None:
        """Hold the kernel against what it should hold; SAs that are gone get fresh successors."""
        looked = self._drift.repair(self._flows(), self._holdings(), self.scope)
        again = RETRY if looked is None else self._look_every
        self._alarms.put(DUMP, Deadline(self._after(again), "periodic dump"))
        if looked is None:
            return
        self.ike.hold_against(looked.sas)
        self._take_over(looked.late)
        self._replace_outgrown(looked.sas)
        for sa_id in looked.lost:
            owner = self._index.owner(sa_id)
            if owner is None:
                raise Bug(f"SA {sa_id} is wanted by nobody")
            log.warning("SA is gone", extra=fields({"sa": sa_id, "child": owner.child}))
            fact = SaLost(owner.child, sa_id.spi, owner.inbound, "SA was removed by another")
            self._queue.append(_Queued(("pair", owner.child.peer), fact))

    def _replace_outgrown(self, sas: Mapping[SaId, Sa]) -> None:
        """SAs that a device, the policy or the way to a peer has left behind get successors: the
        next offer gives them keys, receiver first."""
        self.offloads.forget_ways()
        given = [flow.child for _, flow in self.ike.flows()]
        if any(self.offloads.settled(self._children[one.id]) != one for one in given):
            self._give_ike((self._children[one.id] for one in given), known=self.scope.children)
        found = dict(outgrown(self._flows(), sas, self.offloads.nic))
        new = found.keys() - self._outgrown
        self._outgrown = frozenset(found)
        if new:
            reason = found[min(new, key=str)]
            log.info("SAs are made anew", extra=fields({"sas": len(new), "reason": reason}))
            self._queue.append(_Queued(OFFERS, RolloverWanted(reason)))

    def _take_over(self, late: Sequence[IkeAdopted]) -> None:
        """charon was still at work for children that IKE had let go of: the peer may send on what
        came of it, so it drains as in any move."""
        if not late:
            return
        children = [one.child for one in late]
        self._enter(self.scope, children)
        self.ike.adopt(late)
        self.ike.work()
        self._tell_who_pins(children)

    # Machines

    def _run(self) -> None:
        """Until the queue is empty: step the machine, perform what it orders."""
        while not self._closed:
            if self._queue:
                self._step(self._queue.popleft())
            elif not (
                self._follow_holders()
                or self.ike.work()
                or self._check_moves()
                or self.gates.work()
            ):
                break
        self._changed()

    def _step(self, queued: _Queued) -> None:
        match queued.target:
            case ("pair", peer):
                self._step_pair(peer, queued.event)
            case "offers":
                self._step_offers(queued.event)
            case "outbox":
                self._step_outbox(queued.event)
            case _:
                raise Bug(f"nobody is {queued.target}")

    def _step_pair(self, peer: HostName, event: object) -> None:
        before = self.pairs.get(peer)
        if before is None:
            return  # the policy dropped the peer while this was queued
        now, dice = self._ports.clock.now(), self._ports.entropy.fraction()
        done = pair.step(before, event, now, dice)  # type: ignore[arg-type]
        self.pairs[peer] = done.state
        self._note_transitions(before, done.state, now)
        self._alarms.put(("pair", peer), pair.deadline(done.state))
        for action in done.actions:
            self._perform(peer, action)

    def _step_offers(self, event: object) -> None:
        before = self.offers
        now, dice = self._ports.clock.now(), self._ports.entropy.fraction()
        done = offers.step(before, event, now, dice)  # type: ignore[arg-type]
        self.offers = done.state
        self._alarms.put(OFFERS, offers.deadline(done.state))
        for action in done.actions:
            self._perform(self.host, action)
        if (before.current, before.holds) != (done.state.current, done.state.holds):
            own = OwnOffered(self._current(), done.state.holds)
            for peer in self.pairs:
                self._queue.append(_Queued(("pair", peer), own))
            self._tell_pairs(self.post.reopen(frozenset(self.pairs)))

    def _step_outbox(self, event: object) -> None:
        now, dice = self._ports.clock.now(), self._ports.entropy.fraction()
        done = outbox.step(self.outbox, event, now, dice)  # type: ignore[arg-type]
        if done.state.error != self.outbox.error:
            text = done.state.error
            log.log(
                logging.WARNING if text else logging.INFO,
                "directory cannot be written" if text else "directory written again",
                extra=fields({"error": text} if text else {}),
            )
        self.outbox = done.state
        self._alarms.put(OUTBOX, outbox.deadline(done.state))
        for action in done.actions:
            self._perform(self.host, action)

    def _perform(self, peer: HostName, action: Action) -> None:
        match action:
            case InstallInbound():
                self._answer(peer, self._installer.install_inbound(action))
            case InstallOutbound():
                switched = self._installer.install_outbound(action)
                self._answer(peer, [switched])
                for keyed in switched.sas:
                    self._directory_pinned(keyed.child)
            case PassOver():
                self._installer.pass_over(action)
            case RemoveInbound(child, spi):
                self._remove(child, SaId(child.local, spi), inbound=True)
            case RemoveOutbound(child, spi):
                self._remove(child, SaId(child.remote, spi), inbound=False)
            case BlockOutbound(child):
                self._installer.block(self._children[child])
            case ReadUsage():
                self._answer(peer, self._installer.read_usage(action))
            case PublishRecord():
                record = self.post.record(peer, action)
                self._put(record, (peer, action.revision))
            case WantRollover(reason):
                self._queue.append(_Queued(OFFERS, RolloverWanted(reason)))
            case MakeOffer():
                self._make_offer(action)
            case PublishOffer(seq):
                self._put(self.post.offer_record(seq), seq)
            case WithdrawOffer():
                self.troubles.note(Part.OFFER, "")
                self._drop(str(OfferPath(self.host)))
            case ForgetOffer(seq):
                self.post.forget_own(seq)
                self._installer.forget(seq)
            case Write(paths):
                self._ports.directory.publish(
                    [self._contents[path] for path in paths], done=self.on_written
                )
            case Withdraw(paths):
                self._ports.directory.withdraw(paths, done=self.on_written)
            case Delivered(paths):
                for path in paths:
                    self._delivered(path)
            case _:
                raise Bug(f"nobody performs {action}")

    def _remove(self, child: ChildId, sa_id: SaId, *, inbound: bool) -> None:
        """Remove an SA; what it carried stays in the sums."""
        try:
            last = self._ports.kernel.sa(sa_id)
        except (Refused, Unavailable):
            last = None  # its counters are lost, the removal must not be
        if last is not None:
            self.tallies[child] = self.tallies.get(child, Tally()).plus(last, inbound=inbound)
        self._installer.remove([sa_id])

    def _answer(self, peer: HostName, events: Iterable[pair.PairEvent]) -> None:
        """Answers go first: no machine sees another fact while an order of its own is open."""
        answers = [_Queued(("pair", peer), event) for event in events]
        self._queue.extendleft(reversed(answers))

    def _tell_pairs(self, news: Iterable[News]) -> None:
        self._queue.extend(_Queued(("pair", item.peer), item.event) for item in news)

    def _make_offer(self, order: MakeOffer) -> None:
        try:
            seq = self.post.make_offer(order.lifetime)
        except Refused as error:
            self.troubles.note(Part.OFFER, str(error))
            self._queue.append(_Queued(OFFERS, offers.OfferRefused(str(error))))
            return
        self.troubles.note(Part.OFFER, "")
        log.info("offer made", extra=fields({"seq": seq, "reason": order.reason}))
        self._queue.append(_Queued(OFFERS, OfferMade(seq)))

    def _put(self, record: Record, token: OfferSeq | tuple[HostName, int]) -> None:
        self._contents[record.path] = record
        self._tokens[record.path] = token
        self._queue.append(_Queued(OUTBOX, outbox.Put(record.path)))

    def _drop(self, path: str) -> None:
        self._contents.pop(path, None)
        self._tokens.pop(path, None)
        self._queue.append(_Queued(OUTBOX, outbox.Drop(path)))

    def _word_to(self, peer: HostName) -> str:
        """Where our record for a peer lies."""
        return str(ConfirmationPath(peer, self.host))

    def _delivered(self, path: str) -> None:
        self._contents.pop(path, None)
        token = self._tokens.pop(path)
        if isinstance(token, tuple):
            peer, revision = token
            self._queue.append(_Queued(("pair", peer), RecordPublished(revision)))
        else:
            self._queue.append(_Queued(OFFERS, OfferPublished(token)))

    def _note_transitions(
        self, before: pair.PairState, after: pair.PairState, now: Instant
    ) -> None:
        """Log phases that changed; keep the index of SAs in step with the machine."""
        for child, flow in after.flows.items():
            old = before.flows.get(child)
            if old is flow:
                continue
            self._index.update(old, flow)
            if old is not None and flow.spent is not None and flow.spent != old.spent:
                covers = all(map(flow.spent.has, old.all))
                self.gates.on_peer_asked(child, covers=covers)
            was = old.phase if old is not None else None
            if was is not flow.phase:
                self._log_phase(after, flow, was or "NEW")
            active = flow.active_outbound
            if active is None:
                self.active_since.pop(child, None)
            elif (
                old is None or old.active_outbound is None or old.active_outbound.spi != active.spi
            ):
                self.active_since[child] = now
        for child, old in before.flows.items():
            if child not in after.flows:
                self._index.update(old, None)

    def _log_phase(self, state: pair.PairState, flow: FlowState, was: str) -> None:
        reason = pair.blocked_reason(state, flow)
        log_transition(log, flow.child.id, was=was, phase=flow.phase, reason=reason)

    # Small things

    def _flows(self) -> list[FlowState]:
        return [flow for _, flow in self.flows()]

    def _holdings(self) -> list[IkeHolding]:
        return [IkeHolding(flow.child, flow.pinned) for _, flow in self.ike.flows()]

    def _current(self) -> OfferSeq | None:
        return None if self.offers.current is None else self.offers.current.seq

    def _after(self, span: Seconds) -> Instant:
        return Instant(self._ports.clock.now() + span)

    def _watch_expiries(self) -> None:
        wall, now = self._ports.clock.wall(), self._ports.clock.now()
        for peer, ends in self.post.expiries().items():
            at = Instant(now + max(0.0, ends - wall))
            self._alarms.put(("expiry", peer), Deadline(at, "offer of a peer expires"))

    def _expire(self, peer: HostName) -> None:
        news = self.post.expire(peer)
        if news is not None:
            self._tell_pairs([news])
        self._watch_expiries()
