"""Where to look: the command line, else what tunsecd's unit is told, else tunsecd's defaults."""

import argparse
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunsec.cli.places import RUN_DIRECTORY
from tunsec.model.names import HostName

UNIT_OPTIONS: Final = Path("/etc/default/tunsecd")
VARIABLE: Final = "TUNSECD_OPTIONS"

POLICY: Final = Path("/etc/tunsec/policy.yaml")
IDENTITY: Final = Path("/etc/tunsec/identity")
DIRECTORY: Final = "file:///srv/tunsec"
CHARON: Final = "unix:///run/charon.vici"
STATE: Final = Path("/var/lib/tunsec")
"""tunsecd's own (daemon/settings.py); a test holds the two together."""


@dataclass(frozen=True, slots=True)
class Options:
    """tunsecd's settings, as far as they matter here."""

    host: HostName
    policy: Path
    identity: Path
    directory: str
    charon: str
    charon_wanted: bool
    """Whether charon was asked for by name."""
    run: Path
    state: Path
    trouble: str = ""
    """Why the unit's options could not be taken."""


def read_options(args: argparse.Namespace, unit_options: Path = UNIT_OPTIONS) -> Options:
    """Options of a command line, completed."""
    unit, trouble = _unit(unit_options)
    given = {
        name: getattr(args, name) or getattr(unit, name)
        for name in ("host", "policy", "identity", "directory", "charon", "run_directory", "state")
    }
    return Options(
        host=HostName(given["host"] or socket.gethostname()),
        policy=given["policy"] or POLICY,
        identity=given["identity"] or IDENTITY,
        directory=given["directory"] or DIRECTORY,
        charon=given["charon"] or CHARON,
        charon_wanted=args.charon is not None,
        run=given["run_directory"] or RUN_DIRECTORY,
        state=given["state"] or STATE,
        trouble=trouble,
    )


def _unit(file: Path) -> tuple[argparse.Namespace, str]:
    """What the unit gives tunsecd, and why that is not known; options of no matter here are passed
    over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--host", "--directory", "--charon"):
        parser.add_argument(option)
    for option in ("--policy", "--identity", "--state"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--run", dest="run_directory", type=Path)
    try:
        return parser.parse_known_args(_words(file))[0], ""
    except OSError as error:
        trouble = error.strerror or str(error)
    except (ValueError, argparse.ArgumentError) as error:
        trouble = str(error)
    return parser.parse_args([]), f"{file}: {trouble}"


def _words(file: Path) -> list[str]:
    """The words of TUNSECD_OPTIONS (systemd.exec(5), EnvironmentFile)."""
    try:
        lines = shlex.split(file.read_text(), comments=True)
    except FileNotFoundError:
        return []
    texts = [line.partition("=")[2] for line in lines if line.startswith(f"{VARIABLE}=")]
    return shlex.split(texts[-1]) if texts else []
