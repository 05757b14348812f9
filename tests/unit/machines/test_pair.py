"""The pair machine, fact by fact: receiver first, nothing removed under a sender, no waiting for
ever."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.machines.one_pair import OnePair, children
from tunsec.machines import pair
from tunsec.machines.facts import (
    Adopted,
    AdoptedSa,
    ChildrenChanged,
    OwnOffered,
    PeerOffered,
    PeerOfferEnded,
    PeerOfferRefused,
    PeerRevoked,
    RecordPublished,
    SaLost,
    SaSoftExpired,
    TimerFired,
)
from tunsec.machines.flow import MAX_EPOCHS, FlowState, Phase, inbound_drain, outbound_drain
from tunsec.machines.orders import (
    BlockOutbound,
    InstallInbound,
    InstallOutbound,
    PublishRecord,
    ReadUsage,
    RemoveInbound,
    RemoveOutbound,
    WantRollover,
)
from tunsec.machines.slots import SaState
from tunsec.model.aead import Aead
from tunsec.model.names import Boot, FlowName, OfferSeq, Spi


def test_nothing_is_installed_before_both_offers_are_there() -> None:
    one = OnePair()
    one.tell(ChildrenChanged(children()))
    one.tell(OwnOffered(OfferSeq(1), frozenset({OfferSeq(1)})))
    assert one.orders == []
    assert pair.blocked_reason(one.state, one.flow) == "no offer of the peer in the directory"
    one.tell(PeerOfferRefused("its offer was refused: unknown-ca"))
    assert pair.blocked_reason(one.state, one.flow) == "its offer was refused: unknown-ca"
    one.tell(PeerOffered(OfferSeq(101), Boot("a" * 32)))
    assert [type(order) for order in one.orders] == [InstallInbound, PublishRecord]


def test_from_blocked_to_installed() -> None:
    one = OnePair().begin()
    assert one.flow.phase is Phase.KEYING
    one.tell(RecordPublished(1))
    assert one.flow.inbound[0].state is SaState.CONFIRMED
    one.confirmed(receives=[(one.child, 0x9001)])
    assert one.pinned == {one.child: Spi(0x9001)}
    assert one.flow.phase is Phase.KEYING, "nobody sends to us yet"


def test_installed_when_both_directions_are_in_use() -> None:
    one = OnePair().begin()
    one.in_use()
    assert one.flow.phase is Phase.INSTALLED
    assert pair.blocked_reason(one.state, one.flow) == ""


def test_a_record_read_again_changes_nothing() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    orders = len(one.orders)
    for _ in range(3):
        one.confirmed(receives=[(one.child, 0x9001)], sends=[spi])
    assert one.orders[orders:] == []


def test_a_record_says_what_it_has_heard_and_hearing_alone_is_no_news() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    assert one.records[-1].heard == 1
    one.confirmed(receives=[(one.child, 0x9001)], sends=[spi])
    assert one.records[-1].heard == 1
    one.roll_over(2)
    assert one.records[-1].heard == 2


def test_an_offer_and_a_word_at_once_are_answered_by_one_true_record() -> None:
    """The offer makes a new record due, the word is not acted on yet: it must not say so."""
    one = OnePair().begin()
    spi, _ = one.in_use()
    one.tell(PeerOffered(OfferSeq(102), Boot("a" * 32)))
    assert one.records[-1].heard == 1
    one.confirmed(receives=[(one.child, 0x9002)], sends=[spi], peer_offer=102)
    assert one.records[-1].heard == 2
    assert Spi(0x9002) in one.outbound


# Rollover


def test_a_rollover_makes_before_it_breaks() -> None:
    one = OnePair().begin()
    old, _ = one.in_use()
    one.roll_over(2)
    new = max(one.inbound)
    assert set(one.inbound) == {old, new}
    assert one.flow.phase is Phase.REKEYING
    one.wait(100.0)
    assert set(one.inbound) == {old, new}, "the peer has not said that it left the old one"
    one.confirmed(receives=[(one.child, 0x9001)], sends=[new])
    assert set(one.inbound) == {old, new}
    one.wait(2 * inbound_drain(one.flow.child))
    assert set(one.inbound) == {new}


def test_an_inbound_sa_stays_as_long_as_packets_come() -> None:
    one = OnePair().begin()
    old, _ = one.in_use()
    one.roll_over(2)
    one.confirmed(receives=[(one.child, 0x9001)], sends=[max(one.inbound)])
    for number in range(1, 11):
        one.packets[old] = number
        one.wait(inbound_drain(one.flow.child))
        assert old in one.inbound
    one.wait(2 * inbound_drain(one.flow.child))
    assert old not in one.inbound


def test_an_inbound_sa_stays_as_long_as_the_peer_says_that_it_sends() -> None:
    one = OnePair().begin()
    old, _ = one.in_use()
    one.roll_over(2)
    new = max(one.inbound)
    one.confirmed(receives=[(one.child, 0x9001)], sends=[new])
    one.confirmed(receives=[(one.child, 0x9001)], sends=[old, new])
    one.wait(1000.0)
    assert set(one.inbound) == {old, new}


def test_the_old_outbound_sa_drains_after_the_switch() -> None:
    one = OnePair().begin()
    spi, old = one.in_use()
    one.confirmed(receives=[(one.child, 0x9002)], sends=[spi])
    assert one.pinned[one.child] == Spi(0x9002)
    assert set(one.outbound) == {old, Spi(0x9002)}
    one.wait(outbound_drain(one.flow.child))
    assert set(one.outbound) == {Spi(0x9002)}
    assert [spi for _, spi in one.records[-1].sends] == [Spi(0x9002)]


def test_a_peer_that_offers_too_many_gets_no_more_room() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    for number in range(10):
        one.confirmed(receives=[(one.child, 0x9010 + number)], sends=[spi])
        assert len(one.outbound) <= MAX_EPOCHS
    assert one.pinned[one.child] == Spi(0x9019)


def test_at_most_three_inbound_sas_and_no_fourth_before_one_is_gone() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    for number in range(2, 10):
        one.tell(PeerOffered(OfferSeq(100 + number), Boot(f"{number:032x}")))
        assert len(one.inbound) <= MAX_EPOCHS
    assert spi in one.inbound


# The peer that does not take what it is offered


def test_a_peer_that_declines_is_offered_another_after_a_while() -> None:
    one = OnePair().begin()
    [declined] = one.inbound
    spans = []
    for _ in range(12):
        one.confirmed()
        assert one.inbound == {}, "it carried nothing, and never will"
        due = pair.deadline(one.state)
        assert due is not None
        spans.append(due.at - one.now)
        one.wait(due.at - one.now)
        assert len(one.inbound) == 1
    assert declined not in one.inbound
    assert all(after >= before - 1e-9 for before, after in pairwise(spans))
    assert spans[0] == pytest.approx(0.1)
    assert spans[-1] == pytest.approx(30.0)


def test_silence_is_not_refusal() -> None:
    """The peer's record was written before it heard of our newest one."""
    one = OnePair().begin()
    old, _ = one.in_use()
    one.roll_over(2)
    one.confirmed(receives=[(one.child, 0x9001)], sends=[old], heard=1)
    one.wait(1000.0)
    assert len(one.inbound) == 2


