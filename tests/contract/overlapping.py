"""SPs that overlap in every way, for look-ups."""

import random
from ipaddress import IPv4Address, ip_network

from tunsec.model.names import Mark
from tunsec.model.selector import ANY_PORT, UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId

HERE, THERE, OTHER = map(IPv4Address, ("192.0.2.1", "192.0.2.2", "192.0.2.130"))
NETWORKS = ("192.0.2.1/32", "192.0.2.2/32", "192.0.2.0/25", "192.0.2.0/24", "0.0.0.0/0")
PORTS = (ANY_PORT, PortMatch(4789), PortMatch(4791), PortMatch(0x1200, 0xFF00))


def block(rng: random.Random, *, marks: bool) -> Sp:
    """A block SP that overlaps with many others, also at one priority."""
    selector = Selector(
        ip_network(rng.choice(NETWORKS)),
        ip_network(rng.choice(NETWORKS)),
        rng.choice((0, UDP, UDP, 6)),
        rng.choice((ANY_PORT, ANY_PORT, PortMatch(4790))),
        rng.choice(PORTS),
    )
    mark = rng.choice((None, Mark(1, 0xF), Mark(0x10, 0xF0))) if marks else None
    return Sp(SpId(selector, SpDirection.OUT, mark), rng.choice((7, 8, 8)), SpAction.BLOCK)


def some(rng: random.Random, count: int, *, marks: bool) -> dict[SpId, Sp]:
    """Block SPs of different ids."""
    sps = (block(rng, marks=marks) for _ in range(count))
    return {sp.id: sp for sp in sps}
