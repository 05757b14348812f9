"""The contract of ports.Kernel on the real kernel, each test in a network namespace of its own."""

import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address

import pytest

from tests.contract.kernel_contract import KernelContract, done
from tests.contract.overlapping import HERE, OTHER, THERE, some
from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.model.packet import Packet
from tunsec.model.selector import UDP
from tunsec.model.sp import SpDirection
from tunsec.model.step import AddSp, RemoveSp, UpdateSp
from tunsec.plan.lookup import ruling
from tunsec_lab.features import IN_LAB, probe_features
from tunsec_lab.netdevsim import BUS

SO_MARK = 36
ROUNDS = 100


@pytest.fixture(scope="module")
def real_kernel() -> None:
    """Skip where the kernel has no ESP; in the lab that is a failure."""
    lacking = missing_capability()
    if lacking is None:
        found = probe_features(["esp-ipv4", "esp-ipv6", "xfrm-marks", "xfrm-policies"])
        lacking = "; ".join(f"{name}: {reason}" for name, reason in found.items() if reason)
    if lacking and os.environ.get(IN_LAB) == "1":
        pytest.fail(f"the lab kernel lacks {lacking}", pytrace=False)
    if lacking:
        pytest.skip(lacking)


class TestXfrmKernel(KernelContract):
    """The promises, kept by Linux."""

    @pytest.fixture
    def kernel(self, real_kernel: None) -> Iterator[XfrmKernel]:
        with private_namespace():
            kernel = XfrmKernel()
            yield kernel
            kernel.close()

    def test_a_packet_meets_the_sp_that_the_look_up_finds(self, kernel: XfrmKernel) -> None:
        """Linux notes on an SP when a packet met it, on whatever of its lists it stands."""
        rng = random.Random(4789)
        run("ip link add d0 type veth peer name d1")
        run("ip addr add 192.0.2.1/24 dev d0")
        run("ip link set d0 up")
        ruled = 0
        for _ in range(ROUNDS):
            sps = some(rng, 12, marks=True).values()
            done(kernel, *(AddSp(sp) for sp in sps))
            done(kernel, *(UpdateSp(sp, sp) for sp in rng.sample(list(sps), 2)))
            sport, dport = rng.choice((4790, 50_000)), rng.choice((4789, 4790, 4791, 0x1234))
            mark, dst = rng.choice((0, 1, 0x10)), rng.choice((THERE, OTHER))
            packet = Packet(HERE, dst, UDP, sport, dport, mark)
            rules = ruling(kernel.sps().values(), SpDirection.OUT, packet).rules
            send(packet, dst)
            met = {sp.id for sp in kernel.sps().values() if sp.usage.used_at}
            assert met == ({rules.id} if rules else set()), packet
            ruled += rules is not None
            done(kernel, *(RemoveSp(sp) for sp in sps))
        assert ruled > ROUNDS / 2

    @pytest.fixture
    def plain_device(self, kernel: XfrmKernel) -> int:
        run("ip link add v0 type veth peer name v1")
        return socket.if_nametoindex("v0")

    @pytest.fixture
    def nic(self, kernel: XfrmKernel) -> Iterator[int]:
        if reason := probe_features(["netdevsim"]).get("netdevsim"):
            pytest.skip(reason)
        before = set(socket.if_nameindex())
        (BUS / "new_device").write_text("4714 1")
        try:
            ((ifindex, name),) = set(socket.if_nameindex()) - before
            run(f"ip link set {name} up")
            yield ifindex
        finally:
            (BUS / "del_device").write_text("4714")


def send(packet: Packet, dst: IPv4Address) -> None:
    """One datagram, blocked or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, packet.mark or 0)
        sock.bind((str(packet.src), packet.sport or 0))
        with suppress(PermissionError):
            sock.sendto(b"?", (str(dst), packet.dport or 0))
