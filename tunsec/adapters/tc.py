"""Filters that mark by VNI what `external` tunnel devices send, written and read back through `tc`.

What they are, and which of a device's filters are ours, is decided in `wire.tc_text`.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

from tunsec.adapters.netlink import TouchMonitor
from tunsec.adapters.nft import TOOL_PATH, TOOL_TIMEOUT
from tunsec.model.errors import Refused, TunsecError, Unavailable
from tunsec.model.guard import VniMarks
from tunsec.wire import tc_text
from tunsec.wire.rtnl import NETLINK_ROUTE
from tunsec.wire.tc_notices import RTNLGRP_TC, touches_marks
from tunsec.wire.tc_text import FilterId, Filters

_REMEDIES: Final = (
    ("TC classifier not found", "the kernel has no flower: load cls_flower"),
    ("Failed to load TC action module", "the kernel has no skbedit: load act_skbedit"),
    ("Specified qdisc kind is unknown", "the kernel has no clsact: load sch_ingress"),
    (
        "Exclusivity flag on",
        "the device has an ingress qdisc: make it a clsact, which does the same and more",
    ),
    ("kind does not match", "another program's filter has preference 0x5453 or 0x5454: move it"),
)
"""What tc or the kernel says, and what to do about it."""


class TcMarks:
    """ports.VniMarking on the tc of this host, in the network namespace of the caller."""

    def __init__(self, *, tool: str | None = None) -> None:
        """`tool` is the absolute path of tc; looked up in nft's TOOL_PATH when not given."""
        self._tool = tool

    def put(self, wanted: Sequence[VniMarks]) -> None:
        """Give devices the filters they need and no others of ours, then read them back (law 5).

        Every device is tried; raises Refused or Unavailable with what went wrong with any.
        """
        failed: list[TunsecError] = []
        for want in wanted:
            try:
                self._put(want)
            except (Refused, Unavailable) as error:
                failed.append(error)
        if len(failed) == 1:
            raise failed[0]
        if failed:
            raise Refused("mark by VNI", reason="; ".join(map(str, failed)))

    def drift(self, wanted: Sequence[VniMarks]) -> tuple[str, ...]:
        """What stands differently from what `put` would make, one line each, for the log."""
        return tuple(line for want in wanted for line in self._drift(want))

    def _drift(self, want: VniMarks) -> Iterator[str]:
        filters = tc_text.filters(want)
        return tc_text.differences(filters, self._have(want.device, filters), want.device)

    def _put(self, want: VniMarks) -> None:
        filters, device = tc_text.filters(want), want.device
        have = self._have(device, filters)
        script = tc_text.change_script(device, filters, have)
        if script and filters and not self._listed_clsact(device):
            self._run_script(device, tc_text.add_clsact_script(device))
        if script:
            self._run_script(device, script)
            left = list(tc_text.differences(filters, self._have(device, filters), device))
            if left:
                raise Refused(f"mark by VNI what {device} sends", reason="; ".join(left))
        if script and not filters:
            self._leave(device)

    def _leave(self, device: str) -> None:
        """Take the clsact away too, if we have made it and nobody uses it."""
        chains = self._show(device, "chain", "egress")
        if not tc_text.is_our_clsact(chains):
            return
        if all(
            tc_text.is_empty(self._show(device, "filter", side)) for side in ("egress", "ingress")
        ):
            self._run_script(device, tc_text.remove_clsact_script(device))

    def _have(self, device: str, want: object) -> Filters:
        """Our filters on a device; none can be there where there is no tc."""
        if not want and self._found() is None:
            return dict[FilterId, None]()
        return tc_text.parse_filters(self._show(device, "filter", "egress"))

    def _listed_clsact(self, device: str) -> bool:
        return tc_text.has_clsact(self._run("-j", "qdisc", "show", "dev", device))

    def _show(self, device: str, what: str, side: str) -> str:
        return self._run("-j", what, "show", "dev", device, side)

    def _run_script(self, device: str, script: str) -> None:
        self._run("-batch", "-", script=script, what=f"mark by VNI what {device} sends")

    def _found(self) -> str | None:
        return self._tool or shutil.which("tc", path=TOOL_PATH)

    def _run(self, *arguments: str, script: str = "", what: str = "list tc's filters") -> str:
        tool = self._found()
        if tool is None:
            raise Unavailable(
                f"there is no tc in {TOOL_PATH}, and an external tunnel device needs it to give "
                "tenants their marks: install the package iproute2"
            )
        try:
            done = subprocess.run(
                (tool, *arguments),
                input=script,
                capture_output=True,
                env={"LC_ALL": "C", "PATH": TOOL_PATH},
                encoding="utf-8",
                errors="surrogateescape",
                timeout=TOOL_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{tool} did not answer in {TOOL_TIMEOUT:.0f} s") from error
        except OSError as error:
            raise Unavailable(f"cannot run {tool}: {error.strerror}") from error
        if done.returncode:
            raise Refused(what, reason=_reason(done.stderr))
        return done.stdout


class TcMonitor(TouchMonitor):
    """Hears of every change of filters that may be ours."""

    def __init__(self) -> None:
        """Raises Unavailable when there is no rtnetlink."""
        super().__init__(NETLINK_ROUTE, RTNLGRP_TC, what="tc", touches=touches_marks)


def _reason(stderr: str) -> str:
    said = " ".join(stderr.split())[:600]
    return next((f"{said} ({remedy})" for sign, remedy in _REMEDIES if sign in said), said)
