"""The guard as nftables text, and nft's listings as the same canonical form.

A ruleset is `{table: {block: statements}}`: table is `inet tunsec` or `netdev tunsec`, block is a
header as nft prints it (`chain output`, `set peers4.backbone`), statements are its lines in order.
`want == have` is then the whole comparison of law 5. Text rather than nft's JSON, because JSON
listings of nft 1.0 leave out a chain's device and a table's flags, and an admin reads the same
text with `nft list table inet tunsec`.

Hooks, and why these (include/uapi/linux/netfilter.h):

- `output` at 300: what this host itself sends, sockets and kernel tunnels alike. After the other
  chains, so that what they made of destination and route is what is judged.
- `postrouting` at 300: after source NAT, which asks for the route and its SPs anew
  (nf_xfrm_me_harder). Only packets that now bear an address of this host: another host's tunnel
  that is merely routed here is not ours. It catches a container whose datagrams are masqueraded.
- `input` at -300: before any rule rewrites the source address that the packet arrived with.
- `netdev` egress at 300 of every tunnel device: sets the tunnel mark on what the device sends.
  Not `inet` egress: that one sees IP only, and ARP inside the overlay would stay without a mark
  (net/netfilter/nft_chain_filter.c). Since Linux 6.16 a chain outlives its device and hooks the
  next one of that name, which may be another tenant's: so the rule asks for the ifindex.
  Encapsulation keeps the mark unless the device sends from another network namespace
  (skb_scrub_packet, net/core/skbuff.c). What sends for several VNIs is marked by each packet's VNI
  after that (wire/tc_text.py).
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tunsec.model.errors import Bug, Refused
from tunsec.model.flow import Kind
from tunsec.model.guard import Guard, GuardDrops, GuardedFlow, TunnelDevice
from tunsec.model.names import FlowName, Mark
from tunsec.model.selector import TCP, UDP
from tunsec.wire.nfqueue import OUTBOUND_BIT, QUEUE

INET_TABLE: Final = "inet tunsec"
NETDEV_TABLE: Final = "netdev tunsec"

LATE: Final = 300
"""After every priority that nft has a name for (srcnat is 100, security 50)."""
EARLY: Final = -300
"""NF_IP_PRI_RAW: before connection tracking and every NAT."""

CLEAR_OUT: Final = "clear_out"
CLEAR_IN: Final = "clear_in"
LOCAL_INJECTION: Final = "local_injection"
CROSS_TENANT: Final = "cross_tenant"

VNI_BITS: Final = "@th,96,24"
"""Behind 8 bytes of UDP header and 4 of VXLAN's (RFC 7348 section 5) or Geneve's (RFC 8926 section
3.4): both have the VNI in the same place."""

SPI_AS_MARK: Final = "spi_as_mark"
"""The chain that sets the mark of a packet without one to the SPI that it came by, bit by bit: nft
has no statement that does it at once."""

_SYN: Final = "tcp flags & (syn | ack) == syn"
_NO_MARK: Final = "meta mark != 0x00000000"

_OWN_SOCKETS: Final = (Kind.RDS_TCP, Kind.ROCEV2)
"""Kinds that the kernel sends from sockets of its own."""
_NO_USER: Final = 0xFFFF_FFFF
"""What no user id is (uid_t -1)."""

_KINDS: Final = (
    *("chain", "map", "set", "flowtable", "counter", "quota", "limit", "synproxy", "secmark"),
    *("ct helper", "ct timeout", "ct expectation"),
)
"""Everything that `nft delete KIND TABLE NAME` takes."""

Table = Mapping[str, tuple[str, ...]]
Ruleset = Mapping[str, Table]

_COUNTED: Final = (CLEAR_OUT, CLEAR_IN, LOCAL_INJECTION, CROSS_TENANT)

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]")
_LABEL: Final = re.compile(r"(?:[A-Za-z0-9_-]|\.[0-9a-f]{2})+")
_DEVICE: Final = re.compile(r'[^"*\\/\s\x00-\x1f]{1,15}')
_COUNTS: Final = re.compile(r"packets \d+ bytes \d+")
_DEVICE_CHAIN: Final = re.compile(r"chain mark\.(\d+)")
_HOOKED: Final = re.compile(r'.* device "([^"]*)" ')


def flow_label(flow: FlowName) -> str:
    """A flow's name as part of an nft identifier: other characters become `.` and two hex digits.

    Different flows never get the same label.
    """
    return "".join(
        char
        if _PLAIN.match(char)
        else "".join(f".{byte:02x}" for byte in char.encode(errors="surrogateescape"))
        for char in flow
    )


def parse_flow_label(label: str) -> FlowName:
    """The flow whose label this is; raises ValueError for what no flow's label is."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is no flow label")
    parts = re.split(r"\.(..)", label)
    octets = b"".join(
        bytes.fromhex(part) if index % 2 else part.encode() for index, part in enumerate(parts)
    )
    return FlowName(octets.decode(errors="surrogateescape"))


