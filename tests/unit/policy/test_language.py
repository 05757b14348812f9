"""Keys and values of the language: what is read, and each mistake with line, place and remedy."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.written import HEAD, documents, flow_problems, problems_of
from tunsec.model.errors import PolicyError, Problem
from tunsec.policy.intent import parse_policy

FLOWS = "flows:\n  x: {kind: vxlan, between: [db1, db2]}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            f"version: 2\n{HEAD[11:]}{FLOWS}",
            "p:1: version: 2 is no known version (write 'version: 1')",
        ),
        (
            f"{HEAD[11:]}{FLOWS}",
            "p:1: (whole file): 'version' is missing (add 'version: 1')",
        ),
        (
            f"version: 1\n{FLOWS}",
            "p:1: (whole file): 'hosts' is missing (add 'hosts: {db1: {address: 192.0.2.11}}')",
        ),
        (
            f"{HEAD}flows: {{}}\n",
            (
                "p:7: flows: nothing is declared here (declare one: "
                "'flows: {overlay: {kind: vxlan, between: all}}')"
            ),
        ),
        (
            f"{HEAD}{FLOWS}flow: 1\n",
            "p:9: flow: there is no such key (did you mean 'flows'?)",
        ),
        (
            "- version: 1\n",
            "p:1: (whole file): a list is no mapping (write 'version: 1', 'hosts:' and 'flows:')",
        ),
        (
            f"{HEAD}  DB7: {{address: 192.0.2.17}}\n{FLOWS}",
            (
                "p:7: hosts.DB7: 'DB7' is no host name "
                "(use a DNS name: lower-case letters, digits, - and .)"
            ),
        ),
        (
            f"{HEAD}  all: {{address: 192.0.2.17}}\n{FLOWS}",
            "p:7: hosts.all: 'all' is not free: 'between: all' means every host (use another name)",
        ),
        (
            f"{HEAD}  192.0.2.17: {{address: 192.0.2.17}}\n{FLOWS}",
            (
                "p:7: hosts.'192.0.2.17': '192.0.2.17' is no host name "
                "(use a DNS name: lower-case letters, digits, - and .)"
            ),
        ),
        (
            f"{HEAD}  db7: {{}}\n{FLOWS}",
            "p:7: hosts.db7: 'address' is missing (add 'address: 192.0.2.11')",
        ),
        (
            f"{HEAD}  db7: 192.0.2.17\n{FLOWS}",
            "p:7: hosts.db7: '192.0.2.17' is no mapping (write '{address: 192.0.2.11}')",
        ),
        (
            f"{HEAD}  db7: {{address: 192.0.2.17, identity: DB 7}}\n{FLOWS}",
            (
                "p:7: hosts.db7.identity: 'DB 7' is no DNS name "
                "(use the DNS subject alternative name of the host's certificate)"
            ),
        ),
        (
            f"{HEAD}{FLOWS}marks: {{bits: 16-40}}\n",
            "p:9: marks.bits: '16-40' is no range of bits (write LOW-HIGH within 0-31: '24-31')",
        ),
        (
            f"{HEAD}{FLOWS}defaults: {{ppk: yes}}\n",
            "p:9: defaults.ppk: 'yes' is no rule for a PPK (use none or required)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{auth: pks, psk_file: /etc/tunsec/psk}}\n",
            "p:9: ike.auth: 'pks' is no proof of identity (did you mean 'psk'?)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{auth: psk, psk_file: psk}}\n",
            (
                "p:9: ike.psk_file: 'psk' is no path of a file from / on "
                "(write its whole path: /etc/tunsec/psk)"
            ),
        ),
        (
            f"{HEAD}{FLOWS}ike: {{auth: psk, psk_file: /etc/tunsec/}}\n",
            (
                "p:9: ike.psk_file: '/etc/tunsec/' is no path of a file from / on "
                "(write its whole path: /etc/tunsec/psk)"
            ),
        ),
        (
            f"{HEAD}{FLOWS}ike: {{rekey: 30s}}\n",
            "p:9: ike.rekey: '30s' is out of range (use at least 1m and at most 30d)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{rekey: never}}\n",
            (
                "p:9: ike.rekey: 'never' is not a time span "
                "(write a number and d, h, m, s or ms: '1h30m')"
            ),
        ),
        (
            f"{HEAD}{FLOWS}ike: {{dead_after: 2s}}\n",
            "p:9: ike.dead_after: '2s' is out of range (use at least 5s and at most 1d)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{reauth: 0s}}\n",
            "p:9: ike.reauth: '0s' is out of range (use at least 1m and at most 365d)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{revocation: ifuri}}\n",
            "p:9: ike.revocation: 'ifuri' is no rule for revocation (use relaxed or strict)",
        ),
        (
            f"{HEAD}{FLOWS}ike: {{dead-after: 5s}}\n",
            "p:9: ike.dead-after: there is no such key (did you mean 'dead_after'?)",
        ),
        (
            f"{HEAD}{FLOWS}ike: psk\n",
            "p:9: ike: 'psk' is no mapping (write 'ike: {dead_after: 5s}')",
        ),
        (
            f"{HEAD}{FLOWS}defaults: {{rekey: 1h}}\n",
            "p:9: defaults.rekey: '1h' is no mapping (write 'rekey: {after: 1h}')",
        ),
    ],
)
def test_each_mistake_has_its_line_its_place_and_a_remedy(text: str, problem: str) -> None:
    assert problems_of(text) == [problem]


@pytest.mark.parametrize(
    ("flow", "problem"),
    [
        ("vxlan", "x: 'vxlan' is no mapping (write '{kind: vxlan, between: all}')"),
        ("{between: all}", "x: 'kind' is missing (add 'kind: vxlan')"),
        ("{kind: vxlan}", "x: 'between' is missing (add 'between: [db1, db2]')"),
        (
            "{kind: vxlam, between: [db1, db2]}",
            "x.kind: 'vxlam' is no kind of flow (did you mean 'vxlan'?)",
        ),
        (
            "{kind: 7, between: [db1, db2]}",
            "x.kind: 7 is no kind of flow (use vxlan, geneve, rds-tcp, rocev2, tcp or udp)",
        ),
        (
            "{kind: vxlan, between: db1}",
            "x.between: 'db1' is no list of names (write a list of hosts, [db1, db2], or all)",
        ),
        (
            "{kind: vxlan, between: [db1, db2, db1]}",
            "x.between[2]: 'db1' stands twice (delete one of the two)",
        ),
        (
            "{kind: vxlan, between: [db1, 2]}",
            "x.between[1]: 2 is no name (write a list of hosts, [db1, db2], or all)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], aead: aes256-gcm}",
            "x.aead: 'aes256-gcm' is no AEAD (did you mean 'aes-256-gcm'?)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], local-senders: any}",
            "x.local-senders: there is no such key (did you mean 'local_senders'?)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], strangers: block}",
            "x.strangers: 'block' is no rule for strangers (did you mean 'blocked'?)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], port: 0}",
            "x.port: 0 is no port (use a number from 1 to 65535)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {after: 0.5s}}",
            "x.rekey.after: '0.5s' is out of range (use at least 1s and at most 30d)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {after: 60}}",
            "x.rekey.after: 60 has no unit (write '60s' for seconds)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {bytes: 1KiB}}",
            "x.rekey.bytes: '1KiB' is out of range (use at least 64KiB)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {packets: 10}}",
            "x.rekey.packets: 10 is out of range (use at least 100)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {jitter: 60%}}",
            "x.rekey.jitter: '60%' is out of range (use at most 50%)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {aftre: 60s}}",
            "x.rekey.aftre: there is no such key (did you mean 'after'?)",
        ),
    ],
)
def test_each_mistake_of_a_flow(flow: str, problem: str) -> None:
    assert flow_problems(flow) == [f"p:8: flows.{problem}"]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("192.0.2", "'192.0.2' is no IP address"),
        ("192.0.2.1/24", "'192.0.2.1/24' is no IP address (leave out the prefix length)"),
        ("7", "7 is no IP address"),
        ("[]", "the list is empty"),
        ("0.0.0.0", "0.0.0.0 is an unspecified address"),
        ("224.0.0.1", "224.0.0.1 is a multicast address"),
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("255.255.255.255", "255.255.255.255 is a broadcast address"),
        ("fe80::1", "fe80::1 is a link-local address"),
        ("2001:db8::1%eth0", "2001:db8::1%eth0 names a device of one host"),
        ("'::ffff:192.0.2.1'", "::ffff:192.0.2.1 is an IPv4 address in disguise (write 192.0.2.1)"),
    ],
)
def test_an_address_must_be_one_hosts_alone(address: str, what: str) -> None:
    (problem,) = problems_of(f"{HEAD}  db7: {{address: {address}}}\n{FLOWS}")
    assert problem.startswith(f"p:7: hosts.db7.address: {what}")


def test_every_address_of_a_list_is_judged() -> None:
    text = f"{HEAD}  db7:\n    address:\n    - 192.0.2.17\n    - x\n    - 192.0.2.17\n{FLOWS}"
    assert problems_of(text) == [
        "p:10: hosts.db7.address[1]: 'x' is no IP address (write it as 192.0.2.11 or 2001:db8::11)",
        "p:11: hosts.db7.address[2]: 192.0.2.17 stands twice (delete one of the two)",
    ]


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = f"""\
{HEAD}  db4: {{address: 192.0.2.11, adress: x}}
  db5:
