"""Which NIC carries a child's SAs: what the policy wishes, held against what the device takes.

What a device takes is found by trying: an SA with a key of its own that nothing uses, read back and
removed at once. It is remembered until the device changes. No ACK is believed: where a driver does
not know crypto offload the kernel says yes and does the work itself (net/xfrm/xfrm_device.c
xfrm_dev_state_add).
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from tunsec.daemon.journal import fields
from tunsec.model.aead import Aead
from tunsec.model.errors import Refused, Unavailable
from tunsec.model.flow import Child, OffloadWish
from tunsec.model.names import Address, Spi
from tunsec.model.ownership import REQID_TRIAL
from tunsec.model.sa import Lifetimes, OffloadKind, Sa, SaDirection, SaId
from tunsec.model.secret import Secret
from tunsec.model.step import AddSa, RemoveSa
from tunsec.model.underlay import EspFeature, Nic, Underlay
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.plan.image import Image
from tunsec.plan.sas import inbound_sa
from tunsec.policy.desired import inbound_sps, outbound_sps
from tunsec.ports import Entropy, Kernel, Links

TRIAL_SECONDS: Final = 5
"""The kernel itself removes a trial that a crash left behind."""

KINDS: Final = {
    OffloadWish.NONE: (),
    OffloadWish.CRYPTO: (OffloadKind.CRYPTO,),
    OffloadWish.PACKET: (OffloadKind.PACKET,),
    OffloadWish.AUTO: (OffloadKind.PACKET, OffloadKind.CRYPTO),
}
"""What a wish asks for, best first."""
WISHES: Final = {OffloadKind.CRYPTO: OffloadWish.CRYPTO, OffloadKind.PACKET: OffloadWish.PACKET}

log = logging.getLogger("tunsec.offload")


@dataclass(frozen=True, slots=True)
class _Question:
    """What was tried of a device: all that its driver may look at."""

    kind: OffloadKind
    aead: Aead
    esn: bool
    version: int


class Offloads:
    """What the devices of this host take."""

    def __init__(self, *, kernel: Kernel, links: Links, entropy: Entropy) -> None:
        self._kernel = kernel
        self._links = links
        self._entropy = entropy
        self._ways: dict[tuple[Address, Address], Underlay | None] = {}
        self._known: dict[tuple[Underlay, _Question], str] = {}
        """Why a device does not take it; empty when it does."""
        self._told: dict[tuple[Underlay, _Question], str] = {}

    def forget_ways(self) -> None:
        """Routes may have changed."""
        self._ways.clear()

    def forget(self, ifindexes: Collection[int] | None) -> None:
        """These devices changed, or (None) any: they are tried again."""
        self.forget_ways()
        self._known = {
            (device, question): reason
            for (device, question), reason in self._known.items()
            if ifindexes is not None and device.ifindex not in ifindexes
        }

    def nic(self, child: Child, aead: Aead) -> Nic | None:
        """What shall carry a child's SAs with an AEAD; None is the CPU.

        Raises Refused when the policy lets nothing else do the work and the device does not.
        """
        kinds = KINDS[child.offload]
        if not kinds:
            return None
        device = self._device(child)
        if device is None:
            if child.offload is OffloadWish.AUTO:
                return None
            raise _refused(child, f"no device leads to {child.id.remote}", "give the host a route")
        reasons = []
        for kind in kinds:
            reason = self._reason(device, kind, child, aead)
            if not reason:
                return Nic(kind, device.ifindex, device.name)
            reasons.append(reason)
        if child.offload is OffloadWish.AUTO:
            return None
        raise _refused(child, f"{device.name}: {reasons[-1]}", _remedy(device, reasons[-1]))

    def refusal(self, child: Child) -> str:
        """Why nothing carries a child as the policy wishes; empty when something may."""
        reasons = []
        for aead in child.aeads:
            try:
                self.nic(child, aead)
            except Refused as error:
                reasons.append(str(error))
            else:
                return ""
        return reasons[0] if reasons else ""

    def settled(self, child: Child) -> Child:
        """The child with `auto` decided: what the device takes with every AEAD that may be agreed
        on. For charon, which wants to be told before it agrees on one, and whose own `auto` fails
        where the device takes neither."""
        if child.offload is not OffloadWish.AUTO:
            return child
        nics = [self.nic(child, aead) for aead in child.aeads]
        kinds = {None if nic is None else nic.kind for nic in nics}
        if kinds == {OffloadKind.PACKET, OffloadKind.CRYPTO}:
            kinds = {OffloadKind.CRYPTO}
        kind = kinds.pop() if len(kinds) == 1 else None
        return replace(child, offload=OffloadWish.NONE if kind is None else WISHES[kind])

    def declined(self, child: Child, aead: Aead, nic: Nic, reason: str) -> None:
        """A device that took the trial did not take the real thing: its tables may be full."""
        device = self._device(child)
        if device is not None and device.ifindex == nic.ifindex:
            self._remember(device, _question(nic.kind, child, aead), reason)

    def _device(self, child: Child) -> Underlay | None:
        way = (child.id.local, child.id.remote)
        if way not in self._ways:
            try:
                self._ways[way] = self._links.underlay(*way)
            except (Refused, Unavailable):
                return None
        return self._ways[way]

    def _reason(self, device: Underlay, kind: OffloadKind, child: Child, aead: Aead) -> str:
        """Why a device does not take a child's SAs; empty when it does."""
        if device.esp is EspFeature.ABSENT:
            return "the device has no ESP offload"
        if device.esp is EspFeature.OFF:
            return "its feature esp-hw-offload is off"
        question = _question(kind, child, aead)
        known = self._known.get((device, question))
        if known is not None:
            return known
        try:
            reason = self._try(device, kind, child, aead)
        except Unavailable as error:
            return str(error)
        self._remember(device, question, reason)
        return reason

    def _remember(self, device: Underlay, question: _Question, reason: str) -> None:
        before = self._told.get((device, question))
        self._known[device, question] = self._told[device, question] = reason
        if before == reason:
            return
        told = {"device": device.name, "offload": question.kind, "aead": question.aead}
        log.info(
            "device does not take SAs" if reason else "device takes SAs",
            extra=fields(told | ({"reason": reason} if reason else {})),
        )

    def _try(self, device: Underlay, kind: OffloadKind, child: Child, aead: Aead) -> str:
        nic = Nic(kind, device.ifindex, device.name)
        sa = self._trial(child, aead, nic)
        (answer,) = self._kernel.apply([AddSa(sa, SaDirection.INBOUND)])
        if sa.key is not None:
            sa.key.wipe()
        if answer is not None:
            return answer.reason or str(answer)
        there = self._kernel.sa(sa.id)
        self._kernel.apply([RemoveSa(sa.id)])
        if there is None or not sa_matches(sa, there):
            return "the kernel took the SA and did not give it to the device"
        return ""

    def _trial(self, child: Child, aead: Aead, nic: Nic) -> Sa:
        """As the child's inbound SAs, of which drivers want the most."""
        halves = [self._entropy.private_value() for _ in range(2)]
        raw = b"".join(half.reveal() for half in halves)[: aead.key_bytes + aead.salt_bytes]
        for half in halves:
            half.wipe()
        sa = inbound_sa(child, Spi(self._entropy.spi()), aead=aead, key=Secret(raw), nic=nic)
        return replace(sa, reqid=REQID_TRIAL, lifetimes=Lifetimes(hard_seconds=TRIAL_SECONDS))


