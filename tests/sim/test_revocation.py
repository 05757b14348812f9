"""Stories of revoked certificates: who is revoked is cut off at once, and nobody else notices."""

import os

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import EPOCH, identity, policy, trust
from tests.sim.host import FakeGuard, SimHost
from tests.sim.stream import Stream
from tests.sim.test_stories import SOON, Two, quiet
from tests.sim.trial import all_blocked_as_revoked
from tests.sim.world import SPEEDS, World
from tunsec.keying.paths import OfferPath
from tunsec.keying.refusals import RefusalReason
from tunsec.keying.ring import Keyring
from tunsec.model.clock import WallTime
from tunsec.model.errors import Refused
from tunsec.model.guard import Guard
from tunsec.model.names import Boot, HostName
from tunsec.model.secret import Secret
from tunsec.ports import Record


def restless() -> Two:
    """A rekey every ten seconds, on a flow that is up."""
    two = Two(policy(2, after="10s", hard="10m"))
    for host in two.both:
        two.world.start(host)
    two.protected_within(SOON)
    return two


class NoGuard(FakeGuard):
    """nft says no."""

    def put(self, guard: Guard) -> None:
        """Never works."""
        raise Refused("guard table", reason="nft says no")


def refused(host: SimHost) -> int:
    """Records refused because a certificate is revoked."""
    assert host.engine is not None
    return host.engine.post.refusals.counts.get(RefusalReason.REVOKED_CERTIFICATE, 0)


def test_a_revoked_peer_is_cut_off_within_the_reload() -> None:
    two = restless()
    packet = two.world.packet(two.child(two.left))
    assert two.left.kernel.send(packet) is not None
    assert two.ours(two.left)
    two.world.revoke(two.left, two.right)
    assert two.ours(two.left) == set(), "before any time has passed"
    assert not two.sends(two.left)
    assert two.left.kernel.send(packet) is None, "held back, not sent in clear"
    all_blocked_as_revoked(two.world, two.left, two.right)


def test_nothing_is_keyed_with_the_revoked_any_more() -> None:
    """It goes on offering and confirming as if nothing had happened, for an hour."""
    two = restless()
    two.world.revoke(two.left, two.right)
    installed = len(two.left.kernel.installed_keys)
    two.world.run(3600.0)
    assert len(two.left.kernel.installed_keys) == installed
    assert refused(two.left) > 300, "each of its offers is refused"
    assert two.left.ring is not None
    assert two.left.ring.pair_secrets == 0
    all_blocked_as_revoked(two.world, two.left, two.right)


def test_revoked_and_issued_anew_it_is_protected_at_once() -> None:
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.revoke(two.left, two.right)
    two.world.run(30.0)
    two.world.reissue(two.right)
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(two.world)


def test_issued_anew_and_revoked_after_that_nothing_is_lost() -> None:
    two = Two(quiet()).start()
    before = two.key(two.left)
    two.world.reissue(two.right)
    two.world.run(1.0)
    assert two.key(two.left) != before, "the new certificate is shown at once"
    two.world.run(120.0)
    two.world.revoke(two.left, two.right, number=1)
    two.world.run(30.0)
    two.nothing_lost()
    assert refused(two.left) == 0
    nothing_missing_nothing_left(two.world)


def test_what_an_earlier_life_left_to_the_revoked_is_not_carried_on() -> None:
    """The daemon is dead when the list comes, and the directory away when it starts again."""
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.crash(two.left)
    two.world.revoke(two.left, two.right)
    two.world.directory_away(60.0)
    assert two.ours(two.left), "nobody was there to remove them"
    two.world.start(two.left)
    assert two.ours(two.left) == set()
    two.world.run(30.0)
    all_blocked_as_revoked(two.world, two.left, two.right)


def test_without_a_guard_the_revoked_are_cut_off_all_the_same() -> None:
    """Nothing new is keyed while nft fails; what must go does not wait for it."""
    two = Two(quiet()).start()
    two.stream.stop()
    two.world.crash(two.left)
    two.world.revoke(two.left, two.right)
    two.left.guard = NoGuard()
    two.world.start(two.left)
    assert two.left.engine is not None
    assert two.left.engine.troubles.guard
    assert two.ours(two.left) == set()


def test_a_host_that_meets_the_revoked_for_the_first_time_says_why_it_waits() -> None:
    two = Two(quiet())
    two.world.revoke(two.left, two.right)
    for host in two.both:
        two.world.start(host)
    two.world.run(10.0)
    all_blocked_as_revoked(two.world, two.left, two.right)
    assert refused(two.left) == 1


def test_others_do_not_notice() -> None:
    world = World(1, policy(3, after="10s", hard="10m"), start_within=None)
    h0, h1, h2 = (world.hosts[HostName(name)] for name in ("h0", "h1", "h2"))
    for host in world.hosts.values():
        world.start(host)
    world.run_until(world.protected, SOON)
    stream = Stream(world, pause=0.01)
    stream.start()
    for host in (h0, h1):
        world.run(3.0)
        world.revoke(host, h2)
    world.run(60.0)
    stream.stop()
    world.run(0.1)
    for child, probe in stream.probes.items():
        between = HostName("h2") not in (child.peer, world_owner(world, child.local))
        assert bool(probe.lost) != between, f"{child}: {probe}"
    for host in (h0, h1):
        all_blocked_as_revoked(world, host, h2)


def world_owner(world: World, address: object) -> HostName:
    """The host that has an address."""
    return next(host.name for host in world.intent.hosts if address in host.addresses)


def test_a_thief_with_a_revoked_key_ends_nothing() -> None:
    """The owner has another certificate; somebody who can write into the directory puts an offer
    under the old one in the place of its own."""
    two = Two(quiet()).start()
    two.world.reissue(two.right)
    two.world.run(60.0)
    two.world.revoke(two.left, two.right, number=1)
    thief = Keyring(identity("h1"), trust(), grants=two.right.scope.grants)
    _, stolen = thief.make_offer(
        wall_now=WallTime(EPOCH + two.world.now),
        not_after=WallTime(EPOCH + two.world.now + 3600.0),
        boot=Boot("f" * 32),
        private=Secret(os.urandom(32)),
        nonce=os.urandom(32),
        addresses=frozenset(two.right.scope.addresses),
        aeads=SPEEDS,
    )
    record = Record(str(OfferPath(two.right.name)), stolen)
    two.world.directory_of(two.right.name).publish([record], done=lambda error: None)
    two.world.run(60.0)
    assert refused(two.left) == 1
    two.nothing_lost()
