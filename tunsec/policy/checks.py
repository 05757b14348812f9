"""Contradictions: keys that are each well formed and do not go together.

A check is not run on a flow whose keys it reads could not be read: one mistake, one problem.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tunsec.model.flow import Keying, Kind, Mode
from tunsec.model.ike import IkeAuth
from tunsec.model.names import Address
from tunsec.model.selector import TCP, UDP
from tunsec.policy.kinds import ON_WIRE, Ports
from tunsec.policy.language import FlowEntry, PolicyFile
from tunsec.policy.problems import Flaw, Path, listed, suggestion
from tunsec.policy.reading import Reading
from tunsec.policy.resolve import (
    MUST_OFFLOAD,
    OFFLOADED,
    aead_of,
    hosts_between,
    keying_of,
    mode_of,
    names_between,
    offload_of,
    other_tenants_of,
    port_of,
    rekey_of,
)
from tunsec.policy.units import span_text
from tunsec.policy.values import ALL, OtherTenants

TENANT_KINDS: Final = [kind for kind in Kind if ON_WIRE[kind].has_networks]
KERNEL_KINDS: Final = [kind for kind in Kind if ON_WIRE[kind].kernel_sends]
IKE_PORTS: Final = (500, 4500)  # RFC 7296 section 2.23
CONNECTION_KINDS: Final = [kind for kind in Kind if ON_WIRE[kind].has_connections]


@dataclass(frozen=True, slots=True)
class Case:
    """One flow of a policy, with the policy around it."""

    name: str
    flow: FlowEntry
    file: PolicyFile
    reading: Reading
    cut: frozenset[Path]
    """Keys of flows and of defaults that could not be read, or not wholly."""

    def readable(self, *keys: str) -> bool:
        """Whether these keys hold what the operator wrote, in the flow or else in the defaults."""
        inherited = set(keys) - self.flow.model_fields_set | {"rekey"}
        return not any(
            self.at(key) in self.cut or (key in inherited and ("defaults", key) in self.cut)
            for key in keys
        )

    def at(self, *keys: str | int) -> Path:
        """The path of a key of the flow."""
        return ("flows", self.name, *keys)


def contradictions(reading: Reading) -> Iterator[Flaw]:
    """All contradictions of what could be read."""
    if reading.file is None:
        return
    yield from _addresses(reading.file)
    yield from _identities(reading.file)
    yield from _service_addresses(reading.file, reading)
    yield from _marks(reading.file)
    if not any(path[:1] == ("ike",) for path in reading.broken):
        yield from _ike(reading.file)
    cut = frozenset(path[: 2 if path[0] == "defaults" else 3] for path in reading.broken if path)
    cases = [
        Case(name, flow, reading.file, reading, cut) for name, flow in reading.file.flows.items()
    ]
    for case in cases:
        for reads, check in _FLOW_CHECKS:
            if case.readable(*reads):
                yield from check(case)
    placed = [case for case in cases if case.readable("kind", "port", "between")]
    yield from _overlaps(placed)
    yield from _over_ike([one for one in placed if one.readable("keying")])
    yield from _shared_vnis([one for one in placed if one.readable("tenants", "other_tenants")])


def _addresses(file: PolicyFile) -> Iterator[Flaw]:
    """An address belongs to one host or is one service address."""
    owner: dict[Address, str] = {}
    for section, entries in (("hosts", file.hosts), ("service_addresses", file.service_addresses)):
        for name, entry in entries.items():
            for address in entry.address:
                first = owner.setdefault(address, f"{section}.{name}")
                if first != f"{section}.{name}":
                    yield Flaw(
                        (section, name, "address"),
                        f"{address} is also an address of {first}",
                        "give each host and each service address its own",
                    )


def _identities(file: PolicyFile) -> Iterator[Flaw]:
    """Two hosts with one identity could speak for each other."""
    first: dict[str, str] = {}
    for name, host in file.hosts.items():
        identity = host.identity or name
        if first.setdefault(identity, name) != name:
            path = ("hosts", name, "identity") if host.identity else ("hosts", name)
            yield Flaw(
                path,
                f"'{identity}' is also the identity of host {first[identity]}",
                "give each host a certificate of its own",
            )


def _service_addresses(file: PolicyFile, reading: Reading) -> Iterator[Flaw]:
    for name, entry in file.service_addresses.items():
        if name in reading.hosts:
            yield Flaw(
                ("service_addresses", name),
                f"'{name}' is also the name of a host",
                "rename one of them: 'between' names both",
            )
        for index, owner in enumerate(entry.owners):
            if owner not in reading.hosts:
                yield Flaw(
                    ("service_addresses", name, "owners", index),
                    f"'{owner}' is no host of this policy",
                    _known_names(owner, reading.hosts),
                )


def _marks(file: PolicyFile) -> Iterator[Flaw]:
    """Each tenant needs a mark of its own: the top bit says tunnel, the others count tenants."""
    low, high = file.marks.bits
    marked = {
        (flow.kind, port_of(flow), vni)
        for flow in file.flows.values()
        if flow.tenants
        for vni in (
            *flow.tenants.values(),
            *([None] if other_tenants_of(file, flow) is OtherTenants.SHARED else []),
        )
    }
    tenants = len(marked)
    if tenants > 2 ** (high - low) - 1:
        yield Flaw(
            ("marks", "bits"),
            f"{high - low + 1} bits mark {2 ** (high - low) - 1} tenants, the flows have {tenants}",
            f"give {tenants.bit_length() + 1} bits or more",
        )


def _ike(file: PolicyFile) -> Iterator[Flaw]:
    """What hosts prove themselves by: certificates, which may be revoked, or one secret of all."""
    ike = file.ike
    match ike.auth:
        case IkeAuth.PSK:
            if ike.psk_file is None:
                remedy = "add 'psk_file: /etc/tunsec/psk' or what its path is on every host"
                yield Flaw(("ike",), "'auth: psk' needs the file with the secret", remedy)
            if "revocation" in ike.model_fields_set:
                what = "'revocation' is for certificates, not for 'auth: psk'"
                yield Flaw(("ike", "revocation"), what, "delete the key")
        case IkeAuth.CERTIFICATE:
            if ike.psk_file is not None:
                what = "'psk_file' is for 'auth: psk', and the hosts use certificates"
                yield Flaw(("ike", "psk_file"), what, "delete the key, or add 'auth: psk'")


def _known_names(name: str, known: frozenset[str]) -> str:
    names = sorted(known)
    otherwise = f"the policy has {listed(names)}" if len(names) <= 8 else "declare it in 'hosts'"
    return suggestion(name, names, otherwise=otherwise)


def _between(case: Case) -> Iterator[Flaw]:
    """At least two hosts, all of them declared."""
    reading = case.reading
    known = reading.hosts | reading.service_addresses
    if case.flow.between != ALL:
        unknown = [
            (index, name) for index, name in enumerate(case.flow.between) if name not in known
        ]
        for index, name in unknown:
            what = f"'{name}' is neither a host nor a service address of this policy"
            yield Flaw(case.at("between", index), what, _known_names(name, known))
        if unknown:
            return
    names = names_between(case.flow, hosts=reading.hosts)
    hosts = hosts_between(case.file, case.flow, hosts=reading.hosts)
    if not names:
        yield Flaw(case.at("between"), "the list is empty", "name two hosts or more, or all")
    elif len(names) < 2 or (len(hosts) < 2 and not _broken_services(case, names)):
        yield Flaw(
            case.at("between"),
            f"only '{min(names)}' is named" if len(names) < 2 else f"only {min(hosts)} takes part",
            "a flow needs two hosts or more: name another",
        )


def _broken_services(case: Case, names: frozenset[str]) -> bool:
    """Whether a service address among the names could not be read, so that its owners are open."""
    return bool((names & case.reading.service_addresses) - set(case.file.service_addresses))


def _families(case: Case) -> Iterator[Flaw]:
    """Every pair of hosts must be able to speak."""
    names = names_between(case.flow, hosts=case.reading.hosts)
    versions = {
        name: {address.version for address in host.address}
        for name, host in sorted(case.file.hosts.items())
        if name in names
    }
    ipv4 = [name for name, found in versions.items() if found == {4}]
    ipv6 = [name for name, found in versions.items() if found == {6}]
    if ipv4 and ipv6:
        more = len(ipv4) * len(ipv6) - 1
        yield Flaw(
            case.at("between"),
            f"{ipv4[0]} has only IPv4 and {ipv6[0]} only IPv6 addresses"
            + (f", and {more} more pairs are like that" if more else ""),
            f"give {ipv4[0]} an IPv6 or {ipv6[0]} an IPv4 address",
        )


def _port(case: Case) -> Iterator[Flaw]:
    kind, on_wire = case.flow.kind, ON_WIRE[case.flow.kind]
    if case.flow.port is not None and on_wire.port_is_fixed:
        what = f"{kind} has no choice of port: the kernel uses {on_wire.port}"
        yield Flaw(case.at("port"), what, "delete the key")
    if port_of(case.flow) is None:
        yield Flaw(case.at(), f"a {kind} flow needs a port", "add 'port: 5432' or what it uses")


def _mode(case: Case) -> Iterator[Flaw]:
    """kTLS is for TCP sockets of programs: UDP has none, RDS's own sockets cannot take it."""
    kind = case.flow.kind
    if mode_of(case.file, case.flow) is not Mode.KTLS or kind is Kind.TCP:
        return
    path = case.at("mode") if case.flow.mode else case.at()
    reason = (
        "rds-tcp sends from sockets of the kernel's own, which cannot take kTLS"
        if kind is Kind.RDS_TCP
        else f"kTLS is for TCP, and {kind} is UDP"
    )
    yield Flaw(path, reason, "use 'mode: esp' for this flow")


