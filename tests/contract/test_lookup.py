"""The look-up of `tunsec explain` finds the SP that a kernel finds: the simulation's, and Linux."""

import random
import socket
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.namespaces import missing_capability, private_namespace
from tests.sim.kernel import FakeKernel
from tests.sim.kernel import Packet as SimPacket
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.model.clock import Instant
from tunsec.model.names import Mark
from tunsec.model.packet import Packet
from tunsec.model.selector import ANY_PORT, UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId
from tunsec.model.step import AddSp, Step, UpdateSp
from tunsec.plan.lookup import Match, ruling, sp_match

HERE, THERE, OTHER = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.130"))
NETWORKS = ("192.0.2.1/32", "192.0.2.2/32", "192.0.2.0/25", "192.0.2.0/24", "0.0.0.0/0")
PORTS = (ANY_PORT, PortMatch(4789), PortMatch(4791), PortMatch(0x1200, 0xFF00))
SO_MARK = 36


def block(rng: random.Random, *, marks: bool) -> Sp:
    """A block SP that overlaps with many others, also at one priority."""
    selector = Selector(
        ip_network(rng.choice(NETWORKS)),
        ip_network(rng.choice(NETWORKS)),
        rng.choice((0, UDP, UDP, 6)),
        rng.choice((ANY_PORT, ANY_PORT, PortMatch(4790))),
        rng.choice(PORTS),
    )
    mark = rng.choice((None, Mark(1, 0xF), Mark(0x10, 0xF0))) if marks else None
    return Sp(SpId(selector, SpDirection.OUT, mark), rng.choice((7, 8, 8)), SpAction.BLOCK)


def some(rng: random.Random, count: int, *, marks: bool) -> dict[SpId, Sp]:
    """Block SPs of different ids."""
    sps = (block(rng, marks=marks) for _ in range(count))
    return {sp.id: sp for sp in sps}


@given(st.randoms(use_true_random=False))
def test_the_simulations_kernel_finds_the_same(rng: random.Random) -> None:
    kernel = FakeKernel(lambda: Instant(1000.0))
    sps = some(rng, 8, marks=False)
    kernel.apply([AddSp(sp) for sp in sps.values()])
    for sport in (4790, 50_000):
        for dport in (4789, 4790, 4791):
            packet = SimPacket(HERE, THERE, UDP, sport, dport)
            asked = Packet(HERE, THERE, UDP, sport, dport)
            found = ruling(kernel.sps().values(), SpDirection.OUT, asked)
            assert found.rules == kernel.lookup(SpDirection.OUT, packet)
            assert not found.may


@given(st.randoms(use_true_random=False))
def test_what_is_not_known_leaves_every_outcome_open_and_no_other(rng: random.Random) -> None:
    """An SP rules some packet of those that are asked about, or it is not named as one."""
    sps = list(some(rng, 8, marks=True).values())
    asked = Packet(HERE, THERE, UDP, None, None, mark=None)
    found = ruling(sps, SpDirection.OUT, asked)
    open_still = {*(sp.id for sp in found.may), *([found.rules.id] if found.rules else [])}
    for sport in (4790, 50_000):
        for dport in (4788, 4789, 4791, 0x1234):
            for mark in (0, 1, 0x10, 0x11):
                exact = Packet(HERE, THERE, UDP, sport, dport, mark)
                ruler = ruling(sps, SpDirection.OUT, exact).rules
                assert ruler is None or ruler.id in open_still
                if found.rules is not None:
                    assert ruler is not None
    for sp in found.may:
        assert sp_match(sp, SpDirection.OUT, asked) is Match.MAYBE


def met(kernel: XfrmKernel) -> set[SpId]:
    """SPs that a packet has met since they were put there."""
    return {sp.id for sp in kernel.sps().values() if sp.usage.used_at}


def send(sport: int, dport: int, mark: int, *, dst: IPv4Address) -> None:
    """One datagram, blocked or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.bind((str(HERE), sport))
        try:
            sock.sendto(b"?", (str(dst), dport))
        except PermissionError:
            return


def written(kernel: XfrmKernel, sps: Iterable[Sp], again: Iterable[Sp]) -> None:
    """An SPD of just these, some of them updated after they were all there."""
    subprocess.run(["ip", "xfrm", "policy", "flush"], check=True)
    steps: list[Step] = [*(AddSp(sp) for sp in sps), *(UpdateSp(sp, sp) for sp in again)]
    assert kernel.apply(steps) == [None] * len(steps)


@pytest.mark.skipif(bool(missing_capability()), reason=f"needs {missing_capability()}")
def test_linux_finds_the_same() -> None:
    """Linux notes on an SP when a packet met it, on whatever place of its lists it stands."""
    rng = random.Random(4789)
    ruled = 0
    with private_namespace():
        for line in (
            "link add d0 type veth peer name d1",
            "addr add 192.0.2.1/24 dev d0",
            "link set d0 up",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        kernel = XfrmKernel()
        for _ in range(150):
            sps = list(some(rng, 12, marks=True).values())
            written(kernel, sps, rng.sample(sps, 2))
            sport, dport = rng.choice((4790, 50_000)), rng.choice((4789, 4790, 4791, 0x1234))
            mark, dst = rng.choice((0, 1, 0x10)), rng.choice((THERE, OTHER))
            packet = Packet(HERE, dst, UDP, sport, dport, mark)
            rules = ruling(kernel.sps().values(), SpDirection.OUT, packet).rules
            send(sport, dport, mark, dst=dst)
            assert met(kernel) == ({rules.id} if rules else set()), packet
            ruled += rules is not None
        kernel.close()
    assert ruled > 75
