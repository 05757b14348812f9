"""Tunnel devices beside the flows of a policy: full-size packets that do not fit once protected,
devices that flood to a group, and devices whose packets no flow covers."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.flow import Child, Kind
from tunsec.model.guard import GuardedFlow
from tunsec.model.names import Address
from tunsec.model.overlay import OverlayDevice
from tunsec.plan.mtu import mtu_warning, overlay_mtu

AEAD: Final = Aead.AES_128_GCM
"""All AEADs of tunsec take the same room."""


def ways_wanted(
    guarded: Collection[GuardedFlow], devices: Iterable[OverlayDevice]
) -> frozenset[Address]:
    """Peers to whom devices of protected flows may send without naming them: the MTU of the way to
    each is wanted."""
    return frozenset(
        peer
        for device in devices
        if device.underlay_mtu is None
        for peer in _peers(guarded, device)
    )


def mtu_warnings(
    guarded: Collection[GuardedFlow],
    devices: Iterable[OverlayDevice],
    ways: Mapping[Address, int | None],
) -> tuple[str, ...]:
    """Devices of protected flows whose full-size packets do not fit with ESP, a line each.

    A device that names no remote has the smallest MTU of all `ways` to peers of its flow.
    """
    ports = _ports(guarded)
    found: list[str] = []
    for device in devices:
        if (device.kind, device.port) not in ports:
            continue
        if device.underlay_mtu is not None:
            end = device.remote or device.local
            known = [(end.version if end else 4, device.underlay_mtu)]
        else:
            met = ((peer.version, ways.get(peer)) for peer in _peers(guarded, device))
            known = [(version, mtu) for version, mtu in met if mtu is not None]
        warnings = {
            overlay_mtu(device.kind, version=version, aead=AEAD, underlay_mtu=mtu): mtu_warning(
                device.name,
                device.kind,
                mtu=device.mtu,
                version=version,
                aead=AEAD,
                underlay_mtu=mtu,
            )
            for version, mtu in known
        }
        tightest = min((fits for fits in warnings if fits is not None), default=None)
        warning = warnings.get(tightest)
        if warning is not None:
            found.append(warning)
    return tuple(found)


def group_warnings(
    guarded: Collection[GuardedFlow], devices: Iterable[OverlayDevice]
) -> tuple[str, ...]:
    """VXLAN devices that flood to a multicast group, which has no keys: a line each."""
    closed = _ports(flow for flow in guarded if flow.strangers_blocked)
    return tuple(
        f"{device.name}: no flow protects a group, so what it floods to {device.group} is "
        f"{'dropped' if (device.kind, device.port) in closed else 'SENT IN CLEAR'}; make it "
        f"without `group` and name each peer: `bridge fdb append 00:00:00:00:00:00 "
        f"dev {device.name} dst PEER`"
        for device in devices
        if device.group is not None and (device.kind, device.port) in _ports(guarded)
    )


def _ports(guarded: Iterable[GuardedFlow]) -> frozenset[tuple[Kind, int]]:
    return frozenset((flow.kind, port) for flow in guarded for port in flow.ports)


def _peers(guarded: Iterable[GuardedFlow], device: OverlayDevice) -> frozenset[Address]:
    """Of the flows on a device's port, as far as it can reach them: an external device sends over
    both IP versions, another one over that of its local address, IPv4 unless it has one."""
    version = device.local.version if device.local else 4
    return frozenset(
        peer
        for flow in guarded
        if flow.kind is device.kind and device.port in flow.ports
        for peer in flow.peers
        if device.external or peer.version == version
    )


def uncovered_devices(
    guarded: Iterable[GuardedFlow], children: Collection[Child], devices: Iterable[OverlayDevice]
) -> tuple[str, ...]:
    """Tunnel devices to peers of the policy on a port that no flow names: they go in clear."""
    ports = _ports(guarded)
    peers = {child.id.remote: child.id.peer for child in children}
    return tuple(
        f"{device.name} ({device.kind} on port {device.port}) goes to {peers[device.remote]} "
        f"in clear: no flow of the policy has this port"
        for device in devices
        if device.remote in peers and (device.kind, device.port) not in ports
    )
