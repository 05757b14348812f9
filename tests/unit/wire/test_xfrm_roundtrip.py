"""What is coded comes back, whatever it is; and the bulk way codes the same as the plain one."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.wire import xfrm_strategies as some
from tests.unit.wire.golden_bytes import parts
from tunsec.model.names import Mark, Proto, Reqid
from tunsec.model.sa import Replay, Sa, SaDirection, SaDrops, SaId, Usage
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, UpdateSp
from tunsec.wire.netlink import Malformed, RawAttribute, messages
from tunsec.wire.xfrm.aevents import SaProgress, decode_progress, encode_progress
from tunsec.wire.xfrm.algorithms import Algorithm, AlgorithmKind
from tunsec.wire.xfrm.bulk import Packer
from tunsec.wire.xfrm.consts import AeFlag, Msg
from tunsec.wire.xfrm.migrate import Migration, Move, decode_migration, encode_migration
from tunsec.wire.xfrm.notices import (
    Acquire,
    Expire,
    SpExpire,
    decode_acquire,
    decode_expire,
    decode_sp_expire,
    encode_acquire,
    encode_expire,
    encode_sp_expire,
)
from tunsec.wire.xfrm.replay import ReplayForm, ReplayState
from tunsec.wire.xfrm.requests import (
    SpiRequest,
    decode_sa_id,
    decode_sp_id,
    decode_spi_request,
    encode_sa_id,
    encode_sp_id,
    encode_spi_request,
)
from tunsec.wire.xfrm.sa import SaMessage, decode_sa, decode_sa_message, encode_sa
from tunsec.wire.xfrm.sp import (
    SpMessage,
    TemplateMasks,
    decode_sp,
    decode_sp_message,
    decode_templates,
    encode_sp,
)
from tunsec.wire.xfrm.structs import Encap, Reader

unknown = st.lists(
    st.builds(RawAttribute, st.integers(100, 0x3FFF), st.binary(max_size=30)), max_size=3
).map(tuple)

encaps = st.builds(Encap, some.u16, some.u16, some.u16, st.binary(min_size=16, max_size=16))


@st.composite
def algorithms(draw: st.DrawFn) -> Algorithm:
    """Another program's algorithms, keys of any length in bits."""
    kind = draw(st.sampled_from(AlgorithmKind))
    bits = draw(st.integers(0, 512))
    size = (bits + 7) // 8
    has_icv = kind in (AlgorithmKind.AUTH_TRUNC, AlgorithmKind.AEAD)
    return Algorithm(
        kind,
        draw(st.text("abcdefghijklmnopqrstuvwxyz0123456789(),-", min_size=1, max_size=63)),
        bits,
        draw(some.u32) if has_icv else None,
        Secret(draw(st.binary(min_size=size, max_size=size))),
    )


@st.composite
def replay_states(draw: st.DrawFn) -> ReplayState:
    """Replay states of every form with what they have received."""
    form = draw(st.sampled_from(ReplayForm))
    if form is ReplayForm.LEGACY:
        word = draw(some.u32)
        return ReplayState(form, draw(st.integers(0, 255)), draw(some.u32), draw(some.u32), (word,))
    words = draw(st.lists(some.u32, max_size=128))
    return ReplayState(
        form, draw(st.integers(0, 4096)), draw(some.u64), draw(some.u64), tuple(words)
    )


@st.composite
def foreign_sas(draw: st.DrawFn) -> SaMessage:
    """SAs of other programs, with everything that the model leaves out."""
    state = draw(replay_states())
    sa = draw(some.sas())
    used = {one.kind: one for one in draw(st.lists(algorithms(), max_size=3))}
    optional = st.none() | some.u32
    return SaMessage(
        replace(sa, aead=None, key=None, replay=state.model(), larval=False),
        acquire_seq=draw(some.u32),
        algorithms=tuple(used.values()),
        replay=state,
        encap=draw(st.none() | encaps),
        care_of=draw(st.none() | some.addresses(6)),
        last_used_at=draw(st.none() | some.u64),
        extra_flags=draw(optional),
        tfc_padding=draw(optional),
        mapping_seconds=draw(optional),
        keepalive_seconds=draw(optional),
        replay_threshold=draw(optional),
        timer_threshold=draw(optional),
        security=draw(st.none() | st.binary(min_size=8, max_size=40)),
        rest=draw(unknown),
    )


