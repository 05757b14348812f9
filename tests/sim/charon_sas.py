"""IKE_SAs and CHILD_SAs as one charon of a simulation holds them, and as it tells of them."""

import hashlib
import ipaddress
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.sim.charon_net import IkeNetwork, Message
from tests.sim.directory import Later
from tests.sim.kernel import FakeKernel
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.ike import IkeChild, IkeConnection
from tunsec.model.ike_sa import (
    ChildSa,
    ChildSaKeyed,
    ChildState,
    IkeEvent,
    IkeSa,
    IkeState,
    Traffic,
)
from tunsec.model.names import Address, Spi
from tunsec.model.sa import Lifetimes, Replay, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import Selector
from tunsec.model.step import AddSa, RemoveSa

RESERVED_SECONDS = 10
"""net.core.xfrm_acq_expires, as systemd/charon-tunsec.conf has it."""


@dataclass(slots=True)
class Surroundings:
    """What a charon stands in."""

    net: IkeNetwork
    kernel: Callable[[], FakeKernel]
    """Its host's: another one after a reboot."""
    dice: random.Random
    now: Callable[[], Instant]
    later: Later
    tell: Callable[[IkeEvent], None] = lambda event: None
    lets_go: Callable[[Sequence[SaId]], None] = lambda ids: None
    """Told of inbound SAs that go with their IKE_SA, whatever the peer still sends on them."""
    careless: bool = False
    """It passes over an option: SAs get 32-bit sequence numbers whatever was asked for."""


@dataclass(slots=True)
class Loaded:
    """A connection. IKE_SAs keep the one that they were made with, also when it was replaced."""

    connection: IkeConnection

    def equals(self, other: IkeConnection) -> bool:
        """Whether an IKE_SA of one serves the other; their children do not count."""
        return replace(self.connection, children=()) == replace(other, children=())

    def by_label(self, label: str) -> IkeChild | None:
        """The child of this label."""
        return next((one for one in self.connection.children if one.label == label), None)


@dataclass(slots=True, eq=False)
class ChildEnd:
    """A CHILD_SA at one end."""

    id: int
    config: IkeChild
    aead: Aead
    spi_in: Spi
    spi_out: Spi
    since: Instant
    esn: bool
    state: ChildState = ChildState.INSTALLED

    def ids(self, ike: "IkeEnd") -> tuple[SaId, SaId]:
        """Its SAs in the kernel: inbound, outbound."""
        return (
            SaId(ike.local, self.spi_in, mark=self.config.mark_in),
            SaId(ike.remote, self.spi_out, mark=self.config.mark_out),
        )


# What is to be done on an IKE_SA, in the order in which charon takes it up (task_manager_v2.c)


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete the CHILD_SA on which we receive with `spi`."""

    spi: Spi


@dataclass(frozen=True, slots=True)
class Make:
    """Make a CHILD_SA."""

    config: IkeChild


@dataclass(frozen=True, slots=True)
class Renew:
    """Rekey it."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask whether the peer is there."""


