"""The IKE machine, fact by fact: what is pinned stands, what is used stays, nothing piles up."""

from dataclasses import replace

import pytest

from tests.unit.machines.one_connection import OneConnection, ike_children
from tunsec.machines import ike_flow, ike_peer
from tunsec.machines.facts import ChildrenChanged, OutboundTaken
from tunsec.machines.flow import Phase
from tunsec.machines.ike_facts import (
    Adopted,
    CharonAway,
    CharonReady,
    IkeDown,
    IkeReplaced,
    KernelSa,
    ReauthWanted,
    SaGone,
)
from tunsec.machines.ike_flow import ChildState
from tunsec.machines.ike_orders import (
    Initiate,
    ListSas,
    LoadConnection,
    PinOutbound,
    RemoveStray,
    TerminateChild,
    TerminateIke,
)
from tunsec.machines.orders import BlockOutbound
from tunsec.model.clock import Instant, Seconds
from tunsec.model.flow import Keying
from tunsec.model.names import Spi


def test_from_blocked_to_installed() -> None:
    one = OneConnection()
    one.tell(ChildrenChanged(ike_children()))
    assert (one.orders, one.phase) == ([], Phase.BLOCKED)
    assert ike_peer.blocked_reason(one.state, one.flow, Instant(one.now)) == (
        "charon was not reached yet"
    )
    one.tell(CharonReady())
    kinds = [type(order) for order in one.orders]
    assert kinds.index(LoadConnection) < kinds.index(Initiate) < kinds.index(PinOutbound)
    assert one.pinned == {one.child: one.up[2].spi_out}
    phases = [one.phase]
    one.peer_sends()
    phases.append(one.phase)
    assert phases == [Phase.KEYING, Phase.INSTALLED], "at first nobody sends to us"


def test_a_peer_without_tunsec_counts_after_a_while() -> None:
    one = OneConnection().begin()
    one.wait(ike_flow.ONE_WAY)
    assert one.phase is Phase.INSTALLED


def test_a_peer_without_tunsec_counts_through_rekeys() -> None:
    one = OneConnection().begin(after="1s")
    one.wait(ike_flow.ONE_WAY + 0.5)
    for _ in range(40):
        assert one.phase in (Phase.INSTALLED, Phase.REKEYING)
        one.wait(0.1)
    assert one.flow.rekeys >= 4


def test_the_other_host_waits_for_its_turn_and_no_longer() -> None:
    one = OneConnection(first=False).begin()
    one.wait(ike_peer.HELP_AFTER - 0.1)
    assert one.ordered(Initiate) == []
    one.wait(0.2)
    assert len(one.ordered(Initiate)) == 1


def test_a_host_that_returns_waits_for_no_turn() -> None:
    one = OneConnection(first=False).begin()
    one.peer_comes_anew()
    one.charon_crashes()
    initiated = len(one.ordered(Initiate))
    one.tell(CharonReady())
    assert len(one.ordered(Initiate)) == initiated + 1


def test_the_other_host_follows_at_once() -> None:
    one = OneConnection(first=False).begin()
    one.peer_comes_anew()
    assert len(one.ordered(Initiate)) == 1
    assert one.loaded == [0], "the peer's IKE_SA serves both"
    assert one.phase is Phase.INSTALLED


def test_it_follows_at_once_though_the_peer_was_away_for_long() -> None:
    one = OneConnection(first=False, silent=True).begin()
    one.wait(100)
    assert one.flow.failures > 4
    one.silent, tried = False, len(one.ordered(Initiate))
    one.peer_comes_anew()
    assert len(one.ordered(Initiate)) == tried + 1
    assert one.phase is Phase.INSTALLED


def test_a_second_ike_sa_is_no_reason_to_try_sooner() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    one.silent = True
    one.wait(60)
    tried = len(one.ordered(Initiate))
    one.peer_comes_anew()
    assert len(one.ordered(Initiate)) == tried


def test_a_rekey_pins_the_new_one_and_drains_the_old() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    first = one.flow.active
    assert first is not None
    one.wait(10.1)
    second = one.flow.active
    assert second is not None
    assert second.slot != first.slot
    assert one.phase is Phase.REKEYING
    one.wait(5)
    assert one.ordered(TerminateChild) != []
    assert [held.id for held in one.flow.held if held.own] == [second.id]
    assert (one.phase, one.flow.rekeys) == (Phase.INSTALLED, 1)


