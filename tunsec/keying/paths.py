"""Where records lie in the directory, and which names may be part of a path."""

import re
from dataclasses import dataclass
from typing import Final

from tunsec.keying.refusals import RecordRefused, RefusalReason
from tunsec.model.names import HostName

HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
"""DNS labels and dots (RFC 1123 section 2.1), and underscores, which many hosts bear. Never a
slash, never a leading dot: a host name is one component of a path."""

TOKEN_NAME: Final = re.compile(r".+\.[1-9][0-9]{0,17}", re.DOTALL)
"""A service's name and a fencing token without leading zeros: one name for one token."""

OFFER_LIMIT: Final = 64 * 1024
CLAIM_LIMIT: Final = 64 * 1024
CONFIRMATION_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of a whole record as it lies in the directory."""


@dataclass(frozen=True, slots=True)
class OfferPath:
    """`offers/HOST`."""

    host: HostName

    def __str__(self) -> str:
        return f"offers/{self.host}"

    @property
    def limit(self) -> int:
        """Largest record, in bytes."""
        return OFFER_LIMIT


@dataclass(frozen=True, slots=True)
class ConfirmationPath:
    """`confirmations/READER/AUTHOR`: a host finds all that concerns it in one folder."""

    reader: HostName
    author: HostName

    def __str__(self) -> str:
        return f"confirmations/{self.reader}/{self.author}"

    @property
    def limit(self) -> int:
        """Largest record, in bytes."""
        return CONFIRMATION_LIMIT


@dataclass(frozen=True, slots=True)
class ClaimPath:
    """`claims/SERVICE.TOKEN`: of two hosts that claim by one token only one can make it."""

    service: str
    token: int

    def __str__(self) -> str:
        return f"claims/{self.service}.{self.token}"

    @property
    def limit(self) -> int:
        """Largest record, in bytes."""
        return CLAIM_LIMIT


def is_host_name(name: str) -> bool:
    """Whether a name may be a host's, and a component of a path."""
    return HOST_NAME.fullmatch(name) is not None and ".." not in name


def parse_path(path: str) -> OfferPath | ConfirmationPath | ClaimPath:
    """The path of a record; raises RecordRefused (bad-name) for anything else."""
    match path.split("/"):
        case ["offers", host] if is_host_name(host):
            return OfferPath(HostName(host))
        case ["confirmations", reader, author] if is_host_name(reader) and is_host_name(author):
            return ConfirmationPath(HostName(reader), HostName(author))
        case ["claims", name] if TOKEN_NAME.fullmatch(name):
            service, _, token = name.rpartition(".")
            if is_host_name(service):
                return ClaimPath(service, int(token))
    raise RecordRefused(
        RefusalReason.BAD_NAME,
        ascii(path[:300])[1:-1],  # it will be logged: no control characters
        "no record can have this name (offers/HOST, confirmations/READER/AUTHOR or "
        "claims/SERVICE.TOKEN)",
    )
