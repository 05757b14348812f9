"""The IKE flow machine: one child whose SAs charon makes and whose SPs are ours.

Each host initiates the CHILD_SA on which it sends. charon answers such a request when its inbound
SA is in the kernel, so the initiator may send at once: receiver first (law 2) is IKE's own order,
and hosts need no word of each other beyond it. Nothing is ever rekeyed at the same time by both.
The other half of a CHILD_SA is spare: this host sends on the peer's when its own died with a charon
that crashed, and not before something has come in on it.

A CHILD_SA as this host sees it::

    INSTALLED --pinned--> ACTIVE --another is pinned--> REKEYED --idle--> DELETING --> gone
    REKEYED --its successor died--> ACTIVE
    one of the peer's: ACTIVE --another is pinned--> INSTALLED, for the peer ends it
    any --an SA of it is gone--> DELETING

SAs in the kernel that no charon keeps (strays: of a crashed charon, of an earlier life, of another
keying) carry the flow until there are others, and go when nobody uses them any more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from tunsec.machines.backoff import backoff
from tunsec.machines.flow import Phase, inbound_drain, outbound_drain
from tunsec.machines.ike_facts import SeenChild, Stray
from tunsec.machines.table import Table
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant, Seconds
from tunsec.model.flow import Child, OnReconnect
from tunsec.model.ike import GIVES_UP_AFTER, SLOTS
from tunsec.model.names import Spi

SETTLED_AFTER: Final = GIVES_UP_AFTER
"""A CHILD_SA of the peer that is this old stands at both ends: the peer has had its answer by now,
or has given up, and sends us nothing anyway."""
RENEWED_WITHIN: Final = Seconds(10.0)
"""CHILD_SAs get successors within this long when the policy asks for other ones; not all flows and
hosts at once."""
HEAR_EVERY: Final = Seconds(0.02)
"""How often we look whether something came in on the peer's CHILD_SA, while we need it."""
ONE_WAY: Final = Seconds(3.0)
"""After this long a flow counts as protected though the peer has no CHILD_SA of its own: it may be
a charon without tunsec, which sends on ours."""
SHORT_LIVED: Final = Seconds(10.0)
"""A CHILD_SA that ends younger than this is no success: the next try waits."""
SHORT_LIVED_RENEWED: Final = Seconds(0.5)
"""The same for a flow whose CHILD_SAs end with its connections: the peer may have seen a break that
we have not."""
SETTLED: Final = Seconds(0.2)
"""A CHILD_SA is not deleted before: a DELETE that overtakes the answer which made it finds nothing
to delete, and leaves half of it at the peer."""
LEAST_DRAIN: Final = Seconds(0.5)
"""Longer than a packet is on its way, on a busy host too."""
DELETE_AGAIN: Final = Seconds(5.0)
"""When charon is asked again to delete a CHILD_SA of whose end it has not told."""
ASK_AFTER: Final = Seconds(0.2)
"""When charon is asked to delete a CHILD_SA that has lost an SA. It deletes SAs itself right before
it tells of it, and until it deletes one that others took away, the peer sends on it in vain."""
LOOK_AFTER: Final = Seconds(1.0)
"""charon does not tell of an attempt that failed: we look."""
ATTEMPT_LIMIT: Final = Seconds(15.0)
"""Longest attempt: charon gives a peer up long before, with our drop-in."""
VOLUME_LOOKS: Final = 8
"""Looks at the volume of an SA until its soft limit, at the pace it has."""
VOLUME_SOONEST: Final = Seconds(1.0)
VOLUME_LATEST: Final = Seconds(30.0)


class ChildState(StrEnum):
    """Where a CHILD_SA is in its life, for this host."""

    INSTALLED = "INSTALLED"
    ACTIVE = "ACTIVE"
    REKEYED = "REKEYED"
    DELETING = "DELETING"


