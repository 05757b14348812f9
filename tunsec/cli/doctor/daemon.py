"""What the running tunsecd says of itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tunsec import __version__
from tunsec.cli.client import Client, Failed
from tunsec.cli.doctor.finding import Finding, Group, ok, problem, warning
from tunsec.cli.doctor.part import Part
from tunsec.cli.exits import Exit
from tunsec.wire.control import Status

DAEMON: Final = Group.DAEMON
LOG: Final = "see `journalctl -u tunsecd`"


def check_daemon(socket: Path, part: Part | None) -> Iterator[Finding]:
    """Ask it, and hold its answer against this command and the policy's file."""
    try:
        status = Client(socket).status()
    except Failed as error:
        # Not running is how a host is before its first start: nothing is wrong with it yet.
        verdict = warning if error.status in (Exit.AWAY, Exit.DENIED) else problem
        yield verdict(DAEMON, "tunsecd", error.what, error.remedy or LOG)
        return
    yield check_version(status)
    yield check_policy_in_force(status, part)
    yield check_guard_in_force(status)
    yield check_flows(status)
    yield from check_trouble(status)


def check_version(status: Status) -> Finding:
    """Whether daemon and command are of one release."""
    if status.version != __version__:
        found = f"tunsecd {status.version} runs, this command is {__version__}"
        return warning(DAEMON, "tunsecd", found, "systemctl restart tunsecd: traffic goes on")
    return ok(DAEMON, "tunsecd", f"{status.version} runs as {status.host}")


def check_policy_in_force(status: Status, part: Part | None) -> Finding:
    """Whether the file is what the daemon goes by."""
    own = status.policy
    if own.error:
        found = f"the last policy was not taken: {'; '.join(own.error.splitlines())}"
        return warning(DAEMON, "policy", found, "correct it, then tunsec reload")
    if part is not None and own.digest != part.intent.digest:
        found = f"in force is {own.source} ({own.digest[:12]}), another policy than the file"
        return warning(DAEMON, "policy", found, "tunsec plan FILE shows what would change")
    return ok(DAEMON, "policy", f"{own.source} ({own.digest[:12]}) is in force")


def check_guard_in_force(status: Status) -> Finding:
    """Whether the second layer stands."""
    if not status.guard.in_force:
        return problem(DAEMON, "guard", status.guard.trouble or "it is not in force", LOG)
    return ok(DAEMON, "guard", "in force")


def check_flows(status: Status) -> Finding:
    """How many relations have keys; what is missing may be the peer's."""
    blocked = status.unprotected
    total = sum(flow.declared for flow in status.flows)
    if blocked:
        reasons = "; ".join(f"{flow.flow} {flow.peer}: {flow.reason}" for flow in blocked[:3])
        found = f"{len(blocked)} of {total} not protected: {reasons}"
        return warning(DAEMON, "flows", found, "tunsec status shows them all")
    return ok(DAEMON, "flows", f"{total} of {total} protected")


def check_trouble(status: Status) -> Iterator[Finding]:
    """Everything else that the daemon warns of."""
    directory = status.directory
    if directory is not None and not directory.reachable:
        found = f"{directory.url} is away: {directory.trouble}"
        yield problem(DAEMON, "directory", found, "nothing opens and nothing is rekeyed until then")
    for text in (*status.warnings, *(text for flow in status.flows for text in flow.warnings)):
        yield warning(DAEMON, "warning", text, LOG)
