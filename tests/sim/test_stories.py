"""Stories of two hosts and a directory. They assert on what kernels hold and what packets do."""

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left, weight
from tests.sim.cast import QUIET, policy, without_flows, without_host
from tests.sim.host import SimHost
from tests.sim.strangers import stand_in_the_way
from tests.sim.stream import Stream
from tests.sim.world import World
from tunsec.daemon.engine import FAREWELL
from tunsec.machines import pair
from tunsec.machines.flow import MAX_EPOCHS, Phase
from tunsec.model.event import SoftExpired
from tunsec.model.flow import ChildId
from tunsec.model.names import FlowName, HostName
from tunsec.model.ownership import is_our_sa
from tunsec.model.sa import SaId
from tunsec.model.sp import SpDirection
from tunsec.model.step import RemoveSa, RemoveSp, Step
from tunsec.policy.intent import Intent

SOON = 2.0
"""Seconds within which a flow is protected once both daemons are up and reach the directory."""


class Two:
    """h0 and h1, one flow between them, and packets on it both ways all the time."""

    def __init__(self, intent: Intent, *, seed: int = 1) -> None:
        self.world = World(seed, intent, start_within=None)
        self.left = self.world.hosts[HostName("h0")]
        self.right = self.world.hosts[HostName("h1")]
        self.stream = Stream(self.world, pause=0.01)

    def start(self) -> "Two":
        """Both daemons start, the flow gets protected, packets begin."""
        for host in self.both:
            self.world.start(host)
        self.world.run_until(self.world.settled, 120.0)
        self.stream.start()
        return self

    @property
    def both(self) -> tuple[SimHost, SimHost]:
        """The hosts."""
        return self.left, self.right

    def child(self, host: SimHost) -> ChildId:
        """The one child of a host."""
        return host.scope.children[0].id

    def out(self, host: SimHost) -> SaId:
        """The SA on which a host sends now: the one its SP pins."""
        child = self.child(host)
        [spi] = {
            sp.templates[0].spi
            for sp in host.kernel.spd()
            if sp.id.direction is SpDirection.OUT and sp.templates
        }
        assert spi is not None
        return SaId(child.remote, spi)

    def sends(self, host: SimHost) -> bool:
        """Whether a host has an SP that sends."""
        return any(sp.id.direction is SpDirection.OUT and sp.templates for sp in host.kernel.spd())

    def key(self, host: SimHost) -> bytes:
        """Digest of the key with which a host sends, which is the key of the peer's twin."""
        peer = self.right if host is self.left else self.left
        mine, twin = host.kernel.key_of(self.out(host)), peer.kernel.key_of(self.out(host))
        assert mine is not None
        assert mine == twin
        return mine

    def ours(self, host: SimHost) -> set[SaId]:
        """All SAs of tunsec on a host that have a key."""
        return {sa_id for sa_id, sa, _ in host.kernel.keyed_sas() if is_our_sa(sa)}

    def protected_within(self, span: float) -> None:
        """Both directions are protected before so many seconds are over."""
        self.world.run_until(self.world.protected, span, look=0.01)

    def idle(self) -> bool:
        """Whether no rekey is under way."""
        return all(
            flow.phase is Phase.INSTALLED and not host.engine.outbox.under_way
            for host in self.both
            if host.engine is not None
            for _, flow in host.engine.flows()
        )

    def nothing_lost(self) -> None:
        """Every packet so far has arrived."""
        self.stream.stop()
        self.world.run(0.1)
        assert self.stream.probes, "no packet was sent"
        assert self.stream.lost == 0, self.world.tale()


def quiet(**more: object) -> Intent:
    """A policy under which keys stay for hours."""
    return policy(2, after=QUIET, hard=None, **more)


# Start


@pytest.mark.parametrize("gap", [0.0, 0.01, 0.5, 30.0, 3 * 3600.0])
@pytest.mark.parametrize("first", ["h0", "h1"])
def test_hosts_start_in_any_order(first: str, gap: float) -> None:
    two = Two(quiet())
    early, late = two.both if first == "h0" else reversed(two.both)
    two.world.start(early)
    two.world.run(gap)
    assert not two.sends(early)
    two.world.start(late)
    two.protected_within(SOON)
    assert two.key(early) != two.key(late)
    nothing_missing_nothing_left(two.world)