def known(message: SaMessage) -> tuple[object, ...]:
    """Everything of a message that compares by value: keys by their bytes."""
    keys = [one.key.reveal() for one in message.algorithms if one.key is not None]
    plain = [replace(one, key=None) for one in message.algorithms]
    return keys, plain, replace(message, algorithms=())


@some.patient
@given(some.sas())
def test_our_sas_come_back_from_the_quick_way(sa: Sa) -> None:
    payload = encode_sa(SaMessage(sa))
    read = decode_sa(payload, 0, len(payload), Reader())
    assert read == sa
    assert (read.usage, read.drops, read.key) == (sa.usage, sa.drops, None)


@some.patient
@given(some.sas())
def test_keys_come_back_when_asked_for(sa: Sa) -> None:
    payload = encode_sa(SaMessage(sa))
    read = decode_sa_message(payload, 0, len(payload), reader=Reader(), keep_keys=True).sa
    assert read.key is not None
    assert sa.key is not None
    assert read.key.reveal() == sa.key.reveal()


@some.patient
@given(foreign_sas())
def test_foreign_sas_come_back_whole(message: SaMessage) -> None:
    payload = encode_sa(message)
    read = decode_sa_message(payload, 0, len(payload), reader=Reader(), keep_keys=True)
    aead = next((one for one in message.algorithms if one.kind is AlgorithmKind.AEAD), None)
    wanted = replace(
        message,
        sa=replace(message.sa, aead=aead.aead if aead else None, larval=not message.algorithms),
    )
    assert known(read) == known(wanted)
    assert parts(encode_sa(read), 224) == parts(payload, 224)


@some.patient
@given(some.sps(), st.integers(0, 3), st.none() | st.integers(0, 1), st.booleans(), unknown)
def test_sps_come_back_whole(
    sp: Sp, share: int, kind: int | None, per_socket: bool, rest: tuple[RawAttribute, ...]
) -> None:
    masks = tuple(TemplateMasks(1, 2, 3, 4) for _ in sp.templates)
    message = SpMessage(sp, masks, share, kind, per_socket, None, rest)
    payload = encode_sp(message)
    assert decode_sp_message(payload, 0, len(payload), reader=Reader()) == message
    quick = decode_sp(payload, 0, len(payload), Reader())
    assert quick == (None if per_socket or kind else sp)
    if quick is not None:
        assert (quick.index, quick.usage) == (sp.index, sp.usage)


@some.patient
@given(some.sas(), some.sps())
def test_names_come_back(sa: Sa, sp: Sp) -> None:
    payload = encode_sa_id(sa.id)
    assert decode_sa_id(payload, 0, len(payload), reader=Reader()) == sa.id
    payload = encode_sp_id(sp.id, index=5)
    assert decode_sp_id(payload, 0, len(payload), reader=Reader()) == (sp.id, 5)


@some.patient
@given(some.sas(), some.u32, some.u32)
def test_requests_for_an_spi_come_back(sa: Sa, lowest: int, highest: int) -> None:
    bare = replace(sa, aead=None, key=None, larval=True)
    request = SpiRequest(SaMessage(bare), lowest, highest)
    payload = encode_spi_request(request)
    read = decode_spi_request(payload, 0, len(payload), reader=Reader())
    assert (read.message.sa, read.lowest, read.highest) == (bare, lowest, highest)


@some.patient
@given(some.sas(), some.sps(), st.booleans(), unknown)
def test_expiries_come_back(sa: Sa, sp: Sp, hard: bool, rest: tuple[RawAttribute, ...]) -> None:
    # An EXPIRE tells the legacy window and whether there is ESN, never the rest.
    window = sa.replay.window if sa.replay.window <= 32 and not sa.replay.esn else 0
    told = replace(
        sa,
        aead=None,
        key=None,
        output_mark=None,
        offload=None,
        replay=Replay(window, sa.replay.esn),
    )
    if told.direction is SaDirection.OUTBOUND:
        told = replace(told, replay=Replay(0, sa.replay.esn))
    expire = Expire(told, hard, rest)
    payload = encode_expire(expire)
    assert decode_expire(payload, 0, len(payload), reader=Reader()) == expire
    gone = SpExpire(SpMessage(sp, rest=rest), hard)
    payload = encode_sp_expire(gone)
    assert decode_sp_expire(payload, 0, len(payload), reader=Reader()) == gone


