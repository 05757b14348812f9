"""Reports as text: rich tables on a terminal, aligned columns in a pipe."""

import sys
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

from tunsec.wire.control import ChildSaStatus, FlowStatus, IkeStatus, ServiceStatus, Status

Row = Sequence[str]

FLOW_HEADS: Final = (
    *("FLOW", "KIND", "PEER", "TENANT", "MODE", "STATE", "SPI IN", "SPI OUT", "AEAD"),
    *("AGE", "NEXT", "REKEYS", "RECEIVED", "SENT", "DROPS"),
)

IKE_HEADS: Final = (
    *("FLOW", "PEER", "LOCAL", "IKE_SA", "BEGUN BY", "PROVEN", "REKEY", "ALGORITHMS"),
    *("CHILD_SAS (OUT IN)", "LAST ERROR"),
)
"""PROVEN: how long ago the peer has shown who it is; REKEY: of the IKE_SA, in."""

SERVICE_HEADS: Final = ("SERVICE", "ADDRESS", "HOLDER", "TOKEN", "STATE HERE", "OWNERS")

_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "m"))
_SIZES: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def span(seconds: float | None) -> str:
    """`2h 3m`, `59s`, `-` for none: two units at most."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    for place, (unit, letter) in enumerate(_SPANS):
        if left >= unit:
            smaller, small_letter = _SPANS[place + 1] if place + 1 < len(_SPANS) else (1, "s")
            rest = left % unit // smaller
            return f"{left // unit}{letter}" + (f" {rest}{small_letter}" if rest else "")
    return f"{left}s"


def size(octets: int) -> str:
    """`1.5 GiB`, `512 B`."""
    for unit, name in _SIZES:
        if octets >= unit:
            return f"{octets / unit:.1f} {name}"
    return f"{octets} B"


def flow_row(flow: FlowStatus) -> Row:
    """A flow's cells, as FLOW_HEADS names them."""
    return (
        *(flow.flow, flow.kind, flow.peer, flow.tenant or "-", f"{flow.mode}/{flow.keying}"),
        *(flow.state, flow.spi_in or "-", flow.spi_out or "-", _cipher(flow)),
        *(span(flow.age), span(flow.next_rollover), str(flow.rekeys)),
        *(size(flow.in_bytes), size(flow.out_bytes), str(flow.drops)),
    )


def service_row(service: ServiceStatus) -> Row:
    """A service address, as SERVICE_HEADS names the cells."""
    return (
        *(service.service, ", ".join(service.addresses), service.holder or "-"),
        *(str(service.token), service.state, ", ".join(service.owners)),
    )


def _cipher(flow: FlowStatus) -> str:
    """The AEAD, and what a NIC does of it."""
    by = f" ({flow.offload})" if flow.offload != "none" else ""
    return f"{flow.aead or '-'}{by}"


def ike_row(flow: FlowStatus, ike: IkeStatus) -> Row:
    """A flow's IKE_SA, as IKE_HEADS names the cells."""
    begun_by = {True: "us", False: flow.peer, None: "-"}[ike.initiator]
    algorithms = [*ike.algorithms, *(["PPK"] if ike.ppk else [])]
    children = [
        f"{one.spi_out} {one.spi_in}" + (f" ({state})" if (state := _child_state(one)) else "")
        for one in ike.child_sas
    ]
    return (
        *(flow.flow, flow.peer, flow.local, ike.state, begun_by),
        *(span(ike.authenticated), span(ike.next_rekey), "/".join(algorithms) or "-"),
        *(", ".join(children) or "-", ike.error or "-"),
    )


def _child_state(child: ChildSaStatus) -> str:
    """What there is to say of a CHILD_SA: whose it is, unless it is in plain use."""
    if child.own:
        return "" if child.state == "ACTIVE" else child.state.lower()
    return "peer's" if child.state == "INSTALLED" else f"peer's, {child.state.lower()}"


def status_head(status: Status) -> str:
    """The line above the table."""
    protected = len(status.flows) - len(status.unprotected)
    return (
        f"{status.host}: {protected} of {len(status.flows)} protected, "
        f"policy {status.policy.source} ({status.policy.digest[:12]}) for "
        f"{span(status.policy.age)}, tunsecd {status.version} up {span(status.uptime)}"
    )


def status_notes(status: Status) -> tuple[str, ...]:
    """The lines below the table: what is wrong, and what was put right."""
    return (
        *(f"{flow.flow} {flow.peer}: {flow.reason}" for flow in status.unprotected if flow.reason),
        *(f"policy not taken: {line}" for line in status.policy.error.splitlines()),
        *_guard_notes(status),
        *_directory_notes(status),
        *_drift_notes(status),
        *(f"warning: {text}" for text in status.warnings),
        *(f"warning: {text}" for flow in status.flows for text in flow.warnings),
    )


def table(heads: Row, rows: Iterable[Row], out: TextIO | None = None) -> None:
    """Print a table, rich on a terminal."""
    stream = out or sys.stdout
    if stream.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*heads, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for row in rows:
            drawn.add_row(*(_coloured(cell) for cell in row))
        Console(file=stream).print(drawn)
    else:
        for line in aligned(heads, rows):
            print(line, file=stream)


def aligned(heads: Row, rows: Iterable[Row]) -> list[str]:
    """Columns two blanks apart, no blanks at the end of a line."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _coloured(cell: str) -> str:
    from rich.markup import escape

    colour = {"INSTALLED": "green", "REKEYING": "green", "BLOCKED": "red", "KEYING": "yellow"}
    colour |= {"OWNED": "green", "FENCED": "red", "CLAIMING": "yellow"}
    return f"[{colour[cell]}]{cell}[/]" if cell in colour else escape(cell)


def _guard_notes(status: Status) -> Iterable[str]:
    if not status.guard.in_force:
        yield f"guard: not in force{_because(status.guard.trouble)}"
    for flow, drops in sorted(status.guard.drops.items()):
        said = [
            f"{count} {what}"
            for count, what in (
                (drops.clear_out, "leaving in clear"),
                (drops.clear_in, "arriving in clear"),
                (drops.local_injection, "sent by local users"),
                (drops.cross_tenant, "from one tenant to another"),
            )
            if count
        ]
        if said:
            yield f"guard: {flow}: dropped {', '.join(said)}"


def _directory_notes(status: Status) -> Iterable[str]:
    directory = status.directory
    if directory is None:
        return
    if not directory.reachable:
        yield f"directory: {directory.url} is away{_because(directory.trouble)}"
    if directory.refused:
        said = ", ".join(f"{count} {why}" for why, count in sorted(directory.refused.items()))
        yield f"directory: refused records: {said}"


def _drift_notes(status: Status) -> Iterable[str]:
    drift = status.drift
    if drift.sas or drift.sps or drift.guard:
        yield (
            f"drift put right: {drift.sas} SAs, {drift.sps} SPs, guard table {drift.guard} times"
        )


def _because(trouble: str) -> str:
    return f": {trouble}" if trouble else ""