def test_a_host_whose_policy_comes_later() -> None:
    """h0 declares the flow long before h1 does: it must not be tired of offering."""
    two = Two(quiet(flows=2))
    two.world.apply(two.right, without_flows(two.world.intent, ["overlay1"]))
    for host in two.both:
        two.world.start(host)
    two.world.run(120.0)
    child = next(child for child in two.left.scope.children if child.id.flow == "overlay1")
    assert two.left.engine is not None
    [state] = two.left.engine.pairs.values()
    assert state.flows[child.id].phase is not Phase.INSTALLED
    two.world.apply(two.right, two.world.intent)
    two.protected_within(SOON)


# Rekeys


def test_both_sides_roll_over_at_once() -> None:
    two = Two(quiet()).start()
    before = {host.name: (two.out(host), two.key(host)) for host in two.both}
    for host in two.both:
        assert host.engine is not None
        expired = SoftExpired(two.out(host), host.scope.children[0].reqid)
        host.engine.on_kernel_events([(expired, False)])
    two.world.run(SOON)
    for host in two.both:
        old_id, old_key = before[host.name]
        assert two.out(host) != old_id
        assert two.key(host) != old_key
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    for host in two.both:
        assert all(before[name][0] not in two.ours(host) for name in before)
        assert len(two.ours(host)) == 2
    two.nothing_lost()


def test_a_soft_limit_by_packets_brings_new_keys_before_the_hard_one() -> None:
    two = Two(quiet(soft_packets=100)).start()
    keys = set()
    for _ in range(20):
        two.world.run(0.5)
        keys.add(two.key(two.left))
    assert len(keys) > 5
    two.nothing_lost()


def test_a_virtual_day_of_rekeys() -> None:
    """24 hours, a rekey an hour, a packet every ten seconds: none lost, nothing left over."""
    two = Two(policy(2, after="1h", hard=None))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.pause = 10.0
    two.stream.start()
    keys = set()
    for _ in range(24):
        two.world.run(3600.0)
        keys.add(two.key(two.left))
    assert len(keys) >= 23
    two.nothing_lost()
    two.world.run_until(two.world.settled, 3600.0, look=1.0)
    nothing_missing_nothing_left(two.world)


def test_nothing_grows() -> None:
    """Ten rollovers and two hundred leave the same behind, in both daemons."""
    two = Two(policy(2, after="1s", hard="10m"))
    for host in two.both:
        two.world.start(host)

    def weights() -> list[int]:
        """Of both daemons, when no rekey is under way. Refusals are remembered up to a number."""
        two.world.run_until(two.idle, 60.0, look=0.001)
        engines = [host.engine for host in two.both if host.engine is not None]
        return [weight(engine) - weight(engine.post.refusals) for engine in engines]

    two.world.run(10.0)
    early = weights()
    two.world.run(200.0)
    late = weights()
    grown = [after - before for before, after in zip(early, late, strict=True)]
    assert max(grown) < 100, f"{early} -> {late}"


# Daemons that die, hosts that reboot


def test_a_daemon_that_dies_leaves_its_host_protected_and_adopts_what_it_finds() -> None:
    two = Two(quiet()).start()
    sas, keys = two.ours(two.left), {host.name: two.key(host) for host in two.both}
    two.world.crash(two.left)
    two.world.run(60.0)
    assert two.ours(two.left) == sas
    installed = len(two.left.kernel.installed_keys)
    two.world.start(two.left)
    assert two.ours(two.left) == sas, "adopted as they are"
    assert len(two.left.kernel.installed_keys) == installed
    assert two.out(two.left) in sas
    two.world.run(SOON)
    assert all(two.key(host) != keys[host.name] for host in two.both)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    assert not two.ours(two.left) & sas
    two.nothing_lost()


def test_a_peer_that_reboots_is_back_as_soon_as_its_daemon_is() -> None:
    two = Two(quiet()).start()
    sas = two.ours(two.left)
    two.world.reboot(two.right)
    two.world.run(30.0)
    assert not two.ours(two.right)
    two.world.start(two.right)
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    assert not two.ours(two.left) & sas
    nothing_missing_nothing_left(two.world)


