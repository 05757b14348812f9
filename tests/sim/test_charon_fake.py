"""The simulation's charon does what docs/ike.md tells of the real one."""

import heapq
import ipaddress
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from tests.sim.charon import FakeCharon
from tests.sim.charon_net import ChildMade, IkeNetwork, Message, RekeyIke
from tests.sim.kernel import FakeKernel
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant, Seconds
from tunsec.model.errors import Refused, TunsecError, Unavailable
from tunsec.model.ike import (
    NO_LIMITS,
    EspProposal,
    IkeChild,
    IkeConnection,
    IkeProposal,
    KeyExchange,
    Limits,
    Prf,
    PskAuth,
    TrafficSelector,
    Unique,
)
from tunsec.model.ike_sa import (
    ChildSa,
    ChildSaKeyed,
    IkeEvent,
    IkeRekeyed,
    IkeSa,
)
from tunsec.model.names import Reqid
from tunsec.model.sa import Sa, SaId
from tunsec.plan.ike_options import ignored_options
from tunsec.ports import Done

A, B = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
KEY_EXCHANGES = (KeyExchange.X25519,)
CHILDREN = tuple(f"overlay.{sender}.{slot}" for sender in "ab" for slot in (0, 1))
GIVEN_UP_AFTER = 3.6


class Side:
    """A host with its charon and what that told."""

    def __init__(self, pair: "Pair", *, name: str, peer: str, reqid: int) -> None:
        local, remote = (A, B) if name == "a" else (B, A)
        self.name = name
        self.local, self.remote = local, remote
        self.kernel = FakeKernel(pair.instant)
        self.told: list[IkeEvent] = []
        self.charon = FakeCharon(
            net=pair.net,
            addresses=[local],
            kernel=lambda: self.kernel,
            dice=pair.dice,
            now=pair.instant,
            later=pair.later,
        )
        self.charon.around.tell = self.hear
        self.kernel.listeners.append(lambda event, ours: self.charon.on_kernel_event(event))
        self.ends: Callable[[IkeEvent], None] = lambda event: None
        self.connection = IkeConnection(
            name=f"tunsec-{peer}",
            local=(local,),
            remote=(remote,),
            local_identity=name,
            remote_identity=peer,
            auth=PskAuth(),
            proposals=(IkeProposal(Aead.AES_256_GCM, (Prf.SHA256,), KEY_EXCHANGES),),
            children=tuple(
                IkeChild(
                    name=child,
                    reqid=Reqid(reqid),
                    local=(TrafficSelector(ipaddress.ip_network(local)),),
                    remote=(TrafficSelector(ipaddress.ip_network(remote)),),
                    proposals=tuple(EspProposal(aead, KEY_EXCHANGES) for aead in Aead),
                    replay_window=1024,
                    seconds=Limits(rekey=None, life=9000),
                    volume=Limits(rekey=None, life=1 << 40),
                    label=child,
                )
                for child in CHILDREN
            ),
            seconds=NO_LIMITS,
            unique=Unique.NEVER,
        )

    def hear(self, event: IkeEvent) -> None:
        """charon tells something."""
        self.told.append(event)
        self.ends(event)

    def events(self) -> list[str]:
        """What it told, by name."""
        return [type(event).__name__ for event in self.told]

    def sas(self) -> dict[SaId, Sa]:
        """SAs with keys."""
        return {sa_id: sa for sa_id, sa, _ in self.kernel.keyed_sas()}

    def key(self, sa_id: SaId) -> bytes | None:
        """Digest of an SA's key."""
        return self.kernel.key_of(sa_id)


@dataclass
class Tap:
    """Stands before a charon and keeps messages of one kind."""

    charon: FakeCharon
    body: type[object]
    kept: list[Message] = field(default_factory=list)

    def receive(self, message: Message) -> None:
        """A message has come."""
        if isinstance(message.body, self.body):
            self.kept.append(message)
        else:
            self.charon.receive(message)


