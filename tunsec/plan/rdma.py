"""RoCE beside IPsec: flows that an RDMA device would carry past the kernel, where no SA reaches
them (law 6), and packets that do not fit the underlay once protected."""

from collections.abc import Iterable, Mapping
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.flow import Child, ChildId, Kind, OffloadWish
from tunsec.model.names import Address
from tunsec.model.rdma import RdmaDevice
from tunsec.plan.mtu import roce_warning

REMEDY: Final = (
    "say 'offload: packet' if it can do IPsec itself, or switch off its RoCE (devlink dev param "
    "set, enable_roce) and use Soft-RoCE (rdma link add)"
)


def roce_warnings(
    children: Iterable[Child], underlay_mtus: Mapping[Address, int | None]
) -> tuple[str, ...]:
    """RoCE children whose full-size packets do not fit with ESP, by the MTU of the way to each."""
    found: list[str] = []
    for child in children:
        mtu = underlay_mtus.get(child.id.remote)
        if child.kind is not Kind.ROCEV2 or mtu is None:
            continue
        warning = roce_warning(
            f"{child.id.flow} to {child.id.peer} {child.id.remote}",
            version=child.id.remote.version,
            aead=Aead.AES_128_GCM,  # all AEADs of tunsec have the same overhead
            underlay_mtu=mtu,
        )
        if warning is not None:
            found.append(warning)
    return tuple(found)


def bypassed(
    children: Iterable[Child],
    devices: Iterable[RdmaDevice],
    holders: Mapping[Address, str],
) -> dict[ChildId, str]:
    """RoCE children whose local address a hardware device sends from, and why that will not do.

    `holders` are this host's addresses with the network devices that hold them. With `offload:
    packet` the device itself encrypts: whether it does is read back with each SA.
    """
    past = [device for device in devices if device.hardware and device.roce]
    found: dict[ChildId, str] = {}
    for child in children:
        if child.kind is not Kind.ROCEV2 or child.offload is OffloadWish.PACKET:
            continue
        holder = holders.get(child.id.local)
        names = [device.name for device in past if holder in device.netdevs]
        if names:
            found[child.id] = (
                f"{', '.join(names)} sends RoCE from {holder} past the kernel: ESP cannot protect "
                f"it, nor can tunsec block it; {REMEDY}"
            )
    return found