def test_a_host_that_reboots_three_times_in_a_row_is_not_made_to_wait() -> None:
    """Each life of it makes its peer hold one more SA that nobody took: they must not be in the way
    of the next, though an idle SA is watched for ten seconds before it goes."""
    two = Two(quiet()).start()
    for _ in range(3):
        two.world.reboot(two.right)
        two.world.run(0.2)
        two.world.start(two.right)
        two.world.run(0.03)
    two.protected_within(SOON)


def test_a_daemon_that_dies_again_and_again_costs_nothing() -> None:
    two = Two(quiet()).start()
    for number in range(12):
        two.world.crash(two.right)
        two.world.run(0.1)
        two.world.start(two.right)
        two.world.run(0.02 * number)
        for host in two.both:
            inbound = {sa_id for sa_id in two.ours(host) if sa_id.dst == two.child(host).local}
            assert len(inbound) <= MAX_EPOCHS
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    two.nothing_lost()
    nothing_missing_nothing_left(two.world)


def test_a_daemon_that_dies_between_the_new_sa_and_the_switch() -> None:
    """The outbound SA is in the kernel and no SP pins it: it was never used and never will be."""
    two = Two(policy(2, after="2s")).start()
    two.left.crash_in = None
    kernel = two.left.kernel

    before = kernel.before_step

    def die_at_the_switch(step: Step) -> None:
        if "update SP protect out" in str(step):
            two.left.crash_in = 0
        before(step)

    kernel.before_step = die_at_the_switch
    two.world.run_until(lambda: two.left.engine is None, 10.0, look=0.01)
    kernel.before_step = before
    stray = {sa_id for sa_id in two.ours(two.left) if sa_id.dst == two.child(two.left).remote}
    assert len(stray) > 1
    pinned = two.out(two.left)
    two.world.start(two.left)
    assert {sa_id for sa_id in two.ours(two.left) if sa_id in stray} == {pinned}
    two.world.run(10.0)
    two.protected_within(SOON)
    two.nothing_lost()


# The directory


def test_a_directory_that_is_away_for_half_a_minute_costs_nothing() -> None:
    two = Two(policy(2, after="1s"))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.start()
    two.world.run(3.0)
    two.world.directory_away(30.0)
    two.world.run(29.0)
    out = two.out(two.left)
    two.world.run(SOON + 3.0)
    assert two.out(two.left) != out
    two.nothing_lost()


def test_hard_lifetimes_end_while_the_directory_is_away() -> None:
    """No keys, no packets, none in clear; and keys again when it is back."""
    two = Two(policy(2, after="4s", hard="10s")).start()
    two.world.directory_away(60.0)
    two.world.run(30.0)
    for host in two.both:
        assert not two.sends(host)
        assert not [sa_id for sa_id in two.ours(host) if sa_id.dst == two.child(host).remote]
        assert host.kernel.send(two.world.packet(two.child(host))) is None
        assert host.engine is not None
        [state] = host.engine.pairs.values()
        [flow] = state.flows.values()
        assert pair.blocked_reason(state, flow)
    two.world.run(30.0)
    two.protected_within(5.0 + SOON)


def test_a_record_that_is_lost_and_found() -> None:
    """h1 writes, h0 does not see it for a while; nobody stops sending, nobody waits for ever."""
    two = Two(policy(2, after="2s"))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.start()
    two.world.run(1.0)
    two.world.directory.cut_off.add("h0")
    out = two.out(two.left)
    two.world.run(20.0)
    assert two.out(two.left) == out, "it has heard of nothing newer"
    two.world.directory.cut_off.clear()
    two.world.run(5.0 + SOON)
    assert two.out(two.left) != out
    two.nothing_lost()


def test_two_hosts_that_wait_for_each_other() -> None:
    """Both have a new inbound SA that the other has not heard of, made from private keys that both
    have wiped since. Each needs the other's word to go on, and gets it."""
    two = Two(policy(2, after="1s"))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    two.stream.start()
    two.world.run(2.0)
    two.world.directory.cut_off = {"h0"}
    two.world.run(5.0)
    two.world.directory.cut_off = {"h1"}
    two.world.run(5.0)
    two.world.directory.cut_off = {"h0", "h1"}
    two.world.run(5.0)
    two.world.directory.cut_off = set()
    out = {host.name: two.out(host) for host in two.both}
    two.world.run(5.0 + SOON)
    for host in two.both:
        assert two.out(host) != out[host.name]
    two.nothing_lost()


# The admin's hand


