"""Marks that tenants already have in the kernel: they keep them over a restart."""

from tunsec.daemon.reconcile import held_marks
from tunsec.daemon.scope import Scope
from tunsec.model.names import HostName, Spi
from tunsec.model.sp import Sp, SpId
from tunsec.policy.desired import Held, inbound_sps, outbound_sps
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {{address: [192.0.2.11, 2001:db8::11]}}
  db2: {{address: [192.0.2.12, 2001:db8::12]}}
flows:
  overlay: {{kind: vxlan, between: [db1, db2], tenants: {{{tenants}}}, other_tenants: shared}}
  plain: {{kind: geneve, between: [db1, db2]}}
"""
SPI = Spi(0x100)


def scope(tenants: str, held: Held | None = None) -> Scope:
    """db1's part of a policy with these tenants."""
    found = Scope(HostName("db1"), parse_policy(POLICY.format(tenants=tenants), "test"), "test")
    return found if held is None else found.with_held(held)


def kernel(scope: Scope) -> dict[SpId, Sp]:
    """The SPs that protect."""
    return {
        sp.id: sp
        for child in scope.children
        for sp in (*inbound_sps(child), *outbound_sps(child, SPI))
    }


def marks(scope: Scope) -> dict[str, int]:
    """The mark of each tenant."""
    return {str(one.id.tenant): one.mark.value for one in scope.children if one.mark is not None}


def test_what_the_kernel_holds_is_held() -> None:
    before = scope("red: 41, blue: 42")
    moved = {
        ("overlay", tenant): before.intent.marks.tenant(number)  # type: ignore[union-attr]
        for number, tenant in enumerate(("red", "blue", None), start=100)
    }
    before = scope("red: 41, blue: 42", Held(marks=moved))  # type: ignore[arg-type]
    assert marks(before) == {"red": 0xE400_0000, "blue": 0xE500_0000, "None": 0xE600_0000}
    held = held_marks(scope("red: 41, blue: 42").children, kernel(before))
    assert held == moved


def test_tenants_that_stay_keep_theirs_when_others_go_and_come() -> None:
    before = scope("red: 41, blue: 42")
    fresh = scope("aaa: 7, blue: 42, zzz: 8")
    then = fresh.with_held(Held(marks=held_marks(fresh.children, kernel(before))))
    was, now = marks(before), marks(then)
    assert (now["blue"], now["None"]) == (was["blue"], was["None"])
    assert len(set(now.values())) == 4


def test_flows_without_tenants_and_others_sps_hold_nothing() -> None:
    plain = [child for child in scope("red: 41").children if child.mark is None]
    assert plain
    assert held_marks(plain, kernel(scope("red: 41"))) == {}
