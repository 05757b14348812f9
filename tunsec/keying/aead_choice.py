"""Which AEAD a pair of hosts uses: both compute it from the same two offers, and agree."""

from collections.abc import Collection
from typing import Final

from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.errors import Refused

PREFERENCE: Final = (Aead.AES_256_GCM, Aead.CHACHA20_POLY1305, Aead.AES_128_GCM)
"""Among equally fast ones the longer key comes first."""
CLOSE_PERCENT: Final = 10
"""Speeds this near to the best are equal: measuring is not more exact than that."""


def agree(
    local: Collection[AeadSpeed], remote: Collection[AeadSpeed], allowed: Collection[Aead]
) -> Aead:
    """The AEAD on which the slower of the two hosts is fastest.

    Symmetric in `local` and `remote`, and independent of all orders. Raises Refused when there is
    none that both can do and the policy allows.
    """
    here = {speed.aead: speed.bytes_per_second for speed in local}
    there = {speed.aead: speed.bytes_per_second for speed in remote}
    slower = {
        aead: min(here[aead], there[aead])
        for aead in PREFERENCE
        if aead in allowed and aead in here and aead in there
    }
    if not slower:
        raise Refused(
            "agreeing on an AEAD",
            reason=f"here {_names(here)}; there {_names(there)}; policy {_names(allowed)}",
        )
    best = max(slower.values())
    return next(
        aead for aead, speed in slower.items() if speed * 100 >= best * (100 - CLOSE_PERCENT)
    )


def _names(aeads: Collection[Aead]) -> str:
    return ", ".join(sorted(aeads)) or "none"
