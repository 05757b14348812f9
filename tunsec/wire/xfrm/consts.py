"""Numbers of include/uapi/linux/xfrm.h, under the kernel's names."""

from enum import IntEnum, IntFlag
from typing import Final

NETLINK_XFRM: Final = 6  # include/uapi/linux/netlink.h
AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_INET6: Final = 10


class Msg(IntEnum):
    """XFRM_MSG_*."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D
    NEWAE = 0x1E
    GETAE = 0x1F
    REPORT = 0x20
    MIGRATE = 0x21
    NEWSADINFO = 0x22
    GETSADINFO = 0x23
    NEWSPDINFO = 0x24
    GETSPDINFO = 0x25
    MAPPING = 0x26
    SETDEFAULT = 0x27
    GETDEFAULT = 0x28
    MIGRATE_STATE = 0x29


class Attr(IntEnum):
    """XFRMA_*."""

    ALG_AUTH = 1
    ALG_CRYPT = 2
    ALG_COMP = 3
    ENCAP = 4
    TMPL = 5
    SA = 6
    POLICY = 7
    SEC_CTX = 8
    LTIME_VAL = 9
    REPLAY_VAL = 10
    REPLAY_THRESH = 11
    ETIMER_THRESH = 12
    SRCADDR = 13
    COADDR = 14
    LASTUSED = 15
    POLICY_TYPE = 16
    MIGRATE = 17
    ALG_AEAD = 18
    KMADDRESS = 19
    ALG_AUTH_TRUNC = 20
    MARK = 21
    TFCPAD = 22
    REPLAY_ESN_VAL = 23
    SA_EXTRA_FLAGS = 24
    PROTO = 25
    ADDRESS_FILTER = 26
    PAD = 27
    OFFLOAD_DEV = 28
    SET_MARK = 29
    SET_MARK_MASK = 30
    IF_ID = 31
    MTIMER_THRESH = 32
    SA_DIR = 33
    NAT_KEEPALIVE_INTERVAL = 34
    SA_PCPU = 35


class Group(IntEnum):
    """XFRMNLGRP_*."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4
    AEVENTS = 5
    REPORT = 6
    MIGRATE = 7
    MAPPING = 8


class StateFlag(IntFlag):
    """XFRM_STATE_*, xfrm_usersa_info.flags."""

    NOECN = 1
    DECAP_DSCP = 2
    NOPMTUDISC = 4
    WILDRECV = 8
    ICMP = 16
    AF_UNSPEC = 32
    ALIGN4 = 64
    ESN = 128


class OffloadFlag(IntFlag):
    """XFRM_OFFLOAD_*, xfrm_user_offload.flags."""

    IPV6 = 1
    INBOUND = 2
    PACKET = 4


class AeFlag(IntFlag):
    """XFRM_AE_*: what an NEWAE carries and why it was sent."""

    REPLAY_THRESHOLD = 1
    REPLAY_VALUE = 2
    LIFETIME_VALUE = 4
    TIMER_THRESHOLD = 8
    CAUSE_REPLAY = 16
    CAUSE_TIMER = 32
    CAUSE_POLICY = 64


INFINITE: Final = 0xFFFF_FFFF_FFFF_FFFF
"""XFRM_INF: no limit of bytes or packets. For seconds 0 is no limit."""

REPLAY_ESN_MAX: Final = 4096
"""XFRMA_REPLAY_ESN_MAX: widest replay window, in packets."""

MAX_DEPTH: Final = 6
"""XFRM_MAX_DEPTH (include/net/xfrm.h): templates of one SP."""

POLICY_DIRECTIONS: Final = 3
"""XFRM_POLICY_MAX: directions from here on mark per-socket SPs (net/xfrm/xfrm_policy.c)."""

ALL_ALGORITHMS: Final = 0xFFFF_FFFF
"""xfrm_user_tmpl.aalgos, ealgos, calgos: every algorithm is allowed."""
