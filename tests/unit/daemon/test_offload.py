"""What is tried of a device, how often, and what is said of it."""

import logging
from dataclasses import replace

import pytest

from tests.sim.host import FakeLinks
from tests.sim.kernel import FakeKernel, FakeNic
from tests.unit.machines.one_pair import children
from tunsec.daemon.offload import Offloads
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, OffloadWish
from tunsec.model.ownership import REQID_TRIAL
from tunsec.model.sa import OffloadKind
from tunsec.model.secret import Secret
from tunsec.model.step import AddSa, Step
from tunsec.model.underlay import Nic

GCM, CHACHA = Aead.AES_128_GCM, Aead.CHACHA20_POLY1305
CRYPTO = frozenset({OffloadKind.CRYPTO})


class Dice:
    """Counts."""

    def __init__(self) -> None:
        self.last = 0x1000

    def spi(self) -> int:
        """The next one."""
        self.last += 1
        return self.last

    def private_value(self) -> Secret:
        """The next one."""
        return Secret(self.spi().to_bytes(32, "big"))

    def token(self, count: int) -> bytes:
        """None is asked for."""
        raise NotImplementedError

    def fraction(self) -> float:
        """None is asked for."""
        raise NotImplementedError


class Bench:
    """Devices, and what was tried of them."""

    def __init__(self, nic: FakeNic | None) -> None:
        self.kernel = FakeKernel(lambda: Instant(1000.0))
        if nic is not None:
            self.kernel.nics[nic.ifindex] = nic
        self.tried: list[tuple[OffloadKind, Aead]] = []
        self.kernel.before_step = self._note
        links = FakeLinks((), self.kernel)
        self.offloads = Offloads(kernel=self.kernel, links=links, entropy=Dice())

    def _note(self, step: Step) -> None:
        if isinstance(step, AddSa):
            assert step.sa.reqid == REQID_TRIAL
            assert step.sa.offload is not None
            assert step.sa.aead is not None
            self.tried.append((step.sa.offload.kind, step.sa.aead))

    def nic(self, wish: OffloadWish, aead: Aead = GCM) -> Nic | None:
        """What carries a child with a wish."""
        found = self.offloads.nic(child(wish), aead)
        assert self.kernel.sas() == {}, "nothing is left of a trial"
        return found


def child(wish: OffloadWish) -> Child:
    """The first child, with a wish."""
    return replace(children()[0], offload=wish)


def test_a_device_is_tried_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(FakeNic(7, "nic0", takes=CRYPTO))
    caplog.set_level(logging.INFO, "tunsec.offload")
    for _ in range(3):
        assert bench.nic(OffloadWish.AUTO) == Nic(OffloadKind.CRYPTO, 7, "nic0")
        assert bench.nic(OffloadWish.CRYPTO) == Nic(OffloadKind.CRYPTO, 7, "nic0")
        bench.offloads.forget({8})
        bench.offloads.forget_ways()
    assert bench.tried == [(OffloadKind.PACKET, GCM), (OffloadKind.CRYPTO, GCM)]
    bench.offloads.forget({7})
    bench.nic(OffloadWish.CRYPTO)
    bench.offloads.forget(None)
    bench.nic(OffloadWish.CRYPTO)
    assert bench.tried[2:] == [(OffloadKind.CRYPTO, GCM)] * 2
    said = [record.getMessage() for record in caplog.records]
    assert said == ["device does not take SAs", "device takes SAs"], "once, while it is the same"


def test_nothing_is_tried_for_nothing() -> None:
    bench = Bench(FakeNic(7, "nic0"))
    assert bench.nic(OffloadWish.NONE) is None
    bench.kernel.nics.clear()
    assert bench.nic(OffloadWish.AUTO) is None
    assert bench.tried == []


def test_each_aead_is_tried_for_itself() -> None:
    bench = Bench(FakeNic(7, "nic0"))
    assert bench.nic(OffloadWish.AUTO, CHACHA) is None
    assert bench.nic(OffloadWish.AUTO, GCM) == Nic(OffloadKind.PACKET, 7, "nic0")
    with pytest.raises(Refused, match="nic0: Failed to get key data") as caught:
        bench.nic(OffloadWish.CRYPTO, CHACHA)
    assert "(use 'offload: auto' or 'none')" in str(caught.value)


def test_what_was_declined_after_a_trial_is_remembered_too() -> None:
    bench = Bench(FakeNic(7, "nic0", takes=CRYPTO))
    nic = bench.nic(OffloadWish.AUTO)
    assert nic is not None
    bench.offloads.declined(child(OffloadWish.AUTO), GCM, nic, "full")
    assert bench.nic(OffloadWish.AUTO) is None
    with pytest.raises(Refused, match="nic0: full"):
        bench.nic(OffloadWish.CRYPTO)


def test_charon_is_told_what_holds_for_every_aead() -> None:
    bench = Bench(FakeNic(7, "nic0", takes=CRYPTO))
    wishing = child(OffloadWish.AUTO)
    one = replace(wishing, aeads=(GCM,))
    assert bench.offloads.settled(one).offload is OffloadWish.CRYPTO
    assert bench.offloads.settled(wishing).offload is OffloadWish.NONE, "ChaCha20 is among them"
    must = child(OffloadWish.PACKET)
    assert bench.offloads.settled(must) == must, "what is wished outright charon tries itself"
    assert "Unsupported" in bench.offloads.refusal(must)
    assert bench.offloads.refusal(one) == ""