def test_an_outbound_sa_flushed_by_hand_gets_a_new_spi_and_not_the_old_key() -> None:
    two = Two(quiet()).start()
    gone, key = two.out(two.left), two.key(two.left)
    two.world.laws.excuse([gone])
    two.left.kernel.by_hand(RemoveSa(gone))
    two.world.run(1.0)
    assert two.out(two.left) != gone
    assert two.key(two.left) != key
    two.world.directory.retell("h0")  # the record that named it, read again
    two.world.run(1.0)
    assert gone not in two.ours(two.left)


def test_a_guard_removed_by_hand_is_counted_whoever_sees_it_first() -> None:
    """A device may change at the same moment, and its event may be read before nftables'."""
    two = Two(quiet()).start()
    engine = two.left.engine
    assert engine is not None
    two.left.guard.remove()
    engine.on_guard_changed()
    engine.on_links_changed()
    two.world.run(1.0)
    assert two.left.guard.guard is not None
    assert engine.counters.repaired_guard == 1
    two.nothing_lost()


def test_an_inbound_sa_flushed_by_hand() -> None:
    two = Two(quiet()).start()
    gone = two.out(two.right)
    two.world.laws.excuse([gone])
    two.left.kernel.by_hand(RemoveSa(gone))
    two.world.run(1.0)
    assert two.out(two.right) != gone
    assert two.key(two.right)
    two.world.run(1.0)
    assert gone not in two.ours(two.left) | two.ours(two.right)


def test_a_block_removed_by_hand_is_back_within_a_second() -> None:
    two = Two(quiet()).start()
    for sp in two.left.scope.blocks:
        two.left.tampered = True
        two.left.kernel.by_hand(RemoveSp(sp))
        two.world.run(0.1)
        assert two.left.kernel.sp(sp.id) == sp
    two.nothing_lost()


@pytest.mark.parametrize("span", [0.01, 0.3, 20.0])
def test_a_policy_that_drops_a_flow_and_takes_it_back(span: float) -> None:
    """In between it is blocked, not open; and the record that named the old SA, read again, does
    not bring its key back (the same key from sequence number 0 would be the end of AES-GCM)."""
    two = Two(quiet()).start()
    out, key = two.out(two.left), two.key(two.left)
    nothing = without_flows(two.world.intent, ["overlay0"])
    two.world.apply(two.left, nothing)
    two.world.run(span)
    packet = two.world.packet(two.child(two.right))
    assert two.left.kernel.send(two.world.packet(_mirrored(two.child(two.right), "h1"))) is None
    assert not two.left.kernel.receive(packet)
    two.world.apply(two.left, two.world.intent)
    two.world.directory.retell("h0")
    two.world.run(0.001)
    two.world.directory.retell("h0")
    two.protected_within(SOON)
    assert two.out(two.left) != out
    assert two.key(two.left) != key


def test_released_is_open_and_managed_again_is_closed() -> None:
    two = Two(quiet()).start()
    two.stream.stop()
    packet = two.world.packet(two.child(two.left))
    for host in two.both:
        two.world.release(host, FlowName("overlay0"))
    assert two.left.kernel.send(packet) == packet
    assert not two.ours(two.left)
    assert two.left.kernel.spd() == []
    two.world.run(1.0)
    for host in two.both:
        two.world.apply(host, two.world.intent)
    assert two.left.kernel.send(packet) is None
    two.protected_within(SOON)


# Hosts that leave


