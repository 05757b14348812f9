"""Policies for tests: as operators write them, and as hypothesis makes them up."""

import ipaddress
from typing import Any

import yaml
from hypothesis import strategies as st

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import PolicyError
from tunsec.model.flow import Keying, Kind, Mode, OffloadWish, OnReconnect, RekeyRule
from tunsec.model.ike import IkeAuth, IkeRules, Revocation
from tunsec.model.names import Address, FlowName, HostName
from tunsec.policy.intent import Flow, Host, Intent, Marks, parse_policy
from tunsec.policy.kinds import ON_WIRE
from tunsec.policy.values import LocalSenders, OtherTenants, Ppk, Strangers

HEAD = """\
version: 1
hosts:
  db1: {address: [192.0.2.11, 2001:db8::11]}
  db2: {address: [192.0.2.12, 2001:db8::12]}
  db3: {address: 192.0.2.13}
  db6: {address: 2001:db8::16}
"""
"""Six lines, so that what a test adds starts on line 7."""


def problems_of(text: str) -> list[str]:
    """Every problem of a policy, as shown to the operator; its file is called `p`."""
    try:
        parse_policy(text, "p")
    except PolicyError as error:
        return [str(problem) for problem in error.problems]
    return []


def flow_problems(flow: str) -> list[str]:
    """The problems of one flow, `x`, on line 8."""
    return problems_of(f"{HEAD}flows:\n  x: {flow}\n")


labels = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True).filter(lambda name: name != "all")


@st.composite
def host_entries(draw: st.DrawFn) -> dict[str, list[str]]:
    """2 to 4 hosts with one or two addresses of each family."""
    names = draw(st.lists(labels, min_size=2, max_size=4, unique=True))
    hosts = {}
    for number, name in enumerate(names):
        ipv4 = [f"192.0.2.{2 * number + one}" for one in range(draw(st.integers(1, 2)))]
        ipv6 = [f"2001:db8::{2 * number + one + 1:x}" for one in range(draw(st.integers(0, 2)))]
        hosts[name] = [*ipv4, *ipv6]
    return hosts


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A good policy as plain values: flows keep apart by their ports."""
    hosts = draw(host_entries())
    flows: dict[str, Any] = {}
    names = draw(st.lists(labels, min_size=1, max_size=4, unique=True))
    for number, name in enumerate(names):
        some = st.lists(st.sampled_from(sorted(hosts)), min_size=2, unique=True)
        flow: dict[str, Any] = {"kind": "vxlan", "between": draw(some | st.just("all"))}
        if number or draw(st.booleans()):
            flow["port"] = 8_000 + number
        if draw(st.booleans()):
            flow["rekey"] = {"after": f"{draw(st.integers(1, 59))}m"}
        if draw(st.booleans()):
            flow["keying"] = str(draw(st.sampled_from(Keying)))
        if draw(st.booleans()):
            flow["aead"] = draw(st.sampled_from(["auto", *Aead]))
        flows[name] = {key: str(value) if key == "aead" else value for key, value in flow.items()}
    return {
        "version": 1,
        "hosts": {name: {"address": addresses} for name, addresses in hosts.items()},
        "flows": flows,
    }


def shuffled(value: Any, *, draw: st.DrawFn) -> Any:
    """The same document with keys and lists in another order."""
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: shuffled(value[key], draw=draw) for key in keys}
    if isinstance(value, list):
        return draw(st.permutations(value))
    return value


@st.composite
def document_pairs(draw: st.DrawFn) -> tuple[str, str]:
    """One policy written twice, in different order and style."""
    document = draw(documents())
    again = shuffled(document, draw=draw)
    return (
        yaml.safe_dump(document, sort_keys=False, default_flow_style=None),
        yaml.safe_dump(again, sort_keys=False, default_flow_style=False),
    )


@st.composite
def intents(draw: st.DrawFn) -> Intent:
    """An Intent with flows of every kind, those of later releases too."""
    hosts = draw(host_entries())
    kinds = draw(st.lists(st.sampled_from(list(Kind)), min_size=1, max_size=4, unique=True))
    return Intent(
        version=1,
        hosts=tuple(_host(name, hosts[name]) for name in sorted(hosts)),
        service_addresses=(),
        flows=tuple(_flow(kind, draw=draw, hosts=sorted(hosts)) for kind in sorted(kinds)),
        ike=IkeRules(
            IkeAuth.CERTIFICATE, Seconds(14_400.0), None, Seconds(5.0), Revocation.RELAXED
        ),
        marks=Marks(24, 31),
        ppk=Ppk.NONE,
    )


def _host(name: str, addresses: list[str]) -> Host:
    own: tuple[Address, ...] = tuple(ipaddress.ip_address(address) for address in addresses)
    return Host(HostName(name), own, name)


def _flow(kind: Kind, *, draw: st.DrawFn, hosts: list[str]) -> Flow:
    members = draw(st.lists(st.sampled_from(hosts), min_size=2, unique=True))
    return Flow(
        name=FlowName(kind.value),
        kind=kind,
        mode=Mode.ESP,
        keying=Keying.DIRECTORY,
        port=ON_WIRE[kind].port or 5432,
        hosts=tuple(HostName(name) for name in sorted(members)),
        service_addresses=(),
        aeads=tuple(Aead),
        rekey=RekeyRule(Seconds(3600.0), 0.1, Seconds(28800.0), 2**38, 2**32),
        tenants=(),
        other_tenants=OtherTenants.SHARED,
        on_reconnect=OnReconnect.KEEP,
        offload=OffloadWish.NONE,
        esn=True,
        local_senders=LocalSenders.TUNNEL_ONLY,
        strangers=draw(st.sampled_from(Strangers))
        if ON_WIRE[kind].has_networks
        else Strangers.ALLOWED,
    )
