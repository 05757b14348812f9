"""Marks by VNI as tc's text: for `external` tunnel devices, whose packets bear a VNI each.

nft cannot test the VNI that a packet is about to get, tc's flower can (enc_key_id). tc's egress
runs after nft's (__dev_queue_xmit, net/core/dev.c), so it has the last word: nft gives everything
the mark of no tenant, and the filters here give VNIs theirs. A packet that they do not reach,
because another program's filter sends it off before, has no tenant and is blocked.

Ours on a device's clsact, and all that is ever changed or removed there (law 4): flower filters of
the two preferences below with handles in our range, and the empty chain that says that the clsact
itself is ours. Filters end with `continue`, so that those of others still run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from tunsec.model.errors import Refused
from tunsec.model.guard import VniMarks
from tunsec.model.names import Mark, Vni

PREF_OTHERS: Final = 0x5453
PREF_TENANTS: Final = PREF_OTHERS + 1
"""Behind what is numbered by hand, before what tc numbers by itself, which begins at 49152. All of
a VNI's own mark is set after that of all VNIs together."""

HANDLES: Final = 0x5400_0000
"""The letter T, and a VNI in the lower 24 bits."""
OWN_CLSACT: Final = 0x0054_5355
"""An empty chain of this number stands on a clsact that we have made."""

_DEVICE: Final = re.compile(r"""[^"'#*\\/\s\x00-\x1f]{1,15}""")


class FilterId(NamedTuple):
    """What the kernel knows a filter by, on one device."""

    pref: int
    handle: int


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of ours: sets a mark on the packets of a VNI, or (None) on all."""

    vni: Vni | None
    mark: Mark

    @property
    def id(self) -> FilterId:
        """Its place among our filters of a device."""
        if self.vni is None:
            return FilterId(PREF_OTHERS, HANDLES)
        return FilterId(PREF_TENANTS, HANDLES | self.vni)


Filters = Mapping[FilterId, Filter | None]
"""Filters with our preferences and handles; None is one that we would not have made."""


def filters(want: VniMarks) -> dict[FilterId, Filter]:
    """What a device must hold. Raises Refused for a name that tc's text cannot carry."""
    if not _DEVICE.fullmatch(want.device):
        raise Refused(
            f"mark what device {want.device!r} sends",
            reason="tc has no way to write this name: rename the device, without quotes, blanks, #",
        )
    found = [Filter(vni, mark) for vni, mark in want.by_vni]
    found += [] if want.others is None else [Filter(None, want.others)]
    return {one.id: one for one in found}


def change_script(device: str, want: Mapping[FilterId, Filter], have: Filters) -> str:
    """Lines for `tc -batch` that turn `have` into `want`; nothing when they are alike."""
    lines = [
        f"filter del dev {device} egress pref {pref} handle {handle:#x} protocol all flower"
        for pref, handle in sorted(have)
        if FilterId(pref, handle) not in want
    ]
    for one_id, one in sorted(want.items()):
        if have.get(one_id) != one:
            key = "" if one.vni is None else f" enc_key_id {one.vni}"
            lines.append(
                f"filter replace dev {device} egress pref {one_id.pref} handle {one_id.handle:#x} "
                f"protocol all flower{key} skip_hw action skbedit "
                f"mark {one.mark.value:#x}/{one.mark.mask:#x} continue"
            )
    return "".join(f"{line}\n" for line in lines)


def add_clsact_script(device: str) -> str:
    """Makes a clsact, with the sign that it is ours."""
    return f"qdisc add dev {device} clsact\nchain add dev {device} egress chain {OWN_CLSACT}\n"


def remove_clsact_script(device: str) -> str:
    """Removes a clsact with everything on it."""
    return f"qdisc del dev {device} clsact\n"


def has_clsact(listing: str) -> bool:
    """Whether `tc -j qdisc show` lists one."""
    return any(one.get("kind") == "clsact" for one in _entries(listing))


def is_our_clsact(chains: str) -> bool:
    """Whether the chains of its egress bear our sign."""
    return any(one.get("chain") == OWN_CLSACT for one in _entries(chains))


def is_empty(listing: str) -> bool:
    """Whether `tc -j filter show` lists nothing."""
    return not any(True for _ in _entries(listing))


def parse_filters(listing: str) -> dict[FilterId, Filter | None]:
    """Our filters in what `tc -j filter show dev DEVICE egress` says; raises Refused."""
    found: dict[FilterId, Filter | None] = {}
    for entry in _entries(listing):
        options = entry.get("options")
        if not isinstance(options, Mapping) or entry.get("chain", 0) != 0:
            continue
        pref, handle = entry.get("pref"), options.get("handle")
        if isinstance(handle, str):
            handle = int(handle, 16)
        if pref not in (PREF_OTHERS, PREF_TENANTS) or not isinstance(handle, int):
            continue
        if handle & ~0xFF_FFFF == HANDLES:
            found[FilterId(pref, handle)] = _filter(entry, options)
    return found


def differences(want: Mapping[FilterId, Filter], have: Filters, device: str) -> Iterator[str]:
    """What stands differently in the kernel, one line per filter, for the log."""
    for one_id in sorted({*want, *have}):
        vni = one_id.handle & 0xFF_FFFF
        what = f"{device}: filter of VNI {vni}" if one_id.pref == PREF_TENANTS else f"{device}: all"
        if one_id not in have:
            yield f"{what} is gone"
        elif one_id not in want:
            yield f"{what} is not wanted"
        elif want[one_id] != have[one_id]:
            yield f"{what} was changed"


def _filter(entry: Mapping[str, object], options: Mapping[str, object]) -> Filter | None:
    """A filter just as change_script writes it, or None."""
    keys, actions = options.get("keys"), options.get("actions")
    if entry.get("protocol") != "all" or entry.get("kind") != "flower":
        return None
    if not isinstance(keys, Mapping) or not isinstance(actions, list) or len(actions) != 1:
        return None
    (action,) = actions
    try:
        does = (action["kind"], action["control_action"]["type"])
        mark = Mark(int(action["mark"]), int(str(action["mask"]), 16))
    except (KeyError, TypeError, ValueError):
        return None
    if does != ("skbedit", "continue") or {*keys} - {"enc_key_id"} or not options.get("skip_hw"):
        return None
    vni = keys.get("enc_key_id")
    return Filter(None if vni is None else Vni(int(vni)), mark)


def _entries(listing: str) -> Iterable[Mapping[str, object]]:
    try:
        entries = json.loads(listing or "[]")
    except ValueError as error:
        raise Refused("read tc's listing", reason=str(error)) from error
    if not isinstance(entries, list):
        raise Refused("read tc's listing", reason="it is no list")
    return [entry for entry in entries if isinstance(entry, Mapping) and entry]