@some.patient
@given(some.sas(), some.sps(), some.u32, st.data())
def test_acquires_come_back(sa: Sa, sp: Sp, seq: int, data: st.DataObject) -> None:
    src, dst, spi = sa.src, sa.id.dst, sa.id.spi
    selector = data.draw(some.selectors(dst.version))
    # An IPv6 address that begins with an IPv4 one and goes on in zeros is told by no packet.
    assume(any(dst.packed[4:] + src.packed[4:]) if dst.version == 6 else int(dst))
    message = SpMessage(replace(sp, templates=()))
    mark = sp.id.mark
    acquire = Acquire(SaId(dst, spi, Proto.ESP, mark), src, selector, message, seq, (1, 2, 3))
    payload = encode_acquire(acquire)
    assert decode_acquire(payload, 0, len(payload), reader=Reader()) == acquire


@some.patient
@given(
    some.sas(),
    replay_states().filter(lambda state: state.form is not ReplayForm.ESN),
    some.usages,
    unknown,
)
def test_progress_comes_back(
    sa: Sa, state: ReplayState, usage: Usage, rest: tuple[RawAttribute, ...]
) -> None:
    if state.form is ReplayForm.LEGACY:
        state = replace(state, window=0)
    progress = SaProgress(
        sa.id, sa.src, sa.reqid, AeFlag(7), state, usage, 9, 8, sa.if_id, sa.direction, sa.cpu, rest
    )
    payload = encode_progress(progress)
    assert decode_progress(payload, 0, len(payload), reader=Reader()) == progress


@some.patient
@given(some.sas(), some.sps(), unknown)
def test_migrations_come_back(sa: Sa, sp: Sp, rest: tuple[RawAttribute, ...]) -> None:
    move = Move(sa.src, sa.id.dst, sa.id.dst, sa.src, Proto.ESP, sa.mode, Reqid(4))
    migration = Migration(sp.id, (move, move), (sa.src, sa.id.dst), Encap(2, 1, 2), rest)
    payload = encode_migration(migration)
    assert decode_migration(payload, 0, len(payload), reader=Reader()) == migration


def framed(raw: bytes, kind: Msg, seq: int) -> bytes:
    """The payload of the one message in `raw`, whose header must be right."""
    (message,) = messages(raw)
    assert (message.kind, message.seq, message.portid) == (kind, seq, 77)
    return raw[message.start : message.end]


@some.patient
@given(st.lists(some.sas(), min_size=1, max_size=4), some.u32)
def test_bulk_sas_are_coded_as_plain_ones(sas: list[Sa], seq: int) -> None:
    packer = Packer(portid=77)
    for sa in [*sas, *sas]:
        fresh = replace(sa, usage=Usage(), drops=SaDrops())
        payload = framed(packer.pack(AddSa(sa, SaDirection.INBOUND), seq), Msg.NEWSA, seq)
        assert parts(payload, 224) == parts(encode_sa(SaMessage(fresh)), 224)
        payload = framed(packer.pack(RemoveSa(sa.id), seq), Msg.DELSA, seq)
        assert payload == encode_sa_id(sa.id)


@some.patient
@given(st.lists(some.sps(), min_size=1, max_size=4), some.u32)
def test_bulk_sps_are_coded_as_plain_ones(sps: list[Sp], seq: int) -> None:
    packer = Packer(portid=77)
    for sp in [*sps, *sps]:
        fresh = replace(sp, usage=Usage(), index=0)
        plain = parts(encode_sp(SpMessage(fresh)), 168)
        payload = framed(packer.pack(AddSp(sp), seq), Msg.NEWPOLICY, seq)
        assert parts(payload, 168) == plain
        payload = framed(packer.pack(UpdateSp(sp, sp), seq), Msg.UPDPOLICY, seq)
        assert parts(payload, 168) == plain
        payload = framed(packer.pack(RemoveSp(sp), seq), Msg.DELPOLICY, seq)
        assert parts(payload, 64) == parts(encode_sp_id(sp.id), 64)


