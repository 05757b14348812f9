"""SAs on the wire: struct xfrm_usersa_info with its attributes (NEWSA, UPDSA, EXPIRE).

`decode_sa` is the quick way of bulk dumps: model fields only, no keys. `decode_sa_message` keeps
everything, unknown attributes included, so that `encode_sa` gives back what was read.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.names import Address, IfId, Mark, Proto, Reqid, Spi
from tunsec.model.sa import Replay, Sa, SaDirection, SaDrops, SaId, Usage
from tunsec.model.secret import Secret
from tunsec.wire.netlink import (
    ATTRIBUTE,
    Buffer,
    Malformed,
    RawAttribute,
    attributes,
    encode_attribute,
)
from tunsec.wire.xfrm.algorithms import (
    ALGORITHM_ATTRS,
    ALGORITHM_TYPES,
    Algorithm,
    AlgorithmKind,
    algorithm_of,
    decode_algorithm,
    encode_algorithm,
    read_aead,
)
from tunsec.wire.xfrm.consts import AF_INET, AF_INET6, AF_UNSPEC, Attr, StateFlag
from tunsec.wire.xfrm.replay import (
    ReplayForm,
    ReplayState,
    decode_esn,
    decode_legacy,
    encode_replay,
    esn_head,
    replay_state,
)
from tunsec.wire.xfrm.structs import (
    MODE_NUMBER,
    MODE_OF,
    PROTO_NUMBER,
    PROTO_OF,
    SA_DIRECTION_NUMBER,
    SA_DIRECTION_OF,
    SELECTOR_SIZE,
    Encap,
    Reader,
    decode_encap,
    decode_mark,
    decode_offload,
    decode_u32,
    empty_selector,
    encode_encap,
    encode_lifetimes,
    encode_mark,
    encode_offload,
    encode_selector,
    encode_u32,
    family_of,
    mode_of,
    need,
    proto_of,
)

USERSA_SIZE: Final = 224
_BODY: Final = struct.Struct("=16s4sB3x16s64s4Q3I2IHBBB7x")
"""struct xfrm_usersa_info after its selector."""

_TYPE_MASK: Final = 0x3FFF
# Plain numbers for the loop over a dump: an enum's member costs a look-up each time.
_ESN: Final = StateFlag.ESN.value
_FLAGS_OF_MODEL: Final = 0xFF & ~_ESN
_MARK: Final = Attr.MARK.value
_REPLAY_ESN: Final = Attr.REPLAY_ESN_VAL.value
_REPLAY_LEGACY: Final = Attr.REPLAY_VAL.value
_SET_MARK: Final = Attr.SET_MARK.value
_SET_MARK_MASK: Final = Attr.SET_MARK_MASK.value
_IF_ID: Final = Attr.IF_ID.value
_OFFLOAD: Final = Attr.OFFLOAD_DEV.value
_DIRECTION: Final = Attr.SA_DIR.value
_CPU: Final = Attr.SA_PCPU.value
_AEAD: Final = Attr.ALG_AEAD.value
_EMPTY_SELECTORS: Final = {family: empty_selector(family) for family in (AF_INET, AF_INET6)}
_KEYED: Final = frozenset(PROTO_NUMBER[proto] for proto in (Proto.ESP, Proto.AH, Proto.COMP))
_NO_DROPS: Final = SaDrops()
_OPTIONAL_U32: Final = {
    Attr.SA_EXTRA_FLAGS: "extra_flags",
    Attr.TFCPAD: "tfc_padding",
    Attr.MTIMER_THRESH: "mapping_seconds",
    Attr.NAT_KEEPALIVE_INTERVAL: "keepalive_seconds",
    Attr.REPLAY_THRESH: "replay_threshold",
    Attr.ETIMER_THRESH: "timer_threshold",
}
_KNOWN: Final = frozenset(
    {
        *ALGORITHM_TYPES, *_OPTIONAL_U32, _MARK, _REPLAY_ESN, _REPLAY_LEGACY, _SET_MARK,
        _SET_MARK_MASK, _IF_ID, _OFFLOAD, _DIRECTION, _CPU, Attr.ENCAP, Attr.COADDR,
        Attr.LASTUSED, Attr.SEC_CTX, Attr.PAD, Attr.SA,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SaMessage:
    """An SA with what the model leaves out.

    `algorithms` empty means that `sa.aead` and `sa.key` say it; `replay` None that `sa.replay`
    does. `acquire_seq` is the kernel's own number of an acquire. Thresholds are as in
    `ip xfrm`; `timer_threshold` counts 100 ms. `security` is a struct xfrm_user_sec_ctx.
    """

    sa: Sa
    acquire_seq: int = 0
    algorithms: tuple[Algorithm, ...] = ()
    replay: ReplayState | None = None
    encap: Encap | None = None
    care_of: Address | None = None
    last_used_at: int | None = None
    extra_flags: int | None = None
    tfc_padding: int | None = None
    mapping_seconds: int | None = None
    keepalive_seconds: int | None = None
    replay_threshold: int | None = None
    timer_threshold: int | None = None
    security: bytes | None = None
    rest: tuple[RawAttribute, ...] = field(default=())
    """Attributes that this codec does not know, as they came."""


def encode_sa(message: SaMessage) -> bytes:
    """Payload of NEWSA or UPDSA; raises Malformed for what has no place in it."""
    sa = message.sa
    state = message.replay or replay_state(sa.replay, sa.direction)
    algorithms = message.algorithms
    if not algorithms and sa.aead is not None:
        if sa.key is None:
            raise Malformed(f"SA {sa.id} has no key to install")
        algorithms = (algorithm_of(sa.aead, sa.key),)
    parts = [
        encode_usersa(sa, state, acquire_seq=message.acquire_seq),
        *(encode_algorithm(algorithm) for algorithm in algorithms),
        encode_replay_part(state),
        encode_sa_options(sa),
        encode_encap(message.encap),
        *(encode_u32(attr, getattr(message, name)) for attr, name in _OPTIONAL_U32.items()),
    ]
    if message.care_of is not None:
        raw = message.care_of.packed
        parts.append(encode_attribute(Attr.COADDR, raw + bytes(16 - len(raw))))
    if message.last_used_at is not None:
        parts.append(encode_attribute(Attr.LASTUSED, struct.pack("=Q", message.last_used_at)))
    if message.security is not None:
        parts.append(encode_attribute(Attr.SEC_CTX, message.security))
    parts += [encode_attribute(raw.kind, raw.payload) for raw in message.rest]
    return b"".join(parts)


def encode_usersa(sa: Sa, state: ReplayState, *, acquire_seq: int = 0) -> bytes:
    """struct xfrm_usersa_info, 224 bytes."""
    family = family_of(sa.id.dst)
    if family_of(sa.src) != family:
        raise Malformed(f"SA {sa.id} from {sa.src} mixes IP versions")
    if sa.selector is None:
        selector = empty_selector(AF_UNSPEC if sa.flags & StateFlag.AF_UNSPEC else family)
    else:
        selector = encode_selector(sa.selector)
    legacy = state.form is ReplayForm.LEGACY
    return selector + _BODY.pack(
        sa.id.dst.packed,
        sa.id.spi.to_bytes(4, "big"),
        PROTO_NUMBER[sa.id.proto],
        sa.src.packed,
        encode_lifetimes(sa.lifetimes),
        sa.usage.usage_bytes,
        sa.usage.usage_packets,
        sa.usage.added_at,
        sa.usage.used_at,
        sa.drops.replay_window,
        sa.drops.replay,
        sa.drops.integrity_failed,
        acquire_seq,
        sa.reqid,
        family,
        MODE_NUMBER[sa.mode],
        state.window if legacy else 0,
        sa.flags | (StateFlag.ESN if state.form is ReplayForm.ESN else 0),
    )


def encode_replay_part(state: ReplayState) -> bytes:
    """The replay attribute, or nothing for a legacy state that has counted nothing yet."""
    fresh = state.form is ReplayForm.LEGACY and not (state.oseq or state.seq or state.bitmap[0])
    return b"" if fresh else encode_replay(state, short=True)


def encode_sa_options(sa: Sa) -> bytes:
    """Marks, interface, offload, direction and CPU, those that are asked for."""
    parts = [encode_mark(sa.id.mark)]
    if sa.output_mark is not None:
        parts.append(encode_u32(Attr.SET_MARK, sa.output_mark.value))
        parts.append(encode_u32(Attr.SET_MARK_MASK, sa.output_mark.mask))
    parts.append(encode_u32(Attr.IF_ID, sa.if_id))
    parts.append(encode_offload(sa.offload))
    if sa.direction is not None:
        number = SA_DIRECTION_NUMBER[sa.direction]
        parts.append(encode_attribute(Attr.SA_DIR, bytes((number,))))
    parts.append(encode_u32(Attr.SA_PCPU, sa.cpu))
    return b"".join(parts)


def decode_sa(buffer: Buffer, start: int, end: int, reader: Reader) -> Sa:
    """The SA in a NEWSA or UPDSA payload, without keys; raises Malformed."""
    found = find_attributes(buffer, start + USERSA_SIZE, end)
    return build_sa(buffer, start, end, found=found, reader=reader)


Found = Mapping[int, tuple[int, int]]
"""Where each attribute's payload lies."""


