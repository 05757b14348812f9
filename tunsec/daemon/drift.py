"""Keeps SAD and SPD as the machines want them: closes, looks, repairs what others changed."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tunsec.daemon.health import Counters, Part, Troubles
from tunsec.daemon.install import perform, read_sps
from tunsec.daemon.journal import fields
from tunsec.daemon.reconcile import (
    Adoption,
    IkeHolding,
    adopt,
    held_marks,
    held_reqids,
    late_of_charon,
    marked_otherwise,
    overtaken,
    settled,
    want,
    without_charons,
)
from tunsec.daemon.scope import Scope
from tunsec.machines.flow import FlowState
from tunsec.machines.ike_facts import Adopted as IkeAdopted
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.flow import Child, ChildId
from tunsec.model.ownership import is_our_sp
from tunsec.model.sa import Sa, SaId
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, UpdateSp
from tunsec.plan.diff import Plan, plan
from tunsec.plan.image import Image
from tunsec.plan.order import ordered
from tunsec.policy.desired import Held, inbound_sps
from tunsec.ports import Kernel

log = logging.getLogger("tunsec.drift")


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at the kernel found: SAs that only fresh keys replace, all SAs there were, and
    what charon made after IKE had let a child go."""

    lost: tuple[SaId, ...]
    sas: Mapping[SaId, Sa]
    late: tuple[IkeAdopted, ...] = ()


class Drift:
    """Law 5 at work: what was asked is held against what is there."""

    def __init__(self, *, kernel: Kernel, counters: Counters, troubles: Troubles) -> None:
        self._kernel = kernel
        self._counters = counters
        self._troubles = troubles

    def with_held(self, scope: Scope, running: Scope) -> Scope:
        """The scope with the reqids and marks that its children already have, in the kernel or
        here."""
        sps = self._kernel.sps()
        marks = held_marks(scope.children, sps) | {
            (child.id.flow, child.id.tenant): child.mark
            for child in running.children
            if child.mark is not None
        }
        scope = scope.with_held(Held(scope.held.reqids, marks))
        moving = {address for service in scope.services for address in service.addresses}
        reqids = held_reqids(scope.children, sps, moving=moving)
        reqids |= {child.id: child.reqid for child in running.children}
        return scope.with_held(Held(reqids, marks))

    def marked_otherwise(self, scope: Scope) -> frozenset[ChildId]:
        """Children whose inbound SAs set another mark than their SPs ask for."""
        return marked_otherwise(scope.children, self._kernel.sas())

    def close(self, scope: Scope) -> None:
        """Block SPs and inbound protect SPs, before anything else; read back. Raises Refused.

        Another program's SP that stands where one of ours should is said and left alone (law 4),
        and the rest is closed; of that flow the guard table alone drops clear packets.
        """
        have = self._image()
        wanted = want([FlowState(child) for child in scope.children], scope.blocks, have=have)
        found = plan(wanted, have)
        self._note_strangers(found, scope, have)
        missing = [step for step in found.steps if isinstance(step, AddSp | UpdateSp)]
        problem = perform(self._kernel, ordered(missing))
        if problem is not None:
            raise Refused("closing the flows", reason=problem)

    def open(self, released: Scope, *, known: Scope) -> int:
        """Remove the block SPs that `known` has and `released` has not; how many there were.

        When nothing is left to guard, block SPs of ours that nobody remembers go too.
        """
        kept = {sp.id for sp in released.blocks}
        before = {sp.id for sp in known.blocks}
        gone = [
            RemoveSp(sp)
            for sp in released.all_blocks(Image(sps=self._kernel.sps()))
            if sp.id not in kept and (not released.guarded or sp.id in before)
        ]
        self._kernel.apply(gone)
        return len(gone)

    def adopt(self, children: Mapping[ChildId, Child]) -> Adoption:
        """What an earlier life left in the kernel; what nobody can use any more is removed."""
        found = adopt(children, self._image())
        self._kernel.apply([RemoveSa(sa_id) for sa_id in found.useless])
        adopted = sum(len(one.inbound) + len(one.outbound) for one in found.by_peer.values())
        if adopted or found.useless:
            log.info("adopted", extra=fields({"sas": adopted, "removed": len(found.useless)}))
        return found

    def forsake(self, before: Scope, now: Scope) -> None:
        """Take away the inbound SPs of children that are gone, where no other child has them."""
        kept = {child.id for child in now.children}
        gone = [child for child in before.children if child.id not in kept]
        ids = {sp.id for child in gone for sp in inbound_sps(child)}
        ids -= {sp.id for child in now.children for sp in inbound_sps(child)}
        found = read_sps(self._kernel, ids)
        self._kernel.apply([RemoveSp(sp) for sp in found.values() if is_our_sp(sp)])

    def foresee(self, flows: Iterable[FlowState], ike: Iterable[IkeHolding], scope: Scope) -> Plan:
        """What entering a scope would do to the kernel, besides the keys that follow."""
        keyed = {flow.child.id: flow for flow in flows}
        held = {holding.child.id: holding for holding in ike}
        new = {child.id: child for child in scope.children}
        then = [
            replace(keyed.get(child.id, FlowState(child)), child=child)
            for child in new.values()
            if child.id in keyed or child.id not in held
        ]
        holdings = [replace(held[one], child=new[one]) for one in held.keys() & new.keys()]
        have = self._image()
        wanted = want(then, scope.all_blocks(have), holdings, have=have)
        gone = [holding for one, holding in held.items() if one not in new]
        return plan(settled(wanted, have), without_charons(have, wanted, [*holdings, *gone]))

    def repair(
        self, flows: Iterable[FlowState], ike: Sequence[IkeHolding], scope: Scope
    ) -> Looked | None:
        """Look at everything, mend what can be mended.

        None when the kernel does not answer now.
        """
        try:
            have = self._image()
            wanted = want(flows, scope.all_blocks(have), ike, have=have)
            carried = {holding.child.id for holding in ike}
            others = {child.id: child for child in scope.children if child.id not in carried}
            late = late_of_charon(others.values(), have)
            let_go = [IkeHolding(others[one.child], None) for one in late]
            found = plan(settled(wanted, have), without_charons(have, wanted, [*ike, *let_go]))
            self._mend(found)
        except (Refused, Unavailable) as error:
            self._troubles.note(Part.KERNEL, str(error))
            return None
        self._troubles.note(Part.KERNEL, "")
        self._note_strangers(found, scope, have)
        return Looked(found.lost, have.sas, late)

    def _note_strangers(self, found: Plan, scope: Scope, have: Image) -> None:
        self._troubles.note_strangers(
            tuple(f"another program owns {one}" for one in found.conflicts),
            tuple(
                f"{child}: another program's SP comes first: {sp}"
                for child, sp in overtaken(scope.children, have)
            ),
        )

    def _mend(self, found: Plan) -> None:
        answers = self._kernel.apply(found.steps)
        for step, answer in zip(found.steps, answers, strict=True):
            if isinstance(step, AddSa | RemoveSa):
                self._counters.repaired_sas += 1
            else:
                self._counters.repaired_sps += 1
            log.warning(
                "drift repaired" if answer is None else "drift not repaired",
                extra=fields({"step": step, "answer": answer or "ok"}),
            )
        self._counters.repaired_sas += len(found.lost)

    def _image(self) -> Image:
        return Image(self._kernel.sas(), self._kernel.sps())
