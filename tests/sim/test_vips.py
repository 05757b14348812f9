"""Stories of a service address: whoever has it, its peers have SAs with the one owner whose claim
is the newest, and with nobody while that is open. Law 8 is checked after every step."""

from collections.abc import Callable

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.cast import QUIET, VIP, keyed_by_ike, policy, with_service_address
from tests.sim.host import SimHost
from tests.sim.kernel import EspPacket, Packet
from tests.sim.laws import Broken
from tests.sim.test_explain import ask
from tests.sim.world import World
from tunsec.daemon.drift import Drift
from tunsec.daemon.vip_desk import VipDesk
from tunsec.keying.claims import ClaimBook, KnownClaim
from tunsec.keying.refusals import RefusalReason
from tunsec.machines import pair
from tunsec.machines.vip import VipPhase
from tunsec.model.flow import Keying
from tunsec.model.names import HostName
from tunsec.model.record import Claim
from tunsec.policy.desired import Holders
from tunsec.ports import Record
from tunsec.wire.control_explain import ExplainBody, PacketBody, Verdict

SOON = 2.0
"""Seconds from the address's arrival until its peers are protected."""
BY_IKE_SOON = 10.0
KEYINGS = [Keying.DIRECTORY, Keying.IKE]


class Moving:
    """h0 and h1 may own the address, h2 speaks with it."""

    def __init__(self, keying: Keying = Keying.DIRECTORY, *, hosts: int = 3, seed: int = 1) -> None:
        intent = with_service_address(policy(hosts, after=QUIET, hard=None), ["h0", "h1"])
        if keying is Keying.IKE:
            intent = keyed_by_ike(intent, ["overlay0"])
        self.soon = BY_IKE_SOON if keying is Keying.IKE else SOON
        self.world = World(seed, intent, start_within=None)
        self.one, self.two, *self.others = (
            self.world.hosts[HostName(f"h{number}")] for number in range(hosts)
        )
        [self.address] = self.world.service(VIP)

    def start(self) -> "Moving":
        """All daemons run, the address is on h0 and protected."""
        for host in self.world.hosts.values():
            self.world.start(host)
        self.world.run_until(self.world.protected, 60.0)
        assert self.reached() is None
        self.world.move_in(self.one, VIP)
        self.served_by(self.one)
        return self

    def phase(self, host: SimHost) -> VipPhase:
        """Of the machine of an owner."""
        assert host.engine is not None
        [standing] = host.engine.vips.standings()
        assert standing.own is not None
        return standing.own.phase

    def token(self, host: SimHost) -> int:
        """The newest that a host believes."""
        assert host.engine is not None
        [standing] = host.engine.vips.standings()
        return 0 if standing.claim is None else standing.claim.token

    def reached(self) -> SimHost | None:
        """The one host that takes what h2 sends to the address; none must take what it does not
        hold."""
        [sender, *_] = self.others
        own = next(iter(sender.scope.addresses))
        sent = sender.kernel.send(Packet(own, self.address, 17, 40_000, 4789))
        if sent is None:
            return None
        assert isinstance(sent, EspPacket)
        took = [host for host in (self.one, self.two) if host.kernel.receive(sent)]
        return took[0] if took else None

    def answers(self, host: SimHost) -> bool:
        """Whether h2 takes what a host sends from the address."""
        [reader, *_] = self.others
        own = next(iter(reader.scope.addresses))
        sent = host.kernel.send(Packet(self.address, own, 17, 40_000, 4789))
        return isinstance(sent, EspPacket) and reader.kernel.receive(sent)

    def served_by(self, host: SimHost) -> None:
        """The address is protected with a host, soon, and with no other."""
        others = [one for one in (self.one, self.two) if one is not host]
        self.world.run_until(
            lambda: self.reached() is host and self.answers(host), self.soon, look=0.01
        )
        self.world.run_until(self.world.protected, self.soon + 10.0)
        assert self.phase(host) is VipPhase.OWNED
        assert not any(self.answers(other) for other in others)

    def served_by_nobody(self) -> None:
        """Nothing goes to or from the address."""
        assert self.reached() is None
        assert not any(self.answers(host) for host in (self.one, self.two))


