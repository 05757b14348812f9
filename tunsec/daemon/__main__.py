"""tunsecd: the daemon's entry."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tunsec.adapters.hardening import harden_process
from tunsec.adapters.systemd import Notifier, watchdog_interval
from tunsec.daemon.journal import start_logging
from tunsec.daemon.service import Service
from tunsec.daemon.settings import Settings, parse_settings
from tunsec.model.errors import Bug, PolicyError, Problem, Refused, TunsecError, Unavailable

EXIT_REFUSED = 1
EXIT_POLICY = 2
EXIT_UNAVAILABLE = 3
EXIT_BUG = 70

RIGHTS: Final = "CAP_NET_ADMIN is missing: start tunsecd.service, or run tunsecd as root"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground; returns the exit status."""
    try:
        settings = parse_settings(
            sys.argv[1:] if argv is None else argv,
            hostname=socket.gethostname(),
            environment=os.environ,
        )
        harden_process()
        start_logging(level=settings.log_level, journal="JOURNAL_STREAM" in os.environ)
        for folder in (settings.run, settings.state):
            _make_folder(folder)
        asyncio.run(_run(settings))
    except PolicyError as error:
        _say(error)
        return EXIT_POLICY
    except Unavailable as error:
        _say(error)
        return EXIT_UNAVAILABLE
    except Refused as error:
        _say(error)
        if error.errno == errno.EPERM:
            sys.stderr.write(f"tunsecd: {RIGHTS}\n")
        return EXIT_REFUSED
    except Bug as error:
        _say(error)
        return EXIT_BUG
    return 0


async def _run(settings: Settings) -> None:
    notifier = Notifier.from_environment(os.environ)
    service = Service(settings, notifier, watchdog_interval(os.environ, pid=os.getpid()))
    await service.run()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise PolicyError(
            [Problem(str(folder), f"cannot be made: {error.strerror}", "make it, or run as root")]
        ) from error


def _say(error: TunsecError) -> None:
    for line in str(error).splitlines():
        sys.stderr.write(f"tunsecd: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
