"""Everything about IKE keying on this host: the machine of each connection, what charon tells, what
it is told. Synchronous like the engine, which feeds it and owns it.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tunsec.daemon.alarm import Alarms
from tunsec.daemon.install import Installer, inbound_id, outbound_id
from tunsec.daemon.journal import fields, log_transition
from tunsec.daemon.tally import Tally
from tunsec.machines import ike_peer
from tunsec.machines.facts import ChildrenChanged, InboundTaken, OutboundTaken, TimerFired
from tunsec.machines.ike_facts import (
    Adopted,
    CharonAway,
    CharonReady,
    CharonRenewed,
    ChildDown,
    ChildUp,
    EventMissed,
    IkeDown,
    IkeReplaced,
    IkeUp,
    InitiateEnded,
    Listed,
    LoadEnded,
    OutboundPinned,
    ReauthWanted,
    RenewalWanted,
    SaGone,
    SaUsage,
    SeenChild,
    SeenIke,
    Stray,
    UsageTold,
)
from tunsec.machines.ike_flow import IkeFlow, is_spent, renewed, spent_strays
from tunsec.machines.ike_orders import (
    Initiate,
    ListSas,
    LoadConnection,
    PinOutbound,
    ReadSaUsage,
    RemoveStray,
    TerminateChild,
    TerminateIke,
)
from tunsec.machines.ike_peer import IkeState
from tunsec.machines.orders import Action, BlockOutbound
from tunsec.machines.reconnect import Standing
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.errors import Bug, Refused, TunsecError, Unavailable
from tunsec.model.flow import Child, ChildId
from tunsec.model.ike import NAME_PREFIX, ConnectionId, IkeChild
from tunsec.model.ike_sa import (
    CharonSaid,
    ChildEnded,
    ChildEstablished,
    ChildRekeyed,
    ChildSa,
    ChildState,
    EventUnread,
    IkeEnded,
    IkeEstablished,
    IkeEvent,
    IkeRef,
    IkeRekeyed,
    IkeSa,
)
from tunsec.model.ike_sa import (
    IkeState as CharonState,
)
from tunsec.model.names import HostName, Reqid, Spi
from tunsec.model.sa import Sa, SaId
from tunsec.plan.ike_connection import IkeSetup, Slot, ike_connection, slots
from tunsec.plan.ike_options import Ignored, Leeway, ignored_options, orphaned_sas
from tunsec.policy.intent import Intent
from tunsec.ports import Clock, Entropy, Ike, Kernel

WORDS_KEPT: Final = 4
"""Lines of charon's log that are kept of a connection, to tell why it failed."""
POLICIES_KEPT: Final = 4
"""Of each connection: how many policies in quick succession cost no packet."""
_BEGINNING: Final = (CharonState.CREATED, CharonState.CONNECTING)
_STANDING: Final = (CharonState.ESTABLISHED, CharonState.REKEYING)
_ENDING: Final = (ChildState.DELETING, ChildState.DELETED, ChildState.DESTROYING)
"""CHILD_SAs that may be gone at the other end already."""

log = logging.getLogger("tunsec.ike")


@dataclass(slots=True)
class Connection:
    """One connection: its machine, and what is needed to speak of it with charon."""

    id: ConnectionId
    state: IkeState
    slots: Mapping[str, Slot] = field(default_factory=dict)
    """By the name of a child configuration."""
    asked: Mapping[str, IkeChild] = field(default_factory=dict)
    """What charon was last given."""
    asked_before: deque[Mapping[str, IkeChild]] = field(
        default_factory=lambda: deque(maxlen=POLICIES_KEPT)
    )
    """What it was given before that, the newest first: what is made over IKE_SAs of then is so."""
    asked_since: Instant | None = None
    """When it was first given something in this life of the daemon."""
    asked_at: Instant | None = None
    """When it was given what it has now."""
    made: dict[tuple[int, Spi], IkeChild] = field(default_factory=dict)
    """What CHILD_SAs were asked to be, by id and inbound SPI, where they are so."""
    ikes: dict[int, tuple[IkeSa, Instant]] = field(default_factory=dict)
    """What charon last told of each IKE_SA, and when."""
    born: dict[int, Instant] = field(default_factory=dict)
    """When IKE_SAs were made, as far as charon told of it; one that was rekeyed keeps its time."""
    words: deque[str] = field(default_factory=lambda: deque(maxlen=WORDS_KEPT))


