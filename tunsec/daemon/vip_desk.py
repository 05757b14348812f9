"""Everything about service addresses on this host: who holds them by the claims that are believed,
and the machine of each one that this host may own. Synchronous like the engine, which feeds it.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tunsec.daemon.alarm import Alarms
from tunsec.daemon.journal import fields
from tunsec.daemon.scope import Scope
from tunsec.keying.chain import Trust
from tunsec.keying.claims import ClaimBook, KnownClaims
from tunsec.keying.identity import Identity
from tunsec.keying.paths import ClaimPath, parse_path
from tunsec.keying.refusals import RecordRefused
from tunsec.machines import vip
from tunsec.machines.facts import TimerFired
from tunsec.machines.outbox import DirectoryBack
from tunsec.machines.vip import MakeClaim, VipPhase, VipState
from tunsec.model.clock import Deadline
from tunsec.model.names import Address, Boot, HostName
from tunsec.model.record import Claim
from tunsec.policy.desired import Holders
from tunsec.policy.intent import ServiceAddress
from tunsec.ports import Clock, Directory, Entropy, Record

UNHEARD: Final = 1024
"""Services whose newest refused claim is kept, for the policy or the roots that make it good."""

log = logging.getLogger("tunsec.services")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a service address stands, as this host sees it."""

    service: ServiceAddress
    claim: Claim | None
    """The newest that is believed."""
    own: VipState | None
    """None where this host is no owner."""
    here: bool
    """Whether the address is on this host."""


