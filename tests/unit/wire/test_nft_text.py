"""The guard as nft text: what it says, how it is replaced, and that a listing reads back alike."""

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.errors import Bug, Refused
from tunsec.model.flow import Kind
from tunsec.model.guard import (
    Guard,
    GuardDrops,
    GuardedFlow,
    TenantMark,
    TunnelDevice,
    VniMarks,
)
from tunsec.model.names import FlowName, Mark, TenantName, Vni
from tunsec.model.selector import ICMP, TCP, UDP
from tunsec.wire.nft_text import (
    INET_TABLE,
    NETDEV_TABLE,
    boot_script,
    differences,
    drops_by_flow,
    flow_label,
    guard_ruleset,
    parse_flow_label,
    parse_listing,
    replace_script,
)

names = st.text(min_size=1, max_size=20).map(FlowName)
addresses = st.ip_addresses()
marks = st.integers(1, 2**32 - 1).flatmap(
    lambda mask: st.integers(0, 2**32 - 1).map(lambda value: Mark(value & mask, mask))
)
flows = st.builds(
    GuardedFlow,
    flow=names,
    kind=st.sampled_from(Kind),
    proto=st.sampled_from([TCP, UDP]),
    ports=st.lists(st.integers(1, 65535), min_size=1, max_size=3).map(tuple),
    either_side=st.booleans(),
    peers=st.frozensets(addresses, max_size=5),
    tunnel_only=st.booleans(),
    strangers_blocked=st.booleans(),
    gated=st.booleans(),
    tenants=st.lists(
        st.builds(
            TenantMark,
            tenant=st.just(TenantName("t")),
            vni=st.integers(0, 2**24 - 1).map(Vni),
            mark=marks,
        ),
        max_size=3,
        unique_by=lambda one: one.vni,
    ).map(tuple),
    others=st.none() | marks,
)
devices = st.builds(
    TunnelDevice,
    name=st.from_regex(r"[a-z0-9_.@-]{1,15}", fullmatch=True),
    ifindex=st.integers(1, 2**31 - 1),
    kind=st.just(Kind.VXLAN),
    port=st.just(4789),
)
guards = st.builds(
    Guard,
    flows=st.lists(flows, max_size=3, unique_by=lambda flow: flow.flow).map(tuple),
    devices=st.lists(devices, max_size=2, unique_by=lambda device: device.ifindex).map(tuple),
    tunnel_mark=marks,
)


@given(names)
def test_a_label_is_plain_and_leads_back_to_its_flow(name: FlowName) -> None:
    label = flow_label(name)
    assert label.isascii()
    assert not set(label) & set(' "{};#\n')
    assert parse_flow_label(label) == name


@given(names, names)
def test_two_flows_never_share_a_label(one: FlowName, other: FlowName) -> None:
    assert (flow_label(one) == flow_label(other)) == (one == other)


@given(guards)
def test_the_text_reads_back_as_the_same_ruleset(guard: Guard) -> None:
    want = guard_ruleset(guard)
    script = replace_script(want, {})
    listing = "\n".join(line for line in script.splitlines() if line[:4] not in ("add ", "flus"))
    assert differences(want, parse_listing(listing)) == ()
    assert "delete" not in script


@given(guards, guards)
def test_replacement_keeps_wanted_counters_and_deletes_the_rest(new: Guard, old: Guard) -> None:
    want, have = guard_ruleset(new), guard_ruleset(old)
    script = replace_script(want, have).splitlines()
    for table in want:
        kept = {block for block in have[table] if block in want[table] and "counter" in block[:7]}
        for block in have[table]:
            kind, name = block.split()
            assert (f"delete {kind} {table} {name}" in script) == (block not in kept)


@given(st.text(max_size=200))
def test_no_text_does_worse_than_a_value_error(text: str) -> None:
    for listing in (text, f"table inet tunsec {{\n{text}\n}}"):
        try:
            parse_listing(listing)
        except ValueError:
            continue


