"""Whole request messages, many of the same shape, fast.

SAs and SPs of one flow differ in addresses, SPI, key, reqid and mark only. The first of a shape is
coded by `encode_sa` or `encode_sp`; its bytes are cut at the places that differ, and each further
one fills them in one `Struct.pack`. Usage and index, which only the kernel sets, go out as zero.
"""

import struct
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from sys import byteorder
from typing import Final, NamedTuple

from tunsec.model.names import Address, Mark, Network
from tunsec.model.sa import Sa, SaDrops, SaId, Usage
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpDirection, SpId
from tunsec.model.step import AddSa, AddSp, RemoveSa, Step, UpdateSp
from tunsec.wire.netlink import Flag, Malformed, encode_message
from tunsec.wire.xfrm.consts import Attr, Msg
from tunsec.wire.xfrm.requests import encode_sa_id, encode_sp_id
from tunsec.wire.xfrm.sa import SaMessage, encode_sa
from tunsec.wire.xfrm.sp import SpMessage, encode_sp
from tunsec.wire.xfrm.structs import MARK, encode_mark

_NEWPOLICY: Final = Msg.NEWPOLICY.value
_UPDPOLICY: Final = Msg.UPDPOLICY.value
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


_Key = tuple[object, ...]
"""What messages of one shape have in common."""


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


class _SaIdShape(NamedTuple):
    """A DELSA cut at sequence, dst, SPI and mark."""

    pack: struct.Struct
    head: bytes
    portid: bytes
    tail: bytes


class _SpShape(NamedTuple):
    """A NEWPOLICY or UPDPOLICY with one template, no flags, interface or offload,
    cut at sequence, dst, src, prefixes, template and mark."""

    pack: struct.Struct
    head: bytes
    portid: bytes
    ports: bytes
    policy: bytes
    template_proto: bytes
    template_tail: bytes


class _SpIdShape(NamedTuple):
    """A DELPOLICY cut at sequence, dst, src, prefixes and mark."""

    pack: struct.Struct
    head: bytes
    portid: bytes
    ports: bytes
    tail: bytes


