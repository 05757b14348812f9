"""The kernel's SAD and SPD over XFRM netlink: orders in bulk, dumps, and the event lane.

`XfrmKernel` is ports.Kernel for the network namespace of the thread that makes it. Requests go out
many per send without ACK flags, so that only errors answer; the last one of a send asks for an
ACK, which bounds the answers. `XfrmEvents` tells what others do to SAs and SPs.
"""

import errno
import gc
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from tunsec.adapters.netlink import NetlinkSocket, Overrun
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.event import EventsLost, KernelEvent
from tunsec.model.sa import Sa, SaId
from tunsec.model.sp import Sp, SpId
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.wire.netlink import (
    Answer,
    Control,
    Dump,
    Flag,
    Malformed,
    decode_answer,
    encode_message,
    messages,
)
from tunsec.wire.xfrm.bulk import Packer
from tunsec.wire.xfrm.consts import NETLINK_XFRM, Msg
from tunsec.wire.xfrm.events import GROUPS, decode_event
from tunsec.wire.xfrm.requests import encode_sa_id, encode_sp_id
from tunsec.wire.xfrm.sa import decode_sa
from tunsec.wire.xfrm.sp import decode_sp
from tunsec.wire.xfrm.structs import Reader

BATCH: Final = 64
"""Requests per send. More gain nothing, and their errors must fit in the receive buffer."""
DUMP_TRIES: Final = 4
"""How often a dump that changed under way (NLM_F_DUMP_INTR) or overran is asked for."""
_EVENT_DATAGRAMS: Final = 4096
"""Datagrams of one `XfrmEvents.read`, so that a storm cannot hold the daemon's loop."""
_NOT_THERE: Final = frozenset({errno.ESRCH, errno.ENOENT})

_TOO_MUCH: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE})
"""Refusals of a whole send of which a part may still pass."""
_ACK: Final = Flag.ACK.value
_FLAGS_AT: Final = 6  # struct nlmsghdr.nlmsg_flags, low byte

_Object = TypeVar("_Object")