class Pair:
    """Two charons, linked and loaded, in virtual time."""

    def __init__(self, seed: int = 1) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.net = IkeNetwork(self.dice, self.later)
        self.a = Side(self, name="a", peer="b", reqid=0x5400_0001)
        self.b = Side(self, name="b", peer="a", reqid=0x5400_0002)
        for side in self.sides:
            side.charon.start()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.a, self.b

    def instant(self) -> Instant:
        """Now."""
        return Instant(self.now)

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """In a while."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), act))

    def run(self, span: float) -> None:
        """Let time pass."""
        end = self.now + span
        while self._heap and self._heap[0][0] <= end:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            for side in self.sides:
                side.kernel.expire()
        self.now = end
        for side in self.sides:
            side.kernel.expire()

    def load(self, **changes: object) -> "Pair":
        """Both get their connection."""
        for side in self.sides:
            self.load_one(side, **changes)
        return self

    def load_one(self, side: Side, **changes: object) -> None:
        """A side gets its connection."""
        side.connection = replace(side.connection, **changes)  # type: ignore[arg-type]
        self.answered(lambda done: side.charon.load(side.connection, done=done))

    def up(self) -> "Pair":
        """A CHILD_SA of each sender."""
        self.load()
        for side in self.sides:
            self.initiate(side)
            self.run(0.1)
        assert [len(side.sas()) for side in self.sides] == [4, 4]
        for side in self.sides:
            side.told.clear()
        return self

    def initiate(self, side: Side, slot: int = 0) -> None:
        """Have a side make the CHILD_SA on which it sends."""
        child, name = f"overlay.{side.name}.{slot}", side.connection.name
        self.answered(lambda done: side.charon.initiate(name, child, done=done))

    def terminate(self, side: Side, ike: IkeSa, child: ChildSa) -> None:
        """Have a side delete a CHILD_SA."""
        self.answered(lambda done: side.charon.terminate_child(ike.ref, child.id, done=done))

    def end(self, side: Side, ike: IkeSa) -> None:
        """Have a side delete an IKE_SA."""
        self.answered(lambda done: side.charon.terminate_ike(ike.ref, done=done))

    def answered(self, ask: Callable[[Done], None]) -> None:
        """Carry out a command; raises what charon answers."""
        answers: list[TunsecError | None] = []
        ask(answers.append)
        self.run(0.02)
        [answer] = answers
        if answer is not None:
            raise answer

    def intercept(self, side: Side, body: type[object]) -> list[Message]:
        """Messages with such a body do not reach a side, but this list."""
        tap = Tap(side.charon, body)
        self.net.charons[side.local] = tap
        return tap.kept

    def listed(self, side: Side) -> list[IkeSa]:
        """charon's list."""
        found: list[IkeSa] = []
        side.charon.sas(done=lambda answer: found.extend(answer))  # type: ignore[arg-type]
        self.run(0.02)
        return found

    def children(self, side: Side) -> dict[str, tuple[IkeSa, ChildSa]]:
        """CHILD_SAs by name, with their IKE_SA."""
        return {child.name: (ike, child) for ike in self.listed(side) for child in ike.children}

    def empty(self) -> bool:
        """Whether both kernels hold nothing at all."""
        return not any(side.kernel.all_sas() for side in self.sides)

    def same_keys(self) -> bool:
        """Whether every SA has its twin on the other side, and no key is there twice."""
        keys = [{sa_id: side.key(sa_id) for sa_id in side.sas()} for side in self.sides]
        return keys[0] == keys[1] and len(set(keys[0].values())) == len(keys[0])


def keyed(child: ChildSa) -> ChildSaKeyed:
    """The keyed part of a CHILD_SA that must have one."""
    assert child.keyed is not None
    return child.keyed


# Making


def test_a_handshake_puts_twins_into_both_kernels() -> None:
    pair = Pair().load()
    pair.initiate(pair.a)
    pair.run(0.1)
    for side in pair.sides:
        assert side.events() == ["IkeEstablished", "ChildEstablished"]
        [ike] = pair.listed(side)
        [child] = ike.children
        assert (ike.id, ike.initiator, ike.tasks) == (1, side is pair.a, ())
        assert (child.name, child.label) == ("overlay.a.0", "overlay.a.0")
        config = next(one for one in side.connection.children if one.name == child.name)
        assert not ignored_options(
            config, child, side.kernel.sas(), local=side.local, remote=side.remote
        )
    assert pair.same_keys()


def test_the_responder_has_its_sas_before_the_initiator_hears() -> None:
    pair = Pair().load()
    seen: list[tuple[str, int, int]] = []
    for side in pair.sides:
        side.ends = lambda event, name=side.name: seen.append(  # type: ignore[misc]
            (name, len(pair.a.sas()), len(pair.b.sas()))
        )
    pair.initiate(pair.a)
    pair.run(0.1)
    # (who tells, SAs of a, SAs of b): established, then the CHILD_SA.
    assert seen == [("b", 0, 0), ("b", 0, 2), ("a", 0, 2), ("a", 2, 2)]


