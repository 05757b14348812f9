"""Records that are refused: why, and the memory that logs each of them once."""

import hashlib
from collections import Counter, OrderedDict
from enum import StrEnum
from typing import Final

from tunsec.model.errors import Refused

REMEMBERED: Final = 16_384
"""Refused records kept in mind; whoever can write to the directory cannot make it grow further."""


class RefusalReason(StrEnum):
    """Why a record of the directory is not believed."""

    OVERSIZED = "oversized"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    UNKNOWN_TYPE = "unknown-type"
    BAD_NAME = "bad-name"
    NOT_A_FILE = "not-a-file"
    UNREADABLE = "unreadable"
    WRONG_NAME = "wrong-name"
    UNKNOWN_HOST = "unknown-host"
    UNKNOWN_CA = "unknown-ca"
    BAD_CERTIFICATE = "bad-certificate"
    EXPIRED_CERTIFICATE = "expired-certificate"
    NOT_YET_VALID = "not-yet-valid"
    REVOKED_CERTIFICATE = "revoked-certificate"
    FORGED = "forged"
    FOREIGN_ADDRESS = "foreign-address"
    NOT_AN_OWNER = "not-an-owner"
    EXPIRED_OFFER = "expired-offer"
    TOO_LONG_LIVED = "too-long-lived"
    STALE = "stale"
    REPLAYED = "replayed"
    UNKNOWN_OFFER = "unknown-offer"
    PPK_MISMATCH = "ppk-mismatch"
    WEAK_KEY = "weak-key"


class RecordRefused(Refused):
    """A record is not believed; nothing that was believed before is lost.

    `reason` is for programs and counters, `path` is the record's place in the directory, `detail`
    says what was found and what was expected.
    """

    reason: RefusalReason

    def __init__(self, reason: RefusalReason, path: str, detail: str) -> None:
        super().__init__(f"record {path}", reason=f"{reason}: {detail}")
        self.reason = reason
        self.path = path
        self.detail = detail


class Refusals:
    """Counts refused records, and knows which of them were told already."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, bytes], RefusalReason] = OrderedDict()
        self._counts: Counter[RefusalReason] = Counter()

    def note(self, refused: RecordRefused, body: bytes) -> bool:
        """Count a refusal; True when this content under this path was not refused so before.

        A record is counted once however often it is read again, and anew when it is refused for
        another reason (it may expire while it is stale).
        """
        key = (refused.path, hashlib.sha256(body).digest())
        known = self._seen.pop(key, None)
        self._seen[key] = refused.reason
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        if known is refused.reason:
            return False
        self._counts[refused.reason] += 1
        return True

    @property
    def counts(self) -> dict[RefusalReason, int]:
        """Refused records by reason, since the daemon started."""
        return dict(self._counts)

    @property
    def total(self) -> int:
        """All of them."""
        return self._counts.total()
