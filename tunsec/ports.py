"""What the daemon needs of the outside, as Protocols. Adapters and the simulation's fakes fulfil
them, and the same contract tests run on both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunsec.model.aead import AeadSpeed as AeadSpeed
from tunsec.model.clock import Instant, WallTime
from tunsec.model.connection import Connection, Syn
from tunsec.model.errors import Refused, TunsecError
from tunsec.model.guard import Guard, GuardDrops, VniMarks
from tunsec.model.ike import IkeConnection
from tunsec.model.ike_sa import IkeRef, IkeSa
from tunsec.model.names import Address
from tunsec.model.overlay import OverlayDevice as OverlayDevice
from tunsec.model.rdma import RdmaDevice as RdmaDevice
from tunsec.model.sa import Sa, SaId
from tunsec.model.secret import Secret
from tunsec.model.sp import Sp, SpId
from tunsec.model.step import Step
from tunsec.model.underlay import Underlay


class Kernel(Protocol):
    """The SAD and SPD of this network namespace."""

    def apply(self, steps: Sequence[Step]) -> list[Refused | None]:
        """Carry out steps in order, many messages a send; one answer per step, None is success.

        A refused step does not stop the later ones. Raises Unavailable when the kernel cannot be
        asked at all.
        """
        ...

    def sas(self) -> dict[SaId, Sa]:
        """Every SA, ours and foreign, without keys."""
        ...

    def sps(self) -> dict[SpId, Sp]:
        """Every SP, ours and foreign, the one last written first; per-socket policies left out."""
        ...

    def sa(self, sa_id: SaId) -> Sa | None:
        """One SA, or None."""
        ...

    def sp(self, sp_id: SpId) -> Sp | None:
        """One SP, or None."""
        ...


class GuardTable(Protocol):
    """The nftables table `tunsec`."""

    def put(self, guard: Guard) -> None:
        """Replace the table in one transaction, counters kept; raises Refused."""
        ...

    def intact(self, guard: Guard) -> bool:
        """Whether the kernel holds exactly what `put(guard)` would make."""
        ...

    def drops(self) -> dict[str, GuardDrops]:
        """Dropped packets by flow name."""
        ...

    def remove(self) -> None:
        """Delete the table; that it is not there is no error."""
        ...


class Sockets(Protocol):
    """Transport connections of this network namespace."""

    def connections(self, port: int) -> tuple[Connection, ...]:
        """All TCP connections with this port at either end; raises Refused or Unavailable."""
        ...


class SynGate(Protocol):
    """Where the guard table holds new connections of gated flows."""

    def let(self, syn: Syn) -> None:
        """A held SYN goes on: an outbound one by the SP of now."""
        ...

    def drop(self, syn: Syn) -> None:
        """A held SYN is dropped."""
        ...


class VniMarking(Protocol):
    """Marks by VNI on what `external` tunnel devices send, beside the guard table."""

    def put(self, wanted: Sequence[VniMarks]) -> None:
        """Give each device just these marks; raises Refused or Unavailable once all were tried."""
        ...

    def drift(self, wanted: Sequence[VniMarks]) -> tuple[str, ...]:
        """What stands differently from what `put` would make, one line each."""
        ...


class Links(Protocol):
    """Devices and addresses of this network namespace."""

    def addresses(self) -> Mapping[Address, str]:
        """Addresses that this host holds now, each with its device."""
        ...

    def overlay_devices(self) -> tuple[OverlayDevice, ...]:
        """Tunnel devices that this host has now."""
        ...

    def underlay_mtu(self, to: Address) -> int | None:
        """MTU of the way to an address; None without a way."""
        ...

    def underlay(self, local: Address, remote: Address) -> Underlay | None:
        """The device by which packets from one address to another leave; None without a way."""
        ...


class Rdma(Protocol):
    """RDMA devices of this host."""

    def devices(self) -> tuple[RdmaDevice, ...]:
        """Those that this host has now; raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """A signed or authenticated record as the directory holds it; nothing in it is trusted yet."""

    path: str
    """`offers/HOST`, `confirmations/READER/AUTHOR` or `claims/SERVICE.TOKEN`."""
    body: bytes


class Directory(Protocol):
    """Where hosts publish. Trusted for availability only; every call answers later, by callback."""

    def publish(
        self, records: Sequence[Record], *, done: Callable[[Exception | None], None]
    ) -> None:
        """Write records, each atomically; `done(None)` when they are durable, else the error."""
        ...

    def withdraw(self, paths: Sequence[str], *, done: Callable[[Exception | None], None]) -> None:
        """Delete records; that one is not there is no error."""
        ...

    def claim(
        self, service: str, token: int, body: bytes, *, done: Callable[[int | Exception], None]
    ) -> None:
        """Write `claims/SERVICE.TOKEN` if neither it nor one of a higher token is there.

        `done(0)` when it is durable, and then those of lower tokens go; else the highest token that
        is there, or the error: then it may be there or not.
        """
        ...


Done = Callable[[TunsecError | None], None]
"""Called once, later: None for success."""


class Ike(Protocol):
    """charon. Commands are carried out one after the other; each answers later, by callback, with
    Unavailable (no charon, no answer) or Refused (its words) when it failed."""

    def load(self, connection: IkeConnection, *, done: Done) -> None:
        """Load a connection, or replace the one of its name; SAs that are up stay as they are."""
        ...

    def unload(self, name: str, *, done: Done) -> None:
        """Forget a connection of ours; its SAs stay. That it is not there is an error."""
        ...

    def connections(self, *, done: Callable[[Sequence[str] | TunsecError], None]) -> None:
        """Names of our connections, also of an earlier life."""
        ...

    def initiate(self, connection: str, child: str, *, done: Done) -> None:
        """Begin to make a CHILD_SA, and an IKE_SA before it where there is none of just this
        configuration; events tell what becomes of it."""
        ...

    def sas(self, *, done: Callable[[Sequence[IkeSa] | TunsecError], None]) -> None:
        """All IKE_SAs with their CHILD_SAs, ours and foreign."""
        ...

    def terminate_child(self, ike: IkeRef, child_id: int, *, done: Done) -> None:
        """Begin to delete a CHILD_SA."""
        ...

    def terminate_ike(self, ike: IkeRef, *, done: Done) -> None:
        """Delete an IKE_SA with its CHILD_SAs, whether the peer answers or not."""
        ...


class Clock(Protocol):
    """Time."""

    def now(self) -> Instant:
        """CLOCK_BOOTTIME."""
        ...

    def wall(self) -> WallTime:
        """Unix time."""
        ...


class Entropy(Protocol):
    """Randomness."""

    def spi(self) -> int:
        """A random SPI in MIN_SPI..MAX_SPI."""
        ...

    def private_value(self) -> Secret:
        """32 random bytes from the operating system, for an X25519 private value."""
        ...

    def token(self, count: int) -> bytes:
        """Random bytes for boot ids and nonces, never for keys."""
        ...

    def fraction(self) -> float:
        """Uniform in [0, 1), for jitter."""
        ...