class ChildFact(StrEnum):
    """What can happen to a CHILD_SA."""

    PINNED = "our SPs pin its outbound SA"
    SUCCEEDED = "another one of its sender took over"
    LEFT = "our SPs pin another one, and the peer ends this one"
    IDLE = "nothing comes in on it any more"
    LOST = "an SA of it left the kernel, or cannot be pinned"


CHILD: Final = Table(
    "CHILD_SA",
    ChildState.INSTALLED,
    {
        (ChildState.INSTALLED, ChildFact.PINNED): ChildState.ACTIVE,
        (ChildState.INSTALLED, ChildFact.SUCCEEDED): ChildState.REKEYED,
        (ChildState.ACTIVE, ChildFact.SUCCEEDED): ChildState.REKEYED,
        (ChildState.ACTIVE, ChildFact.LEFT): ChildState.INSTALLED,
        (ChildState.REKEYED, ChildFact.PINNED): ChildState.ACTIVE,
        (ChildState.REKEYED, ChildFact.IDLE): ChildState.DELETING,
        (ChildState.INSTALLED, ChildFact.LOST): ChildState.DELETING,
        (ChildState.ACTIVE, ChildFact.LOST): ChildState.DELETING,
        (ChildState.REKEYED, ChildFact.LOST): ChildState.DELETING,
    },
    {
        (ChildState.ACTIVE, ChildFact.PINNED): "the SPs are put again",
        (ChildState.INSTALLED, ChildFact.LEFT): "it was never pinned",
        (ChildState.REKEYED, ChildFact.SUCCEEDED): "two successors in a row",
        (ChildState.REKEYED, ChildFact.LEFT): "the peer replaced it meanwhile",
        (ChildState.DELETING, ChildFact.SUCCEEDED): "two successors in a row",
        (ChildState.DELETING, ChildFact.LEFT): "it is on its way out anyway",
        (ChildState.DELETING, ChildFact.IDLE): "its end was ordered and is not told yet",
        (ChildState.DELETING, ChildFact.LOST): "charon deletes its SAs before it tells",
    },
)


_ENDING: Final = (ChildState.REKEYED, ChildState.DELETING)


@dataclass(frozen=True, slots=True)
class HeldChild:
    """A CHILD_SA that charon keeps and whose SAs the kernel holds as asked."""

    ike: int
    id: int
    own: bool
    """This host sends on it; else the peer does."""
    slot: int
    spi_in: Spi
    spi_out: Spi
    aead: Aead | None
    since: Instant
    state: ChildState = CHILD.first
    heard: bool = False
    """Something has come in on it, so the peer has its SAs too."""
    check_at: Instant | None = None
    """When its inbound SA is looked at."""
    packets: int | None = None
    """Packets its inbound SA had carried when last looked at."""


@dataclass(frozen=True, slots=True)
class StraySa:
    """An SA in the kernel of which charon knows nothing, or (not `certain`) not yet."""

    spi: Spi
    inbound: bool
    aead: Aead | None
    certain: bool = False
    check_at: Instant | None = None
    packets: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """charon was asked for a CHILD_SA and has not told of it."""

    slot: int
    since: Instant
    look_at: Instant


