"""How the children of a host stand, whoever keys them."""

from dataclasses import dataclass

from tunsec.daemon.engine import Engine
from tunsec.machines import ike_peer, pair
from tunsec.machines.flow import FlowState, Phase
from tunsec.machines.ike_flow import IkeFlow
from tunsec.model.clock import Instant
from tunsec.model.flow import Child
from tunsec.model.names import Spi
from tunsec.model.sa import SaId


@dataclass(frozen=True, slots=True)
class Standing:
    """A child, and what the machines have of it: both of them while it moves between keyings."""

    child: Child
    phase: Phase
    """Of the machine that has its SPs."""
    reason: str
    moving: bool
    pinned: Spi | None
    """The outbound SA that its SPs name."""
    pair: FlowState | None
    ike: IkeFlow | None

    @property
    def sas(self) -> frozenset[SaId]:
        """All SAs that the machines know."""
        local, remote = self.child.id.local, self.child.id.remote
        return frozenset(
            [
                *(SaId(local, spi) for spi in self._spis(inbound=True)),
                *(SaId(remote, spi) for spi in self._spis(inbound=False)),
            ]
        )

    def _spis(self, *, inbound: bool) -> list[Spi]:
        found: list[Spi] = []
        if self.pair is not None:
            found += [sa.spi for sa in (self.pair.inbound if inbound else self.pair.outbound)]
        if self.ike is not None:
            found += [one.spi_in if inbound else one.spi_out for one in self.ike.held]
            found += [stray.spi for stray in self.ike.strays if stray.inbound is inbound]
        return found

    def __str__(self) -> str:
        parts = [f"{self.child.id} by {self.child.keying}: {self.phase} {self.reason}"]
        if self.moving:
            parts.append("moving")
        if self.pinned is not None:
            parts.append(f"sends on {self.pinned:08x}")
        if self.pair is not None:
            inbound = ", ".join(f"{sa.spi:08x} {sa.state}" for sa in self.pair.inbound)
            outbound = ", ".join(f"{sa.spi:08x} {sa.state}" for sa in self.pair.outbound)
            parts.append(f"in [{inbound}] out [{outbound}]")
        if self.ike is not None:
            parts += [
                f"{'own' if one.own else 'peer'} {one.slot} #{one.ike}/{one.id} {one.state} "
                f"in {one.spi_in:08x} out {one.spi_out:08x}"
                for one in self.ike.held
            ]
            strays = (f"{one.spi:08x} {'in' if one.inbound else 'out'}" for one in self.ike.strays)
            parts.append(f"strays [{', '.join(strays)}]")
            parts.append(f"attempt {self.ike.attempt} retry {self.ike.retry_at}")
        return "; ".join(parts)


def standings(engine: Engine, now: Instant) -> list[Standing]:
    """Every child of the policy in force."""
    by_pair = {flow.child.id: (state, flow) for state, flow in engine.flows()}
    by_ike = {flow.child.id: (one.state, flow) for one, flow in engine.ike.flows()}
    found: list[Standing] = []
    for child in engine.scope.children:
        flow = by_pair[child.id][1] if child.id in by_pair else None
        ike = by_ike[child.id][1] if child.id in by_ike else None
        moving = engine.is_moving(child.id)
        if ike is not None and (flow is None or engine.pinned_by_ike(child.id)):
            state = by_ike[child.id][0]
            reason = ike_peer.blocked_reason(state, ike, now)
            phase, pinned = ike.phase(now), ike.pinned
        elif flow is not None:
            active = flow.active_outbound
            reason = pair.blocked_reason(by_pair[child.id][0], flow)
            phase, pinned = flow.phase, None if active is None else active.spi
        else:
            phase, reason, pinned = Phase.BLOCKED, "no machine has it", None
        found.append(Standing(child, phase, reason, moving, pinned, flow, ike))
    return found