class XfrmKernel:
    """The SAD and SPD of this network namespace."""

    def __init__(self, *, receive_bytes: int = 1 << 22) -> None:
        """Open the command lane; raises Refused when the kernel has no XFRM."""
        self._receive_bytes = receive_bytes
        self._socket = NetlinkSocket(NETLINK_XFRM, receive_bytes=receive_bytes)
        # Drawn rather than the socket's port id: it outlives the socket, and no other program
        # that writes its process id there (a container's may be 1) is taken for us.
        self._tag = secrets.randbits(31) | 0x8000_0000
        self._packer = Packer(portid=self._tag)
        self._reader = Reader()
        self._seq = 0

    @property
    def tag(self) -> int:
        """What the kernel repeats in its notifications of our changes, for XfrmEvents."""
        return self._tag

    def close(self) -> None:
        """Close the command lane; what is in the kernel stays."""
        self._socket.close()

    def apply(self, steps: Sequence[Step]) -> list[Refused | None]:
        """Carry out steps in order; one answer per step, None is success.

        A refused step does not stop the later ones. When the kernel's answers to a send are lost,
        its steps are looked up one by one. Raises Unavailable when the kernel cannot be asked.
        """
        answers: list[Refused | None] = [None] * len(steps)
        for first in range(0, len(steps), BATCH):
            self._carry_out(self._pack(steps, first, answers), steps, answers)
        return answers

    def sas(self) -> dict[SaId, Sa]:
        """Every SA, ours and foreign, without keys. Larval ones without SPI share an id."""
        return {sa.id: sa for sa in self._dump(Msg.GETSA, decode_sa, "dump of SAs")}

    def sps(self) -> dict[SpId, Sp]:
        """Every SP, ours and foreign, the one last written first; per-socket and sub-table SPs left
        out."""
        return {
            sp.id: sp
            for sp in self._dump(Msg.GETPOLICY, decode_sp, "dump of SPs")
            if sp is not None
        }

    def sa(self, sa_id: SaId) -> Sa | None:
        """One SA, or None.

        The kernel also answers a marked question with an SA that has a wider mark or none
        (__xfrm_state_lookup); that is another SA.
        """
        found = self._look_up(Msg.GETSA, encode_sa_id(sa_id), decode_sa, f"look-up of SA {sa_id}")
        return found if found is not None and found.id == sa_id else None

    def sp(self, sp_id: SpId) -> Sp | None:
        """One SP, or None."""
        what = f"look-up of SP {sp_id}"
        found = self._look_up(Msg.GETPOLICY, encode_sp_id(sp_id), decode_sp, what)
        return found if found is not None and found.id == sp_id else None

    def _next_seq(self) -> int:
        self._seq = self._seq + 1 & 0xFFFF_FFFF
        return self._seq

    def _pack(self, steps: Sequence[Step], first: int, answers: list[Refused | None]) -> "_Batch":
        """The next steps from `first` on as requests; those that cannot be coded are refused."""
        chunk = steps[first : first + BATCH]
        if self._seq > 0xFFFF_FFFF - 2 * BATCH:
            self._seq = 0
        pack, seq = self._packer.pack, self._seq + 1
        places: Sequence[int] = range(first, first + len(chunk))
        try:
            requests = list(map(pack, chunk, range(seq, seq + len(chunk))))
        except Malformed:
            requests, places = [], []
            for place, step in enumerate(chunk, first):
                try:
                    requests.append(pack(step, seq + len(requests)))
                    places.append(place)
                except Malformed as error:
                    answers[place] = _refused(str(step), errno.EINVAL, str(error))
        self._seq += len(requests)
        return _Batch(seq, requests, places)

    def _carry_out(
        self, batch: "_Batch", steps: Sequence[Step], answers: list[Refused | None]
    ) -> None:
        """Send a batch and put its errors where they belong."""
        if not batch.requests:
            return
        try:
            self._socket.send(batch.datagram())
        except OSError as error:
            if error.errno not in _TOO_MUCH:
                raise Unavailable(f"netlink send: {error.strerror}") from error
            if len(batch.requests) > 1:
                for part in batch.halves():
                    self._carry_out(part, steps, answers)
                return
            place = batch.places[0]
            answers[place] = _refused(str(steps[place]), error.errno or 0)
            return
        answered, lost = self._collect(batch)
        for seq, answer in answered.items():
            if answer.errno:
                place = batch.places[seq - batch.first]
                answers[place] = _refused(str(steps[place]), answer.errno, answer.text)
        if lost:
            for seq, place in enumerate(batch.places, batch.first):
                if seq not in answered:
                    answers[place] = self._settle(steps[place])

    def _collect(self, batch: "_Batch") -> tuple[dict[int, Answer], bool]:
        """The answers to a batch up to that of its last request, and whether some were lost."""
        answered: dict[int, Answer] = {}
        lost = False
        last = batch.first + len(batch.requests) - 1
        while last not in answered or lost:
            try:
                datagram = self._socket.receive(wait=not lost)
            except Overrun:
                # All that is to come is there already: the kernel answers within `send`.
                lost = True
                continue
            if datagram is None:
                break
            for message in messages(datagram):
                if message.kind == Control.ERROR and batch.first <= message.seq <= last:
                    answered[message.seq] = decode_answer(datagram, message)
        return answered, lost

    def _settle(self, step: Step) -> Refused | None:
        """Whether a step whose answer was lost has taken effect."""
        match step:
            case AddSa(sa):
                there = self.sa(sa.id)
                done = there is not None and sa_matches(sa, there)
            case RemoveSa(sa_id):
                done = self.sa(sa_id) is None
            case AddSp(sp) | UpdateSp(sp):
                stands = self.sp(sp.id)
                done = stands is not None and sp_matches(sp, stands)
            case RemoveSp(sp):
                done = self.sp(sp.id) is None
        return None if done else _refused(str(step), errno.ENOBUFS, "its answer was lost")

    def _dump(self, kind: Msg, decode: "_Decode[_Object]", what: str) -> list[_Object]:
        """Everything of a kind, in the kernel's order; raises Refused or Unavailable."""
        for _ in range(DUMP_TRIES):
            try:
                with _collector_paused():
                    found = self._dump_once(kind, decode, what)
            except Overrun:
                found = None
            except Malformed as error:
                self._reopen()
                raise Refused(what, reason=str(error)) from error
            except Unavailable:
                self._reopen()
                raise
            if found is not None:
                return found
            # What is left of the dump must not be taken for an answer to the next request.
            self._reopen()
        raise Unavailable(f"{what}: it changed under way {DUMP_TRIES} times")

    def _dump_once(self, kind: Msg, decode: "_Decode[_Object]", what: str) -> list[_Object] | None:
        """One dump; None when it was interrupted."""
        dump = Dump(self._ask(kind, b"", Flag.REQUEST | Flag.DUMP))
        reader = self._reader
        found: list[_Object] = []
        while dump.answer is None:
            datagram = self._socket.receive()
            assert datagram is not None
            found += [
                decode(datagram, message.start, message.end, reader)
                for message in dump.feed(datagram)
            ]
        if dump.answer.errno:
            raise _refused(what, dump.answer.errno, dump.answer.text)
        return None if dump.interrupted else found

    def _look_up(
        self, kind: Msg, payload: bytes, decode: "_Decode[_Object]", what: str
    ) -> _Object | None:
        """One object by id, or None; raises Refused or Unavailable."""
        for _ in range(DUMP_TRIES):
            seq = self._ask(kind, payload, Flag.REQUEST)
            try:
                while (datagram := self._socket.receive()) is not None:
                    for message in messages(datagram):
                        if message.seq != seq:
                            continue
                        if message.kind == Control.ERROR:
                            answer = decode_answer(datagram, message)
                            if answer.errno not in _NOT_THERE:
                                raise _refused(what, answer.errno, answer.text)
                            return None
                        return decode(datagram, message.start, message.end, self._reader)
            except Malformed as error:
                raise Refused(what, reason=str(error)) from error
            except Overrun:
                continue
        raise Unavailable(f"{what}: its answer was lost {DUMP_TRIES} times")

    def _ask(self, kind: Msg, payload: bytes, flags: int) -> int:
        """Send one request; its sequence number."""
        seq = self._next_seq()
        request = encode_message(kind, payload, flags=flags, seq=seq, portid=self._tag)
        try:
            self._socket.send(request)
        except OSError as error:
            raise Unavailable(f"netlink send: {error.strerror}") from error
        return seq

    def _reopen(self) -> None:
        self._socket.close()
        self._socket = NetlinkSocket(NETLINK_XFRM, receive_bytes=self._receive_bytes)


