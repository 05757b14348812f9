"""CHILD_SAs of two real charons: what arrives in the kernel, and that nothing leaves in clear."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.lab.ike.pair import (
    CHILD,
    FAMILIES,
    Pair,
    Side,
    connection_name,
    keyed,
    pair_of,
    reqid,
)
from tunsec.keying.ca import KeyType
from tunsec.model.aead import Aead
from tunsec.model.ike import IkeChild, IkeConnection, Limits, SharedKind, SharedSecret
from tunsec.model.names import Mark
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret
from tunsec.plan.ike_options import Ignored, ignored_options
from tunsec.plan.ike_proposals import esp_proposals
from tunsec_lab.capture import LeakWatch
from tunsec_lab.host import Lab

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge")

MARK_OUT, SET_MARK_IN, SET_MARK_OUT = (Mark(value, 0xFFFFFF) for value in (0x141, 0x241, 0x341))


def overlays(lab: Lab) -> list[str]:
    """Addresses of b, over IPv4 and over IPv6."""
    b = lab.hosts["b"]
    return [str(b.overlay_addresses(name)[0]) for name in ("red", "blue")]


async def with_pair(
    lab: Lab, scenario: Callable[[Pair], Awaitable[None]], *, kind: KeyType = KeyType.ED25519
) -> None:
    async with pair_of(lab, kind=kind) as pair:
        await scenario(pair)


def marked(child: IkeChild) -> IkeChild:
    """A child with every mark that tenants need."""
    return replace(child, mark_out=MARK_OUT, set_mark_in=SET_MARK_IN, set_mark_out=SET_MARK_OUT)


def only_child(connection: IkeConnection, child: IkeChild) -> IkeConnection:
    return replace(connection, children=(child,))


async def read_back(pair: Pair, side: Side, version: int, asked: IkeChild) -> tuple[Ignored, ...]:
    """What charon ignored on one side."""
    _, child = await side.child(version)
    return ignored_options(
        asked,
        child,
        side.kernel.sas(),
        local=side.address(version),
        remote=pair.other(side).address(version),
    )


@pytest.mark.parametrize("auth", ["ed25519", "p256", "psk"])
def test_one_child_sa_carries_vxlan_both_ways(lab: Lab, watch: LeakWatch, auth: str) -> None:
    async def scenario(pair: Pair) -> None:
        a, b = lab.hosts.values()
        pair.protect()
        for host in (a, b):
            host.raise_overlays()
        assert not a.reaches(overlays(lab)[0], wait=0.3)
        await pair.load_both(psk=auth == "psk")
        await pair.initiate()
        for address in overlays(lab):
            assert a.ping(address, count=20).lost == 0
        for side in pair.sides:
            assert len(side.sas()) == 4, "one SA each way and family"
            for version in FAMILIES:
                ike, child = await side.child(version)
                assert child.reqid == reqid(version)
                assert keyed(child).inbound.packets >= 20
                assert keyed(child).outbound.packets >= 20
                assert (ike.local_identity, ike.remote_identity) in {("a", "b"), ("b", "a")}
                asked = pair.connection(side, version).children[0]
                assert await read_back(pair, side, version, asked) == ()
        assert len(watch.report().esp_flows) == 4

    asyncio.run(with_pair(lab, scenario, kind=KeyType.P256 if auth == "p256" else KeyType.ED25519))


@pytest.mark.parametrize("aead", list(Aead))
def test_every_option_arrives_in_the_kernel(lab: Lab, aead: Aead) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.load_both()
        asked = {}
        for side in pair.sides:
            connection = pair.connection(side, 4)
            asked[side.host.name] = replace(
                marked(connection.children[0]),
                proposals=esp_proposals(pair.algorithms, [aead]),
                replay_window=2048,
                seconds=Limits(600, 900, 60),
                volume=Limits(1_000_000_000, 2_000_000_000, 1000),
                packets=Limits(5_000_000, 6_000_000, 10),
            )
            await side.ike.load_connection(only_child(connection, asked[side.host.name]))
        await pair.a.ike.initiate(connection_name(4), CHILD, seconds=10)
        for side in pair.sides:
            assert await read_back(pair, side, 4, asked[side.host.name]) == ()
            directions = {sa.direction: sa for sa in side.sas(4)}
            inbound, outbound = directions[SaDirection.INBOUND], directions[SaDirection.OUTBOUND]
            assert inbound.replay.window == 2048
            assert (inbound.id.mark, inbound.output_mark) == (None, SET_MARK_IN)
            assert outbound.id.mark == MARK_OUT
            assert outbound.output_mark == SET_MARK_OUT
            assert outbound.lifetimes.hard_seconds == 900

    asyncio.run(with_pair(lab, scenario))


def test_what_is_not_as_asked_is_named(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.load_both()
        await pair.initiate()
        asked = pair.connection(pair.a, 4).children[0]
        wishes = replace(
            marked(asked),
            replay_window=4096,
            seconds=Limits(60, 90, 6),
            proposals=esp_proposals(pair.algorithms, [Aead.AES_128_GCM]),
        )
        found = {ignored.option.split()[0] for ignored in await read_back(pair, pair.a, 4, wishes)}
        assert found == {
            "replay_window",
            "life_time",
            "rekey_time",
            "esp_proposals",
            "mark_out",
            "set_mark_in",
            "set_mark_out",
        }

    asyncio.run(with_pair(lab, scenario))


def test_labels_tell_children_with_the_same_selectors_apart(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        names = ["red", "blue", "green"]
        await pair.load_both()
        for side, order in ((pair.a, names), (pair.b, names[::-1])):
            connection = pair.connection(side, 4)
            children = tuple(
                replace(
                    connection.children[0],
                    name=f"{side.host.name}-{name}",
                    label=f"overlay/{name}",
                    reqid=reqid(names.index(name) + (10 if side is pair.a else 20)),
                )
                for name in order
            )
            await side.ike.load_connection(replace(connection, children=children))
        for name in names:
            await pair.a.ike.initiate(connection_name(4), f"a-{name}", seconds=10)
        pairs = []
        for side in pair.sides:
            (ike,) = await side.ike.sas(ike=connection_name(4))
            pairs.append(
                {
                    (
                        child.label,
                        frozenset((keyed(child).spi_in, keyed(child).spi_out)),
                    ): child.name
                    for child in ike.children
                }
            )
        assert pairs[0].keys() == pairs[1].keys()
        assert sorted(label or "" for label, _ in pairs[0]) == sorted(f"overlay/{n}" for n in names)
        for key, name in pairs[0].items():
            assert name.removeprefix("a-") == pairs[1][key].removeprefix("b-")

    asyncio.run(with_pair(lab, scenario))


def test_a_ppk_is_mixed_in(lab: Lab) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.load_both()
        for side in pair.sides:
            secret = Secret(b"0123456789abcdef0123456789abcdef")
            shared = SharedSecret("tunsec-ppk", SharedKind.PPK, secret, ("cluster-1",))
            await side.ike.load_secret(shared)
            connection = replace(pair.connection(side, 4), ppk_id="cluster-1")
            await side.ike.load_connection(connection)
        await pair.a.ike.initiate(connection_name(4), CHILD, seconds=10)
        for side in pair.sides:
            ike, _ = await side.child(4)
            assert ike.ppk

    asyncio.run(with_pair(lab, scenario))
