"""The overlay MTU that tunsec advises, against the kernel: no fragment at it, some just above."""

import pytest

from tests.lab.guard.esp_pair import AEADS, esp_pair, missing_esp
from tunsec.model.aead import Aead
from tunsec.model.flow import Kind
from tunsec.plan.mtu import overlay_mtu

pytestmark = pytest.mark.skipif(missing_esp() is not None, reason=str(missing_esp()))

GCM, CHACHA20 = AEADS
PING_HEADERS = 28  # IPv4 and ICMP


@pytest.mark.parametrize(
    ("kind", "version", "underlay", "aead"),
    [
        (Kind.VXLAN, 4, 1500, GCM),
        (Kind.VXLAN, 6, 1500, CHACHA20),
        (Kind.VXLAN, 4, 1503, CHACHA20),
        (Kind.GENEVE, 4, 1500, CHACHA20),
        (Kind.GENEVE, 6, 1503, GCM),
    ],
)
def test_full_size_packets_fit_and_larger_ones_do_not(
    kind: Kind, version: int, underlay: int, aead: str
) -> None:
    """The first packet that is too large goes in fragments (IPv4) or is lost (IPv6); then the
    kernel tells the sender the same number."""
    named = Aead.CHACHA20_POLY1305 if "chacha" in aead else Aead.AES_128_GCM
    fits = overlay_mtu(kind, version=version, aead=named, underlay_mtu=underlay)
    assert fits is not None
    trouble = "IpFragCreates" if version == 4 else "Ip6FragFails"
    with esp_pair(kind, version, mtu=underlay, aead=aead) as (a, b):
        for host in (a, b):
            host.run(f"ip link set tun0 mtu {fits + 8}")
        assert a.reaches(b.overlay, f"-M do -s {fits - PING_HEADERS}")
        assert (a.counter(trouble), b.counter(trouble)) == (0, 0)
        assert not a.reaches(b.overlay, f"-M do -s {fits + 1 - PING_HEADERS}")
        assert a.counter(trouble) > 0
        assert f" mtu {fits} " in a.run(f"ip route get {b.overlay}")


@pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
def test_with_df_outside_the_number_is_the_last_that_passes(version: int) -> None:
    fits = overlay_mtu(Kind.VXLAN, version=version, aead=Aead.AES_128_GCM, underlay_mtu=1500)
    assert fits is not None
    with esp_pair(Kind.VXLAN, version, extra="df set") as (a, b):
        for host in (a, b):
            host.run(f"ip link set tun0 mtu {fits + 8}")
        assert a.reaches(b.overlay, f"-M do -s {fits - PING_HEADERS}")
        assert not a.reaches(b.overlay, f"-M do -s {fits + 1 - PING_HEADERS}")