@dataclass(frozen=True, slots=True)
class IkeFlow:
    """A child and what charon and the kernel have of it."""

    child: Child
    held: tuple[HeldChild, ...] = ()
    """Oldest first."""
    strays: tuple[StraySa, ...] = ()
    pinned: Spi | None = None
    """The outbound SA that the SPs name."""
    pinned_at: Instant | None = None
    """Since when they name one SA or another without a break, as far as this life knows."""
    attempt: Attempt | None = None
    retry_at: Instant | None = None
    failures: int = 0
    reason: str = ""
    """Why the last attempt failed, in charon's words."""
    rekey_at: Instant | None = None
    volume_at: Instant | None = None
    """When the volume of the SA in use is looked at."""
    volume: tuple[Instant, int, int] | None = None
    """That look's instant, bytes and packets."""
    rekeys: int = 0
    taken: bool = False
    """Another keying has the outbound SPs: nothing new is made, what is there drains."""
    left: bool = False
    """The peer sends by that keying too: what it has left of ours goes when it is idle."""
    back_since: Instant | None = None
    """When it was given back. CHILD_SAs of before are not sent on again: the peer may have lost
    them since, and would have nothing to tell it by."""

    spent_at: Instant | None = None
    """When a connection of the flow last broke."""
    spent: frozenset[Spi] = frozenset()
    """SPIs of the SAs of then, of both directions, which are not to be used any more."""
    proof: bool = False
    """IKE_SAs of before neither, nor what is made on them."""

    @property
    def active(self) -> HeldChild | None:
        """The CHILD_SA on which we send."""
        return next((one for one in self.held if one.spi_out == self.pinned), None)

    @property
    def empty(self) -> bool:
        """Whether nothing of it is left."""
        return not self.held and not self.strays

    def phase(self, now: Instant) -> Phase:
        """What the SAs amount to."""
        if self.pinned is None:
            hopeful = self.attempt is not None and not self.failures
            return Phase.KEYING if self.held or hopeful else Phase.BLOCKED
        if not self._two_way(now):
            return Phase.KEYING
        theirs = [one for one in self.held if not one.own]
        ours = [one for one in self.held if one.own]
        if self.strays or self.attempt or len(ours) != 1 or len(theirs) > 1:
            return Phase.REKEYING
        return Phase.INSTALLED

    def two_way_at(self) -> Instant | None:
        """When one CHILD_SA alone will count as both directions; None when it need not."""
        active = self.active
        if active is None or self._has_inbound():
            return None
        since = active.since if self.pinned_at is None else min(active.since, self.pinned_at)
        return Instant(since + ONE_WAY)

    def _two_way(self, now: Instant) -> bool:
        at = self.two_way_at()
        return self._has_inbound() or (at is not None and at <= now)

    def _has_inbound(self) -> bool:
        standing = [one for one in self.held if one.state is not ChildState.DELETING]
        return any(not one.own or one.heard for one in standing) or any(
            stray.inbound for stray in self.strays
        )


# What a broken connection leaves behind


def is_spent(flow: IkeFlow, one: HeldChild, old: frozenset[int]) -> bool:
    """Whether a CHILD_SA is of before the break; `old` are IKE_SAs that are."""
    return one.spi_in in flow.spent or (flow.proof and one.ike in old)


def renewed(flow: IkeFlow, old: frozenset[int], now: Instant) -> bool:
    """Whether nothing of before is left at either end, and both send: charon tells that a CHILD_SA
    is gone when the peer has answered that it is."""
    if flow.spent_at is None:
        return True
    active = flow.active
    return (
        active is not None
        and active.own
        and not spent_strays(flow)
        and not any(
            is_spent(flow, one, old) or one.state is ChildState.DELETING for one in flow.held
        )
        and (any(not one.own for one in flow.held) or now >= active.since + ONE_WAY)
    )


def cut(flow: IkeFlow, old: frozenset[int], now: Instant) -> tuple[HeldChild, ...]:
    """CHILD_SAs of before that go without a drain: what we send goes by a fresh one."""
    return tuple(one for one in _to_cut(flow, old) if now >= one.since + SETTLED)


def cut_at(flow: IkeFlow, old: frozenset[int]) -> Instant | None:
    """When the first of them may go."""
    return min((Instant(one.since + SETTLED) for one in _to_cut(flow, old)), default=None)


def _to_cut(flow: IkeFlow, old: frozenset[int]) -> tuple[HeldChild, ...]:
    active = flow.active
    if active is None or is_spent(flow, active, old):
        return ()
    return tuple(
        one
        for one in flow.held
        if is_spent(flow, one, old) and one.state is not ChildState.DELETING
    )


