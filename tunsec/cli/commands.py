"""The commands that talk to the daemon. Each returns an exit status or raises Failed."""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from tunsec.cli import render, render_explain
from tunsec.cli.client import Client, Failed
from tunsec.cli.exits import Exit
from tunsec.cli.question import parse_question
from tunsec.wire.control import ApplyReport, PlanReport, PolicyBody, Status, WaitReport, encode
from tunsec.wire.control_explain import Verdict

STANDARD_INPUT: Final = "-"
MAX_POLICY_BYTES: Final = 4 << 20
WATCH_EVERY: Final = 1.0
"""Seconds between two looks when nothing changes."""
POLL: Final = 20.0
"""Seconds that one long poll may take."""
RETRY: Final = 0.25
"""Seconds between attempts to reach a daemon that is starting."""

CLEAR_SCREEN: Final = "\x1b[H\x1b[J"


def status(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec status`: exit status NO when a flow is blocked."""
    found = client.status()
    if args.json:
        _print_json(found)
    else:
        _show_status(found)
    return Exit.NO if found.unprotected else Exit.OK


def watch(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec watch`: a live table on a terminal, else a line per change, until interrupted."""
    live = sys.stdout.isatty() and not args.json
    before: dict[tuple[str, ...], str] = {}
    found = client.status()
    while True:
        if live:
            print(CLEAR_SCREEN, end="")
            _show_status(found)
        else:
            after = _states(found)
            if after != before:
                _print_json(found) if args.json else _print_changes(before, after)
            before = after
        sys.stdout.flush()
        found = client.status(wait=WATCH_EVERY if live else POLL)


def explain(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec explain FLOW | PACKET | SPI`: exit status NO when it is not protected."""
    found = client.explain(parse_question(args.question, args.vni))
    if args.json:
        _print_json(found)
    else:
        render_explain.show(found)
    return Exit.OK if found.verdict == Verdict.PROTECTED else Exit.NO


def plan(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec plan [FILE]`."""
    report = client.plan(None if args.file is None else _policy(args.file))
    if args.json:
        _print_json(report)
        return Exit.OK
    _print_flows(report)
    for number, step in enumerate(report.steps, start=1):
        print(f"{number:4}. {step}")
    if not report.steps:
        print("nothing to do in the kernel")
    return Exit.OK


def apply(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec apply FILE`."""
    return _applied(client.apply(_policy(args.file)), args)


def reload(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec reload`."""
    return _applied(client.reload(), args)


def release(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec release [FLOW]`; asks first on a terminal."""
    what = f"flow {args.flow}" if args.flow else "every flow"
    if sys.stdin.isatty() and not args.yes:
        print(f"Traffic of {what} may go in clear from then on. Release it? [y/N] ", end="")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing released")
            return Exit.NO
    report = client.release(args.flow)
    if args.json:
        _print_json(report)
    else:
        print(f"released: {', '.join(report.released) or 'nothing was managed'}")
    return Exit.OK


def wait(client: Client, args: argparse.Namespace) -> Exit:
    """`tunsec wait`: a daemon that is not there yet is waited for, too."""
    until = None if args.timeout is None else time.monotonic() + args.timeout
    report: WaitReport | None = None
    away: Failed | None = None
    while True:
        left = POLL if until is None else max(0.0, until - time.monotonic())
        try:
            report, away = client.wait(args.flow, min(left, POLL)), None
        except Failed as error:
            if error.status is not Exit.AWAY:
                raise
            if away is None and not args.json:
                print(f"tunsec: waiting: {error}", file=sys.stderr)
            away = error
        over = until is not None and time.monotonic() >= until
        if (report is not None and report.protected) or over:
            break
        if away is not None:
            time.sleep(min(left, RETRY))
    if away is not None:
        raise away
    return _waited(report or WaitReport(protected=False), args)


def metrics(client: Client, _: argparse.Namespace) -> Exit:
    """`tunsec metrics`: the Prometheus text, for node_exporter's textfile folder."""
    print(client.metrics(), end="")
    return Exit.OK


def _waited(report: WaitReport, args: argparse.Namespace) -> Exit:
    if args.json:
        _print_json(report)
    elif not report.protected:
        for line in report.waiting_for:
            print(f"not protected: {line}", file=sys.stderr)
    return Exit.OK if report.protected else Exit.NO


def _applied(report: ApplyReport, args: argparse.Namespace) -> Exit:
    if args.json:
        _print_json(report)
        return Exit.OK
    _print_flows(report)
    said = "in force" if report.changed else "in force already"
    print(f"{report.source} ({report.digest[:12]}) is {said}")
    return Exit.OK


def _policy(file: str) -> PolicyBody:
    """The operator's file; the daemon judges it."""
    try:
        if file == STANDARD_INPUT:
            raw = sys.stdin.buffer.read(MAX_POLICY_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                raw = opened.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}", Exit.USAGE) from error
    if len(raw) > MAX_POLICY_BYTES:
        raise Failed(f"{file}: larger than {MAX_POLICY_BYTES} bytes, that is no policy", Exit.USAGE)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Failed(
            f"{file}: byte {error.start} is no UTF-8: save it as UTF-8", Exit.NO
        ) from error
    source = file if file == STANDARD_INPUT else str(Path(file).absolute())
    return PolicyBody(text=text, source=source)


def _show_status(found: Status) -> None:
    print(render.status_head(found))
    if found.flows:
        render.table(render.FLOW_HEADS, map(render.flow_row, found.flows))
    if found.services:
        print()
        render.table(render.SERVICE_HEADS, map(render.service_row, found.services))
    by_ike = [render.ike_row(flow, flow.ike) for flow in found.flows if flow.ike is not None]
    if by_ike:
        print()
        render.table(render.IKE_HEADS, by_ike)
    for line in render.status_notes(found):
        print(line)


def _states(found: Status) -> dict[tuple[str, ...], str]:
    return {
        (flow.flow, flow.tenant or "", flow.peer, flow.local, flow.remote): (
            " ".join(word for word in (flow.state, flow.spi_out, flow.reason) if word)
        )
        for flow in found.flows
    }


def _print_changes(before: dict[tuple[str, ...], str], after: dict[tuple[str, ...], str]) -> None:
    stamp = time.strftime("%H:%M:%S")
    for flow in sorted(before.keys() | after.keys()):
        old, new = before.get(flow), after.get(flow)
        if old != new:
            name, tenant, peer, *_ = flow
            label = f"{name}/{tenant}" if tenant else name
            print(f"{stamp} {label} {peer}: {old or 'new'} -> {new or 'gone'}")


def _print_flows(report: PlanReport | ApplyReport) -> None:
    for sign, flows in (
        ("+", report.flows_added),
        ("~", report.flows_changed),
        ("-", report.flows_removed),
    ):
        for flow in flows:
            print(f"{sign} {flow}")


def _print_json(body: object) -> None:
    print(encode(body).decode())
