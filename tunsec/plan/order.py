"""The order of steps, and how a step is undone."""

from collections.abc import Iterable

from tunsec.model.sa import SaDirection
from tunsec.model.sp import Sp, SpAction, SpDirection
from tunsec.model.step import AddSa, AddSp, Rank, RemoveSa, RemoveSp, Step, UpdateSp


def rank(step: Step) -> Rank:
    """When a step may run: blocks first, receiver before sender, removals last.

    An inbound protect SP opens nothing (a clear packet still fails its template), so it goes with
    the inbound SAs. The outbound protect SP is the switch.
    """
    match step:
        case AddSa(direction=SaDirection.INBOUND):
            return Rank.ADD_INBOUND
        case AddSa():
            return Rank.ADD_OUTBOUND
        case AddSp(sp) | UpdateSp(sp):
            if sp.action is SpAction.BLOCK:
                return Rank.BLOCK
            return Rank.SWITCH if sp.id.direction is SpDirection.OUT else Rank.ADD_INBOUND
        case RemoveSp(sp):
            return Rank.UNBLOCK if sp.action is SpAction.BLOCK else Rank.REMOVE_SP
        case RemoveSa():
            return Rank.REMOVE_SA


def ordered(steps: Iterable[Step]) -> list[Step]:
    """Steps by rank, then by what they touch, so that a plan prints the same every time."""
    return sorted(steps, key=lambda step: (rank(step), str(step)))


def inverse(step: Step) -> Step | None:
    """The step that undoes this one, or None.

    A removed SA has no inverse: its keys are never installed twice (law 3). That is why removals
    run last: once one has run, everything before it has succeeded.
    """
    match step:
        case AddSa(sa):
            return RemoveSa(sa.id)
        case AddSp(sp):
            return RemoveSp(sp)
        case UpdateSp(sp, previous):
            return UpdateSp(previous, sp)
        case RemoveSp(sp):
            return AddSp(sp)
        case RemoveSa():
            return None


def inverted(done: Iterable[Step]) -> list[Step]:
    """What undoes steps that were carried out, last first. Block SPs stay: never open to undo."""
    return [
        undo
        for step in reversed(list(done))
        if (undo := inverse(step)) is not None and not _is_block(step)
    ]


def _is_block(step: Step) -> bool:
    sp: Sp | None = step.sp if isinstance(step, AddSp | UpdateSp) else None
    return sp is not None and sp.action is SpAction.BLOCK