def guard_of(**changes: object) -> Guard:
    peers = frozenset({ipaddress.ip_address("192.0.2.2")})
    values: dict[str, object] = {
        "flow": FlowName("overlay"),
        "kind": Kind.VXLAN,
        "proto": UDP,
        "ports": (4789,),
        "either_side": False,
        "peers": peers,
        "tunnel_only": True,
        **changes,
    }
    return Guard((GuardedFlow(**values),), (), Mark(0x10000, 0x10000))  # type: ignore[arg-type]


def test_the_rules_of_a_tunnel_flow() -> None:
    table = guard_ruleset(guard_of())[INET_TABLE]
    to_peer = "udp dport 4789 ip daddr @peers4.overlay"
    unmarked = "meta mark & 0x00010000 != 0x00010000"
    assert table["chain output"] == (
        "type filter hook output priority 300; policy accept;",
        f'{to_peer} {unmarked} counter name "local_injection.overlay" drop',
        f'{to_peer} rt ipsec missing counter name "clear_out.overlay" drop',
    )
    assert table["chain postrouting"] == (
        "type filter hook postrouting priority 300; policy accept;",
        *(
            rule.replace("counter", "fib saddr type local counter")
            for rule in table["chain output"][1:]
        ),
    )
    from_peer = "udp dport 4789 ip saddr @peers4.overlay"
    assert table["chain input"] == (
        "type filter hook input priority -300; policy accept;",
        f'{from_peer} meta ipsec missing counter name "clear_in.overlay" drop',
    )


def test_the_rules_of_a_flow_that_blocks_strangers_look_at_no_address() -> None:
    among_peers = guard_ruleset(guard_of())[INET_TABLE]
    table = guard_ruleset(guard_of(strangers_blocked=True))[INET_TABLE]
    assert {block for block in among_peers if block not in table} == {"set peers4.overlay"}
    for chain in ("chain output", "chain postrouting", "chain input"):
        assert table[chain] == tuple(
            re.sub(r" ip [sd]addr @peers4\.overlay", "", rule) for rule in among_peers[chain]
        )
    assert table["chain input"][1].startswith("udp dport 4789 meta ipsec missing counter")


def test_a_gated_flow_holds_each_new_connection_behind_what_drops_clear_packets() -> None:
    guard = guard_of(kind=Kind.TCP, proto=TCP, ports=(5432,), either_side=True, gated=True)
    table = guard_ruleset(guard)[INET_TABLE]
    syn = "ip daddr @peers4.overlay tcp flags & (syn | ack) == syn"
    held = f"tcp dport 5432 {syn} meta mark set meta mark ^ 0x80000000 queue to 21587"
    output = table["chain output"]
    assert held in output
    clear = [line for line in output if "rt ipsec missing" in line and "daddr" in line]
    assert output.index(clear[0]) < output.index(held)
    arriving = [line for line in table["chain input"] if line.startswith("tcp sport 5432 ip saddr")]
    assert [line.split("syn ", 2)[-1] for line in arriving[-3:]] == [
        "meta mark != 0x00000000 drop",
        "jump spi_as_mark",
        "queue to 21587",
    ]
    assert len(table["chain spi_as_mark"]) == 32
    assert "bypass" not in str(table)


def test_strangers_are_blocked_before_any_peer_is_known() -> None:
    table = guard_ruleset(guard_of(strangers_blocked=True, peers=frozenset()))[INET_TABLE]
    assert table == guard_ruleset(guard_of(strangers_blocked=True))[INET_TABLE]


def test_anybody_may_send_where_the_flow_says_so() -> None:
    table = guard_ruleset(guard_of(tunnel_only=False))[INET_TABLE]
    assert not any("mark" in rule for rules in table.values() for rule in rules)
    assert "counter local_injection.overlay" not in table


