"""What is language but not in this release is refused by name, and never ignored."""

import pytest

from tests.unit.policy.written import HEAD, flow_problems, problems_of
from tunsec.model.flow import Kind
from tunsec.policy.release import LATER, NOT_IN_RELEASE

EVERYTHING = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
service_addresses:
  rds-vip: {address: 192.0.2.100, owners: [db1, db2]}
defaults: {mode: esp, keying: directory, aead: auto, rekey: {after: 1h, bytes: 256GiB, jitter: 10%}}
flows:
  tenant-overlay: {kind: vxlan, between: [db1, db2], tenants: {red: 41, blue: 42}}
  backbone:       {kind: geneve, between: all, keying: ike}
  cluster-bus:    {kind: rds-tcp, between: [db1, db2, rds-vip], on_reconnect: reauth}
  storage:        {kind: rocev2, between: [db1, db2]}
  replication:    {kind: tcp, port: 5432, between: [db1, db2], mode: ktls}
"""


def test_each_later_feature_is_named_once_with_its_line() -> None:
    assert [problem.partition(" (")[0] for problem in problems_of(EVERYTHING)] == [
        "p:13: flows.replication.mode: 'mode: ktls' is not in this release",
    ]


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_in_this_release(kind: Kind) -> None:
    port = ", port: 7" if kind in (Kind.TCP, Kind.UDP) else ""
    assert flow_problems(f"{{kind: {kind}, between: [db1, db2]{port}}}") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "ktls"),
    ],
)
def test_defaults_of_later_releases_are_refused(key: str, value: str) -> None:
    text = (
        f"{HEAD}defaults: {{{key}: {value}}}\n"
        "flows:\n  x: {kind: vxlan, mode: esp, between: [db1, db2]}\n"
    )
    (problem,) = problems_of(text)
    assert problem.startswith(f"p:7: defaults.{key}: '{key}")
    assert NOT_IN_RELEASE in problem


def test_the_table_names_nothing_twice() -> None:
    assert len({(row.where, row.value) for row in LATER}) == len(LATER)
