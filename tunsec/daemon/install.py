"""Carries SA orders to the kernel: draw, derive, write, read back. Decides nothing.

A child that fails is undone by itself; the others of the same order go on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tunsec.machines.facts import (
    InboundInstalled,
    InboundRefused,
    Keyed,
    OutboundRefused,
    OutboundSwitched,
    UsageRead,
)
from tunsec.machines.orders import InstallInbound, InstallOutbound, ReadUsage
from tunsec.machines.pair import PairEvent
from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId
from tunsec.model.names import OfferSeq, Spi
from tunsec.model.ownership import is_our_sp
from tunsec.model.sa import Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpId
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.plan.order import inverted
from tunsec.plan.sas import inbound_sa, outbound_sa
from tunsec.policy.desired import outbound_sps
from tunsec.ports import Entropy, Kernel

DRAWS: Final = 4
"""Tries to find an SPI that nobody on this host uses; one in four billion is taken."""
DUMP_FROM: Final = 48
"""From this many objects on, one dump is cheaper than asking for each."""


class KeySource(Protocol):
    """Where keys and AEADs come from: the keyring, with the offers of both sides."""

    def aead(self, child: Child, peer_offer: OfferSeq) -> Aead:
        """The AEAD both ends agree on; raises Refused when there is none."""
        ...

    def inbound_key(self, keyed: Keyed) -> Secret:
        """Key and salt of an SA on which we receive; raises Refused for an unknown offer."""
        ...

    def outbound_key(self, keyed: Keyed) -> Secret:
        """Key and salt of an SA on which we send; raises Refused for an unknown offer."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    keyed: Keyed
    child: Child
    sa: Sa


def inbound_id(child: Child, spi: Spi) -> SaId:
    """The SAD id of an inbound SA of a child."""
    return SaId(child.id.local, spi)


def outbound_id(child: Child, spi: Spi) -> SaId:
    """The SAD id of an outbound SA of a child."""
    return SaId(child.id.remote, spi)


