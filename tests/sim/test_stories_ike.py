"""Stories of two hosts whose flow charon keys. They assert on what kernels hold, on what charons
hold, and on what packets do."""

from dataclasses import replace

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left, weight
from tests.sim.cast import QUIET, policy, without_flows
from tests.sim.host import SimHost
from tests.sim.test_stories import Two
from tunsec.machines import ike_peer
from tunsec.machines.flow import PROTECTED
from tunsec.model.clock import Instant
from tunsec.model.ike_sa import EventUnread
from tunsec.model.sa import SaId
from tunsec.model.step import RemoveSa
from tunsec.policy.intent import Intent

SOON = 4.0
"""Seconds within which a flow is protected: the host whose turn it is may start late by HELP_AFTER,
and an attempt that failed waits a second."""
GIVEN_UP = 4.0
"""A charon that does not answer is given up before."""


def by_ike(*, after: str = QUIET, hard: str | None = None, **more: object) -> Intent:
    """A policy under which IKE keys the flow."""
    return policy(2, after=after, hard=hard, by_ike=1, **more)


def pinned(two: Two) -> set[SaId]:
    """The SAs on which the two hosts send."""
    return {two.out(host) for host in two.both}


def reason(two: Two, host: SimHost) -> str:
    """Why a host's flow is not up."""
    assert host.engine is not None
    [(connection, flow)] = host.engine.ike.flows()
    now = Instant(two.world.now)
    assert flow.phase(now) not in PROTECTED
    return ike_peer.blocked_reason(connection.state, flow, now)


def charon_can_be_used(host: SimHost) -> bool:
    """Whether a host's daemon knows its charon to be there."""
    return host.engine is not None and host.engine.ike.ready


def settle(two: Two) -> None:
    """All is quiet, and nothing is left over."""
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(two.world)


# Start


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.5, 30.0, 3 * 3600.0])
@pytest.mark.parametrize("first", ["h0", "h1"])
def test_hosts_start_in_any_order(first: str, gap: float) -> None:
    two = Two(by_ike())
    early, late = two.both if first == "h0" else reversed(two.both)
    two.world.start(early)
    two.world.run(gap)
    assert not two.sends(early)
    two.world.start(late)
    two.protected_within(SOON)
    assert two.key(early) != two.key(late)
    settle(two)


def test_a_charon_that_comes_later() -> None:
    two = Two(by_ike())
    two.right.charon.crash()
    for host in two.both:
        two.world.start(host)
    two.world.run(60.0)
    assert not two.sends(two.left)
    assert "charon" in reason(two, two.right)
    two.world.charons.start(two.right)
    two.protected_within(70.0)
    settle(two)


def test_a_peer_whose_policy_comes_later() -> None:
    """The left host asks for what the right one does not have yet: it must not be tired of it."""
    two = Two(by_ike())
    two.world.apply(two.right, without_flows(two.world.intent, ["overlay0"]))
    for host in two.both:
        two.world.start(host)
    two.world.run(120.0)
    assert not two.sends(two.left)
    assert reason(two, two.left)
    two.world.apply(two.right, two.world.intent)
    two.protected_within(SOON)
    settle(two)


# Rekeys


def test_both_rekey_again_and_again() -> None:
    """Each host replaces the CHILD_SA on which it sends; the other's is not its business."""
    two = Two(by_ike(after="1s", hard="10m")).start()
    seen: set[SaId] = set()
    for _ in range(60):
        two.world.run(0.5)
        seen |= pinned(two)
    assert len(seen) > 50
    two.nothing_lost()
    for host in two.both:
        assert len(two.ours(host)) <= 2 * 4


def test_both_want_new_proof_at_once() -> None:
    """Each makes an IKE_SA of its own, and what stood on the old ones ends when nobody needs it."""
    two = Two(by_ike()).start()
    before, ids = pinned(two), {ike.initiator_spi for ike in two.left.charon.ikes}
    for host in two.both:
        assert host.engine is not None
        host.engine.want_proof("a test")
    two.world.run(15.0)
    assert pinned(two).isdisjoint(before)
    assert ids.isdisjoint(ike.initiator_spi for ike in two.left.charon.ikes)
    settle(two)
    two.nothing_lost()


