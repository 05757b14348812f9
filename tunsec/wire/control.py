"""The control API: what tunsecd and `tunsec` say to each other in JSON.

Each body is one frozen dataclass. `encode` and `decode` know these shapes only: an unknown key, a
missing one or a wrong type is a Malformed error that names its path. Spans are seconds, SPIs are 8
hex digits, counts are of packets unless they end in `_bytes`; nothing secret has a place here.
"""

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Final, TypeVar

from tunsec.model.errors import Problem, TunsecError

API_VERSION: Final = 1

Shape = TypeVar("Shape")


class Malformed(TunsecError):
    """A body that is not what the API says."""


@dataclass(frozen=True, slots=True)
class ChildSaStatus:
    """A CHILD_SA of a flow; `own` ones carry what this host sends. `age` in seconds."""

    own: bool
    state: str
    spi_in: str
    spi_out: str
    age: float


@dataclass(frozen=True, slots=True)
class IkeStatus:
    """The IKE_SA of a flow, as charon last told of it, and what stands in the way of the next
    CHILD_SA.

    `authenticated` is seconds since the peer has proven who it is, `next_rekey` and `next_reauth`
    seconds until; `error` is in charon's own words.
    """

    state: str
    initiator: bool | None = None
    authenticated: float | None = None
    next_rekey: float | None = None
    next_reauth: float | None = None
    algorithms: tuple[str, ...] = ()
    ppk: bool = False
    child_sas: tuple[ChildSaStatus, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class FlowStatus:
    """One protected relation: a flow (of a tenant) with a peer between two addresses.

    `age` and `next_rollover` are seconds since and until; None without an SA. `drops` are packets
    that the SAs refused (replay, integrity).
    """

    flow: str
    kind: str
    peer: str
    tenant: str | None
    mode: str
    keying: str
    local: str
    remote: str
    state: str
    reason: str
    protected: bool
    spi_in: str | None = None
    spi_out: str | None = None
    aead: str | None = None
    offload: str = "none"
    """What a NIC does of ESP, as read back: `none`, `crypto` or `packet`."""
    age: float | None = None
    next_rollover: float | None = None
    rekeys: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    in_packets: int = 0
    out_packets: int = 0
    drops: int = 0
    warnings: tuple[str, ...] = ()
    declared: bool = True
    """False for a flow that the policy dropped: it stays blocked until it is released."""
    ike: IkeStatus | None = None


@dataclass(frozen=True, slots=True)
class FlowDrops:
    """What the guard dropped of a flow."""

    clear_out: int = 0
    clear_in: int = 0
    local_injection: int = 0
    cross_tenant: int = 0


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """The nftables table: whether it stands as wanted, and what it dropped per flow."""

    in_force: bool
    trouble: str = ""
    drops: Mapping[str, FlowDrops] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy that is in force, and what was wrong with the last one that was not taken."""

    source: str
    digest: str
    age: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class DirectoryStatus:
    """The directory: `refused` counts records that were not believed, by reason."""

    url: str
    reachable: bool
    trouble: str = ""
    own_offers: int = 0
    private_keys_held: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """What others changed in the kernel and tunsec put right, since the daemon started."""

    sas: int = 0
    sps: int = 0
    guard: int = 0
    events_lost: int = 0
    """Times that the kernel's event lane overran, and everything was looked at anew."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """A service address as this host sees it: who holds it, by which fencing token.

    `state` is this host's own, where it is an owner: ABSENT, CLAIMING, OWNED, FENCED or LEAVING;
    elsewhere HELD or FREE.
    """

    service: str
    addresses: tuple[str, ...]
    owners: tuple[str, ...]
    holder: str | None
    token: int
    state: str
    here: bool
    """Whether the address is on this host."""


@dataclass(frozen=True, slots=True)
class Status:
    """Everything `tunsec status` knows. `api` rises when a shape changes."""

    host: str
    version: str
    uptime: float
    flows: tuple[FlowStatus, ...]
    policy: PolicyStatus
    directory: DirectoryStatus | None
    guard: GuardStatus
    drift: DriftStatus
    warnings: tuple[str, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
    troubles: Mapping[str, str] = field(default_factory=dict)
    """What is not as asked and is tried again until it is, by part: in the kernel, in the guard,
    of tenants' marks, of the own offer, of links."""
    api: int = API_VERSION

    @property
    def unprotected(self) -> tuple[FlowStatus, ...]:
        """Declared flows that are blocked."""
        return tuple(flow for flow in self.flows if flow.declared and not flow.protected)


@dataclass(frozen=True, slots=True)
class PolicyBody:
    """A policy to plan or to apply; `source` is where the operator's text came from."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would change: `steps` in order, in words."""

    source: str
    digest: str
    steps: tuple[str, ...]
    flows_added: tuple[str, ...] = ()
    flows_changed: tuple[str, ...] = ()
    flows_removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What has changed; `changed` is false when the same policy was in force already."""

    source: str
    digest: str
    changed: bool
    flows_added: tuple[str, ...] = ()
    flows_changed: tuple[str, ...] = ()
    flows_removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReleaseBody:
    """Which flow to release, None for all."""

    flow: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """Flows whose traffic may now go in clear."""

    released: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaitBody:
    """Wait until a flow, or every flow, is protected; at most `timeout` seconds."""

    flow: str | None = None
    timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class WaitReport:
    """Whether all is protected, and what is not: `FLOW PEER: reason`."""

    protected: bool
    waiting_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """Why a request was not carried out.

    `kind` is `policy`, `unavailable`, `refused`, `bug`, `request` or `denied`; `problems` are
    given with `policy`.
    """

    kind: str
    message: str
    problems: tuple[Problem, ...] = ()


def encode(body: object) -> bytes:
    """A body as JSON."""
    return json.dumps(_plain(body), separators=(",", ":"), allow_nan=False).encode()


def decode(shape: type[Shape], raw: bytes) -> Shape:
    """JSON as a body; raises Malformed."""
    try:
        parsed = json.loads(raw, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    value: Shape = _shaped(shape, parsed, shape.__name__)
    return value


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number")


def _shaped(shape: Any, value: object, path: str) -> Any:
    """The value as its type says; types are those of the dataclasses above."""
    if is_dataclass(shape):
        return _dataclass(shape, value, path)
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if origin is types.UnionType:
        inner = next(part for part in arguments if part is not type(None))
        return None if value is None else _shaped(inner, value, path)
    if origin is tuple:
        members = _checked(value, list, path)
        return tuple(_shaped(arguments[0], part, f"{path}[{n}]") for n, part in enumerate(members))
    if origin is Mapping:
        named = _checked(value, dict, path)
        return {key: _shaped(arguments[1], part, f"{path}.{key}") for key, part in named.items()}
    if shape is float and type(value) is int:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed(f"{path}: {value} is no number")
    return _checked(value, shape, path)


def _dataclass(shape: Any, value: object, path: str) -> Any:
    given = _checked(value, dict, path)
    parts: dict[str, Field[Any]] = {part.name: part for part in fields(shape)}
    for key in given:
        if key not in parts:
            raise Malformed(f"{path}: there is no key {key!r}")
    for name, part in parts.items():
        if name not in given and part.default is MISSING and part.default_factory is MISSING:
            raise Malformed(f"{path}: the key {name!r} is missing")
    hints = typing.get_type_hints(shape)
    return shape(
        **{name: _shaped(hints[name], part, f"{path}.{name}") for name, part in given.items()}
    )


def _checked(value: object, kind: type[Shape], path: str) -> Shape:
    if type(value) is not kind:
        raise Malformed(f"{path}: {type(value).__name__} given, {kind.__name__} wanted")
    return value
