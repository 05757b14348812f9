"""The codec against bytes that `ip xfrm` sent and a kernel answered."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest

from tests.unit.wire.golden_bytes import golden, golden_names, parts
from tunsec.model.aead import Aead
from tunsec.model.event import (
    Acquired,
    HardExpired,
    SaAdded,
    SadFlushed,
    SaRemoved,
    SoftExpired,
    SpChanged,
    SpdFlushed,
)
from tunsec.model.names import IfId, Mark, Proto, Reqid, Spi
from tunsec.model.sa import (
    IpsecMode,
    Lifetimes,
    Offload,
    OffloadKind,
    Replay,
    Sa,
    SaDirection,
    SaId,
)
from tunsec.model.secret import Secret
from tunsec.model.selector import TCP, UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.wire.netlink import Malformed, RawAttribute, messages
from tunsec.wire.xfrm.aevents import decode_progress, encode_progress
from tunsec.wire.xfrm.algorithms import AlgorithmKind
from tunsec.wire.xfrm.consts import AeFlag, Msg
from tunsec.wire.xfrm.events import decode_event
from tunsec.wire.xfrm.migrate import decode_migration, encode_migration
from tunsec.wire.xfrm.notices import (
    decode_acquire,
    decode_expire,
    decode_sp_expire,
    encode_acquire,
    encode_expire,
    encode_sp_expire,
)
from tunsec.wire.xfrm.replay import ReplayForm
from tunsec.wire.xfrm.requests import (
    SadCounts,
    SpdCounts,
    decode_sa_flush,
    decode_sa_id,
    decode_sad_counts,
    decode_sp_flush,
    decode_sp_id,
    decode_spd_counts,
    decode_spi_request,
    encode_counts_request,
    encode_sa_id,
    encode_sp_id,
    encode_spi_request,
)
from tunsec.wire.xfrm.sa import SaMessage, decode_sa, decode_sa_message, encode_sa
from tunsec.wire.xfrm.sp import SpMessage, decode_sp, decode_sp_message, encode_sp
from tunsec.wire.xfrm.structs import Encap, Reader

A, B = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
GCM_KEY = bytes.fromhex("00112233445566778899aabbccddeeffa0a1a2a3")


def read_sa(name: str, *, keep_keys: bool = True) -> SaMessage:
    _, raw, message = golden(name)
    return decode_sa_message(raw, message.start, message.end, reader=Reader(), keep_keys=keep_keys)


def read_sp(name: str) -> SpMessage:
    _, raw, message = golden(name)
    return decode_sp_message(raw, message.start, message.end, reader=Reader())


def without_family(payload: bytes) -> bytes:
    """`ip` leaves the family of an empty SA selector at 0, and the kernel takes the SA's."""
    return payload[:40] + bytes(2) + payload[42:]


@pytest.mark.parametrize(
    "name",
    [name for name in golden_names("sa_") if golden(name).message.kind in (Msg.NEWSA, Msg.UPDSA)],
)
def test_an_sa_of_ip_is_coded_to_the_same_bytes(name: str) -> None:
    _, raw, message = golden(name)
    again = encode_sa(read_sa(name))
    sent = raw[message.start : message.end]
    assert parts(without_family(again), 224) == parts(without_family(sent), 224)


@pytest.mark.parametrize(
    "name", ["sp_out_v4", "sp_in_v6_marked", "sp_block", "sp_two_templates", "sp_update"]
)
def test_an_sp_of_ip_is_coded_to_the_same_bytes(name: str) -> None:
    _, raw, message = golden(name)
    again = encode_sp(read_sp(name))
    assert parts(again, 168) == parts(raw[message.start : message.end], 168)


def test_gcm_with_a_wide_esn_window() -> None:
    message = read_sa("sa_gcm_v4")
    assert message.sa == Sa(
        SaId(B, Spi(0x12345678)),
        A,
        Reqid(1409286145),
        Aead.AES_128_GCM,
        replay=Replay(window=1024, esn=True),
    )
    assert message.sa.key is not None
    assert message.sa.key.reveal() == GCM_KEY
    assert message.replay is not None
    assert message.replay.form is ReplayForm.ESN


def test_the_same_sa_from_the_model_alone() -> None:
    _, raw, message = golden("sa_gcm_v4")
    sa = Sa(
        SaId(B, Spi(0x12345678)),
        A,
        Reqid(1409286145),
        Aead.AES_128_GCM,
        Secret(GCM_KEY),
        replay=Replay(window=1024, esn=True),
    )
    made = without_family(encode_sa(SaMessage(sa)))
    assert parts(made, 224) == parts(raw[message.start : message.end], 224)


