"""Readers of single values: what the document says -> model types, or Wrong."""

import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Literal, TypeVar

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.ike import Revocation
from tunsec.model.names import Address, FlowName, HostName, TenantName, Vni
from tunsec.policy.problems import Flaw, Wrong, listed, quoted, shown, suggestion
from tunsec.policy.units import (
    parse_count,
    parse_percent,
    parse_size,
    parse_span,
    size_text,
    span_text,
)

VERSION: Final = 1
ALL: Final = "all"

MIN_AFTER: Final = Seconds(1.0)
MAX_AFTER: Final = Seconds(30 * 86_400.0)
MAX_HARD: Final = Seconds(365 * 86_400.0)
MAX_JITTER: Final = 0.5
MIN_SOFT_BYTES: Final = 64 * 1024
MIN_SOFT_PACKETS: Final = 100
"""Fewer would end an SA before its successor can be agreed on."""

MIN_IKE_REKEY: Final = Seconds(60.0)
MIN_DEAD: Final = Seconds(5.0)
"""charon waits a second at least before it asks a silent peer, and gives up 3.6 s after that."""
MAX_DEAD: Final = Seconds(86_400.0)
NEVER: Final = "never"

MAX_PORT: Final = 2**16 - 1
MAX_VNI: Final = 2**24 - 1  # RFC 7348 section 5, RFC 8926 section 3.4


class LocalSenders(StrEnum):
    """Who on a host may send on a tunnel's port: the kernel alone, or programs too."""

    TUNNEL_ONLY = "tunnel-only"
    ANY = "any"


class OtherTenants(StrEnum):
    """What becomes of VNIs that a flow with tenants does not name."""

    BLOCKED = "blocked"
    SHARED = "shared"


class Strangers(StrEnum):
    """What becomes of clear packets on a tunnel's port from and to hosts outside of its flow."""

    BLOCKED = "blocked"
    ALLOWED = "allowed"


class Ppk(StrEnum):
    """Whether a cluster secret is mixed into the keys of every pair."""

    NONE = "none"
    REQUIRED = "required"


class RevocationWish(StrEnum):
    """What a certificate needs of revocation lists."""

    RELAXED = Revocation.RELAXED.value
    STRICT = Revocation.STRICT.value


class AeadWish(StrEnum):
    """An AEAD by name, or the fastest that both hosts can do."""

    AUTO = "auto"
    AES_128_GCM = Aead.AES_128_GCM.value
    AES_256_GCM = Aead.AES_256_GCM.value
    CHACHA20_POLY1305 = Aead.CHACHA20_POLY1305.value

    @property
    def aeads(self) -> tuple[Aead, ...]:
        """What is allowed by it."""
        return tuple(Aead) if self is AeadWish.AUTO else (Aead(self.value),)


_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DNS_NAME: Final = rf"(?=.{{1,253}}$)({_LABEL}\.)*(?=[a-z0-9-]*[a-z]){_LABEL}"
"""RFC 1123 section 2.1: the last label has a letter, so that no name is an address."""
HOST_NAME: Final = rf"(?!{ALL}$){DNS_NAME}"
PLAIN_NAME: Final = r"[a-z][a-z0-9-]{0,62}"
_PLAIN_NAME_RULE: Final = (
    "start with a letter, then use lower-case letters, digits and -, 63 at most"
)
FILE_PATH: Final = r"(/[^/\x00-\x1f\x7f]+)+"
BITS: Final = r"([0-9]|[12][0-9]|3[01])-([0-9]|[12][0-9]|3[01])"

_Word = TypeVar("_Word", bound=StrEnum)


def choice(words: type[_Word], noun: str) -> Callable[[object], _Word]:
    """A reader of one of an enum's words."""
    known = [str(word) for word in words]

    def read(value: object) -> _Word:
        if isinstance(value, str) and value in known:
            return words(value)
        remedy = f"use {listed(known)}"
        if isinstance(value, str):
            remedy = suggestion(value, known, otherwise=remedy)
        raise Wrong(f"{quoted(value)} is no {noun}", remedy)

    return read


