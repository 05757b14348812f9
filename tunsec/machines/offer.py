"""The offer machine: this host's directory epochs.

::

    PUBLISHING --in the directory--> CURRENT --successor published--> SUPERSEDED --> FORGOTTEN

At most three private keys exist: next (PUBLISHING), current, previous (SUPERSEDED). A superseded
one is kept only as long as a confirmation under it may be on its way. When nothing is keyed by
directory any more all of them are wiped at once, and the offer is withdrawn.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.facts import OfferMade, OfferPublished, RolloverWanted, TimerFired
from tunsec.machines.orders import Action, ForgetOffer, MakeOffer, PublishOffer, WithdrawOffer
from tunsec.machines.table import Table
from tunsec.model.clock import Deadline, Instant, Seconds
from tunsec.model.event import Event
from tunsec.model.names import OfferSeq

LINGER: Final = Seconds(60.0)
"""Longest stay of a superseded private key."""
MIN_INTERVAL: Final = Seconds(0.25)
"""Least span between two offers, however many reasons there are."""


class OfferPhase(StrEnum):
    """Where an offer is in its life."""

    PUBLISHING = "PUBLISHING"
    CURRENT = "CURRENT"
    SUPERSEDED = "SUPERSEDED"
    FORGOTTEN = "FORGOTTEN"


class OfferFact(StrEnum):
    """What can happen to an offer."""

    PUBLISHED = "it is in the directory"
    SUCCEEDED = "its successor is in the directory"
    REPLACED = "another one is made"
    LINGERED = "no confirmation under it can be on its way"
    ENDED = "nothing is keyed by directory any more"


OFFER: Final = Table(
    "offer",
    OfferPhase.PUBLISHING,
    {
        (OfferPhase.PUBLISHING, OfferFact.PUBLISHED): OfferPhase.CURRENT,
        (OfferPhase.PUBLISHING, OfferFact.REPLACED): OfferPhase.FORGOTTEN,
        (OfferPhase.CURRENT, OfferFact.SUCCEEDED): OfferPhase.SUPERSEDED,
        # At most one lingers: three private keys are enough.
        (OfferPhase.SUPERSEDED, OfferFact.SUCCEEDED): OfferPhase.FORGOTTEN,
        (OfferPhase.SUPERSEDED, OfferFact.LINGERED): OfferPhase.FORGOTTEN,
        (OfferPhase.PUBLISHING, OfferFact.ENDED): OfferPhase.FORGOTTEN,
        (OfferPhase.CURRENT, OfferFact.ENDED): OfferPhase.FORGOTTEN,
        (OfferPhase.SUPERSEDED, OfferFact.ENDED): OfferPhase.FORGOTTEN,
    },
    {
        (OfferPhase.CURRENT, OfferFact.REPLACED): "peers use it until the new one is published",
        (OfferPhase.SUPERSEDED, OfferFact.REPLACED): "it lingers as long as before",
    },
)


@dataclass(frozen=True, slots=True)
class RolloverRule:
    """When offers are replaced: the shortest `after` of the flows that this host keys."""

    after: Seconds
    jitter: float
    lifetime: Seconds
    """Validity of an offer, by wall clock."""


@dataclass(frozen=True, slots=True)
class RuleChanged(Event):
    """The policy sets, or changes, the rollover rule."""

    rule: RolloverRule


@dataclass(frozen=True, slots=True)
class RuleEnded(Event):
    """Nothing here is keyed by directory any more."""


@dataclass(frozen=True, slots=True)
class OfferRefused(Event):
    """No offer could be made: the own certificate does not hold."""

    reason: str


@dataclass(frozen=True, slots=True)
class OwnOffer:
    """One offer of this host."""

    seq: OfferSeq
    phase: OfferPhase
    made_at: Instant
    forget_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class OffersState:
    """All offers whose private keys exist, oldest first."""

    rule: RolloverRule | None = None
    offers: tuple[OwnOffer, ...] = ()
    rollover_at: Instant | None = None
    making: bool = False
    rollovers: int = 0
    failures: int = 0

    @property
    def current(self) -> OwnOffer | None:
        """The offer that peers are to use."""
        return next((own for own in self.offers if own.phase is OfferPhase.CURRENT), None)

    @property
    def holds(self) -> frozenset[OfferSeq]:
        """Offers whose private keys exist."""
        return frozenset(own.seq for own in self.offers)


OfferEvent = (
    RuleChanged
    | RuleEnded
    | OfferMade
    | OfferRefused
    | OfferPublished
    | RolloverWanted
    | TimerFired
)


@dataclass(frozen=True, slots=True)
class OffersStep:
    """A new state and what must be done."""

    state: OffersState
    actions: tuple[Action, ...]


def step(state: OffersState, event: OfferEvent, now: Instant, fraction: float) -> OffersStep:
    """One fact in, orders out. `fraction` in [0, 1) is dice for jitter."""
    match event:
        case RuleChanged(rule):
            return _rule_changed(state, rule, now, fraction)
        case RuleEnded():
            return _rule_ended(state)
        case OfferMade(seq):
            return _made(state, seq, now, fraction)
        case OfferRefused():
            return OffersStep(_refused(state, now, fraction), ())
        case OfferPublished(seq):
            return _published(state, seq, now)
        case RolloverWanted(reason):
            return _rollover_wanted(state, reason, now)
        case TimerFired():
            return _timer(state, now)


def deadline(state: OffersState) -> Deadline | None:
    """The next rollover or wipe."""
    waiting = [
        Deadline(own.forget_at, "superseded offer is wiped")
        for own in state.offers
        if own.forget_at is not None
    ]
    if state.rollover_at is not None:
        waiting.append(Deadline(state.rollover_at, "rollover"))
    return min(waiting, default=None)


def _told(
    offers: Iterable[OwnOffer], fact: OfferFact
) -> tuple[tuple[OwnOffer, ...], tuple[ForgetOffer, ...]]:
    """What is left of offers after a fact, and orders to wipe the private keys of the others."""
    after = [replace(own, phase=OFFER.next(own.phase, fact)) for own in offers]
    kept = tuple(own for own in after if own.phase is not OfferPhase.FORGOTTEN)
    forgotten = (own for own in after if own.phase is OfferPhase.FORGOTTEN)
    return kept, tuple(ForgetOffer(own.seq) for own in forgotten)


def _rollover_at(rule: RolloverRule, now: Instant, fraction: float) -> Instant:
    return Instant(now + rule.after * (1.0 - rule.jitter * fraction))


def _make(state: OffersState, reason: str) -> OffersStep:
    if state.rule is None or state.making:
        return OffersStep(state, ())
    return OffersStep(
        replace(state, making=True, rollover_at=None), (MakeOffer(state.rule.lifetime, reason),)
    )


def _rule_changed(
    state: OffersState, rule: RolloverRule, now: Instant, fraction: float
) -> OffersStep:
    before = state.rule
    state = replace(state, rule=rule)
    if not state.offers:
        return _make(state, "start")
    if before is not None and before.after != rule.after:
        state = replace(state, rollover_at=_rollover_at(rule, now, fraction))
    return OffersStep(state, ())


def _rule_ended(state: OffersState) -> OffersStep:
    if state.rule is None:
        return OffersStep(state, ())
    _, forget = _told(state.offers, OfferFact.ENDED)
    # One that is being made is still answered, and is forgotten then.
    ended = OffersState(making=state.making, rollovers=state.rollovers)
    return OffersStep(ended, (WithdrawOffer(), *forget))


def _refused(state: OffersState, now: Instant, fraction: float) -> OffersState:
    state = replace(state, making=False)
    if state.rule is None:
        return state
    failures = state.failures + 1
    retry_at = Instant(now + backoff(failures, fraction))
    return replace(state, failures=failures, rollover_at=retry_at)


def _made(state: OffersState, seq: OfferSeq, now: Instant, fraction: float) -> OffersStep:
    """A new offer replaces one that never reached the directory."""
    if state.rule is None:
        return OffersStep(replace(state, making=False), (ForgetOffer(seq),))
    kept, forget = _told(state.offers, OfferFact.REPLACED)
    state = replace(
        state,
        making=False,
        failures=0,
        offers=(*kept, OwnOffer(seq, OFFER.first, now)),
        rollover_at=_rollover_at(state.rule, now, fraction),
    )
    return OffersStep(state, (*forget, PublishOffer(seq)))


def _published(state: OffersState, seq: OfferSeq, now: Instant) -> OffersStep:
    if all(own.seq != seq or own.phase is not OfferPhase.PUBLISHING for own in state.offers):
        return OffersStep(state, ())  # replaced while it was being written
    linger = LINGER if state.rule is None else Seconds(min(LINGER, state.rule.after))
    older, forget = _told((own for own in state.offers if own.seq != seq), OfferFact.SUCCEEDED)
    newest, _ = _told((own for own in state.offers if own.seq == seq), OfferFact.PUBLISHED)
    lingering = (replace(own, forget_at=Instant(now + linger)) for own in older)
    rollovers = state.rollovers + (1 if len(state.offers) > 1 else 0)
    state = replace(state, offers=(*lingering, *newest), rollovers=rollovers)
    return OffersStep(state, forget)


def _rollover_wanted(state: OffersState, reason: str, now: Instant) -> OffersStep:
    if any(own.phase is OfferPhase.PUBLISHING for own in state.offers):
        return OffersStep(state, ())  # the one on its way serves the same end
    current = state.current
    if current is not None and now < current.made_at + MIN_INTERVAL:
        soon = Instant(current.made_at + MIN_INTERVAL)
        earliest = soon if state.rollover_at is None else min(soon, state.rollover_at)
        return OffersStep(replace(state, rollover_at=earliest), ())
    return _make(state, reason)


def _timer(state: OffersState, now: Instant) -> OffersStep:
    due = [own for own in state.offers if own.forget_at is not None and own.forget_at <= now]
    state = replace(state, offers=tuple(own for own in state.offers if own not in due))
    _, forget = _told(due, OfferFact.LINGERED)
    if state.rollover_at is None or state.rollover_at > now:
        return OffersStep(state, forget)
    made = _make(state, "rollover by time")
    return OffersStep(made.state, forget + made.actions)
