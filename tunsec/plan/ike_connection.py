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
from tunsec.model.flow import Child, ChildId
from tunsec.model.ike import (
    SLOTS,
    CertificateAuth,
    ConnectionId,
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
from tunsec.plan.ike_proposals import esp_proposals, ike_proposals
from tunsec.plan.sas import HARD_MARGIN, INBOUND_GRACE

LOWER: Final = "a"
HIGHER: Final = "b"
"""The sender in a name: hosts are told apart by the order of their names."""
JITTER: Final = 0.1
"""IKE_SAs of hosts that started together are not all rekeyed in the same moment."""
LIFE_MARGIN: Final = 1.25
"""From the rekeying of an IKE_SA to its end, if rekeying failed."""


@dataclass(frozen=True, slots=True)
class IkeSetup:
    """What all connections of a host share."""

    algorithms: Algorithms
    auth: CertificateAuth | PskAuth
    ppk_id: str | None
    aeads: tuple[Aead, ...]
    """In the order of preference."""
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
    rules = setup.rules
    rekey = math.ceil(rules.rekey_after)
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
        seconds=Limits(
            rekey, math.ceil(rekey * LIFE_MARGIN) + 1 + variant, math.floor(rekey * JITTER)
        ),
        dpd_after=rules.dpd_after,
        unique=Unique.NEVER,
        ppk_id=setup.ppk_id,
    )


def _child(name: str, child: Child, setup: IkeSetup) -> IkeChild:
    """tunsec rekeys by a new CHILD_SA of its own, so charon's rekeying is off; the hard limits
    stand in the kernel. charon gives both SAs the same, so the longer one of plan/sas.py."""
    rule = child.rekey
    return IkeChild(
        name=name,
        reqid=child.reqid,
        local=(_selector(child.id.local, child),),
        remote=(_selector(child.id.remote, child),),
        proposals=esp_proposals(
            setup.algorithms, [aead for aead in setup.aeads if aead in child.aeads]
        ),
        replay_window=child.replay_window,
        seconds=Limits(None, math.ceil(rule.hard_after * INBOUND_GRACE)),
        volume=Limits(None, _hard(rule.soft_bytes)),
        packets=Limits(None, _hard(rule.soft_packets)),
        label=name,
        offload=child.offload,
    )


def _hard(soft: int | None) -> int | None:
    return None if soft is None else int(soft * HARD_MARGIN * INBOUND_GRACE)


def _selector(address: Address, child: Child) -> TrafficSelector:
    """All of the protocol: which ports may use the SAs is the business of our SPs."""
    return TrafficSelector(ipaddress.ip_network(address), child.outbound[0].proto)
