"""What became of a cluster: is it at rest, who has proven anew who it is, what is left over."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from scenarios.failover.stage import Stage
from tunsec.cli.client import Failed
from tunsec.keying.records import decode_signed_offer
from tunsec.model.flow import Keying
from tunsec.wire.control import FlowStatus, Status
from tunsec_lab.host import Host
from tunsec_lab.pile_up import left_over, lines

OWN_AND_SPARE: Final = [False, True]
"""CHILD_SAs of a flow at rest: one of each sender."""


def restless(stage: Stage) -> str:
    """What a host still waits for or has to do; empty when all are at rest."""
    for host in stage.hosts:
        try:
            status = stage.cluster.status(host)
            unfinished = [unrest(flow) for flow in status.flows if unrest(flow)]
            unfinished += stage.cluster.client(host).plan(None).steps
        except Failed as error:
            unfinished = [str(error)]
        if unfinished:
            return f"{host.name}: {'; '.join(unfinished)}"
    return ""


def unrest(flow: FlowStatus) -> str:
    """What a flow waits for; empty when it has what it sends and receives on, and no more."""
    here = f"{flow.flow} with {flow.peer} over {flow.local}"
    if flow.state != "INSTALLED":
        return f"{here} is {flow.state} ({flow.reason})"
    if flow.ike is not None:
        senders = sorted(one.own for one in flow.ike.child_sas)
        if senders != OWN_AND_SPARE:
            return f"{here} has CHILD_SAs {flow.ike.child_sas}"
    return ""


def orphans(before: Counter[str], now: Counter[str]) -> list[str]:
    """What there is more or less of than in a fresh cluster, in words."""
    return [
        f"{name}: {now[name]}, not {before[name]}"
        for name in sorted(before | now)
        if before[name] != now[name]
    ]


def idle(now: Counter[str]) -> str:
    """Which IKE_SAs carry nothing: a fresh cluster may have some, for a moment."""
    return ", ".join(f"{name}: {count}" for name, count in now.items() if count and "idle" in name)


def leftovers(stage: Stage) -> Counter[str]:
    """SAs, SPs, IKE_SAs and files of all hosts."""
    return left_over(stage.cluster)


@dataclass(frozen=True)
class Credentials:
    """By what the hosts of a cluster know each other at one moment."""

    at: float
    """Monotonic seconds."""
    offers: dict[str, int]
    """Of each host the sequence of its offer; empty by IKE."""
    spis: frozenset[str]
    """Of all flows of all hosts, both directions."""

    @classmethod
    def of(cls, stage: Stage, at: float) -> "Credentials":
        """As things stand; `at` is now."""
        statuses = [stage.cluster.status(host) for host in stage.hosts]
        return cls(at, offers(stage), frozenset().union(*map(spis_of, statuses)))

    def outlasting(self, stage: Stage, now: float) -> str:
        """What of them is still of use, in words. Empty when since then who was away has proven
        anew who he is (by an offer; by IKE both ends do), all flows use other SPIs, and nothing of
        the old ones is in any kernel."""
        try:
            statuses = {host.name: stage.cluster.status(host) for host in stage.hosts}
        except Failed as error:
            return str(error)
        for name, status in statuses.items():
            if unproven := self._unproven(status, now):
                return f"{name}: {unproven}"
        if stage.keying is Keying.DIRECTORY:
            fresh = offers(stage)
            if all(fresh.get(name, sequence) == sequence for name, sequence in self.offers.items()):
                return "no host has made a new offer"
        for host in stage.hosts:
            if old := sorted(self.spis & kernel_spis(host)):
                return f"{host.name}: in its kernel there are SAs of before: {', '.join(old)}"
        return ""

    def _unproven(self, status: Status, now: float) -> str:
        for flow in status.flows:
            here = f"{flow.flow} with {flow.peer} over {flow.local}"
            if not flow.protected:
                return f"{here} is not protected ({flow.reason})"
            if flow.ike is not None:
                age = flow.ike.authenticated
                if age is None or now - age < self.at:
                    return f"{here} goes by an IKE_SA of before (authenticated {age} s ago)"
        if old := sorted(self.spis & spis_of(status)):
            return f"flows use SPIs of before: {', '.join(old)}"
        return ""


def offers(stage: Stage) -> dict[str, int]:
    """Of each host the sequence of the offer in the directory."""
    folder = stage.cluster.directory / "offers"
    if stage.keying is not Keying.DIRECTORY or not folder.is_dir():
        return {}
    return {
        path.name: decode_signed_offer(path.read_bytes(), path=str(path)).offer.sequence
        for path in folder.iterdir()
    }


def spis_of(status: Status) -> frozenset[str]:
    """What a host's flows use."""
    used = {spi for flow in status.flows for spi in (flow.spi_in, flow.spi_out)}
    return frozenset(spi for spi in used if spi is not None)


def kernel_spis(host: Host) -> set[str]:
    """Of every SA in a host's kernel."""
    return {line.split(" spi 0x")[1].split()[0].zfill(8) for line in lines(host, "state")}