class _Batch(NamedTuple):
    """Requests of one send; the first has sequence number `first`, `places` are their steps'."""

    first: int
    requests: list[bytes]
    places: Sequence[int]

    def datagram(self) -> bytearray:
        """All requests, the last one with an ACK."""
        datagram = bytearray().join(self.requests)
        datagram[len(datagram) - len(self.requests[-1]) + _FLAGS_AT] |= _ACK
        return datagram

    def halves(self) -> "tuple[_Batch, _Batch]":
        """The same requests in two batches."""
        middle = len(self.requests) // 2
        return (
            _Batch(self.first, self.requests[:middle], self.places[:middle]),
            _Batch(self.first + middle, self.requests[middle:], self.places[middle:]),
        )


class XfrmEvents:
    """What happens to SAs and SPs of this network namespace, as events; never blocks."""

    def __init__(self, *, ours: Collection[int] = (), receive_bytes: int = 1 << 22) -> None:
        """Subscribe; raises Refused.

        Changes whose request bore one of the numbers `ours` (XfrmKernel.tag) are not told: the
        kernel drops them for us, so that ten thousand steps of our own do not overrun the lane.
        """
        self._socket = NetlinkSocket(
            NETLINK_XFRM, groups=GROUPS, receive_bytes=receive_bytes, answer_seconds=None
        )
        self._socket.refuse_portids(ours)

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()

    def read(self) -> list[KernelEvent]:
        """The events that wait, oldest first, at most some thousands a call.

        EventsLost at the end when the kernel dropped some, or one could not be read.
        """
        events: list[KernelEvent] = []
        reader = Reader()
        lost = False
        for _ in range(_EVENT_DATAGRAMS):
            try:
                datagram = self._socket.receive(wait=False)
                if datagram is None:
                    break
                for message in messages(datagram):
                    events.extend(decode_event(datagram, message, reader))
            except (Overrun, Malformed):
                lost = True
        if lost:
            events.append(EventsLost())
        return events


_Decode = Callable[[memoryview, int, int, Reader], _Object]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A dump makes a hundred thousand objects, none of them garbage, which the cyclic collector
    would walk over and over."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _refused(what: str, number: int, text: str = "") -> Refused:
    return Refused(what, errno=number, reason=text or os.strerror(number))
