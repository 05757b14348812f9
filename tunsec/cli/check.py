"""`tunsec check FILE`: is this policy good, and what would a host hold of it?

Needs no daemon, no rights and no network. Prints every problem at once, one a line.
Exit status: 0 the policy is good, 1 it is not, 2 it could not be judged.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # pydantic and yaml take 0.2 s to import: only `run` does
    from tunsec.model.errors import Problem
    from tunsec.policy.desired import Desired
    from tunsec.policy.intent import Flow, Intent

GOOD: Final = 0
BAD: Final = 1
NOT_JUDGED: Final = 2

STANDARD_INPUT: Final = "-"

Rows = list[tuple[str, ...]]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `check` to the commands of `tunsec`."""
    parser = subparsers.add_parser(
        "check",
        help="judge a policy file",
        description="Judge a policy file: prints every problem with its line and a remedy.",
        epilog="Exit status: 0 the policy is good, 1 it is not, 2 it could not be judged.",
    )
    parser.add_argument("file", metavar="FILE", help="the policy, or - for standard input")
    parser.add_argument("--host", metavar="NAME", help="show what this host would hold of it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    from tunsec.model.errors import PolicyError
    from tunsec.policy.intent import parse_policy

    try:
        text = read_policy(args.file)
    except OSError as error:
        print(f"tunsec check: {args.file}: {error.strerror}", file=sys.stderr)
        return NOT_JUDGED
    try:
        intent = parse_policy(text, args.file)
        part = None if args.host is None else _part(intent, args.host)
    except PolicyError as error:
        _show_problems(args.file, error.problems, as_json=args.json)
        return BAD
    if args.json:
        print(json.dumps(_as_json(args.file, intent, part=part), indent=2))
    else:
        _show(args.file, intent, part=part)
    return GOOD


def read_policy(file: str) -> str:
    """The text of the file, no more of it than a policy may have; bad UTF-8 is judged later.

    Raises OSError.
    """
    from tunsec.policy.document import MAX_BYTES

    if file == STANDARD_INPUT:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with Path(file).open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    return raw.decode(errors="surrogateescape")


def _part(intent: "Intent", host: str) -> "Desired":
    """What a host would hold, with the numbers it would draw if it held none."""
    from tunsec.policy.desired import desired

    return desired(intent, host)


def _show_problems(file: str, problems: Sequence["Problem"], *, as_json: bool) -> None:
    from tunsec.policy.problems import describe

    if as_json:
        rows = [{"where": one.where, "what": one.what, "remedy": one.remedy} for one in problems]
        print(json.dumps({"file": file, "good": False, "problems": rows}, indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        for one in problems:
            parts = ((one.where, "bold"), ": ", (one.what, "red"), (f" ({one.remedy})", "green"))
            console.print(Text.assemble(*parts))
        console.print(describe(problems).splitlines()[-1])
    else:
        print(describe(problems))


def _show(file: str, intent: "Intent", *, part: "Desired | None") -> None:
    counts = f"{_counted(intent.hosts, 'host')}, {_counted(intent.flows, 'flow')}"
    print(f"{file}: good, {counts}, digest {intent.digest[:12]}")
    if part is None:
        _show_table(
            ("flow", "kind", "hosts", "mode", "keying", "aead", "rekey"), _flow_rows(intent)
        )
        return
    _show_table(("flow", "peer", "local", "remote", "protected"), _child_rows(part))
    blocked = f"{_counted(part.blocks, 'block SP')} under them, until 'tunsec release'"
    print(f"{part.host}: {_counted(part.children, 'pair')} of addresses, {blocked}")


def _counted(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _flow_rows(intent: "Intent") -> Rows:
    from tunsec.policy.units import span_text

    return [
        (
            flow.name,
            f"{flow.kind} {flow.port}",
            str(len(flow.hosts)),
            flow.mode,
            flow.keying,
            flow.aeads[0] if len(flow.aeads) == 1 else "auto",
            span_text(flow.rekey.after),
        )
        for flow in intent.flows
    ]


def _child_rows(part: "Desired") -> Rows:
    return [
        (
            child.id.flow,
            child.id.peer,
            str(child.id.local),
            str(child.id.remote),
            ", ".join(str(selector).split(maxsplit=3)[3] for selector in child.outbound),
        )
        for child in part.children
    ]


def _show_table(heads: tuple[str, ...], rows: Rows) -> None:
    """Columns; with rules and colour on a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*heads, header_style="bold")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        cells = zip(row, widths, strict=True)
        print("  " + "  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def _as_json(file: str, intent: "Intent", *, part: "Desired | None") -> dict[str, Any]:
    shown: dict[str, Any] = {
        "file": file,
        "good": True,
        "digest": intent.digest,
        "hosts": {host.name: [str(address) for address in host.addresses] for host in intent.hosts},
        "flows": {flow.name: _flow_json(flow) for flow in intent.flows},
    }
    if part is not None:
        shown["host"] = part.host
        shown["children"] = [
            {
                "flow": child.id.flow,
                "peer": child.id.peer,
                "local": str(child.id.local),
                "remote": str(child.id.remote),
                "outbound": [str(selector) for selector in child.outbound],
                "inbound": [str(selector) for selector in child.inbound],
            }
            for child in part.children
        ]
        shown["blocks"] = [str(sp.id) for sp in part.blocks]
    return shown


def _flow_json(flow: "Flow") -> dict[str, Any]:
    return {
        "kind": flow.kind,
        "hosts": list(flow.hosts),
        "port": flow.port,
        "mode": flow.mode,
        "keying": flow.keying,
        "aeads": list(flow.aeads),
        "rekey": {
            "after_seconds": flow.rekey.after,
            "jitter": flow.rekey.jitter,
            "hard_after_seconds": flow.rekey.hard_after,
            "soft_bytes": flow.rekey.soft_bytes,
            "soft_packets": flow.rekey.soft_packets,
        },
        "local_senders": flow.local_senders,
        "strangers": flow.strangers,
    }
