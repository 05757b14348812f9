"""Notifications of the kernel -> model events.

The kernel repeats a request's `nlmsg_pid` and `nlmsg_seq` in what it notifies of it (km_event in
net/xfrm/xfrm_user.c), so a program that writes a number of its own there knows its changes again.
"""

from typing import Final

from tunsec.model.event import (
    Acquired,
    HardExpired,
    KernelEvent,
    SaAdded,
    SadFlushed,
    SaRemoved,
    SoftExpired,
    SpChanged,
    SpdFlushed,
)
from tunsec.model.names import Reqid
from tunsec.model.sa import SaId
from tunsec.model.sp import SpId
from tunsec.wire.netlink import Buffer, Malformed, Message
from tunsec.wire.xfrm.consts import POLICY_DIRECTIONS, Attr, Group, Msg
from tunsec.wire.xfrm.migrate import decode_migration, decode_sa_migration
from tunsec.wire.xfrm.notices import decode_acquire, decode_expire, decode_sp_expire
from tunsec.wire.xfrm.requests import SA_ID, SP_ID_SIZE, decode_sp_flush, read_sa_id
from tunsec.wire.xfrm.sa import build_sa, decode_sa, find_attributes
from tunsec.wire.xfrm.sp import build_sp, decode_sp
from tunsec.wire.xfrm.structs import Reader, need

GROUPS: Final = (Group.ACQUIRE, Group.EXPIRE, Group.SA, Group.POLICY, Group.MIGRATE)
"""What `decode_event` understands. AEVENTS would tell every few packets how far replay counters
have come, and MAPPING and REPORT concern NAT and Mobile IPv6: nothing to act on."""


def decode_event(buffer: Buffer, message: Message, reader: Reader) -> tuple[KernelEvent, ...]:
    """What one notification tells; nothing for those that tunsec has no use for.

    Raises Malformed. An EXPIRE of a larval SA (SPI 0) is a HardExpired like any other.
    """
    start, end = message.start, message.end
    match message.kind:
        case Msg.NEWSA | Msg.UPDSA:
            sa = decode_sa(buffer, start, end, reader)
            return (SaAdded(sa.id, sa.reqid),)
        case Msg.DELSA:
            return (_sa_removed(buffer, start, end, reader),)
        case Msg.FLUSHSA:
            return (SadFlushed(),)
        case Msg.EXPIRE:
            expire = decode_expire(buffer, start, end, reader=reader)
            what = HardExpired if expire.hard else SoftExpired
            return (what(expire.sa.id, expire.sa.reqid),)
        case Msg.ACQUIRE:
            acquire = decode_acquire(buffer, start, end, reader=reader)
            selector = acquire.selector or acquire.sp.id.selector
            return (Acquired(selector, acquire.src, acquire.id.dst, acquire.reqid),)
        case _:
            return _sp_event(buffer, message, reader)


def _sp_event(buffer: Buffer, message: Message, reader: Reader) -> tuple[KernelEvent, ...]:
    start, end = message.start, message.end
    match message.kind:
        case Msg.NEWPOLICY | Msg.UPDPOLICY:
            sp = decode_sp(buffer, start, end, reader)
            return () if sp is None else (SpChanged(sp.id, removed=False),)
        case Msg.DELPOLICY:
            removed = _sp_removed(buffer, start, end, reader)
            return () if removed is None else (SpChanged(removed, removed=True),)
        case Msg.FLUSHPOLICY:
            return () if decode_sp_flush(buffer, start, end) else (SpdFlushed(),)
        case Msg.POLEXPIRE:
            expire = decode_sp_expire(buffer, start, end, reader=reader)
            if not expire.hard or expire.message.per_socket or expire.message.type:
                return ()
            return (SpChanged(expire.message.sp.id, removed=True),)
        case Msg.MIGRATE:
            migration = decode_migration(buffer, start, end, reader=reader)
            return (SpChanged(migration.sp, removed=False),)
        case Msg.MIGRATE_STATE:
            moved = decode_sa_migration(buffer, start, end, reader=reader)
            new = SaId(moved.dst, moved.old.spi, moved.old.proto, moved.old.mark)
            return (SaRemoved(moved.old, moved.reqid), SaAdded(new, moved.reqid))
        case _:
            return ()


def _sa_removed(buffer: Buffer, start: int, end: int, reader: Reader) -> SaRemoved:
    """A DELSA notification: the id, and the whole SA as an attribute (xfrm_notify_sa)."""
    need(start, end, SA_ID.size, "xfrm_usersa_id")
    found = find_attributes(buffer, start + SA_ID.size, end)
    whole = found.get(Attr.SA)
    if whole is None:
        return SaRemoved(read_sa_id(buffer, start, found, reader), Reqid(0))
    sa = build_sa(buffer, *whole, found=found, reader=reader)
    return SaRemoved(sa.id, sa.reqid)


def _sp_removed(buffer: Buffer, start: int, end: int, reader: Reader) -> SpId | None:
    """A DELPOLICY notification: the SP as an attribute, as its id may be an index alone."""
    need(start, end, SP_ID_SIZE, "xfrm_userpolicy_id")
    found = find_attributes(buffer, start + SP_ID_SIZE, end)
    whole = found.get(Attr.POLICY)
    if whole is None:
        raise Malformed("a DELPOLICY notification does not tell the SP")
    kind = found.get(Attr.POLICY_TYPE)
    sp = build_sp(buffer, *whole, found=found, reader=reader)
    per_socket = buffer[whole[0] + 160] >= POLICY_DIRECTIONS
    sub = kind is not None and kind[0] < kind[1] and buffer[kind[0]]
    return None if per_socket or sub else sp.id