def carried(child: Child, spi_in: Spi | None, spi_out: Spi | None, have: Image) -> OffloadWish:
    """What a NIC does for a child, as the kernel holds its SAs: the least of both directions.

    `packet` only if the SPs that must be the NIC's are there too. Nothing else may be taken for
    proof that a device that delivers past the kernel protects what it carries.
    """
    inbound = None if spi_in is None else have.sas.get(SaId(child.id.local, spi_in))
    outbound = None if spi_out is None else have.sas.get(SaId(child.id.remote, spi_out))
    if inbound is None or outbound is None:
        return OffloadWish.NONE
    if inbound.offload is None or outbound.offload is None:
        return OffloadWish.NONE
    if inbound.offload.kind is not outbound.offload.kind:
        return OffloadWish.CRYPTO
    if outbound.offload.kind is OffloadKind.CRYPTO:
        return OffloadWish.CRYPTO
    wanted = (
        *inbound_sps(child, inbound.offload),
        *outbound_sps(child, outbound.id.spi, outbound.offload),
    )
    stand = all(sp.id in have.sps and sp_matches(sp, have.sps[sp.id]) for sp in wanted)
    return OffloadWish.PACKET if stand else OffloadWish.NONE


def _question(kind: OffloadKind, child: Child, aead: Aead) -> _Question:
    return _Question(kind, aead, child.esn, child.id.local.version)


def _refused(child: Child, reason: str, remedy: str) -> Refused:
    return Refused(f"offload: {child.offload}", reason=f"{reason} ({remedy})")


def _remedy(device: Underlay, reason: str) -> str:
    if device.esp is EspFeature.OFF:
        return f"`ethtool -K {device.name} esp-hw-offload on`"
    if "ESN" in reason:  # xfrm_dev_state_add: "Device doesn't support offload with ESN"
        return "use 'sequence_numbers: 32-bit', or 'offload: none'"
    return "use 'offload: auto' or 'none'"
