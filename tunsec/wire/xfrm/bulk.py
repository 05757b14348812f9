"""Whole request messages, many of the same shape, fast.

SAs and SPs of one flow differ in addresses, SPI, key, reqid and mark only. The first of a shape is
coded by `encode_sa` or `encode_sp`; its bytes are cut at the places that differ, and each further
one fills them in one `Struct.pack`. Usage and index, which only the kernel sets, go out as zero.
"""

import struct
from dataclasses import replace
from typing import Final, NamedTuple

from tunsec.model.names import Mark
from tunsec.model.sa import Sa, SaDrops, SaId, Usage
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpId
from tunsec.wire.netlink import Flag, Malformed, encode_message
from tunsec.wire.xfrm.consts import Attr, Msg
from tunsec.wire.xfrm.requests import encode_sa_id, encode_sp_id
from tunsec.wire.xfrm.sa import SaMessage, encode_sa
from tunsec.wire.xfrm.sp import SpMessage, encode_sp
from tunsec.wire.xfrm.structs import encode_mark

_NEW: Final = Flag.REQUEST.value | Flag.CREATE.value | Flag.EXCL.value
_REPLACE: Final = Flag.REQUEST.value | Flag.REPLACE.value
_DELETE: Final = Flag.REQUEST.value
_OUTPUT_MARK: Final = struct.Struct("=HHIHHI")
_MARK: Final = struct.Struct("=HHII")
_HEADER_BYTES: Final = 16
_KEY_AT: Final = _HEADER_BYTES + 300
"""After xfrm_usersa_info (224), the attribute's header (4) and xfrm_algo_aead (72)."""
_MARK_TYPE: Final = Attr.MARK.value
_SET_MARK: Final = Attr.SET_MARK.value
_SET_MARK_MASK: Final = Attr.SET_MARK_MASK.value


class _SaShape(NamedTuple):
    """A NEWSA cut at length, sequence, dst, spi, src, reqid and key."""

    pack: struct.Struct
    size: int
    key_bytes: int
    head: bytes
    port_and_selector: bytes
    proto: bytes
    lifetimes: bytes
    algorithm: bytes
    tail: bytes


class _SpShape(NamedTuple):
    """A NEWPOLICY cut at length, sequence, dst, src, prefixes and its one template."""

    pack: struct.Struct
    size: int
    head: bytes
    portid: int
    ports: bytes
    policy: bytes
    template_head: bytes
    template_proto: bytes
    template_tail: bytes
    options: bytes