def test_a_peer_that_received_may_be_offered_again_at_once() -> None:
    one = OnePair().begin()
    for _ in range(8):
        one.confirmed()
        one.wait(31.0)
    one.confirmed()
    assert one.flow.retry_at is not None
    one.confirmed(receives=[(one.child, 0x9001)])
    assert one.flow.failures == 0
    assert len(one.inbound) == 1


def test_two_hosts_that_both_decline_do_not_call_each_other() -> None:
    one = OnePair(refuse_outbound="another program's SP stands under it").begin()
    for number in range(20):
        one.confirmed(receives=[(one.child, 0x9001 + number)])
    assert one.flow.failures >= 1
    assert len(one.inbound) == 0
    assert sum(isinstance(order, InstallInbound) for order in one.orders) == 1


def test_what_cannot_be_used_is_answered() -> None:
    """Or the peer would wait for ever for a host that has heard it."""
    one = OnePair(refuse_outbound="no").begin()
    records = len(one.records)
    one.confirmed(receives=[(one.child, 0x9001)], sends=list(one.inbound))
    assert len(one.records) == records + 1
    assert one.records[-1].heard == 1
    assert one.records[-1].sends == ()


def test_a_key_that_is_wiped_is_answered() -> None:
    one = OnePair().begin()
    records = len(one.records)
    one.confirmed(receives=[(one.child, 0x9001)], sends=list(one.inbound), own_offer=77)
    assert not any(isinstance(order, InstallOutbound) for order in one.orders)
    assert len(one.records) == records + 1


