"""The host's clock and randomness."""

import os
import time

from tunsec.model.clock import Instant, WallTime
from tunsec.model.names import MAX_SPI, MIN_SPI
from tunsec.model.secret import Secret


class SystemClock:
    """ports.Clock."""

    def now(self) -> Instant:
        """CLOCK_BOOTTIME: goes on during suspend, is never stepped."""
        return Instant(time.clock_gettime(time.CLOCK_BOOTTIME))

    def wall(self) -> WallTime:
        """Unix time."""
        return WallTime(time.time())


class SystemEntropy:
    """ports.Entropy from getrandom(2)."""

    def spi(self) -> int:
        """A random SPI in MIN_SPI..MAX_SPI."""
        while (spi := int.from_bytes(os.urandom(4), "big")) < MIN_SPI:
            pass
        return min(spi, MAX_SPI)

    def private_value(self) -> Secret:
        """32 random bytes."""
        return Secret(os.urandom(32))

    def token(self, count: int) -> bytes:
        """Random bytes."""
        return os.urandom(count)

    def fraction(self) -> float:
        """Uniform in [0, 1)."""
        return int.from_bytes(os.urandom(7), "big") / 2**56
