"""The `tunsec` command: finds out which command is meant and imports no more than it needs.

Exit status: 0 yes or done, 1 the answer is no, 2 usage, 3 tunsecd is not there, 4 not allowed,
5 refused, 6 tunsecd and this command do not understand each other.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunsec.cli.exits import Exit
from tunsec.cli.places import RUN_DIRECTORY, SOCKET_NAME

if TYPE_CHECKING:
    from tunsec.cli.client import Failed

OFFLINE: Final = {
    "check": "judge a policy file",
    "ca": "make the cluster's certificate authority and certificates",
    "doctor": "find out what keeps tunsec from doing its work here",
}
"""Commands that need no daemon: tunsec.cli.NAME has add_parser() and run()."""

DAEMON: Final = {
    "status": "show how every flow stands",
    "watch": "show it live",
    "explain": "say which rule covers a flow, a packet or an SPI, and what becomes of it",
    "plan": "show what a policy would change",
    "apply": "replace the policy in force",
    "reload": "have tunsecd read policy and identity again",
    "wait": "wait until flows are protected",
    "release": "stop managing a flow, or all: traffic may go in clear",
    "metrics": "print Prometheus metrics",
}
"""Commands that ask tunsecd: tunsec.cli.commands has a function of each name."""

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Standard output leads to a disk that takes no more."""

EXPLAINED: Final = """\
a flow, or one of its tenants:
  tunsec explain overlay
  tunsec explain overlay/red
a packet, sent or received by this host; a port may be left out, or be *:
  tunsec explain udp 192.0.2.11:49152 192.0.2.12:4789 --vni 41
  tunsec explain tcp [2001:db8::12]:16385 [2001:db8::11]:40000
a line of tcpdump -n, in quotes:
  tunsec explain 'IP 192.0.2.11.49152 > 192.0.2.12.4789: VXLAN, flags [I] (0x08), vni 41'
an ESP packet, by its SPI:
  tunsec explain esp 192.0.2.12 0xc3a1f00d
  tunsec explain spi c3a1f00d
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status = _run(args)
        sys.stdout.flush()  # now, as nobody hears what fails at exit
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _unheard(error)
    return status


def _run(args: argparse.Namespace) -> int:
    if args.command in OFFLINE:
        return int(importlib.import_module(f"tunsec.cli.{args.command}").run(args))
    if args.command == "version":
        return _version(args)
    from tunsec.cli import commands
    from tunsec.cli.client import Client, Failed

    path = args.socket or args.run_directory / SOCKET_NAME
    try:
        return int(getattr(commands, args.command)(Client(path), args))
    except Failed as error:
        _complain(error, as_json=getattr(args, "json", False))
        return error.status


def _unheard(error: OSError) -> int:
    """What was to be said could not be written, though what was asked is done."""
    if not isinstance(error, BrokenPipeError) and error.errno not in UNWRITABLE:
        raise error
    # What is still in the buffer would be a traceback at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return Exit.OK  # The reader of a pipe has left (`| head`): nothing more to say.
    print(f"tunsec: the output cannot be written: {error.strerror}", file=sys.stderr)
    return Exit.USAGE


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunsec",
        description="Keeps the traffic that the kernel tunnels between hosts encrypted.",
        epilog=(__doc__ or "").partition("\n\n")[2],
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in arguments if word in OFFLINE), None)
    for name, meaning in OFFLINE.items():
        if name == named:
            importlib.import_module(f"tunsec.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=meaning, add_help=False)
    for name, meaning in DAEMON.items():
        _add_arguments(subparsers.add_parser(name, help=meaning, description=_sentence(meaning)))
    version = subparsers.add_parser("version", help="print the version of this command")
    version.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.prog.split()[-1]
    match command:
        case "explain":
            _add_question(parser)
        case "plan":
            help_text = "the policy, - for standard input; none: what is still to be done"
            parser.add_argument("file", nargs="?", metavar="FILE", help=help_text)
        case "apply":
            parser.add_argument("file", metavar="FILE", help="the policy, - for standard input")
        case "wait":
            parser.add_argument("--flow", metavar="NAME", help="wait for this flow alone")
            parser.add_argument(
                "--timeout", type=_seconds, metavar="SECONDS", help="give up then (default: never)"
            )
        case "release":
            parser.add_argument("flow", nargs="?", metavar="FLOW", help="default: every flow")
            parser.add_argument("--yes", action="store_true", help="do not ask")
        case _:
            pass
    if command != "metrics":
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", type=Path, metavar="PATH", help="tunsecd's control socket")
    where.add_argument(
        "--run",
        dest="run_directory",
        type=Path,
        default=RUN_DIRECTORY,
        metavar="DIR",
        help=f"tunsecd's run directory, where {SOCKET_NAME} is (default: %(default)s)",
    )


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXPLAINED
    parser.add_argument("question", nargs="+", metavar="WHAT", help="see below")
    parser.add_argument("--vni", type=_vni, metavar="N", help="of the packet in the tunnel")


def _version(args: argparse.Namespace) -> int:
    from tunsec import __version__

    print(f'{{"version":"{__version__}"}}' if args.json else f"tunsec {__version__}")
    return Exit.OK


def _complain(error: "Failed", *, as_json: bool) -> None:
    if as_json:
        from tunsec.wire.control import ErrorBody, encode

        body = error.body or ErrorBody(error.status.name.lower(), str(error))
        print(encode(body).decode())
        return
    for problem in error.body.problems if error.body else ():
        print(problem, file=sys.stderr)
    print(f"tunsec: {error}", file=sys.stderr)


def _vni(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no VNI, a number of 24 bits") from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, such as 30 or 0.5")
    return seconds


def _sentence(meaning: str) -> str:
    return f"{meaning[0].upper()}{meaning[1:]}."


if __name__ == "__main__":
    sys.exit(main())
