"""The vip machine: an arrival is claimed once, the higher token wins, nothing is taken back."""

from dataclasses import replace

import pytest

from tests.unit.machines.test_tables import impossible
from tunsec.machines.facts import TimerFired
from tunsec.machines.outbox import DirectoryBack
from tunsec.machines.vip import (
    AT_ONCE,
    LONGEST_RETRY,
    VIP,
    AddressArrived,
    AddressLeft,
    ClaimBelieved,
    ClaimFailed,
    ClaimLanded,
    ClaimOutdated,
    ClaimTaken,
    MakeClaim,
    VipEvent,
    VipFact,
    VipPhase,
    VipState,
    begin,
    deadline,
    step,
)
from tunsec.model.clock import Instant
from tunsec.model.names import Boot, HostName
from tunsec.model.record import Claim

ME, OTHER = HostName("db1"), HostName("db2")
NOW = Instant(100.0)


def claim(token: int, owner: HostName = ME, *, held: bool = True) -> Claim:
    """A claim on the one service."""
    return Claim("vip", owner, token, Boot("0" * 32), held)


def after(state: VipState, *events: VipEvent) -> VipState:
    """The state after some facts."""
    for event in events:
        state = step(state, event, NOW, 0.0).state
    return state


def absent() -> VipState:
    """An owner without the address."""
    return begin("vip", ME, newest=None, present=False, served=False)


def owned(token: int = 1) -> VipState:
    """An owner with the address and the newest claim."""
    return after(absent(), AddressArrived(), ClaimLanded(claim(token)))


def test_every_pair_is_a_transition_a_race_or_a_bug() -> None:
    """Addresses are told of when they come or go, so they neither come nor go twice."""
    there = (VipPhase.CLAIMING, VipPhase.OWNED, VipPhase.FENCED)
    gone = (VipPhase.ABSENT, VipPhase.LEAVING)
    assert impossible(VIP, VipPhase, VipFact) == {
        *((phase, VipFact.ARRIVED) for phase in there),
        *((phase, VipFact.LEFT) for phase in gone),
    }


def test_an_arrival_is_claimed_above_all_that_is_known() -> None:
    state = after(absent(), ClaimBelieved(claim(6, OTHER)))
    done = step(state, AddressArrived(), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 7, held=True),)
    assert done.state.phase is VipPhase.CLAIMING
    assert after(done.state, ClaimLanded(claim(7))).phase is VipPhase.OWNED


def test_a_number_that_is_taken_is_passed_over_at_once_and_later_with_a_pause() -> None:
    state = after(absent(), AddressArrived())
    for number in range(AT_ONCE):
        done = step(state, ClaimTaken(number + 1), NOW, 0.0)
        assert done.actions == (MakeClaim("vip", number + 2, held=True),)
        state = done.state
    state = after(state, ClaimTaken(20))
    due = deadline(state)
    assert due is not None
    assert NOW < due.at <= NOW + LONGEST_RETRY
    assert step(state, TimerFired(), due.at, 0.0).actions == (MakeClaim("vip", 21, held=True),)


def test_a_higher_token_fences_and_is_not_answered() -> None:
    done = step(owned(), ClaimBelieved(claim(2, OTHER)), NOW, 0.0)
    assert done.state.phase is VipPhase.FENCED
    assert done.actions == ()
    assert after(done.state, AddressLeft()).phase is VipPhase.ABSENT


def test_who_is_fenced_claims_when_the_other_gives_up() -> None:
    fenced = after(owned(), ClaimBelieved(claim(2, OTHER)))
    done = step(fenced, ClaimBelieved(claim(3, OTHER, held=False)), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 4, held=True),)


def test_an_old_token_changes_nothing() -> None:
    fenced = after(owned(), ClaimBelieved(claim(3, OTHER)))
    assert after(fenced, ClaimBelieved(claim(2, OTHER, held=False))) == fenced


def test_an_address_that_goes_is_given_up() -> None:
    done = step(owned(), AddressLeft(), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 2, held=False),)
    assert done.state.phase is VipPhase.LEAVING
    assert after(done.state, ClaimLanded(claim(2, held=False))).phase is VipPhase.ABSENT


def test_whoever_was_faster_has_ended_our_claim_too() -> None:
    leaving = after(owned(), AddressLeft())
    done = step(leaving, ClaimTaken(2), NOW, 0.0)
    assert done.state.phase is VipPhase.ABSENT
    assert done.actions == (), "a word above the other's claim would end that one"


def test_an_address_that_goes_before_its_claim_has_landed_is_given_up_then() -> None:
    leaving = after(absent(), AddressArrived(), AddressLeft())
    assert leaving.phase is VipPhase.LEAVING
    done = step(leaving, ClaimLanded(claim(1)), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 2, held=False),)


def test_without_the_directory_it_waits_and_says_why() -> None:
    state = after(absent(), AddressArrived(), ClaimFailed("the directory is away"))
    assert state.error == "the directory is away"
    assert state.phase is VipPhase.CLAIMING
    done = step(state, DirectoryBack(), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 1, held=True),)


def test_a_claim_of_which_no_answer_came_is_believed_when_it_is_read() -> None:
    state = after(absent(), AddressArrived(), ClaimFailed("no answer"))
    assert after(state, ClaimBelieved(claim(1))).phase is VipPhase.OWNED
    gone = after(state, AddressLeft())
    assert gone.phase is VipPhase.ABSENT
    done = step(gone, ClaimBelieved(claim(1)), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 2, held=False),)


def test_an_answer_that_comes_after_a_higher_claim_does_not_claim_again() -> None:
    state = after(absent(), AddressArrived(), ClaimBelieved(claim(2, OTHER)))
    done = step(state, ClaimLanded(claim(1)), NOW, 0.0)
    assert done.state.phase is VipPhase.FENCED
    assert done.actions == ()


def test_a_new_certificate_renews_a_claim_and_steals_none() -> None:
    done = step(owned(), ClaimOutdated(), NOW, 0.0)
    assert done.actions == (MakeClaim("vip", 2, held=True),)
    assert done.state.phase is VipPhase.OWNED
    assert after(done.state, ClaimLanded(claim(2))).phase is VipPhase.OWNED
    assert step(done.state, ClaimTaken(2), NOW, 0.0).actions == ()
    assert step(absent(), ClaimOutdated(), NOW, 0.0).actions == ()


@pytest.mark.parametrize(
    ("newest", "present", "served", "phase"),
    [
        (None, False, False, VipPhase.ABSENT),
        (None, True, False, VipPhase.CLAIMING),
        (claim(3), True, True, VipPhase.OWNED),
        (claim(3), False, True, VipPhase.LEAVING),
        (claim(3, OTHER), True, True, VipPhase.FENCED),
        (claim(3, OTHER), True, False, VipPhase.CLAIMING),
        (claim(3, OTHER, held=False), True, True, VipPhase.CLAIMING),
        (claim(3, OTHER), False, False, VipPhase.ABSENT),
    ],
)
def test_a_daemon_begins_where_the_last_one_ended(
    newest: Claim | None, present: bool, served: bool, phase: VipPhase
) -> None:
    state = begin("vip", ME, newest=newest, present=present, served=served)
    assert state.phase is phase
    asks = phase in (VipPhase.CLAIMING, VipPhase.LEAVING)
    assert bool(step(state, TimerFired(), NOW, 0.0).actions) is asks


def test_what_had_failed_is_forgotten_with_the_purpose() -> None:
    state = after(absent(), AddressArrived(), ClaimFailed("away"), AddressLeft())
    assert state == replace(absent(), phase=VipPhase.ABSENT)
