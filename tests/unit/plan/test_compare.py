"""What was asked for is there, or it is not: each field that was asked counts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wire import xfrm_strategies as some
from tunsec.model.aead import Aead
from tunsec.model.names import IfId, Mark, Reqid, Spi
from tunsec.model.sa import (
    IpsecMode,
    Lifetimes,
    Offload,
    OffloadKind,
    Replay,
    Sa,
    SaDirection,
    SaDrops,
    SaId,
    Usage,
)
from tunsec.model.secret import Secret
from tunsec.model.selector import Selector, any_network
from tunsec.model.sp import Sp, SpAction
from tunsec.plan.compare import sa_matches, sp_matches

A = some.ip_of_version(4)
WANT = Sa(
    SaId(A, Spi(0x1000)),
    A,
    Reqid(5),
    Aead.AES_128_GCM,
    Secret(bytes(20)),
    lifetimes=Lifetimes(hard_seconds=9),
    replay=Replay(1024, True, 4, 5),
)


@some.patient
@given(some.sas(), some.usages)
def test_what_the_kernel_shows_of_an_sa_matches_it(sa: Sa, usage: Usage) -> None:
    shown = replace(sa, key=None, usage=usage, drops=SaDrops(1, 2, 3))
    assert sa_matches(sa, shown)


@some.patient
@given(some.sps(), some.usages, st.integers(1, 99))
def test_what_the_kernel_shows_of_an_sp_matches_it(sp: Sp, usage: Usage, index: int) -> None:
    assert sp_matches(sp, replace(sp, usage=usage, index=index))


@pytest.mark.parametrize(
    "have",
    [
        replace(WANT, id=SaId(A, Spi(0x1001))),
        replace(WANT, id=SaId(A, Spi(0x1000), mark=Mark(1))),
        replace(WANT, src=A + 1),
        replace(WANT, reqid=Reqid(6)),
        replace(WANT, aead=Aead.CHACHA20_POLY1305),
        replace(WANT, aead=None),
        replace(WANT, mode=IpsecMode.TUNNEL),
        replace(WANT, selector=Selector(any_network(4), some.network_of_version(4))),
        replace(WANT, lifetimes=Lifetimes(hard_seconds=10)),
        replace(WANT, replay=Replay(512, True, 4, 5)),
        replace(WANT, replay=Replay(1024, False, 4, 5)),
        replace(WANT, replay=Replay(1024, True, 3, 5)),
        replace(WANT, replay=Replay(1024, True, 4, 4)),
        replace(WANT, output_mark=Mark(3)),
        replace(WANT, if_id=IfId(3)),
        replace(WANT, offload=Offload(OffloadKind.CRYPTO, 3, inbound=True)),
        replace(WANT, larval=True),
    ],
)
def test_an_sa_that_differs_does_not_match(have: Sa) -> None:
    assert sa_matches(WANT, WANT)
    assert not sa_matches(WANT, have)


def test_what_an_sa_leaves_open_may_stand_there() -> None:
    have = replace(WANT, flags=4, cpu=1, direction=SaDirection.INBOUND)
    assert sa_matches(WANT, have)
    assert sa_matches(WANT, replace(WANT, replay=Replay(1024, True, 1 << 40, 9)))
    assert not sa_matches(have, WANT)
    assert not sa_matches(replace(WANT, direction=SaDirection.OUTBOUND), have)


def test_an_sa_known_to_be_outbound_has_no_window() -> None:
    shown = replace(WANT, direction=SaDirection.OUTBOUND, replay=Replay(0, True, 4, 5))
    assert sa_matches(WANT, shown)
    assert sa_matches(replace(WANT, direction=SaDirection.OUTBOUND), shown)


@some.patient
@given(some.sps(), st.data())
def test_an_sp_that_differs_does_not_match(sp: Sp, data: st.DataObject) -> None:
    template = data.draw(some.templates())
    other = SpAction.BLOCK if sp.action is SpAction.ALLOW else SpAction.ALLOW
    for have in (
        replace(sp, priority=sp.priority ^ 1),
        replace(sp, action=other),
        replace(sp, templates=(*sp.templates, template)),
        replace(
            sp, lifetimes=replace(sp.lifetimes, hard_packets=77 ^ (sp.lifetimes.hard_packets or 0))
        ),
        replace(sp, id=replace(sp.id, if_id=IfId(99 ^ (sp.id.if_id or 0)))),
    ):
        assert not sp_matches(sp, have)
    assert not sp_matches(replace(sp, flags=sp.flags | 4), sp)