def test_what_the_kernel_sends_from_its_own_sockets_no_program_sends() -> None:
    table = guard_ruleset(guard_of(kind=Kind.ROCEV2, ports=(4791,)))[INET_TABLE]
    to_peer, drop = "udp dport 4791 ip daddr @peers4.overlay", "local_injection.overlay"
    assert table["chain output"][1] == (
        f'{to_peer} meta skuid != 4294967295 counter name "{drop}" drop'
    )
    assert not any("local_injection" in rule for rule in table["chain postrouting"])


@pytest.mark.parametrize(
    ("mark", "statement"),
    [
        (Mark(0x10000, 0x10000), "meta mark set meta mark | 0x00010000"),
        (Mark(0x50000, 0xF0000), "meta mark set meta mark & 0xfff5ffff | 0x00050000"),
    ],
)
def test_a_device_sets_the_bits_of_the_mask_and_no_other(mark: Mark, statement: str) -> None:
    device = TunnelDevice("vx0", 7, Kind.VXLAN, 4789)
    assert guard_ruleset(Guard((), (device,), mark))[NETDEV_TABLE] == {
        "chain mark.7": (
            'type filter hook egress device "vx0" priority 300; policy accept;',
            f"oif 7 {statement}",
        )
    }


def test_a_listing_names_the_device_that_a_rule_asks_for_by_number() -> None:
    want = guard_ruleset(Guard((), (TunnelDevice("vx0", 7, Kind.VXLAN, 4789),), Mark(1, 1)))
    listing = (
        "table netdev tunsec {\n\tchain mark.7 {\n"
        '\t\ttype filter hook egress device "vx0" priority 300; policy accept;\n'
        '\t\toif "NAME" meta mark set meta mark | 0x00000001\n\t}\n}\ntable inet tunsec {\n'
    )
    inet = "".join(
        f"{block} {{\n{chr(10).join(lines)}\n}}\n" for block, lines in want[INET_TABLE].items()
    )
    for name, found in (("vx0", ()), ("vx1", ("netdev tunsec: chain mark.7 was changed",))):
        text = listing.replace("NAME", name) + inet + "}\n"
        assert differences(want, parse_listing(text)) == found


def test_what_the_guard_cannot_express_is_an_error() -> None:
    with pytest.raises(Bug, match="TCP and UDP"):
        guard_ruleset(guard_of(proto=ICMP))
    with pytest.raises(Bug, match="needs a port"):
        guard_ruleset(guard_of(ports=()))
    with pytest.raises(Refused, match="rename the device"):
        guard_ruleset(Guard((), (TunnelDevice('a"b', 1, Kind.VXLAN, 1),), Mark(1, 1)))


def test_differences_are_named() -> None:
    want = guard_ruleset(guard_of())
    table = dict(want[INET_TABLE])
    del table["set peers4.overlay"]
    table["chain input"] = ()
    table["flags dormant"] = ()
    assert differences(want, {INET_TABLE: table}) == (
        "inet tunsec: set peers4.overlay is gone",
        "inet tunsec: flags dormant is not ours",
        "inet tunsec: chain input was changed",
        "table netdev tunsec is gone",
    )


def test_drops_come_from_our_counters_alone() -> None:
    packets = {"clear_out.a": 1, "clear_in.a": 2, "local_injection.b.2e": 3, "other": 4, "a.": 5}
    assert drops_by_flow(packets) == {
        "a": GuardDrops(clear_out=1, clear_in=2),
        "b.": GuardDrops(local_injection=3),
    }


def test_the_boot_script_starts_from_nothing() -> None:
    lines = boot_script(guard_of()).splitlines()
    assert lines[:2] == ["add table inet tunsec", "delete table inet tunsec"]
    assert not any(NETDEV_TABLE in line for line in lines)


RED = TenantMark(TenantName("red"), Vni(41), Mark(0x8100_0000, 0xFF00_0000))
BLUE = TenantMark(TenantName("blue"), Vni(42), Mark(0x8200_0000, 0xFF00_0000))
OTHERS = Mark(0xFE00_0000, 0xFF00_0000)
TUNNEL = Mark(0x8000_0000, 0x8000_0000)
NOBODY = "meta mark set meta mark & 0x80ffffff | 0x80000000"
DEVICES = {
    name: TunnelDevice(name, number, Kind.VXLAN, 4789, None if vni is None else Vni(vni))
    for number, (name, vni) in enumerate((("vx41", 41), ("vx43", 43), ("vxe", None)), start=1)
}


