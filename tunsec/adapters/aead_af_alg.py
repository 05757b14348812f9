"""AEAD speed through AF_ALG: the kernel's crypto API, asked from user space.

Linux 7.3 and newer restrict AF_ALG to a few algorithms that are not ours unless the admin lifts it
(crypto/af_alg.c, sysctl crypto.af_alg_restrict), and then answer as if the kernel lacked them.
"""

import errno
import socket
import time
from pathlib import Path
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

AAD_BYTES: Final = 8
"""SPI and sequence number (RFC 4106 section 5)."""
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
RESTRICT: Final = Path("/proc/sys/crypto/af_alg_restrict")
LACKS: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
STILL_BYTES: Final = 1 << 19
TOO_FAST: Final = 30e9
"""Bytes per second."""


def why_not() -> str | None:
    """Why AF_ALG cannot measure here; None when it can be tried."""
    try:
        level = int(RESTRICT.read_text())
    except (OSError, ValueError):
        level = 0
    if level:
        return f"AF_ALG is restricted (sysctl crypto.af_alg_restrict={level})"
    try:
        socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()
    except OSError as error:
        return f"no AF_ALG sockets ({error.strerror})"
    return None


def stands_still(done_bytes: int, spent: float) -> bool:
    """Whether the clock hardly moves while we work, as in a virtual machine's virtual time.

    Nothing encrypts this fast, with a system call every 16 KiB; and without this a turn would go
    on for minutes. User Mode Linux adds some 256 ns a look at the clock (arch/um/kernel/time.c).
    """
    return done_bytes >= STILL_BYTES and done_bytes > spent * TOO_FAST


class AfAlg:
    """Encrypts blocks of one size with one AEAD; raises LookupError when the kernel lacks it."""

    def __init__(self, aead: Aead, block_bytes: int) -> None:
        self._plain = bytes(AAD_BYTES + block_bytes)
        self._block_bytes = block_bytes
        self._best = 0.0
        with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as algorithm:
            try:
                algorithm.bind(("aead", aead.af_alg_name))
                # A key that protects nothing: only the time counts.
                key = bytes(range(aead.key_bytes))
                algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, key)
                algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, TAG_BYTES)
                self._operation, _ = algorithm.accept()
            except OSError as error:
                if error.errno in LACKS:
                    raise LookupError(aead) from None
                raise Unavailable(f"measuring {aead}: {error.strerror}") from None

    def turn(self, span: Seconds) -> None:
        """Measure for about this span."""
        nonce = bytes(NONCE_BYTES)
        begun = time.perf_counter()
        done = 0
        while (spent := time.perf_counter() - begun) < span or not done:
            if stands_still(done, spent):
                return
            self._operation.sendmsg_afalg(
                [self._plain], op=socket.ALG_OP_ENCRYPT, iv=nonce, assoclen=AAD_BYTES
            )
            self._operation.recv(len(self._plain) + TAG_BYTES)
            done += self._block_bytes
        self._best = max(self._best, done / spent)

    def best(self) -> float:
        """Bytes per second in the best turn."""
        return self._best

    def close(self) -> None:
        """Give the socket back."""
        self._operation.close()
