"""What tunsec asks of charon's configuration, and why: systemd/charon-tunsec.conf as a table.

A test holds the table and that file together. Defaults are charon's own (conf/options/charon.opt
of strongSwan 6); a value that charon cannot read counts as not set, as it does there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunsec.cli.doctor.finding import Finding, Group, Verdict, ok
from tunsec.model.clock import Seconds
from tunsec.model.ike import GIVES_UP_AFTER
from tunsec.wire.strongswan_conf import Settings

CHARON: Final = Group.CHARON
DROP_IN: Final = "systemd/charon-tunsec.conf"
TRIES: Final = "retransmit_tries"
TIMEOUT: Final = "retransmit_timeout"
BASE: Final = "retransmit_base"
LIMIT: Final = "retransmit_limit"
RETRANSMISSION: Final = {TRIES: "5", TIMEOUT: "4.0", BASE: "1.8", LIMIT: "0"}
"""Judged together, with charon's defaults: how long a peer that does not answer is asked."""
NEVER: Final = 1e6
"""Seconds; more than that is all the same."""
DOS_PROTECTION: Final = "dos_protection"
"""Without it no threshold counts."""

_TRUE: Final = frozenset({"1", "yes", "true", "enabled"})
_FALSE: Final = frozenset({"0", "no", "false", "disabled"})