def tenants(**changes: object) -> Guard:
    """A guard with two tenants, one device of red's, one of nobody's and an external one."""
    (flow,) = guard_of(strangers_blocked=True, tenants=(RED, BLUE), **changes).flows
    return Guard((flow,), tuple(DEVICES.values()), TUNNEL)


def marking(guard: Guard) -> dict[str, str]:
    """What the egress of each device does."""
    table = guard_ruleset(guard)[NETDEV_TABLE]
    return {
        name: table[f"chain mark.{one.ifindex}"][1].removeprefix(f"oif {one.ifindex} ")
        for name, one in DEVICES.items()
    }


def test_a_device_marks_for_its_tenant_and_all_else_is_nobodys() -> None:
    assert marking(tenants()) == {
        "vx41": "meta mark set meta mark & 0x81ffffff | 0x81000000",
        "vx43": NOBODY,
        "vxe": NOBODY,
    }
    assert tenants().vni_marks(DEVICES["vx41"]) == VniMarks("vx41", 1)
    by_vni = ((Vni(41), RED.mark), (Vni(42), BLUE.mark))
    assert tenants().vni_marks(DEVICES["vxe"]) == VniMarks("vxe", 3, by_vni)


def test_vnis_that_share_keys_share_a_mark() -> None:
    guard = tenants(others=OTHERS)
    assert marking(guard)["vx43"] == "meta mark set meta mark & 0xfeffffff | 0xfe000000"
    assert marking(guard)["vxe"] == NOBODY, "tc marks them, each VNI in its turn"
    assert guard.vni_marks(DEVICES["vxe"]).others == OTHERS


def test_a_device_of_several_flows_knows_the_tenants_of_all() -> None:
    (first,) = tenants().flows
    green = TenantMark(TenantName("green"), Vni(43), Mark(0x8300_0000, 0xFF00_0000))
    former = replace(first, flow=FlowName("x"), tenants=(green, replace(RED, mark=OTHERS)))
    marked = marking(Guard((first, former), tuple(DEVICES.values()), TUNNEL))
    assert marked["vx41"].endswith("| 0x81000000")
    assert marked["vx43"].endswith("| 0x83000000")


def test_a_device_of_flows_without_tenants_bears_the_tunnel_mark_alone() -> None:
    guard = replace(guard_of(), devices=tuple(DEVICES.values()), tunnel_mark=TUNNEL)
    assert set(marking(guard).values()) == {"meta mark set meta mark | 0x80000000"}
    assert guard.vni_marks(DEVICES["vxe"]) == VniMarks("vxe", 3)


def test_what_crosses_from_tenant_to_tenant_is_dropped_and_counted() -> None:
    def crossing(guard: Guard) -> list[str]:
        rules = guard_ruleset(guard)[INET_TABLE]["chain input"]
        return [rule for rule in rules if "cross_tenant" in rule]

    drop = 'counter name "cross_tenant.overlay" drop'
    own = [
        f"udp dport 4789 meta mark & 0xff000000 == 0x81000000 @th,96,24 != 0x29 {drop}",
        f"udp dport 4789 meta mark & 0xff000000 == 0x82000000 @th,96,24 != 0x2a {drop}",
    ]
    assert crossing(tenants()) == own
    assert crossing(tenants(others=OTHERS)) == [
        *own,
        "udp dport 4789 meta mark & 0xff000000 == 0xfe000000 @th,96,24 { 0x29, 0x2a } " + drop,
    ]
    assert "counter cross_tenant.overlay" in guard_ruleset(tenants())[INET_TABLE]
    assert crossing(guard_of()) == []
