"""Asynchronous events of an SA: struct xfrm_aevent_id (NEWAE, GETAE), by which replay numbers and
counters are read, set or announced (net/xfrm/xfrm_user.c build_aevent, xfrm_new_ae)."""

import struct
from dataclasses import dataclass, field
from typing import Final

from tunsec.model.names import Address, IfId, Reqid
from tunsec.model.sa import SaDirection, SaId, Usage
from tunsec.wire.netlink import Buffer, Malformed, RawAttribute, encode_attribute
from tunsec.wire.xfrm.consts import AeFlag, Attr
from tunsec.wire.xfrm.replay import (
    ReplayState,
    decode_esn,
    decode_legacy,
    encode_replay,
)
from tunsec.wire.xfrm.requests import SA_ID, encode_sa_id, read_sa_id
from tunsec.wire.xfrm.sa import Found, find_attributes, read_sa_direction, unknown_attributes
from tunsec.wire.xfrm.structs import (
    SA_DIRECTION_NUMBER,
    USAGE,
    Reader,
    decode_u32,
    encode_u32,
    need,
)

_TAIL: Final = struct.Struct("=16sII")
_SIZE: Final = SA_ID.size + _TAIL.size
_KNOWN: Final = frozenset(
    attr.value
    for attr in (
        Attr.MARK, Attr.REPLAY_VAL, Attr.REPLAY_ESN_VAL, Attr.LTIME_VAL, Attr.REPLAY_THRESH,
        Attr.ETIMER_THRESH, Attr.IF_ID, Attr.SA_PCPU, Attr.SA_DIR, Attr.PAD,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SaProgress:
    """How far an SA has come. `flags` say what is asked for or why it was sent.

    `replay.window` is 0 for a legacy state: only the SA itself tells it. A wide state is given
    form BITMAP: whether it counts 64 bits stands in the SA's flags. Thresholds: packets, 100 ms.
    """

    id: SaId
    src: Address
    reqid: Reqid
    flags: AeFlag
    replay: ReplayState | None = None
    usage: Usage | None = None
    replay_threshold: int | None = None
    timer_threshold: int | None = None
    if_id: IfId | None = None
    direction: SaDirection | None = None
    cpu: int | None = None
    rest: tuple[RawAttribute, ...] = field(default=())
    """Attributes that this codec does not know, as they came."""


def encode_progress(progress: SaProgress) -> bytes:
    """Payload of NEWAE (which wants NLM_F_REPLACE) or GETAE; raises Malformed."""
    if progress.src.version != progress.id.dst.version:
        raise Malformed(f"SA {progress.id} from {progress.src} mixes IP versions")
    sa_id = encode_sa_id(progress.id)
    parts = [
        sa_id[: SA_ID.size],
        _TAIL.pack(progress.src.packed, progress.flags, progress.reqid),
        sa_id[SA_ID.size :],
        b"" if progress.replay is None else encode_replay(progress.replay),
    ]
    if progress.usage is not None:
        usage = progress.usage
        body = USAGE.pack(usage.usage_bytes, usage.usage_packets, usage.added_at, usage.used_at)
        parts.append(encode_attribute(Attr.LTIME_VAL, body))
    parts.append(encode_u32(Attr.REPLAY_THRESH, progress.replay_threshold))
    parts.append(encode_u32(Attr.ETIMER_THRESH, progress.timer_threshold))
    parts.append(encode_u32(Attr.IF_ID, progress.if_id))
    parts.append(encode_u32(Attr.SA_PCPU, progress.cpu))
    if progress.direction is not None:
        number = SA_DIRECTION_NUMBER[progress.direction]
        parts.append(encode_attribute(Attr.SA_DIR, bytes((number,))))
    parts += [encode_attribute(raw.kind, raw.payload) for raw in progress.rest]
    return b"".join(parts)


def decode_progress(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SaProgress:
    """Payload of NEWAE or GETAE; raises Malformed."""
    need(start, end, _SIZE, "xfrm_aevent_id")
    found = find_attributes(buffer, start + _SIZE, end)
    (family,) = struct.unpack_from("=H", buffer, start + 20)
    src, flags, reqid = _TAIL.unpack_from(buffer, start + SA_ID.size)
    usage = found.get(Attr.LTIME_VAL)
    if usage is not None:
        need(*usage, USAGE.size, "XFRMA_LTIME_VAL")
    direction = found.get(Attr.SA_DIR)
    if_id = _number(buffer, found, Attr.IF_ID)
    return SaProgress(
        read_sa_id(buffer, start, found, reader),
        reader.address(src, family),
        Reqid(reqid),
        AeFlag(flags),
        _replay(buffer, found),
        None if usage is None else Usage(*USAGE.unpack_from(buffer, usage[0])),
        _number(buffer, found, Attr.REPLAY_THRESH),
        _number(buffer, found, Attr.ETIMER_THRESH),
        None if if_id is None else IfId(if_id),
        None if direction is None else read_sa_direction(buffer, *direction),
        _number(buffer, found, Attr.SA_PCPU),
        unknown_attributes(buffer, start + _SIZE, end, known=_KNOWN),
    )


def _replay(buffer: Buffer, found: Found) -> ReplayState | None:
    place = found.get(Attr.REPLAY_ESN_VAL)
    if place is not None:
        return decode_esn(buffer, *place, esn=False)
    place = found.get(Attr.REPLAY_VAL)
    return None if place is None else decode_legacy(buffer, *place, window=0)


def _number(buffer: Buffer, found: Found, attr: Attr) -> int | None:
    place = found.get(attr)
    return None if place is None else decode_u32(buffer, *place)
