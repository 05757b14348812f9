"""The connection that charon gets for one pair of addresses: who proves what, and a CHILD_SA
configuration for each flow, sender and slot.

Both hosts load the same children under the same names. The name is also the label that both sides
must give (RFC 9478), so charon never takes one flow's CHILD_SA, or one sender's, for another's.
"""

import ipaddress
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.flow import Child, ChildId, OffloadWish
from tunsec.model.ike import (
    MAX_NUMBER,
    SLOTS,
    CertificateAuth,
    ConnectionId,
    EspProposal,
    IkeChild,
    IkeConnection,
    IkeRules,
    Limits,
    PskAuth,
    TrafficSelector,
    Unique,
)
from tunsec.model.ike_sa import Algorithms
from tunsec.model.names import Address, HostName
from tunsec.model.sa import OffloadKind
from tunsec.plan.ike_proposals import esp_proposals, ike_proposals
from tunsec.plan.sas import lifetimes, replay_window

LOWER: Final = "a"
HIGHER: Final = "b"
"""The sender in a name: hosts are told apart by the order of their names."""
JITTER: Final = 0.1
"""IKE_SAs of hosts that started together are not all rekeyed in the same moment."""
LIFE_MARGIN: Final = 1.25
"""From the rekeying of an IKE_SA to its end, if rekeying failed."""
VARIANTS: Final = 3600
"""Then they begin anew: no IKE_SA of so many variants ago is left, and none may live for ever."""
GIB: Final = 1 << 30
OFFLOADED: Final = {OffloadWish.CRYPTO: OffloadKind.CRYPTO, OffloadWish.PACKET: OffloadKind.PACKET}
"""What a NIC is told to do; `auto` is decided before charon hears of it."""


@dataclass(frozen=True, slots=True)
class IkeSetup:
    """What all connections of a host share."""

    algorithms: Algorithms
    auth: CertificateAuth | PskAuth
    ppk_id: str | None
    aeads: tuple[Aead, ...]
    """What this host can, in the order of preference."""
    rules: IkeRules


@dataclass(frozen=True, slots=True)
class Slot:
    """What a child configuration is for."""

    child: ChildId
    own: bool
    """This host initiates it, and sends on it."""
    slot: int


def child_name(child: ChildId, *, sender: HostName, receiver: HostName, slot: int) -> str:
    """`FLOW.SENDER.SLOT` or `FLOW.TENANT.SENDER.SLOT`; flows and tenants have no dot in them."""
    tenant = f".{child.tenant}" if child.tenant is not None else ""
    return f"{child.flow}{tenant}.{LOWER if sender < receiver else HIGHER}.{slot}"


def slots(children: Iterable[Child], host: HostName) -> dict[str, Slot]:
    """Every child configuration of a connection by its name."""
    found: dict[str, Slot] = {}
    for child in children:
        peer = child.id.peer
        for own, sender, receiver in ((True, host, peer), (False, peer, host)):
            for slot in range(SLOTS):
                name = child_name(child.id, sender=sender, receiver=receiver, slot=slot)
                found[name] = Slot(child.id, own, slot)
    return found


def ike_connection(
    connection: ConnectionId,
    children: Sequence[Child],
    *,
    host: HostName,
    identities: Mapping[HostName, str],
    setup: IkeSetup,
    variant: int,
) -> IkeConnection:
    """The connection of `host` with a peer; `identities` are the names in their certificates.

    charon takes an IKE_SA for a new CHILD_SA only when both came of equal configurations: each
    `variant` ends its IKE_SAs a second later. Raises Refused when there is nothing to propose.
    """
    by_id = {child.id: child for child in children}
    return IkeConnection(
        name=connection.name,
        local=(connection.local,),
        remote=(connection.remote,),
        local_identity=identities[host],
        remote_identity=identities[connection.peer],
        auth=setup.auth,
        proposals=ike_proposals(setup.algorithms, setup.aeads),
        children=tuple(
            _child(name, by_id[slot.child], setup) for name, slot in slots(children, host).items()
        ),
        seconds=_seconds(setup.rules, variant),
        dpd_after=setup.rules.dpd_after,
        unique=Unique.NEVER,
        ppk_id=setup.ppk_id,
    )


def _seconds(rules: IkeRules, variant: int) -> Limits:
    """charon rekeys IKE_SAs itself; it is tunsec that asks for new proof of identity."""
    rekey = math.ceil(rules.rekey_after)
    life = math.ceil(rekey * LIFE_MARGIN) + variant % VARIANTS
    return Limits(rekey, life, math.floor(rekey * JITTER))


def _child(name: str, child: Child, setup: IkeSetup) -> IkeChild:
    """tunsec rekeys by a new CHILD_SA of its own, so charon's rekeying is off; the hard limits
    stand in the kernel. charon gives both SAs the same: the longer ones, the receiver's."""
    ends = lifetimes(child.rekey, inbound=True)
    return IkeChild(
        name=name,
        reqid=child.reqid,
        local=(_selector(child.id.local, child),),
        remote=(_selector(child.id.remote, child),),
        proposals=_proposals(child, setup),
        replay_window=replay_window(child, OFFLOADED.get(child.offload)),
        seconds=Limits(None, ends.hard_seconds),
        volume=Limits(None, _readable_bytes(ends.hard_bytes)),
        packets=Limits(None, _readable_packets(ends.hard_packets)),
        label=name,
        set_mark_in=child.mark,
        offload=child.offload,
    )


def _proposals(child: Child, setup: IkeSetup) -> tuple[EspProposal, ...]:
    able = [aead for aead in setup.aeads if aead in child.aeads]
    if not able:
        wanted = " or ".join(child.aeads)
        raise Refused(f"a proposal for {child.id.flow}", reason=f"this host has no {wanted}")
    return esp_proposals(setup.algorithms, able, esn=child.esn)


def _readable_bytes(count: int | None) -> int | None:
    """charon reads numbers beyond MAX_NUMBER by a unit: in whole GiB, a millionth less at most."""
    return count if count is None or count <= MAX_NUMBER else count // GIB * GIB


def _readable_packets(count: int | None) -> int | None:
    """No SA carries MAX_NUMBER packets in the month after which it is replaced at the latest."""
    return None if count is None else min(count, MAX_NUMBER)


def _selector(address: Address, child: Child) -> TrafficSelector:
    """All of the protocol: which ports may use the SAs is the business of our SPs."""
    return TrafficSelector(ipaddress.ip_network(address), child.outbound[0].proto)