def find_attributes(buffer: Buffer, start: int, end: int) -> dict[int, tuple[int, int]]:
    """Attributes by type; of repeated ones the last counts, as for the kernel.

    A loop of its own rather than `attributes`, for a dump comes here for every SA and SP.
    """
    found: dict[int, tuple[int, int]] = {}
    unpack, at = ATTRIBUTE.unpack_from, start
    while at < end:
        if end - at < 4:
            raise Malformed(f"attribute header cut off at byte {at} of {end}")
        length, kind = unpack(buffer, at)
        if length < 4 or at + length > end:
            raise Malformed(f"attribute {kind} at byte {at} claims {length} of {end - at} bytes")
        found[kind & _TYPE_MASK] = (at + 4, at + length)
        at += (length + 3) & ~3
    return found


def build_sa(
    buffer: Buffer, start: int, end: int, *, found: Found, reader: Reader, key: Secret | None = None
) -> Sa:
    """struct xfrm_usersa_info at `start` and the attributes found beside it."""
    need(start, end, USERSA_SIZE, "xfrm_usersa_info")
    selector = bytes(buffer[start : start + SELECTOR_SIZE])
    (
        dst, spi, proto, src, lifetimes,
        usage_bytes, usage_packets, added_at, used_at,
        late, replayed, forged,
        _acquire_seq, reqid, family, mode, window, flags,
    ) = _BODY.unpack_from(buffer, start + SELECTOR_SIZE)  # fmt: skip
    get = found.get
    mark = get(_MARK)
    if_id, offload = get(_IF_ID), get(_OFFLOAD)
    direction, cpu = get(_DIRECTION), get(_CPU)
    return Sa(
        SaId(
            reader.address(dst, family),
            Spi(int.from_bytes(spi, "big")),
            PROTO_OF.get(proto) or proto_of(proto),
            None if mark is None else decode_mark(buffer, *mark),
        ),
        reader.address(src, family),
        Reqid(reqid),
        _aead(buffer, found, reader),
        key,
        MODE_OF.get(mode) or mode_of(mode),
        None if selector == _EMPTY_SELECTORS.get(family) else reader.selector(selector),
        reader.lifetimes(lifetimes),
        _replay(buffer, found, window=window, esn=bool(flags & _ESN)),
        flags & _FLAGS_OF_MODEL,
        _output_mark(buffer, found),
        None if if_id is None else IfId(decode_u32(buffer, *if_id)),
        None if offload is None else decode_offload(buffer, *offload),
        None if direction is None else read_sa_direction(buffer, *direction),
        None if cpu is None else decode_u32(buffer, *cpu),
        Usage(usage_bytes, usage_packets, added_at, used_at),
        SaDrops(late, replayed, forged) if late or replayed or forged else _NO_DROPS,
        # Only a state without any algorithm has been allocated or acquired and not yet keyed.
        proto in _KEYED and ALGORITHM_TYPES.isdisjoint(found),
    )


