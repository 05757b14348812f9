"""Names and numbers that must not be mixed up. Integers are in host order."""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

HostName = NewType("HostName", str)
FlowName = NewType("FlowName", str)
TenantName = NewType("TenantName", str)

Spi = NewType("Spi", int)
"""Security Parameter Index, 32 bits (RFC 4303 section 2.1); values up to 255 are reserved."""

Reqid = NewType("Reqid", int)
"""Ties SPs to the SAs that may serve them, 32 bits, local to a host (xfrm_tmpl.reqid)."""

IfId = NewType("IfId", int)
Vni = NewType("Vni", int)
"""24-bit network identifier of an overlay: not visible to a selector."""

Boot = NewType("Boot", str)
"""One life of a host's daemon: 32 hex digits drawn when it starts."""

OfferSeq = NewType("OfferSeq", int)
"""Rises with every offer of a host, over restarts too."""

ConfirmationSeq = NewType("ConfirmationSeq", int)
"""Rises with every confirmation a receiver publishes for one sender, over restarts too."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MIN_SPI: Final = 0x100
MAX_SPI: Final = 0xFFFF_FFFF


class Proto(StrEnum):
    """IPsec protocol of an SA."""

    ESP = "esp"
    AH = "ah"
    COMP = "comp"
    ROUTE2 = "route2"  # Mobile IPv6, another program's only
    HAO = "hao"  # Mobile IPv6, another program's only


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Value and mask of an skb mark (struct xfrm_mark): matches when `mark & mask == value`."""

    value: int
    mask: int = 0xFFFF_FFFF

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


def spi_hex(spi: Spi) -> str:
    """The SPI as 8 hex digits, as captures and `ip xfrm` show it."""
    return f"{spi:08x}"
