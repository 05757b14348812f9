"""The offer machine: three keys at most, rollovers in time, whatever happens in between."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.machines import offer
from tunsec.machines.facts import OfferMade, OfferPublished, RolloverWanted, TimerFired
from tunsec.machines.offer import (
    LINGER,
    MIN_INTERVAL,
    OfferEvent,
    OfferPhase,
    OfferRefused,
    OffersState,
    RolloverRule,
    RuleChanged,
    RuleEnded,
)
from tunsec.machines.orders import Action, ForgetOffer, MakeOffer, PublishOffer, WithdrawOffer
from tunsec.model.clock import Instant, Seconds
from tunsec.model.names import OfferSeq

RULE = RolloverRule(Seconds(10.0), 0.1, Seconds(7200.0))


@dataclass(slots=True)
class Host:
    """The outside of the machine: makes offers, has a directory, keeps private keys."""

    now: float = 1000.0
    dice: float = 0.0
    refuses: bool = False
    state: OffersState = field(default_factory=OffersState)
    keys: set[OfferSeq] = field(default_factory=set)
    to_publish: list[OfferSeq] = field(default_factory=list)
    withdrawn: int = 0
    made_at: list[float] = field(default_factory=list)

    def tell(self, event: OfferEvent) -> tuple[Action, ...]:
        """One event, its orders carried out, and what follows."""
        done = offer.step(self.state, event, Instant(self.now), self.dice)
        self.state = done.state
        for action in done.actions:
            match action:
                case MakeOffer():
                    self._make()
                case PublishOffer(seq):
                    self.to_publish.append(seq)
                case WithdrawOffer():
                    self.to_publish.clear()
                    self.withdrawn += 1
                case ForgetOffer(seq):
                    self.keys.remove(seq)
        self.check()
        return done.actions

    def _make(self) -> None:
        if self.refuses:
            self.tell(OfferRefused("the certificate has ended"))
            return
        seq = OfferSeq(len(self.made_at) + 1)
        self.made_at.append(self.now)
        self.keys.add(seq)
        self.tell(OfferMade(seq))

    def publish(self) -> None:
        """The directory has written all that it was given, the newest last."""
        waiting, self.to_publish = self.to_publish, []
        for seq in waiting:
            self.tell(OfferPublished(seq))

    def wait(self, span: float) -> None:
        """Time passes; the timer fires when it is due, and a little late."""
        end = self.now + span
        while (due := offer.deadline(self.state)) is not None and due.at <= end:
            self.now = max(self.now, due.at)
            self.tell(TimerFired())
            left = offer.deadline(self.state)
            assert left is None or left.at > self.now, "a deadline that never passes"
        self.now = end

    def check(self) -> None:
        """What always holds."""
        assert self.state.holds == self.keys
        assert len(self.keys) <= 3
        phases = [own.phase for own in self.state.offers]
        assert phases.count(OfferPhase.CURRENT) <= 1
        assert phases.count(OfferPhase.PUBLISHING) <= 1
        assert phases.count(OfferPhase.SUPERSEDED) <= 1


def running(rule: RolloverRule = RULE) -> Host:
    """A host with a published offer."""
    host = Host()
    host.tell(RuleChanged(rule))
    host.publish()
    assert host.state.current is not None
    return host


ACTS = st.one_of(
    st.tuples(st.just("wait"), st.floats(0.0, 30.0)),
    st.tuples(st.just("publish"), st.just(0.0)),
    st.tuples(st.just("want"), st.just(0.0)),
    st.tuples(st.just("refuse"), st.floats(0.0, 1.0)),
    st.tuples(st.just("dice"), st.floats(0.0, 1.0, exclude_max=True)),
    st.tuples(st.just("rule"), st.sampled_from([0.5, 10.0, 3600.0])),
    st.tuples(st.just("rule ends"), st.just(0.0)),
    st.tuples(st.just("stale answer"), st.integers(1, 5).map(float)),
)


@given(st.lists(ACTS, max_size=40))
def test_whatever_happens_keys_are_few_and_the_next_one_comes(
    acts: list[tuple[str, float]],
) -> None:
    host = running()
    after = 10.0
    for act, value in acts:
        match act:
            case "wait":
                host.wait(value)
            case "publish":
                host.publish()
            case "want":
                host.tell(RolloverWanted("test"))
            case "refuse":
                host.refuses = value > 0.5
            case "dice":
                host.dice = value
            case "rule":
                after = value
                host.tell(RuleChanged(RolloverRule(Seconds(value), 0.1, Seconds(7200.0))))
            case "rule ends":
                host.tell(RuleEnded())
                assert not host.keys
                assert not host.to_publish
                assert offer.deadline(host.state) is None
            case _:
                host.tell(OfferPublished(OfferSeq(int(value))))
                host.to_publish = [seq for seq in host.to_publish if seq != int(value)]
    # Whatever it was: with a directory that writes, rollovers go on.
    host.refuses = False
    host.tell(RuleChanged(RolloverRule(Seconds(after), 0.1, Seconds(7200.0))))
    host.wait(31.0)
    host.publish()
    before = host.state.current
    assert before is not None
    host.wait(after)
    host.publish()
    assert host.state.current is not None
    assert host.state.current.seq > before.seq


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_jitter_comes_early_and_never_late(dice: float) -> None:
    host = Host(dice=dice)
    host.tell(RuleChanged(RULE))
    due = offer.deadline(host.state)
    assert due is not None
    assert RULE.after * (1 - RULE.jitter) <= due.at - host.now <= RULE.after


@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=30))
def test_offers_are_never_closer_than_the_least_interval(pauses: list[float]) -> None:
    host = running()
    for pause in pauses:
        host.tell(RolloverWanted("a soft limit"))
        host.publish()
        host.wait(pause)
    gaps = [after - before for before, after in zip(host.made_at, host.made_at[1:], strict=False)]
    assert all(gap >= MIN_INTERVAL - 1e-9 for gap in gaps), gaps


def test_a_wish_that_comes_too_early_is_remembered() -> None:
    host = running()
    host.tell(RolloverWanted("a soft limit"))
    assert len(host.made_at) == 1
    host.wait(MIN_INTERVAL)
    assert len(host.made_at) == 2


def test_a_superseded_key_is_wiped_after_a_while() -> None:
    host = running(RolloverRule(Seconds(3600.0), 0.0, Seconds(7200.0)))
    first = host.state.current
    assert first is not None
    host.wait(3600.0)
    host.publish()
    assert first.seq in host.keys
    host.wait(LINGER)
    assert first.seq not in host.keys


def test_an_offer_that_does_not_reach_the_directory_is_replaced() -> None:
    """The directory is away for ten rollovers: the current key stays, one waits."""
    host = running()
    current = host.state.current
    for _ in range(10):
        host.wait(RULE.after)
        assert host.state.current == current
        assert len(host.keys) == 2
    host.publish()
    assert host.state.current is not None
    assert host.state.current.seq == max(host.keys)


def test_an_answer_for_an_offer_that_was_replaced_changes_nothing() -> None:
    host = running()
    host.wait(RULE.after)
    [stuck] = host.to_publish
    host.wait(RULE.after)
    before = host.state
    host.tell(OfferPublished(stuck))
    assert host.state == before


def test_a_certificate_that_has_ended_is_tried_again_and_again() -> None:
    host = Host(refuses=True)
    host.tell(RuleChanged(RULE))
    assert host.state.offers == ()
    host.wait(120.0)
    assert host.state.failures > 3
    host.refuses = False
    host.wait(31.0)
    assert host.state.offers


def test_when_nothing_is_keyed_any_more_keys_are_wiped_and_the_offer_goes_once() -> None:
    host = running()
    host.wait(RULE.after)
    assert len(host.keys) == 2
    host.tell(RuleEnded())
    host.tell(RuleEnded())
    assert host.keys == set()
    assert host.withdrawn == 1
    host.tell(RolloverWanted("a soft limit"))
    host.wait(3600.0)
    assert host.keys == set()
    host.tell(RuleChanged(RULE))
    host.publish()
    assert host.state.current is not None


@pytest.mark.parametrize("answer", [OfferMade(OfferSeq(1)), OfferRefused("no certificate")])
def test_an_offer_that_is_made_too_late_is_forgotten(answer: OfferMade | OfferRefused) -> None:
    making = offer.step(OffersState(), RuleChanged(RULE), Instant(0.0), 0.0).state
    ended = offer.step(making, RuleEnded(), Instant(0.0), 0.0).state
    done = offer.step(ended, answer, Instant(0.0), 0.0)
    assert done.state == OffersState()
    assert done.actions == ((ForgetOffer(OfferSeq(1)),) if isinstance(answer, OfferMade) else ())


def test_a_rule_that_comes_back_while_an_offer_is_made_takes_it() -> None:
    state = OffersState()
    for event in (RuleChanged(RULE), RuleEnded(), RuleChanged(RULE)):
        state = offer.step(state, event, Instant(0.0), 0.0).state
    done = offer.step(state, OfferMade(OfferSeq(1)), Instant(0.0), 0.0)
    assert done.actions == (PublishOffer(OfferSeq(1)),)


@pytest.mark.parametrize("after", [1.0, 3600.0])
def test_another_rule_moves_the_next_rollover(after: float) -> None:
    host = running()
    host.tell(RuleChanged(RolloverRule(Seconds(after), 0.0, Seconds(7200.0))))
    due = offer.deadline(host.state)
    assert due is not None
    assert due.at == host.now + after
    host.tell(RuleChanged(RolloverRule(Seconds(after), 0.0, Seconds(9000.0))))
    assert offer.deadline(host.state) == due