def test_a_child_that_we_do_not_have_is_answered() -> None:
    one = OnePair().begin(flows=1)
    other = replace(one.child, flow=FlowName("elsewhere"))
    records = len(one.records)
    one.confirmed(receives=[(other, 0x9001)], sends=list(one.inbound))
    assert len(one.records) == records + 1


def test_a_kernel_that_refuses_is_asked_again_ever_more_slowly() -> None:
    one = OnePair(refuse_inbound="no memory").begin()
    assert pair.blocked_reason(one.state, one.flow) == "no memory"
    one.wait(300.0)
    asked = sum(isinstance(order, InstallInbound) for order in one.orders)
    assert 8 < asked < 25
    one.refuse_inbound = ""
    one.wait(31.0)
    assert len(one.inbound) == 1


# Loss


def test_a_lost_outbound_sa_blocks_and_tells_the_peer() -> None:
    one = OnePair().begin()
    spi, out = one.in_use()
    del one.outbound[out]
    one.tell(SaLost(one.child, out, inbound=False, reason="hard lifetime"))
    assert BlockOutbound(one.child) in one.orders
    assert one.records[-1].sends == ()
    assert pair.blocked_reason(one.state, one.flow) == "hard lifetime"
    one.confirmed(receives=[(one.child, 0x9002)], sends=[spi])
    assert one.flow.phase is Phase.INSTALLED


def test_a_lost_inbound_sa_is_replaced_at_once() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    del one.inbound[spi]
    one.tell(SaLost(one.child, spi, inbound=True, reason="flushed"))
    [new] = one.inbound
    assert new != spi
    assert [keyed.spi for keyed in one.records[-1].receives] == [new]


def test_a_draining_sa_that_is_gone_is_not_removed_again() -> None:
    one = OnePair().begin()
    old, _ = one.in_use()
    one.roll_over(2)
    one.confirmed(receives=[(one.child, 0x9001)], sends=[max(one.inbound)])
    del one.inbound[old]
    one.wait(2 * inbound_drain(one.flow.child))
    assert len(one.flow.inbound) == 1


def test_a_soft_limit_asks_for_a_successor() -> None:
    one = OnePair().begin()
    spi, out = one.in_use()
    one.tell(SaSoftExpired(one.child, spi, inbound=True))
    assert len(one.inbound) == 2
    one.tell(SaSoftExpired(one.child, spi, inbound=True))
    assert len(one.inbound) == 2
    one.tell(SaSoftExpired(one.child, out, inbound=False))
    assert isinstance(one.orders[-1], WantRollover)
    orders = len(one.orders)
    one.tell(SaSoftExpired(one.child, Spi(0x7777), inbound=False))
    assert len(one.orders) == orders


def test_without_an_offer_of_the_peer_nothing_new_and_nothing_less() -> None:
    one = OnePair().begin()
    spi, out = one.in_use()
    one.tell(PeerOfferEnded("it expired"))
    one.roll_over(2)
    one.wait(1000.0)
    assert (set(one.inbound), set(one.outbound)) == ({spi}, {out})
    one.tell(PeerOffered(OfferSeq(102), Boot("a" * 32)))
    assert len(one.inbound) == 2


def test_an_offer_that_is_not_believed_takes_nothing_away() -> None:
    """Whoever can write to the directory can put one there."""
    one = OnePair().begin()
    spi, out = one.in_use()
    before, orders = one.flow, len(one.orders)
    one.tell(PeerOfferRefused("its offer was refused: forged"))
    assert (one.flow, len(one.orders)) == (before, orders)
    assert (set(one.inbound), set(one.outbound)) == ({spi}, {out})


