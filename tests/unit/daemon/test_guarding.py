"""The guard's two parts: one that fails is told of, and does not keep the other one back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.host import FakeGuard, FakeLinks
from tests.sim.kernel import FakeKernel
from tunsec.daemon.guarding import Guarding
from tunsec.daemon.health import Counters, Troubles
from tunsec.daemon.scope import Scope
from tunsec.model.clock import Instant
from tunsec.model.errors import Unavailable
from tunsec.model.flow import Kind
from tunsec.model.guard import VniMarks
from tunsec.model.names import HostName, Vni
from tunsec.policy.intent import parse_policy
from tunsec.ports import OverlayDevice

POLICY = """\
version: 1
hosts:
  db1: {address: 192.0.2.11}
  db2: {address: 192.0.2.12}
flows:
  overlay: {kind: vxlan, between: [db1, db2], tenants: {red: 41}}
"""
SCOPE = Scope(HostName("db1"), parse_policy(POLICY, "test"), "test")


@dataclass
class Filters:
    """ports.VniMarking in memory."""

    held: dict[str, VniMarks] = field(default_factory=dict)
    missing: str = ""
    """Why there is no tc."""

    def put(self, wanted: Sequence[VniMarks]) -> None:
        """Hold them."""
        if self.missing and any(want.by_vni for want in wanted):
            raise Unavailable(self.missing)
        self.held = {want.device: want for want in wanted if want.by_vni}

    def drift(self, wanted: Sequence[VniMarks]) -> tuple[str, ...]:
        """What is not held."""
        return tuple(
            want.device for want in wanted if want.by_vni and self.held.get(want.device) != want
        )


class Devices(FakeLinks):
    """ports.Links with one external device and one of another port."""

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        """Both are external."""
        return tuple(
            OverlayDevice(name, number, Kind.VXLAN, port, 1450, None, None, None, None, True, None)
            for number, (name, port) in enumerate((("vxe", 4789), ("other", 4790)), start=2)
        )


@dataclass
class Rig:
    """A Guarding with everything around it."""

    table: FakeGuard = field(default_factory=FakeGuard)
    filters: Filters = field(default_factory=Filters)
    counters: Counters = field(default_factory=Counters)
    troubles: Troubles = field(default_factory=Troubles)

    @property
    def guarding(self) -> Guarding:
        """What is tested."""
        return Guarding(
            table=self.table,
            marks=self.filters,
            links=Devices((), FakeKernel(lambda: Instant(0.0))),
            counters=self.counters,
            troubles=self.troubles,
        )


def test_an_external_device_is_marked_by_vni_and_only_where_there_are_tenants() -> None:
    rig = Rig()
    assert rig.guarding.put(SCOPE)
    assert rig.guarding.stands(SCOPE)
    assert list(rig.filters.held) == ["vxe"]
    [(vni, mark)] = rig.filters.held["vxe"].by_vni
    assert (vni, mark) == (Vni(41), SCOPE.children[0].mark)


def test_filters_that_are_gone_are_put_back_and_counted() -> None:
    rig = Rig()
    rig.guarding.put(SCOPE)
    rig.filters.held.clear()
    assert rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 1
    assert rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 1


def test_without_tc_the_table_stands_and_status_says_why_the_rest_is_blocked() -> None:
    rig = Rig(filters=Filters(missing="there is no tc"))
    assert not rig.guarding.put(SCOPE)
    assert rig.table.guard is not None
    assert rig.troubles.guard == ""
    assert rig.troubles.lines() == ["tenant marks: there is no tc"]
    assert not rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 0, "nobody changed anything"
    rig.filters.missing = ""
    assert rig.guarding.check(SCOPE)
    assert rig.troubles.lines() == []


def test_what_is_released_leaves_no_filter() -> None:
    rig = Rig()
    rig.guarding.put(SCOPE)
    assert rig.guarding.put(SCOPE.without(None))
    assert rig.filters.held == {}
    assert rig.table.guard is None
