"""Carries SA orders to the kernel: draw, derive, write, read back. Decides nothing.

A child that fails is undone by itself; the others of the same order go on.
"""

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from tunsec.daemon.offload import Offloads
from tunsec.machines.facts import (
    Carried,
    InboundInstalled,
    Keyed,
    NotInstalled,
    OutboundSwitched,
    UsageRead,
)
from tunsec.machines.orders import InstallInbound, InstallOutbound, PassOver, ReadUsage
from tunsec.machines.pair import PairEvent
from tunsec.model.aead import Aead
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.flow import Child, ChildId, OffloadWish, SequenceNumbers
from tunsec.model.names import OfferSeq, Spi, spi_hex
from tunsec.model.ownership import is_our_sp
from tunsec.model.sa import OffloadKind, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpId
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.model.underlay import Nic
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.plan.order import inverted
from tunsec.plan.sas import inbound_sa, outbound_sa
from tunsec.policy.desired import inbound_sps, outbound_sps
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
    nic: Nic | None = None


@dataclass(slots=True)
class _Used:
    """What was made under one own offer: making it again would make the same key again."""

    drawn: set[int] = field(default_factory=set)
    """SPIs of inbound SAs."""
    derived: dict[tuple[ChildId, Spi], str] = field(default_factory=dict)
    """Outbound SAs, and what is said when one is ordered again: why it was refused."""


def inbound_id(child: Child, spi: Spi) -> SaId:
    """The SAD id of an inbound SA of a child."""
    return SaId(child.id.local, spi)


def outbound_id(child: Child, spi: Spi) -> SaId:
    """The SAD id of an outbound SA of a child."""
    return SaId(child.id.remote, spi)