# Revocation


def test_a_revoked_peer_is_cut_off_at_once() -> None:
    one = OnePair().begin(flows=2)
    children_of = list(one.state.flows)
    one.confirmed(
        receives=[(child, 0x9001 + at) for at, child in enumerate(children_of)],
        sends=list(one.inbound),
    )
    assert {flow.phase for flow in one.state.flows.values()} == {Phase.INSTALLED}
    before = len(one.orders)
    one.tell(PeerRevoked(frozenset({OfferSeq(101)}), "its certificate was revoked"))
    assert (one.inbound, one.outbound, one.pinned) == ({}, {}, {})
    for flow in one.state.flows.values():
        assert flow.phase is Phase.BLOCKED
        assert pair.blocked_reason(one.state, flow) == "its certificate was revoked"
    kinds = [type(order) for order in one.orders[before:]]
    assert kinds == [BlockOutbound, RemoveOutbound, RemoveInbound] * 2, "ours to send goes first"
    assert pair.deadline(one.state) is None


def test_nothing_is_keyed_with_the_revoked_and_a_new_offer_is_a_new_beginning() -> None:
    one = OnePair().begin()
    one.in_use()
    one.tell(PeerRevoked(frozenset({OfferSeq(101)}), "revoked"))
    orders = len(one.orders)
    one.roll_over(2)
    one.wait(1000.0)
    one.tell(TimerFired())
    assert len(one.orders) == orders
    one.tell(PeerOffered(OfferSeq(102), Boot("a" * 32)))
    assert one.records[-1].peer_offer == 102
    assert one.records[-1].heard == 0, "what was heard before was perhaps another's word"
    [spi] = one.inbound
    one.confirmed(receives=[(one.child, 0x9002)], sends=[spi], own_offer=2, peer_offer=102)
    assert one.flow.phase is Phase.INSTALLED


def test_what_is_keyed_with_another_offer_of_the_peer_stays() -> None:
    """The peer shows another certificate, and the one before is revoked."""
    one = OnePair().begin()
    old, out = one.in_use()
    one.tell(PeerOffered(OfferSeq(102), Boot("a" * 32)))
    [new] = one.inbound.keys() - {old}
    one.confirmed(receives=[(one.child, 0x9002)], sends=[new], peer_offer=102)
    assert one.outbound.keys() == {out, Spi(0x9002)}, "the old one drains"
    one.tell(PeerRevoked(frozenset({OfferSeq(101)}), "revoked"))
    assert one.inbound.keys() == {new}
    assert one.outbound.keys() == {Spi(0x9002)}
    assert one.pinned == {one.child: Spi(0x9002)}
    assert one.flow.phase is Phase.INSTALLED
    assert one.records[-1].sends == ((one.child, Spi(0x9002)),)


def test_an_old_offer_that_still_carries_is_replaced_by_the_new_one() -> None:
    """Revoked before the peer has confirmed under its new certificate."""
    one = OnePair().begin()
    one.in_use()
    one.tell(PeerOffered(OfferSeq(102), Boot("a" * 32)))
    one.tell(PeerRevoked(frozenset({OfferSeq(101)}), "revoked"))
    assert (one.outbound, one.pinned) == ({}, {})
    assert one.records[-1].sends == ()
    [spi] = one.inbound
    one.confirmed(receives=[(one.child, 0x9002)], sends=[spi], peer_offer=102)
    assert one.flow.phase is Phase.INSTALLED


def test_adopted_sas_of_a_revoked_peer_go() -> None:
    one = OnePair()
    one.tell(ChildrenChanged(children()))
    child = one.child
    one.inbound[Spi(0x8001)], one.outbound[Spi(0x8002)] = child, child
    one.pinned[child] = Spi(0x8002)
    adopted = [AdoptedSa(child, Spi(spi), Aead.AES_128_GCM) for spi in (0x8001, 0x8002)]
    one.tell(Adopted((adopted[0],), (adopted[1],)), PeerRevoked(frozenset(), "revoked"))
    assert (one.inbound, one.outbound, one.pinned) == ({}, {}, {})
    assert pair.blocked_reason(one.state, one.flow) == "revoked", "own offer or not"
    one.tell(ChildrenChanged(()), ChildrenChanged(children()))
    one.tell(OwnOffered(OfferSeq(1), frozenset({OfferSeq(1)})))
    assert pair.blocked_reason(one.state, one.flow) == "revoked", "a child that is new, too"