def spend(flow: IkeFlow, now: Instant, *, proof: bool) -> IkeFlow:
    """A connection broke: what there is now is spent."""
    spis = {spi for one in flow.held for spi in (one.spi_in, one.spi_out)}
    spis |= {stray.spi for stray in flow.strays}
    return replace(
        flow, spent_at=now, spent=frozenset(spis), proof=proof, rekey_at=now, retry_at=None
    )


def keep_spent(flow: IkeFlow, old: frozenset[int]) -> IkeFlow:
    """charon's names of things are about to be forgotten: SPIs tell what is spent then."""
    spis = {
        spi for one in flow.held if is_spent(flow, one, old) for spi in (one.spi_in, one.spi_out)
    }
    return replace(flow, spent=flow.spent | spis)


def spent_strays(flow: IkeFlow) -> tuple[StraySa, ...]:
    """Strays of before the break."""
    return tuple(stray for stray in flow.strays if stray.spi in flow.spent)


def end(
    flow: IkeFlow, ending: tuple[HeldChild, ...], strays: tuple[StraySa, ...], now: Instant
) -> IkeFlow:
    """Those are being deleted; those strays are gone."""
    held = tuple(
        replace(
            one, state=CHILD.next(one.state, ChildFact.LOST), check_at=Instant(now + DELETE_AGAIN)
        )
        if one in ending
        else one
        for one in flow.held
    )
    left = tuple(stray for stray in flow.strays if stray not in strays)
    return replace(flow, held=held, strays=left)


# What may be sent on


def best_outbound(flow: IkeFlow, doubted: frozenset[int], now: Instant) -> Spi | None:
    """The outbound SA that the SPs should pin; `doubted` are IKE_SAs that the peer may have lost.

    Own before the peer's, what is not doubted before what is, new before old; a stray only where
    it is pinned already.
    """
    found = [
        (one.ike not in doubted, one.own, one.since, one.spi_out)
        for one in flow.held
        if one.state is not ChildState.DELETING
        and (one.own or one.spi_out == flow.pinned or stands(one, now))
        and not _of_before(flow, one)
    ]
    if found:
        return max(found)[3]
    if any(stray.spi == flow.pinned and not stray.inbound for stray in flow.strays):
        return flow.pinned
    return None


def stands(one: HeldChild, now: Instant) -> bool:
    """Whether a CHILD_SA of the peer stands at both ends."""
    return one.heard or now >= one.since + SETTLED_AFTER


def needs_own(flow: IkeFlow, doubted: frozenset[int], now: Instant) -> bool:
    """Whether charon must make the CHILD_SA on which we send."""
    due = flow.rekey_at is not None and flow.rekey_at <= now
    return due or lacks_own(flow, doubted)


def lacks_own(flow: IkeFlow, doubted: frozenset[int]) -> bool:
    """Whether there is no CHILD_SA of ours that can be relied on."""
    return not any(
        one.own
        and one.ike not in doubted
        and one.state in (ChildState.INSTALLED, ChildState.ACTIVE)
        and not _of_before(flow, one)
        for one in flow.held
    )


def _of_before(flow: IkeFlow, one: HeldChild) -> bool:
    """Whether another keying had the flow since a CHILD_SA was made."""
    return flow.back_since is not None and one.since < flow.back_since


def free_slot(flow: IkeFlow) -> int | None:
    """A slot of ours without a CHILD_SA."""
    taken = {one.slot for one in flow.held if one.own}
    return next((slot for slot in range(SLOTS) if slot not in taken), None)


# What happens


def renew_soon(flow: IkeFlow, now: Instant, fraction: float) -> IkeFlow:
    """A CHILD_SA of ours is not what the policy asks for now: it goes on until its successor is
    there."""
    soon = Instant(now + min(flow.child.rekey.after, RENEWED_WITHIN) * fraction)
    return replace(flow, rekey_at=soon if flow.rekey_at is None else min(flow.rekey_at, soon))


