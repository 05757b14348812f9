"""Intent -> Desired, as laws that hold for every policy and every kind of flow."""

import ipaddress
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.written import HEAD, intents
from tunsec.model.errors import PolicyError
from tunsec.model.flow import Child, ChildId
from tunsec.model.guard import GuardedFlow
from tunsec.model.names import FlowName, HostName, Mark, Network, Reqid, Spi
from tunsec.model.ownership import (
    PRIORITY_BLOCK,
    REQID_FIRST,
    REQID_LAST,
    is_our_reqid,
    is_our_sp,
)
from tunsec.model.selector import PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection
from tunsec.policy.desired import (
    Desired,
    Held,
    assign_reqids,
    child_ids,
    child_order,
    desired,
    inbound_sps,
    outbound_sps,
)
from tunsec.policy.intent import Flow, Intent, parse_policy
from tunsec.policy.values import Strangers

SPI = Spi(0x1234_5678)


def desired_of(
    intent: Intent, host: str, *, held: Mapping[ChildId, Reqid] | None = None
) -> Desired:
    """What a host must hold when it starts with these reqids."""
    return desired(intent, host, held=Held(held or {}))


def protects(child: Child) -> tuple[Sp, ...]:
    """All protecting SPs of a child."""
    return inbound_sps(child) + outbound_sps(child, SPI)


def covers(wide: Selector, narrow: Selector) -> bool:
    """Whether every packet of one selector is one of the other."""
    return (
        wide.version == narrow.version
        and narrow.src.subnet_of(wide.src)  # type: ignore[arg-type]
        and narrow.dst.subnet_of(wide.dst)  # type: ignore[arg-type]
        and wide.proto in (0, narrow.proto)
        and _port_covers(wide.sport, narrow.sport)
        and _port_covers(wide.dport, narrow.dport)
    )


def _port_covers(wide: PortMatch, narrow: PortMatch) -> bool:
    return wide.mask & narrow.mask == wide.mask and narrow.port & wide.mask == wide.port


def mirrored(child_id: ChildId, *, host: HostName) -> ChildId:
    """The peer's name for a child of `host`."""
    return ChildId(host, child_id.flow, child_id.tenant, child_id.remote, child_id.local)


@given(intents())
def test_two_hosts_mirror_each_other(intent: Intent) -> None:
    parts = {host.name: desired_of(intent, host.name) for host in intent.hosts}
    for host, part in parts.items():
        for child in part.children:
            twin_id = mirrored(child.id, host=host)
            (twin,) = [one for one in parts[child.id.peer].children if one.id == twin_id]
            assert (twin.kind, twin.keying, twin.rekey, twin.aeads, twin.priority) == (
                child.kind,
                child.keying,
                child.rekey,
                child.aeads,
                child.priority,
            )
            # What one sends the other accepts.
            assert all(any(covers(out, into) for out in child.outbound) for into in twin.inbound)


@given(intents())
def test_no_two_children_share_a_reqid_or_an_sp(intent: Intent) -> None:
    for host in intent.hosts:
        children = desired_of(intent, host.name).children
        assert len({child.reqid for child in children}) == len(children)
        assert len({child.id for child in children}) == len(children)


@given(intents())
def test_under_every_protecting_sp_lies_a_block(intent: Intent) -> None:
    for host in intent.hosts:
        part = desired_of(intent, host.name)
        for sp in (sp for child in part.children for sp in protects(child)):
            below = [
                block
                for block in part.blocks
                if block.id.direction is sp.id.direction
                and covers(block.id.selector, sp.id.selector)
            ]
            assert below, f"nothing blocks {sp}"
            assert all(block.priority > sp.priority for block in below)


@given(intents())
def test_blocks_do_not_depend_on_the_own_addresses(intent: Intent) -> None:
    """A packet from an address that the policy does not list must not slip past."""
    for host in intent.hosts:
        for block in desired_of(intent, host.name).blocks:
            own = {SpDirection.OUT: block.id.selector.src, SpDirection.IN: block.id.selector.dst}
            assert own[block.id.direction].prefixlen == 0


