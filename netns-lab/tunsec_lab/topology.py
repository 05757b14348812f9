"""Topologies as data: which hosts there are, how they are wired, what they carry over the wire.

Reads the YAML files of netns-lab/topologies into frozen dataclasses. Knows no kernel; host.py
makes namespaces of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_interface,
)
from pathlib import Path
from typing import Final, TypeVar

import yaml

from tunsec_lab.errors import LabError

FOLDER: Final = Path(__file__).resolve().parent.parent / "topologies"
VXLAN_PORT: Final = 4789
GENEVE_PORT: Final = 6081
LONGEST_DEVICE_NAME: Final = 15
MTU_RANGE: Final = range(1280, 65536)  # below 1280 a device has no IPv6 (RFC 8200 section 5)
VNI_RANGE: Final = range(1 << 24)
PORT_RANGE: Final = range(1, 1 << 16)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
T = TypeVar("T")


class Family(StrEnum):
    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def version(self) -> int:
        return 4 if self is Family.IPV4 else 6


class OverlayKind(StrEnum):
    VXLAN = "vxlan"
    GENEVE = "geneve"

    @property
    def port(self) -> int:
        return VXLAN_PORT if self is OverlayKind.VXLAN else GENEVE_PORT


@dataclass(frozen=True, slots=True)
class Network:
    """A wire: a bridge in the switch namespace."""

    name: str
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Link:
    """A host's plug on a wire."""

    name: str
    network: str
    addresses: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class HostSpec:
    name: str
    links: tuple[Link, ...]

    def address(self, family: Family) -> Address | None:
        """Where this host is reached on the underlay: its first address of a family."""
        every = (plug.ip for link in self.links for plug in link.addresses)
        return next((ip for ip in every if ip.version == family.version), None)


@dataclass(frozen=True, slots=True)
class Overlay:
    """A network that the kernel tunnels between its members."""

    name: str
    kind: OverlayKind
    vni: int
    family: Family
    port: int
    mtu: int
    device: str
    members: Mapping[str, tuple[Interface, ...]]


@dataclass(frozen=True, slots=True)
class Topology:
    name: str
    networks: tuple[Network, ...]
    hosts: tuple[HostSpec, ...]
    overlays: tuple[Overlay, ...] = ()

    def host(self, name: str) -> HostSpec:
        return next(host for host in self.hosts if host.name == name)

    def network(self, name: str) -> Network:
        return next(network for network in self.networks if network.name == name)


def load_topology(source: str | Path) -> Topology:
    """From a file, or by its name in netns-lab/topologies."""
    path = source if isinstance(source, Path) else FOLDER / f"{source}.yaml"
    try:
        text = path.read_text()
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise LabError(
            f"cannot read topology {path}: {error.strerror}", remedy=f"there are: {known}"
        ) from error
    return parse_topology(text, name=path.stem)


def parse_topology(text: str, *, name: str) -> Topology:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LabError(f"topology {name} is not YAML: {error}") from error
    top = Reader(document, f"topology {name}")
    networks = tuple(network for network in top.each("networks", read_network))
    wires = frozenset(network.name for network in networks)
    hosts = tuple(top.each("hosts", lambda label, spot: read_host(label, spot, wires)))
    topology = Topology(
        name=name,
        networks=networks,
        hosts=hosts,
        overlays=tuple(
            top.each(
                "overlays", lambda label, spot: read_overlay(label, spot, hosts), optional=True
            )
        ),
    )
    top.finish()
    if len(hosts) == 0:
        raise LabError(f"topology {name} has no hosts")
    return topology


