"""Desired against actual: the laws of plans, for any kernel and any wish."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.plan.kernels import blocks, image_of, images, kernel_of, wishes
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret
from tunsec.model.step import AddSa, AddSp, RemoveSa, UpdateSp
from tunsec.plan.diff import plan
from tunsec.plan.image import Image, Wanted, WantedSa
from tunsec.plan.order import inverted, rank

EVERY_DIRECTION = SaDirection.INBOUND


def _as_it_is(have: Image) -> Wanted:
    mine = have.ours()
    sas = {sa_id: WantedSa(sa, EVERY_DIRECTION) for sa_id, sa in mine.sas.items()}
    return Wanted(sas, mine.sps)


@given(images())
def test_what_is_as_wanted_needs_no_step(have: Image) -> None:
    assert not plan(_as_it_is(have), have)


@given(wishes(keys=False), images())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(want: Wanted, have: Image) -> None:
    """But for what no step can mend: SAs whose keys are gone, and what others hold."""
    kernel = kernel_of(have)
    first = plan(want, have)
    assert kernel.apply(first.steps) == [None] * len(first.steps)
    second = plan(want, image_of(kernel))
    assert second.steps == ()
    assert second.lost == first.lost
    assert second.conflicts == first.conflicts


@given(wishes(), images())
def test_keys_at_hand_install_what_is_missing(want: Wanted, have: Image) -> None:
    """An SA that stands there in another form goes first; its place is free the next time."""
    kernel = kernel_of(have)
    for _ in range(2):
        found = plan(want, image_of(kernel))
        assert kernel.apply(found.steps) == [None] * len(found.steps)
    last = plan(want, image_of(kernel))
    assert last.steps == ()
    with_key = {sa_id for sa_id, one in want.sas.items() if one.sa.key is not None}
    assert not with_key & set(last.lost)


@given(wishes(), images())
def test_foreign_objects_are_never_touched(want: Wanted, have: Image) -> None:
    kernel = kernel_of(have)
    found = plan(want, have)
    kernel.apply(found.steps)
    after = image_of(kernel)
    for sa_id, sa in have.sas.items():
        assert is_our_sa(sa) or after.sas[sa_id] == sa
    for sp_id, sp in have.sps.items():
        assert is_our_sp(sp) or after.sps[sp_id] == sp
    wanted_ids = {*want.sas, *want.sps}
    foreign = {sa.id for sa in have.sas.values() if not is_our_sa(sa)} | {
        sp.id for sp in have.sps.values() if not is_our_sp(sp)
    }
    assert set(found.conflicts) == wanted_ids & foreign


@given(wishes(), images())
def test_nothing_of_ours_is_left_that_nobody_wants(want: Wanted, have: Image) -> None:
    kernel = kernel_of(have)
    kernel.apply(plan(want, have).steps)
    mine = image_of(kernel).ours()
    assert mine.sas.keys() <= want.sas.keys()
    assert mine.sps.keys() <= want.sps.keys()


@given(wishes(), images())
def test_steps_run_by_rank_and_print_the_same_every_time(want: Wanted, have: Image) -> None:
    steps = plan(want, have).steps
    assert [rank(step) for step in steps] == sorted(rank(step) for step in steps)
    shuffled = Image(dict([*have.sas.items()][::-1]), dict([*have.sps.items()][::-1]))
    again = plan(Wanted(dict([*want.sas.items()][::-1]), dict([*want.sps.items()][::-1])), shuffled)
    assert [str(step) for step in again.steps] == [str(step) for step in steps]


@given(wishes(), images(), st.integers(0, 30))
def test_a_plan_that_fails_half_way_is_undone(want: Wanted, have: Image, done: int) -> None:
    """The SPD is as before, but block SPs that went in stay; no removed SA comes back."""
    kernel = kernel_of(have)
    before = kernel.sps()
    steps = plan(want, have).steps[:done]
    kernel.apply(steps)
    between = blocks(kernel.sps().values())
    undo = inverted(steps)
    assert kernel.apply(undo) == [None] * len(undo)
    after = kernel.sps()
    added = {step.sp.id for step in steps if isinstance(step, AddSp | UpdateSp)}
    stayed = {sp.id for sp in between if sp.id in added}
    for sp_id in before.keys() | after.keys():
        if sp_id not in stayed:
            assert after.get(sp_id) == before.get(sp_id)
    assert blocks(after.values()) >= blocks(before.values()) - {
        sp for sp in before.values() if sp.id in stayed
    }
    gone = {step.id for step in steps if isinstance(step, RemoveSa)}
    new = {step.sa.id for step in steps if isinstance(step, AddSa)}
    assert kernel.sas().keys() == have.sas.keys() - gone - new


@given(wishes(), images())
def test_no_key_is_in_what_a_plan_prints(want: Wanted, have: Image) -> None:
    secret = bytes(range(100, 120))
    shown = {
        sa_id: replace(one, sa=replace(one.sa, key=Secret(secret)))
        for sa_id, one in want.sas.items()
    }
    found = plan(Wanted(shown, want.sps), have)
    text = " ".join(f"{step} {step!r}" for step in found.steps)
    assert secret.hex() not in text
    assert repr(secret) not in text