def guard_ruleset(guard: Guard) -> Ruleset:
    """What both tables must hold.

    Raises Refused for a device whose name nft text cannot carry, Bug for a flow that is neither
    TCP nor UDP.
    """
    return {INET_TABLE: inet_table(guard), NETDEV_TABLE: netdev_table(guard)}


def inet_table(guard: Guard) -> Table:
    """Counters, the three chains, and peer sets of flows that leave strangers alone."""
    blocks: dict[str, tuple[str, ...]] = {}
    output: list[str] = []
    postrouting: list[str] = []
    arriving: list[str] = []
    for flow in sorted(guard.flows, key=lambda flow: flow.flow):
        label = flow_label(flow.flow)
        for what in _counters_of(flow):
            blocks[f"counter {what}.{label}"] = ()
        if flow.strangers_blocked:
            output += _leaving(flow, label, guard.tunnel_mark, to="", after_nat=False)
            postrouting += _leaving(flow, label, guard.tunnel_mark, to="", after_nat=True)
            arriving += (*_arriving(flow, label, source=""), *_crossing(flow, label, source=""))
            output += _gate_out(flow, to="")
            arriving += _gate_in(flow, source="")
            continue
        for version in (4, 6):
            peers = sorted(str(peer) for peer in flow.peers if peer.version == version)
            if not peers:
                continue
            blocks[f"set peers{version}.{label}"] = (
                f"type ipv{version}_addr",
                f"elements = {{ {', '.join(peers)} }}",
            )
            family, members = "ip" if version == 4 else "ip6", f"@peers{version}.{label}"
            to, source = f" {family} daddr {members}", f" {family} saddr {members}"
            output += _leaving(flow, label, guard.tunnel_mark, to=to, after_nat=False)
            postrouting += _leaving(flow, label, guard.tunnel_mark, to=to, after_nat=True)
            arriving += _arriving(flow, label, source=source)
            arriving += _crossing(flow, label, source=source)
            output += _gate_out(flow, to=to)
            arriving += _gate_in(flow, source=source)
    if any(flow.gated for flow in guard.flows):
        blocks[f"chain {SPI_AS_MARK}"] = tuple(
            f"ipsec in spi & {1 << bit} == {1 << bit} meta mark set meta mark | {1 << bit:#010x}"
            for bit in range(32)
        )
    blocks["chain output"] = (_base("output", LATE), *output)
    blocks["chain postrouting"] = (_base("postrouting", LATE), *postrouting)
    blocks["chain input"] = (_base("input", EARLY), *arriving)
    return blocks


def netdev_table(guard: Guard) -> Table:
    """One egress chain per tunnel device, named by its ifindex, so that a new device of an old
    name gets a new chain."""
    return {
        f"chain mark.{device.ifindex}": (
            _base(f'egress device "{_device_name(device)}"', LATE),
            f"oif {device.ifindex} {_set_mark(guard.device_mark(device))}",
        )
        for device in sorted(guard.devices, key=lambda device: device.ifindex)
    }


