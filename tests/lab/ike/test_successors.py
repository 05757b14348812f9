"""A CHILD_SA beside another: what charon tells of it, on both sides."""

import asyncio

import pytest

from tests.lab.ike.pair import CHILD, SUCCESSOR, pair_of
from tunsec.model.ike_sa import ChildEnded, ChildEstablished
from tunsec_lab.capture import LeakWatch
from tunsec_lab.host import Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge")


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
