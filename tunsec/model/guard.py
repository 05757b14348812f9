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
    """Only the kernel itself may send here: packets without the tunnel mark, and for RDS and RoCE
    those of programs' sockets, are dropped (what a local user sends must not get encrypted and
    trusted: CVE-2026-92542)."""
    strangers_blocked: bool = False
    """The rules hold for any address of both families, not for the peers alone."""
    tenants: tuple[TenantMark, ...] = ()
    """VNIs with SAs of their own: what arrives under one's mark with another's VNI is dropped."""
    gated: bool = False
    """Each new connection needs a verdict of the daemon before its first packet goes on."""
    others: Mark | None = None
    """What marks the VNIs that no tenant names, where they are not blocked."""


@dataclass(frozen=True, slots=True)
class TunnelDevice:
    """An overlay device whose egress gets a mark: the tunnel mark or that of its tenant.

    One without a VNI of its own (`external`) has it per packet: see VniMarks.
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

    def device_mark(self, device: TunnelDevice) -> Mark:
        """What every packet of a device bears: its tenant's mark, or the tunnel mark.

        Where flows of its port have tenants, that is the tunnel mark without any tenant's: a packet
        that came in for one tenant and is sent on for nobody must not keep the mark it came with.
        """
        by_vni, others = self._tenants(device)
        if not by_vni:
            return self.tunnel_mark
        tenant = others if device.vni is not None else None
        if device.vni in by_vni:
            tenant = by_vni[device.vni]
        some = next(iter(by_vni.values()))
        return tenant or Mark(self.tunnel_mark.value, self.tunnel_mark.mask | some.mask)

    def vni_marks(self, device: TunnelDevice) -> "VniMarks":
        """What packets of a device bear by their VNIs; nothing for a device that has one VNI."""
        if device.vni is not None:
            return VniMarks(device.name, device.ifindex)
        by_vni, others = self._tenants(device)
        return VniMarks(device.name, device.ifindex, tuple(sorted(by_vni.items())), others)

    def _tenants(self, device: TunnelDevice) -> tuple[dict[Vni, Mark], Mark | None]:
        """The marks of a device's port; what a flow in force says goes before a former one's."""
        by_vni: dict[Vni, Mark] = {}
        others: Mark | None = None
        for flow in self.flows:
            if flow.kind is device.kind and device.port in flow.ports:
                others = others or flow.others
                for one in flow.tenants:
                    by_vni.setdefault(one.vni, one.mark)
        return by_vni, others


@dataclass(frozen=True, slots=True)
class VniMarks:
    """What the packets of an `external` device bear, whose VNI is each packet's own."""

    device: str
    ifindex: int
    by_vni: tuple[tuple[Vni, Mark], ...] = ()
    others: Mark | None = None
    """Of VNIs that no tenant has; None leaves them to the SPs that block."""


@dataclass(frozen=True, slots=True)
class GuardDrops:
    """Packets the guard dropped since the table was made, per flow."""

    clear_out: int = 0
    clear_in: int = 0
    local_injection: int = 0
    cross_tenant: int = 0
    """Decrypted under the mark of one tenant, with the VNI of another one."""