def test_an_older_reason_gives_way() -> None:
    one = OnePair(refuse_inbound="the kernel says no").begin()
    assert pair.blocked_reason(one.state, one.flow) == "the kernel says no"
    one.tell(PeerRevoked(frozenset({OfferSeq(101)}), "revoked"))
    assert pair.blocked_reason(one.state, one.flow) == "revoked"


# Adoption and policy


def test_adopted_sas_carry_on_and_are_replaced() -> None:
    one = OnePair()
    one.tell(ChildrenChanged(children()))
    child = one.child
    one.inbound[Spi(0x8001)], one.outbound[Spi(0x8002)] = child, child
    one.pinned[child] = Spi(0x8002)
    one.tell(
        Adopted(
            (AdoptedSa(child, Spi(0x8001), Aead.AES_128_GCM),),
            (AdoptedSa(child, Spi(0x8002), Aead.AES_128_GCM),),
        )
    )
    assert one.flow.phase is Phase.INSTALLED
    one.tell(
        OwnOffered(OfferSeq(1), frozenset({OfferSeq(1)})),
        PeerOffered(OfferSeq(101), Boot("a" * 32)),
    )
    assert len(one.inbound) == 2
    named = [keyed.spi for keyed in one.records[-1].receives]
    assert Spi(0x8001) not in named, "its key belongs to offers that are no more"
    assert [spi for _, spi in one.records[-1].sends] == [Spi(0x8002)]
    one.confirmed(receives=[(child, 0x9001)], sends=named)
    one.wait(10.0)
    assert set(one.inbound) == set(named)
    assert set(one.outbound) == {Spi(0x9001)}


def test_a_child_that_is_dropped_takes_its_sas_with_it() -> None:
    one = OnePair().begin()
    one.in_use()
    one.tell(ChildrenChanged(()))
    assert (one.inbound, one.outbound, one.pinned) == ({}, {}, {})
    assert one.records[-1].receives == ()
    assert one.records[-1].sends == ()
    assert pair.deadline(one.state) is None


def test_an_aead_that_the_policy_no_longer_allows_is_replaced() -> None:
    one = OnePair().begin()
    spi, _ = one.in_use()
    [child] = children()
    one.tell(ChildrenChanged((replace(child, aeads=(Aead.CHACHA20_POLY1305,)),)))
    assert len(one.inbound) > 1
    assert spi in one.inbound


# Many children


def test_all_children_go_by_one_order_each() -> None:
    one = OnePair().begin(flows=8)
    assert sum(isinstance(order, InstallInbound) for order in one.orders) == 1
    assert len(one.records) == 1
    old = set(one.inbound)
    receives = [(child, 0x9000 + at) for at, child in enumerate(one.inbound.values())]
    one.confirmed(receives=receives, sends=list(one.inbound))
    one.roll_over(2)
    new = set(one.inbound) - old
    one.confirmed(receives=receives, sends=list(new))
    one.orders.clear()
    one.wait(2 * inbound_drain(children()[0]))
    looks = [order for order in one.orders if isinstance(order, ReadUsage)]
    assert [len(look.sas) for look in looks] == [8]
    assert set(one.inbound) == new


# Whatever comes


SPIS = st.integers(0x9000, 0x9005)
FACTS = st.one_of(
    st.tuples(st.just("own"), st.integers(1, 6)),
    st.tuples(st.just("peer"), st.integers(101, 106)),
    st.tuples(st.just("reboot"), st.integers(107, 109)),
    st.tuples(st.just("ended"), st.just(0)),
    st.tuples(st.just("revoked"), st.integers(0, 1 << 6)),
    st.tuples(st.just("word"), st.integers(0, 1 << 12)),
    st.tuples(st.just("wait"), st.sampled_from([0, 1, 5, 60])),
    st.tuples(st.just("lost"), st.integers(0, 5)),
    st.tuples(st.just("soft"), st.integers(0, 5)),
    st.tuples(st.just("refuse"), st.integers(0, 3)),
    st.tuples(st.just("policy"), st.integers(0, 2)),
    st.tuples(st.just("timer"), st.just(0)),
)


