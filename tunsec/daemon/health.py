"""What happened and what is wrong, for status and metrics."""

import logging
from dataclasses import dataclass, field
from enum import StrEnum

from tunsec.daemon.journal import fields

log = logging.getLogger("tunsec.health")


@dataclass(slots=True)
class Counters:
    """What happened since the daemon started."""

    repaired_sas: int = 0
    repaired_sps: int = 0
    repaired_guard: int = 0
    overruns: int = 0


class Part(StrEnum):
    """What can be in trouble."""

    GUARD = "guard"
    MARKS = "tenant marks"
    KERNEL = "kernel"
    OFFER = "offer"
    LINKS = "links"


@dataclass(slots=True)
class Troubles:
    """What is wrong now. A part without an entry is well."""

    parts: dict[Part, str] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    overtaken: tuple[str, ...] = ()

    @property
    def guard(self) -> str:
        """Why the guard table is not in force; empty when it is."""
        return self.parts.get(Part.GUARD, "")

    @property
    def marks(self) -> str:
        """Why a device's packets do not get their tenants' marks; empty when they do."""
        return self.parts.get(Part.MARKS, "")

    def note(self, part: Part, text: str) -> None:
        """A part is in trouble, or (empty text) well; each change is logged once."""
        if self.parts.get(part, "") == text:
            return
        if text:
            self.parts[part] = text
            log.error(f"{part} trouble", extra=fields({"error": text}))
        else:
            del self.parts[part]
            log.info(f"{part} well again")

    def note_strangers(self, conflicts: tuple[str, ...], overtaken: tuple[str, ...]) -> None:
        """Other programs' objects in the way of ours; each change is logged once."""
        if (conflicts, overtaken) != (self.conflicts, self.overtaken):
            for text in (*conflicts, *overtaken):
                log.error(text)
        self.conflicts, self.overtaken = conflicts, overtaken

    def lines(self) -> list[str]:
        """All of them, each with what it is about."""
        return [
            *(f"{part}: {text}" for part, text in sorted(self.parts.items())),
            *self.conflicts,
            *self.overtaken,
        ]
