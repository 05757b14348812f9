"""The nftables tables `inet tunsec` and `netdev tunsec`, written and read back through `nft`.

No other table is ever named in a command. What the tables hold is decided in `wire.nft_text`.
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tunsec.adapters.netlink import TouchMonitor
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.guard import Guard, GuardDrops
from tunsec.wire import nft_text
from tunsec.wire.nft_notices import (
    NETLINK_NETFILTER,
    NFNLGRP_NFTABLES,
    decode_touched_tables,
)
from tunsec.wire.nft_text import INET_TABLE, NETDEV_TABLE, Ruleset, Table

TOOL_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
"""Where `nft` is looked for: never in the caller's PATH."""
TOOL_TIMEOUT: Final = 5.0
"""Seconds after which an nft that does not answer is given up."""
ATTEMPTS: Final = 3
"""Another program may change our table between the listing and the transaction."""


class Answer(NamedTuple):
    """How a run of nft ended."""

    returncode: int
    stdout: str
    stderr: str


class NftGuard:
    """ports.GuardTable on the nft of this host, in the network namespace of the caller."""

    def __init__(self, *, tool: str | None = None, boot_file: Path | None = None) -> None:
        """`tool` is the absolute path of nft; looked up in TOOL_PATH when not given.

        `boot_file` is kept equal to the guard, for tunsec-guard.service to load at the next boot.
        Raises Unavailable when there is no nft.
        """
        found = tool or shutil.which("nft", path=TOOL_PATH)
        if not found:
            raise Unavailable(f"there is no nft in {TOOL_PATH}: install the package nftables")
        self._tool = found
        self._boot_file = boot_file
        self.boot_trouble = ""
        """Why the guard could not be kept for the next boot; the one in force is not touched."""

    def put(self, guard: Guard) -> None:
        """Replace both tables in one transaction, then read them back (law 5); counters go on.

        Raises Refused. When only the tunnel devices' part is refused (a device has just
        vanished), the `inet` table is in force before Refused is raised: without a mark the
        devices' packets are dropped, never let out.
        """
        inet: Ruleset = {INET_TABLE: nft_text.inet_table(guard)}
        try:
            self._replace({**inet, NETDEV_TABLE: nft_text.netdev_table(guard)})
        except Refused:
            if guard.devices:
                self._replace(inet)
                self._keep_for_boot(nft_text.boot_script(guard))
            raise
        self._keep_for_boot(nft_text.boot_script(guard))

    def intact(self, guard: Guard) -> bool:
        """Whether the kernel holds exactly what `put(guard)` would make."""
        return not self.drift(guard)

    def drift(self, guard: Guard) -> tuple[str, ...]:
        """What stands differently from what `put(guard)` would make, one line each, for the log."""
        want = nft_text.guard_ruleset(guard)
        return nft_text.differences(want, self._listed(want))

    def drops(self) -> dict[str, GuardDrops]:
        """Dropped packets by flow name; empty when there is no table."""
        answer = self._run(("-j", "list", "counters", "table", *INET_TABLE.split()))
        if answer.returncode:
            if INET_TABLE not in self._listed((INET_TABLE,)):
                return {}
            raise self._refusal("list the guard's counters", answer)
        try:
            objects = json.loads(answer.stdout)["nftables"]
            counters = [entry["counter"] for entry in objects if "counter" in entry]
            packets = {counter["name"]: int(counter["packets"]) for counter in counters}
        except (ValueError, KeyError, TypeError) as error:
            raise Refused("read nft's list of counters", reason=str(error)) from error
        return nft_text.drops_by_flow(packets)

    def remove(self) -> None:
        """Delete both tables; that one is not there is no error."""
        answer = self._run(("-f", "-"), nft_text.remove_script((INET_TABLE, NETDEV_TABLE)))
        if answer.returncode:
            raise self._refusal("remove the guard tables", answer)
        if self._boot_file is not None:
            self._boot_file.unlink(missing_ok=True)

    def _replace(self, want: Ruleset) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            script = self._script(want)
            if not script:
                return
            answer = self._run(("-f", "-"), script)
            if answer.returncode == 0:
                left = self._differences(want)
                if not left:
                    return
                if attempt == ATTEMPTS:
                    raise Refused("put the guard tables", reason="; ".join(left))
            elif attempt == ATTEMPTS:
                raise self._refusal("put the guard tables", answer)

    def _keep_for_boot(self, script: str) -> None:
        """Replace the boot file as a whole, unless it already says the same."""
        file = self._boot_file
        if file is None:
            return
        octets = script.encode(errors="surrogateescape")
        try:
            if file.is_file() and file.read_bytes() == octets:
                self.boot_trouble = ""
                return
            draft = file.with_name(f".{file.name}.new")
            with draft.open("wb") as out:
                out.write(octets)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
        except OSError as error:
            self.boot_trouble = (
                f"{file} cannot be written: {error.strerror}: "
                "the guard of the next boot is the one kept before; make room, check its owner"
            )
        else:
            self.boot_trouble = ""

    def _script(self, want: Ruleset) -> str:
        """What nft must do; nothing when the tables are as wanted."""
        try:
            have = self._listed(want)
        except ValueError:  # somebody's rules in our table that we cannot even read
            return nft_text.remove_script(want) + nft_text.replace_script(want, {})
        if not nft_text.differences(want, have):
            return ""
        if nft_text.dormant(have):
            self._run(("-f", "-"), nft_text.wake_script(have))
        return nft_text.replace_script(want, have)

    def _differences(self, want: Ruleset) -> tuple[str, ...]:
        try:
            return nft_text.differences(want, self._listed(want))
        except ValueError as error:
            return (str(error),)

    def _listed(self, tables: Iterable[str]) -> Ruleset:
        """The tables that are there, listed at the same time: starting nft is what takes long."""
        with ExitStack() as cleanup:
            started: dict[str, subprocess.Popen[str]] = {}
            for table in tables:
                started[table] = self._start(("-y", "-s", "list", "table", *table.split()))
                cleanup.callback(_end, started[table])
            answers = {table: self._finish(process) for table, process in started.items()}
        found: dict[str, Table] = {}
        for table, answer in answers.items():
            if answer.returncode == 0:
                found[table] = nft_text.parse_listing(answer.stdout).get(table, {})
            elif os.strerror(errno.ENOENT) not in answer.stderr:
                raise self._refusal(f"list table {table}", answer)
        return found

    def _run(self, arguments: Sequence[str], script: str = "") -> Answer:
        return self._finish(self._start(arguments), script)

    def _start(self, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        try:
            return subprocess.Popen(
                (self._tool, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"LC_ALL": "C", "PATH": TOOL_PATH},
                encoding="utf-8",
                errors="surrogateescape",
            )
        except OSError as error:
            raise Unavailable(f"cannot run {self._tool}: {error.strerror}") from error

    def _finish(self, process: "subprocess.Popen[str]", script: str = "") -> Answer:
        with process:
            try:
                stdout, stderr = process.communicate(script, timeout=TOOL_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise Unavailable(f"{self._tool} did not answer in {TOOL_TIMEOUT:.0f} s") from error
        return Answer(process.returncode, stdout, stderr)

    def _refusal(self, what: str, answer: Answer) -> Refused:
        said = " ".join(answer.stderr.split())[:600]
        number = errno.EPERM if os.strerror(errno.EPERM) in answer.stderr else None
        return Refused(what, errno=number, reason=said)


class GuardMonitor(TouchMonitor):
    """Hears of every change of tables named `tunsec`."""

    def __init__(self) -> None:
        """Raises Unavailable when the kernel has no nf_tables."""
        super().__init__(NETLINK_NETFILTER, NFNLGRP_NFTABLES, what="nftables", touches=_names_ours)


def _end(process: "subprocess.Popen[str]") -> None:
    """Leave no process behind, whatever went wrong with the others."""
    if process.returncode is None:
        process.kill()
        with process:
            process.wait()


def _names_ours(datagram: bytes) -> bool:
    return "tunsec" in decode_touched_tables(datagram)
