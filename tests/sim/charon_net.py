"""IKE messages between the charons of a simulation: delayed, lost, repeated, cut off."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.sim.directory import Later
from tunsec.model.aead import Aead
from tunsec.model.names import Address, Spi

# What a request asks


@dataclass(frozen=True, slots=True)
class Hello:
    """IKE_SA_INIT."""


@dataclass(frozen=True, slots=True)
class MakeChild:
    """CREATE_CHILD_SA: a CHILD_SA of this label, on which the sender receives with `spi`."""

    label: str
    aeads: tuple[Aead, ...]
    spi: Spi
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Prove:
    """IKE_AUTH: who I am, who you should be, and the first CHILD_SA."""

    identity: str
    peer: str
    child: MakeChild


@dataclass(frozen=True, slots=True)
class EndChild:
    """DELETE of the CHILD_SA on which the sender receives with `spi`."""

    spi: Spi


@dataclass(frozen=True, slots=True)
class EndIke:
    """DELETE of the IKE_SA."""


@dataclass(frozen=True, slots=True)
class Disbelieve:
    """AUTHENTICATION_FAILED in a message of its own, which nobody answers or sends again."""


@dataclass(frozen=True, slots=True)
class RekeyIke:
    """CREATE_CHILD_SA for another IKE_SA, in which this is the sender's SPI."""

    spi: int


@dataclass(frozen=True, slots=True)
class Probe:
    """An empty INFORMATIONAL: are you there?"""


# What is answered


@dataclass(frozen=True, slots=True)
class Welcome:
    """IKE_SA_INIT, with the responder's SPI of the IKE_SA."""

    spi: int


@dataclass(frozen=True, slots=True)
class ChildMade:
    """The sender has both SAs, and receives with `spi`."""

    aead: Aead
    spi: Spi
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A notify error."""

    words: str


@dataclass(frozen=True, slots=True)
class Proven:
    """IKE_AUTH: who I am, and what became of the first CHILD_SA."""

    identity: str
    child: ChildMade | Refusal


@dataclass(frozen=True, slots=True)
class IkeMade:
    """The other IKE_SA is there; the responder's SPI."""

    spi: int


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more to say."""


Request = Hello | Prove | MakeChild | EndChild | EndIke | Disbelieve | RekeyIke | Probe
Answer = Welcome | Proven | ChildMade | IkeMade | Refusal | Done


@dataclass(frozen=True, slots=True)
class Message:
    """What goes over the wire. `number` is the message ID, one sequence for each side's requests
    (RFC 7296 section 2.2); the responder's SPI is 0 in the first request."""

    src: Address
    dst: Address
    initiator_spi: int
    responder_spi: int
    by_initiator: bool
    """The sender initiated the IKE_SA."""
    number: int
    body: Request | Answer
    answers: bool = False

    def refused(self, words: str) -> "Message":
        """The answer to a first request that makes no IKE_SA."""
        body = Refusal(words)
        return replace(
            self, src=self.dst, dst=self.src, by_initiator=False, body=body, answers=True
        )


class Receiver(Protocol):
    """A charon."""

    def receive(self, message: Message) -> None:
        """A message has come."""
        ...


@dataclass(slots=True)
class IkeNetwork:
    """Carries messages, and what all charons know of the world."""

    dice: random.Random
    later: Later
    longest_delay: float = 0.005
    """Seconds that a message is on its way at most."""
    lose: float = 0.0
    repeat: float = 0.0
    """Chances in 0..1."""
    cut_off: Callable[[Address, Address], bool] = lambda src, dst: False
    """Whether nothing goes between two addresses."""
    disbelieved: set[str] = field(default_factory=set)
    """Identities whose certificate is bad: nobody takes their proof."""
    charons: dict[Address, Receiver] = field(default_factory=dict)

    def send(self, message: Message) -> None:
        """It arrives later, once, twice or not at all."""
        for _ in range(2 if self.dice.random() < self.repeat else 1):
            if self.dice.random() >= self.lose:
                delay = self.dice.uniform(0.0, self.longest_delay)
                self.later(delay, lambda: self._arrive(message))

    def _arrive(self, message: Message) -> None:
        receiver = self.charons.get(message.dst)
        if receiver is not None and not self.cut_off(message.src, message.dst):
            receiver.receive(message)
