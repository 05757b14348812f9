"""Devices and addresses of this network namespace, over one rtnetlink socket that stays open.

Plain sockets and our own codec rather than pyroute2's IPRoute: its synchronous face runs an event
loop of its own and refuses to be called from inside the daemon's.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Final, Self

from tunsec.adapters.ethtool import esp_feature
from tunsec.adapters.netlink import Monitor
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.event import EventsLost, LinkChanged
from tunsec.model.flow import Kind
from tunsec.model.names import Address, Vni
from tunsec.model.underlay import Underlay
from tunsec.ports import OverlayDevice
from tunsec.wire import rtnl
from tunsec.wire.netlink import Control, Flag, Malformed, Message, decode_answer, messages
from tunsec.wire.rtnl import NETLINK_ROUTE, Link, Rtm, Sent

ANSWER_TIMEOUT: Final = 5.0
"""Seconds; the kernel answers within the call, so this only bounds a broken one."""
DUMP_ATTEMPTS: Final = 5
"""A dump during which something changed is asked for again (NLM_F_DUMP_INTR)."""

_SOL_NETLINK: Final = 270
_NETLINK_EXT_ACK: Final = 11
_DATAGRAM_BYTES: Final = 1 << 18


class HostLinks:
    """ports.Links in the network namespace of the caller at the time it is made."""

    def __init__(self) -> None:
        """Raises Unavailable when there is no rtnetlink."""
        self._seq = count(1)
        try:
            self._socket = _open()
            self._socket.settimeout(ANSWER_TIMEOUT)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        except OSError as error:
            raise Unavailable(f"cannot ask for links: {error.strerror}") from error

    def addresses(self) -> Mapping[Address, str]:
        """Addresses that this host holds now, loopback and link-local ones too, each with its
        device: an empty name when that has just gone."""
        answers = self._ask(lambda seq: rtnl.encode_dump_addresses(seq=seq))
        found = (
            rtnl.decode_address(buffer, message)
            for buffer, message in answers
            if message.kind == Rtm.NEWADDR
        )
        return {address: _name(ifindex) for address, ifindex in filter(None, found)}

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        """Tunnel devices that send from this namespace, by ifindex.

        One that was moved here and still sends from elsewhere is that namespace's to protect.
        """
        links = {link.ifindex: link for kind in rtnl.OVERLAY_KINDS for link in self._links(kind)}
        return tuple(
            OverlayDevice(
                name=link.name,
                ifindex=link.ifindex,
                kind=link.kind,
                port=link.port,
                mtu=link.mtu,
                local=link.local,
                remote=link.remote,
                group=link.group,
                vni=link.vni,
                external=link.external,
                underlay_mtu=self._underlay_mtu_of(link),
            )
            for _, link in sorted(links.items())
            if link.kind is not None and not link.elsewhere
        )

    def underlay_mtu(self, to: Address) -> int | None:
        """MTU of the way to an address: the route's own, else its device's; None without a way."""
        try:
            answers = self._ask(lambda seq: rtnl.encode_get_route(to, seq=seq))
        except Refused:  # no route to host
            return None
        for buffer, message in answers:
            if message.kind == Rtm.NEWROUTE:
                route = rtnl.decode_route(buffer, message)
                if route.mtu or route.ifindex is None:
                    return route.mtu
                return self._mtu(route.ifindex)
        return None

    def underlay(self, local: Address, remote: Address) -> Underlay | None:
        """The device by which packets from one address to another leave; None without a way."""
        try:
            answers = self._ask(lambda seq: rtnl.encode_get_route(remote, seq=seq, source=local))
        except Refused:  # no route to host, or the address is not ours now
            return None
        for buffer, message in answers:
            if message.kind == Rtm.NEWROUTE:
                ifindex = rtnl.decode_route(buffer, message).ifindex
                name = "" if ifindex is None else _name(ifindex)
                if ifindex is not None and name:
                    return Underlay(ifindex, name, esp_feature(self._socket, name))
        return None

    def make_overlay(
        self,
        kind: Kind,
        *,
        name: str,
        vni: Vni,
        remote: Address,
        port: int,
        up: bool = False,
    ) -> None:
        """Make a tunnel device; raises Refused when the kernel cannot."""
        self._ask(
            lambda seq: rtnl.encode_new_overlay(
                kind, name=name, vni=vni, remote=remote, port=port, up=up, seq=seq
            ),
            f"make a {kind} device",
        )

    def add_address(self, name: str, address: Address, *, prefix: int) -> None:
        """Give a device an address; raises Refused."""
        ifindex = _ifindex(name)
        self._ask(
            lambda seq: rtnl.encode_new_address(ifindex, address, prefix=prefix, seq=seq),
            f"give {name} the address {address}",
        )

    def sent(self, name: str) -> Sent:
        """What became of the packets that a tunnel device was given; raises Refused."""
        ifindex = _ifindex(name)
        answers = self._ask(lambda seq: rtnl.encode_get_link(ifindex, stats=True, seq=seq))
        for buffer, message in answers:
            if message.kind == Rtm.NEWLINK:
                return rtnl.decode_sent(buffer, message)
        raise Refused(f"read the counters of {name}", reason="no answer")

    def remove(self, name: str) -> None:
        """Remove a device; that it is not there is no error."""
        try:
            self._ask(lambda seq: rtnl.encode_remove_link(name, seq=seq), f"remove {name}")
        except Refused as error:
            if error.errno != errno.ENODEV:
                raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _links(self, kind: Kind) -> Iterator[Link]:
        for buffer, message in self._ask(lambda seq: rtnl.encode_dump_links(kind, seq=seq)):
            if message.kind == Rtm.NEWLINK:
                yield rtnl.decode_link(buffer, message)

    def _underlay_mtu_of(self, link: Link) -> int | None:
        if link.remote is not None:
            return self.underlay_mtu(link.remote)
        return None if link.bound_ifindex is None else self._mtu(link.bound_ifindex)

    def _mtu(self, ifindex: int) -> int | None:
        try:
            answers = self._ask(lambda seq: rtnl.encode_get_link(ifindex, seq=seq))
        except Refused:  # it has just gone
            return None
        for buffer, message in answers:
            if message.kind == Rtm.NEWLINK:
                return rtnl.decode_link(buffer, message).mtu
        return None

    def _ask(
        self, encode: Callable[[int], bytes], what: str = "look up links or routes"
    ) -> list[tuple[bytes, Message]]:
        """Send a request and collect its answers; raises Refused or Unavailable."""
        for _ in range(DUMP_ATTEMPTS):
            seq = next(self._seq)
            try:
                self._socket.send(encode(seq))
                answers = list(self._answers(seq, what))
            except TimeoutError as error:
                raise Unavailable("rtnetlink does not answer") from error
            except Malformed as error:
                raise Refused("read rtnetlink's answer", reason=str(error)) from error
            except OSError as error:
                raise Unavailable(f"cannot ask for links: {error.strerror}") from error
            if not any(message.flags & Flag.DUMP_INTR for _, message in answers):
                break
        return answers

    def _answers(self, seq: int, what: str) -> Iterator[tuple[bytes, Message]]:
        while True:
            buffer = self._socket.recv(_DATAGRAM_BYTES)
            for message in messages(buffer):
                if message.seq != seq:
                    continue
                if message.kind == Control.DONE:
                    return
                if message.kind == Control.ERROR:
                    answer = decode_answer(buffer, message)
                    if answer.errno:
                        reason = answer.text or os.strerror(answer.errno)
                        raise Refused(what, errno=answer.errno, reason=reason)
                    return
                yield buffer, message
                if not message.flags & Flag.MULTI:
                    return


class LinkMonitor(Monitor):
    """Hears of devices and addresses that come, change and go."""

    def __init__(self) -> None:
        """Joins the groups of links and of both families' addresses; or raises Unavailable."""
        groups = (rtnl.RTNLGRP_LINK, rtnl.RTNLGRP_IPV4_IFADDR, rtnl.RTNLGRP_IPV6_IFADDR)
        super().__init__(NETLINK_ROUTE, groups, what="links")

    def read(self) -> list[LinkChanged | EventsLost]:
        """Everything that waits, each device once; EventsLost first when some was lost.

        A change of an address is a LinkChanged of its device, whose name is empty when the device
        has gone. Never blocks.
        """
        names: dict[int, str | None] = {}

        def note(datagram: bytes) -> None:
            for notice in rtnl.decode_link_notices(datagram):
                names[notice.ifindex] = notice.name or names.get(notice.ifindex)

        events: list[LinkChanged | EventsLost] = [EventsLost()] if self._take(note) else []
        events += [LinkChanged(ifindex, name or _name(ifindex)) for ifindex, name in names.items()]
        return events


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    opened.bind((0, 0))
    return opened


def _ifindex(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise Refused(f"find {name}", errno=error.errno, reason=error.strerror or "") from error


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""
