"""SA orders on a kernel: no key twice, nothing foreign touched, every order answered."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.host import FakeLinks
from tests.sim.kernel import FakeKernel
from tests.unit.machines.one_pair import children
from tunsec.daemon.install import DRAWS, DUMP_FROM, Installer, inbound_id, outbound_id
from tunsec.daemon.offload import Offloads
from tunsec.machines.facts import (
    Carried,
    InboundInstalled,
    Keyed,
    NotInstalled,
    OutboundSwitched,
    UsageRead,
)
from tunsec.machines.orders import InstallInbound, InstallOutbound, PassOver, ReadUsage
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import OfferSeq, Reqid, Spi
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpAction
from tunsec.model.step import AddSa, AddSp, RemoveSp, Step, UpdateSp
from tunsec.policy.desired import inbound_sps, outbound_sps

AEAD = Aead.CHACHA20_POLY1305
OWN, PEER = OfferSeq(1), OfferSeq(101)


@dataclass(slots=True)
class Keys:
    """Keys by name; every one that was made is seen."""

    made: list[tuple[str, Keyed]] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    held: set[OfferSeq] = field(default_factory=lambda: {OWN})

    def aead(self, child: Child, peer_offer: OfferSeq) -> Aead:
        """Always the same."""
        return AEAD

    def inbound_key(self, keyed: Keyed) -> Secret:
        """A key of its own for each name."""
        return self._make("in", keyed)

    def outbound_key(self, keyed: Keyed) -> Secret:
        """A key of its own for each name."""
        return self._make("out", keyed)

    def _make(self, direction: str, keyed: Keyed) -> Secret:
        if keyed.own_offer not in self.held:
            raise Refused(f"key for {keyed.child}", reason="its offers are no longer held")
        self.made.append((direction, keyed))
        self.secrets.append(Secret(bytes([len(self.made) % 256]) * 36))
        return self.secrets[-1]


@dataclass(slots=True)
class Draws:
    """SPIs from a list, then counted up."""

    spis: Iterator[int]

    def spi(self) -> int:
        """The next one."""
        return next(self.spis)

    def private_value(self) -> Secret:
        """None is asked for."""
        raise NotImplementedError

    def token(self, count: int) -> bytes:
        """None is asked for."""
        raise NotImplementedError

    def fraction(self) -> float:
        """None is asked for."""
        raise NotImplementedError


class Bench:
    """An installer with everything around it."""

    def __init__(self, *, flows: int = 1, first_spis: tuple[int, ...] = ()) -> None:
        self.kernel = FakeKernel(lambda: Instant(1000.0))
        self.keys = Keys()
        self.children = {child.id: child for child in children(flows)}
        spis = iter([*first_spis, *range(0x1000, 0x9000)])
        entropy = Draws(spis)
        offloads = Offloads(kernel=self.kernel, links=FakeLinks((), self.kernel), entropy=entropy)
        self.installer = Installer(
            kernel=self.kernel,
            keys=self.keys,
            entropy=entropy,
            children=self.children.get,
            offloads=offloads,
        )
        for child in self.children.values():
            self.kernel.apply([AddSp(sp) for sp in inbound_sps(child)])

    @property
    def child(self) -> Child:
        """The first child."""
        return next(iter(self.children.values()))

    def inbound(self) -> InboundInstalled:
        """Order inbound SAs for all children."""
        [answer] = self.installer.install_inbound(InstallInbound(tuple(self.children), OWN, PEER))
        assert isinstance(answer, InboundInstalled)
        return answer

    def outbound(self, *spis: int, child: ChildId | None = None) -> OutboundSwitched:
        """Order outbound SAs for the first child."""
        sas = tuple(Keyed(child or self.child.id, Spi(spi), AEAD, OWN, PEER) for spi in spis)
        answer = self.installer.install_outbound(InstallOutbound(sas))
        assert isinstance(answer, OutboundSwitched)
        return answer

    def pinned(self) -> Spi | None:
        """The SPI that the outbound SP of the first child pins."""
        sp = self.kernel.sp(outbound_sps(self.child, Spi(0))[0].id)
        return None if sp is None or not sp.templates else sp.templates[0].spi


# Inbound


@pytest.mark.parametrize("flows", [1, 8])
def test_inbound_sas_are_there_when_it_says_so(flows: int) -> None:
    bench = Bench(flows=flows)
    answer = bench.inbound()
    assert answer.refused == ()
    assert [keyed.child for keyed in answer.sas] == list(bench.children)
    for keyed in answer.sas:
        sa = bench.kernel.sa(inbound_id(bench.children[keyed.child], keyed.spi))
        assert sa is not None
        assert (sa.reqid, sa.aead) == (bench.children[keyed.child].reqid, AEAD)


def test_keys_are_wiped_once_they_are_in_the_kernel() -> None:
    bench = Bench(flows=8)
    bench.inbound()
    bench.outbound(0x9001)
    assert bench.keys.secrets
    assert all(secret.wiped for secret in bench.keys.secrets)


def test_an_spi_that_somebody_uses_is_drawn_again_and_never_used_under_the_same_offer() -> None:
    bench = Bench(first_spis=(0x777, 0x777, 0x778))
    taken = Sa(inbound_id(bench.child, Spi(0x777)), bench.child.id.remote, Reqid(7), AEAD)
    bench.kernel.by_hand(AddSa(replace(taken, key=Secret(bytes(36))), SaDirection.INBOUND))
    [keyed] = bench.inbound().sas
    assert keyed.spi == 0x778
    assert bench.kernel.sa(taken.id) == taken
    names = [(way, one.child, one.spi) for way, one in bench.keys.made]
    assert len(set(names)) == len(names)


def test_a_kernel_full_of_spis_is_an_answer() -> None:
    bench = Bench(first_spis=tuple(range(0x700, 0x700 + DRAWS)))
    for spi in range(0x700, 0x700 + DRAWS):
        sa = Sa(
            inbound_id(bench.child, Spi(spi)),
            bench.child.id.remote,
            Reqid(7),
            AEAD,
            Secret(bytes(36)),
        )
        bench.kernel.by_hand(AddSa(sa, SaDirection.INBOUND))
    answer = bench.inbound()
    assert answer.sas == ()
    [refused] = answer.refused
    assert "File exists" in refused.reason


def test_a_foreign_sp_in_the_childs_place_refuses_that_child_alone() -> None:
    bench = Bench(flows=2)
    first, second = bench.children.values()
    [sp] = inbound_sps(first)
    foreign = Sp(sp.id, 1, SpAction.ALLOW)
    bench.kernel.by_hand(UpdateSp(foreign, sp))
    answer = bench.inbound()
    assert [keyed.child for keyed in answer.sas] == [second.id]
    [refused] = answer.refused
    assert refused.child == first.id
    assert "another program's SP stands under" in refused.reason
    assert bench.kernel.sp(sp.id) == foreign


def test_what_the_kernel_does_not_hold_as_asked_is_taken_away() -> None:
    bench = Bench()
    keep = bench.kernel._apply

    def other_reqid(step: Step, *, ours: bool = True) -> Refused | None:
        if isinstance(step, AddSa):
            step = replace(step, sa=replace(step.sa, reqid=Reqid(step.sa.reqid + 1)))
        return keep(step, ours=ours)

    bench.kernel._apply = other_reqid  # type: ignore[method-assign]
    answer = bench.inbound()
    assert answer.sas == ()
    assert "does not hold" in answer.refused[0].reason
    assert bench.kernel.sas() == {}


# Outbound


def test_the_sa_first_then_the_switch() -> None:
    bench = Bench()
    steps: list[str] = []
    bench.kernel.before_step = lambda step: steps.append(str(step))
    assert bench.outbound(0x9001).refused == ()
    assert bench.pinned() == 0x9001
    assert [step.split()[0] for step in steps] == ["add", "add"]
    assert "outbound SA" in steps[0]
    bench.outbound(0x9002)
    assert bench.pinned() == 0x9002
    assert steps[-1].startswith("update SP")


def test_what_was_passed_over_is_refused_for_good() -> None:
    bench = Bench()
    bench.installer.pass_over(PassOver((Keyed(bench.child.id, Spi(0x9001), AEAD, OWN, PEER),)))
    answer = bench.outbound(0x9001)
    assert answer.sas == ()
    assert "passed over" in answer.refused[0].reason
    bench.outbound(0x9002)
    assert bench.pinned() == 0x9002


def test_a_key_is_made_once_whatever_is_read_again() -> None:
    bench = Bench()
    bench.outbound(0x9001)
    bench.installer.remove([outbound_id(bench.child, Spi(0x9001))])
    answer = bench.outbound(0x9001)
    assert answer.sas == ()
    assert "made before" in answer.refused[0].reason
    assert len(bench.keys.made) == 1
    assert bench.kernel.sas() == {}


def test_a_child_that_comes_back_does_not_bring_a_key_back() -> None:
    """Dropped by a policy and taken up again by the next, and the record is read again."""
    bench = Bench()
    child = bench.child
    bench.outbound(0x9001)
    bench.installer.block(child)
    bench.installer.remove([outbound_id(child, Spi(0x9001))])
    del bench.children[child.id]
    assert "the policy has no" in bench.outbound(0x9002, child=child.id).refused[0].reason
    bench.children[child.id] = child
    for spi in (0x9001, 0x9002):
        assert bench.outbound(spi).sas == ()
    assert len(bench.kernel.installed_keys) == 1


def test_what_was_refused_once_is_refused_for_the_same_reason() -> None:
    bench = Bench()
    [sp] = outbound_sps(bench.child, Spi(0))
    foreign = Sp(sp.id, 100_000, SpAction.BLOCK)
    bench.kernel.by_hand(AddSp(foreign))
    first = bench.outbound(0x9001)
    assert "another program's SP stands under" in first.refused[0].reason
    assert bench.outbound(0x9001) == first
    bench.kernel.by_hand(RemoveSp(foreign))
    assert bench.outbound(0x9001) == first
    assert bench.outbound(0x9002).refused == ()


def test_a_wiped_offer_is_forgotten() -> None:
    bench = Bench()
    bench.outbound(0x9001)
    bench.keys.held.clear()
    bench.installer.forget(OWN)
    answer = bench.outbound(0x9003)
    assert "no longer held" in answer.refused[0].reason


def test_an_aead_that_the_policy_does_not_allow() -> None:
    bench = Bench()
    bench.children[bench.child.id] = replace(bench.child, aeads=(Aead.AES_256_GCM,))
    answer = bench.outbound(0x9001)
    assert "does not allow" in answer.refused[0].reason
    assert all(secret.wiped for secret in bench.keys.secrets)
    assert bench.kernel.sas() == {}


def test_a_switch_that_fails_leaves_the_old_one() -> None:
    bench = Bench()
    bench.outbound(0x9001)
    keep = bench.kernel._apply

    def no_update(step: Step, *, ours: bool = True) -> Refused | None:
        if isinstance(step, UpdateSp) and step.sp.templates[0].spi == 0x9002:
            return Refused(str(step), errno=errno.ENOMEM)
        return keep(step, ours=ours)

    bench.kernel._apply = no_update  # type: ignore[method-assign]
    answer = bench.outbound(0x9002)
    assert answer.sas == ()
    assert bench.pinned() == 0x9001
    assert set(bench.kernel.sas()) == {outbound_id(bench.child, Spi(0x9001))}


def test_a_foreign_sp_is_not_removed_when_the_child_is_blocked() -> None:
    bench = Bench()
    [sp] = outbound_sps(bench.child, Spi(0))
    foreign = Sp(sp.id, 100_000, SpAction.ALLOW)
    bench.kernel.by_hand(AddSp(foreign))
    assert bench.installer.block(bench.child)
    assert bench.kernel.sp(sp.id) == foreign


# A kernel that does not answer


Act = Callable[[Bench], object]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda bench: bench.inbound().sas, ()),
        (lambda bench: [type(one) for one in bench.inbound().refused], [NotInstalled]),
        (lambda bench: bench.outbound(0x9001).sas, ()),
        (lambda bench: bench.installer.block(bench.child), False),
        (lambda bench: bench.installer.remove([SaId(bench.child.id.local, Spi(1))]), False),
        (lambda bench: _look(bench), [UsageRead(())]),
    ],
)
def test_a_silent_kernel_refuses_and_nothing_escapes(act: Act, expected: object) -> None:
    bench = Bench()
    bench.kernel.silent = True
    assert act(bench) == expected
    assert all(secret.wiped for secret in bench.keys.secrets)


def _look(bench: Bench) -> object:
    return bench.installer.read_usage(ReadUsage(((bench.child.id, Spi(0x1000)),)))


def test_a_removal_that_was_not_needed_was_answered() -> None:
    bench = Bench()
    assert bench.installer.remove([SaId(bench.child.id.local, Spi(1))])
    assert bench.installer.block(bench.child)


# Usage


@pytest.mark.parametrize("count", [1, DUMP_FROM + 1])
def test_usage_of_many_sas_by_one_order(count: int) -> None:
    bench = Bench()
    spis: list[Spi] = []
    for _ in range(count):
        [keyed] = bench.inbound().sas
        spis.append(keyed.spi)
    gone = Spi(0x6666)
    child = bench.child.id
    [answer] = bench.installer.read_usage(ReadUsage(tuple((child, spi) for spi in (*spis, gone))))
    assert answer == UsageRead(
        (*(Carried(child, spi, 0) for spi in spis), Carried(child, gone, None))
    )
