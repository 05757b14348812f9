"""AEAD speed through kernel TLS: the same crypto API as ESP, where AF_ALG is closed.

A TLS 1.3 transmit key is put on a TCP connection over loopback, and whole records are sent. What
the connection costs without TLS is measured first and taken off.
"""

import errno
import socket
import struct
import time
from typing import Final

from tunsec.adapters.aead_af_alg import stands_still
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

TCP_ULP: Final = 31  # include/uapi/linux/tcp.h
SOL_TLS: Final = 282  # include/linux/socket.h
TLS_TX: Final = 1  # include/uapi/linux/tls.h, and all below
TLS_1_3: Final = 0x0304
CIPHERS: Final = {
    # cipher type; bytes of iv, key, salt: struct tls12_crypto_info_*
    Aead.AES_128_GCM: (51, 8, 16, 4),
    Aead.AES_256_GCM: (52, 8, 32, 4),
    Aead.CHACHA20_POLY1305: (54, 12, 32, 0),
}
RECORD_SEQ_BYTES: Final = 8
RECORD_OVERHEAD: Final = 22
"""Header, inner content type and tag of a TLS 1.3 record (RFC 8446 section 5.2)."""
MAX_RECORD: Final = 16 * 1024
WAIT: Final = Seconds(2.0)
SHARE_LEFT: Final = 0.1
"""However noisy the measuring, encryption costs at least this share of the time."""
LACKS: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP})


def why_not() -> str | None:
    """Why kernel TLS cannot measure here; None when it can be tried."""
    try:
        left, right = _connection()
    except OSError as error:
        return f"no TCP over loopback ({error.strerror})"
    with left, right:
        try:
            left.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            return f"no kernel TLS ({error.strerror})"
    return None


class KernelTls:
    """Encrypts records of one size with one AEAD; raises LookupError when the kernel lacks it."""

    def __init__(self, aead: Aead, block_bytes: int) -> None:
        if block_bytes > MAX_RECORD:
            raise ValueError(f"a record holds {MAX_RECORD} bytes at most, not {block_bytes}")
        self._plain = bytes(block_bytes)
        self._bare_spent = self._sealed_spent = float("inf")
        try:
            self._bare = _connection()
            self._left, self._right = _connection()
            self._left.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            raise Unavailable(f"measuring {aead}: {error.strerror}") from None
        try:
            self._left.setsockopt(SOL_TLS, TLS_TX, _crypto_info(aead))
        except OSError as error:
            self.close()
            if error.errno in LACKS:
                raise LookupError(aead) from None
            raise Unavailable(f"measuring {aead}: {error.strerror}") from None

    def turn(self, span: Seconds) -> None:
        """Measure for about this span, half of it without TLS."""
        half = Seconds(span / 2)
        self._bare_spent = min(self._bare_spent, self._spent_per_block(self._bare, half))
        with_tls = (self._left, self._right)
        spent = self._spent_per_block(with_tls, half, overhead=RECORD_OVERHEAD)
        self._sealed_spent = min(self._sealed_spent, spent)

    def best(self) -> float:
        """Bytes per second of encryption alone, from the best turns with and without it."""
        spent = self._sealed_spent
        if not spent:
            return 0.0
        return len(self._plain) / max(spent - self._bare_spent, spent * SHARE_LEFT)

    def _spent_per_block(
        self, ends: tuple[socket.socket, socket.socket], span: Seconds, *, overhead: int = 0
    ) -> float:
        left, right = ends
        room = bytearray(len(self._plain) + overhead)
        begun = time.perf_counter()
        blocks = 0
        while (spent := time.perf_counter() - begun) < span or not blocks:
            if stands_still(blocks * len(self._plain), spent):
                return 0.0
            left.sendall(self._plain)
            view = memoryview(room)
            while view:
                view = view[right.recv_into(view) :]
            blocks += 1
        return spent / blocks

    def close(self) -> None:
        """Give the sockets back."""
        for end in (*self._bare, self._left, self._right):
            end.close()


def _connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        server.settimeout(WAIT)
        left = socket.create_connection(server.getsockname(), timeout=WAIT)
        try:
            right, peer = server.accept()
            if peer != left.getsockname():  # another local user was faster
                right.close()
                raise OSError(errno.ECONNABORTED, "another connection came in between")
        except OSError:
            left.close()
            raise
    right.settimeout(WAIT)
    for end in (left, right):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return left, right


def _crypto_info(aead: Aead) -> bytes:
    """Keys that protect nothing: only the time counts."""
    cipher, iv_bytes, key_bytes, salt_bytes = CIPHERS[aead]
    return struct.pack(
        f"=HH{iv_bytes}s{key_bytes}s{salt_bytes}s{RECORD_SEQ_BYTES}s",
        TLS_1_3,
        cipher,
        bytes(iv_bytes),
        bytes(range(key_bytes)),
        bytes(salt_bytes),
        bytes(RECORD_SEQ_BYTES),
    )