class Bound(StrEnum):
    """What is good enough."""

    AT_MOST = "at most"
    AT_LEAST = "at least"
    AT_LEAST_OR_OFF = "0 or at least"
    EXACTLY = "exactly"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key below `charon`; `why` tells what happens otherwise."""

    key: str
    default: str
    bound: Bound
    wanted: str
    why: str
    otherwise: Verdict = Verdict.WARNING

    def holds(self, value: str) -> bool:
        """Whether a value is good enough."""
        if self.bound is Bound.EXACTLY:
            return _flag(value) is _flag(self.wanted)
        has, wanted = _whole(value) or 0, _whole(self.wanted) or 0
        if self.bound is Bound.AT_MOST:
            return has <= wanted
        return has >= wanted or (self.bound is Bound.AT_LEAST_OR_OFF and has == 0)

    def readable(self, value: str) -> bool:
        """Whether charon takes it for a value at all."""
        parsed = _flag(value) if self.bound is Bound.EXACTLY else _whole(value)
        return parsed is not None


SETTINGS: Final = (
    Setting(
        "retransmit_jitter",
        *("0", Bound.AT_LEAST, "20"),
        "hosts that lost one switch together ask again in step",
    ),
    Setting(
        "half_open_timeout",
        *("30", Bound.AT_MOST, "10"),
        "half-open IKE_SAs outlive the peers that began them",
    ),
    Setting(
        "cookie_threshold",
        *("30", Bound.AT_LEAST_OR_OFF, "1000"),
        "when all peers come at once, cookies cost each a round trip",
    ),
    Setting(
        "cookie_threshold_ip",
        *("3", Bound.AT_LEAST_OR_OFF, "20"),
        "a peer that comes back costs itself cookies",
    ),
    Setting(
        "block_threshold",
        *("5", Bound.AT_LEAST_OR_OFF, "40"),
        "a peer with so many half-open IKE_SAs is turned away",
    ),
    Setting(
        "ikesa_table_size",
        *("1", Bound.AT_LEAST, "1024"),
        "looking an IKE_SA up walks over all of them: slow with hundreds of peers",
    ),
    Setting(
        "ikesa_table_segments",
        *("1", Bound.AT_LEAST, "16"),
        "all threads wait for one lock: slow with hundreds of peers",
    ),
    Setting(
        "replay_window",
        *("32", Bound.AT_LEAST, "1024"),
        "CHILD_SAs that do not say drop honest packets that several queues put out of order",
    ),
    Setting(
        "make_before_break",
        *("yes", Bound.EXACTLY, "yes"),
        "reauthentication deletes the old SAs before the new ones are there",
    ),
    Setting(
        "install_routes",
        *("yes", Bound.EXACTLY, "no"),
        "charon installs routes, which transport mode does not need",
    ),
    Setting(
        "install_virtual_ip",
        *("yes", Bound.EXACTLY, "no"),
        "charon installs addresses, which transport mode does not need",
    ),
    Setting(
        "reject_trusted_end_entity",
        *("no", Bound.EXACTLY, "no"),
        "charon rejects the CA as signer of its own revocation list: a revoked host gets in",
        Verdict.PROBLEM,
    ),
    Setting(
        "plugins.kernel-netlink.set_proto_port_transport_sa",
        *("no", Bound.EXACTLY, "no"),
        "SAs get selectors of their own, which tunsec refuses to send by",
        Verdict.PROBLEM,
    ),
)
THREADS: Final = Setting(
    "threads",
    *("16", Bound.AT_LEAST, "32"),
    "peers wait for a free thread when all come at once",
)
"""VICI shows how many there are."""
ACQUIRE: Final = Setting(
    "plugins.kernel-netlink.xfrm_acq_expires",
    *("165", Bound.AT_MOST, "10"),
    "a flow whose keys were lost is held for so long after it has new ones",
)
"""charon writes it into net.core.xfrm_acq_expires."""


def judge_settings(settings: Settings, daemon: str) -> list[Finding]:
    """What the files of a charon say, held against what tunsec asks."""
    unprotected = _flag(_value(settings, daemon, DOS_PROTECTION) or "") is False
    found = [
        judge_retransmission({key: _value(settings, daemon, key) for key in RETRANSMISSION}),
        *(
            judge(setting, _value(settings, daemon, setting.key))
            for setting in SETTINGS
            if not (unprotected and setting.bound is Bound.AT_LEAST_OR_OFF)
        ),
    ]
    wrong = [finding for finding in found if finding is not None]
    return wrong or [ok(CHARON, "settings", f"as {DROP_IN} has them, or better")]


def judge(setting: Setting, value: str | None, whence: str = "set so") -> Finding | None:
    """A finding when a value (None: not set) is not good enough."""
    effective = setting.default
    if value is not None and setting.readable(value):
        effective = value
    elif value is None:
        whence = "charon's default"
    else:
        whence = f"charon's default, as {value!r} is no value for it"
    if setting.holds(effective):
        return None
    name = setting.key.rpartition(".")[2]
    found = f"{name} is {effective} ({whence}): {setting.why}"
    remedy = f"charon.{setting.key} = {setting.wanted}, as in {DROP_IN}, and restart charon"
    return Finding(CHARON, "settings", setting.otherwise, found, remedy)


def judge_retransmission(values: Mapping[str, str | None]) -> Finding | None:
    """A finding when a peer that does not answer is given up later than tunsec counts on."""
    span = gives_up_after(values)
    if span <= GIVES_UP_AFTER:
        return None
    found = f"a peer that does not answer is given up after {span:.3g} s (retransmit_*)"
    remedy = (
        f"retransmit_tries, _timeout and _base as in {DROP_IN}, and restart charon; "
        "else dead_after in the policy does not hold"
    )
    return Finding(CHARON, "settings", Verdict.WARNING, found, remedy)


def gives_up_after(values: Mapping[str, str | None]) -> Seconds:
    """The sum of all waits, without jitter (task_manager.c, retransmission_timeout_total)."""
    tries, limit = (_effective(values, key, _whole) for key in (TRIES, LIMIT))
    timeout, base = (_effective(values, key, _real) for key in (TIMEOUT, BASE))
    total = 0.0
    for turn in range(int(tries) + 1):
        wait = timeout * base**turn
        total += min(wait, limit) if limit else wait
        if total > NEVER:
            break
    return Seconds(total)


def _effective(
    values: Mapping[str, str | None], key: str, parse: Callable[[str], float | None]
) -> float:
    """What is set, else charon's default."""
    value = values.get(key)
    parsed = None if value is None else parse(value)
    return float(RETRANSMISSION[key]) if parsed is None else parsed


def _value(settings: Settings, daemon: str, key: str) -> str | None:
    """charon-systemd has a section of its own, and others behind it (library.c)."""
    for section in (daemon, "charon", "libstrongswan"):
        value = settings.value(f"{section}.{key}")
        if value is not None:
            return value
    return None


def _flag(text: str) -> bool | None:
    """settings_value_as_bool."""
    word = text.lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _whole(text: str) -> int | None:
    """settings_value_as_int: no unit, no fraction."""
    try:
        return int(text, 16 if text.startswith("0x") else 10)
    except ValueError:
        return None


def _real(text: str) -> float | None:
    """settings_value_as_double."""
    try:
        return float(text)
    except ValueError:
        return None
