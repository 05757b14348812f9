"""Exit statuses of the `tunsec` command."""

from enum import IntEnum


class Exit(IntEnum):
    """What a script may rely on."""

    OK = 0
    NO = 1
    """The answer is no: not protected, problems found, policy not taken."""
    USAGE = 2
    AWAY = 3
    """tunsecd is not there, or cannot answer now."""
    DENIED = 4
    REFUSED = 5
    """The kernel or tunsecd said no to the request itself."""
    BROKEN = 6
    """tunsecd and this command do not understand each other, or tunsecd has a bug."""
