"""The leak watch's judgement, on packets made by hand."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec_lab.errors import LabError
from tunsec_lab.packets import (
    ESP,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Classifier,
    EspFlow,
    FlowKind,
    Protected,
    Verdict,
    protect,
    sample_frames,
)

A4, B4, C4 = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
A6, B6, C6 = (IPv6Address(f"2001:db8::{n}") for n in (1, 2, 3))
PAIRS = [(A4, B4), (A6, B6)]
MORE = 0x2000


def ipv4(src: IPv4Address, dst: IPv4Address, proto: int, payload: bytes, bits: int = 0) -> bytes:
    length = 20 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, 77, bits, 64, proto, 0)
    return bytes(12) + b"\x08\x00" + header + src.packed + dst.packed + payload


def ipv6(src: IPv6Address, dst: IPv6Address, proto: int, payload: bytes) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), proto, 64)
    return bytes(12) + b"\x86\xdd" + header + src.packed + dst.packed + payload


def frame(src: object, dst: object, proto: int, payload: bytes) -> bytes:
    if isinstance(src, IPv4Address) and isinstance(dst, IPv4Address):
        return ipv4(src, dst, proto, payload)
    assert isinstance(src, IPv6Address)
    assert isinstance(dst, IPv6Address)
    return ipv6(src, dst, proto, payload)


def ports(sport: int, dport: int) -> bytes:
    return struct.pack("!HHHH", sport, dport, 20, 0) + b"inside a tunnel"


def verdict(packet: bytes, *flows: Protected) -> Verdict:
    return Classifier(flows).see(packet, 0.0, "a.eth0")


@pytest.mark.parametrize(("src", "dst"), PAIRS)
@pytest.mark.parametrize(
    ("flow", "proto", "dport"),
    [
        (protect("vxlan"), UDP, 4789),
        (protect("geneve"), UDP, 6081),
        (protect("rocev2"), UDP, 4791),
        (protect("rds-tcp"), TCP, 16385),
        (protect("tcp", port=5432), TCP, 5432),
        (protect("udp", port=53), UDP, 53),
        (protect("vxlan", port=8472), UDP, 8472),
    ],
)
def test_a_packet_to_the_port_of_a_flow_is_clear(
    src: object, dst: object, flow: Protected, proto: int, dport: int
) -> None:
    assert verdict(frame(src, dst, proto, ports(40000, dport)), flow) is Verdict.CLEAR
    assert verdict(frame(src, dst, proto, ports(40000, dport + 1)), flow) is Verdict.OTHER
    other_proto = TCP if proto == UDP else UDP
    assert verdict(frame(src, dst, other_proto, ports(40000, dport)), flow) is Verdict.OTHER


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "rocev2"])
def test_the_source_port_of_a_tunnel_is_only_entropy(kind: str) -> None:
    flow = protect(kind)
    assert verdict(ipv4(A4, B4, UDP, ports(flow.wire_port, 9)), flow) is Verdict.OTHER


def test_answers_of_a_listener_are_clear_too() -> None:
    assert verdict(ipv4(A4, B4, TCP, ports(16385, 40000)), protect("rds-tcp")) is Verdict.CLEAR
    assert verdict(ipv4(A4, B4, TCP, ports(5432, 40000)), protect("tcp", port=5432)) is (
        Verdict.CLEAR
    )


def test_a_flow_between_hosts_is_theirs_alone_in_both_directions() -> None:
    flow = protect("vxlan", between=([A4, A6], [B4, B6]))
    vxlan = ports(1, 4789)
    assert verdict(ipv4(A4, B4, UDP, vxlan), flow) is Verdict.CLEAR
    assert verdict(ipv4(B4, A4, UDP, vxlan), flow) is Verdict.CLEAR
    assert verdict(ipv6(B6, A6, UDP, vxlan), flow) is Verdict.CLEAR
    assert verdict(ipv4(A4, C4, UDP, vxlan), flow) is Verdict.OTHER
    assert verdict(ipv6(C6, B6, UDP, vxlan), flow) is Verdict.OTHER


@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_esp_is_counted_by_direction_and_spi(src: object, dst: object) -> None:
    judge = Classifier([protect("vxlan")])
    for spi in (0x101, 0x101, 0xDEADBEEF):
        packet = frame(src, dst, ESP, spi.to_bytes(4) + bytes(40))
        assert judge.see(packet, 0.0, "a.eth0") is Verdict.ESP
    assert judge.counts.esp_flows() == {
        EspFlow(src, dst, 0x101): 2,  # type: ignore[arg-type]
        EspFlow(src, dst, 0xDEADBEEF): 1,  # type: ignore[arg-type]
    }


def test_ike_and_esp_in_udp_are_told_apart() -> None:
    judge = Classifier([protect("vxlan")])
    assert judge.see(ipv4(A4, B4, UDP, ports(500, 500)), 0.0, "p") is Verdict.IKE
    udp = struct.pack("!HHHH", 4500, 4500, 30, 0)
    assert judge.see(ipv4(A4, B4, UDP, udp + bytes(20)), 0.0, "p") is Verdict.IKE
    assert judge.see(ipv4(A4, B4, UDP, udp + bytes([0, 0, 1, 2]) * 5), 0.0, "p") is Verdict.ESP
    assert judge.counts.esp_flows() == {EspFlow(A4, B4, 0x102): 1}


@pytest.mark.parametrize("kind", [*range(130, 138), 143])
def test_neighbour_discovery_and_mld_are_control(kind: int) -> None:
    packet = ipv6(A6, B6, ICMPV6, bytes([kind]) + bytes(23))
    assert verdict(packet, protect("vxlan")) is Verdict.CONTROL


def test_mld_behind_a_hop_by_hop_header_is_control() -> None:
    packet = ipv6(A6, B6, 0, bytes([ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143]) + bytes(20))
    assert verdict(packet, protect("vxlan")) is Verdict.CONTROL


def test_arp_is_control_and_a_ping_is_other() -> None:
    assert verdict(bytes(12) + b"\x08\x06" + bytes(28), protect("vxlan")) is Verdict.CONTROL
    assert verdict(ipv4(A4, B4, ICMP, b"\x08" + bytes(40)), protect("vxlan")) is Verdict.OTHER


def test_an_icmp_error_that_quotes_a_clear_packet_is_told() -> None:
    inside = ipv4(B4, A4, UDP, ports(1, 4789))[14:]
    assert verdict(ipv4(A4, B4, ICMP, bytes([3, 3]) + bytes(6) + inside), protect("vxlan")) is (
        Verdict.QUOTED
    )
    inside = ipv6(B6, A6, UDP, ports(1, 4789))[14:]
    assert verdict(ipv6(A6, B6, ICMPV6, bytes([1, 4]) + bytes(6) + inside), protect("vxlan")) is (
        Verdict.QUOTED
    )
    inside = ipv4(B4, A4, UDP, ports(1, 99))[14:]
    assert verdict(ipv4(A4, B4, ICMP, bytes([3, 3]) + bytes(6) + inside), protect("vxlan")) is (
        Verdict.OTHER
    )


def fragment6(offset: int, payload: bytes, *, more: bool) -> bytes:
    header = struct.pack("!BBHI", UDP, 0, offset << 3 | more, 4711)
    return ipv6(A6, B6, 44, header + payload)


class TestFragments:
    flow = protect("vxlan")

    def test_all_fragments_of_a_clear_packet_are_clear(self) -> None:
        judge = Classifier([self.flow])
        for packet in (
            ipv4(A4, B4, UDP, ports(1, 4789), MORE),
            ipv4(A4, B4, UDP, bytes(40), MORE | 185),
            ipv4(A4, B4, UDP, bytes(40), 370),
            fragment6(0, ports(1, 4789), more=True),
            fragment6(185, bytes(40), more=False),
        ):
            assert judge.see(packet, 0.0, "p") is Verdict.CLEAR
        assert judge.counts.clear == 5

    def test_fragments_of_a_packet_seen_to_be_another_are_not(self) -> None:
        judge = Classifier([self.flow])
        for packet in (
            ipv4(A4, B4, UDP, ports(1, 53), MORE),
            ipv4(A4, B4, UDP, bytes(40), 185),
            fragment6(0, ports(1, 53), more=True),
            fragment6(185, bytes(40), more=False),
        ):
            assert judge.see(packet, 0.0, "p") is Verdict.OTHER

    def test_a_fragment_whose_first_one_was_not_seen_counts_as_clear(self) -> None:
        assert verdict(ipv4(A4, B4, UDP, bytes(40), 185), self.flow) is Verdict.CLEAR
        assert verdict(fragment6(185, bytes(40), more=False), self.flow) is Verdict.CLEAR
        assert verdict(ipv4(A4, B4, TCP, bytes(40), 185), self.flow) is Verdict.OTHER

    def test_a_first_fragment_too_short_for_its_ports_counts_as_clear(self) -> None:
        assert verdict(ipv4(A4, B4, UDP, b"\x12", MORE), self.flow) is Verdict.CLEAR

    def test_a_fragment_of_esp_is_esp(self) -> None:
        assert verdict(ipv4(A4, B4, ESP, bytes(40), 185), self.flow) is Verdict.ESP


def test_examples_say_when_where_and_what() -> None:
    judge = Classifier([protect("vxlan")])
    judge.see(ipv4(A4, B4, UDP, ports(40000, 4789)), 12.5, "a.eth0")
    (example,) = judge.counts.clear_examples
    assert str(example) == "12.500000 a.eth0 udp 192.0.2.1.40000 > 192.0.2.2.4789"


@pytest.mark.parametrize("kind", FlowKind)
@pytest.mark.parametrize("between", [None, ([A4], [B4]), ([A6], [B6]), ([A4, A6], [B4, B6])])
def test_samples_are_clear(kind: FlowKind, between: tuple[list[object], list[object]]) -> None:
    flow = protect(kind, port=7000, between=between)  # type: ignore[arg-type]
    frames = list(sample_frames(flow))
    assert len(frames) == (2 if between is None else len(between[0]))
    assert {verdict(packet, flow) for packet in frames} == {Verdict.CLEAR}


def test_tcp_and_udp_flows_need_a_port() -> None:
    with pytest.raises(LabError, match="needs its port"):
        protect("tcp")


@given(st.binary(max_size=160), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_no_packet_breaks_the_judge(payload: bytes, ethertype: bytes) -> None:
    judge = Classifier([protect("vxlan"), protect("rds-tcp")])
    judge.see(bytes(12) + ethertype + payload, 0.0, "p")
    judge.see(payload, 0.0, "p")


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 0xFFFF))
def test_every_vxlan_packet_is_clear_whatever_its_addresses(
    src: IPv4Address, dst: IPv4Address, sport: int
) -> None:
    packet = ipv4(src, dst, UDP, ports(sport, 4789))
    assert verdict(packet, protect("vxlan")) is Verdict.CLEAR
    assert ip_address(packet[26:30]) == src