def test_children_of_both_senders_share_an_ike_sa() -> None:
    pair = Pair().up()
    for side in pair.sides:
        [ike] = pair.listed(side)
        assert {child.name for child in ike.children} == {"overlay.a.0", "overlay.b.0"}
    assert pair.same_keys()


def test_two_that_begin_at_once_have_two_ike_sas() -> None:
    pair = Pair().load()
    pair.net.longest_delay = 0.1
    for side in pair.sides:
        name = side.connection.name
        side.charon.initiate(name, f"overlay.{side.name}.0", done=lambda error: None)
    pair.run(0.5)
    for side in pair.sides:
        assert sorted(ike.initiator for ike in pair.listed(side)) == [False, True]
    assert len(pair.a.sas()) == 4
    assert pair.same_keys()


def test_a_duplicate_is_not_made() -> None:
    pair = Pair().up()
    pair.initiate(pair.a)
    pair.run(5.0)
    assert [len(side.sas()) for side in pair.sides] == [4, 4]
    assert pair.a.told == pair.b.told == []


def test_another_configuration_makes_an_ike_sa_of_its_own() -> None:
    pair = Pair().up()
    pair.load_one(pair.a, seconds=Limits(rekey=None, life=9001))
    assert len(pair.listed(pair.a)) == 1, "what is up stays"
    pair.initiate(pair.a)
    pair.run(0.1)
    assert len(pair.listed(pair.a)) == 2
    assert pair.a.events() == ["IkeEstablished", "ChildEstablished"]


def test_an_equal_configuration_brings_its_children_to_what_is_up() -> None:
    pair = Pair()
    children = {side.name: side.connection.children for side in pair.sides}
    for side in pair.sides:
        pair.load_one(side, children=children[side.name][:1])
    with pytest.raises(Refused, match=r"config 'overlay\.b\.0' not found"):
        pair.initiate(pair.b)
    pair.initiate(pair.a)
    for side in pair.sides:
        pair.load_one(side, children=children[side.name])
    pair.initiate(pair.b)
    pair.run(0.1)
    assert len(pair.listed(pair.a)) == 1
    assert [len(side.sas()) for side in pair.sides] == [4, 4]


def test_a_child_that_the_peer_does_not_have_is_refused() -> None:
    pair = Pair().load()
    pair.load_one(pair.b, children=())
    pair.initiate(pair.a)
    pair.run(20.0)
    assert pair.a.events() == ["IkeEstablished"]
    assert pair.empty()


def test_a_peer_without_the_connection_refuses_at_once() -> None:
    pair = Pair()
    pair.load_one(pair.a)
    pair.initiate(pair.a)
    pair.run(0.1)
    assert pair.a.events() == ["IkeEnded"]
    assert pair.listed(pair.a) == []


@pytest.mark.parametrize("bad", ["a", "b"])
def test_a_peer_that_is_not_believed(bad: str) -> None:
    pair = Pair().load()
    pair.net.disbelieved.add(bad)
    pair.initiate(pair.a)
    pair.run(0.2)
    assert pair.a.events() == ["IkeEnded"]
    # The responder has proven the initiator, and hears only then that it is not believed itself.
    up = ["IkeEstablished", "ChildEstablished", "ChildEnded"] if bad == "b" else []
    assert pair.b.events() == [*up, "IkeEnded"]
    assert pair.empty()


def test_reserved_spis_are_given_back_or_expire() -> None:
    pair = Pair().load()
    pair.net.cut_off = lambda src, dst: src == B
    pair.initiate(pair.a)
    pair.run(1.0)
    pair.net.cut_off = lambda src, dst: False
    pair.run(1.0)
    assert [len(side.sas()) for side in pair.sides] == [2, 2]
    pair.net.lose = 1.0
    pair.initiate(pair.a, 1)
    assert sum(sa.larval for sa in pair.a.kernel.sas().values()) == 1
    pair.a.charon.crash()
    pair.run(11.0)
    assert not any(sa.larval for sa in pair.a.kernel.sas().values())


# Messages


def test_a_lost_answer_is_asked_for_again_and_given_once() -> None:
    pair = Pair().up()
    lost = pair.intercept(pair.a, ChildMade)
    pair.initiate(pair.a, 1)
    pair.run(0.1)
    assert len(lost) == 1
    pair.net.charons[A] = pair.a.charon
    assert (len(pair.a.sas()), len(pair.b.sas())) == (4, 6)
    pair.run(0.6)
    assert (len(pair.a.sas()), len(pair.b.sas())) == (6, 6)
    assert pair.same_keys()
    assert pair.b.events() == ["ChildEstablished"]