def _esp_keys(case: Case) -> Iterator[Flaw]:
    """Keys of the language that only ESP has."""
    if mode_of(case.file, case.flow) is Mode.KTLS and case.flow.keying is not None:
        yield Flaw(
            case.at("keying"),
            f"'keying: {keying_of(case.file, case.flow)}' is for ESP; kTLS gets keys by TLS 1.3",
            "delete the key, or use 'mode: esp'",
        )


def _tenants(case: Case) -> Iterator[Flaw]:
    tenants, kind = case.flow.tenants, case.flow.kind
    if tenants is None:
        if case.flow.other_tenants is not None and ON_WIRE[kind].has_networks:
            yield Flaw(case.at("other_tenants"), "the flow has no tenants", "add 'tenants'")
        return
    if not tenants and ON_WIRE[kind].has_networks:
        yield Flaw(case.at("tenants"), "no tenant is declared", "name one, or delete the key")
    first: dict[int, str] = {}
    for name, vni in tenants.items():
        if first.setdefault(vni, name) != name:
            yield Flaw(
                case.at("tenants", name),
                f"VNI {vni} already belongs to tenant {first[vni]}",
                "give each tenant a VNI of its own",
            )


def _misplaced(case: Case) -> Iterator[Flaw]:
    """Keys that mean nothing for the kind."""
    kind, on_wire = case.flow.kind, ON_WIRE[case.flow.kind]
    given = case.flow.model_fields_set
    if not on_wire.has_networks:
        for key in sorted(given & {"tenants", "other_tenants", "strangers"}):
            what = f"'{key}' is for {listed(TENANT_KINDS)}, not for {kind}"
            yield Flaw(case.at(key), what, "delete the key")
    if not on_wire.kernel_sends and "local_senders" in given:
        what = f"'local_senders' is for {listed(KERNEL_KINDS)}, not for {kind}"
        yield Flaw(case.at("local_senders"), what, "delete the key")
    if not on_wire.has_connections and "on_reconnect" in given:
        what = f"{kind} has no connections; 'on_reconnect' is for {listed(CONNECTION_KINDS)}"
        yield Flaw(case.at("on_reconnect"), what, "delete the key")


