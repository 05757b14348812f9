"""Tunnel devices beside the flows of a policy: full-size packets that do not fit once protected,
and devices whose packets no flow covers."""

from collections.abc import Collection, Iterable

from tunsec.model.aead import Aead
from tunsec.model.flow import Child
from tunsec.model.guard import GuardedFlow
from tunsec.model.overlay import OverlayDevice
from tunsec.plan.mtu import mtu_warning


def mtu_warnings(
    guarded: Iterable[GuardedFlow], devices: Iterable[OverlayDevice]
) -> tuple[str, ...]:
    """Devices of protected flows whose full-size packets do not fit with ESP, a line each."""
    by_port = {(flow.kind, port) for flow in guarded for port in flow.ports}
    found: list[str] = []
    for device in devices:
        if (device.kind, device.port) not in by_port or device.underlay_mtu is None:
            continue
        end = device.remote or device.local
        warning = mtu_warning(
            device.name,
            device.kind,
            mtu=device.mtu,
            version=end.version if end else 4,
            aead=Aead.AES_128_GCM,  # all AEADs of tunsec have the same overhead
            underlay_mtu=device.underlay_mtu,
        )
        if warning is not None:
            found.append(warning)
    return tuple(found)


def uncovered_devices(
    guarded: Iterable[GuardedFlow], children: Collection[Child], devices: Iterable[OverlayDevice]
) -> tuple[str, ...]:
    """Tunnel devices to peers of the policy on a port that no flow names: they go in clear."""
    ports = {(flow.kind, port) for flow in guarded for port in flow.ports}
    peers = {child.id.remote: child.id.peer for child in children}
    return tuple(
        f"{device.name} ({device.kind} on port {device.port}) goes to {peers[device.remote]} "
        f"in clear: no flow of the policy has this port"
        for device in devices
        if device.remote in peers and (device.kind, device.port) not in ports
    )