def replace_script(want: Ruleset, have: Ruleset) -> str:
    """One nft transaction that turns `have` into `want`; counters wanted by both keep counting."""
    lines: list[str] = []
    for table, blocks in want.items():
        lines += (f"add table {table}", f"flush table {table}")
        present = have.get(table, {})
        gone = [block for block in present if block not in blocks or not _is_counter(block)]
        lines += [_delete(table, block) for block in sorted(gone, key=_rank) if _kind(block)]
        lines.append(f"table {table} {{")
        for block in sorted(blocks, key=_rank, reverse=True):
            if not (block in present and _is_counter(block)):
                lines += (f"\t{block} {{", *(f"\t\t{line}" for line in blocks[block]), "\t}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def boot_script(guard: Guard) -> str:
    """What nft alone must load at boot, before tunsecd runs: the `inet` table.

    Tunnel devices are not there yet, and what they send before tunsecd marks it is dropped.
    """
    table = {INET_TABLE: inet_table(guard)}
    return remove_script(table) + replace_script(table, {})


def dormant(have: Ruleset) -> bool:
    """Whether somebody put one of the tables to sleep: its rules are there and do nothing."""
    return any("flags dormant" in blocks for blocks in have.values())


def wake_script(tables: Iterable[str]) -> str:
    """One nft transaction that wakes tables: `add table` without flags.

    On its own, because the kernel refuses new chains in the transaction that wakes a table.
    """
    return "".join(f"add table {table}\n" for table in tables)


def remove_script(tables: Iterable[str]) -> str:
    """One nft transaction after which none of the tables is there, whether it was or not."""
    return "".join(f"add table {table}\ndelete table {table}\n" for table in tables)


def parse_listing(text: str) -> Ruleset:
    """nft's own `list table` text (with -y and -s) as a ruleset; counts are left out.

    Whatever else stands in a table (flags, foreign chains) is kept, so that it makes a difference.
    Raises ValueError when the text is no listing.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    table: dict[str, list[str]] | None = None
    block: list[str] | None = None
    depth = 0
    for line in _statements(text):
        opens = line.endswith("{")
        if table is None:
            if not (opens and line.startswith("table ")):
                raise ValueError(f"not an nft listing: {line[:80]!r}")
            table = tables.setdefault(line[6:-1].strip(), {})
        elif line == "}" and depth == 0:
            block, table = None, (table if block is not None else None)
        elif block is not None:
            block.append(_canonical(line))
            depth += opens - (line == "}")  # a chain written out inside a rule of somebody's
        else:
            block = table.setdefault(line.removesuffix("{").rstrip(), [])
            block = block if opens else None
    if table is not None:
        raise ValueError("the nft listing ends in the middle of a table")
    return {
        name: {
            header: tuple(
                line for line in _numbered(header, lines) if line and not _COUNTS.fullmatch(line)
            )
            for header, lines in blocks.items()
        }
        for name, blocks in tables.items()
    }


def differences(want: Ruleset, have: Ruleset) -> tuple[str, ...]:
    """What stands differently in the kernel, one line per block, for the log; empty when alike."""
    found: list[str] = []
    for table, blocks in want.items():
        if table not in have:
            found.append(f"table {table} is gone")
            continue
        present = have[table]
        found += [f"{table}: {block} is gone" for block in blocks if block not in present]
        found += [f"{table}: {block} is not ours" for block in present if block not in blocks]
        found += [
            f"{table}: {block} was changed"
            for block, lines in blocks.items()
            if block in present and present[block] != lines
        ]
    return tuple(found)


def drops_by_flow(packets: Mapping[str, int]) -> dict[str, GuardDrops]:
    """Drops per flow from named counters (`clear_out.LABEL` -> packets)."""
    counts: dict[str, dict[str, int]] = {}
    for name, count in packets.items():
        what, _, label = name.partition(".")
        if what in _COUNTED and _LABEL.fullmatch(label):
            counts.setdefault(parse_flow_label(label), {})[what] = count
    return {
        flow: GuardDrops(
            clear_out=count.get(CLEAR_OUT, 0),
            clear_in=count.get(CLEAR_IN, 0),
            local_injection=count.get(LOCAL_INJECTION, 0),
            cross_tenant=count.get(CROSS_TENANT, 0),
        )
        for flow, count in counts.items()
    }


def _counters_of(flow: GuardedFlow) -> tuple[str, ...]:
    return (
        *(CLEAR_OUT, CLEAR_IN),
        *((LOCAL_INJECTION,) if flow.tunnel_only else ()),
        *((CROSS_TENANT,) if flow.tenants else ()),
    )


def _base(hook: str, priority: int) -> str:
    return f"type filter hook {hook} priority {priority}; policy accept;"


def _leaving(
    flow: GuardedFlow, label: str, mark: Mark, *, to: str, after_nat: bool
) -> Iterator[str]:
    """The rules of what this host sends; `to` is a test of the destination or nothing."""
    ours = "fib saddr type local " if after_nat else ""
    for ports in _port_tests(flow):
        if flow.tunnel_only and not (after_nat and flow.kind in _OWN_SOCKETS):
            injected = _of_programs(flow, mark)
            yield f"{ports}{to} {injected} {ours}{_count_and_drop(LOCAL_INJECTION, label)}"
        yield f"{ports}{to} rt ipsec missing {ours}{_count_and_drop(CLEAR_OUT, label)}"


def _of_programs(flow: GuardedFlow, mark: Mark) -> str:
    """A test for what the kernel has not sent by itself.

    Tunnel devices have set their mark. The sockets of RDS and RoCE have no user: nft tells the user
    of those alone that a program has opened, in this namespace (nft_meta_get_eval_skugid,
    net/netfilter/nft_meta.c). So it cannot tell what comes from behind NAT: of that the block SPs
    alone let nothing pass, as they are asked before the source is changed (ip_forward).
    """
    if flow.kind in _OWN_SOCKETS:
        return f"meta skuid != {_NO_USER}"
    return f"meta mark & {mark.mask:#010x} != {mark.value & mark.mask:#010x}"


def _arriving(flow: GuardedFlow, label: str, *, source: str) -> Iterator[str]:
    for ports in _port_tests(flow):
        yield f"{ports}{source} meta ipsec missing {_count_and_drop(CLEAR_IN, label)}"


def _crossing(flow: GuardedFlow, label: str, *, source: str) -> Iterator[str]:
    """Drops what one tenant's key decrypted and another one's network would receive.

    The VNI is compared here, behind ESP and before the tunnel device, so that it does not matter
    which device takes the packet.
    """
    if not flow.tenants:
        return
    rules = [(one.mark, f"!= {one.vni:#x}") for one in flow.tenants]
    if flow.others is not None:
        vnis = sorted(f"{one.vni:#x}" for one in flow.tenants)  # in the order of a listing
        rules.append((flow.others, vnis[0] if len(vnis) == 1 else f"{{ {', '.join(vnis)} }}"))
    for ports in _port_tests(flow):
        for mark, vni in rules:
            marked = f"meta mark & {mark.mask:#010x} == {mark.value:#010x}"
            dropped = _count_and_drop(CROSS_TENANT, label)
            yield f"{ports}{source} {marked} {VNI_BITS} {vni} {dropped}"


def _gate_out(flow: GuardedFlow, *, to: str) -> Iterator[str]:
    """Holds the first packet of a new connection, and has the verdict look its SA up anew."""
    if not flow.gated:
        return
    for ports in _port_tests(flow):
        flip = f"meta mark set meta mark ^ {OUTBOUND_BIT:#010x}"
        yield f"{ports}{to} {_SYN} {flip} queue to {QUEUE}"


def _gate_in(flow: GuardedFlow, *, source: str) -> Iterator[str]:
    """Holds it at the other end, and tells by which SA it came.

    One that bears a mark of somebody else is dropped: its mark could not be given back.
    """
    if not flow.gated:
        return
    for ports in _port_tests(flow):
        yield f"{ports}{source} {_SYN} {_NO_MARK} drop"
        yield f"{ports}{source} {_SYN} jump {SPI_AS_MARK}"
        yield f"{ports}{source} {_SYN} queue to {QUEUE}"


def _port_tests(flow: GuardedFlow) -> tuple[str, ...]:
    proto = {TCP: "tcp", UDP: "udp"}.get(flow.proto)
    if proto is None:
        raise Bug(f"flow {flow.flow}: the guard knows TCP and UDP, not protocol {flow.proto}")
    ports = sorted(set(flow.ports))
    if not ports:
        raise Bug(f"flow {flow.flow}: the guard needs a port")
    several = f"{{ {', '.join(map(str, ports))} }}"
    test = str(ports[0]) if len(ports) == 1 else several
    sides = ("dport", "sport") if flow.either_side else ("dport",)
    return tuple(f"{proto} {side} {test}" for side in sides)


def _count_and_drop(what: str, label: str) -> str:
    return f'counter name "{what}.{label}" drop'


def _set_mark(mark: Mark) -> str:
    value = mark.value & mark.mask
    kept = (~mark.mask & 0xFFFF_FFFF) | value  # nft prints `and`, `or` in this form
    keep = "" if kept == 0xFFFF_FFFF else f" & {kept:#010x}"
    return f"meta mark set meta mark{keep} | {value:#010x}"


def _device_name(device: TunnelDevice) -> str:
    if not _DEVICE.fullmatch(device.name):
        raise Refused(
            f"mark what device {device.name!r} sends",
            reason='nft has no way to write this name: rename the device, without " * \\ or blanks',
        )
    return device.name


def _is_counter(block: str) -> bool:
    return block.startswith("counter ")


def _kind(block: str) -> str:
    """What nft calls the block, or nothing for a bare line such as `flags dormant`."""
    kind = block.rpartition(" ")[0]
    return kind if kind in _KINDS else ""


def _delete(table: str, block: str) -> str:
    return f"delete {_kind(block)} {table} {block.rpartition(' ')[2]}"


def _rank(block: str) -> int:
    """Chains refer to sets and counters: they are deleted first and made last."""
    kind = _kind(block)
    return _KINDS.index(kind) if kind in ("chain", "map", "set") else len(_KINDS)


def _statements(text: str) -> Iterator[str]:
    """Lines without comments and indentation; a list of elements that nft wrapped is one line."""
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("#") or not line:
            continue
        pending = f"{pending} {line}".strip()
        if pending.startswith("elements") and pending.count("{") > pending.count("}"):
            continue
        yield pending
        pending = ""
    if pending:
        raise ValueError("the nft listing ends in the middle of a set")


def _numbered(header: str, lines: list[str]) -> list[str]:
    """A device's chain as we write it: nft prints the name of the ifindex that a rule asks for."""
    chain, hooked = _DEVICE_CHAIN.fullmatch(header), _HOOKED.match(lines[0]) if lines else None
    if chain is None or hooked is None:
        return lines
    named = f'oif "{hooked[1]}" '
    return [
        f"oif {chain[1]} {line.removeprefix(named)}" if line.startswith(named) else line
        for line in lines
    ]


def _canonical(line: str) -> str:
    """A statement whose braces list their members in one order."""
    return re.sub(r"\{ ?([^{}]*?) ?\}", lambda found: _sorted_members(found[1]), line)


def _sorted_members(members: str) -> str:
    parts = [_member(part.strip()) for part in members.split(",")]
    parts.sort(key=lambda part: (int(part) if part.isdecimal() else -1, part))
    return f"{{ {', '.join(parts)} }}"


def _member(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text
