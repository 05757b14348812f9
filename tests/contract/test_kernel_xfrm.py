"""The contract of ports.Kernel on the real kernel, each test in a network namespace of its own."""

import os
from collections.abc import Iterator

import pytest

from tests.contract.kernel_contract import KernelContract
from tests.namespaces import missing_capability, private_namespace
from tunsec.adapters.xfrm import XfrmKernel
from tunsec_lab.features import IN_LAB, probe_features


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