def add_child(flow: IkeFlow, seen: SeenChild, *, since: Instant) -> IkeFlow:
    """A CHILD_SA is there; strays turn out to be its SAs."""
    one = HeldChild(
        seen.ike,
        seen.id,
        seen.own,
        seen.slot,
        seen.spi_in,
        seen.spi_out,
        seen.aead,
        since,
        ChildState.ACTIVE if seen.spi_out == flow.pinned else ChildState.INSTALLED,
    )
    held = sorted((*flow.held, one), key=lambda held: held.since)
    spis = {(seen.spi_in, True), (seen.spi_out, False)}
    strays = tuple(stray for stray in flow.strays if (stray.spi, stray.inbound) not in spis)
    return replace(flow, held=tuple(held), strays=strays)


def add_unfit(flow: IkeFlow, seen: SeenChild, now: Instant) -> IkeFlow:
    """A CHILD_SA of the peer is not as asked, and not used. It is deleted when the peer has it for
    certain: told of one that it does not know yet, the peer would keep it alone."""
    since = Instant(now - seen.age)
    flow = add_child(flow, seen, since=since)
    return replace(
        flow,
        held=tuple(
            replace(
                one,
                state=CHILD.next(one.state, ChildFact.LOST),
                check_at=Instant(max(now, since + SETTLED_AFTER)),
            )
            if (one.id, one.spi_in) == (seen.id, seen.spi_in)
            else one
            for one in flow.held
        ),
    )


def own_is_up(flow: IkeFlow, slot: int, *, since: Instant, fraction: float) -> IkeFlow:
    """What was asked for is there: the next rekey is drawn."""
    rule = flow.child.rekey
    attempt = flow.attempt
    if attempt is not None and attempt.slot == slot:
        attempt = None
    lasted = any(one.own and one.since + _short_lived(flow) <= since for one in flow.held)
    return replace(
        flow,
        attempt=attempt,
        retry_at=None,
        failures=0 if lasted else flow.failures,
        reason="",
        rekey_at=Instant(since + rule.after * (1 - rule.jitter * fraction)),
    )


def pin(flow: IkeFlow, spi: Spi, now: Instant) -> IkeFlow:
    """The SPs name this SA."""
    before = flow.active
    held = tuple(_pinned(one, spi, flow, now) for one in flow.held)
    strays = tuple(
        replace(stray, check_at=Instant(now + outbound_drain(flow.child)))
        if not stray.inbound and stray.spi == flow.pinned != spi
        else stray
        for stray in flow.strays
    )
    after = next((one for one in held if one.spi_out == spi), None)
    rekeyed = before is not None and after is not None and before.own and after.own
    # Back to an older one, because the newer ones are doubted: it was to end long before them.
    older = before is not None and after is not None and after.since < before.since
    return replace(
        flow,
        held=held,
        strays=strays,
        pinned=spi,
        pinned_at=now if flow.pinned is None else flow.pinned_at,
        volume_at=Instant(now + VOLUME_SOONEST) if _has_volume(flow.child) else None,
        volume=None,
        rekeys=flow.rekeys + (1 if rekeyed and before is not after else 0),
        rekey_at=now if older else flow.rekey_at,
    )


def _pinned(one: HeldChild, spi: Spi, flow: IkeFlow, now: Instant) -> HeldChild:
    if one.spi_out == spi:
        return replace(one, state=CHILD.next(one.state, ChildFact.PINNED), check_at=None)
    if not one.own:
        return replace(one, state=CHILD.next(one.state, ChildFact.LEFT))
    return _superseded(one, flow, now)


def _superseded(one: HeldChild, flow: IkeFlow, now: Instant) -> HeldChild:
    """It drains: the peer may still send on it, and a packet of ours may hold a route to it."""
    return replace(
        one,
        state=CHILD.next(one.state, ChildFact.SUCCEEDED),
        check_at=one.check_at or Instant(now + _drain(flow)),
    )


