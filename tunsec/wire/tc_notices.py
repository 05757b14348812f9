"""Notifications of traffic control (RTNLGRP_TC): whether somebody touched what may be ours.

Nothing else of them is read: whether a change matters is found out by listing the filters.
"""

import struct
from typing import Final

from tunsec.wire.netlink import Malformed, Message, messages
from tunsec.wire.tc_text import PREF_OTHERS, PREF_TENANTS

RTNLGRP_TC: Final = 4
RTM_DELQDISC: Final = 37
RTM_NEWTFILTER: Final = 44
RTM_DELTFILTER: Final = 45
"""include/uapi/linux/rtnetlink.h"""

CLSACT: Final = 0xFFFF_FFF1
"""TC_H_CLSACT, also TC_H_INGRESS: the parent of such a qdisc (include/uapi/linux/pkt_sched.h)."""

_TCMSG: Final = struct.Struct("=B3xiIII")
"""struct tcmsg: family, ifindex, handle, parent, info (a filter's preference, and protocol)."""


def touches_marks(datagram: bytes) -> bool:
    """Whether a filter of our preferences, or a whole clsact, came, changed or went; or Malformed.

    A filter without a preference stands for a whole chain of them.
    """
    return any(_touches(datagram, message) for message in messages(datagram))


def _touches(datagram: bytes, message: Message) -> bool:
    if message.kind not in (RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER):
        return False
    if message.end - message.start < _TCMSG.size:
        raise Malformed(f"message {message.kind} has {message.end - message.start} bytes")
    _, _, _, parent, info = _TCMSG.unpack_from(datagram, message.start)
    if message.kind == RTM_DELQDISC:
        return bool(parent == CLSACT)
    return info >> 16 in (0, PREF_OTHERS, PREF_TENANTS)