class Installer:
    """Performs the orders of pair machines on one kernel.

    A kernel that cannot be asked refuses: every order is answered, and the machines try again.
    """

    def __init__(
        self,
        *,
        kernel: Kernel,
        keys: KeySource,
        entropy: Entropy,
        children: Callable[[ChildId], Child | None],
        offloads: Offloads,
    ) -> None:
        self._kernel = kernel
        self._keys = keys
        self._entropy = entropy
        self._children = children
        self._offloads = offloads
        self._used: dict[OfferSeq, _Used] = {}

    def forget(self, own_offer: OfferSeq) -> None:
        """An offer of ours is wiped: no key can come from it again."""
        self._used.pop(own_offer, None)

    # Inbound

    def install_inbound(self, order: InstallInbound) -> list[PairEvent]:
        """New inbound SAs under two offers, each with an SPI drawn here."""
        refused: list[NotInstalled] = []
        jobs: list[_Job] = []
        strangers = self._strangers(order.children)
        for child_id in order.children:
            try:
                if child_id in strangers:
                    raise Refused("installing", reason=strangers[child_id])
                jobs.append(self._inbound_job(child_id, order))
            except Refused as error:
                refused.append(NotInstalled(child_id, str(error)))
        standing = self._read_back(self._add_all(jobs, order, refused), refused)
        standing = [job for job in standing if self._follows(job, refused)]
        return [InboundInstalled(tuple(job.keyed for job in standing), tuple(refused))]

    def _strangers(self, children: Sequence[ChildId]) -> dict[ChildId, str]:
        """Children whose inbound SPs are another program's: what they decrypt would go nowhere."""
        wanted = {
            sp.id: child_id
            for child_id in children
            if (child := self._children(child_id)) is not None
            for sp in inbound_sps(child)
        }
        try:
            found = read_sps(self._kernel, wanted)
        except (Refused, Unavailable) as error:
            return dict.fromkeys(children, str(error))
        return {
            wanted[sp_id]: f"another program's SP stands under {sp_id}"
            for sp_id, sp in found.items()
            if not is_our_sp(sp)
        }

    def _inbound_job(self, child_id: ChildId, order: InstallInbound) -> _Job:
        child = self._known(child_id)
        aead = self._keys.aead(child, order.peer_offer)
        nic = self._offloads.nic(child, aead)
        spi = self._draw(order.own_offer)
        keyed = Keyed(child_id, spi, aead, order.own_offer, order.peer_offer, child.esn)
        key = self._keys.inbound_key(keyed)
        return _Job(keyed, child, inbound_sa(child, spi, aead=aead, key=key, nic=nic), nic)

    def _known(self, child_id: ChildId) -> Child:
        child = self._children(child_id)
        if child is None:
            raise Refused("installing", reason=f"the policy has no {child_id}")
        return child

    def _draw(self, own: OfferSeq) -> Spi:
        """An SPI never used before under this offer: the same SPI would give the same key."""
        drawn = self._used.setdefault(own, _Used()).drawn
        while (spi := self._entropy.spi()) in drawn:
            pass
        drawn.add(spi)
        return Spi(spi)

    def _add_all(
        self, jobs: list[_Job], order: InstallInbound, refused: list[NotInstalled]
    ) -> list[_Job]:
        """Add SAs; an SPI that somebody else uses is drawn again."""
        added: list[_Job] = []
        for attempt in range(DRAWS):
            answers = self._add(jobs, SaDirection.INBOUND)
            again: list[_Job] = []
            for job, answer in zip(jobs, answers, strict=True):
                if answer is None:
                    added.append(job)
                elif answer.errno == errno.EEXIST and attempt + 1 < DRAWS:
                    again.append(self._inbound_job(job.child.id, order))
                else:
                    refused.append(NotInstalled(job.child.id, str(answer)))
            jobs = again
            if not jobs:
                break
        return added

    def _follows(self, job: _Job, refused: list[NotInstalled]) -> bool:
        """Give a NIC that delivers past the kernel the inbound SPs of a child too."""
        wanted = inbound_sps(job.child, job.sa.offload)
        if all(sp.offload is None for sp in wanted):
            return True
        problem = self._put(wanted)
        if problem is None:
            return True
        self._give_up(job, problem, refused)
        return False

    # Outbound

    def install_outbound(self, order: InstallOutbound) -> OutboundSwitched:
        """The twins of confirmed SAs, then the switch of the SPs that pin them."""
        refused: list[NotInstalled] = []
        jobs: list[_Job] = []
        for keyed in order.sas:
            made_before = self._made_before(keyed)
            if made_before is not None:
                refused.append(NotInstalled(keyed.child, made_before))
                continue
            try:
                jobs.append(self._outbound_job(keyed))
            except Refused as error:
                refused.append(NotInstalled(keyed.child, str(error)))
        added: list[_Job] = []
        for job, answer in zip(jobs, self._add(jobs, SaDirection.OUTBOUND), strict=True):
            if answer is None:
                added.append(job)
            else:
                refused.append(NotInstalled(job.child.id, str(answer)))
        standing = self._read_back(added, refused)
        switched = [job.keyed for job in standing if self._switched(job, refused)]
        self._remember_refused(order, refused)
        return OutboundSwitched(tuple(switched), tuple(refused))

    def pass_over(self, order: PassOver) -> None:
        """Refuse these for good, whoever forgets meanwhile that they were named."""
        for keyed in order.sas:
            used = self._used.setdefault(keyed.own_offer, _Used())
            passed = f"SA {spi_hex(keyed.spi)} was passed over while another keying had the flow"
            used.derived.setdefault((keyed.child, keyed.spi), passed)

    def _remember_refused(self, order: InstallOutbound, refused: Sequence[NotInstalled]) -> None:
        reasons = {one.child: one.reason for one in refused}
        for keyed in order.sas:
            used = self._used.get(keyed.own_offer)
            name = (keyed.child, keyed.spi)
            if used is not None and name in used.derived and keyed.child in reasons:
                used.derived[name] = reasons[keyed.child]

    def _outbound_job(self, keyed: Keyed) -> _Job:
        key = self._outbound_key(keyed)
        try:
            child = self._known(keyed.child)
            if keyed.aead not in child.aeads:
                raise Refused(f"AEAD {keyed.aead}", reason="the policy does not allow it")
            if keyed.esn is not child.esn:
                bits = SequenceNumbers.EXTENDED if keyed.esn else SequenceNumbers.SHORT
                what = f"{bits} sequence numbers"
                raise Refused(what, reason="the policy wants them otherwise")
            nic = self._offloads.nic(child, keyed.aead)
        except Refused:
            key.wipe()
            raise
        sa = outbound_sa(child, keyed.spi, aead=keyed.aead, key=key, nic=nic)
        return _Job(keyed, child, sa, nic)

    def _made_before(self, keyed: Keyed) -> str | None:
        """Law 3: a record may be read again, after a policy came and went too; a key is made once.

        What was refused once is refused for good, for the same reason: the peer counts on it.
        """
        used = self._used.get(keyed.own_offer)
        return None if used is None else used.derived.get((keyed.child, keyed.spi))

    def _outbound_key(self, keyed: Keyed) -> Secret:
        key = self._keys.outbound_key(keyed)
        again = f"SA {spi_hex(keyed.spi)} was made before and is gone"
        self._used.setdefault(keyed.own_offer, _Used()).derived[keyed.child, keyed.spi] = again
        return key

    def _switched(self, job: _Job, refused: list[NotInstalled]) -> bool:
        """Pin the new SA in the outbound SPs of a child; all of them or none."""
        problem = self._put(outbound_sps(job.child, job.keyed.spi, job.sa.offload))
        if problem is None:
            return True
        self._give_up(job, problem, refused)
        return False

    def _give_up(self, job: _Job, problem: str, refused: list[NotInstalled]) -> None:
        """SPs do not stand as a new SA needs them: it goes."""
        self.remove([job.sa.id])
        if job.nic is not None and job.nic.kind is OffloadKind.PACKET:
            self._offloads.declined(job.child, job.keyed.aead, job.nic, problem)
        refused.append(NotInstalled(job.child.id, problem))

    def pin_standing(self, child: Child, spi: Spi) -> str:
        """Pin an SA that another program installed for a child: charon. Empty, or why not."""
        try:
            sa = self._kernel.sa(outbound_id(child, spi))
        except (Refused, Unavailable) as error:
            return str(error)
        if sa is None:
            return f"SA {spi_hex(spi)} is not in the kernel"
        return self._put(outbound_sps(child, spi, sa.offload)) or ""

    def _put(self, wanted: Sequence[Sp]) -> str | None:
        """None, or why these SPs do not stand."""
        steps: list[Step] = []
        try:
            found = read_sps(self._kernel, [sp.id for sp in wanted])
            for sp in wanted:
                before = found.get(sp.id)
                if before is not None and not is_our_sp(before):
                    return f"another program's SP stands under {sp.id}"
                steps.append(AddSp(sp) if before is None else UpdateSp(sp, before))
            return perform(self._kernel, steps)
        except (Refused, Unavailable) as error:
            return str(error)

    # Both

    def _add(self, jobs: Sequence[_Job], direction: SaDirection) -> list[Refused | None]:
        answers = self._apply([AddSa(job.sa, direction) for job in jobs])
        self._add_without_nic(jobs, answers, direction)
        for job in jobs:
            if job.sa.key is not None:
                job.sa.key.wipe()
        return answers

    def _add_without_nic(
        self, jobs: Sequence[_Job], answers: list[Refused | None], direction: SaDirection
    ) -> None:
        """What a NIC took no more, though it took a trial, the CPU does, where the policy leaves it
        to us. The key was never in the kernel."""
        for at, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
            if job.nic is None or answer is None or answer.errno == errno.EEXIST:
                continue
            self._offloads.declined(job.child, job.keyed.aead, job.nic, answer.reason)
            if job.child.offload is OffloadWish.AUTO:
                (answers[at],) = self._apply([AddSa(_by_cpu(job), direction)])

    def _read_back(self, jobs: list[_Job], refused: list[NotInstalled]) -> list[_Job]:
        """The jobs whose SAs the kernel holds as asked (law 5); the others are removed."""
        found = self._read_sas([job.sa.id for job in jobs])
        standing: list[_Job] = []
        for job in jobs:
            stands = self._as_asked(job, found.get(job.sa.id))
            if stands is None:
                self._not_as_asked(job, refused)
            else:
                standing.append(stands)
        return standing

    def _as_asked(self, job: _Job, actual: Sa | None) -> _Job | None:
        """The job as the kernel did it; None when that is not what was asked."""
        if actual is None:
            return None
        if sa_matches(job.sa, actual):
            return job
        if job.nic is None or job.child.offload is not OffloadWish.AUTO:
            return None
        by_cpu = _by_cpu(job)
        if not sa_matches(by_cpu, actual):
            return None
        if job.sa.offload is not None:
            reason = "it was not given the SAs that it took on trial"
            self._offloads.declined(job.child, job.keyed.aead, job.nic, reason)
        return replace(job, sa=by_cpu)

    def _not_as_asked(self, job: _Job, refused: list[NotInstalled]) -> None:
        self.remove([job.sa.id])
        reason = f"the kernel does not hold SA {job.sa.id} as asked"
        refused.append(NotInstalled(job.child.id, reason))

    def _read_sas(self, ids: Sequence[SaId]) -> Mapping[SaId, Sa]:
        try:
            if len(ids) >= DUMP_FROM:
                return self._kernel.sas()
            return {sa_id: sa for sa_id in ids if (sa := self._kernel.sa(sa_id)) is not None}
        except (Refused, Unavailable):
            return {}

    def _apply(self, steps: Sequence[Step]) -> list[Refused | None]:
        if not steps:
            return []
        try:
            return self._kernel.apply(steps)
        except Unavailable as error:
            return [Refused(str(step), reason=str(error)) for step in steps]

    # Less

    def remove(self, ids: Sequence[SaId]) -> bool:
        """Remove SAs; one that is gone already is no error.

        False when one may still be there: the kernel should be looked at soon.
        """
        answers = self._apply([RemoveSa(sa_id) for sa_id in ids])
        return all(answer is None or answer.errno == errno.ESRCH for answer in answers)

    def block(self, child: Child) -> bool:
        """Take a child's outbound protect SPs away; the block SPs hold the flow.

        False when one may still be there: it pins an SA that is going, so nothing passes in clear,
        but the kernel should be looked at soon.
        """
        try:
            found = read_sps(self._kernel, [sp.id for sp in outbound_sps(child, Spi(0))])
        except (Refused, Unavailable):
            return False
        answers = self._apply([RemoveSp(sp) for sp in found.values() if is_our_sp(sp)])
        return all(answer is None or answer.errno == errno.ENOENT for answer in answers)

    def read_usage(self, order: ReadUsage) -> list[PairEvent]:
        """What draining inbound SAs have carried."""
        carried: list[Carried] = []
        ids = {(child_id, spi): SaId(child_id.local, spi) for child_id, spi in order.sas}
        try:
            found = self._kernel.sas() if len(ids) >= DUMP_FROM else None
            for (child_id, spi), sa_id in ids.items():
                sa = self._kernel.sa(sa_id) if found is None else found.get(sa_id)
                packets = None if sa is None else sa.usage.usage_packets
                carried.append(Carried(child_id, spi, packets))
        except (Refused, Unavailable):
            pass  # those not asked about are looked at again after a drain
        return [UsageRead(tuple(carried))]


def _by_cpu(job: _Job) -> Sa:
    """A job's SA without its NIC."""
    make = inbound_sa if job.sa.id.dst == job.child.id.local else outbound_sa
    return make(job.child, job.keyed.spi, aead=job.keyed.aead, key=job.sa.key)


def read_sps(kernel: Kernel, ids: Collection[SpId]) -> Mapping[SpId, Sp]:
    """Those of these SPs that the kernel holds; raises Refused or Unavailable."""
    if len(ids) >= DUMP_FROM:
        held = kernel.sps()
        return {sp_id: held[sp_id] for sp_id in ids if sp_id in held}
    return {sp_id: sp for sp_id in ids if (sp := kernel.sp(sp_id)) is not None}


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
    found = read_sps(kernel, wanted)
    for sp_id, sp in wanted.items():
        actual = found.get(sp_id)
        if actual is None or not sp_matches(sp, actual):
            return f"the kernel does not hold SP {sp} as asked"
    return None
