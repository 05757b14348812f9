"""`tunsec doctor`: whether tunsec can do its work on this host, found out by trying.

Nothing that lasts is changed: what the kernel can do is tried in a network namespace that is gone
afterwards (the kernel may load modules for it). Without options it looks where tunsecd's unit
would. Exit status: 0 nothing is a problem, 1 something is, 2 usage.
"""

import argparse
import json
from pathlib import Path

from tunsec.cli.exits import Exit


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor` to the commands of `tunsec`."""
    parser = subparsers.add_parser(
        "doctor",
        help="find out what keeps tunsec from doing its work here",
        description="Find out by trying what keeps tunsec from doing its work on this host. "
        "Options are tunsecd's; those not given are taken from TUNSECD_OPTIONS in "
        "/etc/default/tunsecd, as its unit does.",
        epilog="Exit status: 0 nothing is a problem, 1 something is, 2 usage.",
    )
    parser.add_argument("--host", metavar="NAME", help="this host's name in the policy")
    parser.add_argument("--policy", type=Path, metavar="FILE")
    parser.add_argument("--identity", type=Path, metavar="DIR", help="cert.pem, key.pem, ca.pem")
    parser.add_argument("--directory", metavar="URL", help="where hosts publish")
    parser.add_argument(
        "--charon",
        metavar="URL",
        help="look at this charon, also when no flow of the policy is keyed by IKE",
    )
    parser.add_argument("--run", dest="run_directory", type=Path, metavar="DIR")
    parser.add_argument("--state", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the command; the exit status."""
    from tunsec.cli.doctor.examination import examine
    from tunsec.cli.doctor.finding import Verdict, as_json, counted, show
    from tunsec.cli.doctor.options import read_options

    findings = []
    for finding in examine(read_options(args)):
        findings.append(finding)
        if not args.json:
            show(finding)
    good = all(finding.verdict is not Verdict.PROBLEM for finding in findings)
    if args.json:
        print(json.dumps({"good": good, "findings": [*map(as_json, findings)]}, indent=2))
    else:
        print(counted(findings))
    return Exit.OK if good else Exit.NO
