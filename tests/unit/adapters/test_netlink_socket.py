"""A bare netlink socket, no privilege needed: it waits as long as it was told, and no longer."""

import errno

import pytest

from tunsec.adapters.netlink import NetlinkSocket
from tunsec.model.errors import Refused, Unavailable
from tunsec.wire.netlink import Flag, decode_answer, encode_message, messages

NETLINK_ROUTE = 0


def test_an_answer_that_does_not_come_is_unavailable() -> None:
    with (
        NetlinkSocket(NETLINK_ROUTE, answer_seconds=0.05) as lane,
        pytest.raises(Unavailable, match=r"no netlink answer within 0\.05 s"),
    ):
        lane.receive()


def test_nothing_waits_on_an_event_lane() -> None:
    with NetlinkSocket(NETLINK_ROUTE, answer_seconds=None) as lane:
        assert lane.receive() is None
    with NetlinkSocket(NETLINK_ROUTE) as lane:
        assert lane.receive(wait=False) is None


def test_a_refused_request_is_answered_at_once() -> None:
    with NetlinkSocket(NETLINK_ROUTE) as lane:
        lane.send(encode_message(0x7F, b"", flags=Flag.REQUEST, seq=9))
        datagram = lane.receive(wait=False)
        assert datagram is not None
        (message,) = messages(datagram)
        answer = decode_answer(datagram, message)
        assert (answer.seq, answer.errno) == (9, errno.EOPNOTSUPP)


def test_requests_of_refused_port_ids_are_not_heard() -> None:
    """The filter looks at nlmsg_pid, which an error takes from the socket: only the others pass."""
    with NetlinkSocket(NETLINK_ROUTE) as lane:
        lane.send(encode_message(0x7F, b"", flags=Flag.REQUEST, seq=1))
        datagram = lane.receive(wait=False)
        assert datagram is not None
        portid = next(messages(datagram)).portid
        lane.refuse_portids([0xDEAD_BEEF, portid, 5])
        lane.send(encode_message(0x7F, b"", flags=Flag.REQUEST, seq=2))
        assert lane.receive(wait=False) is None
        lane.refuse_portids([0xDEAD_BEEF, portid ^ 1])
        lane.send(encode_message(0x7F, b"", flags=Flag.REQUEST, seq=3))
        assert lane.receive(wait=False) is not None


def test_a_family_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="open netlink 31") as caught:
        NetlinkSocket(31)
    assert caught.value.errno in (errno.EPROTONOSUPPORT, errno.EINVAL)
