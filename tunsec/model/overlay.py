"""Tunnel devices: the overlays whose packets are to be protected."""

from dataclasses import dataclass

from tunsec.model.flow import Kind
from tunsec.model.names import Address, Vni


@dataclass(frozen=True, slots=True)
class OverlayDevice:
    """A tunnel device as the kernel shows it."""

    name: str
    ifindex: int
    kind: Kind
    port: int
    mtu: int
    local: Address | None
    remote: Address | None
    group: Address | None
    vni: Vni | None
    external: bool
    underlay_mtu: int | None
    """MTU of the route to `remote`, or of the bound device; None when neither is known."""


@dataclass(frozen=True, slots=True)
class LookupFault:
    """What this kernel cannot protect: tunnels of a kind over one IP version, and why."""

    kind: Kind
    version: int
    reason: str
