"""Contradictions between keys that are each well formed."""

import pytest

from tests.unit.policy.written import HEAD, flow_problems, problems_of
from tunsec.policy.release import NOT_IN_RELEASE


def contradictions_of(text: str) -> list[str]:
    """Problems but for what a later release brings."""
    return [problem for problem in problems_of(text) if NOT_IN_RELEASE not in problem]


def flow_contradictions(flow: str) -> list[str]:
    """The same for one flow, `x`, on line 8."""
    return [problem for problem in flow_problems(flow) if NOT_IN_RELEASE not in problem]


@pytest.mark.parametrize(
    ("flow", "problem"),
    [
        (
            "{kind: vxlan, between: [db1, db2], offload: crypto, aead: chacha20-poly1305}",
            (
                "x.aead: no NIC offloads chacha20-poly1305, and 'offload: crypto' lets nothing "
                "else do the work (use 'aead: auto' or aes-128-gcm or aes-256-gcm, or "
                "'offload: none')"
            ),
        ),
        (
            "{kind: vxlan, between: [db1, db9]}",
            (
                "x.between[1]: 'db9' is neither a host nor a service address of this policy "
                "(did you mean 'db6'?)"
            ),
        ),
        (
            "{kind: vxlan, between: [db1]}",
            "x.between: only 'db1' is named (a flow needs two hosts or more: name another)",
        ),
        (
            "{kind: vxlan, between: []}",
            "x.between: the list is empty (name two hosts or more, or all)",
        ),
        (
            "{kind: vxlan, between: all}",
            (
                "x.between: db3 has only IPv4 and db6 only IPv6 addresses "
                "(give db3 an IPv6 or db6 an IPv4 address)"
            ),
        ),
        (
            "{kind: vxlan, between: [db1, db2], mode: ktls}",
            "x.mode: kTLS is for TCP, and vxlan is UDP (use 'mode: esp' for this flow)",
        ),
        (
            "{kind: rds-tcp, between: [db1, db2], mode: ktls}",
            (
                "x.mode: rds-tcp sends from sockets of the kernel's own, which cannot take kTLS "
                "(use 'mode: esp' for this flow)"
            ),
        ),
        (
            "{kind: tcp, port: 5432, between: [db1, db2], mode: ktls, keying: ike}",
            (
                "x.keying: 'keying: ike' is for ESP; kTLS gets keys by TLS 1.3 "
                "(delete the key, or use 'mode: esp')"
            ),
        ),
        (
            "{kind: tcp, between: [db1, db2]}",
            "x: a tcp flow needs a port (add 'port: 5432' or what it uses)",
        ),
        (
            "{kind: rds-tcp, port: 16385, between: [db1, db2]}",
            "x.port: rds-tcp has no choice of port: the kernel uses 16385 (delete the key)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], tenants: {red: 41, blue: 41}}",
            (
                "x.tenants.blue: VNI 41 already belongs to tenant red "
                "(give each tenant a VNI of its own)"
            ),
        ),
        (
            "{kind: vxlan, between: [db1, db2], tenants: {red: 16777216}}",
            "x.tenants.red: 16777216 is no VNI (use a number from 0 to 16777215)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], tenants: {}}",
            "x.tenants: no tenant is declared (name one, or delete the key)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], other_tenants: shared}",
            "x.other_tenants: the flow has no tenants (add 'tenants')",
        ),
        (
            "{kind: rocev2, between: [db1, db2], tenants: {red: 41}}",
            "x.tenants: 'tenants' is for vxlan or geneve, not for rocev2 (delete the key)",
        ),
        (
            "{kind: tcp, port: 1, between: [db1, db2], local_senders: any}",
            (
                "x.local_senders: 'local_senders' is for vxlan, geneve, rds-tcp or rocev2, "
                "not for tcp (delete the key)"
            ),
        ),
        (
            "{kind: tcp, port: 1, between: [db1, db2], strangers: blocked}",
            "x.strangers: 'strangers' is for vxlan or geneve, not for tcp (delete the key)",
        ),
        (
            "{kind: vxlan, between: [db1, db2], on_reconnect: reauth}",
            (
                "x.on_reconnect: vxlan has no connections; 'on_reconnect' is for rds-tcp or tcp "
                "(delete the key)"
            ),
        ),
        (
            "{kind: vxlan, between: [db1, db2], rekey: {after: 1h, hard: 1h}}",
            (
                "x.rekey.hard: keys end after 1h, before they are replaced, which is after 1h "
                "(make 'hard' some times as long as 'after', or leave it out)"
            ),
        ),
    ],
)
def test_each_contradiction_of_a_flow(flow: str, problem: str) -> None:
    assert flow_contradictions(flow) == [f"p:8: flows.{problem}"]