def test_an_old_one_stays_while_the_peer_sends_on_it() -> None:
    one = OneConnection().begin()
    first = one.flow.active
    assert first is not None
    for beat in range(40):
        one.packets[first.spi_in, True] = beat
        one.wait(0.5)
    assert one.ordered(TerminateChild) == []
    one.wait(5)
    assert first.id not in one.up


def test_an_hour_is_a_handful_of_looks() -> None:
    one = OneConnection().begin(after="1h")
    one.peer_sends()
    orders = len(one.orders)
    one.wait(3500)
    assert len(one.orders) - orders < 250
    assert one.ordered(Initiate, after=orders) == []


def test_a_soft_limit_by_bytes_asks_for_a_rekey() -> None:
    one = OneConnection()
    [child] = ike_children(after="1h")
    rule = replace(child.rekey, soft_bytes=1 << 30)
    one.tell(ChildrenChanged((replace(child, rekey=rule),)), CharonReady())
    one.volume = 1 << 29
    one.wait(5)
    assert len(one.ordered(Initiate)) == 1
    one.volume = 1 << 30
    one.wait(40)
    assert len(one.ordered(Initiate)) >= 2


def test_an_option_that_was_ignored_keeps_the_flow_blocked_and_is_named() -> None:
    one = OneConnection(ignored="replay_window: asked for 1024, the kernel has 32").begin()
    assert one.pinned == {}
    assert "replay_window" in ike_peer.blocked_reason(one.state, one.flow, Instant(one.now))
    assert one.up == {}, "it was terminated"
    one.ignored = ""
    one.wait(1)
    assert one.pinned != {}


def test_an_attempt_that_fails_tells_why_and_is_made_again() -> None:
    one = OneConnection(silent=True, words="no issuer certificate found").begin()
    one.wait(1.5)
    assert "no issuer" in ike_peer.blocked_reason(one.state, one.flow, Instant(one.now))
    one.wait(60)
    assert 3 <= len(one.ordered(Initiate)) < 60, "backoff"
    one.silent = False
    one.wait(40)
    assert one.pinned != {}
    assert one.flow.reason == ""


def test_a_slow_attempt_is_left_alone_and_not_for_ever() -> None:
    one = OneConnection(silent=True, busy=True).begin()
    one.wait(ike_flow.ATTEMPT_LIMIT - 1)
    assert len(one.ordered(Initiate)) == 1
    one.wait(5)
    assert len(one.ordered(Initiate)) == 2


def test_a_failed_rekey_goes_over_a_fresh_ike_sa() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    one.silent = True
    one.wait(12)
    assert one.loaded[-1] > 0
    assert one.phase is Phase.REKEYING, "the old one carries on"
    one.silent = False
    one.wait(40)
    active = one.flow.active
    assert active is not None
    assert active.ike == max(one.ikes)


def test_a_crash_of_charon_loses_nothing() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    before = one.pinned[one.child]
    one.charon_crashes()
    one.wait(30)
    assert one.pinned[one.child] == before
    assert one.phase is Phase.INSTALLED
    one.tell(CharonReady())
    after = one.pinned[one.child]
    assert after != before
    assert (before, False) in one.kernel, "a packet may be on its way"
    one.wait(5)
    assert (before, False) not in one.kernel
    inbound = [spi for spi, is_inbound in one.kernel if is_inbound]
    assert len(inbound) == 3, "the peer sends on the old one until it has a new one"
    one.peer_sends(slot=1)
    one.wait(10)
    assert sorted(one.kernel) == sorted(
        pair for seen in one.up.values() for pair in ((seen.spi_in, True), (seen.spi_out, False))
    )
    assert one.phase is Phase.INSTALLED


def test_a_stray_on_which_the_peer_sends_stays() -> None:
    one = OneConnection().begin()
    theirs = one.peer_sends()
    one.charon_crashes()
    one.tell(CharonReady())
    one.peer_sends(slot=1)
    for beat in range(40):
        one.packets[theirs.spi_in, True] = beat
        one.wait(0.5)
    assert (theirs.spi_in, True) in one.kernel
    one.wait(5)
    assert (theirs.spi_in, True) not in one.kernel


def test_a_peer_that_crashed_is_followed_and_its_new_ike_sa_trusted() -> None:
    one = OneConnection().begin(after="1h")
    one.peer_sends()
    one.wait(60)
    old = one.flow.active
    assert old is not None
    initiated = len(one.ordered(Initiate))
    one.peer_comes_anew(slot=1)
    assert len(one.ordered(Initiate)) == initiated + 1
    assert one.loaded[-1] == 1, "over a fresh IKE_SA: the old one may be dead"
    active = one.flow.active
    assert active is not None
    assert active.own
    assert active.id != old.id
    one.wait(30)
    assert old.id not in one.up


