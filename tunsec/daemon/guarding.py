"""Keeps the guard table as the scope wants it."""

import logging

from tunsec.daemon.health import Counters, Part, Troubles
from tunsec.daemon.scope import Scope
from tunsec.model.errors import Refused, Unavailable
from tunsec.ports import GuardTable, Links

log = logging.getLogger("tunsec.guard")


class Guarding:
    """The second layer of law 1; what goes wrong with it is noted in the troubles."""

    def __init__(
        self, *, table: GuardTable, links: Links, counters: Counters, troubles: Troubles
    ) -> None:
        self._table = table
        self._links = links
        self._counters = counters
        self._troubles = troubles

    def put(self, scope: Scope) -> bool:
        """Put the table, or remove it when nothing is guarded; whether it is in force now."""
        try:
            if scope.guarded:
                self._table.put(scope.guard(self._links.overlay_devices()))
            else:
                self._table.remove()
        except (Refused, Unavailable) as error:
            self._troubles.note(Part.GUARD, str(error))
            return False
        self._troubles.note(Part.GUARD, "")
        return True

    def stands(self, scope: Scope) -> bool:
        """Whether the kernel holds the table as wanted."""
        if not scope.guarded:
            return True
        try:
            return self._table.intact(scope.guard(self._links.overlay_devices()))
        except (Refused, Unavailable) as error:
            self._troubles.note(Part.GUARD, str(error))
            return False

    def check(self, scope: Scope) -> bool:
        """Look and repair; whether the table is in force now."""
        failed = bool(self._troubles.guard)
        if not failed and self.stands(scope):
            return True
        if not failed:
            self._counters.repaired_guard += 1
            log.warning("guard table was changed: repaired")
        return self.put(scope)
