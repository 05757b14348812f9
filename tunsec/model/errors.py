"""Four errors, by who must act: the operator, time, the kernel or charon, us."""

from dataclasses import dataclass


class TunsecError(Exception):
    """Root of all errors that tunsec raises on purpose; any other exception is a bug."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in an operator's document."""

    where: str
    """File, line and key path: `storage.yaml:12: flows.storage.rekey.after`."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.remedy})"


class PolicyError(TunsecError):
    """The operator must act: everything wrong with the policy or its surroundings, at once."""

    def __init__(self, problems: tuple[Problem, ...] | list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Unavailable(TunsecError):
    """Time must pass: something outside is away and worth trying again."""


class Refused(TunsecError):
    """The kernel, charon or a peer said no.

    `errno` is the positive error number where there is one, `reason` the other side's own words
    (netlink extended ack, VICI errmsg).
    """

    def __init__(self, what: str, *, errno: int | None = None, reason: str = "") -> None:
        self.what = what
        self.errno = errno
        self.reason = reason
        tail = f": {reason}" if reason else ""
        super().__init__(f"{what} refused{f' (errno {errno})' if errno else ''}{tail}")


class Bug(TunsecError):
    """We must act: a state that cannot be. The daemon stops, block SPs stay."""