@pytest.mark.parametrize("seed", range(10))
def test_a_wire_that_loses_and_repeats_makes_just_one(seed: int) -> None:
    pair = Pair(seed).up()
    pair.net.lose, pair.net.repeat = 0.2, 0.5
    for slot in (1, 0, 1):
        pair.initiate(pair.a, slot)
        pair.run(5.0)
        for name, (ike, child) in pair.children(pair.a).items():
            if name == f"overlay.a.{1 - slot}":
                pair.terminate(pair.a, ike, child)
        pair.run(5.0)
    if "IkeEnded" not in [*pair.a.events(), *pair.b.events()]:
        assert pair.children(pair.a).keys() == {"overlay.a.1", "overlay.b.0"}
        assert pair.same_keys()


@pytest.mark.parametrize("silent", ["cut off", "dead", "frozen"])
def test_a_silent_peer_costs_the_ike_sa_when_something_is_asked(silent: str) -> None:
    pair = Pair().up()
    _silence(pair, silent)
    pair.run(60.0)
    assert pair.a.told == [], "nobody has asked"
    pair.initiate(pair.a, 1)
    pair.run(GIVEN_UP_AFTER + 0.1)
    assert pair.a.events() == ["ChildEnded", "ChildEnded", "IkeEnded"]
    assert pair.a.kernel.all_sas() == []
    assert len(pair.b.sas()) == 4


@pytest.mark.parametrize("silent", ["cut off", "dead", "frozen"])
def test_a_probed_peer_that_is_silent_costs_the_ike_sa(silent: str) -> None:
    pair = Pair().load(dpd_after=Seconds(1.0))
    pair.initiate(pair.a)
    pair.run(10.0)
    assert "IkeEnded" not in pair.a.events(), "the peer answers"
    _silence(pair, silent)
    pair.run(1.0 + GIVEN_UP_AFTER + 1.1)
    assert pair.a.events()[2:] == ["ChildEnded", "IkeEnded"]
    assert pair.a.sas() == {}


def _silence(pair: Pair, how: str) -> None:
    if how == "cut off":
        pair.net.cut_off = lambda src, dst: True
    elif how == "dead":
        pair.b.charon.crash()
    else:
        pair.b.charon.freeze()


def test_the_end_is_told_before_the_sas_leave_the_kernel() -> None:
    pair = Pair().up()
    held: list[int] = []
    pair.a.ends = lambda event: held.append(len(pair.a.sas()))
    [ike] = pair.listed(pair.a)
    pair.end(pair.a, ike)
    pair.run(0.1)
    assert held == [4, 4, 4]
    assert pair.a.sas() == pair.b.sas() == {}
    assert pair.b.events() == ["ChildEnded", "ChildEnded", "IkeEnded"]


# Ending


def test_a_deleted_child_leaves_the_receiver_of_the_delete_first() -> None:
    pair = Pair().up()
    counts: list[tuple[int, int]] = []
    for side in pair.sides:
        side.kernel.listeners.append(
            lambda event, ours: counts.append((len(pair.a.sas()), len(pair.b.sas())))
        )
    ike, child = pair.children(pair.a)["overlay.a.0"]
    pair.terminate(pair.a, ike, child)
    pair.run(0.1)
    assert counts == [(4, 3), (4, 2), (3, 2), (2, 2)]
    assert pair.a.events() == pair.b.events() == ["ChildEnded"]
    with pytest.raises(Refused, match="no matching SAs"):
        pair.terminate(pair.a, ike, child)


def test_both_delete_the_same_child() -> None:
    pair = Pair().up()
    for side in pair.sides:
        ike, child = pair.children(side)["overlay.a.0"]
        side.charon.terminate_child(ike.ref, child.id, done=lambda error: None)
    pair.run(1.0)
    assert pair.a.events() == pair.b.events() == ["ChildEnded"]
    assert pair.same_keys()


def test_a_word_of_farewell_may_get_lost() -> None:
    pair = Pair().up()
    pair.net.lose = 1.0
    [ike] = pair.listed(pair.a)
    pair.end(pair.a, ike)
    pair.run(60.0)
    assert pair.a.sas() == {}
    assert len(pair.b.sas()) == 4
    assert pair.b.told == []
    with pytest.raises(Refused, match="is gone"):
        pair.end(pair.a, ike)


def test_an_sa_that_the_kernel_ends_takes_its_child_along() -> None:
    pair = Pair().load()
    children = tuple(
        replace(child, seconds=Limits(rekey=None, life=30)) for child in pair.a.connection.children
    )
    pair.load_one(pair.a, children=children)
    pair.initiate(pair.a)
    pair.later(30.1, lambda: None)
    pair.run(31.0)
    assert pair.a.events()[2:] == pair.b.events()[2:] == ["ChildEnded"]
    assert pair.b.sas() == {}


