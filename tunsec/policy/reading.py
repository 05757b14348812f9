"""Plain values of a document -> PolicyFile, with everything that is wrong with single keys.

One reading finds all flaws: what is flawed is cut out and the rest is read again, so that a typing
error in one flow does not hide a contradiction between two others.
"""

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunsec.policy.language import (
    DefaultsEntry,
    FlowEntry,
    HostEntry,
    IkeEntry,
    MarksEntry,
    PolicyFile,
    RekeyEntry,
    ServiceAddressEntry,
)
from tunsec.policy.problems import Flaw, Path, Wrong, listed, quoted, suggestion
from tunsec.policy.values import VERSION

MAX_ROUNDS: Final = 6
"""A value, its entry, its section: each round cuts at least one of them."""

_ENTRIES: Final[dict[Path, type[BaseModel]]] = {
    (): PolicyFile,
    ("hosts", "*"): HostEntry,
    ("service_addresses", "*"): ServiceAddressEntry,
    ("defaults",): DefaultsEntry,
    ("defaults", "rekey"): RekeyEntry,
    ("ike",): IkeEntry,
    ("marks",): MarksEntry,
    ("flows", "*"): FlowEntry,
    ("flows", "*", "rekey"): RekeyEntry,
}
_EXAMPLES: Final = {
    "version": f"version: {VERSION}",
    "hosts": "hosts: {db1: {address: 192.0.2.11}}",
    "flows": "flows: {overlay: {kind: vxlan, between: all}}",
    "address": "address: 192.0.2.11",
    "owners": "owners: [db1, db2]",
    "kind": "kind: vxlan",
    "between": "between: [db1, db2]",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a document.

    `file` is None when nothing is left to compare. `broken` are the paths that were cut out: what
    depends on them must not be judged. `hosts` and `service_addresses` are the declared names,
    whether their entries could be read or not.
    """

    file: PolicyFile | None
    flaws: tuple[Flaw, ...]
    broken: frozenset[Path]
    hosts: frozenset[str]
    service_addresses: frozenset[str]


def read_language(value: object, *, broken: Set[Path] = frozenset()) -> Reading:
    """Read a document's value; `broken` are paths already known to be flawed. Never raises."""
    pruned = copy.deepcopy(value)
    flaws: list[Flaw] = []
    cuts = set(broken)
    around = {path[:length] for path in cuts for length in range(len(path) + 1)}
    file: PolicyFile | None = None
    for _ in range(MAX_ROUNDS):
        try:
            file = PolicyFile.model_validate(pruned)
            break
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = _path(detail["loc"])
                if path not in around:  # else it is missing because it was cut out
                    flaws += _flaws(detail, path=path)
                cuts.add(_cut(pruned, path, whole_entry=detail["type"] == "missing"))
            around |= {path[:length] for path in cuts for length in range(len(path) + 1)}
    return Reading(
        file,
        tuple(flaws),
        frozenset(cuts),
        _names(value, "hosts", cuts=cuts),
        _names(value, "service_addresses", cuts=cuts),
    )


def _names(value: object, section: str, *, cuts: Set[Path]) -> frozenset[str]:
    entries = value.get(section) if isinstance(value, dict) else None
    valueless = {str(path[1]) for path in cuts if len(path) == 2 and path[0] == section}
    return frozenset(entries if isinstance(entries, dict) else ()) | valueless


def _path(loc: tuple[int | str, ...]) -> Path:
    """pydantic's location without its word for `the key itself is wrong`."""
    return tuple(part for part in loc if part != "[key]")


def _cut(root: Any, path: Path, *, whole_entry: bool) -> Path:
    """Remove what is flawed, or the entry that lacks it; the path of what was removed."""
    if path == ("version",):
        if isinstance(root, dict):
            root["version"] = VERSION
        return path
    target = path[:-1] if whole_entry else path
    parent = root
    for part in target[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    if target and isinstance(parent, dict):
        parent.pop(target[-1], None)
    return target


def _flaws(detail: ErrorDetails, *, path: Path) -> list[Flaw]:
    """One error of pydantic in the operator's words."""
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, Wrong):
        return [Flaw((*path, *flaw.path), flaw.what, flaw.remedy) for flaw in cause.flaws]
    match detail["type"]:
        case "missing":
            key = str(path[-1])
            return [Flaw(path[:-1], f"'{key}' is missing", f"add '{_EXAMPLES[key]}'")]
        case "extra_forbidden":
            known = _entry_at(path[:-1]).model_fields
            remedy = suggestion(
                str(path[-1]), known, otherwise=f"the keys here are {listed(known)}"
            )
            return [Flaw(path, "there is no such key", remedy)]
        case "too_short":
            return [Flaw(path, "nothing is declared here", f"declare one: {_example(path)}")]
    return [Flaw(path, f"{quoted(detail['input'])} is no mapping", f"write {_example(path)}")]


def _entry_at(path: Path) -> type[BaseModel]:
    """The entry whose keys stand at a path."""
    starred = tuple(
        "*" if index == 1 and len(path) > 1 else part for index, part in enumerate(path)
    )
    return _ENTRIES.get(path) or _ENTRIES[starred]


def _example(path: Path) -> str:
    """How a mapping at a path may look."""
    match path:
        case ():
            return f"'version: {VERSION}', 'hosts:' and 'flows:'"
        case ("hosts", _):
            return "'{address: 192.0.2.11}'"
        case ("service_addresses", _):
            return "'{address: 192.0.2.100, owners: [db1, db2]}'"
        case ("flows", _):
            return "'{kind: vxlan, between: all}'"
    return _MAPPINGS.get(str(path[-1]), "'key: value'")


_MAPPINGS: Final[Mapping[str, str]] = {
    "hosts": f"'{_EXAMPLES['hosts']}'",
    "flows": f"'{_EXAMPLES['flows']}'",
    "service_addresses": "'service_addresses: {vip: {address: 192.0.2.100, owners: [db1, db2]}}'",
    "defaults": "'defaults: {aead: auto}'",
    "ike": "'ike: {dead_after: 5s}'",
    "marks": "'marks: {bits: 24-31}'",
    "rekey": "'rekey: {after: 1h}'",
    "tenants": "'tenants: {red: 41, blue: 42}'",
}
