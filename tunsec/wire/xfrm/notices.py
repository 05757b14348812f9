"""What the kernel says unasked about limits and missing SAs: EXPIRE, POLEXPIRE, ACQUIRE."""

import struct
from dataclasses import dataclass, replace
from typing import Final

from tunsec.model.names import Address, Reqid, Spi
from tunsec.model.sa import Sa, SaId
from tunsec.model.selector import Selector
from tunsec.model.sp import Sp
from tunsec.wire.netlink import Buffer, Malformed, RawAttribute, encode_attribute
from tunsec.wire.xfrm.consts import AF_INET, AF_INET6, AF_UNSPEC, Attr
from tunsec.wire.xfrm.replay import replay_state
from tunsec.wire.xfrm.requests import read_mark
from tunsec.wire.xfrm.sa import (
    USERSA_SIZE,
    build_sa,
    encode_sa_options,
    encode_usersa,
    find_attributes,
    unknown_attributes,
)
from tunsec.wire.xfrm.sp import (
    USERPOLICY_SIZE,
    SpMessage,
    encode_sp_options,
    encode_templates,
    encode_userpolicy,
    read_sp_message,
)
from tunsec.wire.xfrm.structs import (
    PROTO_NUMBER,
    SELECTOR_SIZE,
    Reader,
    encode_selector,
    family_of,
    need,
    proto_of,
)

_EXPIRE_SIZE: Final = USERSA_SIZE + 8
_POLEXPIRE_SIZE: Final = USERPOLICY_SIZE + 8
_ACQUIRE_HEAD: Final = struct.Struct("=16s4sB3x16s")
_ACQUIRE_TAIL: Final = struct.Struct("=4I")
_ACQUIRE_SIZE: Final = _ACQUIRE_HEAD.size + SELECTOR_SIZE + USERPOLICY_SIZE + _ACQUIRE_TAIL.size
_EXPIRE_KNOWN: Final = frozenset(
    attr.value for attr in (Attr.MARK, Attr.IF_ID, Attr.SA_DIR, Attr.SA_PCPU, Attr.PAD)
)


@dataclass(frozen=True, slots=True)
class Expire:
    """XFRM_MSG_EXPIRE: an SA reached a soft or hard limit; its algorithms are not told."""

    sa: Sa
    hard: bool
    rest: tuple[RawAttribute, ...] = ()


@dataclass(frozen=True, slots=True)
class SpExpire:
    """XFRM_MSG_POLEXPIRE: an SP reached a soft or hard limit."""

    message: SpMessage
    hard: bool


@dataclass(frozen=True, slots=True)
class Acquire:
    """XFRM_MSG_ACQUIRE: a packet from `src` to `id.dst` under `selector` met an SP without an SA.

    `selector` is None when the packet's own could not be told. `seq` is the kernel's number of
    this acquire. The algorithm masks are those of the template.
    """

    id: SaId
    src: Address
    selector: Selector | None
    message: SpMessage
    seq: int
    masks: tuple[int, int, int]

    @property
    def sp(self) -> Sp:
        """The SP that the packet met."""
        return self.message.sp

    @property
    def reqid(self) -> Reqid:
        """Reqid of the template that lacks its SA, 0 when there is none."""
        for template in self.sp.templates:
            if template.proto is self.id.proto:
                return template.reqid
        return Reqid(0)


def encode_expire(expire: Expire) -> bytes:
    """Payload of EXPIRE; sent to the kernel it makes an SA expire now."""
    state = replay_state(expire.sa.replay, expire.sa.direction)
    return (
        encode_usersa(expire.sa, state)
        + bytes((expire.hard,))
        + bytes(7)
        + encode_sa_options(expire.sa)
        + b"".join(encode_attribute(raw.kind, raw.payload) for raw in expire.rest)
    )


def decode_expire(buffer: Buffer, start: int, end: int, *, reader: Reader) -> Expire:
    """Payload of EXPIRE; raises Malformed. `sa.replay.window` is 0 for a wide state."""
    need(start, end, _EXPIRE_SIZE, "xfrm_user_expire")
    found = find_attributes(buffer, start + _EXPIRE_SIZE, end)
    sa = build_sa(buffer, start, end, found=found, reader=reader)
    rest = unknown_attributes(buffer, start + _EXPIRE_SIZE, end, known=_EXPIRE_KNOWN)
    # An EXPIRE never tells algorithms, so that there are none says nothing.
    return Expire(replace(sa, larval=False), bool(buffer[start + USERSA_SIZE]), rest)


