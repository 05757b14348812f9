"""What status says of every relation, whoever keys it."""

from collections.abc import Iterator

from tunsec.daemon.engine import Engine
from tunsec.machines.flow import PROTECTED, Phase
from tunsec.model.flow import Child, Keying, Mode
from tunsec.wire.control import FlowStatus


def child_status(child: Child, keying: Keying, phase: Phase, reason: str) -> FlowStatus:
    """A relation without SAs; `reason` is why it is not protected."""
    return FlowStatus(
        flow=child.id.flow,
        kind=child.kind,
        peer=child.id.peer,
        tenant=child.id.tenant,
        mode=Mode.ESP,
        keying=keying,
        local=str(child.id.local),
        remote=str(child.id.remote),
        state=phase,
        reason=reason,
        protected=phase in PROTECTED,
    )


def unmet_offload(engine: Engine, child: Child, phase: Phase) -> Iterator[str]:
    """Why SAs that still go on cannot have successors."""
    refusal = engine.offloads.refusal(child) if phase in PROTECTED else ""
    if refusal:
        yield f"no new SAs: {refusal}"