def test_an_ike_sa_is_rekeyed_under_its_children() -> None:
    two = Two(by_ike(ike_rekey=5.0)).start()
    before, ids = pinned(two), {ike.id for ike in two.left.charon.ikes}
    two.world.run(60.0)
    assert pinned(two) == before, "CHILD_SAs stay as they are"
    assert ids.isdisjoint(ike.id for ike in two.left.charon.ikes)
    two.nothing_lost()


def test_a_policy_with_other_limits_loses_nothing() -> None:
    """What is there goes on; what the new policy asks for comes beside it."""
    two = Two(by_ike()).start()
    before = pinned(two)
    for host in two.both:
        two.world.apply(host, by_ike(after="1h", hard="3h"))
    two.world.run(1.0)
    two.world.run(12.0)
    assert pinned(two).isdisjoint(before)
    settle(two)
    two.nothing_lost()


@pytest.mark.parametrize("seed", [0, 5, 38])
def test_a_policy_with_other_limits_that_comes_with_a_restart_loses_nothing(seed: int) -> None:
    """As an upgrade does it: what an earlier life had made, and what is made over its IKE_SAs, is
    no fault of charon's."""
    two = Two(by_ike(), seed=seed).start()
    two.world.run(2.0 + seed * 0.37)
    before = pinned(two)
    for host in two.both:
        two.world.crash(host)
        two.world.apply(host, by_ike(after="2h"))
        two.world.run(1.0 + seed % 4 * 0.7)
        two.world.start(host)
    two.world.run(40.0)
    assert pinned(two).isdisjoint(before)
    settle(two)
    two.nothing_lost()


@pytest.mark.parametrize("seed", [7, 8])
def test_a_policy_with_other_limits_that_meets_a_rekey_loses_nothing(seed: int) -> None:
    """A CHILD_SA is made when one host has the new policy and the other not yet: it is as one of
    the two policies asks, and charon has ignored nothing."""
    two = Two(by_ike(after="1s", hard="9h"), seed=seed).start()
    two.world.run(3.0 + seed * 0.137)
    for host in two.both:
        two.world.apply(host, by_ike(after="1h"))
        two.world.run(seed % 5 * 0.1)
    two.world.run(15.0)
    settle(two)
    two.nothing_lost()


def test_a_soft_limit_by_packets_brings_new_keys_before_the_hard_one() -> None:
    two = Two(by_ike(after="20s", hard="10m", soft_packets=400))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.start()
    seen: set[SaId] = set()
    for _ in range(40):
        two.world.run(0.5)
        seen |= pinned(two)
    assert len(seen) > 6
    two.nothing_lost()


def test_a_virtual_day_of_rekeys() -> None:
    two = Two(by_ike(after="1h"))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.pause = 60.0
    two.stream.start()
    seen: set[SaId] = set()
    for _ in range(24):
        two.world.run(3600.0)
        seen |= pinned(two)
    assert len(seen) >= 46
    settle(two)
    two.nothing_lost()


def test_nothing_grows() -> None:
    two = Two(by_ike(after="1s", hard="10m", ike_rekey=7.0))
    for host in two.both:
        two.world.start(host)

    def weights() -> list[int]:
        """Of both daemons, the least of some looks: a rekey is always under way somewhere."""
        looks: list[list[int]] = []
        for _ in range(20):
            two.world.run(0.11)
            looks.append([weight(host.engine) for host in two.both if host.engine is not None])
        return [min(mine) for mine in zip(*looks, strict=True)]

    two.world.run(10.0)
    early = weights()
    two.world.run(200.0)
    late = weights()
    grown = [after - before for before, after in zip(early, late, strict=True)]
    assert max(grown) < 100, f"{early} -> {late}"


# charon dies, stops, is held


@pytest.mark.parametrize("gap", [0.1, 3.0, 30.0])
def test_a_charon_that_is_killed_costs_nothing(gap: float) -> None:
    """What it left in the kernel carries the flow until there are others."""
    two = Two(by_ike()).start()
    two.world.run(10.0)
    before, used = two.ours(two.left), pinned(two)
    two.world.charons.crash(two.left)
    two.world.run(gap)
    assert two.ours(two.left) >= before
    assert pinned(two) == used
    two.world.charons.start(two.left)
    two.world.run(SOON)
    assert pinned(two).isdisjoint(before)
    settle(two)
    assert not two.ours(two.left) & before
    two.nothing_lost()


