"""The vip machine: one service address on one of its owners (law 8).

::

    ABSENT --the address comes--> CLAIMING --our claim landed--> OWNED --a higher token--> FENCED
    CLAIMING, OWNED --the address goes--> LEAVING --given up--> ABSENT
    FENCED --the address goes--> ABSENT
    FENCED, OWNED --another gave it up above us--> CLAIMING

Each arrival of the address is claimed until one claim has landed, above all that there are, and
then never again: of two hosts that both have the address the later claim wins, and they do not
take it from each other by turns. Only an OWNED address gets SAs here.

One claim is under way at a time. What fails is tried again with backoff, for ever; its outcome may
be unknown, and is then read in the directory like any claim.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.facts import TimerFired
from tunsec.machines.orders import Action
from tunsec.machines.outbox import DirectoryBack
from tunsec.machines.table import Table
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.event import Event
from tunsec.model.names import HostName
from tunsec.model.record import Claim

LONGEST_RETRY: Final = Seconds(5.0)
AT_ONCE: Final = 4
"""Numbers that were taken already are counted up this often without waiting: others claim too."""


class VipPhase(StrEnum):
    """How an owner stands to a service address."""

    ABSENT = "ABSENT"
    CLAIMING = "CLAIMING"
    OWNED = "OWNED"
    FENCED = "FENCED"
    LEAVING = "LEAVING"


class VipFact(StrEnum):
    """What can happen to a service address."""

    ARRIVED = "the address has come to this host"
    LEFT = "the address has gone from this host"
    LANDED = "our claim is the newest"
    OUTDONE = "another's claim is the newest"
    FREED = "the newest claim gives it up, or there is nothing to give up"


VIP: Final = Table(
    "service address",
    VipPhase.ABSENT,
    {
        (VipPhase.ABSENT, VipFact.ARRIVED): VipPhase.CLAIMING,
        # A claim of an earlier life, or one whose answer was lost: the address is not here.
        (VipPhase.ABSENT, VipFact.LANDED): VipPhase.LEAVING,
        (VipPhase.CLAIMING, VipFact.LANDED): VipPhase.OWNED,
        (VipPhase.CLAIMING, VipFact.LEFT): VipPhase.LEAVING,
        (VipPhase.OWNED, VipFact.OUTDONE): VipPhase.FENCED,
        (VipPhase.OWNED, VipFact.FREED): VipPhase.CLAIMING,
        (VipPhase.OWNED, VipFact.LEFT): VipPhase.LEAVING,
        (VipPhase.FENCED, VipFact.FREED): VipPhase.CLAIMING,
        (VipPhase.FENCED, VipFact.LEFT): VipPhase.ABSENT,
        (VipPhase.FENCED, VipFact.LANDED): VipPhase.OWNED,
        (VipPhase.LEAVING, VipFact.ARRIVED): VipPhase.CLAIMING,
        (VipPhase.LEAVING, VipFact.OUTDONE): VipPhase.ABSENT,
        (VipPhase.LEAVING, VipFact.FREED): VipPhase.ABSENT,
    },
    {
        (VipPhase.ABSENT, VipFact.OUTDONE): "it moves between others",
        (VipPhase.ABSENT, VipFact.FREED): "it leaves another",
        (VipPhase.CLAIMING, VipFact.OUTDONE): "the next number goes above it",
        (VipPhase.CLAIMING, VipFact.FREED): "the next number goes above it",
        (VipPhase.OWNED, VipFact.LANDED): "the directory shows it again, or it was renewed",
        (VipPhase.FENCED, VipFact.OUTDONE): "it moves between others",
        (VipPhase.LEAVING, VipFact.LANDED): "the claim was on its way when the address went",
    },
)


@dataclass(frozen=True, slots=True)
class AddressArrived(Event):
    """The address is on this host now."""


@dataclass(frozen=True, slots=True)
class AddressLeft(Event):
    """The address is on this host no more."""


@dataclass(frozen=True, slots=True)
class ClaimBelieved(Event):
    """The newest claim on the service, from the directory."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class ClaimLanded(Event):
    """Our claim is in the directory, and no higher one was."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class ClaimTaken(Event):
    """Somebody was faster: this number, ours or a higher one, is in the directory."""

    token: int


@dataclass(frozen=True, slots=True)
class ClaimFailed(Event):
    """The directory could not be asked; our claim may be there all the same."""

    error: str


@dataclass(frozen=True, slots=True)
class ClaimOutdated(Event):
    """Our claim was signed under another certificate than the present one."""


@dataclass(frozen=True, slots=True)
class MakeClaim(Action):
    """Sign a claim by this number, and have the directory take it.

    ClaimLanded, ClaimTaken or ClaimFailed answers.
    """

    service: str
    token: int
    held: bool


VipEvent = (
    TimerFired
    | DirectoryBack
    | AddressArrived
    | AddressLeft
    | ClaimBelieved
    | ClaimLanded
    | ClaimTaken
    | ClaimFailed
    | ClaimOutdated
)


@dataclass(frozen=True, slots=True)
class VipState:
    """What this host, an owner, knows of one service address."""

    service: str
    host: HostName
    phase: VipPhase = VIP.first
    newest: Claim | None = None
    taken: int = 0
    """The highest number that the directory said is taken."""
    under_way: MakeClaim | None = None
    outdated: bool = False
    failures: int = 0
    retry_at: Instant | None = None
    error: str = ""
    """Why the last claim could not be made; empty when it could."""

    @property
    def present(self) -> bool:
        """Whether the address is on this host."""
        return self.phase in (VipPhase.CLAIMING, VipPhase.OWNED, VipPhase.FENCED)

    @property
    def served(self) -> bool:
        """Whether the address is here and its arrival has had its claim."""
        return self.phase in (VipPhase.OWNED, VipPhase.FENCED)

    @property
    def ours(self) -> bool:
        """Whether the newest claim says that this host holds it."""
        return self.newest is not None and self.newest.held and self.newest.owner == self.host


@dataclass(frozen=True, slots=True)
class VipStep:
    """A new state and what must be done."""

    state: VipState
    actions: tuple[MakeClaim, ...]


def begin(
    service: str, host: HostName, *, newest: Claim | None, present: bool, served: bool
) -> VipState:
    """Where a daemon begins: an address that was served before has not arrived anew."""
    state = VipState(service, host, newest=newest)
    if present:
        held = newest is not None and newest.held
        if not (served and held):
            return replace(state, phase=VipPhase.CLAIMING)
        return replace(state, phase=VipPhase.OWNED if state.ours else VipPhase.FENCED)
    return replace(state, phase=VipPhase.LEAVING) if state.ours else state


def step(state: VipState, event: VipEvent, now: Instant, fraction: float) -> VipStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    return _ask(_take(state, event, now, fraction))


def deadline(state: VipState) -> Deadline | None:
    """When a claim that failed is tried again."""
    if state.retry_at is None:
        return None
    return Deadline(state.retry_at, "a claim is tried again")


def _take(state: VipState, event: VipEvent, now: Instant, fraction: float) -> VipState:
    match event:
        case TimerFired():
            late = state.retry_at is not None and state.retry_at <= now
            return replace(state, retry_at=None) if late else state
        case DirectoryBack():
            return replace(state, retry_at=None)
        case AddressArrived():
            return _to(state, VipFact.ARRIVED)
        case AddressLeft():
            state = _to(state, VipFact.LEFT)
            idle = state.under_way is None and not state.ours
            return _to(state, VipFact.FREED) if idle else state
        case ClaimBelieved(claim):
            return _believe(state, claim)
        case ClaimLanded(claim):
            return _landed(replace(state, under_way=None, outdated=False), claim)
        case ClaimTaken(token):
            return _taken(replace(state, under_way=None), token, now, fraction)
        case ClaimFailed(error):
            return _later(replace(state, under_way=None, error=error), now, fraction)
        case ClaimOutdated():
            return replace(state, outdated=state.ours)


def _to(state: VipState, fact: VipFact) -> VipState:
    phase = VIP.next(state.phase, fact)
    if phase is state.phase:
        return state
    # What has failed was for another purpose.
    return replace(state, phase=phase, failures=0, retry_at=None, error="")


def _believe(state: VipState, claim: Claim) -> VipState:
    if state.newest is not None and claim.token <= state.newest.token:
        return state
    state = replace(state, newest=claim)
    if not claim.held:
        return _to(state, VipFact.FREED)
    return _to(state, VipFact.LANDED if state.ours else VipFact.OUTDONE)


def _landed(state: VipState, claim: Claim) -> VipState:
    newest = state.newest
    if newest is None or claim.token >= newest.token:
        return _believe(state, claim)
    # A higher one was read before the answer came: the arrival has had its claim all the same.
    if not claim.held:
        return _to(state, VipFact.FREED) if state.phase is VipPhase.LEAVING else state
    state = _to(state, VipFact.LANDED)
    return _to(state, VipFact.OUTDONE if newest.held else VipFact.FREED)


def _taken(state: VipState, token: int, now: Instant, fraction: float) -> VipState:
    state = replace(state, taken=max(state.taken, token), error="")
    if state.phase is VipPhase.CLAIMING:
        if state.failures >= AT_ONCE:
            return _later(state, now, fraction)
        return replace(state, failures=state.failures + 1)
    # Whoever took the number has claimed above us: there is nothing left to give up or to renew.
    state = replace(state, outdated=False)
    return _to(state, VipFact.OUTDONE) if state.phase is VipPhase.LEAVING else state


def _later(state: VipState, now: Instant, fraction: float) -> VipState:
    failures = state.failures + 1
    span = min(LONGEST_RETRY, backoff(failures, fraction))
    return replace(state, failures=failures, retry_at=Instant(now + span))


def _ask(state: VipState) -> VipStep:
    """What must be claimed or given up now, by the next number."""
    wanted = state.phase in (VipPhase.CLAIMING, VipPhase.LEAVING) or (
        state.phase is VipPhase.OWNED and state.outdated
    )
    if not wanted or state.under_way is not None or state.retry_at is not None:
        return VipStep(state, ())
    newest = 0 if state.newest is None else state.newest.token
    order = MakeClaim(
        state.service, max(newest, state.taken) + 1, held=state.phase is not VipPhase.LEAVING
    )
    return VipStep(replace(state, under_way=order), (order,))
