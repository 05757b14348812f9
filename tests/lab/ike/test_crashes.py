"""charon killed, frozen, stopped: its kernel SAs, what it leaves behind, what the adapter tells."""

import asyncio
import time

import pytest

from tests.lab.ike.pair import (
    CHILD,
    FAMILIES,
    SUCCESSOR,
    Side,
    connection_name,
    keyed,
    pair_of,
    reqid,
)
from tunsec.model.clock import Seconds
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.ike_sa import (
    CharonLinked,
    CharonLost,
    ChildEstablished,
    IkeEnded,
    IkeEstablished,
)
from tunsec.model.sa import SaId
from tunsec.model.step import RemoveSa
from tunsec.plan.ike_options import orphaned_sas
from tunsec_lab.capture import LeakWatch
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge")

FOREIGN_REQID = 7


def both_ways(lab: Lab) -> list[Probe]:
    a, b = lab.hosts.values()
    return [
        Probe(near, far, to=far.overlay_addresses(overlay)[0], rate=500, port=port)
        for port, (near, far, overlay) in enumerate(
            [(a, b, "red"), (b, a, "red"), (a, b, "blue"), (b, a, "blue")], start=9000
        )
    ]


def add_foreign_sas(host: Host, remote: Host) -> None:
    """Of another program, by hand."""
    for src, dst in ((host.ipv4, remote.ipv4), (remote.ipv4, host.ipv4)):
        host.ip(
            f"xfrm state add src {src} dst {dst} proto esp spi 0x1001 reqid {FOREIGN_REQID} "
            f"mode transport aead rfc4106(gcm(aes)) 0x{'42' * 20} 128"
        )


async def remove_orphans(side: Side) -> list[SaId]:
    """What a charon that is no more has left behind."""
    kernel = side.kernel.sas()
    listed = await side.ike.sas()
    orphans = orphaned_sas(kernel.values(), listed, reqids=[reqid(v) for v in FAMILIES])
    assert side.kernel.apply([RemoveSa(sa_id) for sa_id in orphans]) == [None] * len(orphans)
    return list(orphans)


async def no_sas(side: Side) -> None:
    """charon takes the SAs along; it tells of the end before it removes them."""
    async with asyncio.timeout(5):
        while side.sas():  # noqa: ASYNC110 - the kernel is only asked here
            await asyncio.sleep(0.01)


async def terminate_older(side: Side, version: int) -> None:
    """Of two IKE_SAs to the same peer the older one goes; its own peer does not know it."""
    found = sorted(await side.ike.sas(ike=connection_name(version)), key=lambda ike: ike.id)
    for ike in found[:-1]:
        after = len(side.told)
        await side.ike.terminate_ike(ike.ref, force=True)
        await side.wait_event(IkeEnded, after=after)


def test_kill9_loses_nothing_and_orphans_are_told_from_foreign_sas(
    lab: Lab, watch: LeakWatch
) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a, b = pair.sides
            add_foreign_sas(a.host, b.host)
            await pair.bring_up()
            before = {sa.id for sa in a.sas() if sa.reqid != FOREIGN_REQID}
            assert len(before) == 4
            one, two, three, four = both_ways(lab)
            with one, two, three, four:
                await asyncio.to_thread(a.charon.kill9)
                await a.wait_event(CharonLost)
                with pytest.raises(Unavailable):
                    await a.ike.version()
                assert {sa.id for sa in a.sas()} >= before, "its SAs carry on"
                after = len(a.told)
                await asyncio.to_thread(a.charon.start)
                await a.wait_event(CharonLinked, after=after)
                assert await a.ike.sas() == ()
                assert await a.ike.loaded_connections() == ()
                await pair.load(a)
                assert {sa.id for sa in a.sas()} >= before, "a start removes nothing"
                for version in FAMILIES:
                    await pair.succeed(version, SUCCESSOR)
                assert set(await remove_orphans(a)) == before
                for version in FAMILIES:
                    await terminate_older(b, version)
                assert await remove_orphans(b) == []
            for probe in (one, two, three, four):
                assert probe.report.lost == 0, probe.report
            for side in pair.sides:
                own = [sa for sa in side.sas() if sa.reqid != FOREIGN_REQID]
                assert len(own) == 4
                assert len(await side.ike.sas()) == 2
            assert len([sa for sa in a.sas() if sa.reqid == FOREIGN_REQID]) == 2

    asyncio.run(scenario())


