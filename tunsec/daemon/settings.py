"""How tunsecd is started: its command line, with defaults for a host under systemd."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tunsec
from tunsec.daemon.engine import DUMP_EVERY
from tunsec.model.clock import Seconds
from tunsec.model.names import HostName
from tunsec.policy.problems import Wrong
from tunsec.policy.units import parse_span

ETC: Final = Path("/etc/tunsec")
RUN: Final = Path("/run/tunsec")
STATE: Final = Path("/var/lib/tunsec")
DIRECTORY: Final = "file:///srv/tunsec"
CHARON: Final = "unix:///run/charon.vici"
SHORTEST_LOOK: Final = Seconds(1.0)


@dataclass(frozen=True, slots=True)
class Settings:
    """One daemon's settings."""

    host: HostName
    policy: Path
    identity: Path
    directory: str
    charon: str
    run: Path
    state: Path
    log_level: str
    anyone_reads: bool
    look_every: Seconds


def parse_settings(
    argv: Sequence[str], *, hostname: str, environment: Mapping[str, str]
) -> Settings:
    """Settings from the command line; exits with a usage message when it is wrong."""
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    identity = Path(credentials) if credentials else ETC / "identity"
    parser = argparse.ArgumentParser(
        prog="tunsecd", description="Keeps the traffic that the kernel tunnels encrypted."
    )
    parser.add_argument(
        "--host", default=hostname, metavar="NAME", help="this host's name in the policy"
    )
    parser.add_argument("--policy", type=Path, default=ETC / "policy.yaml", metavar="FILE")
    parser.add_argument(
        "--identity",
        type=Path,
        default=identity,
        metavar="DIR",
        help="folder with cert.pem, key.pem and ca.pem (default: %(default)s)",
    )
    parser.add_argument(
        "--directory",
        default=DIRECTORY,
        metavar="URL",
        help="where hosts publish: file:///FOLDER (default: %(default)s)",
    )
    parser.add_argument("--run", type=Path, default=RUN, metavar="DIR")
    parser.add_argument("--state", type=Path, default=STATE, metavar="DIR")
    parser.add_argument(
        "--charon",
        default=CHARON,
        metavar="URL",
        help="VICI socket of charon, for keying ike (default: %(default)s)",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning"])
    parser.add_argument(
        "--anyone-reads", action="store_true", help="let every local user read the status"
    )
    parser.add_argument(
        "--look-every",
        type=_span,
        default=DUMP_EVERY,
        metavar="SPAN",
        help="how often all that kernel and charon hold is read, whatever they told "
        f"(default: {DUMP_EVERY:g}s)",
    )
    parser.add_argument("--version", action="version", version=f"tunsecd {tunsec.__version__}")
    given = parser.parse_args(argv)
    return Settings(
        HostName(given.host),
        given.policy,
        given.identity,
        given.directory,
        given.charon,
        given.run,
        given.state,
        given.log_level,
        given.anyone_reads,
        given.look_every,
    )


def _span(text: str) -> Seconds:
    try:
        span = parse_span(text)
    except Wrong as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if span < SHORTEST_LOOK:
        raise argparse.ArgumentTypeError(f"at least {SHORTEST_LOOK:g}s")
    return span
