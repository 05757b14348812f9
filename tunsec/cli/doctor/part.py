"""This host's part of a good policy: what the other checks go by."""

from dataclasses import dataclass
from typing import Self

from tunsec.model.flow import Keying
from tunsec.policy.desired import Desired, desired
from tunsec.policy.intent import Flow, Host, Intent


@dataclass(frozen=True, slots=True)
class Part:
    """The host, the flows in which it takes part, and what its kernel must hold for them."""

    intent: Intent
    host: Host
    flows: tuple[Flow, ...]
    desired: Desired

    @classmethod
    def of(cls, intent: Intent, name: str) -> Self:
        """Of a host; raises PolicyError when the policy does not name it."""
        host = intent.host(name)
        return cls(
            intent,
            host,
            tuple(flow for flow in intent.flows if host.name in flow.hosts),
            desired(intent, name),
        )

    def uses(self, keying: Keying) -> bool:
        """Whether a flow of this host is keyed so."""
        return any(flow.keying is keying for flow in self.flows)