class VipDesk:
    """The part of the engine that claims service addresses and hears who holds them."""

    def __init__(
        self,
        *,
        host: HostName,
        boot: Boot,
        book: ClaimBook,
        served: Collection[str],
        directory: Directory,
        clock: Clock,
        entropy: Entropy,
        refuse: Callable[[RecordRefused, Record], None],
        wake: Callable[[], None],
    ) -> None:
        """`served` are services that an earlier life had claimed; `wake` has `work` called soon."""
        self._host = host
        self._boot = boot
        self._book = book
        self._served = set(served)
        self._directory = directory
        self._clock = clock
        self._entropy = entropy
        self._refuse = refuse
        self._wake = wake
        self._services: tuple[ServiceAddress, ...] = ()
        self._addresses: frozenset[Address] = frozenset()
        self._owned: dict[str, VipState] = {}
        self._unheard: dict[str, tuple[int, Record]] = {}
        self._alarms: Alarms[str] = Alarms()
        self._queue: deque[tuple[str, vip.VipEvent]] = deque()

    # What the engine asks

    def holders(self) -> Holders:
        """Who may have SAs over service addresses: whose claim is the newest, and on this host only
        while the address is here too."""
        found: dict[str, HostName] = {}
        for service in self._services:
            claim = self._book.newest(service.name)
            if claim is None or not claim.held:
                continue
            own = self._owned.get(service.name)
            if claim.owner != self._host or (own is not None and own.phase is VipPhase.OWNED):
                found[service.name] = claim.owner
        return found

    def standings(self) -> Iterator[Standing]:
        """Every service address of the flows of this host."""
        for service in self._services:
            yield Standing(
                service,
                self._book.newest(service.name),
                self._owned.get(service.name),
                here=self._is_here(service),
            )

    def remember(self) -> KnownClaims:
        """What must outlive the daemon."""
        return self._book.remember(frozenset(self._served))

    @property
    def busy(self) -> bool:
        """Whether a claim is wanted or under way."""
        return any(
            state.under_way is not None or state.retry_at is not None
            for state in self._owned.values()
        )

    def deadline(self) -> Deadline | None:
        """When `tick` must be called at the latest."""
        return self._alarms.next()

    # Facts

    def enter(self, scope: Scope, addresses: frozenset[Address]) -> None:
        """Another policy, or the first, and the addresses that are on this host."""
        intent = scope.intent
        self._services = scope.services
        self._book.renew_owners(
            {
                service.name: {owner: intent.host(owner).identity for owner in service.owners}
                for service in scope.services
                if intent is not None
            }
        )
        mine = {one.name: one for one in scope.services if self._host in one.owners}
        for name in [name for name in self._owned if name not in mine]:
            del self._owned[name]
            self._alarms.put(name, None)
        self._hear_again()
        self.look(addresses)
        for name, service in mine.items():
            if name not in self._owned:
                self._owned[name] = vip.begin(
                    name,
                    self._host,
                    newest=self._book.newest(name),
                    present=self._is_here(service),
                    served=name in self._served,
                )
                self._tell(name, TimerFired())
        self.work()

    def look(self, addresses: frozenset[Address]) -> None:
        """Addresses that are on this host now."""
        self._addresses = addresses
        for service in self._services:
            state = self._owned.get(service.name)
            if state is None or state.present == self._is_here(service):
                continue
            self._tell(service.name, vip.AddressLeft() if state.present else vip.AddressArrived())
            self.work()

    def take(self, records: Sequence[Record]) -> None:
        """Claims among records, the lowest tokens first."""
        found: list[tuple[ClaimPath, Record]] = []
        for record in records:
            path = parse_path(record.path)
            if isinstance(path, ClaimPath):
                found.append((path, record))
        for path, record in sorted(found, key=lambda one: one[0].token):
            self._take_one(path, record)
        self.work()

    def renew_identity(self, identity: Identity, trust: Trust, *, renewed: bool) -> None:
        """Another certificate, other roots or lists. Claims signed under a certificate of before
        are renewed: a host that reads them later must be able to believe them."""
        self._book.renew_identity(identity, trust)
        self._hear_again()
        if renewed:
            for name in self._owned:
                self._tell(name, vip.ClaimOutdated())
        self.work()

    def on_directory_back(self) -> None:
        """The directory can be reached again."""
        for name in self._owned:
            self._tell(name, DirectoryBack())
        self.work()

    def tick(self) -> None:
        """Time has passed."""
        for name in self._alarms.due(self._clock.now()):
            self._tell(name, TimerFired())
        self.work()

    # Inside

    def _is_here(self, service: ServiceAddress) -> bool:
        """Addresses of one service move together; the first that comes brings it."""
        return not self._addresses.isdisjoint(service.addresses)

    def _take_one(self, path: ClaimPath, record: Record) -> None:
        try:
            claim = self._book.accept(path, record.body, wall_now=self._clock.wall())
        except RecordRefused as refused:
            self._refuse(refused, record)
            kept = self._unheard.get(path.service)
            if path.token >= (kept[0] if kept else 0) and (kept or len(self._unheard) < UNHEARD):
                self._unheard[path.service] = (path.token, record)
            return
        self._tell(claim.service, vip.ClaimBelieved(claim))

    def _hear_again(self) -> None:
        """Claims that were refused may be good by now."""
        unheard, self._unheard = self._unheard, {}
        self.take([record for _, record in unheard.values()])

    def _tell(self, service: str, event: vip.VipEvent) -> None:
        self._queue.append((service, event))

    def work(self) -> None:
        """Until the queue is empty: step the machine, perform what it orders."""
        while self._queue:
            name, event = self._queue.popleft()
            before = self._owned.get(name)
            if before is None:
                continue  # another host's, or no longer ours
            done = vip.step(before, event, self._clock.now(), self._entropy.fraction())
            self._owned[name] = done.state
            self._alarms.put(name, vip.deadline(done.state))
            self._note(before, done.state)
            for order in done.actions:
                self._perform(order)

    def _perform(self, order: MakeClaim) -> None:
        claim = Claim(order.service, self._host, order.token, self._boot, order.held)
        try:
            body = self._book.sign(claim, wall_now=self._clock.wall())
        except RecordRefused as refused:
            self._tell(order.service, vip.ClaimFailed(str(refused)))
            return
        self._directory.claim(
            order.service, order.token, body, done=lambda answer: self._answered(claim, answer)
        )

    def _answered(self, claim: Claim, answer: int | Exception) -> None:
        if isinstance(answer, Exception):
            self._tell(claim.service, vip.ClaimFailed(str(answer)))
        elif answer:
            self._tell(claim.service, vip.ClaimTaken(answer))
        else:
            with suppress(RecordRefused):  # a higher one was read before this answer came
                self._book.landed(claim)
            self._tell(claim.service, vip.ClaimLanded(claim))
        self.work()
        self._wake()

    def _note(self, before: VipState, after: VipState) -> None:
        """What outlives the daemon, and one line per transition."""
        if after.served:
            self._served.add(after.service)
        else:
            self._served.discard(after.service)
        if before.phase is not after.phase:
            told = {"service": after.service, "token": after.newest.token if after.newest else 0}
            log.info(f"{before.phase} -> {after.phase}", extra=fields(told))
        if after.error and after.error != before.error:
            log.warning(
                "service address not claimed",
                extra=fields({"service": after.service, "error": after.error}),
            )


def warnings(standings: Iterable[Standing]) -> Iterator[str]:
    """What an admin must know of service addresses."""
    for one in standings:
        name = one.service.name
        if one.own is None:
            if one.here:
                yield (
                    f"service address {name} is on this host, which is not among its owners: it "
                    "is not protected here"
                )
        elif one.own.phase is VipPhase.FENCED and one.claim is not None:
            yield (
                f"service address {name} is on this host and {one.claim.owner} holds it by token "
                f"{one.claim.token}: take it away from one of them"
            )
        elif one.own.error:
            yield f"service address {name} cannot be claimed: {one.own.error}"
