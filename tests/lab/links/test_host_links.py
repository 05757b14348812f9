"""Devices, addresses and routes as a real kernel shows them."""

import ipaddress
import select
from collections.abc import Iterator

import pytest

from tests.namespaces import inside, missing_capability, named_namespaces, private_namespace, run
from tunsec.adapters.links import HostLinks, LinkMonitor
from tunsec.model.errors import Refused
from tunsec.model.event import EventsLost
from tunsec.model.flow import Kind
from tunsec.model.names import Vni

pytestmark = pytest.mark.skipif(missing_capability() is not None, reason=str(missing_capability()))


@pytest.fixture
def underlay() -> Iterator[None]:
    with private_namespace():
        run("ip link add v0 type veth peer name v1")
        run("ip link set v0 up mtu 1400")
        run("ip link set v1 up")
        run("ip addr add 192.0.2.1/24 dev v0")
        run("ip addr add 2001:db8::1/64 dev v0 nodad")
        yield


def has_geneve() -> bool:
    with private_namespace():
        run("ip link add g0 type geneve id 1 remote 192.0.2.1", check=False)
        return "g0" in run("ip -br link")


def test_addresses_of_both_families(underlay: None) -> None:
    with HostLinks() as links:
        assert {"192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"} <= set(map(str, links.addresses()))
        run("ip addr del 192.0.2.1/24 dev v0")
        assert ipaddress.ip_address("192.0.2.1") not in links.addresses()


def test_the_local_end_of_a_point_to_point_address(underlay: None) -> None:
    run("ip addr add 198.51.100.1 peer 198.51.100.2 dev v1")
    with HostLinks() as links:
        found = set(map(str, links.addresses()))
    assert "198.51.100.1" in found
    assert "198.51.100.2" not in found


def test_a_device_is_made_once(underlay: None) -> None:
    to = ipaddress.ip_address("2001:db8::2")
    with HostLinks() as links:
        links.make_overlay(Kind.VXLAN, name="vx9", vni=Vni(9), remote=to, port=4799)
        (made,) = links.overlay_devices()
        assert (made.name, made.vni, made.remote, made.port) == ("vx9", 9, to, 4799)
        with pytest.raises(Refused, match="File exists"):
            links.make_overlay(Kind.VXLAN, name="vx9", vni=Vni(9), remote=to, port=4799)


def test_vxlan_devices_with_what_they_say_of_themselves(underlay: None) -> None:
    run("ip link add vx4 type vxlan id 41 dstport 4789 local 192.0.2.1 remote 192.0.2.2")
    run("ip link add vx6 type vxlan id 42 dstport 4790 local 2001:db8::1 remote 2001:db8::2")
    run("ip link add vxe type vxlan external dstport 4791")
    run("ip link add vxg type vxlan id 43 dstport 4792 group 239.1.1.1 dev v0")
    with HostLinks() as links:
        four, six, external, group = links.overlay_devices()
    assert (four.name, four.kind, four.port, four.vni) == ("vx4", Kind.VXLAN, 4789, 41)
    assert (str(four.local), str(four.remote), four.external) == ("192.0.2.1", "192.0.2.2", False)
    assert (six.port, str(six.local), str(six.remote)) == (4790, "2001:db8::1", "2001:db8::2")
    assert (external.external, external.vni, external.remote) == (True, None, None)
    assert external.underlay_mtu is None
    assert (group.remote, group.underlay_mtu) == (None, 1400)
    assert {device.underlay_mtu for device in (four, six)} == {1400}


@pytest.mark.skipif(
    missing_capability() is not None or not has_geneve(), reason="the kernel has no Geneve"
)
def test_geneve_devices_with_what_they_say_of_themselves(underlay: None) -> None:
    run("ip link add g4 type geneve id 41 remote 192.0.2.2")
    run("ip link add g6 type geneve id 42 remote 2001:db8::2 dstport 6082")
    run("ip link add ge type geneve external dstport 6083")
    with HostLinks() as links:
        four, six, external = links.overlay_devices()
    assert (four.name, four.kind, four.port, four.vni) == ("g4", Kind.GENEVE, 6081, 41)
    assert (six.port, str(six.remote), six.underlay_mtu) == (6082, "2001:db8::2", 1400)
    assert (external.external, external.vni, external.remote) == (True, None, None)


def test_the_route_has_the_last_word_on_the_underlay_mtu(underlay: None) -> None:
    with HostLinks() as links:
        assert links.underlay_mtu(ipaddress.ip_address("192.0.2.2")) == 1400
        assert links.underlay_mtu(ipaddress.ip_address("203.0.113.1")) is None
        run("ip route add 203.0.113.0/24 via 192.0.2.2 mtu 1300")
        assert links.underlay_mtu(ipaddress.ip_address("203.0.113.1")) == 1300
        run("ip route add blackhole 198.51.100.0/24")
        assert links.underlay_mtu(ipaddress.ip_address("198.51.100.1")) is None
        run("ip link set v0 mtu 1450")
        assert links.underlay_mtu(ipaddress.ip_address("2001:db8::2")) == 1450


def test_a_device_that_sends_from_elsewhere_is_not_ours() -> None:
    with named_namespaces("tl-here", "tl-there"):
        run("ip -n tl-there link add vx0 type vxlan id 5 dstport 4789 remote 192.0.2.2")
        run("ip -n tl-there link set vx0 netns tl-here")
        with inside("tl-here"), HostLinks() as links:
            assert links.overlay_devices() == ()
            run("ip link add vx1 type vxlan id 5 dstport 4790 remote 192.0.2.2")
            assert [device.name for device in links.overlay_devices()] == ["vx1"]


def test_many_devices_come_in_one_answer(underlay: None) -> None:
    script = "".join(
        f"link add vx{n} type vxlan id {n} dstport {5000 + n} remote 192.0.2.2\n"
        for n in range(1, 151)
    )
    run("ip -batch -", stdin=script)
    with HostLinks() as links:
        devices = links.overlay_devices()
    assert [device.vni for device in devices] == list(range(1, 151))


def test_changes_of_links_and_addresses_are_heard(underlay: None) -> None:
    with LinkMonitor() as monitor:
        assert monitor.read() == []
        for change in (
            "ip link set v1 mtu 1300",
            "ip addr add 192.0.2.7/24 dev v1",
            "ip addr del 192.0.2.7/24 dev v1",
            "ip addr add 2001:db8::7/64 dev v1",
            "ip link set v1 down",
        ):
            run(change)
            assert select.select([monitor], [], [], 5)[0]
            events = monitor.read()
            assert "v1" in {event.name for event in events if not isinstance(event, EventsLost)}
        run("ip link del v1")
        assert {"v0", "v1"} <= {
            event.name for event in monitor.read() if not isinstance(event, EventsLost)
        }


def test_lost_notices_are_told(underlay: None) -> None:
    script = "".join(f"link set v1 mtu {1300 + n % 100}\n" for n in range(1000))
    with LinkMonitor() as monitor:
        run("ip -batch -", stdin=script)
        assert EventsLost() in monitor.read()
        run("ip link set v1 mtu 1250")
        assert [type(event).__name__ for event in monitor.read()] == ["LinkChanged"]
