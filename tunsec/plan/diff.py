"""Desired against actual: what must be done, and what cannot be done from here."""

from dataclasses import dataclass

from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import SaId
from tunsec.model.sp import SpId
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.plan.image import Image, Wanted
from tunsec.plan.order import ordered


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered steps, and what no step can mend.

    `lost` are wanted SAs that only fresh keys can replace (law 3); `conflicts` are ids under which
    another program's SA or SP stands, which we never touch (law 4).
    """

    steps: tuple[Step, ...]
    lost: tuple[SaId, ...] = ()
    conflicts: tuple[SaId | SpId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.lost or self.conflicts)


def plan(want: Wanted, have: Image) -> Plan:
    """Steps that turn `have` into `want`; foreign objects are never touched (law 4).

    An SA that is there but differs is removed and counted as lost: an SA cannot be changed
    without its key. A wanted SA that is missing is added if its key is at hand, else lost.
    """
    steps: list[Step] = []
    lost: list[SaId] = []
    conflicts: list[SaId | SpId] = []
    for sa_id, wanted_sa in want.sas.items():
        actual = have.sas.get(sa_id)
        if actual is not None and sa_matches(wanted_sa.sa, actual):
            continue
        if actual is not None and is_our_sa(actual):
            steps.append(RemoveSa(sa_id))
            lost.append(sa_id)
        elif actual is not None:
            conflicts.append(sa_id)
        elif wanted_sa.sa.key is not None:
            steps.append(AddSa(wanted_sa.sa, wanted_sa.direction))
        else:
            lost.append(sa_id)
    steps += [
        RemoveSa(sa_id) for sa_id, sa in have.sas.items() if is_our_sa(sa) and sa_id not in want.sas
    ]
    for sp_id, sp in want.sps.items():
        actual_sp = have.sps.get(sp_id)
        if actual_sp is None:
            steps.append(AddSp(sp))
        elif not is_our_sp(actual_sp):
            conflicts.append(sp_id)
        elif not sp_matches(sp, actual_sp):
            steps.append(UpdateSp(sp, actual_sp))
    steps += [
        RemoveSp(sp) for sp_id, sp in have.sps.items() if is_our_sp(sp) and sp_id not in want.sps
    ]
    return Plan(
        tuple(ordered(steps)), tuple(sorted(lost, key=str)), tuple(sorted(conflicts, key=str))
    )