def test_a_peer_leaves_the_policy_and_its_records_go_and_it_comes_back() -> None:
    """Three hosts, one takes part in nothing any more. The other two do not notice."""
    world = World(1, policy(3, after=QUIET, hard=None))
    world.run_until(world.settled, 120.0)
    *stayers, leaver = world.hosts.values()
    assert world.records_of(leaver) == {"offers/h2", "confirmations/h0/h2", "confirmations/h1/h2"}
    stream = Stream(world, pause=0.01)
    world.apply(leaver, without_host(world.intent, "h2"))
    for host in stayers:
        world.apply(host, without_host(world.intent, "h2"))
    stream.start()
    world.run(FAREWELL + 1.0)
    assert world.records_of(leaver) == set()
    assert world.records_of(stayers[0]) == {"offers/h0", "confirmations/h1/h0"}
    assert leaver.ring is not None
    assert leaver.ring.private_values == 0
    assert leaver.ring.pair_secrets == 0
    nothing_missing_nothing_left(world)
    for host in world.hosts.values():
        world.apply(host, world.intent)
    world.run_until(world.protected, SOON, look=0.01)
    stream.stop()
    world.run(0.1)
    assert stream.probes
    assert stream.lost == 0
    world.run_until(world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(world)


def test_a_peer_that_still_has_the_flow_hears_the_last_word_and_then_sees_no_record() -> None:
    """h1 alone drops the flow: what h0 has installed stays, and h0 does not call it protected."""
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.apply(two.right, without_flows(two.world.intent, ["overlay0"]))
    two.world.run(FAREWELL / 2)
    assert "confirmations/h0/h1" in two.world.directory.records, "a peer that polls may read it yet"
    two.world.run(FAREWELL)
    assert two.world.records_of(two.right) == set()
    assert two.world.records_of(two.left) == {"offers/h0", "confirmations/h1/h0"}
    assert two.sends(two.left)
    assert not two.world.protected()
    two.world.apply(two.right, two.world.intent)
    two.protected_within(SOON)


@pytest.mark.parametrize("span", [0.0, 0.01, FAREWELL - 0.02, FAREWELL, FAREWELL + 0.02])
def test_a_peer_that_comes_back_while_its_word_goes_has_one_again(span: float) -> None:
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.apply(two.right, without_flows(two.world.intent, ["overlay0"]))
    two.world.run(span)
    two.world.apply(two.right, two.world.intent)
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(two.world)


def test_a_daemon_that_dies_with_its_word_in_the_directory_takes_it_back_when_it_returns() -> None:
    two = Two(quiet()).start()
    two.stream.stop()
    others = two.world.records_of(two.left)
    two.world.apply(two.right, without_flows(two.world.intent, ["overlay0"]))
    two.world.crash(two.right)
    two.world.run(FAREWELL + 1.0)
    assert two.world.records_of(two.right) == {"offers/h1", "confirmations/h0/h1"}
    two.world.crash(two.left)
    two.world.start(two.right)
    two.world.run(1.0)
    assert two.world.records_of(two.right) == set()
    assert two.world.records_of(two.left) == others, "what others wrote is theirs"


def test_a_peer_that_leaves_while_the_directory_is_away_is_gone_when_it_is_back() -> None:
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.directory_away(60.0)
    for host in two.both:
        two.world.apply(host, without_flows(two.world.intent, ["overlay0"]))
    two.world.run(59.0)
    assert two.world.directory.records
    two.world.run(2.0)
    assert two.world.directory.records == {}
    nothing_missing_nothing_left(two.world)


# Other programs


@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("direction", [SpDirection.OUT, SpDirection.IN])
def test_another_programs_sp_is_in_the_way(direction: SpDirection, opening: bool) -> None:
    two = Two(quiet())
    stand_in_the_way(two.world, two.left, two.child(two.left), direction=direction, opening=opening)
    [stranger] = two.left.kernel.spd()
    for host in two.both:
        two.world.start(host)
    two.world.run(60.0)
    assert two.left.engine is not None
    [state] = two.left.engine.pairs.values()
    [flow] = state.flows.values()
    assert flow.phase is not Phase.INSTALLED
    assert "another program's SP stands under" in pair.blocked_reason(state, flow)
    assert stranger in two.left.kernel.spd()
    packet = two.world.packet(two.child(two.left))
    clear = two.left.kernel.send(packet) == packet
    assert not clear or two.left.guard.drops_clear(packet)
    # It goes, and the flow comes: nobody has to be told.
    two.left.kernel.by_hand(RemoveSp(stranger))
    two.world.laws.foreign_changed(two.left)
    two.protected_within(31.0)


def test_two_obstructed_hosts_do_not_call_each_other_without_end() -> None:
    two = Two(quiet())
    for host in two.both:
        stand_in_the_way(two.world, host, two.child(host), direction=SpDirection.OUT, opening=False)
        two.world.start(host)
    two.world.run(60.0)
    writes = two.world.directory.writes
    two.world.run(600.0)
    assert two.world.directory.writes - writes < 200


def _mirrored(child: ChildId, peer: str) -> ChildId:
    return ChildId(HostName(peer), child.flow, child.tenant, local=child.remote, remote=child.local)
