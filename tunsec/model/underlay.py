"""The device by which ESP leaves for a peer, and what its driver says it can do."""

from dataclasses import dataclass
from enum import StrEnum

from tunsec.model.sa import OffloadKind


class EspFeature(StrEnum):
    """ethtool's `esp-hw-offload` of a device."""

    ABSENT = "absent"
    OFF = "off"
    ON = "on"


@dataclass(frozen=True, slots=True)
class Underlay:
    """A device that packets to a peer leave by; what is received from there comes in by it too."""

    ifindex: int
    name: str
    esp: EspFeature


@dataclass(frozen=True, slots=True)
class Nic:
    """A device that carries SAs, and how much of ESP it does for them."""

    kind: OffloadKind
    ifindex: int
    name: str
