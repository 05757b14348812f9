"""Moving SAs and SPs to other addresses: XFRM_MSG_MIGRATE and XFRM_MSG_MIGRATE_STATE.

tunsec never migrates; another program may, and then our picture of the kernel is stale.
"""

import struct
from dataclasses import dataclass, field
from typing import Final

from tunsec.model.names import Address, Mark, Proto, Reqid
from tunsec.model.sa import IpsecMode, SaId
from tunsec.model.sp import SpId
from tunsec.wire.netlink import (
    Buffer,
    Malformed,
    RawAttribute,
    attribute_type,
    attributes,
    encode_attribute,
)
from tunsec.wire.xfrm.consts import Attr
from tunsec.wire.xfrm.requests import SA_ID, SP_ID_SIZE, decode_sp_id, encode_sp_id, read_sa_id
from tunsec.wire.xfrm.sa import unknown_attributes
from tunsec.wire.xfrm.structs import (
    MODE_NUMBER,
    PROTO_NUMBER,
    SELECTOR_SIZE,
    Encap,
    Reader,
    decode_encap,
    encode_encap,
    family_of,
    mode_of,
    need,
    proto_of,
)

_MOVE: Final = struct.Struct("=16s16s16s16sBB2xIHH")
"""struct xfrm_user_migrate."""
_KM_ADDRESS: Final = struct.Struct("=16s16s4xH2x")
_STATE: Final = struct.Struct("=16s16sII")
"""struct xfrm_user_migrate_state between its id and its selector."""
_STATE_TAIL: Final = struct.Struct("=IIHH")
_STATE_SIZE: Final = SA_ID.size + _STATE.size + SELECTOR_SIZE + _STATE_TAIL.size
_KNOWN: Final = frozenset(
    {Attr.MIGRATE.value, Attr.KMADDRESS.value, Attr.ENCAP.value, Attr.MARK.value, Attr.IF_ID.value}
)


@dataclass(frozen=True, slots=True)
class Move:
    """One pair of addresses that becomes another (struct xfrm_user_migrate)."""

    old_src: Address
    old_dst: Address
    new_src: Address
    new_dst: Address
    proto: Proto
    mode: IpsecMode
    reqid: Reqid


@dataclass(frozen=True, slots=True)
class Migration:
    """XFRM_MSG_MIGRATE: an SP, and how its templates and their SAs move.

    `keying` are the addresses (local, remote) at which the key exchangers talk.
    """

    sp: SpId
    moves: tuple[Move, ...]
    keying: tuple[Address, Address] | None = None
    encap: Encap | None = None
    rest: tuple[RawAttribute, ...] = field(default=())
    """Attributes that this codec does not know, as they came."""


@dataclass(frozen=True, slots=True)
class SaMigration:
    """XFRM_MSG_MIGRATE_STATE (Linux 7.3): one SA leaves `old` and goes on at `dst` from `src`."""

    old: SaId
    src: Address
    dst: Address
    reqid: Reqid


def encode_migration(migration: Migration) -> bytes:
    """Payload of MIGRATE; raises Malformed."""
    parts = [encode_sp_id(migration.sp)]
    if migration.keying is not None:
        local, remote = migration.keying
        body = _KM_ADDRESS.pack(local.packed, remote.packed, family_of(local))
        parts.append(encode_attribute(Attr.KMADDRESS, body))
    parts.append(encode_encap(migration.encap))
    body = b"".join(_encode_move(move) for move in migration.moves)
    parts.append(encode_attribute(Attr.MIGRATE, body))
    parts += [encode_attribute(raw.kind, raw.payload) for raw in migration.rest]
    return b"".join(parts)


def _encode_move(move: Move) -> bytes:
    old, new = {move.old_src.version, move.old_dst.version}, {move.new_src.version}
    if len(old) != 1 or new != {move.new_dst.version}:
        raise Malformed(f"migration of {move.old_src} to {move.new_src} mixes IP versions")
    return _MOVE.pack(
        move.old_dst.packed,
        move.old_src.packed,
        move.new_dst.packed,
        move.new_src.packed,
        PROTO_NUMBER[move.proto],
        MODE_NUMBER[move.mode],
        move.reqid,
        family_of(move.old_dst),
        family_of(move.new_dst),
    )


def decode_migration(buffer: Buffer, start: int, end: int, *, reader: Reader) -> Migration:
    """Payload of MIGRATE; a request has one XFRMA_MIGRATE, a notification one per move."""
    sp_id, _index = decode_sp_id(buffer, start, end, reader=reader)
    if sp_id is None:
        raise Malformed("the selector of a migration has no address family")
    moves: list[Move] = []
    keying: tuple[Address, Address] | None = None
    encap: Encap | None = None
    for kind, first, last in attributes(buffer, start + SP_ID_SIZE, end):
        match attribute_type(kind):
            case Attr.MIGRATE:
                moves += _decode_moves(buffer, first, last, reader=reader)
            case Attr.KMADDRESS:
                need(first, last, _KM_ADDRESS.size, "XFRMA_KMADDRESS")
                local, remote, family = _KM_ADDRESS.unpack_from(buffer, first)
                keying = (reader.address(local, family), reader.address(remote, family))
            case Attr.ENCAP:
                encap = decode_encap(buffer, first, last)
    rest = unknown_attributes(buffer, start + SP_ID_SIZE, end, known=_KNOWN)
    return Migration(sp_id, tuple(moves), keying, encap, rest)


def _decode_moves(buffer: Buffer, start: int, end: int, *, reader: Reader) -> list[Move]:
    count, over = divmod(end - start, _MOVE.size)
    if over or not count:
        raise Malformed(f"XFRMA_MIGRATE of {end - start} bytes is no whole number of moves")
    moves: list[Move] = []
    for old_dst, old_src, new_dst, new_src, proto, mode, reqid, old, new in _MOVE.iter_unpack(
        buffer[start:end]
    ):
        moves.append(
            Move(
                reader.address(old_src, old),
                reader.address(old_dst, old),
                reader.address(new_src, new),
                reader.address(new_dst, new),
                proto_of(proto),
                mode_of(mode),
                Reqid(reqid),
            )
        )
    return moves


def decode_sa_migration(buffer: Buffer, start: int, end: int, *, reader: Reader) -> SaMigration:
    """Payload of MIGRATE_STATE; raises Malformed."""
    need(start, end, _STATE_SIZE, "xfrm_user_migrate_state")
    old = read_sa_id(buffer, start, {}, reader)
    dst, src, value, mask = _STATE.unpack_from(buffer, start + SA_ID.size)
    reqid, _flags, family, _reserved = _STATE_TAIL.unpack_from(
        buffer, start + _STATE_SIZE - _STATE_TAIL.size
    )
    mark = Mark(value, mask) if value or mask else None
    return SaMigration(
        SaId(old.dst, old.spi, old.proto, mark),
        reader.address(src, family),
        reader.address(dst, family),
        Reqid(reqid),
    )
