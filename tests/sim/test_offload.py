"""Stories of NICs that carry SAs: they take them, refuse them, are full, come and go."""

from dataclasses import replace

import pytest

from tests.sim.host import SimHost
from tests.sim.kernel import FakeNic
from tests.sim.test_stories import SOON, Two, quiet
from tunsec.daemon.offload import carried
from tunsec.machines import pair
from tunsec.model.aead import Aead
from tunsec.model.flow import Kind, OffloadWish
from tunsec.model.sa import OffloadKind, Sa
from tunsec.model.sp import Sp, SpDirection
from tunsec.model.underlay import EspFeature
from tunsec.plan.image import Image
from tunsec.policy.intent import Intent

NIC = 7
CRYPTO = frozenset({OffloadKind.CRYPTO})


def wishing(wish: OffloadWish, *, esn: bool = True, **other: object) -> Intent:
    """A quiet policy with AES-GCM and a wish."""
    intent = quiet(**other)
    flows = [
        replace(flow, offload=wish, esn=esn, aeads=(Aead.AES_128_GCM,)) for flow in intent.flows
    ]
    return replace(intent, flows=tuple(flows))


def plug(two: Two, nic: FakeNic) -> None:
    """The same NIC in both hosts."""
    for host in two.both:
        host.kernel.nics[nic.ifindex] = replace(nic)
        links_changed(two, host)


def links_changed(two: Two, host: SimHost) -> None:
    """The daemon hears that devices changed."""
    if host.engine is not None:
        host.engine.on_links_changed({NIC})


def outbound(two: Two, host: SimHost) -> tuple[Sa, list[Sp]]:
    """What a host sends by: its SA and the SPs that pin it."""
    sas = dict(host.kernel.all_sas())
    sps = [sp for sp in host.kernel.spd() if sp.id.direction is SpDirection.OUT and sp.templates]
    return sas[two.out(host)], sps


def kinds(two: Two) -> set[OffloadKind | None]:
    """What NICs do of what both hosts send, and of what they receive."""
    return {
        None if sa.offload is None else sa.offload.kind
        for host in two.both
        for sa in (outbound(two, host)[0], inbound(two, host))
    }


def inbound(two: Two, host: SimHost) -> Sa:
    """The SA on which a host receives."""
    peer = two.right if host is two.left else two.left
    return dict(host.kernel.all_sas())[two.out(peer)]


def carried_by(two: Two, host: SimHost) -> OffloadWish:
    """What status says."""
    child = host.scope.children[0]
    have = Image(dict(host.kernel.all_sas()), {sp.id: sp for sp in host.kernel.spd()})
    return carried(child, inbound(two, host).id.spi, two.out(host).spi, have)


def why(host: SimHost) -> str:
    """Why a host's flow is blocked."""
    assert host.engine is not None
    [(state, flow)] = host.engine.flows()
    return pair.blocked_reason(state, flow)


def started(intent: Intent, nic: FakeNic | None) -> Two:
    """Both daemons run; nothing is waited for."""
    two = Two(intent)
    if nic is not None:
        plug(two, nic)
    for host in two.both:
        two.world.start(host)
    return two


@pytest.mark.parametrize("kind", OffloadKind)
def test_what_a_nic_takes_it_gets(kind: OffloadKind) -> None:
    two = started(wishing(OffloadWish(kind.value)), FakeNic(NIC, "nic0"))
    two.protected_within(SOON)
    two.stream.start()
    two.world.run(10.0)
    assert kinds(two) == {kind}
    for host in two.both:
        sa, sps = outbound(two, host)
        assert sa.offload is not None
        assert (sa.offload.ifindex, sa.offload.inbound) == (NIC, False)
        assert all((sp.offload is not None) is (kind is OffloadKind.PACKET) for sp in sps)
        accepting = [sp for sp in host.kernel.spd() if sp.id.direction is SpDirection.IN]
        assert all(sp.offload is None for sp in accepting), "the kernel checks what comes in"
        assert carried_by(two, host) == kind.value
    two.nothing_lost()


def test_rdma_gets_inbound_sps_too() -> None:
    intent = wishing(OffloadWish.PACKET)
    flows = tuple(replace(flow, kind=Kind.ROCEV2, port=4791) for flow in intent.flows)
    two = started(replace(intent, flows=flows), FakeNic(NIC, "nic0"))
    two.protected_within(SOON)
    for host in two.both:
        for sp in host.kernel.spd():
            assert (sp.offload is not None) is bool(sp.templates), sp
        assert carried_by(two, host) is OffloadWish.PACKET