def test_chacha_with_marks_and_interface() -> None:
    assert read_sa("sa_chacha_v6").sa == Sa(
        SaId(B6, Spi(0xCAFE0001), mark=Mark(0x41, 0xFF)),
        A6,
        Reqid(7),
        Aead.CHACHA20_POLY1305,
        replay=Replay(window=2048, esn=True),
        output_mark=Mark(0x29, 0xFFFF),
        if_id=IfId(0x99),
    )


def test_every_limit_is_in_its_place() -> None:
    assert read_sa("sa_limits").sa.lifetimes == Lifetimes(1000, 2000, 30, 40, 50, 60, 70, 80)


def test_directions() -> None:
    assert read_sa("sa_dir_in").sa.direction is SaDirection.INBOUND
    outbound = read_sa("sa_dir_out").sa
    assert outbound.direction is SaDirection.OUTBOUND
    assert outbound.replay == Replay(window=0, esn=True)


def test_another_programs_algorithms_survive() -> None:
    message = read_sa("sa_cbc_tunnel_natt")
    assert message.sa.aead is None
    assert [(one.kind, one.name, one.icv_bits) for one in message.algorithms] == [
        (AlgorithmKind.CRYPT, "cbc(aes)", None),
        (AlgorithmKind.AUTH_TRUNC, "hmac(sha256)", 128),
    ]
    assert message.encap == Encap(2, 4500, 4501, ip_address("192.0.2.9").packed + bytes(12))
    assert message.sa.mode is IpsecMode.TUNNEL
    assert message.sa.replay == Replay(window=32)
    assert not message.sa.larval


def test_an_icv_of_another_length_is_not_our_aead() -> None:
    assert read_sa("sa_tfc").sa.aead is None
    assert read_sa("sa_tfc").tfc_padding == 1200


def test_replay_numbers_of_64_and_32_bits() -> None:
    assert read_sa("sa_replay_numbers").sa.replay == Replay(128, True, 2 << 32 | 6, 1 << 32 | 5)
    assert read_sa("sa_legacy_numbers").sa.replay == Replay(16, False, 6, 5)


def test_offload_and_mobile_ipv6() -> None:
    assert read_sa("sa_offload").sa.offload == Offload(OffloadKind.PACKET, 1, inbound=True)
    home = read_sa("sa_care_of")
    assert (home.sa.id.proto, home.care_of) == (Proto.HAO, IPv6Address("2001:db8::c0a"))


def test_keys_are_dropped_unless_asked_for() -> None:
    message = read_sa("sa_gcm_v4", keep_keys=False)
    assert message.sa.key is None
    assert [one.key for one in message.algorithms] == [None]
    with pytest.raises(Malformed, match="dropped at decoding"):
        encode_sa(message)


def test_unknown_attributes_survive() -> None:
    unknown = RawAttribute(0x3F0, b"from a later kernel")
    nested = RawAttribute(0x8000 | 0x3F1, b"\x08\0\1\0abcd")
    whole = replace(read_sa("sa_gcm_v4"), rest=(unknown, nested))
    payload = encode_sa(whole)
    again = decode_sa_message(payload, 0, len(payload), reader=Reader(), keep_keys=True)
    assert again.rest == (unknown, nested)
    assert parts(encode_sa(again), 224) == parts(payload, 224)
    sp = replace(read_sp("sp_out_v4"), rest=(unknown,))
    payload = encode_sp(sp)
    assert decode_sp_message(payload, 0, len(payload), reader=Reader()) == sp


@pytest.mark.parametrize(
    ("name", "src"), [("sa_delete", A), ("sa_delete_marked", A6), ("sa_get", A)]
)
def test_names_of_sas(name: str, src: IPv4Address | IPv6Address) -> None:
    _, raw, message = golden(name)
    sa_id = decode_sa_id(raw, message.start, message.end, reader=Reader())
    sent = parts(raw[message.start : message.end], 24)
    assert parts(encode_sa_id(sa_id, src=src), 24) == sent
    if name == "sa_delete_marked":
        assert sa_id == SaId(B6, Spi(0xCAFE0001), mark=Mark(0x41, 0xFF))
    else:
        assert sa_id == SaId(B, Spi(0x12345678))


def test_names_of_sps() -> None:
    for name in ("sp_delete", "sp_delete_marked"):
        _, raw, message = golden(name)
        sp_id, index = decode_sp_id(raw, message.start, message.end, reader=Reader())
        assert sp_id is not None
        assert index == 0
        sent = parts(raw[message.start : message.end], 64)
        assert parts(encode_sp_id(sp_id), 64) == sent
    _, raw, message = golden("sp_get_index")
    assert decode_sp_id(raw, message.start, message.end, reader=Reader())[1] == 9


