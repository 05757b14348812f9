"""A packet as SPs see it, before anything was done to it."""

from dataclasses import dataclass

from tunsec.model.names import Address


@dataclass(frozen=True, slots=True)
class Packet:
    """Addresses, transport protocol, ports and mark. None is what the asker does not know."""

    src: Address
    dst: Address
    proto: int
    sport: int | None
    dport: int | None
    mark: int | None = 0
