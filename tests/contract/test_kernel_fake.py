"""The contract of ports.Kernel on the simulation's kernel, so that it cannot drift."""

import pytest

from tests.contract.kernel_contract import KernelContract
from tests.sim.kernel import FakeKernel
from tunsec.model.clock import Instant


class TestFakeKernel(KernelContract):
    """The promises, kept by the fake."""

    @pytest.fixture
    def kernel(self) -> FakeKernel:
        return FakeKernel(lambda: Instant(1000.0))