def test_a_request_for_an_spi() -> None:
    _, raw, message = golden("sa_allocspi")
    request = decode_spi_request(raw, message.start, message.end, reader=Reader())
    assert (request.lowest, request.highest) == (0x1000, 0x1FFF)
    assert (request.message.sa.id.dst, request.message.sa.reqid) == (B, 5)
    again = without_family(encode_spi_request(request))
    assert parts(again, 232) == parts(raw[message.start : message.end], 232)


def test_flushes_and_counts() -> None:
    _, raw, message = golden("sa_flush")
    assert decode_sa_flush(raw, message.start, message.end) is Proto.ESP
    _, raw, message = golden("sp_flush")
    assert decode_sp_flush(raw, message.start, message.end) == 0
    for name in ("sa_count", "sp_count"):
        _, raw, message = golden(name)
        assert len(raw[message.start : message.end]) == len(encode_counts_request())
    _, raw, message = golden("kernel_sadinfo")
    assert decode_sad_counts(raw, message.start, message.end) == SadCounts(4, 8, 1048576)
    _, raw, message = golden("kernel_spdinfo")
    assert decode_spd_counts(raw, message.start, message.end) == SpdCounts(
        1, 1, 0, 0, 0, 0, 7, 1048576
    )


def test_sps() -> None:
    assert read_sp("sp_out_v4").sp == Sp(
        SpId(Selector(ip_network(A), ip_network(B), UDP, dport=PortMatch(4789)), SpDirection.OUT),
        5453,
        SpAction.ALLOW,
        (Template(A, B, Reqid(1409286145), Spi(0x12345678)),),
    )
    assert read_sp("sp_in_v6_marked").sp == Sp(
        SpId(
            Selector(IPv6Network(B6), IPv6Network(A6), TCP, sport=PortMatch(16385)),
            SpDirection.IN,
            Mark(0x41, 0xFF),
            IfId(7),
        ),
        5454,
        SpAction.ALLOW,
        (Template(B6, A6, Reqid(8)),),
    )
    block = read_sp("sp_block").sp
    assert (block.action, block.templates) == (SpAction.BLOCK, ())
    both = read_sp("sp_two_templates").sp
    assert [(one.proto, one.mode, one.optional) for one in both.templates] == [
        (Proto.COMP, IpsecMode.TUNNEL, True),
        (Proto.ESP, IpsecMode.TRANSPORT, False),
    ]
    assert both.lifetimes == Lifetimes(hard_packets=99, soft_seconds=5)


def test_a_dump_of_sas() -> None:
    _, raw, _ = golden("kernel_dump_sas")
    reader = Reader()
    found = {}
    for message in messages(raw):
        if message.kind == Msg.NEWSA:
            sa = decode_sa(raw, message.start, message.end, reader)
            found[sa.id] = sa
            whole = decode_sa_message(
                raw, message.start, message.end, reader=reader, keep_keys=True
            )
            assert whole.sa == sa
            assert not whole.rest
            again = encode_sa(whole)
            assert (
                decode_sa_message(again, 0, len(again), reader=reader, keep_keys=True).replay
                == whole.replay
            )
    gcm = found[SaId(B, Spi(0x12345678))]
    assert (gcm.aead, gcm.replay) == (Aead.AES_128_GCM, Replay(1024, esn=True))
    assert gcm.usage.added_at > 0
    cbc = found[SaId(B, Spi(0x200), mark=Mark(5, 0xF))]
    assert (cbc.aead, cbc.output_mark, cbc.if_id) == (None, Mark(9, 0xF), 3)
    declared = found[SaId(B6, Spi(0x300))]
    assert declared.direction is SaDirection.OUTBOUND
    larval = found[SaId(IPv4Address("192.0.2.7"), Spi(0x1000))]
    assert [sa.id for sa in found.values() if sa.larval] == [larval.id]
    assert all(sa.key is None for sa in found.values())