class Reader:
    """A mapping of the document, and where it stands. What was not asked for is an error."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise LabError(f"{where}: expected a mapping, found {document!r}")
        self.document = dict(document)
        self.where = where

    def take(self, key: str, read: Callable[[object], T], default: T | None = None) -> T:
        if key not in self.document:
            if default is None:
                raise LabError(f"{self.where}: {key} is missing")
            return default
        value = self.document.pop(key)
        try:
            return read(value)
        except (TypeError, ValueError) as error:
            raise LabError(f"{self.where}.{key}: {error}") from error

    def each(
        self, key: str, read: Callable[[str, "Reader"], T], *, optional: bool = False
    ) -> list[T]:
        nothing: dict[str, object] = {}
        entries = self.take(key, mapping, nothing if optional else None)
        found = []
        for label, entry in entries.items():
            spot = Reader({} if entry is None else entry, f"{self.where}.{key}.{label}")
            found.append(read(label, spot))
            spot.finish()
        return found

    def finish(self) -> None:
        if self.document:
            raise LabError(f"{self.where}: unknown keys {', '.join(map(str, self.document))}")


def read_network(label: str, spot: Reader) -> Network:
    return Network(device_name(label), spot.take("mtu", number(MTU_RANGE), 1500))


def read_host(label: str, spot: Reader, wires: frozenset[str]) -> HostSpec:
    def read_link(name: str, plug: Reader) -> Link:
        network = plug.take("network", str)
        if network not in wires:
            raise LabError(f"{plug.where}.network: there is no network {network}")
        device_name(port_name(label, name))
        return Link(device_name(name), network, plug.take("addresses", interfaces, ()))

    return HostSpec(label, tuple(spot.each("links", read_link)))


def read_overlay(label: str, spot: Reader, hosts: tuple[HostSpec, ...]) -> Overlay:
    kind = spot.take("kind", lambda text: OverlayKind(str(text)))
    vni = spot.take("vni", number(VNI_RANGE))
    family = spot.take("family", lambda text: Family(str(text)), Family.IPV4)
    overlay = Overlay(
        name=label,
        kind=kind,
        vni=vni,
        family=family,
        port=spot.take("port", number(PORT_RANGE), kind.port),
        mtu=spot.take("mtu", number(MTU_RANGE)),
        device=spot.take("device", device_name, f"{'vx' if kind == 'vxlan' else 'gnv'}{vni}"),
        members=spot.take("members", read_members),
    )
    if len(overlay.members) < 2:
        raise LabError(f"{spot.where}.members: an overlay needs two or more")
    if kind is OverlayKind.GENEVE and len(overlay.members) > 2:
        raise LabError(f"{spot.where}.members: a geneve device has exactly one remote")
    underlay = {host.name: host.address(family) for host in hosts}
    for name in overlay.members:
        if underlay.get(name) is None:
            raise LabError(f"{spot.where}.members.{name}: no such host with an {family} address")
    return overlay


def read_members(value: object) -> dict[str, tuple[Interface, ...]]:
    return {name: interfaces(addresses) for name, addresses in mapping(value).items()}


def port_name(host: str, link: str) -> str:
    """The switch's end of a host's link."""
    return f"{host}.{link}"


def mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a mapping, found {value!r}")
    return {str(key): entry for key, entry in value.items()}


def number(allowed: range) -> Callable[[object], int]:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
            raise ValueError(f"{value!r} is not a number from {allowed[0]} to {allowed[-1]}")
        return value

    return read


def interfaces(value: object) -> tuple[Interface, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of addresses with prefix length, found {value!r}")
    for text in value:
        if "/" not in str(text):
            raise ValueError(f"{text!r} lacks its prefix length (192.0.2.1/24)")
    return tuple(ip_interface(str(text)) for text in value)


def device_name(value: object) -> str:
    text = str(value)
    if not 0 < len(text) <= LONGEST_DEVICE_NAME or set(text) & set("/: \t"):
        raise LabError(
            f"{text!r} is no name for a network device",
            remedy=f"at most {LONGEST_DEVICE_NAME} characters, host and link name together "
            f"at most {LONGEST_DEVICE_NAME - 1}",
        )
    return text
