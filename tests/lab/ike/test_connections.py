"""Connections as the daemon makes them from a policy, given to real charons."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.lab.ike.pair import AEADS, Pair, Side, der, keyed, pair_of
from tunsec.model.flow import Child
from tunsec.model.ike import CertificateAuth, ConnectionId, IkeConnection
from tunsec.model.ike_sa import ChildEstablished, ChildSa, IkeEstablished, IkeSa
from tunsec.model.names import HostName
from tunsec.plan.ike_connection import IkeSetup, ike_connection, slots
from tunsec.plan.ike_options import ignored_options
from tunsec.policy.desired import desired
from tunsec.policy.intent import Intent, parse_policy
from tunsec_lab.host import Lab

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge")

LONG_NAME = ".".join(["x" * 63] * 3 + ["y" * 61])
LONG_ADDRESSES = "2001:db8:1111:2222:3333:4444:5555:6666", "2001:db8:1111:2222:3333:4444:5555:7777"


@dataclass(frozen=True, slots=True)
class Ends:
    """What a policy makes of a pair, for one family."""

    pair: Pair
    intent: Intent
    version: int

    def children(self, side: Side) -> tuple[Child, ...]:
        """Of a side."""
        name = side.host.name
        found = desired(self.intent, name).children
        return tuple(child for child in found if child.id.local.version == self.version)

    def connection(self, side: Side, *, variant: int = 0) -> IkeConnection:
        """What a side loads."""
        children = self.children(side)
        first = children[0].id
        auth = CertificateAuth(
            certificates=(der(side.identity / "cert.pem"),),
            authorities=(der(side.identity / "ca.pem"),),
            revocation=self.intent.ike.revocation,
        )
        return ike_connection(
            ConnectionId(first.peer, first.local, first.remote),
            children,
            host=HostName(side.host.name),
            identities={host.name: host.identity for host in self.intent.hosts},
            setup=IkeSetup(self.pair.algorithms, auth, None, AEADS, self.intent.ike),
            variant=variant,
        )

    async def load(self) -> None:
        """Keys only; both connections."""
        for side in self.pair.sides:
            await self.pair.load(side, versions=())
            await side.ike.load_connection(self.connection(side))

    async def initiate(self, side: Side, *, slot: int = 0) -> None:
        """Every CHILD_SA on which a side sends; back when all of them are up."""
        name = HostName(side.host.name)
        mine = slots(self.children(side), name)
        for child, found in mine.items():
            if found.own and found.slot == slot:
                await side.ike.initiate(self.connection(side).name, child, seconds=10)

    async def held(self, side: Side) -> list[tuple[IkeSa, ChildSa]]:
        """All CHILD_SAs of a side."""
        ikes = await side.ike.sas(ike=self.connection(side).name)
        return [(ike, child) for ike in ikes for child in ike.children]


def run(lab: Lab, version: int, flows: str, scenario: Callable[[Ends], Awaitable[None]]) -> None:
    """A scenario with two charons and a policy for both."""
    lines = [
        f"  {host.name}: {{address: {host.ipv4 if version == 4 else host.ipv6}}}"
        for host in lab.hosts.values()
    ]
    text = "\n".join(
        ["version: 1", "hosts:", *lines, "defaults: {keying: ike}", "flows:", flows, ""]
    )
    intent = parse_policy(text, "policy.yaml")

    async def whole() -> None:
        async with pair_of(lab) as pair:
            await scenario(Ends(pair, intent, version))

    asyncio.run(whole())


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_policy_asks_arrives_in_both_kernels(lab: Lab, version: int) -> None:
    """The largest limits of the language too, which charon reads by a unit."""
    flows = (
        "  overlay: {kind: vxlan, between: all}\n"
        "  second: {kind: vxlan, between: all, port: 8472, aead: aes-256-gcm, "
        "rekey: {after: 30d, hard: 365d, bytes: 4500PiB, packets: 5000000000000000000}}\n"
        "  endless: {kind: vxlan, between: all, port: 8473, rekey: {bytes: none, packets: none}}"
    )

    async def scenario(ends: Ends) -> None:
        await ends.load()
        for side in ends.pair.sides:
            await ends.initiate(side)
        for side in ends.pair.sides:
            await side.wait_event(ChildEstablished, count=6)
            asked = {child.name: child for child in ends.connection(side).children}
            held = await ends.held(side)
            own = slots(ends.children(side), HostName(side.host.name))
            assert sorted(own[child.name].own for _, child in held) == 3 * [False] + 3 * [True]
            assert len({ike.id for ike, _ in held}) == 1, "one IKE_SA serves both"
            (first, *_) = ends.children(side)
            local, remote = first.id.local, first.id.remote
            for _, child in held:
                found = ignored_options(
                    asked[child.name], child, side.kernel.sas(), local=local, remote=remote
                )
                assert found == (), child.name
                assert keyed(child).rekey_in is None

    run(lab, version, flows, scenario)


@pytest.mark.parametrize(("variant", "ikes"), [(0, 1), (1, 2)])
def test_only_another_variant_makes_another_ike_sa(lab: Lab, variant: int, ikes: int) -> None:
    async def scenario(ends: Ends) -> None:
        a = ends.pair.a
        await ends.load()
        await ends.initiate(a)
        await a.ike.load_connection(ends.connection(a, variant=variant))
        await ends.initiate(a, slot=1)
        held = await ends.held(a)
        assert sorted(child.name for _, child in held) == ["overlay.a.0", "overlay.a.1"]
        assert len({ike.id for ike, _ in held}) == ikes
        assert len(a.events(IkeEstablished)) == ikes

    run(lab, 4, "  overlay: {kind: vxlan, between: all}", scenario)


def test_charon_takes_the_longest_names_there_are(lab: Lab) -> None:
    flow = "f" * 63
    local, remote = LONG_ADDRESSES
    text = (
        f"version: 1\nhosts: {{a: {{address: '{local}'}}, {LONG_NAME}: {{address: '{remote}'}}}}\n"
        f"flows: {{{flow}: {{kind: vxlan, keying: ike, between: all}}}}\n"
    )

    async def scenario(ends: Ends) -> None:
        longest = Ends(ends.pair, parse_policy(text, "policy.yaml"), 6)
        wanted = longest.connection(ends.pair.a)
        await ends.pair.a.ike.load_connection(wanted)
        (loaded,) = await ends.pair.a.ike.connections()
        assert loaded.name == wanted.name
        assert set(loaded.children) == {child.name for child in wanted.children}

    run(lab, 4, "  overlay: {kind: vxlan, between: all}", scenario)