Task = Drop | Make | Renew | Look
ORDER = (Drop, Make, Renew, Look)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task in the queue, not to be taken up before `until`."""

    task: Task
    until: Instant


@dataclass(slots=True, eq=False)
class Asked:
    """The one request that is under way, and what for."""

    message: Message
    task: Task


@dataclass(slots=True, eq=False)
class IkeEnd:
    """An IKE_SA at one end."""

    id: int
    loaded: Loaded
    initiator: bool
    local: Address
    remote: Address
    initiator_spi: int
    responder_spi: int
    state: IkeState
    since: Instant
    heard_at: Instant
    children: list[ChildEnd] = field(default_factory=list)
    tasks: list[Waiting] = field(default_factory=list)
    asked: Asked | None = None
    reserved: Spi | None = None
    """The inbound SPI of the CHILD_SA that is being made."""
    sent: int = 0
    """Number of our next request."""
    expected: int = 0
    """Number of the peer's next request."""
    answered: Message | None = None
    """The last answer, for a peer that asks again."""

    @property
    def own_spi(self) -> int:
        """The SPI by which the peer's messages find it."""
        return self.initiator_spi if self.initiator else self.responder_spi

    @property
    def usable(self) -> bool:
        """Whether charon would take it for another CHILD_SA (checkout_by_config). The responder
        knows its configuration only once the initiator has said who it is."""
        if self.state is IkeState.CONNECTING:
            return self.initiator
        return self.state in (IkeState.ESTABLISHED, IkeState.REKEYING)

    def child(self, *, spi_in: Spi) -> ChildEnd | None:
        """The CHILD_SA on which we receive with this SPI."""
        return next((one for one in self.children if one.spi_in == spi_in), None)

    def next_task(self, now: Instant) -> Task | None:
        """Take the task whose turn it is."""
        due = [one for one in self.tasks if one.until <= now]
        first = min(due, key=lambda one: ORDER.index(type(one.task)), default=None)
        if first is None:
            return None
        self.tasks.remove(first)
        return first.task

    def tell(self, now: Instant, *, with_children: bool = False) -> IkeSa:
        """As charon tells of it: in a list with its CHILD_SAs, in events without."""
        connection = self.loaded.connection
        established = self.state not in (IkeState.CREATED, IkeState.CONNECTING)
        asked = [] if self.asked is None else [self.asked.task]
        tasks = [*asked, *(one.task for one in self.tasks)]
        return IkeSa(
            name=connection.name,
            id=self.id,
            state=self.state,
            version=2,
            initiator=self.initiator,
            local=self.local,
            remote=self.remote,
            local_identity=connection.local_identity,
            remote_identity=connection.remote_identity,
            initiator_spi=self.initiator_spi,
            responder_spi=self.responder_spi,
            algorithms=("AES_GCM_16", "PRF_HMAC_SHA2_256", "CURVE_25519"),
            ppk=connection.ppk_id is not None,
            established_for=int(now - self.since) if established else None,
            rekey_in=None,
            reauth_in=None,
            tasks=tuple(type(task).__name__.upper() for task in tasks),
            children=tuple(self.tell_child(one, now) for one in self.children)
            if with_children
            else (),
        )

    def tell_child(self, child: ChildEnd, now: Instant) -> ChildSa:
        """As charon tells of a CHILD_SA."""
        config = child.config
        unused = Traffic(volume=0, packets=0, idle_for=None)
        return ChildSa(
            name=config.name,
            id=child.id,
            reqid=config.reqid,
            state=child.state,
            mode="TRANSPORT",
            label=config.label,
            local=(f"{self.local}/32",),
            remote=(f"{self.remote}/32",),
            keyed=ChildSaKeyed(
                spi_in=child.spi_in,
                spi_out=child.spi_out,
                aead=child.aead,
                esn=child.esn,
                udp_encapsulated=False,
                key_exchanges=(),
                mark_in=config.mark_in,
                mark_out=config.mark_out,
                inbound=unused,
                outbound=unused,
                installed_for=int(now - child.since),
                rekey_in=None,
                ends_in=config.seconds.life,
            ),
        )


# The kernel


def reserve(kernel: FakeKernel, ike: IkeEnd, config: IkeChild, spi: Spi) -> None:
    """Have the kernel keep an SPI for an inbound SA."""
    life = Lifetimes(hard_seconds=RESERVED_SECONDS)
    kernel.reserve(Sa(SaId(ike.local, spi), ike.remote, config.reqid, None, lifetimes=life))


def give_back(kernel: FakeKernel, ike: IkeEnd, spi: Spi) -> None:
    """The SPI is not needed after all."""
    kernel.by_hand(RemoveSa(SaId(ike.local, spi)))


def install(kernel: FakeKernel, ike: IkeEnd, child: ChildEnd, nonces: bytes) -> bool:
    """Both SAs, the inbound one first, as charon does; False when its SPI is reserved no more."""
    inbound, outbound = child.ids(ike)
    reserved = SaId(ike.local, child.spi_in)
    sa = _sa(child, inbound, ike.remote, nonces, SaDirection.INBOUND)
    if kernel.key_reserved(reserved, sa) is not None:
        return False
    sa = _sa(child, outbound, ike.local, nonces, SaDirection.OUTBOUND)
    kernel.by_hand(AddSa(sa, SaDirection.OUTBOUND))
    return True


def remove(kernel: FakeKernel, ike: IkeEnd, child: ChildEnd) -> None:
    """Both SAs, the inbound one first; that one is gone already is no error."""
    for sa_id in child.ids(ike):
        kernel.by_hand(RemoveSa(sa_id))


def _sa(child: ChildEnd, sa_id: SaId, src: Address, nonces: bytes, way: SaDirection) -> Sa:
    config, aead = child.config, child.aead
    inbound = way is SaDirection.INBOUND
    key = hashlib.shake_256(nonces + sa_id.dst.packed + sa_id.spi.to_bytes(4))
    return Sa(
        sa_id,
        src,
        config.reqid,
        aead,
        Secret(key.digest(aead.key_bytes + aead.salt_bytes)),
        selector=Selector(ipaddress.ip_network(src), ipaddress.ip_network(sa_id.dst)),
        lifetimes=Lifetimes(
            hard_seconds=config.seconds.life,
            hard_bytes=config.volume.life,
            hard_packets=config.packets.life,
        ),
        replay=Replay(window=config.replay_window if inbound else 0, esn=child.esn),
        output_mark=config.set_mark_in if inbound else config.set_mark_out,
        direction=way,
    )
