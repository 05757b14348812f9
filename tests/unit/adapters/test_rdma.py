"""RDMA devices as sysfs shows them: a tree in a folder."""

from pathlib import Path

import pytest

from tunsec.adapters.rdma import HostRdma
from tunsec.model.errors import Unavailable
from tunsec.model.rdma import RdmaDevice


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def add_device(
    sysfs: Path, name: str, *, node_type: str = "1: CA", link_layer: str = "Ethernet"
) -> Path:
    folder = sysfs / "class/infiniband" / name
    write(folder / "node_type", node_type)
    write(folder / "ports/1/link_layer", link_layer)
    return folder


def add_pci(folder: Path, netdev: str) -> None:
    (folder / "device/net" / netdev).mkdir(parents=True)


def test_a_kernel_without_rdma_has_no_devices(tmp_path: Path) -> None:
    assert HostRdma(tmp_path).devices() == ()


def test_what_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "class/infiniband", "no folder")
    with pytest.raises(Unavailable, match="cannot list RDMA devices"):
        HostRdma(tmp_path).devices()


def test_soft_roce_is_software_on_its_parent(tmp_path: Path) -> None:
    write(add_device(tmp_path, "rxe0") / "parent", "eth0")
    assert HostRdma(tmp_path).devices() == (
        RdmaDevice("rxe0", hardware=False, roce=True, netdevs=frozenset({"eth0"})),
    )


@pytest.mark.parametrize(
    ("node_type", "link_layer", "roce"),
    [
        ("1: CA", "Ethernet", True),
        ("1: CA", "InfiniBand", False),
        ("4: RNIC", "Ethernet", False),
        ("7: unspecified", "Unspecified", False),
    ],
)
def test_a_device_on_a_bus_is_hardware(
    tmp_path: Path, node_type: str, link_layer: str, roce: bool
) -> None:
    add_pci(add_device(tmp_path, "mlx5_0", node_type=node_type, link_layer=link_layer), "eth0")
    assert HostRdma(tmp_path).devices() == (
        RdmaDevice("mlx5_0", hardware=True, roce=roce, netdevs=frozenset({"eth0"})),
    )


def test_a_device_sends_from_what_is_stacked_upon_its_netdev_and_from_its_gids(
    tmp_path: Path,
) -> None:
    folder = add_device(tmp_path, "mlx5_0")
    add_pci(folder, "eth0")
    write(folder / "ports/1/gid_attrs/ndevs/0", "eth0")
    write(folder / "ports/1/gid_attrs/ndevs/3", "macvlan0")
    (folder / "ports/1/gid_attrs/ndevs/4").mkdir()  # an unused place cannot be read
    for lower, upper in (("eth0", "bond0"), ("bond0", "bond0.7"), ("bond0.7", "eth0")):
        (tmp_path / "class/net" / lower / f"upper_{upper}").mkdir(parents=True)
    (device,) = HostRdma(tmp_path).devices()
    assert device.netdevs == {"eth0", "bond0", "bond0.7", "macvlan0"}
