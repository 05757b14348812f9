"""Units of time. Instants are boot-time seconds (suspend ages keys); wall time is another type."""

from dataclasses import dataclass
from typing import NewType

Seconds = NewType("Seconds", float)
"""A span in seconds."""

Instant = NewType("Instant", float)
"""CLOCK_BOOTTIME in seconds: goes on during suspend, is never stepped."""

WallTime = NewType("WallTime", float)
"""Unix time in seconds: only for what other hosts must understand (not-after, certificates)."""


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The instant at which something must happen, and what it is for."""

    at: Instant
    reason: str