def _drain(flow: IkeFlow) -> Seconds:
    """We see what comes in on a CHILD_SA, not what the peer still has to take of ours: two of
    these spans pass before one is deleted."""
    return max(LEAST_DRAIN, inbound_drain(flow.child), outbound_drain(flow.child))


def unpin(flow: IkeFlow) -> IkeFlow:
    """The SPs are gone: the block SPs hold the flow."""
    return replace(flow, pinned=None, pinned_at=None, volume_at=None, volume=None)


def take(flow: IkeFlow, now: Instant) -> IkeFlow:
    """Another keying pins: what is there drains, at the pace of the peer's own move."""
    held = tuple(_superseded(one, flow, now) if one.own else one for one in flow.held)
    strays = tuple(replace(stray, certain=True) for stray in flow.strays)
    return replace(
        unpin(flow),
        held=held,
        strays=strays,
        attempt=None,
        retry_at=None,
        rekey_at=None,
        taken=True,
    )


def supersede_spares(flow: IkeFlow, now: Instant) -> IkeFlow:
    """CHILD_SAs of ours beside the one in use drain, also those that an earlier life or an earlier
    link to charon left."""
    active = flow.active
    replaced = active is not None and active.own
    return _holding(
        flow,
        tuple(
            _superseded(one, flow, now)
            if one.own
            and one is not active
            and one.state is ChildState.INSTALLED
            and (replaced or _of_before(flow, one))
            else one
            for one in flow.held
        ),
    )


def supersede_older_of_peer(flow: IkeFlow, doubted: frozenset[int], now: Instant) -> IkeFlow:
    """CHILD_SAs of the peer that have a younger sister, and that it may have lost, for their IKE_SA
    is doubted or their slot taken again: nobody ends them but us."""
    theirs = [one for one in flow.held if not one.own]
    newest = theirs[-1] if theirs else None
    by_slot = {one.slot: one for one in theirs}
    return _holding(
        flow,
        tuple(
            _superseded(one, flow, now)
            if one in theirs
            and one is not newest
            and (one.ike in doubted or one is not by_slot[one.slot])
            and one.state is ChildState.INSTALLED
            else one
            for one in flow.held
        ),
    )


def drop_child(flow: IkeFlow, gone: HeldChild, now: Instant, fraction: float) -> IkeFlow:
    """A CHILD_SA is gone."""
    left = tuple(one for one in flow.held if one is not gone)
    return _without(replace(flow, held=left), gone, now, fraction)


def _without(flow: IkeFlow, gone: HeldChild, now: Instant, fraction: float) -> IkeFlow:
    """One of ours that ended early makes the next try wait."""
    if not gone.own or gone.state is ChildState.DELETING or gone.spi_in in flow.spent:
        return flow
    if now < gone.since + _short_lived(flow):
        return failed(flow, "the CHILD_SA ended as soon as it was up", now, fraction)
    if gone.state is ChildState.ACTIVE:
        return replace(flow, rekey_at=None, failures=0)
    return flow


def _short_lived(flow: IkeFlow) -> Seconds:
    keeps = flow.child.on_reconnect is OnReconnect.KEEP
    return SHORT_LIVED if keeps else SHORT_LIVED_RENEWED


def lose_sa(flow: IkeFlow, spi: Spi, *, inbound: bool, now: Instant, fraction: float) -> IkeFlow:
    """An SA left the kernel, or cannot be used: its CHILD_SA is of no more use.

    charon deletes SAs before it tells of it; where it does not tell, it is asked to delete them.
    """
    strays = tuple(stray for stray in flow.strays if (stray.spi, stray.inbound) != (spi, inbound))
    flow = replace(flow, strays=strays)
    for one in flow.held:
        if spi == (one.spi_in if inbound else one.spi_out):
            lost = replace(
                one,
                state=CHILD.next(one.state, ChildFact.LOST),
                check_at=one.check_at
                if one.state is ChildState.DELETING
                else Instant(now + ASK_AFTER),
            )
            held = tuple(lost if other is one else other for other in flow.held)
            flow = _without(replace(flow, held=held), one, now, fraction)
    return flow


