"""Marks of tenants: one each, the same from policy to policy, and what comes of them."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.policy.written import HEAD, problems_of
from tunsec.model.names import FlowName, Mark, TenantName
from tunsec.policy.desired import (
    Held,
    Sharing,
    assign_marks,
    desired,
    inbound_sps,
    outbound_sps,
)
from tunsec.policy.intent import Intent, Marks, parse_policy

names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
tenants = st.dictionaries(names, st.integers(0, 2**24 - 1), min_size=1, max_size=6).filter(
    lambda named: len(set(named.values())) == len(named)
)
others = st.sampled_from(["blocked", "shared"])


def written(
    flows: dict[str, dict[str, int]], *, shared: str = "blocked", bits: str = "24-31"
) -> Intent:
    """Flows with these tenants, each on a port of its own."""
    lines = [f"{HEAD}marks: {{bits: {bits}}}", "flows:"]
    for number, (name, named) in enumerate(sorted(flows.items())):
        inner = ", ".join(f"{tenant}: {vni}" for tenant, vni in named.items())
        lines.append(
            f"  {name}: {{kind: vxlan, port: {7000 + number}, between: [db1, db2], "
            f"tenants: {{{inner}}}, other_tenants: {shared}}}"
        )
    return parse_policy("\n".join(lines) + "\n", "p")


flows = st.dictionaries(names, tenants, min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(flows, others)
def test_no_two_have_one_mark_and_all_come_from_a_tunnel(
    declared: dict[str, dict[str, int]], shared: str
) -> None:
    intent = written(declared, shared=shared)
    marks = assign_marks(intent, "db1", {})
    assert len(set(marks.values())) == len(marks)
    assert len(marks) == sum(len(named) + (shared == "shared") for named in declared.values())
    for mark in marks.values():
        assert mark.mask == intent.marks.mask
        assert mark.value & intent.marks.tunnel.mask == intent.marks.tunnel.value
        assert intent.marks.number(mark) is not None


@settings(deadline=None, max_examples=40)
@given(flows, flows, others, others)
def test_who_stays_keeps_its_mark(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], was: str, now: str
) -> None:
    held = assign_marks(written(before, shared=was), "db1", {})
    then = assign_marks(written(after, shared=now), "db1", held)
    assert {one: then[one] for one in then.keys() & held.keys()} == {
        one: held[one] for one in then.keys() & held.keys()
    }
    assert len(set(then.values())) == len(then)


RED: Sharing = (FlowName("x"), TenantName("red"))
BLUE: Sharing = (FlowName("x"), TenantName("blue"))


@pytest.mark.parametrize(
    "mark",
    [
        Mark(0x0100_0000, 0xFF00_0000),  # not from a tunnel
        Mark(0x8000_0000, 0xFF00_0000),  # nobody's
        Mark(0x81, 0xFF),
        Mark(0x8100_0000),
        Mark(0x8180_0000, 0xFFC0_0000),
    ],
)
def test_what_is_held_outside_of_the_range_is_not_held(mark: Mark) -> None:
    intent = written({"x": {"red": 41}})
    assert assign_marks(intent, "db1", {RED: mark}) == assign_marks(intent, "db1", {})


def test_what_is_held_twice_belongs_to_one() -> None:
    intent = written({"x": {"red": 41, "blue": 42}})
    mark = intent.marks.tenant(9)
    marks = assign_marks(intent, "db1", {RED: mark, BLUE: mark})
    assert list(marks.values()).count(mark) == 1
    assert marks[RED] != marks[BLUE]


def test_a_full_range_is_enough() -> None:
    named = {f"t{number}": number for number in range(7)}
    marks = assign_marks(written({"x": named}, bits="16-19"), "db1", {})
    assert {mark.value for mark in marks.values()} == {
        0x80000 | number << 16 for number in range(1, 8)
    }


@given(st.integers(0, 30).flatmap(lambda low: st.tuples(st.just(low), st.integers(low + 1, 31))))
def test_a_number_and_its_mark_are_one_thing(bits: tuple[int, int]) -> None:
    marks = Marks(*bits)
    for number in {1, marks.tenants}:
        assert marks.number(marks.tenant(number)) == number
    assert marks.number(marks.tunnel) is None


def test_flows_on_one_port_share_the_mark_of_a_vni() -> None:
    """One device sends for both; their peers keep them apart."""
    intent = parse_policy(
        f"{HEAD}flows:\n"
        "  x: {kind: vxlan, between: [db1, db2], tenants: {red: 41, blue: 42}}\n"
        "  y: {kind: vxlan, between: [db1, db3], tenants: {rouge: 41, vert: 43}}\n"
        "  z: {kind: geneve, between: [db1, db2], tenants: {red: 41}}\n",
        "p",
    )
    marks = assign_marks(intent, "db1", {})
    by_name = {f"{flow}.{tenant}": mark for (flow, tenant), mark in marks.items()}
    assert by_name["x.red"] == by_name["y.rouge"] != by_name["z.red"]
    assert len(set(by_name.values())) == 4


def test_every_address_pair_has_sps_of_every_tenant() -> None:
    wanted = desired(written({"x": {"red": 41, "blue": 42}}, shared="shared"), "db1")
    assert {child.id.tenant for child in wanted.children} == {"red", "blue", None}
    assert len(wanted.children) == 6
    assert len({child.reqid for child in wanted.children}) == 6
    for child in wanted.children:
        for sp in (*inbound_sps(child), *outbound_sps(child, child.reqid)):  # type: ignore[arg-type]
            assert sp.id.mark == child.mark is not None
    assert len({sp.id for child in wanted.children for sp in inbound_sps(child)}) == 6
    assert all(sp.id.mark is None for sp in wanted.blocks)


def test_hosts_need_not_agree_on_marks() -> None:
    intent = written({"x": {"red": 41}})
    held = Held(marks={RED: intent.marks.tenant(77)})
    (here, *_), (there, *_) = (
        desired(intent, "db1", held=held).children,
        desired(intent, "db2").children,
    )
    assert here.mark != there.mark
    assert here.id.local == there.id.remote == ipaddress.ip_address("192.0.2.11")


def two_flows(second: str) -> list[str]:
    """Problems of a flow with tenants on the port of another one, at one host."""
    return problems_of(
        f"{HEAD}flows:\n"
        "  x: {kind: vxlan, between: [db1, db2], tenants: {red: 41, blue: 42}}\n"
        f"  y: {{kind: vxlan, between: [db1, db3]{second}}}\n"
    )


@pytest.mark.parametrize(
    "second",
    [
        ", tenants: {green: 43}",
        ", tenants: {red: 41, blue: 42}, other_tenants: shared",
        ", port: 4790",
        ", port: 4790, tenants: {red: 41}, other_tenants: shared",
    ],
)
def test_flows_on_one_port_may_have_tenants_that_go_together(second: str) -> None:
    assert two_flows(second) == []


@pytest.mark.parametrize("second", ["", ", tenants: {red: 41}, other_tenants: shared"])
def test_a_vni_with_sas_of_its_own_is_not_carried_with_others_elsewhere(second: str) -> None:
    vni = 42 if second else 41
    [problem] = two_flows(second)
    assert problem.startswith(f"p:9: flows.y: it would carry VNI {vni} together with others")
    assert "on the same port of db1" in problem


def test_tenants_that_share_a_mark_are_counted_once() -> None:
    text = (
        f"{HEAD}marks: {{bits: 16-17}}\nflows:\n"
        "  x: {kind: vxlan, between: [db1, db2], tenants: {red: 41}}\n"
        "  y: {kind: vxlan, between: [db1, db3], tenants: {red: 41}}\n"
    )
    assert problems_of(text) == []