def test_while_ours_is_not_there_yet_the_peers_new_one_carries() -> None:
    one = OneConnection().begin(after="1h")
    one.wait(60)
    one.silent = True
    theirs = one.peer_comes_anew()
    old = one.flow.active
    assert old is not None
    assert old.own, "nothing was heard on theirs yet"
    one.packets[theirs.spi_in, True] = 1
    one.wait(0.1)
    active = one.flow.active
    assert active is not None
    assert not active.own
    one.silent = False
    one.wait(20)
    active = one.flow.active
    assert active is not None
    assert active.own


def test_both_begin_at_once_and_nobody_doubts() -> None:
    one = OneConnection().begin()
    one.peer_comes_anew()
    one.wait(5)
    assert one.loaded == [0]
    assert len(one.ordered(Initiate)) == 1


def test_two_hosts_that_follow_each_other_come_to_rest() -> None:
    one = OneConnection().begin(after="1h")
    one.wait(60)
    one.peer_comes_anew(slot=0)
    one.peer_comes_anew(slot=1)  # its answer to ours
    one.wait(60)
    assert len(one.ordered(Initiate)) == 2


def test_ike_sas_that_carry_nothing_are_ended() -> None:
    one = OneConnection().begin(after="1h")
    one.peer_sends()
    one.wait(60)
    one.peer_comes_anew(slot=1)
    one.tell(*one.ended(3))
    one.wait(60)
    assert one.ordered(TerminateIke) != []
    assert {seen.ike for seen in one.up.values()} == set(one.ikes)


def test_a_rekeyed_ike_sa_keeps_its_children() -> None:
    one = OneConnection().begin()
    one.tell(IkeReplaced(1, 77))
    assert all(held.ike == 77 for held in one.flow.held)
    assert set(one.state.ikes) == {77}


def test_the_death_of_the_ike_sa_blocks_and_keys_anew() -> None:
    one = OneConnection().begin()
    one.wait(20)
    one.silent = True
    blocked = len(one.ordered(BlockOutbound))
    gone = max(one.ikes)
    one.ikes.clear()
    for child_id in list(one.up):
        one.tell(*one.ended(child_id))
    one.tell(IkeDown(gone))
    assert len(one.ordered(BlockOutbound)) == blocked + 1
    assert one.pinned == {}


def test_an_sa_that_somebody_deleted_is_replaced() -> None:
    one = OneConnection().begin()
    one.wait(20)
    lost = one.flow.active
    assert lost is not None
    del one.kernel[lost.spi_out, False]
    one.tell(SaGone(one.child, lost.spi_out, False))
    assert one.pinned[one.child] != lost.spi_out


def test_charon_is_asked_to_delete_what_lost_its_sas() -> None:
    one = OneConnection().begin()
    one.wait(20)
    lost = one.flow.active
    assert lost is not None
    del one.kernel[lost.spi_in, True]
    one.tell(SaGone(one.child, lost.spi_in, True))
    one.wait(ike_flow.ASK_AFTER + 0.1)
    assert TerminateChild(lost.ike, lost.id) in one.orders


def test_a_pin_that_is_refused_says_why() -> None:
    one = OneConnection(pin_error="another program's SP stands there").begin()
    assert one.pinned == {}
    assert "another program" in ike_peer.blocked_reason(one.state, one.flow, Instant(one.now))
    one.pin_error = ""
    one.wait(5)
    assert one.pinned != {}


def test_adopted_sas_carry_until_charon_has_others() -> None:
    one = OneConnection()
    one.tell(ChildrenChanged(ike_children()))
    one.kernel = {(Spi(0x5000), True): one.child, (Spi(0x6000), False): one.child}
    one.pinned[one.child] = Spi(0x6000)
    strays = tuple(KernelSa(spi, None) for spi, inbound in one.kernel if inbound)
    one.tell(Adopted(one.child, strays, KernelSa(Spi(0x6000), None)))
    assert one.phase is Phase.REKEYING
    one.wait(100)
    assert one.pinned[one.child] == Spi(0x6000)
    one.tell(CharonReady())
    assert one.pinned[one.child] != Spi(0x6000)