def _offload(case: Case) -> Iterator[Flaw]:
    """A NIC that must do the work must know the AEAD."""
    wish, aead = offload_of(case.file, case.flow), aead_of(case.file, case.flow)
    if wish in MUST_OFFLOAD and not set(aead.aeads) & set(OFFLOADED):
        yield Flaw(
            case.at("aead" if case.flow.aead else "offload"),
            f"no NIC offloads {aead}, and 'offload: {wish}' lets nothing else do the work",
            f"use 'aead: auto' or {listed(OFFLOADED)}, or 'offload: none'",
        )


def _rekey(case: Case) -> Iterator[Flaw]:
    """Keys must not end before they are replaced."""
    rule = rekey_of(case.file, case.flow)
    if rule.hard_after > rule.after:
        return
    own = case.flow.rekey
    path = next((case.at("rekey", key) for key in ("hard", "after") if getattr(own, key)), None)
    yield Flaw(
        path or ("defaults", "rekey", "hard"),
        f"keys end after {span_text(rule.hard_after)}, before they are replaced, which is "
        f"after {span_text(rule.after)}",
        "make 'hard' some times as long as 'after', or leave it out",
    )


_FLOW_CHECKS: Final[tuple[tuple[tuple[str, ...], Callable[[Case], Iterator[Flaw]]], ...]] = (
    (("between",), _between),
    (("between",), _families),
    (("kind", "port"), _port),
    (("kind", "mode"), _mode),
    (("kind", "mode", "keying"), _esp_keys),
    (("kind", "tenants", "other_tenants"), _tenants),
    (("kind",), _misplaced),
    (("rekey",), _rekey),
    (("aead", "offload"), _offload),
)
"""(keys it reads, check)"""


