"""The second layer of law 1: what the nftables table `tunsec` must hold."""

from dataclasses import dataclass

from tunsec.model.flow import Kind
from tunsec.model.names import Address, FlowName, Mark, TenantName, Vni


@dataclass(frozen=True, slots=True)
class TenantMark:
    """One VNI's packets: tunnel devices send them with the mark, and its inbound SAs set it."""

    tenant: TenantName
    vni: Vni
    mark: Mark


@dataclass(frozen=True, slots=True)
class GuardedFlow:
    """A flow's peers and port in the guard table, for one direction of thought: outbound to peers.

    `proto` is the transport protocol; `ports` are matched as dport, and as sport too when
    `either_side` (TCP, where either side may listen).
    """

    flow: FlowName
    kind: Kind
    proto: int
    ports: tuple[int, ...]
    either_side: bool
    peers: frozenset[Address]
    tunnel_only: bool
    """Only the kernel's tunnel devices may send here: packets without the tunnel mark are dropped
    (a local user's socket must not get its datagrams encrypted and trusted: CVE-2026-92542)."""
    strangers_blocked: bool = False
    """The rules hold for any address of both families, not for the peers alone."""
    tenants: tuple[TenantMark, ...] = ()
    """VNIs with SAs of their own: what arrives under one's mark with another's VNI is dropped."""
    gated: bool = False
    """Each new connection needs a verdict of the daemon before its first packet goes on."""
    others: Mark | None = None
    """What marks the VNIs that no tenant names, where they are not blocked."""

    def mark_of(self, vni: Vni | None, *, otherwise: Mark) -> Mark:
        """What marks the packets of a VNI; `otherwise` where it has no mark of its own."""
        for one in self.tenants:
            if one.vni == vni:
                return one.mark
        return self.others or otherwise


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """An overlay device whose egress gets a mark: the tunnel mark or that of its tenant.

    One without a VNI of its own (`external`) has it per packet: it is marked by each one's VNI.
    """

    name: str
    ifindex: int
    kind: Kind
    port: int
    vni: Vni | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """The whole table: flows, and the tunnel devices that may send on them."""

    flows: tuple[GuardedFlow, ...]
    devices: tuple[TunnelDevice, ...]
    tunnel_mark: Mark


@dataclass(frozen=True, slots=True)
class GuardDrops:
    """Packets the guard dropped since the table was made, per flow."""

    clear_out: int = 0
    clear_in: int = 0
    local_injection: int = 0
    cross_tenant: int = 0
    """Decrypted under the mark of one tenant, with the VNI of another one."""
