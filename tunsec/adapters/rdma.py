"""RDMA devices of this host, from sysfs (Documentation/ABI/stable/sysfs-class-infiniband)."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tunsec.model.errors import Unavailable
from tunsec.model.rdma import RdmaDevice

SYSFS: Final = Path("/sys")
CHANNEL_ADAPTER: Final = "1:"
"""How node_type of RoCE and InfiniBand devices begins; iWARP's is `4: RNIC`."""
ETHERNET: Final = "Ethernet"


class HostRdma:
    """ports.Rdma. Of the network namespace that sysfs was mounted in."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._devices = sysfs / "class/infiniband"
        self._netdevs = sysfs / "class/net"

    def devices(self) -> tuple[RdmaDevice, ...]:
        """Every RDMA device, by name; none where the kernel has no RDMA. Raises Unavailable."""
        try:
            folders = sorted(self._devices.iterdir())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Unavailable(f"cannot list RDMA devices: {error.strerror}") from error
        return tuple(self._device(folder) for folder in folders)

    def _device(self, folder: Path) -> RdmaDevice:
        ports = sorted(folder.glob("ports/*"))
        links = {_text(port / "link_layer") for port in ports}
        return RdmaDevice(
            name=folder.name,
            # Soft-RoCE and Soft-iWARP hang on a network device, not on a bus.
            hardware=(folder / "device").exists(),
            roce=_text(folder / "node_type").startswith(CHANNEL_ADAPTER) and ETHERNET in links,
            netdevs=frozenset(self._with_uppers(_netdevs(folder, ports))),
        )

    def _with_uppers(self, names: Iterable[str]) -> set[str]:
        """VLANs, bonds and the like too: the kernel gives a device their addresses as GIDs
        (drivers/infiniband/core/roce_gid_mgmt.c)."""
        found: set[str] = set()
        waiting = [name for name in names if name]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                uppers = (self._netdevs / name).glob("upper_*")
                waiting += [upper.name.removeprefix("upper_") for upper in uppers]
        return found


def _netdevs(folder: Path, ports: Iterable[Path]) -> Iterator[str]:
    """By Soft-RoCE's own word, by the bus, and by the addresses that a device already has."""
    yield _text(folder / "parent")
    for netdev in folder.glob("device/net/*"):
        yield netdev.name
    for port in ports:
        for entry in port.glob("gid_attrs/ndevs/*"):
            yield _text(entry)


def _text(path: Path) -> str:
    """Empty for what is not there: an unused place of a GID table cannot be read either."""
    with suppress(OSError):
        return path.read_text().strip()
    return ""
