"""How fast this CPU does each AEAD, measured in the kernel through AF_ALG, once per boot.

The kernel's choice of implementation decides, not the CPU's name: the same request goes through the
crypto API that ESP uses. 16 KiB a request is near the 64 KiB that ESP sees with GSO and far above
the cost of the system call.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

BLOCK_BYTES: Final = 16 * 1024
ROUND: Final = Seconds(0.02)
ROUNDS: Final = 3
"""Together 60 ms for each AEAD; the best round counts, for others only steal time."""
AAD_BYTES: Final = 8
"""SPI and sequence number (RFC 4106 section 5)."""
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
CACHE_NAME: Final = "aead-speed.json"
REMEDY: Final = (
    "build the kernel with CONFIG_CRYPTO_USER_API_AEAD or `modprobe algif_aead`, "
    "or name the AEAD in the policy instead of `auto`"
)


def aead_speeds(run: Path) -> tuple[AeadSpeed, ...]:
    """The AEADs this kernel has and their speeds, ordered by name; from the file of this boot in
    `run` where there is one.

    Blocks for up to 0.2 s when it measures. Raises Unavailable when nothing can be measured.
    """
    boot = BOOT_ID.read_text().strip()
    known = _cached(run / CACHE_NAME, boot)
    if known is not None:
        return known
    speeds = measure(Aead)
    _remember(run / CACHE_NAME, boot, speeds)
    return speeds


def measure(aeads: Iterable[Aead]) -> tuple[AeadSpeed, ...]:
    """Measure now; an AEAD that the kernel lacks is left out. Raises Unavailable."""
    speeds = [
        AeadSpeed(aead, speed)
        for aead in sorted(aeads, key=lambda aead: aead.value)
        if (speed := _measure(aead)) is not None
    ]
    if not speeds:
        raise Unavailable(f"the kernel does no AEAD for user space (AF_ALG): {REMEDY}")
    return tuple(speeds)


def _measure(aead: Aead) -> int | None:
    """Bytes per second, or None when the kernel lacks it."""
    try:
        algorithm = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise Unavailable(f"no AF_ALG sockets ({error.strerror}): {REMEDY}") from None
    with algorithm:
        try:
            algorithm.bind(("aead", aead.af_alg_name))
            # A key that protects nothing: only the time counts.
            algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, bytes(range(aead.key_bytes)))
            algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, TAG_BYTES)
            operation, _ = algorithm.accept()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                return None
            raise Unavailable(f"measuring {aead}: {error.strerror}") from None
        with operation:
            try:
                return int(max(_round(operation) for _ in range(ROUNDS)))
            except OSError as error:
                raise Unavailable(f"measuring {aead}: {error.strerror}") from None


def _round(operation: socket.socket) -> float:
    """Bytes per second of one round."""
    plain = bytes(AAD_BYTES + BLOCK_BYTES)
    nonce = bytes(NONCE_BYTES)
    begun = time.perf_counter()
    done = 0
    while True:
        operation.sendmsg_afalg([plain], op=socket.ALG_OP_ENCRYPT, iv=nonce, assoclen=AAD_BYTES)
        operation.recv(len(plain) + TAG_BYTES)
        done += BLOCK_BYTES
        spent = time.perf_counter() - begun
        if spent >= ROUND:
            return done / spent


def _cached(path: Path, boot: str) -> tuple[AeadSpeed, ...] | None:
    """The figures of this boot; None when there are none, or none that can be read."""
    try:
        document = json.loads(path.read_bytes())
        if document["boot_id"] != boot:
            return None
        speeds = tuple(
            AeadSpeed(Aead(name), int(speed))
            for name, speed in document["bytes_per_second"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not speeds or any(speed.bytes_per_second <= 0 for speed in speeds):
        return None
    return tuple(sorted(speeds, key=lambda speed: speed.aead.value))


def _remember(path: Path, boot: str, speeds: tuple[AeadSpeed, ...]) -> None:
    """Keep the figures; that they cannot be kept costs a measurement next time and nothing else."""
    document = {
        "boot_id": boot,
        "bytes_per_second": {speed.aead.value: speed.bytes_per_second for speed in speeds},
    }
    fresh = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        fresh.write_text(json.dumps(document))
        fresh.replace(path)
