"""The whole cluster as the operator wants it: every default filled in, nothing left to decide.

The same text gives the same Intent on every host, whatever the order of its keys and lists.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.errors import Bug, PolicyError, Problem
from tunsec.model.flow import (
    Keying,
    Kind,
    Mode,
    OffloadWish,
    OnReconnect,
    RekeyRule,
    SequenceNumbers,
)
from tunsec.model.ike import IkeRules, Revocation
from tunsec.model.names import Address, FlowName, HostName, Mark, TenantName, Vni
from tunsec.policy.checks import contradictions
from tunsec.policy.document import read_document
from tunsec.policy.language import FlowEntry, IkeEntry, PolicyFile
from tunsec.policy.problems import located, suggestion
from tunsec.policy.reading import read_language
from tunsec.policy.release import unreleased
from tunsec.policy.resolve import (
    aeads_of,
    hosts_between,
    keying_of,
    local_senders_of,
    mode_of,
    offload_of,
    on_reconnect_of,
    other_tenants_of,
    port_of,
    rekey_of,
    sequence_numbers_of,
    strangers_of,
)
from tunsec.policy.values import LocalSenders, OtherTenants, Ppk, Strangers

_DIGEST_LABEL: Final = "tunsec 1 policy\n"


@dataclass(frozen=True, slots=True)
class Host:
    """An entry of the policy. `identity` is the DNS name that its certificate bears."""

    name: HostName
    addresses: tuple[Address, ...]
    identity: str


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Addresses that move between their owners."""

    name: str
    addresses: tuple[Address, ...]
    owners: tuple[HostName, ...]


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of an overlay and its VNI."""

    name: TenantName
    vni: Vni


@dataclass(frozen=True, slots=True)
class Marks:
    """The bits of packet marks that are tunsec's, `low` to `high`.

    The top bit says that a packet comes from a tunnel device; those below it count tenants.
    """

    low: int
    high: int

    @property
    def mask(self) -> int:
        """All of them."""
        return (1 << (self.high + 1)) - (1 << self.low)

    @property
    def tunnel(self) -> Mark:
        """The mark that the egress of tunnel devices sets."""
        return Mark(1 << self.high, 1 << self.high)

    @property
    def tenants(self) -> int:
        """How many tenants they can tell apart."""
        return (1 << (self.high - self.low)) - 1

    def tenant(self, number: int) -> Mark:
        """The mark of a tenant, who comes from a tunnel device too; numbers begin with 1."""
        return Mark(self.tunnel.value | number << self.low, self.mask)

    def number(self, mark: Mark) -> int | None:
        """The tenant's number in a mark; None when it is no tenant's mark of these bits."""
        number = (mark.value & ~self.tunnel.value) >> self.low
        return number if number > 0 and self.tenant(number) == mark else None


@dataclass(frozen=True, slots=True)
class Flow:
    """One declared flow. `hosts` and `service_addresses` are who take part in it."""

    name: FlowName
    kind: Kind
    mode: Mode
    keying: Keying
    port: int
    hosts: tuple[HostName, ...]
    service_addresses: tuple[str, ...]
    aeads: tuple[Aead, ...]
    rekey: RekeyRule
    tenants: tuple[Tenant, ...]
    other_tenants: OtherTenants
    on_reconnect: OnReconnect
    offload: OffloadWish
    esn: bool
    local_senders: LocalSenders
    strangers: Strangers


@dataclass(frozen=True, slots=True)
class Intent:
    """A whole policy; everything in it is sorted by name or number."""

    version: int
    hosts: tuple[Host, ...]
    service_addresses: tuple[ServiceAddress, ...]
    flows: tuple[Flow, ...]
    ike: IkeRules
    marks: Marks
    ppk: Ppk

    @property
    def digest(self) -> str:
        """SHA-256 of the content in hex: equal for policies that mean the same."""
        content = dataclasses.asdict(self)
        if not self.uses_ike:
            del content["ike"]  # it means nothing then
        for flow in content["flows"]:
            if flow["esn"]:
                del flow["esn"]  # as it was before there was a choice
        text = json.dumps(content, default=_plain, sort_keys=True)
        return hashlib.sha256((_DIGEST_LABEL + text).encode()).hexdigest()

    @property
    def uses_ike(self) -> bool:
        """Whether any flow is keyed by IKE."""
        return any(flow.keying is Keying.IKE for flow in self.flows)

    def host(self, name: str) -> Host:
        """A host by its name; raises PolicyError when the policy does not name it."""
        for host in self.hosts:
            if host.name == name:
                return host
        remedy = suggestion(
            name,
            [host.name for host in self.hosts],
            otherwise="add it to 'hosts', or give the name under which the policy knows this host",
        )
        raise PolicyError([Problem(f"host {name}", "the policy does not name it", remedy)])


def parse_policy(text: str, source: str) -> Intent:
    """Policy text -> Intent. `source` is the file's name, for messages.

    Raises PolicyError with every problem of the text, in the order of its lines.
    """
    document = read_document(text)
    if document.value == {} and document.flaws:
        raise PolicyError(located(document.flaws, source=source, lines=document.lines))
    reading = read_language(document.value, broken={flaw.path for flaw in document.flaws})
    flaws = [*document.flaws, *reading.flaws, *contradictions(reading)]
    taken = {flaw.path for flaw in flaws}
    flaws += [flaw for flaw in unreleased(document.value) if flaw.path not in taken]
    if flaws:
        raise PolicyError(located(flaws, source=source, lines=document.lines))
    if reading.file is None:
        raise Bug("a policy without flaws could not be read")
    return _intent(reading.file)


def _plain(value: object) -> str:
    """Addresses for JSON; all else in an Intent is text and numbers."""
    return str(value)


def _intent(file: PolicyFile) -> Intent:
    """A flawless file with everything filled in and sorted."""
    low, high = file.marks.bits
    return Intent(
        version=file.version,
        hosts=tuple(
            Host(name, entry.address, entry.identity or name)
            for name, entry in sorted(file.hosts.items())
        ),
        service_addresses=tuple(
            ServiceAddress(
                name, entry.address, tuple(HostName(owner) for owner in sorted(entry.owners))
            )
            for name, entry in sorted(file.service_addresses.items())
        ),
        flows=tuple(
            _flow(name, file=file, entry=entry) for name, entry in sorted(file.flows.items())
        ),
        ike=_ike(file.ike),
        marks=Marks(low, high),
        ppk=file.defaults.ppk,
    )


def _ike(entry: IkeEntry) -> IkeRules:
    return IkeRules(
        auth=entry.auth,
        rekey_after=entry.rekey,
        reauth_after=entry.reauth,
        dead_after=entry.dead_after,
        revocation=Revocation(entry.revocation),
        psk_file=entry.psk_file,
    )


def _flow(name: FlowName, *, file: PolicyFile, entry: FlowEntry) -> Flow:
    port = port_of(entry)
    if port is None:
        raise Bug(f"flow {name} has no port")
    hosts = frozenset(file.hosts)
    named = () if entry.between == "all" else entry.between
    tenants = [Tenant(tenant, vni) for tenant, vni in sorted((entry.tenants or {}).items())]
    return Flow(
        name=name,
        kind=entry.kind,
        mode=mode_of(file, entry),
        keying=keying_of(file, entry),
        port=port,
        hosts=tuple(HostName(host) for host in sorted(hosts_between(file, entry, hosts=hosts))),
        service_addresses=tuple(sorted(set(named) & set(file.service_addresses))),
        aeads=aeads_of(file, entry),
        rekey=rekey_of(file, entry),
        tenants=tuple(tenants),
        other_tenants=other_tenants_of(file, entry),
        on_reconnect=on_reconnect_of(file, entry),
        offload=offload_of(file, entry),
        esn=sequence_numbers_of(file, entry) is SequenceNumbers.EXTENDED,
        local_senders=local_senders_of(file, entry),
        strangers=strangers_of(file, entry),
    )
