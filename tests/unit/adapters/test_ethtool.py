"""ethtool's word on ESP, from the kernel that runs the tests."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.namespaces import missing_capability, private_namespace, run
from tunsec.adapters.ethtool import _names, esp_feature
from tunsec.adapters.links import HostLinks
from tunsec.model.underlay import EspFeature, Underlay

needs_namespaces = pytest.mark.skipif(missing_capability() is not None, reason="needs root")


@pytest.fixture
def opened() -> Iterator[socket.socket]:
    with (
        private_namespace(),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one,
    ):
        run("ip link add v0 type veth peer name v1")
        yield one


@needs_namespaces
def test_a_device_without_esp(opened: socket.socket) -> None:
    assert {"tx-checksum-ip-generic", "rx-gro"} <= set(_names(opened, "v0"))
    assert esp_feature(opened, "v0") is EspFeature.ABSENT
    assert esp_feature(opened, "nothing") is EspFeature.ABSENT


@needs_namespaces
def test_the_device_of_a_way(opened: socket.socket) -> None:
    run("ip addr add 192.0.2.11/24 dev v0")
    run("ip link set v0 up")
    run("ip link set v1 up")
    ours, peer, elsewhere = (
        ip_address(text) for text in ("192.0.2.11", "192.0.2.12", "198.51.100.1")
    )
    with HostLinks() as links:
        way = Underlay(socket.if_nametoindex("v0"), "v0", EspFeature.ABSENT)
        assert links.underlay(ours, peer) == way
        assert links.underlay(ours, elsewhere) is None
        assert links.underlay(elsewhere, peer) is None, "an address that is not ours"