def crossed(one: object, other: object) -> Iterator[Any]:
    """`one` with each of its fields in turn taken from `other`, nested ones as well.

    Parts of a mark or a replay state make no sense one by one.
    """
    for field in fields(one):  # type: ignore[arg-type]
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        whole = isinstance(mine, Mark | Replay)
        if is_dataclass(mine) and type(mine) is type(theirs) and not whole:
            for nested in crossed(mine, theirs):
                yield replace(one, **{field.name: nested})  # type: ignore[type-var]
        else:
            yield replace(one, **{field.name: theirs})  # type: ignore[type-var]


@some.patient
@given(some.sas(), some.sas())
def test_a_shape_is_never_taken_for_another_of_sas(one: Sa, other: Sa) -> None:
    assume(one.src.version == other.src.version)
    packer = Packer(portid=77)
    packer.add_sa(one, 1)
    for sa in crossed(one, replace(other, aead=one.aead, key=one.key)):
        fresh = replace(sa, usage=Usage(), drops=SaDrops())
        payload = framed(packer.add_sa(sa, 2), Msg.NEWSA, 2)
        assert parts(payload, 224) == parts(encode_sa(SaMessage(fresh)), 224)
        payload = framed(packer.remove_sa(sa.id, 3), Msg.DELSA, 3)
        assert parts(payload, 24) == parts(encode_sa_id(sa.id), 24)


def as_tunsec_makes_it(sp: Sp, template: Template) -> Sp:
    """The SP with one template and nothing unusual, which the packer has shapes for."""
    selector = replace(sp.id.selector, ifindex=0, user=0)
    sp_id = replace(sp.id, selector=selector, if_id=None)
    return replace(sp, id=sp_id, templates=(template,), flags=0, offload=None)


@some.patient
@given(some.sps(), some.sps(), some.templates(), some.templates())
def test_a_shape_is_never_taken_for_another_of_sps(
    plain: Sp, other: Sp, template: Template, second: Template
) -> None:
    one = as_tunsec_makes_it(plain, template)
    other = replace(other, templates=(second,))
    assume(one.id.selector.version == other.id.selector.version)
    packer = Packer(portid=77)
    packer.add_sp(one, 1)
    variants = list(crossed(one, other))
    if template.src.version == second.src.version:
        variants += [replace(one, templates=(made,)) for made in crossed(template, second)]
    for sp in variants:
        fresh = replace(sp, usage=Usage(), index=0)
        payload = framed(packer.add_sp(sp, 2), Msg.NEWPOLICY, 2)
        assert parts(payload, 168) == parts(encode_sp(SpMessage(fresh)), 168)
        payload = framed(packer.remove_sp(sp.id, 3), Msg.DELPOLICY, 3)
        assert parts(payload, 64) == parts(encode_sp_id(sp.id), 64)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 127, 64 * 7])
def test_templates_of_an_odd_size_are_malformed(size: int) -> None:
    with pytest.raises(Malformed, match="is not 1 to 6 templates"):
        decode_templates(bytes(size), 0, size, reader=Reader())


@some.patient
@given(some.sas())
def test_what_cannot_be_installed_is_malformed(sa: Sa) -> None:
    assert sa.key is not None
    packer = Packer()
    wiped = Secret(sa.key.reveal())
    wiped.wipe()
    pointless = replace(sa.id, mark=Mark(0x100, 0xFF))
    for broken in (
        replace(sa, key=None),
        replace(sa, key=wiped),
        replace(sa, key=Secret(sa.key.reveal() + b"x")),
        replace(sa, aead=None),
        replace(sa, id=pointless),
    ):
        with pytest.raises(Malformed):
            packer.add_sa(broken, 1)
    assert packer.add_sa(sa, 1)


Coder = Callable[[], bytes]


@some.patient
@given(some.sas(), some.sps())
def test_mixed_ip_versions_are_malformed(sa: Sa, sp: Sp) -> None:
    six = some.ip_of_version(6 if sa.src.version == 4 else 4)
    packer = Packer()
    network = some.network_of_version(6 if sp.id.selector.src.version == 4 else 4)
    mixed = replace(sp.id, selector=replace(sp.id.selector, src=network))
    coders: list[Coder] = [
        lambda: packer.add_sa(replace(sa, src=six), 1),
        lambda: packer.remove_sp(mixed, 1),
        lambda: packer.add_sp(replace(sp, id=mixed), 1),
    ]
    for code in coders:
        with pytest.raises(Malformed, match="mixes IP versions"):
            code()