def _happens(one: OnePair, what: str, value: int) -> None:
    match what:
        case "own":
            held = frozenset(OfferSeq(max(1, value - back)) for back in range(2))
            one.tell(OwnOffered(OfferSeq(value), held))
        case "peer" | "reboot":
            boot = "a" if what == "peer" else "b"
            one.tell(PeerOffered(OfferSeq(value), Boot(boot * 32)))
        case "ended":
            one.tell(PeerOfferEnded("test"))
        case "revoked":
            offers = (at for at in range(6) if value >> at & 1)
            one.tell(PeerRevoked(frozenset(OfferSeq(101 + at) for at in offers), "test"))
        case "word":
            _says(one, value)
        case "wait":
            one.wait(float(value))
        case "lost":
            _loses(one, value)
        case "soft":
            for spi, child in list(one.inbound.items())[value : value + 1]:
                one.tell(SaSoftExpired(child, spi, inbound=True))
        case "refuse":
            one.refuse_inbound = "no" if value & 1 else ""
            one.refuse_outbound = "no" if value & 2 else ""
        case "policy":
            one.tell(ChildrenChanged(children(value) if value else ()))
        case _:
            one.tell(TimerFired())


def _says(one: OnePair, bits: int) -> None:
    """Any word of the peer: it may name, send on and have heard whatever it likes."""
    mine = list(one.inbound)
    sends = [spi for at, spi in enumerate(mine) if bits >> at & 1]
    known = [flow.child.id for flow in one.state.flows.values()]
    receives = [(child, 0x9000 + (bits >> 6) % 8 + 16 * at) for at, child in enumerate(known)]
    heard = (bits >> 9) % (len(one.records) + 1)
    one.confirmed(
        receives=receives, sends=sends, heard=heard, own_offer=1 + bits % 6, peer_offer=101
    )


def _loses(one: OnePair, at: int) -> None:
    sas = [(spi, child, True) for spi, child in one.inbound.items()]
    sas += [(spi, child, False) for spi, child in one.outbound.items()]
    for spi, child, inbound in sas[at : at + 1]:
        del (one.inbound if inbound else one.outbound)[spi]
        if one.pinned.get(child) == spi:
            del one.pinned[child]
        one.tell(SaLost(child, spi, inbound=inbound, reason="by hand"))


@given(st.lists(FACTS, max_size=40))
def test_whatever_comes_promises_hold_and_the_flow_comes(facts: list[tuple[str, int]]) -> None:
    """Records speak the truth, orders come one at a time, what is pinned is not removed; and with
    a peer that behaves, the flow gets protected in the end."""
    one = OnePair().begin()
    for what, value in facts:
        _happens(one, what, value)
        assert len(one.inbound) <= MAX_EPOCHS * max(1, len(one.state.flows))
        known = {spi for flow in one.state.flows.values() for spi in _spis(flow)}
        assert known == set(one.inbound) | set(one.outbound)
    one.refuse_inbound = one.refuse_outbound = ""
    one.tell(ChildrenChanged(children()), OwnOffered(OfferSeq(9), frozenset({OfferSeq(9)})))
    one.tell(PeerOffered(OfferSeq(110), Boot("c" * 32)))
    for number in range(6):
        one.wait(31.0)
        newest = one.records[-1].receives
        sends = [keyed.spi for keyed in newest if keyed.own_offer == 9]
        one.confirmed(
            receives=[(one.child, 0xA000 + number // 3)],
            sends=sends,
            own_offer=9,
            peer_offer=110,
        )
    one.wait(31.0)
    assert one.flow.phase is Phase.INSTALLED, one.flow


def _spis(flow: FlowState) -> list[Spi]:
    return [*(sa.spi for sa in flow.inbound), *(sa.spi for sa in flow.outbound)]
