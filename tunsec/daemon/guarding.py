"""Keeps the guard table, and marks by VNI, as the scope wants them."""

import logging
from collections.abc import Callable

from tunsec.daemon.health import Counters, Part, Troubles
from tunsec.daemon.scope import Scope
from tunsec.model.errors import Refused, Unavailable
from tunsec.ports import GuardTable, Links, VniMarking

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

    def put(self, scope: Scope) -> bool:
        """Put table and marks, or remove them when nothing is guarded; whether all is in force."""
        done = [
            self._succeeds(Part.GUARD, lambda: self._put_table(scope)),
            self._succeeds(Part.MARKS, lambda: self._put_marks(scope)),
        ]
        return all(done)

    def stands(self, scope: Scope) -> bool:
        """Whether the kernel holds table and marks as wanted."""
        return self._holds(Part.GUARD, lambda: self._table_stands(scope)) and self._holds(
            Part.MARKS, lambda: self._marks_stand(scope)
        )

    def check(self, scope: Scope) -> bool:
        """Look and repair; whether all is in force now."""
        failed = bool(self._troubles.guard or self._troubles.marks)
        if not failed and self.stands(scope):
            return True
        if not failed:
            self._counters.repaired_guard += 1
            log.warning("guard was changed: repaired")
        return self.put(scope)

    def _put_table(self, scope: Scope) -> None:
        if scope.guarded:
            self._table.put(scope.guard(self._links.overlay_devices()))
        else:
            self._table.remove()

    def _put_marks(self, scope: Scope) -> None:
        self._marks.put(scope.vni_marks(self._links.overlay_devices()))

    def _table_stands(self, scope: Scope) -> bool:
        return not scope.guarded or self._table.intact(scope.guard(self._links.overlay_devices()))

    def _marks_stand(self, scope: Scope) -> bool:
        return not self._marks.drift(scope.vni_marks(self._links.overlay_devices()))

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
