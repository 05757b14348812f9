"""SPs on the wire: struct xfrm_userpolicy_info with its attributes (NEWPOLICY, UPDPOLICY).

`decode_sp` is the quick way of bulk dumps; `decode_sp_message` keeps everything, unknown
attributes included, so that `encode_sp` gives back what was read.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from tunsec.model.names import IfId, Reqid, Spi
from tunsec.model.sa import Usage
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.wire.netlink import Buffer, Malformed, RawAttribute, encode_attribute
from tunsec.wire.xfrm.consts import ALL_ALGORITHMS, MAX_DEPTH, POLICY_DIRECTIONS, Attr
from tunsec.wire.xfrm.sa import Found, find_attributes, unknown_attributes
from tunsec.wire.xfrm.structs import (
    MODE_NUMBER,
    MODE_OF,
    PROTO_NUMBER,
    PROTO_OF,
    SELECTOR_SIZE,
    Reader,
    decode_mark,
    decode_offload,
    decode_u32,
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

USERPOLICY_SIZE: Final = 168
_BODY: Final = struct.Struct("=64s4QIIBBBB4x")
"""struct xfrm_userpolicy_info after its selector."""
_TEMPLATE: Final = struct.Struct("=16s4sB3xH2x16sIBBBx3I")
"""struct xfrm_user_tmpl."""

SP_DIRECTION_NUMBER: Final[dict[SpDirection, int]] = {
    SpDirection.IN: 0,
    SpDirection.OUT: 1,
    SpDirection.FWD: 2,
}
SP_DIRECTION_OF: Final = {number: way for way, number in SP_DIRECTION_NUMBER.items()}
_ACTION_NUMBER: Final[dict[SpAction, int]] = {SpAction.ALLOW: 0, SpAction.BLOCK: 1}
_ACTION_OF: Final = {number: action for action, number in _ACTION_NUMBER.items()}

_MARK: Final = Attr.MARK.value
_IF_ID: Final = Attr.IF_ID.value
_OFFLOAD: Final = Attr.OFFLOAD_DEV.value
_TEMPLATES: Final = Attr.TMPL.value
_TYPE: Final = Attr.POLICY_TYPE.value
_SECURITY: Final = Attr.SEC_CTX.value
_KNOWN: Final = frozenset(
    {_MARK, _IF_ID, _OFFLOAD, _TEMPLATES, _TYPE, _SECURITY, Attr.PAD.value, Attr.POLICY.value}
)


@dataclass(frozen=True, slots=True)
class TemplateMasks:
    """What a template says beside the model: algorithm masks and xfrm_user_tmpl.share."""

    auth: int = ALL_ALGORITHMS
    crypt: int = ALL_ALGORITHMS
    comp: int = ALL_ALGORITHMS
    share: int = 0


ANY_ALGORITHM: Final = TemplateMasks()


@dataclass(frozen=True, slots=True)
class SpMessage:
    """An SP with what the model leaves out.

    `masks` has one entry per template, or none when all allow every algorithm. `type` is
    XFRM_POLICY_TYPE_*, None when not given. A `per_socket` SP belongs to a socket
    (IP_XFRM_POLICY) and only ever comes from the kernel. `security` is an xfrm_user_sec_ctx.
    """

    sp: Sp
    masks: tuple[TemplateMasks, ...] = ()
    share: int = 0
    type: int | None = None
    per_socket: bool = False
    security: bytes | None = None
    rest: tuple[RawAttribute, ...] = field(default=())
    """Attributes that this codec does not know, as they came."""


def encode_sp(message: SpMessage) -> bytes:
    """Payload of NEWPOLICY or UPDPOLICY; raises Malformed for what has no place in it."""
    sp = message.sp
    parts = [
        encode_userpolicy(sp, share=message.share, per_socket=message.per_socket),
        encode_templates(sp.templates, message.masks),
    ]
    if message.type is not None:
        parts.append(encode_attribute(Attr.POLICY_TYPE, bytes((message.type,)) + bytes(5)))
    if message.security is not None:
        parts.append(encode_attribute(Attr.SEC_CTX, message.security))
    parts.append(encode_sp_options(sp))
    parts += [encode_attribute(raw.kind, raw.payload) for raw in message.rest]
    return b"".join(parts)


def encode_userpolicy(sp: Sp, *, share: int = 0, per_socket: bool = False) -> bytes:
    """struct xfrm_userpolicy_info, 168 bytes."""
    direction = SP_DIRECTION_NUMBER[sp.id.direction]
    return encode_selector(sp.id.selector) + _BODY.pack(
        encode_lifetimes(sp.lifetimes),
        sp.usage.usage_bytes,
        sp.usage.usage_packets,
        sp.usage.added_at,
        sp.usage.used_at,
        sp.priority,
        sp.index,
        direction + (POLICY_DIRECTIONS if per_socket else 0),
        _ACTION_NUMBER[sp.action],
        sp.flags,
        share,
    )


def encode_templates(
    templates: tuple[Template, ...], masks: tuple[TemplateMasks, ...] = ()
) -> bytes:
    """XFRMA_TMPL, or nothing when there are none."""
    if not templates:
        return b""
    if len(templates) > MAX_DEPTH:
        raise Malformed(f"{len(templates)} templates: at most {MAX_DEPTH} fit")
    body = b"".join(
        encode_template(template, mask)
        for template, mask in zip(
            templates, masks or (ANY_ALGORITHM,) * len(templates), strict=True
        )
    )
    return encode_attribute(Attr.TMPL, body)


def encode_template(template: Template, masks: TemplateMasks) -> bytes:
    """struct xfrm_user_tmpl, 64 bytes."""
    if template.src.version != template.dst.version:
        raise Malformed(f"template {template.src} to {template.dst} mixes IP versions")
    return _TEMPLATE.pack(
        template.dst.packed,
        (template.spi or 0).to_bytes(4, "big"),
        PROTO_NUMBER[template.proto],
        family_of(template.dst),
        template.src.packed,
        template.reqid,
        MODE_NUMBER[template.mode],
        masks.share,
        template.optional,
        masks.auth,
        masks.crypt,
        masks.comp,
    )


def encode_sp_options(sp: Sp) -> bytes:
    """Mark, interface and offload, those that are asked for."""
    return (
        encode_mark(sp.id.mark) + encode_u32(Attr.IF_ID, sp.id.if_id) + encode_offload(sp.offload)
    )


def decode_sp(buffer: Buffer, start: int, end: int, reader: Reader) -> Sp | None:
    """The SP in a NEWPOLICY or UPDPOLICY payload; raises Malformed.

    None for a per-socket SP and for one of the sub table (CONFIG_XFRM_SUB_POLICY): neither is
    found under an SpId.
    """
    need(start, end, USERPOLICY_SIZE, "xfrm_userpolicy_info")
    found = find_attributes(buffer, start + USERPOLICY_SIZE, end)
    if buffer[start + 160] >= POLICY_DIRECTIONS or _type(buffer, found):
        return None
    return build_sp(buffer, start, end, found=found, reader=reader)


def build_sp(buffer: Buffer, start: int, end: int, *, found: Found, reader: Reader) -> Sp:
    """struct xfrm_userpolicy_info at `start` and the attributes found beside it."""
    need(start, end, USERPOLICY_SIZE, "xfrm_userpolicy_info")
    selector = reader.selector(bytes(buffer[start : start + SELECTOR_SIZE]))
    if selector is None:
        raise Malformed("the selector of an SP has no address family")
    (
        lifetimes, usage_bytes, usage_packets, added_at, used_at,
        priority, index, direction, action, flags, _share,
    ) = _BODY.unpack_from(buffer, start + SELECTOR_SIZE)  # fmt: skip
    get = found.get
    mark, if_id = get(_MARK), get(_IF_ID)
    offload, templates = get(_OFFLOAD), get(_TEMPLATES)
    verdict = _ACTION_OF.get(action)
    if verdict is None:
        raise Malformed(f"SP action {action} is neither allow nor block")
    return Sp(
        SpId(
            selector,
            sp_direction(direction),
            None if mark is None else decode_mark(buffer, *mark),
            None if if_id is None else IfId(decode_u32(buffer, *if_id)),
        ),
        priority,
        verdict,
        () if templates is None else decode_templates(buffer, *templates, reader=reader),
        reader.lifetimes(lifetimes),
        flags,
        None if offload is None else decode_offload(buffer, *offload),
        index,
        Usage(usage_bytes, usage_packets, added_at, used_at),
    )


def sp_direction(number: int) -> SpDirection:
    """XFRM_POLICY_*, per-socket ones folded into their direction; raises Malformed."""
    direction = SP_DIRECTION_OF.get(number - POLICY_DIRECTIONS * (number >= POLICY_DIRECTIONS))
    if direction is None:
        raise Malformed(f"SP direction {number} is neither in, out nor fwd")
    return direction


def decode_templates(
    buffer: Buffer, start: int, end: int, *, reader: Reader
) -> tuple[Template, ...]:
    """XFRMA_TMPL; raises Malformed."""
    _template_count(start, end)
    return tuple(
        Template(
            reader.address(src, family),
            reader.address(dst, family),
            Reqid(reqid),
            Spi(int.from_bytes(spi, "big")) or None,
            PROTO_OF.get(proto) or proto_of(proto),
            MODE_OF.get(mode) or mode_of(mode),
            bool(optional),
        )
        for dst, spi, proto, family, src, reqid, mode, _share, optional, *_masks
        in _TEMPLATE.iter_unpack(buffer[start:end])
    )  # fmt: skip


def decode_sp_message(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SpMessage:
    """All that a NEWPOLICY or UPDPOLICY payload carries; raises Malformed."""
    return read_sp_message(buffer, start, (start + USERPOLICY_SIZE, end), reader=reader)


def read_sp_message(
    buffer: Buffer, start: int, span: tuple[int, int], *, reader: Reader
) -> SpMessage:
    """struct xfrm_userpolicy_info at `start` with the attributes in `span`; raises Malformed."""
    need(start, min(span[0], len(buffer)), USERPOLICY_SIZE, "xfrm_userpolicy_info")
    found = find_attributes(buffer, *span)
    sp = build_sp(buffer, start, span[0], found=found, reader=reader)
    masks: tuple[TemplateMasks, ...] = ()
    if _TEMPLATES in found:
        masks = _masks(buffer, *found[_TEMPLATES])
    security = found.get(_SECURITY)
    return SpMessage(
        sp,
        masks if any(mask != ANY_ALGORITHM for mask in masks) else (),
        buffer[start + 163],
        _type(buffer, found) if _TYPE in found else None,
        buffer[start + 160] >= POLICY_DIRECTIONS,
        None if security is None else bytes(buffer[slice(*security)]),
        unknown_attributes(buffer, *span, known=_KNOWN),
    )


def _masks(buffer: Buffer, start: int, end: int) -> tuple[TemplateMasks, ...]:
    _template_count(start, end)
    return tuple(
        TemplateMasks(auth, crypt, comp, share)
        for *_, share, _optional, auth, crypt, comp in _TEMPLATE.iter_unpack(buffer[start:end])
    )


def _template_count(start: int, end: int) -> None:
    count, over = divmod(end - start, _TEMPLATE.size)
    if over or not 0 < count <= MAX_DEPTH:
        raise Malformed(f"XFRMA_TMPL of {end - start} bytes is not 1 to {MAX_DEPTH} templates")


def _type(buffer: Buffer, found: Found) -> int:
    """XFRM_POLICY_TYPE_*: 0 main, 1 sub."""
    place = found.get(_TYPE)
    if place is None:
        return 0
    need(*place, 1, "XFRMA_POLICY_TYPE")
    return int(buffer[place[0]])
