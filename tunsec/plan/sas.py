"""A child's SAs as the kernel shall hold them."""

import math
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.flow import Child, RekeyRule
from tunsec.model.names import Spi
from tunsec.model.sa import Lifetimes, Offload, OffloadKind, Replay, Sa, SaId
from tunsec.model.secret import Secret
from tunsec.model.underlay import Nic

OUTBOUND_MARGIN: Final = 1.1
"""The receiver rekeys at a soft limit; the sender asks only if the receiver has not."""
HARD_MARGIN: Final = 1.5
"""Room between the soft and the hard limit in which a rekey under load must fit."""
INBOUND_GRACE: Final = 1.2
"""Inbound SAs outlive their outbound twins: nobody sends into a void at the hard limit."""
PACKET_WINDOW: Final = 256
"""The widest replay window of a NIC that carries whole packets (mlx5, en_accel/ipsec.c)."""
SOFT_TIME_MARGIN: Final = 1.25
"""The kernel's soft time limit is the backstop of the daemon's own timer."""


def inbound_sa(
    child: Child, spi: Spi, *, aead: Aead, key: Secret | None, nic: Nic | None = None
) -> Sa:
    """The SA on which `child` receives; key and salt as one Secret, None when already installed."""
    return _sa(child, spi, aead=aead, key=key, nic=nic, inbound=True)


def outbound_sa(
    child: Child, spi: Spi, *, aead: Aead, key: Secret | None, nic: Nic | None = None
) -> Sa:
    """The SA on which `child` sends; the peer chose `spi`."""
    return _sa(child, spi, aead=aead, key=key, nic=nic, inbound=False)


def replay_window(child: Child, kind: OffloadKind | None) -> int:
    """How far packets of a child may overtake each other."""
    if kind is OffloadKind.PACKET:
        return min(child.replay_window, PACKET_WINDOW)
    return child.replay_window


def _sa(
    child: Child, spi: Spi, *, aead: Aead, key: Secret | None, nic: Nic | None, inbound: bool
) -> Sa:
    local, remote = child.id.local, child.id.remote
    window = replay_window(child, None if nic is None else nic.kind)
    return Sa(
        SaId(local if inbound else remote, spi),
        remote if inbound else local,
        child.reqid,
        aead,
        key,
        lifetimes=lifetimes(child.rekey, inbound=inbound),
        replay=Replay(window=window, esn=child.esn),
        output_mark=child.mark if inbound else None,
        offload=None if nic is None else Offload(nic.kind, nic.ifindex, inbound),
    )


def lifetimes(rule: RekeyRule, *, inbound: bool) -> Lifetimes:
    """Soft limits that ask for a rekey, and hard ones that end the SA if none came."""
    soft = 1.0 if inbound else OUTBOUND_MARGIN
    hard = HARD_MARGIN * (INBOUND_GRACE if inbound else 1.0)
    grace = INBOUND_GRACE if inbound else 1.0
    return Lifetimes(
        soft_bytes=_scaled(rule.soft_bytes, soft),
        hard_bytes=_scaled(rule.soft_bytes, hard),
        soft_packets=_scaled(rule.soft_packets, soft),
        hard_packets=_scaled(rule.soft_packets, hard),
        soft_seconds=_whole(Seconds(min(rule.after * SOFT_TIME_MARGIN + 1, rule.hard_after))),
        hard_seconds=_whole(Seconds(rule.hard_after * grace)),
    )


def _scaled(limit: int | None, factor: float) -> int | None:
    return None if limit is None else int(limit * factor)


def _whole(span: Seconds) -> int:
    return max(1, math.ceil(span))
