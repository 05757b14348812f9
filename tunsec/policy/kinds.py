"""What each kind of flow looks like on the wire: the table of docs/policy.md, as data."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunsec.model.flow import Kind
from tunsec.model.names import Network
from tunsec.model.selector import TCP, UDP, PortMatch, Selector
from tunsec.model.sp import SpDirection


class Ports(StrEnum):
    """Where a selector looks for a kind's port."""

    DPORT = "dport"
    SPORT = "sport"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class OnWire:
    """A kind's packets as IPsec can see them, and what follows for its policy.

    `outbound` and `inbound` hold one entry per selector. `port` is the default, None when the
    admin must name one; `port_is_fixed` when the kernel knows no other. `precedence` ranks
    overlapping flows, 0 first: both hosts must pick the same flow for a packet, or the receiver
    drops it (XfrmInTmplMismatch), so whatever looks at one side's port only goes before what
    looks at both, and that before what looks at none.
    """

    proto: int
    port: int | None
    port_is_fixed: bool
    outbound: tuple[Ports, ...]
    inbound: tuple[Ports, ...]
    precedence: int
    has_connections: bool
    has_networks: bool
    """Whether packets carry a VNI, and so tenants can be told apart, and tunnel devices send."""
    kernel_sends: bool
    """Whether nobody but the kernel sends: by tunnel devices, or from sockets of its own."""

    @property
    def either_side(self) -> bool:
        """Whether either host may be the one that listens on the port."""
        return Ports.SPORT in self.outbound


_EITHER: Final = (Ports.DPORT, Ports.SPORT)
_TO_PORT: Final = (Ports.DPORT,)

# UDP source ports of VXLAN, Geneve and RoCEv2 are flow entropy (RFC 7348 section 5, RFC 8926
# section 3.3, InfiniBand Architecture Annex A17), so only dport may appear in their selectors.
ON_WIRE: Final[dict[Kind, OnWire]] = {
    Kind.VXLAN: OnWire(  # port: RFC 7348 section 5
        proto=UDP,
        port=4789,
        port_is_fixed=False,
        outbound=_TO_PORT,
        inbound=_TO_PORT,
        precedence=0,
        has_connections=False,
        has_networks=True,
        kernel_sends=True,
    ),
    Kind.GENEVE: OnWire(  # port: RFC 8926 section 3.3
        proto=UDP,
        port=6081,
        port_is_fixed=False,
        outbound=_TO_PORT,
        inbound=_TO_PORT,
        precedence=0,
        has_connections=False,
        has_networks=True,
        kernel_sends=True,
    ),
    # net/rds/tcp.h RDS_TCP_PORT. The larger address may dial first, so both hosts need both.
    Kind.RDS_TCP: OnWire(
        proto=TCP,
        port=16385,
        port_is_fixed=True,
        outbound=_EITHER,
        inbound=_EITHER,
        precedence=1,
        has_connections=True,
        has_networks=False,
        kernel_sends=True,
    ),
    # include/rdma/ib_verbs.h ROCE_V2_UDP_DPORT. Soft-RoCE asks for its route with protocol UDP
    # and no ports (drivers/infiniband/sw/rxe/rxe_net.c), so a port would never match outbound.
    Kind.ROCEV2: OnWire(
        proto=UDP,
        port=4791,
        port_is_fixed=True,
        outbound=(Ports.ANY,),
        inbound=_TO_PORT,
        precedence=2,
        has_connections=False,
        has_networks=False,
        kernel_sends=True,
    ),
    Kind.TCP: OnWire(
        proto=TCP,
        port=None,
        port_is_fixed=False,
        outbound=_EITHER,
        inbound=_EITHER,
        precedence=1,
        has_connections=True,
        has_networks=False,
        kernel_sends=False,
    ),
    Kind.UDP: OnWire(
        proto=UDP,
        port=None,
        port_is_fixed=False,
        outbound=_EITHER,
        inbound=_EITHER,
        precedence=1,
        has_connections=False,
        has_networks=False,
        kernel_sends=False,
    ),
}


def selectors(
    kind: Kind, direction: SpDirection, *, port: int, src: Network, dst: Network
) -> tuple[Selector, ...]:
    """The selectors of one direction, from src to dst; FWD has none: these kinds end in a host."""
    on_wire = ON_WIRE[kind]
    rules = {SpDirection.OUT: on_wire.outbound, SpDirection.IN: on_wire.inbound}
    return tuple(
        _selector(ports, proto=on_wire.proto, port=port, src=src, dst=dst)
        for ports in rules.get(direction, ())
    )


def _selector(ports: Ports, *, proto: int, port: int, src: Network, dst: Network) -> Selector:
    match ports:
        case Ports.DPORT:
            return Selector(src, dst, proto, dport=PortMatch(port))
        case Ports.SPORT:
            return Selector(src, dst, proto, sport=PortMatch(port))
        case Ports.ANY:
            return Selector(src, dst, proto)