@given(intents())
def test_every_address_of_every_peer_is_blocked_and_guarded(intent: Intent) -> None:
    for host in intent.hosts:
        part = desired_of(intent, host.name)
        for flow in intent.flows:
            peers = [one for one in intent.hosts if one.name in flow.hosts and one != host]
            addresses = {address for peer in peers for address in peer.addresses}
            if host.name not in flow.hosts:
                assert flow.name not in [guarded.flow for guarded in part.guarded]
                continue
            (guarded,) = [one for one in part.guarded if one.flow == flow.name]
            assert guarded.peers == addresses
            for address in addresses:
                network = ipaddress.ip_network(address)
                assert {
                    block.id.direction
                    for block in part.blocks
                    if network.version == block.id.selector.version
                    and network.subnet_of(far_end(block))  # type: ignore[arg-type]
                } == {SpDirection.IN, SpDirection.OUT}


@given(intents())
def test_strangers_are_blocked_where_the_flow_says_so_and_nowhere_else(intent: Intent) -> None:
    for host in intent.hosts:
        part = desired_of(intent, host.name)
        flows = [flow for flow in intent.flows if host.name in flow.hosts]
        closed = {flow.port for flow in flows if flow.strangers is Strangers.BLOCKED}
        assert {(block.id.direction, str(block.id.selector)) for block in any_to_any(part)} == {
            (direction, f"{anywhere} -> {anywhere} udp dport {port}")
            for direction in (SpDirection.IN, SpDirection.OUT)
            for anywhere in ("0.0.0.0/0", "::/0")
            for port in closed
        }
        for guarded in part.guarded:
            assert guarded.strangers_blocked == (
                intent_flow(intent, guarded.flow).strangers is Strangers.BLOCKED
            )


def any_to_any(part: Desired) -> list[Sp]:
    """The block SPs that look at no address."""
    return [block for block in part.blocks if far_end(block).prefixlen == 0]


def intent_flow(intent: Intent, name: FlowName) -> Flow:
    """A flow by its name."""
    (found,) = [flow for flow in intent.flows if flow.name == name]
    return found


def far_end(block: Sp) -> Network:
    """The peer's side of a block SP."""
    selector = block.id.selector
    return selector.dst if block.id.direction is SpDirection.OUT else selector.src


@given(intents())
def test_everything_is_sorted_ours_and_stands_once(intent: Intent) -> None:
    for host in intent.hosts:
        part = desired_of(intent, host.name)
        ids = [child.id for child in part.children]
        assert ids == sorted(ids, key=child_order)
        assert tuple(ids) == child_ids(intent, host.name)
        assert len({block.id for block in part.blocks}) == len(part.blocks)
        assert all(is_our_sp(block) for block in part.blocks)
        assert all(is_our_sp(sp) for child in part.children for sp in protects(child))


@given(intents())
def test_templates_point_the_way_of_their_sp(intent: Intent) -> None:
    for child in desired_of(intent, intent.hosts[0].name).children:
        for sp in inbound_sps(child):
            (template,) = sp.templates
            assert (template.src, template.dst) == (child.id.remote, child.id.local)
            assert (template.reqid, template.spi) == (child.reqid, None)
            assert sp.id.selector.src == ipaddress.ip_network(child.id.remote)
        for sp in outbound_sps(child, SPI):
            (template,) = sp.templates
            assert (template.src, template.dst) == (child.id.local, child.id.remote)
            assert (template.reqid, template.spi) == (child.reqid, SPI)
            assert sp.id.selector.src == ipaddress.ip_network(child.id.local)


ids_of_children = st.builds(
    ChildId,
    peer=st.sampled_from([HostName("a"), HostName("b")]),
    flow=st.sampled_from([FlowName("x"), FlowName("y")]),
    tenant=st.none(),
    local=st.ip_addresses(network="192.0.2.0/29"),
    remote=st.ip_addresses(network="192.0.2.8/29"),
)
reqids = st.integers(REQID_FIRST - 1, REQID_FIRST + 3).map(Reqid)


@given(st.lists(ids_of_children, unique=True), st.dictionaries(ids_of_children, reqids))
def test_reqids_are_kept_and_never_shared(ids: list[ChildId], held: dict[ChildId, Reqid]) -> None:
    assigned = assign_reqids(ids, held)
    assert set(assigned) == set(ids)
    assert len(set(assigned.values())) == len(ids)
    assert all(is_our_reqid(reqid) for reqid in assigned.values())
    for child_id, reqid in held.items():
        if is_our_reqid(reqid) and list(held.values()).count(reqid) == 1:
            takers = [one for one, given_reqid in assigned.items() if given_reqid == reqid]
            assert takers in ([child_id], [])
            assert child_id not in assigned or assigned[child_id] == reqid
    assert assign_reqids(reversed(ids), held) == assigned
    assert assign_reqids(ids, assigned) == assigned


