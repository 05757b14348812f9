"""Notifications of nf_tables (NFNLGRP_NFTABLES): which tables somebody touched.

Nothing else of them is read: whether a change matters is found out by listing the table.
"""

import struct
from collections.abc import Iterator
from typing import Final

NETLINK_NETFILTER: Final = 12
NFNLGRP_NFTABLES: Final = 7
"""include/uapi/linux/netfilter/nfnetlink.h"""

NFNL_SUBSYS_NFTABLES: Final = 10
NFTA_TABLE_NAME: Final = 1
"""Also the number of NFTA_CHAIN_TABLE, _RULE_TABLE, _SET_TABLE, _SET_ELEM_LIST_TABLE, _OBJ_TABLE
and _FLOWTABLE_TABLE (include/uapi/linux/netfilter/nf_tables.h)."""

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_FAMILY: Final = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr
_TYPE_MASK: Final = 0x3FFF


def decode_touched_tables(datagram: bytes) -> frozenset[str]:
    """Names of the tables that a datagram's messages are about, of any family.

    A message that cannot be read ends the decoding; what was found before it still counts.
    """
    return frozenset(_touched(datagram))


def _touched(datagram: bytes) -> Iterator[str]:
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            return
        if kind >> 8 == NFNL_SUBSYS_NFTABLES:
            yield from _table_name(datagram[offset + _HEADER.size + _FAMILY.size : offset + length])
        offset += (length + 3) & ~3


def _table_name(attributes: bytes) -> Iterator[str]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if length < _ATTRIBUTE.size or offset + length > len(attributes):
            return
        if kind & _TYPE_MASK == NFTA_TABLE_NAME:
            name = attributes[offset + _ATTRIBUTE.size : offset + length]
            yield name.split(b"\0")[0].decode(errors="replace")
            return
        offset += (length + 3) & ~3
