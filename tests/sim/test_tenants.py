"""Stories of tenants: who stays keeps marks and SAs and loses nothing; who comes and goes, whatever
happens meanwhile, is apart from all others at every step."""

from dataclasses import replace

import pytest

from tests.sim.aftermath import nothing_missing_nothing_left
from tests.sim.host import SimHost
from tests.sim.kernel import EspPacket
from tests.sim.test_stories import Two, quiet
from tunsec.daemon.engine import FAREWELL
from tunsec.policy.intent import Intent, Marks

KEYINGS = {"directory": 0, "ike": 1}


@pytest.fixture(params=KEYINGS)
def by_ike(request: pytest.FixtureRequest) -> int:
    return KEYINGS[str(request.param)]


def marks(host: SimHost) -> dict[str, int]:
    """The mark of each tenant that the devices of a host are given."""
    assert host.guard.guard is not None
    [flow] = host.guard.guard.flows
    others = {} if flow.others is None else {"others": flow.others.value}
    return {one.tenant: one.mark.value for one in flow.tenants} | others


def everywhere(two: Two, intent: Intent) -> None:
    """Both hosts get a policy, one a little after the other, and everything comes to rest."""
    for host in two.both:
        two.world.apply(host, intent)
        two.world.run(0.5)
    two.world.run_until(two.world.settled, 180.0, look=0.5)
    two.world.run(FAREWELL + 1.0)
    nothing_missing_nothing_left(two.world)


def test_each_tenants_packets_go_by_a_key_of_their_own(by_ike: int) -> None:
    two = Two(quiet(by_ike=by_ike, tenants=2, others="shared")).start()
    for host in two.both:
        sent = [host.kernel.send(two.world.packet(child.id)) for child in host.scope.children]
        assert len({one.key for one in sent if isinstance(one, EspPacket)}) == 3
        unnamed = replace(two.world.packet(host.scope.children[0].id), mark=1 << 31)
        assert host.kernel.send(unnamed) is None
    two.nothing_lost()


def test_tenants_that_stay_lose_nothing_when_others_come(by_ike: int) -> None:
    two = Two(quiet(by_ike=by_ike, tenants=2)).start()
    before = {host.name: marks(host) for host in two.both}
    everywhere(two, quiet(by_ike=by_ike, tenants=4, others="shared"))
    for host in two.both:
        assert before[host.name].items() <= marks(host).items()
        assert len(set(marks(host).values())) == 5
    two.nothing_lost()


def test_a_daemon_that_slept_over_the_change_holds_the_marks(by_ike: int) -> None:
    two = Two(quiet(by_ike=by_ike, tenants=2)).start()
    before = marks(two.left)
    two.world.crash(two.left)
    then = quiet(by_ike=by_ike, tenants=3)
    two.world.apply(two.left, then)
    two.world.start(two.left)
    everywhere(two, then)
    assert before.items() <= marks(two.left).items()
    two.nothing_lost()


@pytest.mark.parametrize("others", ["blocked", "shared"])
def test_a_flow_gets_tenants_and_loses_them_again(by_ike: int, others: str) -> None:
    two = Two(quiet(by_ike=by_ike)).start()
    two.stream.stop()  # a packet that has a tenant now waits for keys of its own
    everywhere(two, quiet(by_ike=by_ike, tenants=2, others=others))
    everywhere(two, quiet(by_ike=by_ike, tenants=1, others=others))
    everywhere(two, quiet(by_ike=by_ike))


def test_another_range_of_marks_gives_all_tenants_new_keys(by_ike: int) -> None:
    two = Two(quiet(by_ike=by_ike, tenants=2)).start()
    two.stream.stop()
    everywhere(two, replace(two.world.intent, marks=Marks(16, 19)))
    for host in two.both:
        assert all(0x80000 < mark < 0x100000 for mark in marks(host).values())