def test_a_dump_of_sps() -> None:
    _, raw, _ = golden("kernel_dump_sps")
    found = [
        decode_sp(raw, message.start, message.end, Reader())
        for message in messages(raw)
        if message.kind == Msg.NEWPOLICY
    ]
    assert len(found) == 2
    marked = read_sp("kernel_newpolicy_marked").sp
    assert marked in found
    assert marked.id.mark == Mark(0x41, 0xFF)
    assert marked.index > 0


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("kernel_newsa", [SaAdded(SaId(B, Spi(0x12345678)), Reqid(1409286145))]),
        ("kernel_updsa", [SaAdded(SaId(B, Spi(0x12345678)), Reqid(1409286145))]),
        ("kernel_delsa", [SaRemoved(SaId(B, Spi(0x200), mark=Mark(5, 0xF)), Reqid(2))]),
        ("kernel_expire_soft", [SoftExpired(SaId(B, Spi(0x400), mark=Mark(6, 0xFF)), Reqid(4))]),
        ("kernel_expire_hard", [HardExpired(SaId(B, Spi(0x400), mark=Mark(6, 0xFF)), Reqid(4))]),
        ("kernel_flushsa", [SadFlushed()]),
        ("kernel_flushpolicy", [SpdFlushed()]),
        ("kernel_newae", []),
        ("kernel_sadinfo", []),
    ],
)
def test_notifications_of_sas(name: str, events: list[object]) -> None:
    _, raw, message = golden(name)
    assert list(decode_event(raw, message, Reader())) == events


def test_notifications_of_sps() -> None:
    out = read_sp("kernel_newpolicy").sp.id
    marked = read_sp("kernel_newpolicy_marked").sp.id
    host = Selector(ip_network(A), ip_network(B))
    move = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
    for name, sp_id, removed in (
        ("kernel_newpolicy", out, False),
        ("kernel_updpolicy", out, False),
        ("kernel_delpolicy", marked, True),
        ("kernel_polexpire", SpId(host, SpDirection.IN), True),
        ("kernel_migrate", SpId(move, SpDirection.OUT), False),
    ):
        _, raw, message = golden(name)
        assert decode_event(raw, message, Reader()) == (SpChanged(sp_id, removed=removed),)


def test_an_acquire_names_the_packet_and_the_reqid() -> None:
    _, raw, message = golden("kernel_acquire")
    (event,) = decode_event(raw, message, Reader())
    src, dst = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")
    assert isinstance(event, Acquired)
    assert (event.src, event.dst, event.reqid) == (src, dst, 1409286146)
    assert event.selector.dport == PortMatch(4789)
    assert event.selector.proto == UDP
    assert event.selector.dst == ip_network(dst)


def test_notices_are_coded_to_the_same_bytes() -> None:
    reader = Reader()
    _, raw, message = golden("kernel_acquire")
    acquire = decode_acquire(raw, message.start, message.end, reader=reader)
    payload = encode_acquire(acquire)
    assert parts(payload, 280) == parts(raw[message.start : message.end], 280)
    _, raw, message = golden("kernel_expire_hard")
    expire = decode_expire(raw, message.start, message.end, reader=reader)
    assert expire.hard
    payload = encode_expire(expire)
    assert parts(payload, 232) == parts(raw[message.start : message.end], 232)
    _, raw, message = golden("kernel_polexpire")
    gone = decode_sp_expire(raw, message.start, message.end, reader=reader)
    assert gone.hard
    payload = encode_sp_expire(gone)
    assert parts(payload, 176) == parts(raw[message.start : message.end], 176)


def test_progress_of_an_sa_is_coded_to_the_same_bytes() -> None:
    _, raw, message = golden("kernel_newae")
    progress = decode_progress(raw, message.start, message.end, reader=Reader())
    assert progress.id == SaId(B, Spi(0x12345678))
    assert progress.src == A
    assert progress.flags == AeFlag(15)
    assert progress.replay is not None
    assert progress.replay.window == 1024
    assert progress.usage is not None
    assert progress.usage.added_at > 0
    payload = encode_progress(progress)
    assert parts(payload, 48) == parts(raw[message.start : message.end], 48)


def test_a_migration_is_coded_to_the_same_bytes() -> None:
    _, raw, message = golden("kernel_migrate")
    migration = decode_migration(raw, message.start, message.end, reader=Reader())
    (move,) = migration.moves
    assert (move.old_src, move.new_dst) == (A, IPv4Address("192.0.2.4"))
    assert (move.reqid, move.mode) == (77, IpsecMode.TUNNEL)
    assert migration.keying == (IPv4Address("192.0.2.3"), IPv4Address("192.0.2.4"))
    payload = encode_migration(migration)
    assert parts(payload, 64) == parts(raw[message.start : message.end], 64)


def test_no_key_is_in_what_a_dump_prints() -> None:
    _, raw, _ = golden("kernel_dump_sas")
    printed = "".join(
        repr(decode_sa_message(raw, one.start, one.end, reader=Reader(), keep_keys=True))
        for one in messages(raw)
        if one.kind == Msg.NEWSA
    )
    assert GCM_KEY.hex() not in printed
    assert repr(GCM_KEY) not in printed