def _aead(buffer: Buffer, found: Found, reader: Reader) -> Aead | None:
    place = found.get(_AEAD)
    return None if place is None else read_aead(buffer, *place, reader)


def _replay(buffer: Buffer, found: Found, *, window: int, esn: bool) -> Replay:
    place = found.get(_REPLAY_ESN)
    if place is not None:
        _words, oseq, seq, window = esn_head(buffer, *place)
        return Replay(window, esn, oseq, seq)
    place = found.get(_REPLAY_LEGACY)
    if place is not None:
        return decode_legacy(buffer, *place, window=window).model()
    return Replay(window, esn)


def _output_mark(buffer: Buffer, found: Found) -> Mark | None:
    place = found.get(_SET_MARK)
    if place is None:
        return None
    mask = found.get(_SET_MARK_MASK)
    # Without a mask the kernel sets the whole mark (xfrm_smark_init).
    return Mark(
        decode_u32(buffer, *place), 0xFFFF_FFFF if mask is None else decode_u32(buffer, *mask)
    )


def read_sa_direction(buffer: Buffer, start: int, end: int) -> SaDirection:
    """XFRMA_SA_DIR; raises Malformed."""
    need(start, end, 1, "XFRMA_SA_DIR")
    direction = SA_DIRECTION_OF.get(buffer[start])
    if direction is None:
        raise Malformed(f"SA direction {buffer[start]} is neither in nor out")
    return direction