def encode_sp_expire(expire: SpExpire) -> bytes:
    """Payload of POLEXPIRE; sent to the kernel it makes an SP expire now."""
    sp = expire.message.sp
    return (
        encode_userpolicy(sp, share=expire.message.share, per_socket=expire.message.per_socket)
        + bytes((expire.hard,))
        + bytes(7)
        + _sp_attributes(expire.message)
    )


def _sp_attributes(message: SpMessage) -> bytes:
    parts = [encode_templates(message.sp.templates, message.masks)]
    if message.security is not None:
        parts.append(encode_attribute(Attr.SEC_CTX, message.security))
    if message.type is not None:
        parts.append(encode_attribute(Attr.POLICY_TYPE, bytes((message.type,)) + bytes(5)))
    parts.append(encode_sp_options(message.sp))
    parts += [encode_attribute(raw.kind, raw.payload) for raw in message.rest]
    return b"".join(parts)


def decode_sp_expire(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SpExpire:
    """Payload of POLEXPIRE; raises Malformed."""
    need(start, end, _POLEXPIRE_SIZE, "xfrm_user_polexpire")
    message = read_sp_message(buffer, start, (start + _POLEXPIRE_SIZE, end), reader=reader)
    return SpExpire(message, bool(buffer[start + USERPOLICY_SIZE]))


def encode_acquire(acquire: Acquire) -> bytes:
    """Payload of ACQUIRE; sent to the kernel it makes it ask for an SA."""
    family = family_of(acquire.id.dst)
    if family_of(acquire.src) != family:
        raise Malformed(f"acquire of {acquire.id} from {acquire.src} mixes IP versions")
    selector = bytes(SELECTOR_SIZE)
    if acquire.selector is not None:
        selector = encode_selector(acquire.selector)
    head = _ACQUIRE_HEAD.pack(
        acquire.id.dst.packed,
        acquire.id.spi.to_bytes(4, "big"),
        PROTO_NUMBER[acquire.id.proto],
        acquire.src.packed,
    )
    policy = encode_userpolicy(acquire.sp, share=acquire.message.share)
    tail = _ACQUIRE_TAIL.pack(*acquire.masks, acquire.seq)
    return head + selector + policy + tail + _sp_attributes(acquire.message)


def decode_acquire(buffer: Buffer, start: int, end: int, *, reader: Reader) -> Acquire:
    """Payload of ACQUIRE; raises Malformed.

    The message does not say the family of its addresses: the packet's selector does, and where
    that has none the template for the protocol (build_acquire in net/xfrm/xfrm_user.c).
    """
    need(start, end, _ACQUIRE_SIZE, "xfrm_user_acquire")
    dst, spi, proto, src = _ACQUIRE_HEAD.unpack_from(buffer, start)
    at = start + _ACQUIRE_HEAD.size
    selector = reader.selector(bytes(buffer[at : at + SELECTOR_SIZE]))
    at += SELECTOR_SIZE
    tail_at = at + USERPOLICY_SIZE
    message = read_sp_message(buffer, at, (tail_at + _ACQUIRE_TAIL.size, end), reader=reader)
    *masks, seq = _ACQUIRE_TAIL.unpack_from(buffer, tail_at)
    family = _acquire_family(dst, src, selector, message)
    mark = read_mark(buffer, find_attributes(buffer, tail_at + _ACQUIRE_TAIL.size, end))
    sa_id = SaId(
        reader.address(dst, family),
        Spi(int.from_bytes(spi, "big")),
        proto_of(proto),
        mark,
    )
    auth, crypt, comp = masks
    return Acquire(sa_id, reader.address(src, family), selector, message, seq, (auth, crypt, comp))


def _acquire_family(dst: bytes, src: bytes, selector: Selector | None, message: SpMessage) -> int:
    """Family of the SA that is asked for; a tunnel's may differ from its packets'."""
    for template in message.sp.templates:
        if not int(template.dst):
            continue
        packed = template.dst.packed
        if dst == packed + bytes(16 - len(packed)):
            return family_of(template.dst)
    if any(dst[4:]) or any(src[4:]):
        return AF_INET6
    if selector is not None:
        return family_of(selector.dst)
    return AF_INET if any(dst) or any(src) else AF_UNSPEC