@pytest.mark.parametrize(
    ("first", "second", "traffic"),
    [
        ("{kind: vxlan", "{kind: vxlan", "UDP port 4789"),
        ("{kind: vxlan", "{kind: udp, port: 4789", "UDP port 4789"),
        ("{kind: vxlan, port: 6081", "{kind: geneve", "UDP port 6081"),
        ("{kind: rds-tcp", "{kind: tcp, port: 16385", "TCP port 16385"),
        ("{kind: rocev2", "{kind: rocev2", "UDP"),
        ("{kind: rocev2", "{kind: udp, port: 4791", "UDP port 4791"),
    ],
)
def test_two_flows_over_one_selector(first: str, second: str, traffic: str) -> None:
    flows = f"  a: {first}, between: [db1, db2, db3]}}\n  b: {second}, between: [db2, db1]}}\n"
    assert contradictions_of(f"{HEAD}flows:\n{flows}") == [
        (
            f"p:9: flows.b: {traffic} between db1 and db2 already belongs to flow a "
            "(make them one flow, or keep their hosts or ports apart)"
        )
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{kind: vxlan, between: [db1, db2]}", "{kind: vxlan, port: 8472, between: [db1, db2]}"),
        ("{kind: vxlan, between: [db1, db2]}", "{kind: vxlan, between: [db2, db3]}"),
        ("{kind: vxlan, between: [db1, db2]}", "{kind: rocev2, between: [db1, db2]}"),
        ("{kind: tcp, port: 4789, between: [db1, db2]}", "{kind: vxlan, between: [db1, db2]}"),
    ],
)
def test_flows_that_keep_apart(first: str, second: str) -> None:
    assert contradictions_of(f"{HEAD}flows:\n  a: {first}\n  b: {second}\n") == []


def test_hosts_and_service_addresses_are_kept_apart() -> None:
    text = f"""\
{HEAD}  db7: {{address: 192.0.2.17, identity: db1}}
  db8: {{address: [192.0.2.18, 192.0.2.13]}}
service_addresses:
  vip: {{address: 192.0.2.11, owners: [db1, db9]}}
  db1: {{address: 192.0.2.99, owners: [db1]}}
flows:
  x: {{kind: rds-tcp, between: [db1, vip]}}
  y: {{kind: vxlan, between: [db1, db2]}}
"""
    assert contradictions_of(text) == [
        (
            "p:7: hosts.db7.identity: 'db1' is also the identity of host db1 "
            "(give each host a certificate of its own)"
        ),
        (
            "p:8: hosts.db8.address: 192.0.2.13 is also an address of hosts.db3 "
            "(give each host and each service address its own)"
        ),
        (
            "p:10: service_addresses.vip.address: 192.0.2.11 is also an address of hosts.db1 "
            "(give each host and each service address its own)"
        ),
        (
            "p:10: service_addresses.vip.owners[1]: 'db9' is no host of this policy "
            "(did you mean 'db8'?)"
        ),
        (
            "p:11: service_addresses.db1: 'db1' is also the name of a host "
            "(rename one of them: 'between' names both)"
        ),
        "p:13: flows.x.between: only db1 takes part (a flow needs two hosts or more: name another)",
    ]


def test_the_ports_of_ike_are_no_flows_where_it_makes_keys() -> None:
    text = f"""\
{HEAD}flows:
  a: {{kind: udp, port: 500, between: [db1, db2], keying: ike}}
  b: {{kind: geneve, port: 4500, between: [db1, db2, db3]}}
  c: {{kind: tcp, port: 500, between: [db1, db2]}}
"""
    remedy = "(leave the port to IKE, or use 'keying: directory' between these hosts)"
    said = "is IKE's, which makes the keys of flow a between db1 and db2"
    assert contradictions_of(text) == [
        f"p:8: flows.a: UDP port 500 {said} {remedy}",
        f"p:9: flows.b: UDP port 4500 {said} {remedy}",
    ]
    assert contradictions_of(text.replace(", keying: ike", "")) == []


def test_a_policy_needs_a_mark_for_each_tenant() -> None:
    text = f"""\
{HEAD}marks: {{bits: 30-31}}
flows:
  x: {{kind: vxlan, between: [db1, db2], tenants: {{red: 41, blue: 42}}}}
"""
    assert contradictions_of(text) == [
        "p:7: marks.bits: 2 bits mark 1 tenants, the flows have 2 (give 3 bits or more)"
    ]


def test_rekey_of_the_defaults_and_of_a_flow_are_compared() -> None:
    text = f"""\
{HEAD}defaults: {{rekey: {{hard: 8h}}}}
flows:
  x: {{kind: vxlan, between: [db1, db2], rekey: {{after: 1d}}}}
"""
    (problem,) = problems_of(text)
    assert problem.startswith("p:9: flows.x.rekey.after: keys end after 8h, before they are")


@pytest.mark.parametrize(
    ("ike", "problem"),
    [
        (
            "{auth: psk}",
            (
                "p:9: ike: 'auth: psk' needs the file with the secret "
                "(add 'psk_file: /etc/tunsec/psk' or what its path is on every host)"
            ),
        ),
        (
            "{psk_file: /etc/tunsec/psk}",
            (
                "p:9: ike.psk_file: 'psk_file' is for 'auth: psk', and the hosts use certificates "
                "(delete the key, or add 'auth: psk')"
            ),
        ),
        (
            "{auth: psk, psk_file: /etc/tunsec/psk, revocation: relaxed}",
            (
                "p:9: ike.revocation: 'revocation' is for certificates, not for 'auth: psk' "
                "(delete the key)"
            ),
        ),
    ],
)
@pytest.mark.parametrize("keying", ["ike", "directory"])
def test_a_secret_is_for_psk_and_revocation_for_certificates(
    ike: str, problem: str, keying: str
) -> None:
    flows = f"flows:\n  x: {{kind: vxlan, keying: {keying}, between: [db1, db2]}}\n"
    assert problems_of(f"{HEAD}{flows}ike: {ike}\n") == [problem]


def test_rules_for_ike_without_a_flow_that_uses_it_are_no_contradiction() -> None:
    flows = "flows:\n  x: {kind: vxlan, between: [db1, db2]}\n"
    assert problems_of(f"{HEAD}{flows}ike: {{auth: psk, psk_file: /x}}\n") == []
