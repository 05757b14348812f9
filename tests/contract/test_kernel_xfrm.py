"""The contract of ports.Kernel on the real kernel, each test in a network namespace of its own."""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.contract.kernel_contract import KernelContract
from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.xfrm import XfrmKernel
from tunsec_lab.features import IN_LAB, probe_features
from tunsec_lab.netdevsim import BUS


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