@pytest.mark.parametrize("keying", KEYINGS)
def test_the_address_moves_and_comes_back(keying: Keying) -> None:
    moving = Moving(keying).start()
    for giver, taker in [(moving.one, moving.two), (moving.two, moving.one)]:
        moving.world.move_out(giver, VIP)
        moving.world.move_in(taker, VIP)
        moving.served_by(taker)
        moving.world.run(1.0)
        assert moving.phase(giver) is VipPhase.ABSENT
    moving.world.run_until(moving.world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(moving.world)


def test_explain_says_who_holds_the_address_if_not_this_end() -> None:
    moving = Moving().start()
    [sender, *_] = moving.others
    own = str(next(iter(sender.scope.addresses)))

    def why(host: SimHost, src: str, dst: str) -> str:
        found = ask(moving.world, host, ExplainBody(packet=PacketBody("udp", src, dst, 1, 4789)))
        assert found.verdict == Verdict.BLOCKED
        return found.why

    held = f"holds {moving.address}, service address {VIP}: `tunsec status` shows whose it is"
    address = str(moving.address)
    moving.world.move_in(moving.two, VIP)
    moving.served_by(moving.two)
    assert why(moving.one, address, own) == f"flow overlay0: h1 {held}"
    for host in (moving.two, moving.one):
        moving.world.move_out(host, VIP)
    moving.world.run_until(lambda: moving.reached() is None, moving.soon, look=0.01)
    moving.world.run(moving.soon)
    assert why(sender, own, address) == f"flow overlay0: nobody {held}"


def test_a_host_that_loses_the_address_gives_it_up() -> None:
    moving = Moving().start()
    moving.world.move_out(moving.one, VIP)
    moving.served_by_nobody()
    moving.world.run(1.0)
    assert moving.phase(moving.one) is VipPhase.ABSENT
    moving.world.run_until(moving.world.settled, 120.0, look=1.0)
    nothing_missing_nothing_left(moving.world)
    moving.world.move_in(moving.one, VIP)
    moving.served_by(moving.one)


@pytest.mark.parametrize("keying", KEYINGS)
def test_of_two_that_have_the_address_the_later_one_gets_it(keying: Keying) -> None:
    moving = Moving(keying).start()
    moving.world.move_in(moving.two, VIP)
    moving.served_by(moving.two)
    assert moving.phase(moving.one) is VipPhase.FENCED
    token = moving.token(moving.one)
    moving.world.run(60.0)
    assert moving.token(moving.one) == moving.token(moving.two) == token  # nobody takes it back
    moving.world.move_out(moving.two, VIP)
    moving.served_by(moving.one)


def test_two_that_get_the_address_at_once_agree_on_one() -> None:
    for seed in range(20):
        moving = Moving(seed=seed)
        moving.world.move_in(moving.one, VIP)
        moving.world.move_in(moving.two, VIP)
        for host in moving.world.hosts.values():
            moving.world.start(host)
        moving.world.run_until(moving.world.protected, 60.0)
        moving.world.run(1.0)
        phases = {moving.phase(moving.one), moving.phase(moving.two)}
        assert phases == {VipPhase.OWNED, VipPhase.FENCED}
        moving.served_by(moving.one if moving.phase(moving.one) is VipPhase.OWNED else moving.two)


def test_without_the_directory_nothing_moves_and_what_stands_goes_on() -> None:
    moving = Moving().start()
    moving.world.directory_away(60.0)
    moving.world.move_in(moving.two, VIP)
    moving.world.run(30.0)
    assert moving.reached() is moving.one
    assert moving.phase(moving.two) is VipPhase.CLAIMING
    moving.world.run(31.0)
    moving.served_by(moving.two)


def test_the_holder_crashes_and_its_restart_loses_nothing() -> None:
    moving = Moving().start()
    token = moving.token(moving.one)
    for host in (moving.one, moving.others[0]):
        moving.world.crash(host)
        assert moving.reached() is moving.one
        moving.world.start(host)
        moving.served_by(moving.one)
    assert moving.token(moving.one) == token


def test_the_address_moves_while_the_holder_is_dead() -> None:
    moving = Moving().start()
    moving.world.crash(moving.one)
    moving.world.move_out(moving.one, VIP)
    moving.world.move_in(moving.two, VIP)
    moving.world.run_until(lambda: moving.reached() is moving.two, SOON)
    moving.world.start(moving.one)
    moving.served_by(moving.two)
    assert moving.phase(moving.one) is VipPhase.ABSENT


def test_the_holder_reboots_and_comes_back_without_the_address() -> None:
    moving = Moving().start()
    moving.world.reboot(moving.one)
    moving.world.run(1.0)
    moving.world.start(moving.one)
    moving.world.run(2.0)
    moving.served_by_nobody()
    moving.world.move_in(moving.two, VIP)
    moving.served_by(moving.two)


def test_a_peer_that_slept_through_a_move_follows_it_when_it_wakes() -> None:
    moving = Moving().start()
    [peer] = moving.others
    moving.world.crash(peer)
    moving.world.move_out(moving.one, VIP)
    moving.world.move_in(moving.two, VIP)
    moving.world.run(5.0)
    moving.world.start(peer)
    moving.served_by(moving.two)


def old_claims(world: World) -> list[Record]:
    """Every claim that was ever made, as an evil directory may keep them."""
    return [
        Record(path, body)
        for path, bodies in world.directory.history.items()
        if path.startswith("claims/")
        for body in bodies
    ]


def test_an_old_claim_opens_nothing_over_a_restart_too() -> None:
    moving = Moving().start()
    moving.world.move_out(moving.one, VIP)
    moving.world.move_in(moving.two, VIP)
    moving.served_by(moving.two)
    old = old_claims(moving.world)
    assert len(old) == 3
    [peer] = moving.others
    for again in range(2):
        assert peer.engine is not None
        peer.engine.on_records(old[:-1])
        moving.world.run(1.0)
        moving.served_by(moving.two)
        assert peer.engine is not None
        assert peer.engine.post.refusals.counts[RefusalReason.STALE] == 2
        if not again:
            moving.world.crash(peer)
            moving.world.start(peer)
            moving.world.run(1.0)


def test_who_is_no_owner_gets_nothing_and_says_so() -> None:
    moving = Moving().start()
    [peer] = moving.others
    moving.world.move_in(peer, VIP)
    moving.world.run(2.0)
    moving.served_by(moving.one)
    assert peer.engine is not None
    [standing] = peer.engine.vips.standings()
    assert standing.here
    assert standing.own is None


def accepts_an_old_token(patch: pytest.MonkeyPatch) -> None:
    """Whatever claim was read last is believed."""

    def forward(self: ClaimBook, claim: Claim, digest: bytes, *, path: str) -> None:
        self._newest[claim.service] = KnownClaim(claim, digest)

    patch.setattr(ClaimBook, "_check_forward", forward)


def test_an_old_token_that_is_accepted_is_caught() -> None:
    with pytest.MonkeyPatch.context() as patch:
        accepts_an_old_token(patch)
        with pytest.raises(Broken, match="law 8"):
            test_an_old_claim_opens_nothing_over_a_restart_too()


def speaks_before_its_claim_has_landed(patch: pytest.MonkeyPatch) -> None:
    """Whoever has the address takes itself for its holder."""
    truly = VipDesk.holders

    def holders(self: VipDesk) -> Holders:
        here = {name: self._host for name, state in self._owned.items() if state.present}
        return {**truly(self), **here}

    patch.setattr(VipDesk, "holders", holders)


def keeps_sas_with_the_holder_before(patch: pytest.MonkeyPatch) -> None:
    """The peers of a former holder keep what they have with it until they look at the kernel."""
    patch.setattr(pair, "_end", lambda flow, actions: None)
    patch.setattr(Drift, "repair", lambda self, flows, ike, scope: None)


@pytest.mark.parametrize(
    "plant", [speaks_before_its_claim_has_landed, keeps_sas_with_the_holder_before]
)
def test_two_owners_at_once_are_caught(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(Broken, match="law 8"):
            test_of_two_that_have_the_address_the_later_one_gets_it(Keying.DIRECTORY)
