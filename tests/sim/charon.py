"""A charon: the process, and what its VICI socket takes. What it does with IKE_SAs is in
charon_ike.py. Taken from docs/ike.md, the lab tests and strongSwan's sources.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tests.sim.charon_ike import IkeKeeper
from tests.sim.charon_net import IkeNetwork, Message
from tests.sim.charon_sas import Drop, IkeEnd, Loaded, Surroundings
from tests.sim.directory import Later
from tests.sim.kernel import FakeKernel
from tunsec.model.clock import Instant
from tunsec.model.errors import Refused, TunsecError, Unavailable
from tunsec.model.event import KernelEvent
from tunsec.model.ike import NAME_PREFIX, IkeConnection
from tunsec.model.ike_sa import IkeRef, IkeSa
from tunsec.model.names import Address
from tunsec.ports import Done

ANSWER_SECONDS = 5.0
"""adapters/charon.py waits so long for an answer."""
LONGEST_COMMAND = 0.01
"""Seconds until a command is carried out."""


class FakeCharon:
    """One host's charon. Implements tunsec.ports.Ike; it runs once it is started."""

    def __init__(
        self,
        *,
        net: IkeNetwork,
        addresses: Iterable[Address],
        kernel: Callable[[], FakeKernel],
        dice: random.Random,
        now: Callable[[], Instant],
        later: Later,
    ) -> None:
        self.around = Surroundings(net, kernel, dice, now, later)
        self._life: IkeKeeper | None = None
        self._waiting: list[Callable[[TunsecError | None], None]] = []
        self._command_at = 0.0
        net.charons |= dict.fromkeys(addresses, self)

    # Life

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._life is not None

    @property
    def frozen(self) -> bool:
        """Whether it is held."""
        return self._life is not None and self._life.frozen

    @property
    def loaded(self) -> dict[str, IkeConnection]:
        """Its connections by name, as the simulation sees them."""
        known = {} if self._life is None else self._life.connections
        return {name: one.connection for name, one in known.items()}

    @property
    def ikes(self) -> list[IkeEnd]:
        """Its IKE_SAs, as the simulation sees them."""
        return [] if self._life is None else [*self._life.ikes.values()]

    def start(self) -> None:
        """It knows nothing of an earlier life."""
        if self._life is None:
            self._life = IkeKeeper(self.around)

    def crash(self) -> None:
        """kill -9: its SAs stay in the kernel, and nobody is told."""
        if self._life is not None:
            self._life.dead = True
        self._life = None
        for answer in list(self._waiting):
            self.around.later(0.0, partial(answer, Unavailable("charon is gone")))

    def stop(self) -> None:
        """A clean end, which a charon that is held cannot have."""
        if self._life is not None and not self._life.frozen:
            self._life.stop()
            self.crash()

    def freeze(self) -> None:
        """SIGSTOP: what comes in waits."""
        if self._life is not None:
            self._life.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        if self._life is not None:
            self._life.thaw()

    def receive(self, message: Message) -> None:
        """A message has come."""
        if self._life is not None:
            self._life.do(partial(self._life.take, message))

    def on_kernel_event(self, event: KernelEvent) -> None:
        """The kernel tells everybody."""
        if self._life is not None:
            self._life.do(partial(self._life.on_kernel_event, event))

    # The port

    def load(self, connection: IkeConnection, *, done: Done) -> None:
        """Load a connection, or replace the one of its name."""

        def act(life: IkeKeeper) -> None:
            if any(child.seconds.rekey for child in connection.children):
                raise NotImplementedError("a CHILD_SA that charon rekeys")
            known = life.connections.get(connection.name)
            if known is not None and known.equals(connection):
                known.connection = connection  # its IKE_SAs know the new children
            else:
                life.connections[connection.name] = Loaded(connection)

        self._command(act, done)

    def unload(self, name: str, *, done: Done) -> None:
        """Forget a connection."""

        def act(life: IkeKeeper) -> None:
            if life.connections.pop(name, None) is None:
                raise Refused(f"unloading connection {name}", reason=f"'{name}' not found")

        self._command(act, done)

    def connections(self, *, done: Callable[[Sequence[str] | TunsecError], None]) -> None:
        """Names of its connections that are tunsec's."""
        found: list[str] = []

        def act(life: IkeKeeper) -> None:
            found.extend(name for name in life.connections if name.startswith(NAME_PREFIX))

        self._command(act, lambda error: done(found if error is None else error))

    def initiate(self, connection: str, child: str, *, done: Done) -> None:
        """Begin to make a CHILD_SA."""

        def act(life: IkeKeeper) -> None:
            loaded = life.connections.get(connection)
            children = () if loaded is None else loaded.connection.children
            config = next((one for one in children if one.name == child), None)
            if loaded is None or config is None:
                what = f"initiating {connection}/{child}"
                raise Refused(what, reason=f"CHILD_SA config '{child}' not found")
            life.initiate(loaded, config)

        self._command(act, done)

    def sas(self, *, done: Callable[[Sequence[IkeSa] | TunsecError], None]) -> None:
        """All IKE_SAs with their CHILD_SAs."""
        found: list[IkeSa] = []

        def act(life: IkeKeeper) -> None:
            now = self.around.now()
            found.extend(ike.tell(now, with_children=True) for ike in life.ikes.values())

        self._command(act, lambda error: done(found if error is None else error))

    def terminate_child(self, ike: IkeRef, child_id: int, *, done: Done) -> None:
        """Begin to delete a CHILD_SA."""

        def act(life: IkeKeeper) -> None:
            end = _meant(life, ike)
            child = next((one for one in end.children if one.id == child_id), None)
            if child is None:
                what = f"terminating CHILD_SA #{child_id} of {ike.name}"
                raise Refused(what, reason="no matching SAs to terminate found")
            life.queue(end, Drop(child.spi_in))

        self._command(act, done)

    def terminate_ike(self, ike: IkeRef, *, done: Done) -> None:
        """Delete an IKE_SA with its CHILD_SAs, whether the peer answers or not."""
        self._command(lambda life: life.terminate(_meant(life, ike)), done)

    def _command(self, act: Callable[[IkeKeeper], None], done: Done) -> None:
        """Commands are carried out one after the other. One that a charon which is held did not
        answer in time waits in its socket all the same."""
        around, life = self.around, self._life

        def answer(error: TunsecError | None) -> None:
            if answer in self._waiting:
                self._waiting.remove(answer)
                done(error)

        self._waiting.append(answer)
        if life is None:
            around.later(0.0, partial(answer, Unavailable("there is no charon")))
            return

        def carry_out() -> None:
            try:
                act(life)
            except TunsecError as error:
                answer(error)
            else:
                answer(None)

        takes = around.dice.uniform(0.0, LONGEST_COMMAND)
        self._command_at = max(self._command_at, around.now() + takes)
        life.after(self._command_at - around.now(), carry_out)
        late = Unavailable(f"no answer within {ANSWER_SECONDS:.0f} s")
        around.later(ANSWER_SECONDS, partial(answer, late))


def _meant(life: IkeKeeper, ref: IkeRef) -> IkeEnd:
    for ike in life.ikes.values():
        if (ike.loaded.connection.name, ike.id, ike.initiator_spi) == (
            ref.name,
            ref.id,
            ref.initiator_spi,
        ):
            return ike
    raise Refused(f"terminating {ref.name}", reason=f"IKE_SA {ref.name} #{ref.id} is gone")
