"""Between a simulated daemon and its charon: as daemon/charon_link.py, with lanes that take their
time. Credentials are left out; the simulation's charons believe by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tests.sim.charon import FakeCharon
from tunsec.daemon.engine import Engine
from tunsec.model.aead import Aead
from tunsec.model.errors import Bug, TunsecError
from tunsec.model.ike import NAME_PREFIX, IkeConnection, PskAuth
from tunsec.model.ike_sa import Algorithms, IkeEvent, IkeRef, IkeSa
from tunsec.plan.ike_connection import IkeSetup
from tunsec.ports import Done

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World

LONGEST_ANSWER = 0.02
LONGEST_EVENT = 0.02
LONGEST_HAND_OVER = 0.1
"""Seconds until charon has this host's credentials."""
TRY_AGAIN = 2.0
"""daemon/charon_link.py."""
LONGEST_LOOK = 1.0
"""Seconds between two looks whether charon is there."""
ALGORITHMS = Algorithms(
    aeads=frozenset({"AES_GCM_16", "CHACHA20_POLY1305"}),
    prfs=frozenset({"PRF_HMAC_SHA2_256", "PRF_HMAC_SHA2_384"}),
    key_exchanges=frozenset({"CURVE_25519", "ECP_256"}),
)
AEADS = (Aead.CHACHA20_POLY1305, Aead.AES_256_GCM, Aead.AES_128_GCM)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class CharonLink:
    """What one life of a daemon has of its host's charon. Implements tunsec.ports.Ike."""

    world: "World"
    host: "SimHost"
    answer: Callable[[Callable[[], None]], None]
    """What comes back to a daemon that is dead is dropped."""
    up: bool = False
    used: bool = False
    """Whether it was ever up."""
    _lane: int = 0
    """Rises with every lane of events; what an earlier one carried is not heard."""
    _looking: bool = False
    _told_at: float = 0.0
    _answered_at: float = 0.0

    @property
    def charon(self) -> FakeCharon:
        """The host's."""
        return self.host.charon

    @property
    def engine(self) -> Engine:
        """The host's, when it is asked."""
        if self.host.engine is None:
            raise Bug("nobody is there")
        return self.host.engine

    # charon comes and goes

    def renew(self) -> None:
        """The daemon has started, or its policy may have changed."""
        if self.engine.uses_ike:
            if self.up:
                self._hand_over(0.0)
            elif not self._looking:
                self._look()
        elif self.up:
            self._close()
            self._take_back()
            self.engine.on_charon_away("no flow of the policy is keyed by IKE")

    def lose(self, reason: str) -> None:
        """charon is gone, or does not answer. What it told before is unknown then."""
        if self.up:
            self._close()
            self.engine.on_charon_away(reason)
            self._look()

    def _look(self) -> None:
        """Look for charon until it is there."""
        self._looking = self.engine.uses_ike
        if not self._looking:
            return
        if self.charon.running and not self.charon.frozen:
            self._looking, self.up, self.used = False, True, True
            self._hand_over(self.world.dice.uniform(0.0, LONGEST_HAND_OVER))
        else:
            self._soon(self.world.dice.uniform(0.0, LONGEST_LOOK), self._look)

    def _hand_over(self, takes: float) -> None:
        """charon gets credentials; then it can be used."""

        def ready() -> None:
            intent = self.engine.scope.intent
            if intent is not None and self.engine.uses_ike:
                setup = IkeSetup(ALGORITHMS, PskAuth(), None, AEADS, intent.ike)
                self.engine.on_charon_ready(setup)

        self._soon(takes, ready)

    def _take_back(self) -> None:
        """Nothing of ours is to stay in charon."""
        self.charon.connections(done=self._answered(self._unload_all))
        self.charon.sas(done=self._answered(self._terminate_all))

    def _unload_all(self, names: Sequence[str] | TunsecError) -> None:
        if not isinstance(names, TunsecError) and not self.up:
            for name in names:
                self.charon.unload(name, done=lambda error: None)

    def _terminate_all(self, ikes: Sequence[IkeSa] | TunsecError) -> None:
        """Until all are gone: one may be rekeyed while its end is ordered."""
        if isinstance(ikes, TunsecError) or self.up:
            return
        ours = [ike for ike in ikes if ike.name.startswith(NAME_PREFIX)]
        for ike in ours:
            self.charon.terminate_ike(ike.ref, done=lambda error: None)
        if ours:
            self._soon(TRY_AGAIN, self._take_back)

    def _close(self) -> None:
        self.up = False
        self._lane += 1

    def _soon(self, takes: float, act: Callable[[], None]) -> None:
        """In a while, if this lane is still the one."""
        lane = self._lane

        def due() -> None:
            if self._lane == lane:
                self.answer(act)

        self.world.later(takes, due)

    def hear(self, event: IkeEvent) -> None:
        """charon tells something; events come in their order."""
        if self.up:
            takes = self.world.dice.uniform(0.0, LONGEST_EVENT)
            self._told_at = max(self._told_at, self.world.now + takes)
            takes = self._told_at - self.world.now
            self._soon(takes, lambda: self.engine.on_ike_event(event))

    # Commands

    def load(self, connection: IkeConnection, *, done: Done) -> None:
        """Load a connection."""
        self.charon.load(connection, done=self._answered(done))

    def unload(self, name: str, *, done: Done) -> None:
        """Forget a connection."""
        self.charon.unload(name, done=self._answered(done))

    def connections(self, *, done: Callable[[Sequence[str] | TunsecError], None]) -> None:
        """Names of its connections that are tunsec's."""
        self.charon.connections(done=self._answered(done))

    def initiate(self, connection: str, child: str, *, done: Done) -> None:
        """Begin to make a CHILD_SA."""
        self.charon.initiate(connection, child, done=self._answered(done))

    def sas(self, *, done: Callable[[Sequence[IkeSa] | TunsecError], None]) -> None:
        """All IKE_SAs."""
        self.charon.sas(done=self._answered(done))

    def terminate_child(self, ike: IkeRef, child_id: int, *, done: Done) -> None:
        """Begin to delete a CHILD_SA."""
        self.charon.terminate_child(ike, child_id, done=self._answered(done))

    def terminate_ike(self, ike: IkeRef, *, done: Done) -> None:
        """Delete an IKE_SA."""
        self.charon.terminate_ike(ike, done=self._answered(done))

    def dawdle(self, seconds: float) -> None:
        """charon writes no answer before that long from now; events come as always."""
        self._answered_at = max(self._answered_at, self.world.now + seconds)

    def _answered(self, done: Callable[[T], None]) -> Callable[[T], None]:
        """Answers come in their order, before or after the events of the same moment."""

        def answered(result: T) -> None:
            takes = self.world.dice.uniform(0.0, LONGEST_ANSWER)
            self._answered_at = max(self._answered_at, self.world.now + takes)
            takes = self._answered_at - self.world.now
            self.world.later(takes, lambda: self.answer(lambda: done(result)))

        return answered