def _name(value: object, noun: str, *, pattern: str, remedy: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Wrong(f"{quoted(value)} is no {noun}", remedy)
    return value


def read_host_name(value: object) -> HostName:
    """A DNS name in lower case; not `all`, and nothing that could be an address."""
    if value == ALL:
        raise Wrong(f"'{ALL}' is not free: 'between: {ALL}' means every host", "use another name")
    remedy = "use a DNS name: lower-case letters, digits, - and ."
    return HostName(_name(value, "host name", pattern=HOST_NAME, remedy=remedy))


def read_identity(value: object) -> str:
    """The DNS name that a host's certificate bears."""
    remedy = "use the DNS subject alternative name of the host's certificate"
    return _name(value, "DNS name", pattern=DNS_NAME, remedy=remedy)


def read_flow_name(value: object) -> FlowName:
    """A flow's name."""
    return FlowName(_name(value, "flow name", pattern=PLAIN_NAME, remedy=_PLAIN_NAME_RULE))


def read_tenant_name(value: object) -> TenantName:
    """A tenant's name."""
    return TenantName(_name(value, "tenant name", pattern=PLAIN_NAME, remedy=_PLAIN_NAME_RULE))


def read_version(value: object) -> int:
    """The version of the language."""
    if value != VERSION or isinstance(value, bool | float):
        raise Wrong(f"{quoted(value)} is no known version", f"write 'version: {VERSION}'")
    return VERSION


def _read_address(value: object) -> Address:
    """A unicast address that can be one host's alone."""
    try:
        if not isinstance(value, str):
            raise ValueError
        address = ipaddress.ip_address(value)
    except ValueError:
        remedy = "write it as 192.0.2.11 or 2001:db8::11"
        if isinstance(value, str) and "/" in value:
            remedy = "leave out the prefix length"
        raise Wrong(f"{quoted(value)} is no IP address", remedy) from None
    unusable = {
        "an unspecified": address.is_unspecified,
        "a multicast": address.is_multicast,
        "a loopback": address.is_loopback,
        "a broadcast": address == ipaddress.IPv4Address("255.255.255.255"),
        "a link-local": address.version == 6 and address.is_link_local,
    }
    for word, holds in unusable.items():
        if holds:
            raise Wrong(f"{shown(value)} is {word} address", "give the host's own address")
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise Wrong(f"{shown(value)} names a device of one host", "leave out the % and the device")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise Wrong(
            f"{shown(value)} is an IPv4 address in disguise", f"write {address.ipv4_mapped}"
        )
    return address


def read_addresses(value: object) -> tuple[Address, ...]:
    """One address or a list of them -> sorted, IPv4 first."""
    listed_values = value if isinstance(value, list) else [value]
    if not listed_values:
        raise Wrong("the list is empty", "give at least one address")
    addresses: list[Address] = []
    flaws: list[Flaw] = []
    for index, item in enumerate(listed_values):
        path = (index,) if isinstance(value, list) else ()
        try:
            address = _read_address(item)
            if address in addresses:
                raise Wrong(f"{address} stands twice", "delete one of the two")
            addresses.append(address)
        except Wrong as error:
            flaws += [Flaw(path, flaw.what, flaw.remedy) for flaw in error.flaws]
    if flaws:
        raise Wrong(flaws=flaws)
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))


def _read_names(value: object, *, remedy: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(f"{quoted(value)} is no list of names", remedy)
    flaws = []
    seen: set[str] = set()
    for index, item in enumerate(value):
        if not isinstance(item, str):
            flaws.append(Flaw((index,), f"{quoted(item)} is no name", remedy))
        elif item in seen:
            flaws.append(Flaw((index,), f"'{shown(item)}' stands twice", "delete one of the two"))
        else:
            seen.add(item)
    if flaws:
        raise Wrong(flaws=flaws)
    return tuple(value)


def read_between(value: object) -> tuple[str, ...] | Literal["all"]:
    """Names of hosts and service addresses, or `all`."""
    if value == ALL:
        return "all"
    return _read_names(value, remedy="write a list of hosts, [db1, db2], or all")


def read_owners(value: object) -> tuple[str, ...]:
    """Names of hosts, at least one."""
    names = _read_names(value, remedy="write a list of hosts: [db1, db2]")
    if not names:
        raise Wrong("the list is empty", "name the hosts that may hold the address")
    return names


def read_port(value: object) -> int:
    """A TCP or UDP port."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_PORT:
        raise Wrong(f"{quoted(value)} is no port", f"use a number from 1 to {MAX_PORT}")
    return value


def read_vni(value: object) -> Vni:
    """A 24-bit VNI."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_VNI:
        raise Wrong(f"{quoted(value)} is no VNI", f"use a number from 0 to {MAX_VNI}")
    return Vni(value)


def read_bits(value: object) -> tuple[int, int]:
    """`24-31` -> (24, 31)."""
    found = re.fullmatch(BITS, value) if isinstance(value, str) else None
    if found is None or int(found[1]) > int(found[2]):
        raise Wrong(f"{quoted(value)} is no range of bits", "write LOW-HIGH within 0-31: '24-31'")
    return int(found[1]), int(found[2])


def span_reader(lowest: Seconds, highest: Seconds) -> Callable[[object], Seconds]:
    """A reader of spans within bounds."""

    def read(value: object) -> Seconds:
        span = parse_span(value)
        if not lowest <= span <= highest:
            raise Wrong(
                f"'{value}' is out of range",
                f"use at least {span_text(lowest)} and at most {span_text(highest)}",
            )
        return span

    return read


def optional_span_reader(lowest: Seconds, highest: Seconds) -> Callable[[object], Seconds | None]:
    """A reader of spans within bounds, or `never`: None."""
    read_span = span_reader(lowest, highest)

    def read(value: object) -> Seconds | None:
        return None if value == NEVER else read_span(value)

    return read


def read_file_path(value: object) -> str:
    """A file on every host, from the root on."""
    if not isinstance(value, str) or not re.fullmatch(FILE_PATH, value):
        remedy = "write its whole path: /etc/tunsec/psk"
        raise Wrong(f"{quoted(value)} is no path of a file from / on", remedy)
    return value


def read_soft_bytes(value: object) -> int:
    """A size that leaves time to rekey, or NO_LIMIT."""
    count = parse_size(value)
    if count < MIN_SOFT_BYTES:
        raise Wrong(f"'{value}' is out of range", f"use at least {size_text(MIN_SOFT_BYTES)}")
    return count


def read_soft_packets(value: object) -> int:
    """A count that leaves time to rekey, or NO_LIMIT."""
    count = parse_count(value)
    if count < MIN_SOFT_PACKETS:
        raise Wrong(f"{value} is out of range", f"use at least {MIN_SOFT_PACKETS}")
    return count


def read_jitter(value: object) -> float:
    """`10%` -> 0.1."""
    jitter = parse_percent(value)
    if jitter > MAX_JITTER:
        raise Wrong(f"'{value}' is out of range", f"use at most {MAX_JITTER:.0%}")
    return jitter
