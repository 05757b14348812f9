"""How fast this kernel does each AEAD, measured once per boot.

Not guessed from the CPU's name: the kernel's own implementation decides, so the kernel is asked,
through AF_ALG or, where that is closed, through kernel TLS. 16 KiB a request is near the 64 KiB
that ESP sees with GSO and far above the cost of a system call.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final, Protocol

from tunsec.adapters import aead_af_alg, aead_ktls
from tunsec.adapters.aead_af_alg import AfAlg
from tunsec.adapters.aead_ktls import KernelTls
from tunsec.adapters.boot_file import read_boot_file, write_boot_file
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.clock import Seconds
from tunsec.model.errors import Unavailable

BLOCK_BYTES: Final = 16 * 1024
TURN: Final = Seconds(0.005)
TURNS: Final = 12
"""60 ms for each AEAD. The best turn counts, as whatever else runs only steals time, and the AEADs
take turns, so that it steals from all of them."""
CACHE_NAME: Final = "aead-speed.json"
REMEDY: Final = (
    "modprobe tls, or modprobe algif_aead with sysctl crypto.af_alg_restrict=0, "
    "or name the AEAD in the policy instead of `auto`"
)


class Meter(Protocol):
    """One AEAD ready to be measured."""

    def turn(self, span: Seconds) -> None:
        """Measure for about this span."""
        ...

    def best(self) -> float:
        """Bytes per second in the best turn."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def aead_speeds(run: Path) -> tuple[AeadSpeed, ...]:
    """The AEADs this kernel has and their speeds, ordered by name.

    From the file of this boot in the folder `run` where there is one; else measured, which blocks
    for about 0.2 s. Raises Unavailable when nothing can be measured.
    """
    known = _cached(read_boot_file(run / CACHE_NAME))
    if known is not None:
        return known
    speeds = measure(Aead)
    kept = {speed.aead.value: speed.bytes_per_second for speed in speeds}
    write_boot_file(run / CACHE_NAME, {"bytes_per_second": kept})
    return speeds


def measure(aeads: Iterable[Aead]) -> tuple[AeadSpeed, ...]:
    """Measure now; an AEAD that the kernel lacks is left out. Raises Unavailable."""
    wanted = sorted(aeads, key=lambda aead: aead.value)
    reasons = []
    ways: tuple[tuple[Callable[[], str | None], Callable[[Aead, int], Meter]], ...] = (
        (aead_af_alg.why_not, AfAlg),
        (aead_ktls.why_not, KernelTls),
    )
    for why_not, meter in ways:
        reason = why_not()
        if reason is None:
            speeds = _measure(wanted, meter)
            if speeds:
                return speeds
            reason = f"the kernel has none of {', '.join(wanted)}"
        reasons.append(reason)
    raise Unavailable(f"AEADs cannot be measured: {'; '.join(reasons)} ({REMEDY})")


def _measure(aeads: Iterable[Aead], meter: Callable[[Aead, int], Meter]) -> tuple[AeadSpeed, ...]:
    meters: dict[Aead, Meter] = {}
    with ExitStack() as opened:
        for aead in aeads:
            with suppress(LookupError):
                meters[aead] = opened.enter_context(closing(meter(aead, BLOCK_BYTES)))
        try:
            for _ in range(TURNS):
                for ready in meters.values():
                    ready.turn(TURN)
        except OSError as error:
            raise Unavailable(f"measuring AEADs: {error.strerror}") from None
    return tuple(AeadSpeed(aead, int(ready.best())) for aead, ready in meters.items())


def _cached(document: dict[str, object]) -> tuple[AeadSpeed, ...] | None:
    """The figures of this boot; None when there are none, or none that can be read."""
    figures = document.get("bytes_per_second")
    if not isinstance(figures, dict):
        return None
    try:
        speeds = tuple(AeadSpeed(Aead(name), int(speed)) for name, speed in figures.items())
    except (ValueError, TypeError):
        return None
    if not speeds or any(speed.bytes_per_second <= 0 for speed in speeds):
        return None
    return tuple(sorted(speeds, key=lambda speed: speed.aead.value))
