"""What in the kernel is tunsec's: a reserved reqid range and reserved SP priorities (law 4)."""

from typing import Final

from tunsec.model.names import Reqid
from tunsec.model.sa import Sa
from tunsec.model.sp import Sp, SpAction

REQID_FIRST: Final = Reqid(0x5400_0000)
REQID_LAST: Final = Reqid(0x54FF_FFFF)
"""24 bits under the letter T: far above what charon and hand-made SAs count up from 1."""

REQID_TRIAL: Final = REQID_LAST
"""No child's: of SAs that are made to see what a device takes, and removed at once."""

PRIORITY_PROTECT: Final = 5453
PRIORITY_BLOCK: Final = 5454
"""The first rank of flows that overlap, the most specific, and its block SPs. Further ranks follow
by twos: what a flow blocks must not leave by the SAs of a wider one. Numbers below charon's (which
start near 100,000), so that no other program's wider SP comes before ours."""

RANKS: Final = 5


def protect_priority(rank: int) -> int:
    """Of a rank's SPs that protect; 0 comes first."""
    return PRIORITY_PROTECT + 2 * rank


def block_priority(rank: int) -> int:
    """Of a rank's SPs that block: after all of its protecting ones, before the next rank's."""
    return PRIORITY_BLOCK + 2 * rank


BLOCK_PRIORITIES: Final = frozenset(block_priority(rank) for rank in range(RANKS))


def is_our_reqid(reqid: int) -> bool:
    """Whether a reqid lies in tunsec's range."""
    return REQID_FIRST <= reqid <= REQID_LAST


def is_our_sa(sa: Sa) -> bool:
    """Whether an SA is tunsec's."""
    return is_our_reqid(sa.reqid)


def is_our_sp(sp: Sp) -> bool:
    """Whether an SP is tunsec's: all templates in our reqid range, or our block shunt."""
    if sp.templates:
        return all(is_our_reqid(template.reqid) for template in sp.templates)
    return sp.action is SpAction.BLOCK and sp.priority in BLOCK_PRIORITIES
