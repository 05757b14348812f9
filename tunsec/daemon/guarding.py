"""Keeps the guard table, and marks by VNI, as the scope wants them."""

import logging
from collections.abc import Callable

from tunsec.daemon.health import Counters, Part, Troubles
from tunsec.daemon.scope import Scope, tunnel_device
from tunsec.model.errors import Refused, Unavailable
from tunsec.ports import GuardTable, Links, OverlayDevice, VniMarking

log = logging.getLogger("tunsec.guard")


class Guarding:
    """The second layer of law 1; what goes wrong with it is noted in the troubles.

    Packets that cannot be marked by their VNIs have no tenant: they are blocked, and no other
    device's are.
    """

    def __init__(
        self,
        *,
        table: GuardTable,
        marks: VniMarking,
        links: Links,
        counters: Counters,
        troubles: Troubles,
    ) -> None:
        self._table = table
        self._marks = marks
        self._links = links
        self._counters = counters
        self._troubles = troubles
        self._devices: tuple[OverlayDevice, ...] = ()
        """Those of the last `put`."""

    def put(self, scope: Scope) -> bool:
        """Put table and marks, or remove them when nothing is guarded; whether all is in force."""
        done = [
            self._succeeds(Part.GUARD, lambda: self._put_table(scope)),
            self._succeeds(Part.MARKS, lambda: self._put_marks(scope)),
        ]
        return all(done)

    def check(self, scope: Scope) -> bool:
        """Look and repair; whether all is in force now.

        What others did is counted. That devices have come, gone or changed is no drift.
        """
        failed = bool(self._troubles.guard or self._troubles.marks)
        if not failed and self._stands(scope):
            return True
        if not failed and not self._stands_as_put(scope):
            self._counters.repaired_guard += 1
            log.warning("guard was changed: repaired")
        return self.put(scope)

    def _put_table(self, scope: Scope) -> None:
        self._devices = self._links.overlay_devices()
        if scope.guarded:
            self._table.put(scope.guard(self._devices))
        else:
            self._table.remove()

    def _put_marks(self, scope: Scope) -> None:
        self._marks.put(scope.vni_marks(self._links.overlay_devices()))

    def _stands(self, scope: Scope) -> bool:
        """Whether the kernel holds table and marks as wanted for the devices there are now."""
        devices = self._links.overlay_devices
        return self._holds(
            Part.GUARD, lambda: self._table_stands(scope, devices())
        ) and self._holds(Part.MARKS, lambda: self._marks_stand(scope, devices()))

    def _stands_as_put(self, scope: Scope) -> bool:
        """Whether it holds what was put, but for devices that are not the same any more.

        A device's filters go with it; its chain goes in older kernels and stays in newer ones.
        """
        before, same = self._devices, self._unchanged
        return self._holds(
            Part.GUARD,
            lambda: self._table_stands(scope, before) or self._table_stands(scope, same()),
        ) and self._holds(Part.MARKS, lambda: self._marks_stand(scope, same()))

    def _unchanged(self) -> tuple[OverlayDevice, ...]:
        """Devices that were there at the last `put` and are there now."""
        now = {tunnel_device(device) for device in self._links.overlay_devices()}
        return tuple(device for device in self._devices if tunnel_device(device) in now)

    def _table_stands(self, scope: Scope, devices: tuple[OverlayDevice, ...]) -> bool:
        return not scope.guarded or self._table.intact(scope.guard(devices))

    def _marks_stand(self, scope: Scope, devices: tuple[OverlayDevice, ...]) -> bool:
        return not self._marks.drift(scope.vni_marks(devices))

    def _succeeds(self, part: Part, act: Callable[[], None]) -> bool:
        try:
            act()
        except (Refused, Unavailable) as error:
            self._troubles.note(part, str(error))
            return False
        self._troubles.note(part, "")
        return True

    def _holds(self, part: Part, look: Callable[[], bool]) -> bool:
        try:
            return look()
        except (Refused, Unavailable) as error:
            self._troubles.note(part, str(error))
            return False
