"""What a daemon answers for: policies come and go, nothing opens without a release."""

from tunsec.daemon.scope import Scope
from tunsec.model.flow import Kind
from tunsec.model.names import FlowName, HostName
from tunsec.model.overlay import LookupFault
from tunsec.model.sp import SpAction
from tunsec.plan.image import Image
from tunsec.policy.desired import Held, inbound_sps
from tunsec.policy.intent import Intent, parse_policy

HOSTS = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
  db3: {address: 192.0.2.13}
flows:
"""
ONE = "  one: {kind: vxlan, between: [db1, db2]}\n"
TWO = "  two: {kind: vxlan, between: all, port: 4790, rekey: {after: 5m, hard: 3h}}\n"


def policy(*flows: str) -> Intent:
    """A policy of these flows."""
    return parse_policy(HOSTS + "".join(flows), "test")


def scope(*flows: str) -> Scope:
    """The scope of db1 under a policy of these flows."""
    return Scope(HostName("db1"), policy(*flows), "test")


def flow_names(given: Scope) -> set[str]:
    """Flows that are guarded."""
    return {guarded.flow for guarded in given.guarded}


def test_a_host_without_a_policy_holds_nothing() -> None:
    empty = Scope.empty(HostName("db1"))
    assert (empty.children, empty.blocks, empty.guarded, empty.rollover) == ((), (), (), None)


def test_the_quickest_flow_sets_the_pace_of_offers() -> None:
    rule = scope(ONE, TWO).rollover
    assert rule is not None
    assert rule.after == 300.0
    assert rule.lifetime == 8 * 3600.0


def test_what_the_kernel_cannot_protect_stays_blocked() -> None:
    whole = scope(ONE, TWO)
    assert whole.tunnels == ((Kind.VXLAN, 4), (Kind.VXLAN, 6))
    fault = LookupFault(Kind.VXLAN, 6, "no look-up by port")
    part = whole.with_faults([fault])
    assert {child.id.local.version for child in part.children} == {4}
    assert {(child.id.local.version, why) for child, why in part.unable} == {(6, fault.reason)}
    assert {child.id for child, _ in part.unable} | {child.id for child in part.children} == {
        child.id for child in whole.children
    }
    assert (part.blocks, part.guarded) == (whole.blocks, whole.guarded)
    assert part.with_policy(policy(TWO), "next").unable, "it is the same kernel"


def test_what_a_policy_drops_stays_blocked_until_released() -> None:
    then = scope(ONE, TWO).with_policy(policy(TWO), "next")
    assert flow_names(then) == {"one", "two"}
    assert {child.id.flow for child in then.children} == {"two"}
    assert set(scope(ONE, TWO).blocks) == set(then.blocks)
    released = then.without(FlowName("one"))
    assert flow_names(released) == {"two"}
    assert set(released.blocks) == set(scope(TWO).blocks)


def test_what_was_dropped_twice_is_not_forgotten() -> None:
    last = scope(ONE).with_policy(policy(TWO), "b").with_policy(policy(TWO), "c")
    assert flow_names(last) == {"one", "two"}
    assert flow_names(last.with_policy(policy(ONE), "d")) == {"one", "two"}
    assert {gone.flow for gone in last.with_policy(policy(ONE), "d").retired} == {"two"}


def test_another_port_leaves_the_former_one_blocked() -> None:
    then = scope(ONE).with_policy(policy(ONE.replace("]}", "], port: 4790}")), "next")
    assert flow_names(then) == {"one", "one.former"}
    assert {sp.id for sp in scope(ONE).blocks} <= {sp.id for sp in then.blocks}
    again = then.with_policy(policy(ONE.replace("]}", "], port: 4791}")), "third")
    assert flow_names(again) == {"one", "one.former", "one.former2"}
    assert set(then.blocks) < set(again.blocks)
    assert flow_names(again.without(FlowName("one.former"))) == {"one", "one.former2"}
    back = again.with_policy(policy(ONE), "back")
    assert set(back.blocks) == set(again.blocks)


def test_a_peer_that_is_dropped_stays_guarded() -> None:
    fewer = TWO.replace("all", "[db1, db2]")
    then = scope(TWO).with_policy(policy(fewer), "next")
    assert {sp.id for sp in scope(TWO).blocks} <= {sp.id for sp in then.blocks}


def test_opening_a_port_to_strangers_needs_a_release_and_closing_it_does_not() -> None:
    opened = policy(ONE.replace("]}", "], strangers: allowed}"))
    then = scope(ONE).with_policy(opened, "next")
    assert {gone.flow for gone in then.retired} == {"one.former"}
    assert {sp.id for sp in scope(ONE).blocks} <= {sp.id for sp in then.blocks}
    closed = Scope(HostName("db1"), opened, "test").with_policy(policy(ONE), "next")
    assert closed.retired == ()
    assert set(closed.blocks) == set(scope(ONE).blocks)


def test_a_reload_keeps_what_was_released_and_an_apply_does_not() -> None:
    released = scope(ONE, TWO).without(FlowName("one"))
    kept = released.with_policy(policy(ONE, TWO), "again", keep_released=True)
    assert flow_names(kept) == {"two"}
    assert {one.flow for one in kept.released_here} == {"one"}
    changed = policy(ONE.replace("]}", "], aead: aes-128-gcm}"), TWO)
    assert flow_names(released.with_policy(changed, "x", keep_released=True)) == {"one", "two"}
    assert flow_names(released.with_policy(policy(ONE, TWO), "x")) == {"one", "two"}


def test_a_released_flow_is_managed_again_by_the_next_policy() -> None:
    released = scope(ONE, TWO).without(FlowName("one"))
    assert flow_names(released) == {"two"}
    assert {child.id.flow for child in released.children} == {"two"}
    assert flow_names(released.with_policy(policy(ONE, TWO), "next")) == {"one", "two"}


def test_everything_can_be_released() -> None:
    nothing = scope(ONE).with_policy(policy(TWO), "next").without(None)
    assert (nothing.children, nothing.blocks, nothing.guarded) == ((), (), ())


def test_block_sps_that_nobody_remembers_stay() -> None:
    have = Image(sps={sp.id: sp for sp in scope(ONE, TWO).blocks})
    assert set(scope(TWO).all_blocks(have)) == set(scope(ONE, TWO).blocks)
    assert all(sp.action is SpAction.BLOCK for sp in scope(TWO).all_blocks(have))


def test_children_keep_the_reqids_they_have() -> None:
    child = scope(ONE).children[0]
    other = type(child.reqid)(child.reqid ^ 1)
    kept = scope(ONE, TWO).with_held(Held({child.id: other}))
    [again] = [one for one in kept.children if one.id == child.id]
    assert again.reqid == other
    assert inbound_sps(again)[0].templates[0].reqid == other
    assert len({one.reqid for one in kept.children}) == len(kept.children)
