"""The guard's two parts: one that fails is told of, and does not keep the other one back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.host import FakeGuard, FakeLinks
from tests.sim.kernel import FakeKernel
from tunsec.daemon.guarding import Guarding
from tunsec.daemon.health import Counters, Troubles
from tunsec.daemon.scope import Scope
from tunsec.model.clock import Instant
from tunsec.model.errors import Unavailable
from tunsec.model.flow import Kind
from tunsec.model.guard import Guard, VniMarks
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


def external(name: str, number: int, *, port: int = 4789) -> OverlayDevice:
    """A tunnel device with a VNI per packet."""
    return OverlayDevice(name, number, Kind.VXLAN, port, 1450, None, None, None, None, True, None)


class Devices(FakeLinks):
    """ports.Links with one external device and one of another port, at first."""

    def __init__(self) -> None:
        super().__init__((), FakeKernel(lambda: Instant(0.0)))
        self.found: tuple[OverlayDevice, ...] = (
            external("vxe", 2),
            external("other", 3, port=4790),
        )

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        """Those of now."""
        return self.found


@dataclass
class OldTable(FakeGuard):
    """The table in a kernel that deletes a device's chain with the device."""

    links: Devices

    def __post_init__(self) -> None:
        super().__init__()

    def intact(self, guard: Guard) -> bool:
        """Whether the table is just this one."""
        assert self.guard is not None
        there = {device.ifindex for device in self.links.found}
        left = tuple(device for device in self.guard.devices if device.ifindex in there)
        self.guard = replace(self.guard, devices=left)
        return super().intact(guard)


class Rig:
    """A Guarding with everything around it."""

    def __init__(self, *, missing: str = "", old: bool = False) -> None:
        self.links = Devices()
        self.table = OldTable(self.links) if old else FakeGuard()
        self.filters = Filters(missing=missing)
        self.counters = Counters()
        self.troubles = Troubles()
        self.guarding = Guarding(
            table=self.table,
            marks=self.filters,
            links=self.links,
            counters=self.counters,
            troubles=self.troubles,
        )


def test_an_external_device_is_marked_by_vni_and_only_where_there_are_tenants() -> None:
    rig = Rig()
    assert rig.guarding.put(SCOPE)
    assert rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 0
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


@pytest.mark.parametrize("old", [True, False])
def test_devices_that_come_change_and_go_are_no_drift(old: bool) -> None:
    rig = Rig(old=old)
    rig.guarding.put(SCOPE)
    first, second = external("vxe", 2), external("vxf", 4)
    for found in (first, second), (external("renamed", 2), second), (second,), ():
        rig.links.found = found
        rig.filters.held = {
            device.name: rig.filters.held[device.name]
            for device in found
            if device.name in rig.filters.held
        }
        assert rig.guarding.check(SCOPE)
        assert rig.table.guard == SCOPE.guard(found)
        assert list(rig.filters.held) == [device.name for device in found]
    assert rig.counters.repaired_guard == 0


@pytest.mark.parametrize("old", [True, False])
def test_drift_is_counted_though_a_device_has_changed_too(old: bool) -> None:
    rig = Rig(old=old)
    rig.guarding.put(SCOPE)
    rig.links.found += (external("vxf", 4),)
    rig.filters.held.clear()
    assert rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 1
    assert list(rig.filters.held) == ["vxe", "vxf"]
    rig.links.found = ()
    rig.filters.held.clear()
    assert rig.table.guard is not None
    rig.table.guard = replace(rig.table.guard, flows=())
    assert rig.guarding.check(SCOPE)
    assert rig.counters.repaired_guard == 2
    assert rig.table.guard == SCOPE.guard(())


def test_without_tc_the_table_stands_and_status_says_why_the_rest_is_blocked() -> None:
    rig = Rig(missing="there is no tc")
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
