"""All checks in order: this host, its kernel, the daemon, charon."""

import time
from collections.abc import Iterator

from tunsec.cli.doctor import charon, daemon, host, kernel
from tunsec.cli.doctor.finding import Finding, Group, warning
from tunsec.cli.doctor.options import Options
from tunsec.cli.doctor.part import Part
from tunsec.cli.doctor.user import User, acting_as, daemon_user
from tunsec.cli.places import SOCKET_NAME
from tunsec.model.clock import WallTime
from tunsec.model.flow import Keying


def examine(options: Options) -> Iterator[Finding]:
    """Findings as they come."""
    if options.trouble:
        yield warning(Group.HOST, "options", options.trouble, "correct it: tunsecd reads it too")
    control = options.run / SOCKET_NAME
    user = daemon_user(control)
    part: Part | None = None
    with acting_as(user):
        findings, part = host.check_policy(options.policy, options.host)
    yield from findings
    yield from _host(options, part, user)
    yield from kernel.check_kernel(part)
    yield kernel.check_speed(part)
    yield from kernel.check_settings()
    yield from daemon.check_daemon(control, part)
    if options.charon_wanted or (part is not None and part.uses(Keying.IKE)):
        yield from charon.check_charon(options.charon, user)


def _host(options: Options, part: Part | None, user: User) -> list[Finding]:
    """Nothing is told while this process acts as somebody else."""
    now = WallTime(time.time())
    found: list[Finding] = []
    with acting_as(user):
        if part is not None:
            found.append(host.check_addresses(part))
            found += host.check_identity(options.identity, part, wall_now=now)
            found += host.check_devices(part)
            found += host.check_rdma(part)
            found += host.check_offload(part)
        written = host.own_files(options.policy, options.state)
        found.append(host.check_clock(options.identity, written, wall_now=now))
        found.append(host.check_folder(options.run, "run-folder"))
        found.append(host.check_folder(options.state, "state-folder"))
        if part is None or part.uses(Keying.DIRECTORY):
            found += host.check_directory(options.directory)
    return found
