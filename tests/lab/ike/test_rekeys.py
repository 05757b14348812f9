"""Rekeys under load: which ways to switch lose nothing."""

import asyncio

import pytest

from tests.lab.ike.pair import CHILD, FAMILIES, SUCCESSOR, Side, connection_name, pair_of
from tunsec.model.ike_sa import ChildEnded, ChildEstablished, IkeRekeyed, IkeSa, IkeState
from tunsec_lab.capture import LeakWatch
from tunsec_lab.host import Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge")

CHILD_REKEYS = 50
IKE_REKEYS = 5


def probes(lab: Lab) -> list[Probe]:
    """Both ways over IPv4, one way over IPv6."""
    a, b = lab.hosts.values()
    return [
        Probe(a, b, to=b.overlay_addresses("red")[0], rate=1000, port=9000),
        Probe(b, a, to=a.overlay_addresses("red")[0], rate=1000, port=9001),
        Probe(a, b, to=b.overlay_addresses("blue")[0], rate=1000, port=9002),
    ]


@pytest.mark.timeout(240)
def test_make_before_break_loses_nothing(lab: Lab, watch: LeakWatch) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            await pair.bring_up()
            one, two, three = probes(lab)
            with one, two, three:
                for number in range(CHILD_REKEYS):
                    for version in FAMILIES:
                        name = (SUCCESSOR, CHILD)[number % 2]
                        new = await pair.succeed(version, name)
                        await pair.retire(version, but=new)
                for _ in range(IKE_REKEYS):
                    for version in FAMILIES:
                        before = [len(side.told) for side in pair.sides]
                        ike = await live(pair.a, version)
                        await pair.a.ike.rekey_ike(ike.ref)
                        for side, after in zip(pair.sides, before, strict=True):
                            await side.wait_event(IkeRekeyed, after=after)
            for probe in (one, two, three):
                assert probe.report.sent > 10_000
                assert probe.report.lost == 0, probe.report
            for side in pair.sides:
                assert len(side.sas()) == 4, "SAs pile up"
                assert len(await side.ike.sas()) == 2

    asyncio.run(scenario())
    assert len(watch.report().esp_flows) >= len(probes(lab)) * CHILD_REKEYS


async def live(side: Side, version: int) -> IkeSa:
    """The IKE_SA of a family that is not on its way out."""
    found = await side.ike.sas(ike=connection_name(version))
    return next(ike for ike in found if ike.state is IkeState.ESTABLISHED)


def test_charon_tells_both_sides_of_every_child_sa(lab: Lab, watch: LeakWatch) -> None:
    """What the daemon builds on: the events of a successor and of the end of the old one."""

    async def scenario() -> None:
        async with pair_of(lab) as pair:
            await pair.bring_up()
            before = {side.host.name: len(side.told) for side in pair.sides}
            a, b = lab.hosts.values()
            address = b.overlay_addresses("red")[0]
            with Probe(a, b, to=address, rate=50):
                new = await pair.succeed(4, SUCCESSOR)
                await pair.retire(4, but=new)
            for side in pair.sides:
                after = before[side.host.name]
                (made,) = await side.wait_event(ChildEstablished, after=after)
                (ended,) = await side.wait_event(ChildEnded, after=after)
                assert (made.child.label, ended.child.label) == (SUCCESSOR, CHILD)
                assert made.ike.id == ended.ike.id

    asyncio.run(scenario())