class Packer:
    """Packs requests; `portid` goes into every header and comes back in notifications."""

    __slots__ = ("_portid", "_sa_shapes", "_sp_shapes")

    def __init__(self, *, portid: int = 0) -> None:
        self._portid = portid
        self._sa_shapes: dict[tuple[object, ...], _SaShape] = {}
        self._sp_shapes: dict[tuple[object, ...], _SpShape] = {}

    def add_sa(self, sa: Sa, seq: int) -> bytes:
        """NEWSA for an SA with AEAD and key; raises Malformed."""
        sa_id, secret = sa.id, sa.key
        dst, src = sa_id.dst, sa.src
        key = (
            dst.version, src.version, sa_id.proto, sa.aead, sa.mode, sa.selector, sa.lifetimes,
            sa.replay, sa.flags, sa.if_id, sa.offload, sa.direction, sa.cpu,
        )  # fmt: skip
        shape = self._sa_shapes.get(key)
        if shape is None:
            shape = self._sa_shapes[key] = self._sa_shape(sa)
        raw = b"" if secret is None or secret.wiped else secret.reveal()
        if len(raw) != shape.key_bytes:
            raise Malformed(f"SA {sa_id} needs {shape.key_bytes} bytes of key and salt")
        marks = b""
        if sa_id.mark is not None or sa.output_mark is not None:
            marks = _marks(sa_id.mark, sa.output_mark)
        return (
            shape.pack.pack(
                shape.size + len(marks),
                shape.head,
                seq,
                shape.port_and_selector,
                dst.packed,
                sa_id.spi.to_bytes(4, "big"),
                shape.proto,
                src.packed,
                shape.lifetimes,
                sa.reqid,
                shape.algorithm,
                raw,
                shape.tail,
            )
            + marks
        )

    def remove_sa(self, sa_id: SaId, seq: int) -> bytes:
        """DELSA."""
        return encode_message(
            Msg.DELSA, encode_sa_id(sa_id), flags=_DELETE, seq=seq, portid=self._portid
        )

    def add_sp(self, sp: Sp, seq: int) -> bytes:
        """NEWPOLICY, which the kernel refuses when the SP is there; raises Malformed."""
        return self._sp(Msg.NEWPOLICY, sp, seq)

    def update_sp(self, sp: Sp, seq: int) -> bytes:
        """UPDPOLICY, which takes the place of the SP that is there; raises Malformed."""
        return self._sp(Msg.UPDPOLICY, sp, seq)

    def remove_sp(self, sp_id: SpId, seq: int) -> bytes:
        """DELPOLICY."""
        return encode_message(
            Msg.DELPOLICY, encode_sp_id(sp_id), flags=_DELETE, seq=seq, portid=self._portid
        )

    def _sa_shape(self, sa: Sa) -> _SaShape:
        if sa.aead is None:
            raise Malformed(f"SA {sa.id} names no AEAD to install")
        key_bytes = sa.aead.key_bytes + sa.aead.salt_bytes
        plain = replace(
            sa,
            id=replace(sa.id, mark=None),
            key=Secret(bytes(key_bytes)),
            output_mark=None,
            usage=Usage(),
            drops=SaDrops(),
        )
        whole = encode_message(
            Msg.NEWSA, encode_sa(SaMessage(plain)), flags=_NEW, seq=0, portid=self._portid
        )
        after_key = _KEY_AT + key_bytes
        return _SaShape(
            struct.Struct(f"=I4sI60s16s4s4s16s112sI88s{key_bytes}s{len(whole) - after_key}s"),
            len(whole),
            key_bytes,
            whole[4:8],
            whole[12:72],
            whole[92:96],
            whole[112:224],
            whole[228:_KEY_AT],
            whole[after_key:],
        )

    def _sp(self, kind: Msg, sp: Sp, seq: int) -> bytes:
        if len(sp.templates) != 1:
            return self._whole_sp(kind, sp, seq)
        sp_id, (template,) = sp.id, sp.templates
        selector = sp_id.selector
        key = (
            kind, selector.src.version, selector.dst.version, selector.sport, selector.dport,
            selector.proto, selector.ifindex, selector.user, sp_id.direction, sp_id.if_id,
            sp.priority, sp.action, sp.lifetimes, sp.flags, sp.offload,
            template.src.version, template.dst.version, template.proto, template.mode,
            template.optional,
        )  # fmt: skip
        shape = self._sp_shapes.get(key)
        if shape is None:
            shape = self._sp_shapes[key] = self._sp_shape(kind, sp)
        mark = b"" if sp_id.mark is None else _marks(sp_id.mark, None)
        return (
            shape.pack.pack(
                shape.size + len(mark),
                shape.head,
                seq,
                shape.portid,
                selector.dst.network_address.packed,
                selector.src.network_address.packed,
                shape.ports,
                selector.dst.prefixlen,
                selector.src.prefixlen,
                shape.policy,
                shape.template_head,
                template.dst.packed,
                (template.spi or 0).to_bytes(4, "big"),
                shape.template_proto,
                template.src.packed,
                template.reqid,
                shape.template_tail,
                shape.options,
            )
            + mark
        )

    def _sp_shape(self, kind: Msg, sp: Sp) -> _SpShape:
        whole = self._whole_sp(kind, replace(sp, id=replace(sp.id, mark=None)), 0)
        return _SpShape(
            struct.Struct(f"=I4sII16s16s10sBB124s4s16s4s8s16sI16s{len(whole) - 252}s"),
            len(whole),
            whole[4:8],
            self._portid,
            whole[48:58],
            whole[60:184],
            whole[184:188],
            whole[208:216],
            whole[236:252],
            whole[252:],
        )

    def _whole_sp(self, kind: Msg, sp: Sp, seq: int) -> bytes:
        payload = encode_sp(SpMessage(replace(sp, index=0, usage=Usage())))
        flags = _NEW if kind is Msg.NEWPOLICY else _REPLACE
        return encode_message(kind, payload, flags=flags, seq=seq, portid=self._portid)


def _marks(mark: Mark | None, output_mark: Mark | None) -> bytes:
    """XFRMA_MARK, XFRMA_SET_MARK and XFRMA_SET_MARK_MASK, those that are asked for."""
    packed = b""
    if mark is not None:
        value, mask = mark.value, mark.mask
        if value & ~mask or not mask:
            return encode_mark(mark)
        packed = _MARK.pack(_MARK.size, _MARK_TYPE, value, mask)
    if output_mark is not None:
        packed += _OUTPUT_MARK.pack(
            8, _SET_MARK, output_mark.value, 8, _SET_MARK_MASK, output_mark.mask
        )
    return packed
