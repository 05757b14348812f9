"""Service addresses: the holder has them as its own, nobody else; they are closed everywhere."""

import ipaddress
from itertools import permutations

import pytest

from tunsec.model.flow import Child
from tunsec.model.names import Address, HostName
from tunsec.policy.desired import Desired, Holders, assign_reqids, desired, possible_ids
from tunsec.policy.intent import Intent, parse_policy

ONE = ipaddress.ip_address("192.0.2.100")
SIX = ipaddress.ip_address("2001:db8::100")
TWO = ipaddress.ip_address("192.0.2.101")
POLICY = f"""\
version: 1
hosts:
  db1: {{address: [192.0.2.11, 2001:db8::11]}}
  db2: {{address: [192.0.2.12, 2001:db8::12]}}
  app: {{address: 192.0.2.13}}
  far: {{address: 192.0.2.14}}
service_addresses:
  one: {{address: [{ONE}, "{SIX}"], owners: [db1, db2]}}
  two: {{address: {TWO}, owners: [db1, db2]}}
flows:
  bus: {{kind: rds-tcp, between: [app, one, two]}}
  other: {{kind: vxlan, between: [db1, far]}}
"""
DB1, DB2, APP, FAR = map(HostName, ("db1", "db2", "app", "far"))
HOLDERS: list[Holders] = [
    {},
    {"one": DB1},
    {"one": DB2, "two": DB2},
    {"one": DB1, "two": DB2},
]


def intent() -> Intent:
    """The policy of this page."""
    return parse_policy(POLICY, "p")


def parts(holders: Holders) -> dict[HostName, Desired]:
    """What every host must hold."""
    return {host: desired(intent(), host, holders=holders) for host in (DB1, DB2, APP, FAR)}


def over(part: Desired, *addresses: Address) -> list[Child]:
    """Children over one of these addresses."""
    return [one for one in part.children if {one.id.local, one.id.remote} & set(addresses)]


def test_the_holder_speaks_from_it_and_the_others_with_the_holder() -> None:
    found = parts({"one": DB1})
    assert {(one.id.peer, one.id.local, str(one.id.remote)) for one in over(found[DB1], ONE)} == {
        (DB2, ONE, "192.0.2.12"),
        (APP, ONE, "192.0.2.13"),
    }
    for host in (DB2, APP):
        assert {(one.id.peer, one.id.remote) for one in over(found[host], ONE)} == {(DB1, ONE)}
    assert {(one.id.peer, one.id.local) for one in over(found[DB1], SIX)} == {(DB2, SIX)}
    assert not over(found[FAR], ONE, SIX, TWO)


def test_two_services_on_two_hosts_speak_with_each_other() -> None:
    found = parts({"one": DB1, "two": DB2})
    assert (ONE, TWO) in {(one.id.local, one.id.remote) for one in found[DB1].children}
    together = parts({"one": DB1, "two": DB1})
    assert {ONE, TWO} not in [{one.id.local, one.id.remote} for one in together[DB1].children]


@pytest.mark.parametrize("holders", HOLDERS)
def test_two_hosts_mirror_each_other(holders: Holders) -> None:
    found = parts(holders)
    for host, part in found.items():
        for child in part.children:
            [twin] = [
                one
                for one in found[child.id.peer].children
                if (one.id.flow, one.id.peer) == (child.id.flow, host)
                and (one.id.local, one.id.remote) == (child.id.remote, child.id.local)
            ]
            assert (set(twin.inbound), set(twin.outbound)) == (
                set(child.outbound),
                set(child.inbound),
            )


def test_blocks_and_guard_do_not_hang_on_who_holds_it() -> None:
    for one, other in permutations(map(parts, HOLDERS), 2):
        for host in (DB1, DB2, APP, FAR):
            assert one[host].blocks == other[host].blocks
            assert one[host].guarded == other[host].guarded
    for host in (DB1, DB2, APP):
        [bus] = [guarded for guarded in parts({})[host].guarded if guarded.flow == "bus"]
        assert {ONE, SIX, TWO} <= bus.peers


@pytest.mark.parametrize("holder", ["app", "far", "nobody"])
def test_who_is_no_owner_gets_nothing(holder: str) -> None:
    assert parts({"one": HostName(holder)}) == parts({})


def test_no_two_holders_ever_share_a_reqid() -> None:
    """A child's SAs are told by their reqid: those with the holder before must not pass."""
    every = possible_ids(intent(), APP)
    reqids = assign_reqids(every, {})
    assert len(set(reqids.values())) == len(every)
    for holders in HOLDERS:
        for child in desired(intent(), APP, holders=holders).children:
            assert child.reqid == reqids[child.id]