def into_strays(flow: IkeFlow) -> IkeFlow:
    """Whether charon keeps the CHILD_SAs is unknown: what stands in the kernel stands."""
    found = [
        stray
        for one in flow.held
        for stray in (
            StraySa(one.spi_in, True, one.aead),
            StraySa(one.spi_out, False, one.aead),
        )
    ]
    return replace(
        flow, held=(), strays=(*flow.strays, *found), attempt=None, retry_at=None, failures=0
    )


def judge_strays(flow: IkeFlow, strays: Iterable[Stray]) -> IkeFlow:
    """charon has told what it keeps: the others are strays for certain, if they are still there."""
    known = {(stray.spi, stray.inbound): stray for stray in flow.strays}
    return replace(
        flow,
        strays=tuple(
            replace(
                known.get(
                    (found.spi, found.inbound), StraySa(found.spi, found.inbound, found.aead)
                ),
                certain=True,
            )
            for found in strays
            if found.child == flow.child.id
        ),
    )


def failed(flow: IkeFlow, reason: str, now: Instant, fraction: float) -> IkeFlow:
    """No CHILD_SA came of it: the next try waits."""
    failures = flow.failures + 1
    return replace(
        flow,
        attempt=None,
        failures=failures,
        reason=reason,
        retry_at=Instant(now + backoff(failures, fraction)),
    )


# What is looked at


def newer_than_strays_at(flow: IkeFlow, now: Instant) -> Instant | None:
    """When the peer has something newer to send on than a stray: its own CHILD_SA, or ours on which
    something came in, or SAs of another keying. None: nothing is in sight."""
    if flow.taken:
        return now if flow.left else None
    found = [
        now if one.heard else Instant(max(now, one.since + SETTLED_AFTER))
        for one in flow.held
        if one.state is not ChildState.DELETING and (not one.own or one.heard)
    ]
    return min(found, default=None)


def schedule_looks(flow: IkeFlow, doubted: frozenset[int], now: Instant) -> IkeFlow:
    """Set the instants at which SAs must be looked at, where there are none yet."""
    wanting = not flow.taken and lacks_own(flow, doubted)
    held = tuple(
        replace(one, check_at=Instant(now + HEAR_EVERY))
        if not one.own
        and one.check_at is None
        and one.state is ChildState.INSTALLED
        and wanting
        and not stands(one, now)
        else one
        for one in flow.held
    )
    newer_at = newer_than_strays_at(flow, now)
    strays = tuple(
        _watch_stray(stray, newer_at if stray.inbound else now, flow)
        if stray.certain and (stray.inbound or stray.spi != flow.pinned)
        else stray
        for stray in flow.strays
    )
    if any(then is not before for then, before in zip(strays, flow.strays, strict=True)):
        flow = replace(flow, strays=strays)
    return _holding(flow, held)


def _holding(flow: IkeFlow, held: tuple[HeldChild, ...]) -> IkeFlow:
    """The flow with these in place of its CHILD_SAs: itself where none is another, as nearly
    always when it is looked at."""
    same = all(then is before for then, before in zip(held, flow.held, strict=True))
    return flow if same else replace(flow, held=held)


def _watch_stray(stray: StraySa, unneeded_at: Instant | None, flow: IkeFlow) -> StraySa:
    """It is looked at when it has drained, and not at all while it may be all that there is. New
    connections wait for those of before a break: one that is gone already is found out soon."""
    if unneeded_at is None:
        if stray.check_at is None and stray.packets is None:
            return stray
        return replace(stray, check_at=None, packets=None)
    at = Instant(unneeded_at + (LEAST_DRAIN if stray.spi in flow.spent else _drain(flow)))
    return stray if stray.check_at is not None else replace(stray, check_at=at)


