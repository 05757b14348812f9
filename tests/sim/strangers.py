"""Other programs on the same hosts: SAs and SPs that tunsec must never touch, some very near."""

import ipaddress
from dataclasses import replace

from tests.sim.host import SimHost
from tests.sim.world import World
from tunsec.model.aead import Aead
from tunsec.model.flow import ChildId
from tunsec.model.names import Address, Network, Reqid, Spi
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT, REQID_FIRST, REQID_LAST
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, Step
from tunsec.policy.desired import inbound_sps, outbound_sps

NEAR_REQIDS = (Reqid(1), Reqid(REQID_FIRST - 1), Reqid(REQID_LAST + 1), Reqid(0x5400))


def move_in(world: World, host: SimHost) -> None:
    """Another program installs SAs and SPs: near ours in every number, in the way of nothing."""
    own, peers = _addresses(world, host)
    for number, reqid in enumerate(NEAR_REQIDS):
        peer = peers[number % len(peers)]
        _put(host, AddSa(_sa(own, peer, reqid, world.dice.randint(256, 1 << 31)), OUT))
        _put(host, AddSa(_sa(peer, own, reqid, world.dice.randint(256, 1 << 31)), IN))
        for direction, src, dst in ((SpDirection.OUT, own, peer), (SpDirection.IN, peer, own)):
            selector = Selector(_network(src), _network(dst), UDP, dport=PortMatch(500 + number))
            template = Template(src, dst, reqid)
            priority = (0, PRIORITY_PROTECT, PRIORITY_BLOCK, 100_000)[number]
            sp = Sp(SpId(selector, direction), priority, SpAction.ALLOW, (template,))
            _put(host, AddSp(sp))
    # A block that is not ours, one beside our priority, on a port of its own.
    anywhere = Selector(_network(own), _network(peers[0]), UDP, dport=PortMatch(9))
    block = Sp(SpId(anywhere, SpDirection.OUT), PRIORITY_BLOCK + 1, SpAction.BLOCK)
    _put(host, AddSp(block))
    world.tell(f"another program moves in on {host.name}")
    world.laws.foreign_changed(host)


def stand_in_the_way(
    world: World, host: SimHost, child_id: ChildId, *, direction: SpDirection, opening: bool
) -> None:
    """Another program's SP under the very selector of a child's SP: ours cannot be there.

    An `opening` one comes first and lets packets pass in clear; the other one asks for an SA of its
    own and comes after our block.
    """
    child = next(child for child in host.scope.children if child.id == child_id)
    ours = outbound_sps(child, Spi(0)) if direction is SpDirection.OUT else inbound_sps(child)
    for sp in ours:
        foreign = replace(
            sp,
            priority=100 if opening else 100_000,
            templates=()
            if opening
            else tuple(replace(one, reqid=Reqid(77), spi=None) for one in sp.templates),
        )
        if host.kernel.sp(sp.id) is None:
            _put(host, AddSp(foreign))
    world.crowded = True
    world.tell(f"another program's {direction} SP stands in the way of {child_id} on {host.name}")
    world.laws.foreign_changed(host)


IN, OUT = SaDirection.INBOUND, SaDirection.OUTBOUND


def _put(host: SimHost, step: Step) -> None:
    refused = host.kernel.by_hand(step)
    if refused is not None:
        raise AssertionError(f"the stranger is refused: {refused}")


def _sa(src: Address, dst: Address, reqid: Reqid, spi: int) -> Sa:
    key = Secret(spi.to_bytes(4, "big") * 5)
    return Sa(SaId(dst, Spi(spi)), src, reqid, Aead.AES_128_GCM, key)


def _addresses(world: World, host: SimHost) -> tuple[Address, list[Address]]:
    own = world.intent.host(host.name).addresses[0]
    peers = [
        address
        for other in world.intent.hosts
        if other.name != host.name
        for address in other.addresses
        if address.version == own.version
    ]
    return own, peers


def _network(address: Address) -> Network:
    return ipaddress.ip_network(address)
