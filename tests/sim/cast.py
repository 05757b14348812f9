"""The cast of a simulation: policies and certificates for hosts h0, h1, ... made once."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tunsec.keying.ca import issue, make_root, period, sign_list
from tunsec.keying.chain import Trust
from tunsec.keying.crl import what_it_says
from tunsec.keying.identity import Identity
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.flow import Keying, OnReconnect
from tunsec.model.names import HostName
from tunsec.policy.intent import Intent, ServiceAddress, parse_policy

EPOCH = WallTime(1_800_000_000.0)
"""Wall time at which every simulation begins."""

QUIET = "6h"
"""Rekey span of a policy under which nothing happens for a while."""


@functools.cache
def _root() -> tuple[Ed25519PrivateKey, x509.Certificate]:
    key = Ed25519PrivateKey.generate()
    root = make_root("sim", key=key, serial=1, valid=period(wall_now=EPOCH, days=3650))
    return key, root


@functools.cache
def identity(name: str, issue_number: int = 1) -> Identity:
    """The identity of a host; a later one has another key and serial number."""
    ca_key, root = _root()
    key = Ed25519PrivateKey.generate()
    leaf = issue(
        HostName(name),
        [],
        key=key,
        ca=root,
        ca_key=ca_key,
        serial=_serial(name, issue_number),
        valid=period(wall_now=EPOCH, days=3000),
    )
    return Identity(HostName(name), (leaf,), key)


@functools.cache
def trust(revoked: frozenset[tuple[str, int]] = frozenset()) -> Trust:
    """What a host believes that has heard of these revoked certificates: host and issue number."""
    ca_key, root = _root()
    serials = {_serial(name, number): EPOCH for name, number in revoked}
    crl = sign_list(
        serials, ca=root, ca_key=ca_key, number=1, valid=period(wall_now=EPOCH, days=30)
    )
    return Trust([root], [what_it_says(crl)] if revoked else [])


def _serial(name: str, issue_number: int) -> int:
    return int.from_bytes(f"{name} {issue_number}".encode(), "big")


@functools.cache
def policy(
    hosts: int,
    *,
    after: str = "10s",
    hard: str | None = "10m",
    flows: int = 1,
    both_families: bool = False,
    soft_packets: int | None = None,
    by_ike: int = 0,
    ike_rekey: float = 4 * 3600.0,
    dead_after: str = "never",
    tenants: int = 0,
    others: str = "blocked",
    circle: int = 0,
) -> Intent:
    """A cluster of `hosts` with VXLAN flows between all of them, on ports 4789, 4790, ...; the
    first `by_ike` of them keyed by IKE. Each has so many `tenants`, and says so of `others`. With
    a `circle`, each flow is between so many hosts alone: the last of one is the first of the next.

    `soft_packets` and `ike_rekey` may be lower than the language allows, so that few probes and
    little time reach them.
    """
    lines = ["version: 1", "hosts:"]
    for number in range(hosts):
        six = f", 2001:db8::{number + 1:x}" if both_families else ""
        lines.append(
            f"  h{number}: {{address: [192.0.{2 + number // 250}.{1 + number % 250}{six}]}}"
        )
    limit = "" if hard is None else f", hard: {hard}"
    lines += ["defaults:", f"  rekey: {{after: {after}{limit}}}", "flows:"]
    between = ["all"] * flows
    if circle:
        names = [f"h{number}" for number in range(hosts)]
        circles = (names[at : at + circle] for at in range(0, hosts - 1, circle - 1))
        between = [f"[{', '.join(one)}]" for one in circles]
    keying = ["ike"] * by_ike + ["directory"] * (len(between) - by_ike)
    vnis = ", ".join(f"t{number}: {41 + number}" for number in range(tenants))
    named = f", tenants: {{{vnis}}}, other_tenants: {others}" if tenants else ""
    lines += [
        f"  overlay{number}: "
        f"{{kind: vxlan, between: {among}, port: {4789 + number}, keying: {word}{named}}}"
        for number, (among, word) in enumerate(zip(between, keying, strict=True))
    ]
    lines += ["ike:", f"  dead_after: {dead_after}"]
    intent = parse_policy("\n".join(lines) + "\n", "sim.yaml")
    intent = replace(intent, ike=replace(intent.ike, rekey_after=Seconds(ike_rekey)))
    if soft_packets is None:
        return intent
    return replace(
        intent,
        flows=tuple(
            replace(flow, rekey=replace(flow.rekey, soft_packets=soft_packets))
            for flow in intent.flows
        ),
    )


BESIDE = """
  copy: {kind: tcp, port: 5001, between: all, on_reconnect: reauth}
  lan: {kind: vxlan, between: all}
"""


def with_connections(
    *,
    keying: Keying,
    after: str = QUIET,
    on_reconnect: OnReconnect = OnReconnect.REAUTH,
    beside: bool = False,
) -> Intent:
    """Two hosts with a TCP flow whose new connections are gated; `beside` it more flows."""
    return parse_policy(
        f"""
version: 1
hosts:
  h0: {{address: [192.0.2.1]}}
  h1: {{address: [192.0.2.2]}}
defaults: {{keying: {keying}, rekey: {{after: {after}}}}}
flows:
  bus: {{kind: tcp, port: 5000, between: all, on_reconnect: {on_reconnect}}}
{BESIDE if beside else ""}
ike: {{dead_after: 5s}}
""",
        "sim.yaml",
    )


VIP = "vip"


def with_service_address(intent: Intent, owners: Iterable[str]) -> Intent:
    """The same policy with a service address in every flow, which these hosts may hold."""
    service = ServiceAddress(
        VIP, (ip_address("198.51.100.7"),), tuple(HostName(owner) for owner in owners)
    )
    return replace(
        intent,
        service_addresses=(service,),
        flows=tuple(replace(flow, service_addresses=(VIP,)) for flow in intent.flows),
    )


def keyed_by_ike(intent: Intent, names: Iterable[str]) -> Intent:
    """The same policy with these flows keyed by IKE, and the others by directory."""
    chosen = set(names)
    return replace(
        intent,
        flows=tuple(
            replace(flow, keying=Keying.IKE if flow.name in chosen else Keying.DIRECTORY)
            for flow in intent.flows
        ),
    )


def without_flows(intent: Intent, names: Iterable[str]) -> Intent:
    """A policy that no longer names some flows."""
    gone = set(names)
    return replace(intent, flows=tuple(flow for flow in intent.flows if flow.name not in gone))


def without_host(intent: Intent, name: str) -> Intent:
    """A policy in which a host takes part in no flow any more."""
    left = (
        replace(flow, hosts=tuple(host for host in flow.hosts if host != name))
        for flow in intent.flows
    )
    return replace(intent, flows=tuple(flow for flow in left if len(flow.hosts) > 1))