class Installer:
    """Performs the orders of pair machines on one kernel."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        keys: KeySource,
        entropy: Entropy,
        children: Callable[[ChildId], Child | None],
    ) -> None:
        self._kernel = kernel
        self._keys = keys
        self._entropy = entropy
        self._children = children
        self._drawn: dict[OfferSeq, set[int]] = {}

    def forget(self, own_offer: OfferSeq) -> None:
        """An offer of ours is wiped: no key can come from it again."""
        self._drawn.pop(own_offer, None)

    def install_inbound(self, order: InstallInbound) -> list[PairEvent]:
        """New inbound SAs under two offers, each with an SPI drawn here."""
        refused: list[PairEvent] = []
        jobs: list[_Job] = []
        for child_id in order.children:
            child = self._children(child_id)
            if child is None:
                continue
            try:
                jobs.append(self._inbound_job(child, order.own_offer, order.peer_offer))
            except Refused as error:
                refused.append(InboundRefused((child_id,), str(error)))
        installed = self._add_all(jobs, SaDirection.INBOUND, order, refused)
        found = self._read_sas([job.sa.id for job in installed])
        keyed: list[Keyed] = []
        for job in installed:
            actual = found.get(job.sa.id)
            if actual is not None and sa_matches(job.sa, actual):
                keyed.append(job.keyed)
            else:
                self._kernel.apply([RemoveSa(job.sa.id)])
                reason = f"the kernel does not hold SA {job.sa.id} as asked"
                refused.append(InboundRefused((job.child.id,), reason))
        return [*([InboundInstalled(tuple(keyed))] if keyed else []), *refused]

    def _inbound_job(self, child: Child, own: OfferSeq, peer: OfferSeq) -> _Job:
        aead = self._keys.aead(child, peer)
        keyed = Keyed(child.id, self._draw(own), aead, own, peer)
        key = self._keys.inbound_key(keyed)
        return _Job(keyed, child, inbound_sa(child, keyed.spi, aead=aead, key=key))

    def _draw(self, own: OfferSeq) -> Spi:
        """An SPI never used before under this offer: the same SPI would give the same key."""
        drawn = self._drawn.setdefault(own, set())
        while (spi := self._entropy.spi()) in drawn:
            pass
        drawn.add(spi)
        return Spi(spi)

    def _add_all(
        self,
        jobs: list[_Job],
        direction: SaDirection,
        order: InstallInbound,
        refused: list[PairEvent],
    ) -> list[_Job]:
        """Add SAs; an SPI that somebody else uses is drawn again."""
        installed: list[_Job] = []
        for attempt in range(DRAWS):
            answers = self._add(jobs, direction)
            again: list[_Job] = []
            for job, answer in zip(jobs, answers, strict=True):
                if answer is None:
                    installed.append(job)
                elif answer.errno == 17 and attempt + 1 < DRAWS:  # EEXIST
                    again.append(self._inbound_job(job.child, order.own_offer, order.peer_offer))
                else:
                    refused.append(InboundRefused((job.child.id,), str(answer)))
            jobs = again
            if not jobs:
                break
        return installed

    def _add(self, jobs: Sequence[_Job], direction: SaDirection) -> list[Refused | None]:
        answers = self._kernel.apply([AddSa(job.sa, direction) for job in jobs])
        for job in jobs:
            if job.sa.key is not None:
                job.sa.key.wipe()
        return answers

    def install_outbound(self, order: InstallOutbound) -> list[PairEvent]:
        """The twins of confirmed SAs, then the switch of the SPs that pin them."""
        events: list[PairEvent] = []
        jobs: list[_Job] = []
        for keyed in order.sas:
            child = self._children(keyed.child)
            if child is None:
                continue
            try:
                if keyed.aead not in child.aeads:
                    raise Refused(f"AEAD {keyed.aead}", reason="the policy does not allow it")
                key = self._keys.outbound_key(keyed)
            except Refused as error:
                events.append(OutboundRefused(keyed.child, keyed.spi, str(error)))
                continue
            sa = outbound_sa(child, keyed.spi, aead=keyed.aead, key=key)
            jobs.append(_Job(keyed, child, sa))
        standing = self._stand(jobs, events)
        switched = [job for job in standing if self._switched(job, events)]
        if switched:
            events.insert(0, OutboundSwitched(tuple(job.keyed for job in switched)))
        return events

    def _stand(self, jobs: list[_Job], events: list[PairEvent]) -> list[_Job]:
        """Add outbound SAs and read them back."""
        answers = self._add(jobs, SaDirection.OUTBOUND)
        found = self._read_sas(
            [job.sa.id for job, answer in zip(jobs, answers, strict=True) if answer is None]
        )
        standing: list[_Job] = []
        for job, answer in zip(jobs, answers, strict=True):
            actual = found.get(job.sa.id)
            if answer is not None:
                events.append(OutboundRefused(job.child.id, job.keyed.spi, str(answer)))
            elif actual is None or not sa_matches(job.sa, actual):
                self._kernel.apply([RemoveSa(job.sa.id)])
                reason = f"the kernel does not hold SA {job.sa.id} as asked"
                events.append(OutboundRefused(job.child.id, job.keyed.spi, reason))
            else:
                standing.append(job)
        return standing

    def _switched(self, job: _Job, events: list[PairEvent]) -> bool:
        """Pin the new SA in the outbound SPs of a child; all of them or none."""
        steps: list[Step] = []
        problem: str | None = None
        for sp in outbound_sps(job.child, job.keyed.spi):
            before = self._kernel.sp(sp.id)
            if before is not None and not is_our_sp(before):
                problem = f"another program's SP stands under {sp.id}"
                break
            steps.append(AddSp(sp) if before is None else UpdateSp(sp, before))
        problem = problem or perform(self._kernel, steps)
        if problem is None:
            return True
        self._kernel.apply([RemoveSa(job.sa.id)])
        events.append(OutboundRefused(job.child.id, job.keyed.spi, problem))
        return False

    def remove(self, ids: Sequence[SaId]) -> None:
        """Remove SAs; one that is gone already is no error."""
        self._kernel.apply([RemoveSa(sa_id) for sa_id in ids])

    def block(self, child: Child) -> None:
        """Take a child's outbound protect SPs away; the block SPs hold the flow."""
        standing = [self._kernel.sp(sp.id) for sp in outbound_sps(child, Spi(0))]
        self._kernel.apply([RemoveSp(sp) for sp in standing if sp is not None])

    def read_usage(self, order: ReadUsage) -> list[PairEvent]:
        """What a draining inbound SA has carried."""
        child = self._children(order.child)
        if child is None:
            return []
        sa = self._kernel.sa(inbound_id(child, order.spi))
        packets = None if sa is None else sa.usage.usage_packets
        return [UsageRead(order.child, order.spi, packets)]

    def _read_sas(self, ids: Sequence[SaId]) -> Mapping[SaId, Sa]:
        if len(ids) >= DUMP_FROM:
            return self._kernel.sas()
        return {sa_id: sa for sa_id in ids if (sa := self._kernel.sa(sa_id)) is not None}


def perform(kernel: Kernel, steps: Sequence[Step]) -> str | None:
    """Carry out steps in order and read SPs back; undo what was done if one fails.

    Returns None, or what went wrong.
    """
    if not steps:
        return None
    answers = kernel.apply(steps)
    done = [step for step, answer in zip(steps, answers, strict=True) if answer is None]
    problem = next((str(answer) for answer in answers if answer is not None), None)
    problem = problem or missing(kernel, steps)
    if problem is not None:
        kernel.apply(inverted(done))
    return problem


def missing(kernel: Kernel, steps: Iterable[Step]) -> str | None:
    """The first SP that the steps should have left in the kernel and did not (law 5)."""
    wanted: dict[SpId, Sp] = {
        step.sp.id: step.sp for step in steps if isinstance(step, AddSp | UpdateSp)
    }
    found: Mapping[SpId, Sp] = (
        kernel.sps()
        if len(wanted) >= DUMP_FROM
        else {sp_id: sp for sp_id in wanted if (sp := kernel.sp(sp_id)) is not None}
    )
    for sp_id, sp in wanted.items():
        actual = found.get(sp_id)
        if actual is None or not sp_matches(sp, actual):
            return f"the kernel does not hold SP {sp} as asked"
    return None
