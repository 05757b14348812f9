"""`tunsec ca`: a small CA for clusters without a PKI.

Imports stay inside the functions that need them: the command must answer at once.
"""

import argparse
import ipaddress
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunsec.model.clock import WallTime
from tunsec.model.errors import PolicyError
from tunsec.model.names import Address, HostName

if TYPE_CHECKING:
    from tunsec.adapters.ca_files import Shown
    from tunsec.keying.ca import CertificateSummary
    from tunsec.keying.revocation import RevocationList

CA_DAYS: Final = 3_650.0
LEAF_DAYS: Final = 365.0
CRL_DAYS: Final = 365.0
MAX_DAYS: Final = 36_500.0
KEY_TYPES: Final = ("ed25519", "p256")
WARN_DAYS: Final = 14.0

LISTING: Final = ("revoke", "crl")
"""Commands that leave a new list, which hosts do not have yet."""

EXIT_FAILED: Final = 1


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ca` and its commands."""
    parser = subparsers.add_parser("ca", help="make, renew and revoke the cluster's certificates")
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make a new CA")
    init.add_argument("folder", type=Path, metavar="DIR", help="where the CA is to lie")
    init.add_argument("--name", required=True, metavar="CLUSTER", help="the CA's name")
    _add_common(init, days=CA_DAYS)

    issue = commands.add_parser("issue", help="make a host's key and certificate")
    issue.add_argument("ca", type=Path, metavar="DIR", help="the CA's folder")
    issue.add_argument("host", metavar="HOST", help="the host's name in the policy")
    issue.add_argument("--out", type=Path, required=True, metavar="DIR2", help="a new folder")
    issue.add_argument(
        "--address",
        type=_address,
        action="append",
        default=[],
        help="an address to name beside HOST (repeatable)",
    )
    _add_common(issue, days=LEAF_DAYS)

    show = commands.add_parser("show", help="tell what certificates and revocation lists say")
    show.add_argument("path", type=Path, metavar="FILE|DIR")
    show.add_argument("--json", action="store_true", help="as JSON")

    renew = commands.add_parser("renew", help="replace a host's key and certificate")
    renew.add_argument("folder", type=Path, metavar="DIR2", help="the host's folder")
    renew.add_argument("--ca", type=Path, required=True, metavar="DIR", help="the CA's folder")
    _add_common(renew, days=LEAF_DAYS, key_type=False)

    revoke = commands.add_parser("revoke", help="end certificates before their time")
    revoke.add_argument("ca", type=Path, metavar="DIR", help="the CA's folder")
    revoke.add_argument(
        "which",
        nargs="+",
        metavar="NAME|SERIAL|CERT",
        help="a host (all that it was ever issued), a serial number, or a certificate's file",
    )
    _add_common(revoke, days=CRL_DAYS, key_type=False)

    crl = commands.add_parser("crl", help="make the list of revoked certificates anew")
    crl.add_argument("ca", type=Path, metavar="DIR", help="the CA's folder")
    _add_common(crl, days=CRL_DAYS, key_type=False)


def run(args: argparse.Namespace) -> int:
    """Carry out a command; 0 when done, 1 when refused."""
    try:
        shown = _perform(args, WallTime(time.time()))
    except PolicyError as error:
        if args.json:
            print(json.dumps({"problems": [asdict(problem) for problem in error.problems]}))
        for problem in error.problems:
            print(f"tunsec ca {args.ca_command}: {problem}", file=sys.stderr)
        return EXIT_FAILED
    if args.json:
        certificates = [_as_json(summary) for summary in shown.certificates]
        print(json.dumps([*certificates, *map(_list_as_json, shown.crls)], indent=2))
        return 0
    now = time.time()
    texts = [_as_text(summary, now) for summary in shown.certificates]
    print("\n".join([*texts, *(_list_as_text(crl, now) for crl in shown.crls)]))
    if args.ca_command in LISTING:
        print(
            f"copy {args.ca / 'crl.pem'} to every host's identity folder, then tunsec reload there"
        )
    return 0


def _perform(args: argparse.Namespace, wall_now: WallTime) -> "Shown":
    from tunsec.adapters import ca_files
    from tunsec.keying.ca import KeyType

    match args.ca_command:
        case "init":
            summary = ca_files.init(
                args.folder,
                name=args.name,
                days=args.days,
                kind=KeyType(args.key_type),
                wall_now=wall_now,
            )
            return ca_files.Shown((summary,))
        case "show":
            return ca_files.show(args.path)
    authority = ca_files.load(args.ca, wall_now=wall_now)
    match args.ca_command:
        case "issue":
            summary = ca_files.issue_to(
                args.out,
                HostName(args.host),
                authority=authority,
                addresses=args.address,
                days=args.days,
                kind=KeyType(args.key_type),
                wall_now=wall_now,
            )
            return ca_files.Shown((summary,))
        case "renew":
            summary = ca_files.renew(
                args.folder, authority=authority, days=args.days, wall_now=wall_now
            )
            return ca_files.Shown((summary,))
        case "revoke":
            return ca_files.revoke_all(
                args.which, authority=authority, days=args.days, wall_now=wall_now
            )
        case _:
            return ca_files.refresh(authority=authority, days=args.days, wall_now=wall_now)


def _add_common(parser: argparse.ArgumentParser, *, days: float, key_type: bool = True) -> None:
    parser.add_argument(
        "--days", type=_days, default=days, help=f"how long it is valid ({days:.0f})"
    )
    if key_type:
        parser.add_argument("--key-type", choices=KEY_TYPES, default=KEY_TYPES[0])
    parser.add_argument("--json", action="store_true", help="as JSON")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days") from None
    if not 0 < days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of days above 0, {MAX_DAYS:.0f} at most"
        )
    return days


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address") from None


def _as_json(summary: "CertificateSummary") -> dict[str, object]:
    fields = asdict(summary)
    fields["serial"] = f"{summary.serial:x}"
    fields["not_before"] = _moment(summary.not_before)
    fields["not_after"] = _moment(summary.not_after)
    fields["revoked_at"] = summary.revoked_at and _moment(summary.revoked_at)
    return fields


def _list_as_json(crl: "RevocationList") -> dict[str, object]:
    return {
        "crl": crl.number,
        "issuer": crl.issuer,
        "this_update": _moment(crl.this_update),
        "next_update": _moment(crl.next_update),
        "revoked": {f"{serial:x}": _moment(since) for serial, since in crl.revoked.items()},
    }


def _as_text(summary: "CertificateSummary", wall_now: float) -> str:
    rows = [
        ("subject", summary.subject),
        ("issuer", summary.issuer),
        ("serial", f"{summary.serial:x}"),
        ("key", summary.key),
        ("valid", _span(summary.not_before, summary.not_after, wall_now)),
        ("sha256", summary.sha256),
    ]
    if summary.revoked_at is not None:
        rows.append(("REVOKED", f"since {_moment(summary.revoked_at)}"))
    if summary.names or summary.addresses:
        rows.insert(2, ("names", ", ".join((*summary.names, *summary.addresses))))
    head = "CA" if summary.ca else "host certificate"
    return "\n".join([head, *(f"  {name:8} {value}" for name, value in rows)])


def _list_as_text(crl: "RevocationList", wall_now: float) -> str:
    rows = [
        ("issuer", crl.issuer),
        ("number", str(crl.number)),
        ("valid", _span(crl.this_update, crl.next_update, wall_now)),
        *(("revoked", f"{serial:x} since {_moment(at)}") for serial, at in crl.revoked.items()),
    ]
    return "\n".join(["revocation list", *(f"  {name:8} {value}" for name, value in rows)])


def _span(first: float, last: float, wall_now: float) -> str:
    left = (last - wall_now) / 86_400
    if left < 0:
        state = "EXPIRED"
    elif left < WARN_DAYS:
        state = f"{left:.1f} days left: renew it"
    else:
        state = f"{left:.0f} days left"
    return f"{_moment(first)} to {_moment(last)}, {state}"


def _moment(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
