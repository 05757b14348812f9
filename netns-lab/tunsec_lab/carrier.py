"""Waits until a link is really up.

The kernel enables a bridge port some time after both ends of its veth are up (net/core/link_watch.c
works from a queue). A frame sent before is lost, and an ARP request is repeated only after 1 s.
"""

import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.namespaces import inside

RTMGRP_LINK: Final = 1
RTM_NEWLINK: Final = 16
IFLA_IFNAME: Final = 3
IFLA_PROTINFO: Final = 12
IFLA_OPERSTATE: Final = 16
IFLA_BRPORT_STATE: Final = 1
OPERSTATE_UP: Final = 6
STATE_FORWARDING: Final = 3
NESTED: Final = 0x8000
HEADER: Final = struct.Struct("=IHHII")
IFINFO: Final = struct.Struct("=BxHiII")
RECEIVE_BYTES: Final = 1 << 16
SO_RCVBUFFORCE: Final = 33
QUEUE_BYTES: Final = 1 << 24
"""A hundred hosts that come up tell of thousands of changes before anybody reads."""


class LinkEvents:
    """Link events of a namespace, from the moment it is made: make it before the change."""

    def __init__(self, netns: str) -> None:
        self.netns = netns
        with inside(netns):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
        self.socket.bind((0, RTMGRP_LINK))

    def __enter__(self) -> "LinkEvents":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def wait_until_up(self, names: Iterable[str], *, timeout: float = 10.0) -> None:
        """A bridge port is up when it forwards, any other device when its state says so."""
        waiting = set(names)
        until = time.monotonic() + timeout
        while waiting:
            left = max(0.0, until - time.monotonic())
            if not select.select([self.socket], [], [], left)[0]:
                raise LabError(
                    f"{', '.join(sorted(waiting))} in {self.netns} not up after {timeout:g} s"
                )
            for name, is_up in link_states(self.socket.recv(RECEIVE_BYTES)):
                if is_up:
                    waiting.discard(name)
                # A later "down" does not matter: what follows is the scenario's own doing.


def link_states(datagram: bytes) -> Iterator[tuple[str, bool]]:
    """Name and whether it is up, of each link message that tells."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, *_ = HEADER.unpack_from(datagram, offset)
        if kind == RTM_NEWLINK:
            start = offset + HEADER.size
            family = IFINFO.unpack_from(datagram, start)[0]
            attributes = dict(parse_attributes(datagram[start + IFINFO.size : offset + length]))
            name = attributes[IFLA_IFNAME].rstrip(b"\0").decode()
            is_up = attributes.get(IFLA_OPERSTATE, b"\0")[0] == OPERSTATE_UP
            if family == socket.AF_BRIDGE:
                # A new veth's state is "unknown", and its port forwards until that is found out.
                port = dict(parse_attributes(attributes.get(IFLA_PROTINFO, b"")))
                forwards = port.get(IFLA_BRPORT_STATE, b"\0")[0] == STATE_FORWARDING
                yield name, is_up and forwards
            elif "." not in name:
                yield name, is_up
        offset += (length + 3) & ~3


def parse_attributes(payload: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, offset)
        if length < 4:
            return
        yield kind & ~NESTED, payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3