def test_both_charons_are_killed_and_one_comes_back_late() -> None:
    two = Two(by_ike()).start()
    before = pinned(two)
    for host in two.both:
        two.world.charons.crash(host)
    two.world.run(5.0)
    two.world.charons.start(two.left)
    two.world.run(20.0)
    assert pinned(two) == before
    two.world.charons.start(two.right)
    two.world.run(30.0 + SOON)
    assert pinned(two).isdisjoint(before)
    settle(two)
    two.nothing_lost()


def test_charon_and_daemon_are_killed_together() -> None:
    two = Two(by_ike()).start()
    two.world.charons.crash(two.left)
    two.world.crash(two.left)
    two.world.run(10.0)
    two.world.start(two.left)
    two.world.run(1.0)
    two.world.charons.start(two.left)
    two.protected_within(SOON)
    settle(two)
    two.nothing_lost()


def test_a_daemon_that_dies_finds_what_charon_keeps() -> None:
    two = Two(by_ike()).start()
    before = pinned(two)
    for host in two.both:
        two.world.crash(host)
        two.world.run(10.0)
        two.world.start(host)
        two.world.run(2.0)
    assert pinned(two) == before
    settle(two)
    two.nothing_lost()


def test_a_clean_stop_takes_the_flow_down_and_back_up() -> None:
    two = Two(by_ike()).start()
    two.world.charons.stop(two.left)
    two.world.run(1.0)
    for host in two.both:
        assert not two.sends(host)
        assert not two.ours(host)
        assert host.kernel.send(two.world.packet(two.child(host))) is None
    two.world.charons.start(two.left)
    two.protected_within(SOON)
    settle(two)


def test_a_held_charon_holds_nobody_up() -> None:
    two = Two(by_ike()).start()
    two.world.charons.freeze(two.left, 20.0)
    two.world.run(10.0)
    assert not charon_can_be_used(two.left)
    two.world.run(15.0)
    assert charon_can_be_used(two.left)
    settle(two)
    two.nothing_lost()


def test_a_held_charon_costs_the_flow_where_dead_peers_are_asked_for() -> None:
    two = Two(by_ike(dead_after="5s")).start()
    two.world.charons.freeze(two.left, 20.0)
    two.world.run(6.0)
    assert not two.ours(two.right), "found dead within 5 s"
    assert not two.sends(two.right)
    two.world.run(20.0)
    two.protected_within(SOON)
    settle(two)


def test_a_rekey_that_finds_a_dead_charon_costs_the_flow_until_it_is_back() -> None:
    """No answer to any exchange is the end of an IKE_SA, says charon, and of all it carries."""
    two = Two(by_ike(after="2s", hard="10m")).start()
    two.world.charons.crash(two.left)
    two.world.run(2.0 + GIVEN_UP)
    assert not two.ours(two.right)
    assert not two.sends(two.right)
    two.world.charons.start(two.left)
    two.protected_within(SOON)


def test_a_host_that_reboots() -> None:
    two = Two(by_ike()).start()
    before = two.ours(two.left)
    two.world.reboot(two.right)
    two.world.run(30.0)
    two.world.start(two.right)
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    assert not two.ours(two.left) & before
    nothing_missing_nothing_left(two.world)


@pytest.mark.parametrize("span", [0.5, 3.0, 20.0])
def test_a_wire_that_is_cut(span: float) -> None:
    two = Two(by_ike(after="4s", hard="10m")).start()
    two.world.wire.cut_off.add(two.left.name)
    two.world.run(span)
    two.world.wire.cut_off.clear()
    two.world.run(15.0)
    two.protected_within(SOON)
    probe = two.stream.probes[two.child(two.left)]
    before = probe.lost
    two.world.run(2.0)
    assert probe.lost == before


# Who is not believed, what is not as asked, what somebody removes


def test_a_peer_that_is_not_believed_is_blocked_until_it_is() -> None:
    two = Two(by_ike())
    two.world.charons.net.disbelieved.add("h1")
    for host in two.both:
        two.world.start(host)
    two.world.run(60.0)
    for host in two.both:
        assert not two.sends(host)
        assert reason(two, host)
        assert not two.ours(host)
    two.world.charons.net.disbelieved.clear()
    two.protected_within(70.0)
    settle(two)