def _matches(flow: FlowEntry, port: int) -> Iterator[tuple[str, int, Ports, int]]:
    """What a flow's selectors look at, apart from addresses; port 0 is any."""
    on_wire = ON_WIRE[flow.kind]
    for direction, every in (("out", on_wire.outbound), ("in", on_wire.inbound)):
        for ports in every:
            yield direction, on_wire.proto, ports, 0 if ports is Ports.ANY else port


def _overlaps(cases: list[Case]) -> Iterator[Flaw]:
    """The kernel holds one SP per selector: it cannot belong to two flows."""
    flows_of: dict[tuple[str, int, Ports, int, str], list[str]] = {}
    for case in cases:
        port = port_of(case.flow)
        if port is None:
            continue
        names = sorted(names_between(case.flow, hosts=case.reading.hosts))
        places = [(*match, name) for match in _matches(case.flow, port) for name in names]
        shared: dict[tuple[str, tuple[str, int, Ports, int]], list[str]] = {}
        for place in places:
            for first in flows_of.get(place, ()):
                shared.setdefault((first, place[:4]), []).append(place[4])
        pair = next((entry for entry in shared.items() if len(entry[1]) > 1), None)
        if pair is None:
            for place in places:
                flows_of.setdefault(place, []).append(case.name)
            continue
        (first, (_, proto, _, matched)), common = pair
        traffic = f"{'TCP' if proto == TCP else 'UDP'}{f' port {matched}' if matched else ''}"
        yield Flaw(
            case.at(),
            f"{traffic} between {' and '.join(common[:2])} already belongs to flow {first}",
            "make them one flow, or keep their hosts or ports apart",
        )


def _over_ike(cases: list[Case]) -> Iterator[Flaw]:
    """IKE goes in clear: where its port is closed to clear packets, it makes no keys."""
    by_ike = [
        (case.name, names_between(case.flow, hosts=case.reading.hosts))
        for case in cases
        if keying_of(case.file, case.flow) is Keying.IKE
    ]
    for case in cases:
        port = port_of(case.flow)
        if ON_WIRE[case.flow.kind].proto != UDP or port not in IKE_PORTS:
            continue
        here = names_between(case.flow, hosts=case.reading.hosts)
        for name, there in by_ike:
            common = sorted(here & there)
            if len(common) > 1:
                yield Flaw(
                    case.at(),
                    f"UDP port {port} is IKE's, which makes the keys of flow {name} between "
                    f"{common[0]} and {common[1]}",
                    "leave the port to IKE, or use 'keying: directory' between these hosts",
                )
                break


def _shared_vnis(cases: list[Case]) -> Iterator[Flaw]:
    """What has SAs of its own in one flow must not be carried with others by another flow of the
    same port and host: there is one tunnel device, which can give a VNI one mark."""
    hosts = {
        case.name: hosts_between(case.file, case.flow, hosts=case.reading.hosts) for case in cases
    }
    for case in cases:
        own = set((case.flow.tenants or {}).values())
        shared = other_tenants_of(case.file, case.flow) is OtherTenants.SHARED
        if not ON_WIRE[case.flow.kind].has_networks or (own and not shared):
            continue
        for other in cases:
            there = other.flow.kind, port_of(other.flow)
            common = hosts[case.name] & hosts[other.name]
            named = set((other.flow.tenants or {}).values()) - own
            if there == (case.flow.kind, port_of(case.flow)) and common and named:
                yield Flaw(
                    case.at(),
                    f"it would carry VNI {min(named)} together with others, and flow "
                    f"{other.name}, on the same port of {min(common)}, gives it SAs of its own",
                    "name the VNI in 'tenants' here too, or use another port",
                )
                break