def decode_sa_message(
    buffer: Buffer, start: int, end: int, *, reader: Reader, keep_keys: bool = False
) -> SaMessage:
    """All that a NEWSA or UPDSA payload carries; raises Malformed."""
    return read_sa_message(
        buffer, start, (start + USERSA_SIZE, end), reader=reader, keep_keys=keep_keys
    )


def read_sa_message(
    buffer: Buffer, start: int, span: tuple[int, int], *, reader: Reader, keep_keys: bool = False
) -> SaMessage:
    """struct xfrm_usersa_info at `start` with the attributes in `span`; raises Malformed."""
    need(start, min(span[0], len(buffer)), USERSA_SIZE, "xfrm_usersa_info")
    found = find_attributes(buffer, *span)
    algorithms = tuple(
        decode_algorithm(buffer, *place, kind=ALGORITHM_ATTRS[attr], keep_key=keep_keys)
        for attr, place in found.items()
        if attr in ALGORITHM_ATTRS
    )
    key = next((one.key for one in algorithms if one.kind is AlgorithmKind.AEAD), None)
    sa = build_sa(buffer, start, span[0], found=found, reader=reader, key=key)
    state = _replay_state(buffer, found, sa)
    (acquire_seq,) = struct.unpack_from("=I", buffer, start + 204)
    numbers = {
        name: decode_u32(buffer, *found[attr])
        for attr, name in _OPTIONAL_U32.items()
        if attr in found
    }
    encap, care_of = found.get(Attr.ENCAP), found.get(Attr.COADDR)
    used, security = found.get(Attr.LASTUSED), found.get(Attr.SEC_CTX)
    return SaMessage(
        sa,
        acquire_seq,
        algorithms,
        state,
        None if encap is None else decode_encap(buffer, *encap),
        None if care_of is None else _care_of(buffer, *care_of, reader=reader),
        None if used is None else _u64(buffer, *used),
        numbers.get("extra_flags"),
        numbers.get("tfc_padding"),
        numbers.get("mapping_seconds"),
        numbers.get("keepalive_seconds"),
        numbers.get("replay_threshold"),
        numbers.get("timer_threshold"),
        None if security is None else bytes(buffer[slice(*security)]),
        unknown_attributes(buffer, *span, known=_KNOWN),
    )


def unknown_attributes(
    buffer: Buffer, start: int, end: int, *, known: frozenset[int]
) -> tuple[RawAttribute, ...]:
    """Attributes of other types, as they came."""
    return tuple(
        RawAttribute(kind, bytes(buffer[first:last]))
        for kind, first, last in attributes(buffer, start, end)
        if kind & _TYPE_MASK not in known
    )


def _replay_state(buffer: Buffer, found: Found, sa: Sa) -> ReplayState:
    place = found.get(_REPLAY_ESN)
    if place is not None:
        return decode_esn(buffer, *place, esn=sa.replay.esn)
    place = found.get(_REPLAY_LEGACY)
    if place is not None:
        return decode_legacy(buffer, *place, window=sa.replay.window)
    form = ReplayForm.ESN if sa.replay.esn else ReplayForm.LEGACY
    return ReplayState(form, sa.replay.window)


def _care_of(buffer: Buffer, start: int, end: int, *, reader: Reader) -> Address:
    need(start, end, 16, "XFRMA_COADDR")
    return reader.address(bytes(buffer[start : start + 16]), AF_INET6)


def _u64(buffer: Buffer, start: int, end: int) -> int:
    need(start, end, 8, "64-bit attribute")
    return int(struct.unpack_from("=Q", buffer, start)[0])