def test_a_daemon_that_returns_finds_its_child_sas() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    one.wait(3)
    active = one.flow.active
    assert active is not None
    again = OneConnection(
        now=one.now, ikes=one.ikes, up=one.up, kernel=one.kernel, pinned=one.pinned
    )
    again.tell(ChildrenChanged(ike_children()))
    inbound = tuple(KernelSa(spi, None) for spi, is_inbound in one.kernel if is_inbound)
    again.tell(Adopted(again.child, inbound, KernelSa(active.spi_out, None)), CharonReady())
    assert again.ordered(Initiate) == []
    assert again.ordered(RemoveStray) == []
    assert again.phase is Phase.INSTALLED
    found = again.flow.active
    assert found is not None
    assert found.state is ChildState.ACTIVE


def test_a_child_that_leaves_takes_everything_with_it() -> None:
    one = OneConnection().begin()
    one.peer_sends()
    one.tell(ChildrenChanged(()))
    assert (one.pinned, one.up) == ({}, {})


def test_what_another_keying_took_drains_and_is_never_blocked() -> None:
    one = OneConnection().begin()
    one.wait(20)
    theirs = one.peer_sends()
    child = replace(one.flow.child, keying=Keying.DIRECTORY)
    one.tell(ChildrenChanged((child,)), OutboundTaken(one.child))
    one.pinned.clear()
    initiated = len(one.ordered(Initiate))
    one.wait(60)
    assert len(one.ordered(Initiate)) == initiated
    assert one.ordered(BlockOutbound) == []
    assert set(one.up) == {theirs.id}, "the peer's is the peer's to end"
    one.tell(*one.ended(theirs.id))
    assert one.flow.empty


def test_what_was_taken_can_be_taken_back() -> None:
    one = OneConnection().begin()
    child = one.flow.child
    one.tell(ChildrenChanged((replace(child, keying=Keying.DIRECTORY),)), OutboundTaken(child.id))
    one.tell(ChildrenChanged((child,)))
    assert not one.flow.taken
    assert one.pinned[child.id] is not None


def test_proof_of_identity_is_wanted_anew() -> None:
    one = OneConnection().begin(after="1h")
    one.wait(60)
    old = one.flow.active
    assert old is not None
    one.tell(ReauthWanted("revocation list changed"))
    active = one.flow.active
    assert active is not None
    assert active.ike != old.ike
    one.wait(60)
    assert old.ike not in one.ikes


def test_proof_is_wanted_though_charon_was_only_just_told_of_it() -> None:
    one = OneConnection().begin(after="1h")
    one.wait(60)
    old = one.flow.active
    assert old is not None
    for seen in one.up.values():
        one.up[seen.id] = replace(seen, age=60.0)
    one.ikes = {key: replace(ike, age=60.0) for key, ike in one.ikes.items()}
    one.tell(CharonReady(), ReauthWanted("revocation list changed"))
    active = one.flow.active
    assert active is not None
    assert active.ike != old.ike
    one.wait(60)
    assert old.ike not in one.ikes


def test_who_does_not_prove_it_is_blocked() -> None:
    one = OneConnection().begin(after="1h")
    one.peer_sends()
    one.wait(60)
    one.silent, one.words = True, "certificate was revoked"
    one.tell(ReauthWanted("revocation list changed"))
    one.wait(ike_peer.PROOF_WITHIN + 1)
    assert one.pinned == {}
    assert "revoked" in ike_peer.blocked_reason(one.state, one.flow, Instant(one.now))


def test_reauthentication_comes_by_the_clock() -> None:
    one = OneConnection()
    one.state = replace(one.state, reauth_after=Seconds(600.0))
    one.begin(after="1h")
    one.wait(500)
    assert one.loaded == [0]
    one.wait(150)
    assert one.loaded == [0, 1]
    assert len(one.ikes) <= 2


@pytest.mark.parametrize("first", [True, False])
def test_a_charon_that_never_comes_costs_nothing(first: bool) -> None:
    one = OneConnection(first=first)
    one.tell(ChildrenChanged(ike_children()), CharonAway("no charon"))
    one.wait(3600)
    assert one.orders == []
    assert ike_peer.blocked_reason(one.state, one.flow, Instant(one.now)) == "no charon"


def test_the_list_is_taken_now_and_then() -> None:
    one = OneConnection().begin(after="1h")
    lists = len(one.ordered(ListSas))
    one.wait(3000)
    assert 9 <= len(one.ordered(ListSas)) - lists <= 11