def due_looks(flow: IkeFlow, now: Instant) -> tuple[tuple[Spi, bool], ...]:
    """(SPI, inbound) of SAs to look at now."""
    looks = [(one.spi_in, True) for one in flow.held if _due(one.check_at, now)]
    looks += [
        (stray.spi, True) for stray in flow.strays if stray.inbound and _due(stray.check_at, now)
    ]
    if flow.pinned is not None and _due(flow.volume_at, now):
        looks.append((flow.pinned, False))
    return tuple(looks)


def looked(flow: IkeFlow, now: Instant) -> IkeFlow:
    """Those looks are ordered; the next ones come later."""
    later = Instant(now + _drain(flow))
    return replace(
        flow,
        held=tuple(
            replace(one, check_at=later if one.state in _ENDING else None)
            if _due(one.check_at, now)
            else one
            for one in flow.held
        ),
        strays=tuple(
            replace(stray, check_at=_next_look(stray, flow, now))
            if stray.inbound and _due(stray.check_at, now)
            else stray
            for stray in flow.strays
        ),
        volume_at=Instant(now + VOLUME_LATEST) if _due(flow.volume_at, now) else flow.volume_at,
    )


def _next_look(stray: StraySa, flow: IkeFlow, now: Instant) -> Instant:
    """A first look that came soon leaves all of the drain to the second."""
    early = stray.spi in flow.spent and stray.packets is None
    return Instant(now + (2 * _drain(flow) if early else _drain(flow)))


def drained_outbound_strays(flow: IkeFlow, now: Instant) -> tuple[StraySa, ...]:
    """Outbound strays that no packet can hold any more."""
    return tuple(
        stray
        for stray in flow.strays
        if not stray.inbound and stray.spi != flow.pinned and _due(stray.check_at, now)
    )


def note_inbound(one: HeldChild, packets: int | None, now: Instant) -> HeldChild:
    """What the inbound SA has carried: a superseded one that fell idle is to be deleted. None: it
    is gone."""
    if packets is not None:
        heard = one.heard or packets > 0
        one = replace(one, heard=heard, packets=packets, state=_idle(one, packets))
    if one.state is ChildState.DELETING:
        return replace(one, check_at=Instant(now + DELETE_AGAIN))
    return one


def _idle(one: HeldChild, packets: int) -> ChildState:
    idle = one.state is ChildState.REKEYED and one.packets == packets
    return CHILD.next(one.state, ChildFact.IDLE) if idle else one.state


def note_volume(flow: IkeFlow, *, volume: int, packets: int, now: Instant) -> IkeFlow:
    """What the SA in use has carried: a rekey at the soft limit, the next look in good time."""
    rule = flow.child.rekey
    if _over(volume, rule.soft_bytes) or _over(packets, rule.soft_packets):
        return replace(flow, rekey_at=now, volume_at=None)
    wait: Seconds = VOLUME_LATEST
    if flow.volume is not None:
        at, bytes_then, packets_then = flow.volume
        for limit, then, have in (
            (rule.soft_bytes, bytes_then, volume),
            (rule.soft_packets, packets_then, packets),
        ):
            if limit is not None and have > then:
                left = (limit - have) * (now - at) / (have - then)
                wait = Seconds(min(wait, left / VOLUME_LOOKS))
    else:
        wait = VOLUME_SOONEST
    again = Instant(now + max(VOLUME_SOONEST, wait))
    return replace(flow, volume_at=again, volume=(now, volume, packets))


def _has_volume(child: Child) -> bool:
    return child.rekey.soft_bytes is not None or child.rekey.soft_packets is not None


def _over(have: int, limit: int | None) -> bool:
    return limit is not None and have >= limit


def _due(at: Instant | None, now: Instant) -> bool:
    return at is not None and at <= now