class Packer:
    """Packs requests; `portid` goes into every header and comes back in notifications."""

    # The shape used last stands apart: comparing keys is quicker than hashing them, since most
    # parts of two keys of one shape are the same objects. In and out SPs often come in turn.
    __slots__ = (
        "_last_sa", "_last_sp", "_last_sp_id", "_portid",
        "_sa_id_shapes", "_sa_shapes", "_sp_id_shapes", "_sp_shapes",
    )  # fmt: skip

    def __init__(self, *, portid: int = 0) -> None:
        self._portid = portid
        self._sa_shapes: dict[_Key, _SaShape] = {}
        self._sa_id_shapes: dict[_Key, _SaIdShape] = {}
        self._sp_shapes: dict[_Key, _SpShape] = {}
        self._sp_id_shapes: dict[_Key, _SpIdShape] = {}
        self._last_sa: tuple[_Key, _SaShape | None] = ((), None)
        self._last_sp: dict[SpDirection, tuple[_Key, _SpShape | None]] = dict.fromkeys(
            SpDirection, ((), None)
        )
        self._last_sp_id: dict[SpDirection, tuple[_Key, _SpIdShape | None]] = dict.fromkeys(
            SpDirection, ((), None)
        )

    def pack(self, step: Step, seq: int) -> bytes:
        """The request that carries out a step; raises Malformed."""
        if isinstance(step, AddSa):
            return self.add_sa(step.sa, seq)
        if isinstance(step, AddSp):
            return self._sp(_NEWPOLICY, step.sp, seq)
        if isinstance(step, UpdateSp):
            return self._sp(_UPDPOLICY, step.sp, seq)
        if isinstance(step, RemoveSa):
            return self.remove_sa(step.id, seq)
        return self.remove_sp(step.sp.id, seq)

    def add_sa(self, sa: Sa, seq: int) -> bytes:
        """NEWSA for an SA with AEAD and key; raises Malformed."""
        sa_id, secret = sa.id, sa.key
        dst, src = sa_id.dst, sa.src
        key = (
            dst.__class__, src.__class__, sa_id.proto, sa.aead, sa.mode, sa.selector, sa.lifetimes,
            sa.replay, sa.flags, sa.if_id, sa.offload, sa.direction, sa.cpu,
        )  # fmt: skip
        last, shape = self._last_sa
        if shape is None or key != last:
            found = self._sa_shapes.get(key)
            shape = self._sa_shapes[key] = found or self._sa_shape(sa)
            self._last_sa = key, shape
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
        """DELSA; raises Malformed."""
        dst, mark = sa_id.dst, sa_id.mark
        key = (dst.__class__, sa_id.proto, mark is None)
        shape = self._sa_id_shapes.get(key)
        if shape is None:
            shape = self._sa_id_shapes[key] = self._sa_id_shape(sa_id)
        return shape.pack.pack(
            shape.head,
            seq.to_bytes(4, byteorder),
            shape.portid,
            dst.packed if dst.__class__ is IPv6Address else int(dst),
            sa_id.spi,
            shape.tail,
            b"" if mark is None else _mark_bytes(mark),
        )

    def add_sp(self, sp: Sp, seq: int) -> bytes:
        """NEWPOLICY, which the kernel refuses when the SP is there; raises Malformed."""
        return self._sp(_NEWPOLICY, sp, seq)

    def update_sp(self, sp: Sp, seq: int) -> bytes:
        """UPDPOLICY, which takes the place of the SP that is there; raises Malformed."""
        return self._sp(_UPDPOLICY, sp, seq)

    def remove_sp(self, sp_id: SpId, seq: int) -> bytes:
        """DELPOLICY; raises Malformed."""
        selector, mark = sp_id.selector, sp_id.mark
        src, dst, sport, dport = selector.src, selector.dst, selector.sport, selector.dport
        direction = sp_id.direction
        key = (
            src.__class__, dst.__class__, sport.port, sport.mask, dport.port, dport.mask,
            selector.proto, selector.ifindex, selector.user, direction, sp_id.if_id, mark is None,
        )  # fmt: skip
        last, shape = self._last_sp_id[direction]
        if shape is None or key != last:
            found = self._sp_id_shapes.get(key)
            shape = self._sp_id_shapes[key] = found or self._sp_id_shape(sp_id)
            self._last_sp_id[direction] = key, shape
        wide = src.__class__ is IPv6Network
        return shape.pack.pack(
            shape.head,
            seq.to_bytes(4, byteorder),
            shape.portid,
            dst.network_address.packed if wide else int(dst.network_address),
            src.network_address.packed if wide else int(src.network_address),
            shape.ports,
            dst.prefixlen,
            src.prefixlen,
            shape.tail,
            b"" if mark is None else _mark_bytes(mark),
        )

    def _sa_id_shape(self, sa_id: SaId) -> _SaIdShape:
        payload = encode_sa_id(replace(sa_id, mark=None))
        whole = encode_message(Msg.DELSA, payload, flags=_DELETE, seq=0, portid=self._portid)
        head, tail, mark_bytes = _with_mark(whole, sa_id.mark, after=36)
        address = _address_code(sa_id.dst)
        return _SaIdShape(
            struct.Struct(f">8s4s4s{address}I{len(tail)}s{mark_bytes}s"), head, whole[12:16], tail
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

    def _sp(self, kind: int, sp: Sp, seq: int) -> bytes:
        sp_id = sp.id
        selector, mark = sp_id.selector, sp_id.mark
        if (
            len(sp.templates) != 1 or sp.flags or sp.offload is not None
            or selector.ifindex or selector.user or sp_id.if_id is not None
        ):  # fmt: skip
            return self._whole_sp(kind, sp, seq)
        template = sp.templates[0]
        src, dst, sport, dport = selector.src, selector.dst, selector.sport, selector.dport
        sender, receiver = template.src, template.dst
        direction = sp_id.direction
        key = (
            kind, src.__class__, dst.__class__, sport.port, sport.mask, dport.port, dport.mask,
            selector.proto, direction, mark is None, sp.priority, sp.action, sp.lifetimes,
            sender.__class__, receiver.__class__,
            template.proto, template.mode, template.optional,
        )  # fmt: skip
        last, shape = self._last_sp[direction]
        if shape is None or key != last:
            found = self._sp_shapes.get(key)
            shape = self._sp_shapes[key] = found or self._sp_shape(kind, sp)
            self._last_sp[direction] = key, shape
        wide, wide_template = src.__class__ is IPv6Network, sender.__class__ is IPv6Address
        return shape.pack.pack(
            shape.head,
            seq.to_bytes(4, byteorder),
            shape.portid,
            dst.network_address.packed if wide else int(dst.network_address),
            src.network_address.packed if wide else int(src.network_address),
            shape.ports,
            dst.prefixlen,
            src.prefixlen,
            shape.policy,
            receiver.packed if wide_template else int(receiver),
            template.spi or 0,
            shape.template_proto,
            sender.packed if wide_template else int(sender),
            template.reqid.to_bytes(4, byteorder),
            shape.template_tail,
            b"" if mark is None else _mark_bytes(mark),
        )

    def _sp_shape(self, kind: int, sp: Sp) -> _SpShape:
        whole = self._whole_sp(kind, replace(sp, id=replace(sp.id, mark=None)), 0)
        head, tail, mark_bytes = _with_mark(whole, sp.id.mark, after=236)
        address = _address_code(sp.id.selector.src)
        template_address = _address_code(sp.templates[0].src)
        return _SpShape(
            # Big-endian for addresses and SPI, which go out so; host order numbers come as bytes.
            struct.Struct(
                f">8s4s4s{address}{address}10sBB128s{template_address}I8s{template_address}4s"
                f"{len(tail)}s{mark_bytes}s"
            ),
            head,
            whole[12:16],
            whole[48:58],
            whole[60:188],
            whole[208:216],
            tail,
        )

    def _sp_id_shape(self, sp_id: SpId) -> _SpIdShape:
        payload = encode_sp_id(replace(sp_id, mark=None))
        whole = encode_message(Msg.DELPOLICY, payload, flags=_DELETE, seq=0, portid=self._portid)
        head, tail, mark_bytes = _with_mark(whole, sp_id.mark, after=60)
        address = _address_code(sp_id.selector.src)
        return _SpIdShape(
            struct.Struct(f">8s4s4s{address}{address}10sBB{len(tail)}s{mark_bytes}s"),
            head,
            whole[12:16],
            whole[48:58],
            tail,
        )

    def _whole_sp(self, kind: int, sp: Sp, seq: int) -> bytes:
        payload = encode_sp(SpMessage(replace(sp, index=0, usage=Usage())))
        flags = _NEW if kind == _NEWPOLICY else _REPLACE
        return encode_message(kind, payload, flags=flags, seq=seq, portid=self._portid)


def _address_code(address: Address | Network) -> str:
    """How `Struct` packs an xfrm_address_t: an IPv4 address as a number, which is quicker."""
    return "16s" if address.version == 6 else "I12x"


def _with_mark(whole: bytes, mark: Mark | None, *, after: int) -> tuple[bytes, bytes, int]:
    """(length, type and flags; what follows `after`; bytes of mark to come) of a message that
    gets XFRMA_MARK at its end if there is a mark."""
    if mark is None:
        return whole[:8], whole[after:], 0
    attribute = encode_mark(mark)
    length = struct.pack("=I", len(whole) + len(attribute))
    return length + whole[4:8], whole[after:] + attribute[:4], len(attribute) - 4


def _mark_bytes(mark: Mark) -> bytes:
    """struct xfrm_mark; raises Malformed for a mark that could match no packet."""
    if mark.value & ~mark.mask or not mark.mask:
        encode_mark(mark)
    return MARK.pack(mark.value, mark.mask)


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
