"""What operators type and paste, as questions of the control API."""

import shlex

import pytest

from tunsec.cli.client import Failed
from tunsec.cli.exits import Exit
from tunsec.cli.question import parse_question
from tunsec.wire.control_explain import EspBody, ExplainBody, PacketBody

LEFT, RIGHT = "192.0.2.11", "192.0.2.12"
LEFT6, RIGHT6 = "2001:db8::11", "2001:db8::12"
PACKET = PacketBody("udp", LEFT, RIGHT, 49152, 4789)
PACKET6 = PacketBody("udp", LEFT6, RIGHT6, 49152, 4789)


def parsed(line: str, vni: int | None = None) -> ExplainBody:
    """A line of a shell."""
    return parse_question(shlex.split(line), vni)


@pytest.mark.parametrize(
    ("line", "packet"),
    [
        (f"udp {LEFT}:49152 {RIGHT}:4789", PACKET),
        (f"UDP {LEFT}:49152 -> {RIGHT}:4789", PACKET),
        (f"udp {LEFT}.49152 {RIGHT}.4789", PACKET),
        (f"'udp {LEFT}.49152 > {RIGHT}.4789'", PACKET),
        (f"udp {LEFT}:49152 '>' {RIGHT}:4789", PACKET),
        (f"udp [{LEFT6}]:49152 [{RIGHT6}]:4789", PACKET6),
        (f"'udp {LEFT6}.49152 > {RIGHT6}.4789'", PACKET6),
        (f"udp {LEFT} '{RIGHT}:*'", PacketBody("udp", LEFT, RIGHT)),
        (f"tcp {LEFT6} [{RIGHT6}]:5432", PacketBody("tcp", LEFT6, RIGHT6, None, 5432)),
        (f"tcp [{LEFT6}] {RIGHT6}.*", PacketBody("tcp", LEFT6, RIGHT6)),
        (f"icmp {LEFT} {RIGHT}", PacketBody("1", LEFT, RIGHT)),
        (f"89 {LEFT} {RIGHT}", PacketBody("89", LEFT, RIGHT)),
        (
            f"'13:20:01.123456 IP {RIGHT}.16385 > {LEFT}.40000: Flags [S], seq 1, length 0'",
            PacketBody("tcp", RIGHT, LEFT, 16385, 40000),
        ),
        (
            f"'IP {LEFT}.49152 > {RIGHT}.4789: VXLAN, flags [I] (0x08), vni 41'",
            PacketBody("udp", LEFT, RIGHT, 49152, 4789, 41),
        ),
        (
            f"'IP6 {LEFT6}.49152 > {RIGHT6}.6081: Geneve, Flags [none], vni 0x29, proto TEB'",
            PacketBody("udp", LEFT6, RIGHT6, 49152, 6081, 41),
        ),
    ],
)
def test_packets(line: str, packet: PacketBody) -> None:
    assert parsed(line) == ExplainBody(packet=packet)


def test_a_vni_that_is_given_counts_more_than_one_that_is_pasted() -> None:
    found = parsed(f"'udp {LEFT}.1 > {RIGHT}.4789: VXLAN, vni 41'", 42)
    assert found.packet is not None
    assert found.packet.vni == 42


@pytest.mark.parametrize(
    ("line", "esp"),
    [
        (f"esp {RIGHT} 0xc3a1f00d", EspBody("0xc3a1f00d", RIGHT)),
        (f"esp {LEFT} {RIGHT} c3a1f00d", EspBody("c3a1f00d", RIGHT)),
        ("spi C3A1F00D", EspBody("C3A1F00D")),
        (f"'IP {LEFT} > {RIGHT}: ESP(spi=0xc3a1f00d,seq=0x1f), length 120'",
         EspBody("0xc3a1f00d", RIGHT)),
        (f"'IP6 {LEFT6} > {RIGHT6}: ESP(spi=0x00001000,seq=0x1), length 120'",
         EspBody("0x00001000", RIGHT6)),
    ],
)  # fmt: skip
def test_esp_packets(line: str, esp: EspBody) -> None:
    assert parsed(line) == ExplainBody(esp=esp)


@pytest.mark.parametrize(
    ("line", "flow", "tenant"),
    [
        ("overlay", "overlay", None),
        ("tenant-overlay/red", "tenant-overlay", "red"),
        ("tenant-overlay.red", "tenant-overlay", "red"),
        ("overlay.former", "overlay.former", None),
        ("overlay.former2", "overlay.former2", None),
        ("tcp", "tcp", None),
    ],
)
def test_flows(line: str, flow: str, tenant: str | None) -> None:
    assert parsed(line) == ExplainBody(flow=flow, tenant=tenant)


@pytest.mark.parametrize(
    ("line", "vni", "said"),
    [
        ("overlay red", None, "does not begin with tcp, udp, esp or spi"),
        ("192.0.2.11:1", None, "quote what has a > in it"),
        ("192.0.2.11.1", None, "is no flow"),
        ("overlay", 41, "say `overlay/TENANT`"),
        (f"udp {LEFT}:1", None, "two ends, not 1"),
        (f"udp {LEFT}:1 {RIGHT}:2 3", None, "two ends, not 3"),
        (f"udp {LEFT} {RIGHT6}", None, "not of one family"),
        (f"udp {LEFT}:http {RIGHT}:1", None, "tcpdump -n"),
        (f"udp {LEFT}:65536 {RIGHT}:1", None, "'65536' is no port"),
        (f"udp db1:1 {RIGHT}:1", None, "tcpdump -n shows numbers"),
        (f"udp [{LEFT6} {RIGHT6}", None, "write [2001:db8::1]:4789"),
        (f"udp {LEFT}:1 {RIGHT}:4789", 1 << 24, "24 bits"),
        (f"'{LEFT}.1 > {RIGHT}.2'", None, "whether it is tcp or udp"),
        ("'1 > '", None, "no SRC > DST"),
        (f"esp {RIGHT} xyz", None, "is no SPI"),
        ("spi 0", None, "is no SPI"),
        ("esp 1.2.3 c3a1f00d", None, "is no address"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_a_remedy(
    line: str, vni: int | None, said: str
) -> None:
    with pytest.raises(Failed) as caught:
        parsed(line, vni)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert caught.value.status is Exit.USAGE