def test_a_peer_that_must_prove_itself_anew_and_cannot_is_cut_off() -> None:
    two = Two(by_ike()).start()
    two.world.charons.net.disbelieved.add("h1")
    assert two.left.engine is not None
    two.left.engine.want_proof("a revocation list")
    two.world.run(15.0)
    assert not two.sends(two.left)
    assert not two.ours(two.left)
    two.world.charons.net.disbelieved.clear()
    two.protected_within(70.0)


def test_a_charon_that_ignores_an_option_keeps_the_flow_blocked() -> None:
    two = Two(by_ike())
    two.left.charon.around.careless = True
    for host in two.both:
        two.world.start(host)
    two.world.run(30.0)
    assert not two.sends(two.left)
    assert "ESN" in reason(two, two.left)
    two.left.charon.around.careless = False
    two.protected_within(70.0)
    settle(two)


def test_a_careless_successor_is_not_used() -> None:
    two = Two(by_ike(after="4s", hard="10m")).start()
    two.left.charon.around.careless = True
    before = two.out(two.left)
    two.world.run(10.0)
    assert two.out(two.left) == before
    two.left.charon.around.careless = False
    two.world.run(20.0)
    assert two.out(two.left) != before
    two.nothing_lost()


@pytest.mark.parametrize("which", ["inbound", "outbound"])
def test_an_sa_that_somebody_removes_is_replaced(which: str) -> None:
    two = Two(by_ike()).start()
    victim = two.out(two.left if which == "outbound" else two.right)
    two.world.laws.excuse([victim])
    two.left.kernel.by_hand(RemoveSa(victim))
    two.world.run(SOON)
    two.protected_within(SOON)
    assert victim not in pinned(two)
    settle(two)


def test_the_kernel_does_not_answer_when_a_child_sa_comes_up() -> None:
    """It is looked at again, and not taken for one that is not as asked."""
    two = Two(by_ike(after="2s", hard="10m")).start()
    two.left.kernel.silent = True
    two.world.run(3.0)
    two.left.kernel.silent = False
    two.world.run(10.0)
    two.protected_within(SOON)
    two.nothing_lost()


def test_the_kernel_does_not_answer_when_charon_is_asked_for_its_list() -> None:
    """Nor does it later tell against a CHILD_SA whose coming was missed with charon's events."""
    two = Two(by_ike(after="2s", hard="10m")).start()
    for _ in range(10):
        assert two.left.link is not None
        two.left.link.lose("the socket was closed")
        two.left.kernel.silent = True
        two.world.run(3.0)
        two.left.kernel.silent = False
        two.world.run(1.0)
        assert two.left.engine is not None
        [(_, flow)] = two.left.engine.ike.flows()
        assert (flow.failures, flow.reason) == (0, "")
    two.protected_within(SOON)
    two.nothing_lost()


def test_what_charon_said_and_nobody_understood_is_in_its_list() -> None:
    two = Two(by_ike()).start()
    engine = two.left.engine
    assert engine is not None
    [(connection, _)] = engine.ike.flows()
    two.world.run(1.0)
    engine.on_ike_event(EventUnread("no key"))
    assert connection.state.listing_since is not None or connection.state.list_at is not None
    began = two.world.now
    two.world.run(1.0)
    assert connection.state.list_at is not None
    assert connection.state.list_at >= began + ike_peer.LIST_EVERY


def test_an_ike_sa_that_came_while_a_list_was_on_its_way_is_known() -> None:
    """charon wrote the list before there was one, and it is read after the event."""
    two = Two(by_ike())
    two.world.start(two.right)
    two.world.run(1.0)
    assert two.right.engine is not None
    assert two.right.link is not None
    two.right.link.dawdle(3.0)
    two.right.engine.on_ike_event(EventUnread("no key"))
    two.world.start(two.left)
    two.world.run(2.0)
    [(connection, _)] = two.right.engine.ike.flows()
    assert connection.state.listing_since is not None
    assert connection.ikes
    two.world.run(2.0)
    [(connection, _)] = two.right.engine.ike.flows()
    assert connection.state.listing_since is None
    nothing_missing_nothing_left(two.world)


def test_an_admins_connection_is_left_alone() -> None:
    two = Two(by_ike()).start()
    [ours] = two.left.charon.loaded.values()
    two.left.charon.load(replace(ours, name="branch"), done=lambda error: None)
    two.world.run(1.0)
    for host in two.both:
        two.world.apply(host, without_flows(two.world.intent, ["overlay0"]))
    two.world.run(5.0)
    assert two.left.charon.loaded.keys() == {"branch"}
