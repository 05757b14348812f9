"""Which child an SA in the kernel belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

from tunsec.daemon.install import inbound_id, outbound_id
from tunsec.machines.flow import FlowState
from tunsec.model.flow import ChildId
from tunsec.model.sa import SaId


@dataclass(frozen=True, slots=True)
class Owner:
    """A child, and whether it receives on the SA."""

    child: ChildId
    inbound: bool


class SaIndex:
    """SAs of all flow machines by id, kept in step with them."""

    def __init__(self) -> None:
        self._owners: dict[SaId, Owner] = {}

    def owner(self, sa_id: SaId) -> Owner | None:
        """Whose an SA is; None for one that no machine knows."""
        return self._owners.get(sa_id)

    def update(self, old: FlowState | None, new: FlowState | None) -> None:
        """A flow machine went from one state to another."""
        before, after = _owned(old), _owned(new)
        for sa_id in before.keys() - after.keys():
            self._owners.pop(sa_id, None)
        self._owners.update(after)


def _owned(flow: FlowState | None) -> Mapping[SaId, Owner]:
    if flow is None:
        return {}
    child = flow.child
    return {inbound_id(child, sa.spi): Owner(child.id, True) for sa in flow.inbound} | {
        outbound_id(child, sa.spi): Owner(child.id, False) for sa in flow.outbound
    }