@pytest.mark.long
def test_frozen_charon_holds_nobody_up(lab: Lab, watch: LeakWatch) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a = pair.a
            await pair.bring_up()
            one, two, three, four = both_ways(lab)
            with one, two, three, four:
                a.charon.freeze()
                frozen_at = time.monotonic()
                beats = 0
                answer = a.ike.version()
                waiting = a.ike.initiate(connection_name(4), SUCCESSOR, seconds=1)
                while not answer.done():
                    await asyncio.sleep(0.01)
                    beats += 1
                with pytest.raises(Unavailable, match="no answer within 5 s"):
                    await answer
                assert beats > 100, "the loop must go on"
                (lost,) = await a.wait_event(CharonLost)
                assert "silent" in lost.reason
                with pytest.raises(Unavailable):
                    await waiting
                await asyncio.sleep(frozen_at + 20 - time.monotonic())
                after = len(a.told)
                a.charon.thaw()
                await a.wait_event(CharonLinked, after=after)
                for side in pair.sides:
                    assert len(await side.ike.sas()) == 2, "nobody asked the frozen one"
            for probe in (one, two, three, four):
                assert probe.report.lost == 0, probe.report

    asyncio.run(scenario())


def test_clean_stop_takes_the_sas_down_and_the_flow_stays_blocked(
    lab: Lab, watch: LeakWatch
) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a, b = pair.sides
            await pair.bring_up()
            far = b.host.overlay_addresses("red")[0]
            assert a.host.ping(far, count=5).lost == 0
            after = len(b.told)
            assert await asyncio.to_thread(a.charon.stop) == 0
            await b.wait_event(IkeEnded, after=after, count=2)
            await a.wait_event(CharonLost)
            await no_sas(a)
            await no_sas(b)
            assert a.host.ping(far, count=5, wait=0.2).received == 0
            after = len(a.told)
            await asyncio.to_thread(a.charon.start)
            await a.wait_event(CharonLinked, after=after)
            await pair.load(a)
            await pair.initiate(b)
            await pair.pin_all()
            assert a.host.ping(far, count=5).lost == 0

    asyncio.run(scenario())


def test_a_peer_that_is_gone_is_found_dead(lab: Lab, watch: LeakWatch) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a, b = pair.sides
            pair.dpd_after = Seconds(1.0)
            await pair.bring_up()
            assert a.host.ping(b.host.overlay_addresses("red")[0], count=3).lost == 0
            listed = await a.ike.sas()
            after = len(a.told)
            with lab.faults.link_down("b"):
                cut_at = time.monotonic()
                await a.wait_event(IkeEnded, after=after, count=2)
                print(f"found dead after {time.monotonic() - cut_at:.1f} s")
            await no_sas(a)
            with pytest.raises(Refused, match="is gone"):
                await a.ike.rekey_ike(listed[0].ref)

    asyncio.run(scenario())


@pytest.mark.long
def test_a_probed_peer_whose_charon_is_frozen_loses_its_sas(lab: Lab, watch: LeakWatch) -> None:
    """charon's own probes take no account of ESP traffic: they tell of the peer's charon, not of
    the peer, and cost the flow."""

    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a, b = pair.sides
            pair.dpd_after = Seconds(1.0)
            await pair.bring_up()
            one, two, three, four = both_ways(lab)
            after = len(b.told)
            with one, two, three, four:
                a.charon.freeze()
                await b.wait_event(IkeEnded, after=after, count=2)
                await no_sas(b)
                assert len(a.sas()) == 4
            a.charon.thaw()
            assert one.report.lost > 0

    asyncio.run(scenario())


def test_what_was_loaded_is_unloaded_and_nothing_else(lab: Lab) -> None:
    async def scenario() -> None:
        async with pair_of(lab) as pair:
            a, b = pair.sides
            await pair.load_both()
            key_ids = await a.ike.loaded_keys()
            assert len(key_ids) == 1
            assert await a.ike.loaded_connections() == tuple(map(connection_name, FAMILIES))
            await pair.initiate()
            for version in FAMILIES:
                await a.ike.unload_connection(connection_name(version))
            for key_id in key_ids:
                await a.ike.unload_key(key_id)
            assert await a.ike.loaded_connections() == ()
            assert await a.ike.loaded_keys() == ()
            assert len(await a.ike.sas()) == 2, "SAs outlive their configuration"
            with pytest.raises(Refused, match="not found"):
                await a.ike.unload_connection(connection_name(4))
            with pytest.raises(Refused, match=r"config 'overlay\.0' not found"):
                await a.ike.initiate(connection_name(4), CHILD, seconds=5)
            assert a.events(IkeEstablished)
            assert keyed(b.events(ChildEstablished)[0].child).esn

    asyncio.run(scenario())
