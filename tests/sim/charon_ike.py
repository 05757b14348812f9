"""What a charon of a simulation does with IKE_SAs, in charon's order (task_manager_v2.c, tasks/).

It does not rekey CHILD_SAs of its own accord, which tunsec never asks for; and two rekeyings of one
IKE_SA that meet are both put off, as when they meet anything else.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.sim import charon_net as net
from tests.sim import charon_sas as sas
from tests.sim.charon_net import Message
from tests.sim.charon_sas import ChildEnd, IkeEnd, Loaded, Surroundings
from tunsec.model.aead import Aead
from tunsec.model.clock import Instant
from tunsec.model.event import HardExpired, KernelEvent
from tunsec.model.ike import IkeChild
from tunsec.model.ike_sa import (
    ChildEnded,
    ChildEstablished,
    ChildState,
    IkeEnded,
    IkeEstablished,
    IkeRekeyed,
    IkeState,
)
from tunsec.model.names import Spi

RETRANSMIT_AFTER = (0.5, 0.7, 1.0, 1.4)
"""systemd/charon-tunsec.conf; after the last one the peer is given up."""
HALF_OPEN_SECONDS = 10.0
REKEYED_SECONDS = 90.0
"""How long the responder keeps a rekeyed IKE_SA that the initiator does not delete."""
RETRY_SECONDS = (5.0, 15.0)
"""What was refused for the moment is tried again (RETRY_INTERVAL, RETRY_JITTER)."""
REMOVAL_SECONDS = 0.005
"""From the word that an IKE_SA has ended until its SAs are gone."""
TEMPORARY = net.Refusal("TEMPORARY_FAILURE")
_TOLD = (IkeState.ESTABLISHED, IkeState.REKEYING, IkeState.DELETING)
"""States from which the end of an IKE_SA is told."""


@dataclass(slots=True, eq=False)
class IkeKeeper:
    """One life of a charon."""

    around: Surroundings
    connections: dict[str, Loaded] = field(default_factory=dict)
    ikes: dict[int, IkeEnd] = field(default_factory=dict)
    """By own SPI."""
    dead: bool = False
    frozen: bool = False
    _ike_ids: int = 0
    _child_ids: int = 0
    _backlog: list[Callable[[], None]] = field(default_factory=list)

    # Time

    def after(self, delay: float, act: Callable[[], None]) -> None:
        """Do something in a while, if this charon lives then."""
        self.around.later(delay, lambda: self.do(act))

    def do(self, act: Callable[[], None]) -> None:
        """Do something now, or when nobody holds this charon any more."""
        if self.frozen:
            self._backlog.append(act)
        elif not self.dead:
            act()

    def thaw(self) -> None:
        """Everything that waited happens now."""
        self.frozen = False
        waiting, self._backlog = self._backlog, []
        for act in waiting:
            self.do(act)

    def stop(self) -> None:
        """A clean end: peers are told, once, and the SAs leave the kernel."""
        for ike in self.ikes.values():
            self._say_goodbye(ike)
            self._remove(ike)
        self.dead = True

    # Making and ending

    def initiate(self, loaded: Loaded, config: IkeChild) -> None:
        """Make a CHILD_SA, and an IKE_SA before it where there is none of just this connection."""
        usable = (ike for ike in self.ikes.values() if ike.usable)
        found = next((ike for ike in usable if ike.loaded.equals(loaded.connection)), None)
        if found is not None:
            self.queue(found, sas.Make(config))
            return
        ike = self._new_ike(loaded, initiator=True, initiator_spi=self.around.dice.getrandbits(64))
        self._ask(ike, net.Hello(), sas.Make(config))

    def _new_ike(
        self,
        loaded: Loaded,
        *,
        initiator: bool,
        initiator_spi: int,
        responder_spi: int = 0,
        state: IkeState = IkeState.CONNECTING,
    ) -> IkeEnd:
        self._ike_ids += 1
        connection = loaded.connection
        ike = IkeEnd(
            id=self._ike_ids,
            loaded=loaded,
            initiator=initiator,
            local=connection.local[0],
            remote=connection.remote[0],
            initiator_spi=initiator_spi,
            responder_spi=responder_spi,
            state=state,
            since=self.around.now(),
            heard_at=self.around.now(),
        )
        self.ikes[ike.own_spi] = ike
        return ike

    def _establish(self, ike: IkeEnd) -> None:
        ike.state = IkeState.ESTABLISHED
        ike.since = self.around.now()
        self.around.tell(IkeEstablished(ike.tell(self.around.now())))
        self._keep_up(ike)

    def _keep_up(self, ike: IkeEnd) -> None:
        """Rekey it in its time, and see to the peer."""
        limits, dpd_after = ike.loaded.connection.seconds, ike.loaded.connection.dpd_after
        if limits.rekey is not None:
            after = limits.rekey - self.around.dice.uniform(0.0, limits.jitter)
            self.after(after, lambda: self.queue(ike, sas.Renew()))
        if dpd_after is not None:
            self.after(dpd_after, lambda: self._look(ike, dpd_after))

    def _look(self, ike: IkeEnd, dpd_after: float) -> None:
        if ike.own_spi not in self.ikes:
            return
        silent_for = self.around.now() - ike.heard_at
        if silent_for >= dpd_after and ike.asked is None:
            self.queue(ike, sas.Look())
        self.after(max(0.1, dpd_after - silent_for), lambda: self._look(ike, dpd_after))

    def _say_goodbye(self, ike: IkeEnd) -> None:
        if ike.state is IkeState.ESTABLISHED:
            self.around.net.send(self._message(ike, net.EndIke(), ike.sent))

    def terminate(self, ike: IkeEnd) -> None:
        """End an IKE_SA; the peer is told, once, if nothing else is under way."""
        if ike.asked is None:
            self._say_goodbye(ike)
        self._destroy(ike)

    def _destroy(self, ike: IkeEnd) -> None:
        """An IKE_SA ends: that is told first, then its SAs leave the kernel."""
        del self.ikes[ike.own_spi]
        if ike.state in _TOLD:
            for child in ike.children:
                self._tell_child(ChildEnded, ike, child)
            self.around.tell(IkeEnded(ike.tell(self.around.now())))
        self.after(self.around.dice.uniform(0.0, REMOVAL_SECONDS), lambda: self._remove(ike))

    def _remove(self, ike: IkeEnd) -> None:
        self.around.lets_go([child.ids(ike)[0] for child in ike.children])
        for child in ike.children:
            sas.remove(self.around.kernel(), ike, child)
        self._give_back(ike)

    def _give_back(self, ike: IkeEnd) -> None:
        """The CHILD_SA that was being made is not."""
        if ike.reserved is not None:
            sas.give_back(self.around.kernel(), ike, ike.reserved)
            ike.reserved = None

    def _install(
        self, ike: IkeEnd, config: IkeChild, aead: Aead, spis: tuple[Spi, Spi], nonces: bytes
    ) -> bool:
        """A CHILD_SA with these SPIs, in and out; False when the kernel does not take it."""
        self._child_ids += 1
        asked = all(one.esn for one in config.proposals if one.aead is aead)
        esn = asked and not self.around.careless
        child = ChildEnd(self._child_ids, config, aead, *spis, self.around.now(), esn)
        if not sas.install(self.around.kernel(), ike, child, nonces):
            return False
        ike.children.append(child)
        self._tell_child(ChildEstablished, ike, child)
        return True

    def _end_child(self, ike: IkeEnd, child: ChildEnd) -> None:
        ike.children.remove(child)
        self._tell_child(ChildEnded, ike, child)
        sas.remove(self.around.kernel(), ike, child)

    def _tell_child(
        self, kind: type[ChildEstablished | ChildEnded], ike: IkeEnd, child: ChildEnd
    ) -> None:
        now = self.around.now()
        self.around.tell(kind(ike.tell(now), ike.tell_child(child, now)))

    def on_kernel_event(self, event: KernelEvent) -> None:
        """charon hears of limits alone: a CHILD_SA one of whose SAs is at its end is deleted."""
        if not isinstance(event, HardExpired):
            return
        for ike in self.ikes.values():
            for child in ike.children:
                if event.sa in child.ids(ike):
                    self.after(0.0, partial(self.queue, ike, sas.Drop(child.spi_in)))

    # Requests of ours, one at a time

    def queue(self, ike: IkeEnd, task: sas.Task) -> None:
        """Do something on an IKE_SA when its turn comes."""
        if ike.own_spi in self.ikes:
            ike.tasks.append(sas.Waiting(task, self.around.now()))
            self._go_on(ike)

    def _again(self, ike: IkeEnd, task: sas.Task) -> None:
        """Try it later, be it on an IKE_SA that has taken over."""
        wait = self.around.dice.uniform(*RETRY_SECONDS)
        ike.tasks.append(sas.Waiting(task, Instant(self.around.now() + wait)))
        self.after(wait, self._go_on_all)

    def _go_on_all(self) -> None:
        for ike in list(self.ikes.values()):
            self._go_on(ike)

    def _go_on(self, ike: IkeEnd) -> None:
        """Take up what waits, if nothing is under way."""
        while ike.asked is None and ike.state is IkeState.ESTABLISHED:
            task = ike.next_task(self.around.now())
            if task is None:
                return
            self._take_up(ike, task)

    def _take_up(self, ike: IkeEnd, task: sas.Task) -> None:
        match task:
            case sas.Drop(spi):
                child = ike.child(spi_in=spi)
                if child is not None:
                    child.state = ChildState.DELETING
                    self._ask(ike, net.EndChild(spi), task)
            case sas.Make(config):
                if not any(_duplicate(child, config) for child in ike.children):
                    self._ask(ike, self._wanted(ike, config), task)
            case sas.Renew():
                ike.state = IkeState.REKEYING
                self._ask(ike, net.RekeyIke(self.around.dice.getrandbits(64)), task)
            case sas.Look():
                self._ask(ike, net.Probe(), task)

    def _wanted(self, ike: IkeEnd, config: IkeChild) -> net.MakeChild:
        """What a request for a CHILD_SA says, with its inbound SPI reserved in the kernel."""
        ike.reserved = spi = self._new_spi()
        sas.reserve(self.around.kernel(), ike, config, spi)
        aeads = tuple(proposal.aead for proposal in config.proposals)
        return net.MakeChild(config.label or "", aeads, spi, os.urandom(16))

    def _new_spi(self) -> Spi:
        return Spi(self.around.dice.randint(0xC000_0000, 0xCFFF_FFFF))

    def _ask(self, ike: IkeEnd, body: net.Request, task: sas.Task) -> None:
        ike.asked = sas.Asked(self._message(ike, body, ike.sent), task)
        self._transmit(ike, ike.asked, 0)

    def _transmit(self, ike: IkeEnd, asked: sas.Asked, tries: int) -> None:
        if ike.asked is not asked or ike.own_spi not in self.ikes:
            return
        if tries == len(RETRANSMIT_AFTER):
            self._destroy(ike)
            return
        self.around.net.send(asked.message)
        wait = RETRANSMIT_AFTER[tries] * self.around.dice.uniform(0.8, 1.0)  # retransmit_jitter
        self.after(wait, lambda: self._transmit(ike, asked, tries + 1))

    def _message(
        self, ike: IkeEnd, body: net.Request | net.Answer, number: int, *, answers: bool = False
    ) -> Message:
        return Message(
            ike.local,
            ike.remote,
            ike.initiator_spi,
            ike.responder_spi,
            ike.initiator,
            number,
            body,
            answers,
        )

    # Messages of peers

    def take(self, message: Message) -> None:
        """A message has come."""
        if isinstance(message.body, net.Hello):
            self._greet(message)
            return
        spi = message.responder_spi if message.by_initiator else message.initiator_spi
        ike = self.ikes.get(spi)
        if ike is None:
            return  # charon passes over SPIs that it does not know
        ike.heard_at = self.around.now()
        if message.answers:
            asked = ike.asked
            if asked is not None and asked.message.number == message.number:
                ike.asked = None
                ike.sent += 1
                self._answered(ike, asked, message)
                self._go_on(ike)
        elif message.number == ike.expected:
            ike.expected += 1
            self._requested(ike, message)
        elif message.number == ike.expected - 1 and ike.answered is not None:
            self.around.net.send(ike.answered)

    def _greet(self, message: Message) -> None:
        """A peer begins an IKE_SA, or did not get our answer."""
        for ike in self.ikes.values():
            if not ike.initiator and ike.initiator_spi == message.initiator_spi:
                if ike.answered is not None and ike.answered.number == message.number:
                    self.around.net.send(ike.answered)
                return
        loaded = next(
            (
                one
                for one in self.connections.values()
                if message.dst in one.connection.local and message.src in one.connection.remote
            ),
            None,
        )
        if loaded is None:
            self.around.net.send(message.refused("NO_PROPOSAL_CHOSEN"))
            return
        ike = self._new_ike(
            loaded,
            initiator=False,
            initiator_spi=message.initiator_spi,
            responder_spi=self.around.dice.getrandbits(64),
        )
        ike.expected = 1
        self._answer(ike, message, net.Welcome(ike.responder_spi))

        def too_late() -> None:
            if ike.own_spi in self.ikes and ike.state is IkeState.CONNECTING:
                self._destroy(ike)

        self.after(HALF_OPEN_SECONDS, too_late)

    def _answer(self, ike: IkeEnd, message: Message, body: net.Answer) -> None:
        ike.answered = self._message(ike, body, message.number, answers=True)
        self.around.net.send(ike.answered)

    def _requested(self, ike: IkeEnd, message: Message) -> None:
        match message.body:
            case net.Prove() as proof:
                believed = self._believes(ike, proof.identity)
                if believed and proof.peer == ike.loaded.connection.local_identity:
                    self._establish(ike)
                    identity = ike.loaded.connection.local_identity
                    made = self._respond(ike, proof.child)
                    self._answer(ike, message, net.Proven(identity, made))
                else:
                    self._answer(ike, message, net.Refusal("AUTHENTICATION_FAILED"))
                    self._fail(ike)
            case net.MakeChild() as wanted:
                self._answer(ike, message, self._respond(ike, wanted))
            case net.EndChild(spi):
                gone = next((one for one in ike.children if one.spi_out == spi), None)
                if gone is not None and gone.state is not ChildState.DELETING:
                    self._end_child(ike, gone)
                self._answer(ike, message, net.Done())
            case net.EndIke() | net.Disbelieve():
                self._answer(ike, message, net.Done())
                self._destroy(ike)
            case net.RekeyIke(spi):
                self._answer(ike, message, self._rekeyed_by_peer(ike, spi))
            case net.Probe():
                self._answer(ike, message, net.Done())

    def _believes(self, ike: IkeEnd, identity: str) -> bool:
        expected = ike.loaded.connection.remote_identity
        return identity == expected and identity not in self.around.net.disbelieved

    def _respond(self, ike: IkeEnd, wanted: net.MakeChild) -> net.ChildMade | net.Refusal:
        """Both SAs go into the kernel, then the answer goes out."""
        if ike.state is not IkeState.ESTABLISHED:
            return TEMPORARY
        config = ike.loaded.by_label(wanted.label)
        if config is None:
            return net.Refusal("TS_UNACCEPTABLE")
        ours = (proposal.aead for proposal in config.proposals)
        aead = next((one for one in ours if one in wanted.aeads), None)
        if aead is None:
            return net.Refusal("NO_PROPOSAL_CHOSEN")
        spi, nonce = self._new_spi(), os.urandom(16)
        sas.reserve(self.around.kernel(), ike, config, spi)
        self._install(ike, config, aead, (spi, wanted.spi), wanted.nonce + nonce)
        return net.ChildMade(aead, spi, nonce)

    def _rekeyed_by_peer(self, ike: IkeEnd, spi: int) -> net.IkeMade | net.Refusal:
        task = None if ike.asked is None else ike.asked.task
        if ike.state is not IkeState.ESTABLISHED or isinstance(task, sas.Make | sas.Drop):
            return TEMPORARY  # "a child is half-open"
        own_spi = self.around.dice.getrandbits(64)
        self._replace(ike, initiator=False, initiator_spi=spi, responder_spi=own_spi)

        def too_late() -> None:
            if ike.own_spi in self.ikes:
                self._destroy(ike)

        self.after(REKEYED_SECONDS, too_late)
        return net.IkeMade(own_spi)

    def _replace(
        self, old: IkeEnd, *, initiator: bool, initiator_spi: int, responder_spi: int
    ) -> None:
        """Another IKE_SA takes over CHILD_SAs and what waits."""
        new = self._new_ike(
            old.loaded,
            initiator=initiator,
            initiator_spi=initiator_spi,
            responder_spi=responder_spi,
            state=IkeState.ESTABLISHED,
        )
        old.state = IkeState.REKEYED
        new.children, old.children = old.children, []
        new.tasks += [one for one in old.tasks if isinstance(one.task, sas.Make | sas.Drop)]
        old.tasks.clear()
        now = self.around.now()
        self.around.tell(IkeRekeyed(old.tell(now), new.tell(now)))
        self._keep_up(new)
        self.after(0.0, lambda: self._go_on(new))

    # Answers of peers

    def _answered(self, ike: IkeEnd, asked: sas.Asked, message: Message) -> None:
        match asked.task, asked.message.body, message.body:
            case sas.Make(config), net.Hello(), net.Welcome(spi):
                ike.responder_spi = spi
                ours = ike.loaded.connection
                wanted = self._wanted(ike, config)
                proof = net.Prove(ours.local_identity, ours.remote_identity, wanted)
                self._ask(ike, proof, asked.task)
            case _, net.Hello() | net.Prove(), net.Refusal():
                self._fail(ike)
            case sas.Make(config), net.Prove(child=wanted), net.Proven(identity, made):
                if self._believes(ike, identity):
                    self._establish(ike)
                    self._made(ike, config, wanted, made)
                else:
                    self.around.net.send(self._message(ike, net.Disbelieve(), ike.sent))
                    self._fail(ike)
            case sas.Make(config), net.MakeChild() as wanted, (
                net.ChildMade() | net.Refusal()
            ) as made:
                self._made(ike, config, wanted, made)
            case sas.Drop(spi), _, _:
                child = ike.child(spi_in=spi)
                if child is not None:
                    self._end_child(ike, child)
            case sas.Renew(), net.RekeyIke(spi), net.IkeMade(other):
                self._replace(ike, initiator=True, initiator_spi=spi, responder_spi=other)
                self._ask(ike, net.EndIke(), asked.task)
            case _, net.EndIke(), _:
                self._destroy(ike)
            case sas.Renew(), _, _:
                ike.state = IkeState.ESTABLISHED
                self._again(ike, asked.task)

    def _fail(self, ike: IkeEnd) -> None:
        """One of the two is not believed: that is told, though the IKE_SA never stood."""
        ike.state = IkeState.DELETING
        self._destroy(ike)

    def _made(
        self,
        ike: IkeEnd,
        config: IkeChild,
        wanted: net.MakeChild,
        made: net.ChildMade | net.Refusal,
    ) -> None:
        """The peer has the CHILD_SA, or will not have it."""
        if isinstance(made, net.Refusal):
            self._give_back(ike)
            if made == TEMPORARY:
                self._again(ike, sas.Make(config))
            return
        ike.reserved = None
        spis, nonces = (wanted.spi, made.spi), wanted.nonce + made.nonce
        if not self._install(ike, config, made.aead, spis, nonces):
            self._ask(ike, net.EndChild(wanted.spi), sas.Drop(wanted.spi))


def _duplicate(child: ChildEnd, config: IkeChild) -> bool:
    """Whether a CHILD_SA is what another one of this configuration would be."""
    return child.state is ChildState.INSTALLED and child.config == config
