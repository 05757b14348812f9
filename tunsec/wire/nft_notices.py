"""Notifications of nf_tables (NFNLGRP_NFTABLES): which tables somebody touched.

Nothing else of them is read: whether a change matters is found out by listing the table.
"""

from collections.abc import Iterator
from typing import Final

from tunsec.wire.netlink import attribute_type, attributes, messages

NETLINK_NETFILTER: Final = 12
NFNLGRP_NFTABLES: Final = 7
"""include/uapi/linux/netfilter/nfnetlink.h"""

NFNL_SUBSYS_NFTABLES: Final = 10
NFTA_TABLE_NAME: Final = 1
"""Also the number of NFTA_CHAIN_TABLE, _RULE_TABLE, _SET_TABLE, _SET_ELEM_LIST_TABLE, _OBJ_TABLE
and _FLOWTABLE_TABLE (include/uapi/linux/netfilter/nf_tables.h)."""

_NFGENMSG_BYTES: Final = 4


def decode_touched_tables(datagram: bytes) -> frozenset[str]:
    """Names of the tables that a datagram's messages are about, of any family; or Malformed."""
    return frozenset(_touched(datagram))


def _touched(datagram: bytes) -> Iterator[str]:
    for message in messages(datagram):
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES:
            continue
        for kind, start, end in attributes(datagram, message.start + _NFGENMSG_BYTES, message.end):
            if attribute_type(kind) == NFTA_TABLE_NAME:
                yield datagram[start:end].split(b"\0")[0].decode(errors="replace")
                break