@pytest.mark.parametrize(
    ("nic", "reason"),
    [
        (None, "no device leads to 192.0.2.2"),
        (FakeNic(NIC, "nic0", esp=EspFeature.ABSENT), "nic0: the device has no ESP offload"),
        (FakeNic(NIC, "nic0", esp=EspFeature.OFF), "ethtool -K nic0 esp-hw-offload on"),
        (FakeNic(NIC, "nic0", takes=frozenset()), "did not give it to the device"),
        (FakeNic(NIC, "nic0", esn=False), "sequence_numbers: 32-bit"),
        (FakeNic(NIC, "nic0", room=0), "No space for SA"),
    ],
)
def test_what_it_does_not_take_stays_blocked(nic: FakeNic | None, reason: str) -> None:
    two = started(wishing(OffloadWish.CRYPTO), nic)
    two.world.run(60.0)
    assert not two.world.protected()
    assert not any(two.ours(host) for host in two.both), "nothing is left of the trials"
    if nic is None:
        links = "no device leads to 192.0.2."
        assert links in why(two.left)
    else:
        assert reason in why(two.left)


def test_auto_is_never_blocked_for_its_sake() -> None:
    for nic, kind in (
        (None, None),
        (FakeNic(NIC, "nic0"), OffloadKind.PACKET),
        (FakeNic(NIC, "nic0", takes=CRYPTO), OffloadKind.CRYPTO),
        (FakeNic(NIC, "nic0", takes=CRYPTO, esn=False), None),
        (FakeNic(NIC, "nic0", esp=EspFeature.OFF), None),
        (FakeNic(NIC, "nic0", takes=CRYPTO, aeads=frozenset()), None),
        (FakeNic(NIC, "nic0", takes=CRYPTO, silent=True), None),
    ):
        two = started(wishing(OffloadWish.AUTO), nic)
        two.protected_within(SOON)
        assert kinds(two) == {kind}, nic


def test_a_full_nic_leaves_the_rest_to_the_cpu() -> None:
    two = started(wishing(OffloadWish.AUTO, flows=3), FakeNic(NIC, "nic0", takes=CRYPTO, room=3))
    two.protected_within(SOON)
    for host in two.both:
        given = [sa for _, sa in host.kernel.all_sas() if sa.offload is not None]
        assert 0 < len(given) <= 3
        assert len(two.ours(host)) == 6


@pytest.mark.parametrize("esn", [True, False])
def test_a_policy_moves_between_wishes_under_load(esn: bool) -> None:
    two = started(wishing(OffloadWish.NONE), FakeNic(NIC, "nic0"))
    two.protected_within(SOON)
    two.stream.start()
    for wish, kind in (
        (OffloadWish.CRYPTO, OffloadKind.CRYPTO),
        (OffloadWish.PACKET, OffloadKind.PACKET),
        (OffloadWish.NONE, None),
        (OffloadWish.AUTO, OffloadKind.PACKET),
        (OffloadWish.CRYPTO, OffloadKind.CRYPTO),
    ):
        for host in two.both:
            two.world.apply(host, wishing(wish, esn=esn))
            two.world.run(3.0)
        two.world.run_until(two.world.settled, 120.0)
        assert kinds(two) == {kind}
        assert {inbound(two, host).replay.esn for host in two.both} == {esn}
    two.nothing_lost()


def test_a_nic_that_comes_is_used_and_one_that_goes_is_not_missed() -> None:
    two = started(wishing(OffloadWish.AUTO), None)
    two.protected_within(SOON)
    two.stream.start()
    two.world.run(5.0)
    plug(two, FakeNic(NIC, "nic0"))
    two.world.run(60.0)
    assert kinds(two) == {OffloadKind.PACKET}
    two.nothing_lost()
    for host in two.both:
        host.kernel.unplug(NIC)
        links_changed(two, host)
    two.world.run(60.0)
    two.world.run_until(two.world.settled, 120.0)
    assert kinds(two) == {None}


def test_sas_stay_as_they_are_while_nothing_changes() -> None:
    two = started(wishing(OffloadWish.PACKET), FakeNic(NIC, "nic0"))
    two.protected_within(SOON)
    two.world.run_until(two.world.settled, 120.0)
    before = [two.out(host) for host in two.both]
    two.world.run(2000.0)
    for host in two.both:
        links_changed(two, host)
    two.world.run(2000.0)
    assert [two.out(host) for host in two.both] == before
    assert all(host.engine and not host.engine.counters.repaired_sps for host in two.both)


def test_a_restart_leaves_a_nic_its_sas() -> None:
    two = started(wishing(OffloadWish.PACKET), FakeNic(NIC, "nic0"))
    two.protected_within(SOON)
    two.stream.start()
    two.world.run_until(two.world.settled, 120.0)
    for host in two.both:
        two.world.crash(host)
        two.world.start(host)
    two.world.run(30.0)
    assert kinds(two) == {OffloadKind.PACKET}
    two.nothing_lost()
