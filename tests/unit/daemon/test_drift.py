"""Closing a kernel in which other programs live."""

import logging
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.kernel import FakeKernel
from tunsec.daemon.drift import Drift
from tunsec.daemon.health import Counters, Troubles
from tunsec.daemon.scope import Scope
from tunsec.model.clock import Instant
from tunsec.model.errors import Unavailable
from tunsec.model.names import HostName
from tunsec.model.ownership import is_our_sp
from tunsec.model.sp import Sp, SpAction
from tunsec.model.step import AddSp, RemoveSp, Step
from tunsec.policy.desired import inbound_sps
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
flows:
  overlay: {kind: vxlan, between: [db1, db2]}
"""
SCOPE = Scope(HostName("db1"), parse_policy(POLICY, "test"), "test")
OURS = (*SCOPE.blocks, *(sp for child in SCOPE.children for sp in inbound_sps(child)))


@dataclass(slots=True)
class Host:
    """A kernel, and what closes it."""

    kernel: FakeKernel = field(default_factory=lambda: FakeKernel(lambda: Instant(0.0)))
    troubles: Troubles = field(default_factory=Troubles)

    @property
    def drift(self) -> Drift:
        """What closes it."""
        return Drift(kernel=self.kernel, counters=Counters(), troubles=self.troubles)

    def stranger_under(self, sp: Sp) -> Sp:
        """Another program's SP, of low precedence, under the id of one of ours."""
        stranger = replace(sp, action=SpAction.ALLOW, priority=100_000, templates=())
        assert not is_our_sp(stranger)
        assert self.kernel.by_hand(AddSp(stranger)) is None
        return stranger

    def closed(self) -> set[Sp]:
        """Our SPs that the kernel holds."""
        return {sp for sp in self.kernel.sps().values() if is_our_sp(sp)}


def test_an_empty_kernel_is_closed_and_nobody_is_in_the_way() -> None:
    host = Host()
    host.drift.close(SCOPE)
    assert host.closed() == set(OURS)
    assert host.troubles.lines() == []


@pytest.mark.parametrize("sp", OURS, ids=lambda sp: str(sp.id))
def test_another_programs_sp_in_the_place_of_ours_is_said_and_the_rest_is_closed(
    sp: Sp, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host()
    stranger = host.stranger_under(sp)
    with caplog.at_level(logging.ERROR):
        host.drift.close(SCOPE)
    assert host.troubles.conflicts == (f"another program owns {sp.id}",)
    assert str(sp.id) in caplog.text
    assert host.kernel.sp(sp.id) == stranger
    assert host.closed() == {one for one in OURS if one != sp}
    host.kernel.by_hand(RemoveSp(stranger))
    host.drift.close(SCOPE)
    assert host.troubles.lines() == []
    assert host.closed() == set(OURS)


def test_a_stranger_that_comes_first_is_said_too() -> None:
    host = Host()
    [child, *_] = SCOPE.children
    [sp, *_] = inbound_sps(child)
    first = replace(sp, priority=1, action=SpAction.ALLOW, templates=())
    host.kernel.by_hand(AddSp(first))
    host.drift.close(SCOPE)
    [said] = host.troubles.overtaken
    assert str(child.id) in said


def test_who_is_in_the_way_is_said_though_the_kernel_answers_no_more() -> None:
    host = Host()
    host.stranger_under(OURS[0])

    def hang(step: Step) -> None:
        raise Unavailable(f"no answer to {step}")

    host.kernel.before_step = hang
    with pytest.raises(Unavailable):
        host.drift.close(SCOPE)
    assert host.troubles.conflicts
