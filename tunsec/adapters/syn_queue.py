"""The queue in which the guard table holds new connections of gated flows.

Nobody bound, no new connection: the rule has no bypass. What a dead daemon held is dropped by the
kernel when its socket closes.
"""

import errno
import logging
from collections.abc import Callable
from typing import Final, Self

from tunsec.adapters.netlink import NetlinkSocket, Overrun
from tunsec.model.connection import Syn
from tunsec.model.errors import Refused, Unavailable
from tunsec.wire import nfqueue
from tunsec.wire.netlink import Control, decode_answer, messages
from tunsec.wire.nfqueue import NETLINK_NETFILTER, Verdict

LENGTH: Final = 4096
"""SYNs held at a time; what comes beyond is dropped, and sent again by its host's TCP."""

log = logging.getLogger("tunsec.guard")


class SynQueue:
    """The bound queue of this network namespace."""

    def __init__(self) -> None:
        """Open the socket; raises Refused."""
        self._seq = 2
        self._socket = NetlinkSocket(NETLINK_NETFILTER)
        self.bound = False

    def bind(self) -> None:
        """Take the queue over; raises Refused when there is none or another program has it."""
        self._socket.send(nfqueue.encode_bind(length=LENGTH, seq=1))
        for _ in range(2):
            datagram = self._socket.receive()
            for message in messages(datagram or b""):
                if message.kind != Control.ERROR:
                    continue
                answer = decode_answer(datagram or b"", message)
                if answer.errno:
                    taken = "another program has the queue" if answer.errno == errno.EBUSY else ""
                    reason = answer.text or taken
                    what = f"bind packet queue {nfqueue.QUEUE}"
                    raise Refused(what, errno=answer.errno, reason=reason)
        self.bound = True

    def fileno(self) -> int:
        """For the loop: readable when there is something to read()."""
        return self._socket.fileno()

    def read(self, take: Callable[[Syn], None]) -> None:
        """Take everything that waits; what is no SYN is dropped. Never blocks."""
        while True:
            try:
                datagram = self._socket.receive(wait=False)
            except Overrun:
                log.warning("SYNs lost: the queue's socket was full")
                continue
            if datagram is None:
                return
            found = [
                nfqueue.decode_packet(datagram, message)
                for message in messages(datagram)
                if message.kind == nfqueue.PACKET
            ]
            for one in found:
                if one.syn is None:
                    self._send(nfqueue.encode_drop(one.id, seq=self._next()))
                else:
                    take(one.syn)

    def let(self, syn: Syn) -> None:
        """A held SYN goes on: an outbound one by the SP of now."""
        self._send(nfqueue.encode_verdict(syn, Verdict.ACCEPT, seq=self._next()))

    def drop(self, syn: Syn) -> None:
        """A held SYN is dropped; its host's TCP may send it again."""
        self._send(nfqueue.encode_verdict(syn, Verdict.DROP, seq=self._next()))

    def _send(self, request: bytes) -> None:
        try:
            self._socket.send(request)
        except OSError as error:
            raise Unavailable(f"no verdict on a SYN: {error.strerror}") from error

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def close(self) -> None:
        """Unbind: what is held is dropped."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