class IkeDesk:
    """The IKE half of the engine."""

    def __init__(
        self,
        *,
        host: HostName,
        kernel: Kernel,
        ike: Ike | None,
        installer: Installer,
        clock: Clock,
        entropy: Entropy,
        tallies: dict[ChildId, Tally],
        is_directorys: Callable[[SaId], bool],
        on_pinned: Callable[[ChildId], None],
        remove: Callable[[ChildId, SaId, bool], None],
        wake: Callable[[], None],
        list_every: Seconds,
    ) -> None:
        """`is_directorys` tells SAs that directory keying made; `on_pinned` hears that a child's
        SPs pin one of ours; `remove` takes an SA away, which is inbound or not; `wake` has
        `work` called soon; `list_every` is how often charon's list is asked for.
        """
        self._host = host
        self._list_every = list_every
        self._kernel = kernel
        self._ike = ike
        self._installer = installer
        self._clock = clock
        self._entropy = entropy
        self._tallies = tallies
        self._is_directorys = is_directorys
        self._on_pinned = on_pinned
        self._remove = remove
        self._wake = wake
        self._connections: dict[ConnectionId, Connection] = {}
        self._by_name: dict[str, ConnectionId] = {}
        self._next_variant: dict[ConnectionId, int] = {}
        """Of connections that are gone: should they come back, charon must not take the IKE_SAs of
        before, which go by what was asked then."""
        self._children: dict[ChildId, Child] = {}
        self._by_reqid: dict[Reqid, ChildId] = {}
        self._known: Sequence[Child] = ()
        self._identities: Mapping[HostName, str] = {}
        self._setup: IkeSetup | None = None
        self._away = "charon was not reached yet"
        self._alarms: Alarms[ConnectionId] = Alarms()
        self._queue: deque[tuple[ConnectionId, ike_peer.IkeEvent]] = deque()
        self._listing: set[ConnectionId] = set()
        self._list_next: set[ConnectionId] = set()

    # What the engine asks

    @property
    def ready(self) -> bool:
        """Whether charon can be used."""
        return self._setup is not None

    @property
    def connections(self) -> Iterable[Connection]:
        """All connections."""
        return self._connections.values()

    def flows(self) -> Iterable[tuple[Connection, IkeFlow]]:
        """Every child with its connection."""
        for connection in self._connections.values():
            for flow in connection.state.flows.values():
                yield connection, flow

    def flow(self, child: ChildId) -> IkeFlow | None:
        """A child's machine."""
        connection = self._connections.get(_connection_of(child))
        return None if connection is None else connection.state.flows.get(child)

    def reqids(self) -> Collection[Reqid]:
        """SAs of these reqids come and go as charon does: they are neither extra nor lost."""
        return self._by_reqid.keys()

    # Facts

    def set_children(
        self, children: Iterable[Child], intent: Intent | None, *, known: Sequence[Child]
    ) -> None:
        """The children that IKE keys, and those that it still carries for another keying. `known`
        are all there are: what charon makes for them too late is drained, not cut off."""
        self._known = known
        if intent is not None:
            self._identities = {host.name: host.identity for host in intent.hosts}
        now = {child.id: child for child in children}
        # Those that go are still spoken of until they are gone.
        self._put_children(self._children | now)
        wanted: dict[ConnectionId, list[Child]] = {}
        for child in now.values():
            wanted.setdefault(_connection_of(child.id), []).append(child)
        for connection_id in wanted:
            if connection_id not in self._connections:
                self._open(connection_id)
        for connection in list(self._connections.values()):
            mine = tuple(wanted.get(connection.id, ()))
            connection.slots = slots(mine, self._host)
            self._tell(connection.id, ChildrenChanged(mine))
        self.work()
        self._put_children(now)
        gone = [one for one in self._connections if one not in wanted]
        for connection_id in gone:
            self._shut(connection_id)
        if gone:
            self._look_at_strangers()

    def _put_children(self, children: dict[ChildId, Child]) -> None:
        self._children = children
        self._by_reqid = {child.reqid: child.id for child in children.values()}

    def _open(self, connection_id: ConnectionId) -> None:
        first = self._host < connection_id.peer
        reauth = None if self._setup is None else self._setup.rules.reauth_after
        variant = self._next_variant.pop(connection_id, 0)
        state = IkeState(
            connection_id.peer,
            first,
            reauth,
            self._list_every,
            away=self._away,
            variant=variant,
        )
        self._connections[connection_id] = Connection(connection_id, state)
        self._by_name[connection_id.name] = connection_id
        if self._setup is not None:
            self._tell(connection_id, CharonReady())

    def _shut(self, connection_id: ConnectionId) -> None:
        gone = self._connections.pop(connection_id)
        self._next_variant[connection_id] = gone.state.variant + 1
        del self._by_name[connection_id.name]
        self._alarms.put(connection_id, None)
        if self._setup is not None and self._ike is not None:
            self._ike.unload(connection_id.name, done=_logged("unloading", connection_id.name))

    def adopt(self, adopted: Iterable[Adopted]) -> None:
        """What the kernel holds of children, from an earlier life."""
        for one in adopted:
            self._tell(_connection_of(one.child), one)

    def take(self, child: ChildId) -> None:
        """Another keying pins a child's outbound SPs now."""
        self._queue.appendleft((_connection_of(child), OutboundTaken(child)))

    def leave(self, child: ChildId) -> None:
        """The peer sends by another keying now."""
        self._tell(_connection_of(child), InboundTaken(child))

    def on_charon_ready(self, setup: IkeSetup) -> None:
        """charon answers, and has our credentials: for the first time, or anew."""
        fact = CharonReady() if self._setup is None else CharonRenewed()
        self._setup, self._away = setup, ""
        for connection in self._connections.values():
            reauth_after = setup.rules.reauth_after
            connection.state = replace(connection.state, reauth_after=reauth_after)
            self._tell(connection.id, fact)
        if self._ike is not None:
            self._ike.connections(done=self._unload_strangers)

    def _unload_strangers(self, names: Sequence[str] | TunsecError) -> None:
        """Connections that an earlier policy or life loaded and this one does not want."""
        if isinstance(names, TunsecError) or self._ike is None:
            return
        for name in names:
            if name not in self._by_name:
                self._ike.unload(name, done=_logged("unloading", name))

    def on_charon_away(self, reason: str) -> None:
        """charon cannot be used."""
        self._setup, self._away = None, reason
        for connection in self._connections.values():
            connection.ikes.clear()
            connection.born.clear()
        self._listing.clear()
        self._list_next.clear()
        for connection_id in self._connections:
            self._tell(connection_id, CharonAway(reason))

    def want_proof(self, reason: str) -> None:
        """Every peer must prove anew who it is."""
        for connection_id in self._connections:
            self._tell(connection_id, ReauthWanted(reason))

    def renew(self, child: ChildId, *, proof: bool) -> None:
        """A connection of a child broke."""
        self._tell(_connection_of(child), RenewalWanted(child, proof))

    def standing(self, child: ChildId) -> Standing:
        """What a gate must know of a child."""
        connection = self._connections.get(_connection_of(child))
        flow = None if connection is None else connection.state.flows.get(child)
        if connection is None or flow is None:
            return Standing()
        old = ike_peer.of_before_break(connection.state, flow)
        stale = {one.spi_in for one in flow.held if is_spent(flow, one, old)}
        fresh = {one.spi_in for one in flow.held} - stale
        stale |= {stray.spi for stray in spent_strays(flow) if stray.inbound}
        fresh |= {stray.spi for stray in flow.strays if stray.inbound} - stale
        return Standing(
            flow.pinned is not None,
            frozenset(fresh),
            frozenset(stale),
            renewed(flow, old, self._clock.now()),
        )

    def on_sa_gone(self, sa_id: SaId, reqid: Reqid) -> None:
        """An SA of ours left the kernel."""
        child = self._by_reqid.get(reqid)
        if child is None:
            return
        for inbound in (True, False):
            if sa_id.dst == (child.local if inbound else child.remote):
                self._tell(_connection_of(child), SaGone(child, sa_id.spi, inbound))

    def hold_against(self, sas: Mapping[SaId, Sa]) -> None:
        """The kernel was dumped: what is missing was flushed, or its event was lost."""
        for _, flow in self.flows():
            child = flow.child
            both = [
                pair for one in flow.held for pair in ((one.spi_in, True), (one.spi_out, False))
            ]
            for spi, inbound in (*both, *((one.spi, one.inbound) for one in flow.strays)):
                sa_id = inbound_id(child, spi) if inbound else outbound_id(child, spi)
                if sa_id not in sas:
                    self._tell(_connection_of(child.id), SaGone(child.id, spi, inbound))

    def on_event(self, event: IkeEvent) -> None:
        """charon told something."""
        match event:
            case IkeEstablished(ike):
                if self._is_stranger(ike):
                    self._look_at_strangers()
                self._note_ike(ike)
                self._note_birth(ike, self._clock.now())
                self._tell_named(ike, IkeUp(SeenIke(ike.id, ike.initiator)))
            case IkeEnded(ike):
                self._forget_ike(ike)
                self._tell_named(ike, IkeDown(ike.id))
            case IkeRekeyed(old, new):
                born = self._forget_ike(old)
                self._note_ike(new)
                if born is not None:
                    self._note_birth(new, born)
                self._tell_named(new, IkeReplaced(old.id, new.id))
            case ChildEstablished(ike, child):
                self._child_up(ike, child)
            case ChildEnded(ike, child):
                self._count(ike, child)
                self._tell_named(ike, ChildDown(child.id))
            case ChildRekeyed(ike, old, new):  # by an admin's hand
                self._tell_named(ike, ChildDown(old.id))
                self._child_up(ike, new)
            case CharonSaid():
                self._heard(event)
            case EventUnread(reason):
                log.warning("event of charon not understood", extra=fields({"reason": reason}))
                for connection_id in self._connections:
                    self._tell(connection_id, EventMissed())
            case _:
                pass

    def _child_up(self, ike: IkeSa, child: ChildSa) -> None:
        connection = self._connection(ike.name)
        if connection is None:
            return
        self._end_children(connection, ike, [child])
        try:
            sas = self._read(connection, child)
        except (Refused, Unavailable):
            self._tell(connection.id, EventMissed())  # judged when the kernel can be asked
            return
        if child.keyed is not None and len(sas) < 2:
            # Deleted already, by the peer as a rule, or one of the two so far: no option was
            # ignored. charon's list tells.
            self._tell(connection.id, EventMissed())
            return
        seen = self._seen_child(connection, ike, child, sas)
        if seen is not None:
            if seen.ignored:
                log.error(
                    "CHILD_SA not as asked",
                    extra=fields({"child": child.name, "option": seen.ignored}),
                )
            self._tell(connection.id, ChildUp(seen))

    def _count(self, ike: IkeSa, child: ChildSa) -> None:
        """What a CHILD_SA carried stays in the sums when it is gone."""
        connection = self._connection(ike.name)
        if connection is None or child.keyed is None:
            return
        connection.made.pop((child.id, child.keyed.spi_in), None)
        slot = connection.slots.get(child.name)
        if slot is None:
            return
        tally = self._tallies.get(slot.child, Tally())
        for traffic, inbound in ((child.keyed.inbound, True), (child.keyed.outbound, False)):
            tally = tally.counting(traffic.volume, traffic.packets, inbound=inbound)
        self._tallies[slot.child] = tally

    def _heard(self, said: CharonSaid) -> None:
        connection = self._connection(said.ike_name or "")
        if connection is not None:
            connection.words.append(said.words.strip())

    # Time

    def deadline(self) -> Deadline | None:
        """When `tick` must be called at the latest."""
        return self._alarms.next()

    def tick(self) -> None:
        """Time has passed."""
        for connection_id in self._alarms.due(self._clock.now()):
            self._tell(connection_id, TimerFired())

    # Machines

    def work(self) -> bool:
        """Until nothing is left to do; whether there was anything."""
        worked = bool(self._queue)
        while self._queue:
            connection_id, event = self._queue.popleft()
            self._step(connection_id, event)
        return worked

    def _step(self, connection_id: ConnectionId, event: ike_peer.IkeEvent) -> None:
        connection = self._connections.get(connection_id)
        if connection is None:
            return  # the policy dropped it while this was queued
        now = self._clock.now()
        before = connection.state
        done = ike_peer.step(before, event, now, self._entropy.fraction())
        connection.state = done.state
        self._log_phases(before, done.state, now)
        self._alarms.put(connection_id, ike_peer.deadline(done.state))
        for action in done.actions:
            self._perform(connection, action)

    def _perform(self, connection: Connection, action: Action) -> None:
        match action:
            case LoadConnection(variant):
                self._load(connection, variant)
            case Initiate(child, slot):
                self._initiate(connection, child, slot)
            case ListSas():
                self._list_next.add(connection.id)
                self._list()
            case TerminateChild(ike_id, child_id):
                ref = self._ref(connection, ike_id)
                if ref is not None and self._ike is not None:
                    done = _logged("terminating a CHILD_SA of", connection.id.name)
                    self._ike.terminate_child(ref, child_id, done=done)
            case TerminateIke(ike_id):
                ref = self._ref(connection, ike_id)
                if ref is not None and self._ike is not None:
                    done = _logged("terminating", connection.id.name)
                    self._ike.terminate_ike(ref, done=done)
            case PinOutbound(child, spi):
                error = self._installer.pin_standing(self._child(child), spi)
                self._answer(connection, OutboundPinned(child, spi, error))
                if not error:
                    self._on_pinned(child)
            case BlockOutbound(child):
                self._installer.block(self._child(child))
            case RemoveStray(child, spi, inbound):
                sa_id = SaId(child.local if inbound else child.remote, spi)
                self._remove(child, sa_id, inbound)
            case ReadSaUsage(sas):
                self._answer(connection, UsageTold(tuple(self._usage(sas))))
            case _:
                raise Bug(f"nobody performs {action}")

    def _child(self, child_id: ChildId) -> Child:
        """A child that may have left the policy with the order that is performed."""
        known = self._children.get(child_id)
        if known is None:
            raise Bug(f"{child_id} is not known")
        return known

    def _answer(self, connection: Connection, event: ike_peer.IkeEvent) -> None:
        """Answers go first: the machine sees no other fact while an order of its own is open."""
        self._queue.appendleft((connection.id, event))

    def _tell(self, connection_id: ConnectionId, event: ike_peer.IkeEvent) -> None:
        self._queue.append((connection_id, event))

    def _tell_named(self, ike: IkeSa, event: ike_peer.IkeEvent) -> None:
        connection = self._connection(ike.name)
        if connection is not None:
            self._tell(connection.id, event)

    def _connection(self, name: str) -> Connection | None:
        connection_id = self._by_name.get(name)
        return None if connection_id is None else self._connections[connection_id]

    # What charon is told

    def _load(self, connection: Connection, variant: int) -> None:
        if self._ike is None or self._setup is None:
            raise Bug("charon is not ready")
        name = connection.id

        def done(error: TunsecError | None) -> None:
            self._later(name, LoadEnded(variant, "" if error is None else str(error)))

        try:
            wanted = ike_connection(
                connection.id,
                [flow.child for flow in connection.state.flows.values()],
                host=self._host,
                identities=self._identities,
                setup=self._setup,
                variant=variant,
            )
        except Refused as error:
            self._answer(connection, LoadEnded(variant, str(error)))
            return
        now_asked = {child.name: child for child in wanted.children}
        if connection.asked and connection.asked != now_asked:
            connection.asked_before.appendleft(connection.asked)
        if connection.asked_at is None or connection.asked != now_asked:
            connection.asked_at = self._clock.now()
        connection.asked = now_asked
        if connection.asked_since is None:
            connection.asked_since = connection.asked_at
        self._ike.load(wanted, done=done)

    def _initiate(self, connection: Connection, child: ChildId, slot: int) -> None:
        if self._ike is None:
            raise Bug("charon is not ready")
        name = next(
            name for name, one in connection.slots.items() if one == Slot(child, True, slot)
        )
        connection.words.clear()

        def done(error: TunsecError | None) -> None:
            fact = InitiateEnded(child, "" if error is None else str(error))
            self._later(connection.id, fact)

        self._ike.initiate(connection.id.name, name, done=done)

    def _later(self, connection_id: ConnectionId, event: ike_peer.IkeEvent) -> None:
        """An answer of charon has come."""
        self._tell(connection_id, event)
        self._wake()

    def _ref(self, connection: Connection, ike_id: int) -> IkeRef | None:
        known = connection.ikes.get(ike_id)
        return None if known is None else known[0].ref

    # charon's list

    def _list(self) -> None:
        """One list at a time, for all who ask."""
        if self._listing or not self._list_next or self._ike is None or self._setup is None:
            return
        asked, self._list_next = frozenset(self._list_next), set()
        # Dumped before charon is asked: what is added between the two is no stray then.
        try:
            kernel = self._kernel.sas()
        except (Refused, Unavailable) as error:
            for connection_id in asked:
                self._tell(connection_id, Listed(error=str(error)))
            self._wake()
            return
        self._listing = set(asked)
        asked_at = self._clock.now()

        def done(answer: Sequence[IkeSa] | TunsecError) -> None:
            if self._listing == asked:
                self._listing = set()
                self._take_list(asked, answer, kernel, asked_at)
                self._list()

        self._ike.sas(done=done)

    def _take_list(
        self,
        asked: frozenset[ConnectionId],
        answer: Sequence[IkeSa] | TunsecError,
        kernel: Mapping[SaId, Sa],
        asked_at: Instant,
    ) -> None:
        for connection_id, connection in self._connections.items():
            if connection_id not in asked:
                continue
            if isinstance(answer, TunsecError):
                self._tell(connection_id, Listed(error=str(answer)))
            else:
                mine = [ike for ike in answer if ike.name == connection_id.name]
                try:
                    self._tell(connection_id, self._listed(connection, mine, kernel, asked_at))
                except (Refused, Unavailable) as error:
                    self._tell(connection_id, Listed(error=str(error)))
        if not isinstance(answer, TunsecError):
            self._end_strangers(answer)
        self._wake()

    def _look_at_strangers(self) -> None:
        """A connection is gone, and its IKE_SAs end, unless they carry what the peer may send on:
        a CHILD_SA of which we have not heard yet. Once charon lists an IKE_SA, those that came with
        it are there too."""

        def done(answer: Sequence[IkeSa] | TunsecError) -> None:
            if not isinstance(answer, TunsecError):
                self._end_strangers(answer)

        if self._setup is not None and self._ike is not None:
            self._ike.sas(done=done)

    def _end_strangers(self, ikes: Sequence[IkeSa]) -> None:
        """IKE_SAs of connections of ours that are gone, and that carry nothing of the policy's."""
        for ike in ikes:
            if not self._is_stranger(ike) or self._ike is None:
                continue
            if not any(self._is_known(ike, child) for child in ike.children):
                self._ike.terminate_ike(ike.ref, done=_logged("terminating", ike.name))

    def _is_stranger(self, ike: IkeSa) -> bool:
        """Whether an IKE_SA is of a connection of ours that is gone."""
        return ike.name.startswith(NAME_PREFIX) and ike.name not in self._by_name

    def _end_children(
        self, connection: Connection, ike: IkeSa, children: Iterable[ChildSa]
    ) -> None:
        """CHILD_SAs of flows that the policy no longer has."""
        strangers = [child for child in children if child.name not in connection.slots]
        for child in strangers:
            if child.keyed and not self._is_known(ike, child) and self._ike is not None:
                done = _logged("terminating a CHILD_SA of", connection.id.name)
                self._ike.terminate_child(ike.ref, child.id, done=done)

    def _is_known(self, ike: IkeSa, child: ChildSa) -> bool:
        """Whether a CHILD_SA can be one of a flow of the policy, whoever keys that by now."""
        mine = [one for one in self._known if _connection_of(one.id).name == ike.name]
        return child.name in slots(mine, self._host)

    def _listed(
        self,
        connection: Connection,
        ikes: Sequence[IkeSa],
        kernel: Mapping[SaId, Sa],
        asked_at: Instant,
    ) -> Listed:
        # An event that overtook the list counts more: it told of an IKE_SA that the list lacks.
        connection.ikes = {
            ike_id: told for ike_id, told in connection.ikes.items() if told[1] >= asked_at
        }
        standing = [ike for ike in ikes if ike.state in _STANDING]
        for ike in standing:
            self._note_ike(ike)
            self._end_children(connection, ike, ike.children)
        self._forget_made(connection, ikes)
        found = [
            self._seen_child(connection, ike, child, self._read(connection, child))
            for ike in standing
            for child in ike.children
            if child.state not in _ENDING
        ]
        busy = any(
            ike.state in _BEGINNING
            or ike.tasks
            or any(child.keyed is None for child in ike.children)
            for ike in ikes
        )
        return Listed(
            tuple(
                SeenIke(ike.id, ike.initiator, _at_most(ike.established_for)) for ike in standing
            ),
            tuple(seen for seen in found if seen is not None),
            tuple(self._strays(connection, ikes, kernel)),
            busy=busy,
            words="; ".join(connection.words),
        )

    def _forget_made(self, connection: Connection, ikes: Sequence[IkeSa]) -> None:
        """CHILD_SAs that neither charon nor the machine has any more."""
        children = [child for ike in ikes for child in ike.children]
        known = {(child.id, child.keyed.spi_in) for child in children if child.keyed}
        for flow in connection.state.flows.values():
            known.update((one.id, one.spi_in) for one in flow.held)
        connection.made = {name: one for name, one in connection.made.items() if name in known}

    def _strays(
        self, connection: Connection, ikes: Sequence[IkeSa], kernel: Mapping[SaId, Sa]
    ) -> Iterable[Stray]:
        """SAs of this connection's flows that charon does not keep, nor directory keying."""
        by_reqid = {flow.child.reqid: flow.child.id for flow in connection.state.flows.values()}
        for sa_id in orphaned_sas(kernel.values(), ikes, reqids=by_reqid.keys()):
            sa = kernel[sa_id]
            child = by_reqid[sa.reqid]
            ends = (child.local, child.remote)
            if sa_id.dst in ends and sa_id.mark is None and not self._is_directorys(sa_id):
                yield Stray(child, sa_id.spi, sa_id.dst == child.local, sa.aead)

    def _seen_child(
        self,
        connection: Connection,
        ike: IkeSa,
        child: ChildSa,
        kernel: Mapping[SaId, Sa],
    ) -> SeenChild | None:
        """A CHILD_SA as the machine sees it; None for one that is not of our configuration."""
        slot = connection.slots.get(child.name)
        keyed = child.keyed
        if slot is None or keyed is None or slot.child not in self._children:
            return None
        name = (child.id, keyed.spi_in)
        # A CHILD_SA goes by what was asked when it was made; what is asked now, its successor has.
        now_asked = connection.asked.get(child.name)
        asked: IkeChild | None = connection.made.get(name, now_asked)
        if asked is None:
            ignored = ""  # of an earlier life: it is held against the kernel when it is loaded
        else:
            asked, found = self._held_against(connection, asked, child, kernel)
            ignored = "; ".join(map(str, found))
            if not ignored:
                connection.made[name] = asked
            elif all(one.leeway is Leeway.LIFE for one in found) and self._is_inherited(
                connection, ike
            ):
                asked, ignored = None, ""
        return SeenChild(
            ike.id,
            child.id,
            slot.child,
            slot.own,
            slot.slot,
            keyed.spi_in,
            keyed.spi_out,
            keyed.aead,
            ignored,
            float(keyed.installed_for),
            outdated=asked != now_asked,
            stale=bool(ignored) and not self._is_since(connection, ike),
        )

    def _held_against(
        self,
        connection: Connection,
        asked: IkeChild,
        child: ChildSa,
        kernel: Mapping[SaId, Sa],
    ) -> tuple[IkeChild, Sequence[Ignored]]:
        """What a CHILD_SA was asked to be, and what of it is not so.

        The policy may have changed while charons spoke of it, here before there.
        """
        local, remote = connection.id.local, connection.id.remote
        found = ignored_options(asked, child, kernel, local=local, remote=remote)
        if all(one.leeway is not Leeway.NONE for one in found):
            for before in connection.asked_before if found else ():
                former = before.get(child.name)
                if former is not None and not ignored_options(
                    former, child, kernel, local=local, remote=remote
                ):
                    return former, ()
        return asked, found

    def _is_inherited(self, connection: Connection, ike: IkeSa) -> bool:
        """Whether an IKE_SA is of an earlier life of the daemon, which may have had another policy:
        charon goes by that one for all that is made over it."""
        since = connection.asked_since
        return since is None or (ike.established_for or 0) > self._clock.now() - since

    def _is_since(self, connection: Connection, ike: IkeSa) -> bool:
        """Whether an IKE_SA has certainly come after charon was given what it has now."""
        asked_at, born = connection.asked_at, connection.born.get(ike.id)
        return asked_at is not None and born is not None and born >= asked_at

    def _read(self, connection: Connection, child: ChildSa) -> dict[SaId, Sa]:
        """The two SAs of a CHILD_SA, as the kernel holds them; raises Refused or Unavailable."""
        if child.keyed is None:
            return {}
        ids = (
            SaId(connection.id.local, child.keyed.spi_in),
            SaId(connection.id.remote, child.keyed.spi_out),
        )
        return {sa_id: sa for sa_id in ids if (sa := self._kernel.sa(sa_id)) is not None}

    def _usage(self, sas: Iterable[tuple[ChildId, Spi, bool]]) -> Iterable[SaUsage]:
        for child_id, spi, inbound in sas:
            child = self._child(child_id)
            sa_id = inbound_id(child, spi) if inbound else outbound_id(child, spi)
            try:
                sa = self._kernel.sa(sa_id)
            except (Refused, Unavailable):
                continue  # it is looked at again
            if sa is None:
                yield SaUsage(child_id, spi, inbound, None)
            else:
                usage = sa.usage
                yield SaUsage(child_id, spi, inbound, usage.usage_packets, usage.usage_bytes)

    def _note_ike(self, ike: IkeSa) -> None:
        connection = self._connection(ike.name)
        if connection is not None:
            connection.ikes[ike.id] = (ike, self._clock.now())

    def _note_birth(self, ike: IkeSa, at: Instant) -> None:
        connection = self._connection(ike.name)
        if connection is not None:
            connection.born[ike.id] = at

    def _forget_ike(self, ike: IkeSa) -> Instant | None:
        """When it was made, if that is known."""
        connection = self._connection(ike.name)
        if connection is None:
            return None
        connection.ikes.pop(ike.id, None)
        return connection.born.pop(ike.id, None)

    def _log_phases(self, before: IkeState, after: IkeState, now: Instant) -> None:
        for child, flow in after.flows.items():
            old = before.flows.get(child)
            was = old.phase(now) if old is not None else "NEW"
            phase = flow.phase(now)
            if was != phase:
                reason = ike_peer.blocked_reason(after, flow, now)
                log_transition(log, child, was=was, phase=phase, reason=reason)
            again = old is not None and old.failures == flow.failures
            if flow.reason and not again and flow.failures.bit_count() == 1:  # 1st, 2nd, 4th, ...
                told = {"peer": child.peer, "flow": child.flow, "reason": flow.reason}
                log.warning("no CHILD_SA", extra=fields(told))


def _at_most(seconds: int | None) -> float:
    """How old something may be of which charon tells the whole seconds: proof of identity that may
    be too old is too old."""
    return 0.0 if seconds is None else seconds + 1.0


def _connection_of(child: ChildId) -> ConnectionId:
    """One IKE_SA per pair of addresses: transport mode knows no other."""
    return ConnectionId(child.peer, child.local, child.remote)


def _logged(what: str, name: str) -> Callable[[TunsecError | None], None]:
    """An answer of which nothing follows."""

    def done(error: TunsecError | None) -> None:
        if error is not None:
            log.info(f"{what} {name}", extra=fields({"error": error}))

    return done