def test_a_reqid_goes_on_to_the_next_free_one() -> None:
    child = ChildId(
        HostName("b"),
        FlowName("x"),
        None,
        ipaddress.ip_address("192.0.2.1"),
        ipaddress.ip_address("192.0.2.2"),
    )
    (first,) = assign_reqids([child], {}).values()
    other = ChildId(HostName("c"), child.flow, None, child.local, child.remote)
    after = REQID_FIRST if first == REQID_LAST else first + 1
    assert assign_reqids([child], {other: first})[child] == after


def test_vxlan_between_two_hosts() -> None:
    intent = parse_policy(f"{HEAD}flows:\n  x: {{kind: vxlan, between: [db1, db2]}}\n", "p")
    part = desired_of(intent, "db1")
    assert [str(child.id) for child in part.children] == [
        "x 192.0.2.11 - db2 192.0.2.12",
        "x 2001:db8::11 - db2 2001:db8::12",
    ]
    first = part.children[0]
    assert [str(sp) for sp in protects(first)] == [
        f"protect in 192.0.2.12/32 -> 192.0.2.11/32 udp dport 4789 by reqid {first.reqid:#x}",
        "protect out 192.0.2.11/32 -> 192.0.2.12/32 udp dport 4789 by esp 12345678",
    ]
    assert [str(block) for block in part.blocks] == [
        "block in 0.0.0.0/0 -> 0.0.0.0/0 udp dport 4789",
        "block out 0.0.0.0/0 -> 0.0.0.0/0 udp dport 4789",
        "block in ::/0 -> ::/0 udp dport 4789",
        "block out ::/0 -> ::/0 udp dport 4789",
    ]
    assert {(block.action, block.priority) for block in part.blocks} == {
        (SpAction.BLOCK, PRIORITY_BLOCK)
    }
    assert part.guarded == (
        GuardedFlow(
            flow=FlowName("x"),
            kind=first.kind,
            proto=17,
            ports=(4789,),
            either_side=False,
            peers=frozenset({first.id.remote, part.children[1].id.remote}),
            tunnel_only=True,
            strangers_blocked=True,
        ),
    )
    assert part.tunnel_mark == Mark(0x8000_0000, 0x8000_0000)
    assert first.replay_window >= 1024


def test_vxlan_beside_strangers_blocks_the_peers_alone() -> None:
    flow = "{kind: vxlan, between: [db1, db2], strangers: allowed}"
    part = desired_of(parse_policy(f"{HEAD}flows:\n  x: {flow}\n", "p"), "db1")
    assert [str(block) for block in part.blocks] == [
        "block out 0.0.0.0/0 -> 192.0.2.12/32 udp dport 4789",
        "block in 192.0.2.12/32 -> 0.0.0.0/0 udp dport 4789",
        "block out ::/0 -> 2001:db8::12/128 udp dport 4789",
        "block in 2001:db8::12/128 -> ::/0 udp dport 4789",
    ]
    assert not part.guarded[0].strangers_blocked


def test_flows_on_one_port_share_their_blocks() -> None:
    flows = "  x: {kind: vxlan, between: [db1, db2]}\n  y: {kind: vxlan, between: [db1, db3]}\n"
    part = desired_of(parse_policy(f"{HEAD}flows:\n{flows}", "p"), "db1")
    assert len(part.blocks) == 4
    assert len(part.children) == 3


def test_a_host_in_no_flow_holds_nothing() -> None:
    intent = parse_policy(f"{HEAD}flows:\n  x: {{kind: vxlan, between: [db1, db2]}}\n", "p")
    part = desired_of(intent, "db3")
    assert (part.children, part.blocks, part.guarded) == ((), (), ())


def test_a_host_that_the_policy_does_not_name_is_an_error() -> None:
    intent = parse_policy(f"{HEAD}flows:\n  x: {{kind: vxlan, between: [db1, db2]}}\n", "p")
    with pytest.raises(PolicyError, match="host db9: the policy does not name it"):
        desired(intent, "db9")