# Rekeying of the IKE_SA


def test_a_rekeyed_ike_sa_keeps_its_children() -> None:
    pair = Pair().load()
    pair.load(seconds=Limits(rekey=100, life=150, jitter=10))
    for side in pair.sides:
        pair.initiate(side)
        pair.run(0.1)
    before = [side.sas() for side in pair.sides]
    told = [len(side.told) for side in pair.sides]
    pair.run(101.0)
    for side, after in zip(pair.sides, told, strict=True):
        rekeyed = [one for one in side.told[after:] if isinstance(one, IkeRekeyed)]
        assert len(side.told) - after == len(rekeyed) >= 1
        assert (rekeyed[0].old.id, rekeyed[0].new.id) == (1, 2)
        [ike] = pair.listed(side)
        assert len(ike.children) == 2
    assert [side.sas() for side in pair.sides] == before
    pair.initiate(pair.b, 1)
    pair.run(0.1)
    assert len(pair.b.sas()) == 6


def test_a_child_during_a_rekeying_comes_later() -> None:
    pair = Pair()
    pair.load_one(pair.a, seconds=Limits(rekey=100, life=150))
    pair.load_one(pair.b)
    held = pair.intercept(pair.b, RekeyIke)
    pair.initiate(pair.a)
    while not held:
        pair.run(0.01)
    pair.initiate(pair.b)
    pair.run(0.1)
    assert pair.children(pair.b).keys() == {"overlay.a.0"}
    pair.net.charons[B] = pair.b.charon
    assert pair.listed(pair.b)[0].id == 1
    pair.run(20.0)
    assert pair.listed(pair.b)[0].id == 2
    assert pair.children(pair.b).keys() == {"overlay.a.0", "overlay.b.0"}


# Crashes


def test_a_crash_leaves_its_sas_and_forgets_the_rest() -> None:
    pair = Pair().up()
    held = pair.a.sas()
    pair.a.charon.crash()
    with pytest.raises(Unavailable):
        pair.initiate(pair.a)
    pair.a.charon.start()
    assert pair.listed(pair.a) == []
    assert pair.a.told == []
    with pytest.raises(Refused, match="not found"):
        pair.initiate(pair.a)
    pair.load_one(pair.a)
    pair.initiate(pair.a)
    pair.run(0.1)
    [ike] = pair.listed(pair.a)
    assert (ike.id, ike.children[0].id) == (1, 1), "it counts from 1 again"
    assert pair.a.sas().keys() > held.keys()
    assert len(pair.listed(pair.b)) == 2, "the peer keeps what it has"


def test_a_command_that_dies_with_charon_is_answered() -> None:
    pair = Pair().load()
    answers: list[TunsecError | None] = []
    pair.a.charon.initiate("tunsec-b", "overlay.a.0", done=answers.append)
    pair.a.charon.crash()
    pair.run(10.0)
    [answer] = answers
    assert isinstance(answer, Unavailable)


def test_a_clean_stop_takes_both_sides_down() -> None:
    pair = Pair().up()
    pair.a.charon.stop()
    assert pair.a.sas() == {}
    pair.run(0.1)
    assert pair.b.sas() == {}
    assert pair.b.events() == ["ChildEnded", "ChildEnded", "IkeEnded"]


def test_a_frozen_charon_does_everything_when_it_thaws() -> None:
    pair = Pair().up()
    pair.b.charon.freeze()
    pair.initiate(pair.a, 1)
    answers: list[TunsecError | None] = []
    pair.b.charon.initiate("tunsec-a", "overlay.b.1", done=answers.append)
    pair.run(3.0)
    assert len(pair.b.kernel.all_sas()) == 4
    pair.b.charon.thaw()
    pair.run(1.0)
    assert [len(side.sas()) for side in pair.sides] == [8, 8]
    assert answers == [None]
    assert pair.same_keys()


def test_a_frozen_charon_does_not_answer_and_obeys_later() -> None:
    pair = Pair().up()
    pair.b.charon.freeze()
    answers: list[TunsecError | None] = []
    pair.b.charon.initiate("tunsec-a", "overlay.b.1", done=answers.append)
    pair.run(5.1)
    [answer] = answers
    assert isinstance(answer, Unavailable)
    pair.b.charon.thaw()
    pair.run(1.0)
    assert len(answers) == 1
    assert [len(side.sas()) for side in pair.sides] == [6, 6]
