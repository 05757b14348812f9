"""The order of steps, and how a step is undone."""

from dataclasses import replace

import pytest
from hypothesis import given

from tests.unit.plan.kernels import ADDRESSES, kernel_of, our_sps
from tunsec.model.aead import Aead
from tunsec.model.names import Reqid, Spi
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT, REQID_FIRST
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.selector import Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, Rank, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.plan.image import Image
from tunsec.plan.order import inverse, inverted, ordered, rank

SA = Sa(SaId(ADDRESSES[1], Spi(0x1000)), ADDRESSES[0], REQID_FIRST, Aead.AES_128_GCM)
EVERYWHERE = Selector(any_network(4), any_network(4))


def _sp(direction: SpDirection, *, block: bool = False, spi: int | None = None) -> Sp:
    if block:
        return Sp(SpId(EVERYWHERE, direction), PRIORITY_BLOCK, SpAction.BLOCK)
    pinned = None if spi is None else Spi(spi)
    template = Template(ADDRESSES[0], ADDRESSES[1], Reqid(REQID_FIRST), pinned)
    return Sp(SpId(EVERYWHERE, direction), PRIORITY_PROTECT, SpAction.ALLOW, (template,))


OUT, IN = _sp(SpDirection.OUT, spi=1), _sp(SpDirection.IN)
BLOCK_OUT = _sp(SpDirection.OUT, block=True)

IN_ORDER: list[tuple[Step, Rank]] = [
    (AddSp(BLOCK_OUT), Rank.BLOCK),
    (UpdateSp(BLOCK_OUT, OUT), Rank.BLOCK),
    (AddSa(SA, SaDirection.INBOUND), Rank.ADD_INBOUND),
    (AddSp(IN), Rank.ADD_INBOUND),
    (AddSa(SA, SaDirection.OUTBOUND), Rank.ADD_OUTBOUND),
    (AddSp(OUT), Rank.SWITCH),
    (UpdateSp(OUT, _sp(SpDirection.OUT, spi=2)), Rank.SWITCH),
    (RemoveSp(OUT), Rank.REMOVE_SP),
    (RemoveSa(SA.id), Rank.REMOVE_SA),
    (RemoveSp(BLOCK_OUT), Rank.UNBLOCK),
]


@pytest.mark.parametrize(("step", "at"), IN_ORDER, ids=lambda one: str(one))
def test_blocks_first_receiver_before_sender_removals_last(step: Step, at: Rank) -> None:
    assert rank(step) is at


def test_the_order_does_not_depend_on_the_order() -> None:
    steps = [step for step, _ in IN_ORDER]
    assert ordered(reversed(steps)) == ordered(steps)
    assert [rank(step) for step in ordered(reversed(steps))] == [at for _, at in IN_ORDER]


@given(our_sps())
def test_what_is_undone_twice_is_done(sp: Sp) -> None:
    other = replace(sp, priority=sp.priority + 1)
    for step in (AddSp(sp), RemoveSp(sp), UpdateSp(sp, other)):
        undo = inverse(step)
        assert undo is not None
        assert inverse(undo) == step


def test_a_removed_sa_is_gone_for_good() -> None:
    assert inverse(RemoveSa(SA.id)) is None
    assert inverse(AddSa(SA, SaDirection.INBOUND)) == RemoveSa(SA.id)
    assert inverted([RemoveSa(SA.id)]) == []


def test_undoing_goes_backwards_and_never_opens() -> None:
    done: list[Step] = [
        AddSp(BLOCK_OUT),
        AddSa(SA, SaDirection.OUTBOUND),
        UpdateSp(IN, replace(IN, priority=7)),
    ]
    assert inverted(done) == [UpdateSp(replace(IN, priority=7), IN), RemoveSa(SA.id)]


@given(our_sps())
def test_an_undone_update_leaves_what_stood_there(sp: Sp) -> None:
    kernel = kernel_of(Image({}, {sp.id: sp}))
    step = UpdateSp(replace(sp, priority=sp.priority + 1), sp)
    undo = inverse(step)
    assert undo is not None
    kernel.apply([step, undo])
    assert kernel.sps() == {sp.id: sp}
