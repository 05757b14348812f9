"""The contract of ports.Kernel on the simulation's kernel, so that it cannot drift."""

import pytest

from tests.contract.kernel_contract import KernelContract
from tests.sim.kernel import FakeKernel, FakeNic
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.sa import OffloadKind


class TestFakeKernel(KernelContract):
    """The promises, kept by the fake."""

    @pytest.fixture
    def kernel(self) -> FakeKernel:
        return FakeKernel(lambda: Instant(1000.0))

    @pytest.fixture
    def plain_device(self, kernel: FakeKernel) -> int:
        kernel.nics[2] = FakeNic(2, "eth0", takes=frozenset())
        return 2

    @pytest.fixture
    def nic(self, kernel: FakeKernel) -> int:
        crypto = frozenset({OffloadKind.CRYPTO})
        aes = frozenset({Aead.AES_128_GCM})
        kernel.nics[3] = FakeNic(3, "nic0", takes=crypto, aeads=aes, esn=False)
        return 3