defaults: {{aead: aes, rekey: {{after: 1 fortnight}}}}
flows:
  a: {{kind: vxlan, between: [db1, bd2]}}
  b: {{kind: vxlan, between: [db1, db2], port: 8472, rekey: {{hard: 1m}}}}
  c: {{kind: vxlan, between: [db1, db5], mode: ktls}}
  d: {{kind: vxlan, between: [db3, db6]}}
  d: {{kind: vxlan, between: [db3, db6]}}
  e: {{kind: udp, port: 8472, between: [db1, db2, db3]}}
"""
    places = [problem.partition(" (")[0] for problem in problems_of(text)]
    assert places == [
        "p:7: hosts.db4.address: 192.0.2.11 is also an address of hosts.db1",
        "p:7: hosts.db4.adress: there is no such key",
        "p:8: hosts.db5: has no value",
        "p:9: defaults.aead: 'aes' is no AEAD",
        "p:9: defaults.rekey.after: '1 fortnight' is not a time span",
        "p:11: flows.a.between[1]: 'bd2' is neither a host nor a service address of this policy",
        "p:13: flows.c.mode: kTLS is for TCP, and vxlan is UDP",
        "p:14: flows.d.between: db3 has only IPv4 and db6 only IPv6 addresses",
        "p:15: flows.d: the key stands twice, first on line 14",
        "p:16: flows.e: UDP port 8472 between db1 and db2 already belongs to flow b",
    ]


def test_one_mistake_is_one_problem() -> None:
    """What depends on a value that cannot be read is not judged by a default instead."""
    text = (
        f"{HEAD}flows:\n  x: {{kind: vxlan, between: [db1, db2], rekey: {{after: 1, hard: 1m}}}}\n"
    )
    assert problems_of(text) == ["p:8: flows.x.rekey.after: 1 has no unit (write '1s' for seconds)"]


def set_at(value: Any, path: tuple[str, ...], junk: Any) -> None:
    """Put junk at a path of a document."""
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = junk


junk_values = st.sampled_from(
    [0, -1, 1.5, True, "", "x", "all", [], ["x"], [1], {}, {"x": 1}, "1h"]
)


@given(st.data())
def test_no_document_makes_it_raise_anything_but_policy_errors(data: st.DataObject) -> None:
    document = data.draw(documents())
    document["defaults"] = {"rekey": {}}
    flow = min(document["flows"])
    host = min(document["hosts"])
    places = [
        *[
            (key,)
            for key in ("version", "hosts", "flows", "defaults", "marks", "service_addresses")
        ],
        *[("hosts", host), ("hosts", host, "address"), ("hosts", host, "identity")],
        *[("flows", flow, key) for key in ("kind", "between", "tenants", "rekey", "port", "mode")],
        *[("defaults", key) for key in ("rekey", "mode", "other_tenants")],
        ("defaults", "rekey", "after"),
    ]
    for path in data.draw(st.lists(st.sampled_from(places), max_size=4, unique=True)):
        try:
            set_at(document, path, data.draw(junk_values))
        except (TypeError, KeyError):
            continue  # junk went where this path leads
    try:
        parse_policy(yaml.safe_dump(document), "p")
        found: tuple[Problem, ...] = ()
    except PolicyError as error:
        found = error.problems
        assert error.problems, "an error without a problem"  # noqa: PT017
    assert all(problem.where.startswith("p:") for problem in found)
    assert all(problem.what and problem.remedy for problem in found)


@given(documents())
def test_what_hypothesis_calls_good_is_good(document: dict[str, Any]) -> None:
    assert {flow.name for flow in parse_policy(yaml.safe_dump(document), "p").flows} == set(
        document["flows"]
    )
