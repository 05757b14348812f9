"""Notifications of traffic control: which of them may be about our filters."""

import struct

import pytest

from tunsec.wire.netlink import Malformed, encode_message
from tunsec.wire.tc_notices import CLSACT, RTM_DELQDISC, RTM_DELTFILTER, RTM_NEWTFILTER
from tunsec.wire.tc_notices import touches_marks as touches
from tunsec.wire.tc_text import PREF_OTHERS, PREF_TENANTS

ALL_PROTOCOLS = 0x0300
"""ETH_P_ALL in network order."""


def notice(kind: int, *, parent: int = 0xFFFF_FFF3, pref: int = 0) -> bytes:
    payload = struct.pack("=B3xiIII", 0, 7, 0, parent, pref << 16 | ALL_PROTOCOLS)
    return encode_message(kind, payload, flags=0, seq=0)


@pytest.mark.parametrize("kind", [RTM_NEWTFILTER, RTM_DELTFILTER])
def test_filters_of_our_preferences_may_be_ours(kind: int) -> None:
    assert touches(notice(kind, pref=PREF_OTHERS))
    assert touches(notice(kind, pref=PREF_TENANTS))
    assert touches(notice(kind)), "a whole chain"
    assert not touches(notice(kind, pref=49152))


def test_a_clsact_takes_our_filters_with_it() -> None:
    assert touches(notice(RTM_DELQDISC, parent=CLSACT))
    assert not touches(notice(RTM_DELQDISC, parent=0xFFFF_FFFF))
    assert not touches(notice(RTM_DELQDISC - 1, parent=CLSACT))


def test_one_message_of_many_is_enough() -> None:
    others = notice(RTM_NEWTFILTER, pref=3) + notice(16)
    assert not touches(others)
    assert touches(others + notice(RTM_NEWTFILTER, pref=PREF_TENANTS))


def test_a_short_message_is_malformed() -> None:
    with pytest.raises(Malformed):
        touches(encode_message(RTM_NEWTFILTER, b"\0" * 8, flags=0, seq=0))
