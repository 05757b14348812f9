"""The laws, checked on what the kernels hold, not on what the machines believe."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.kernel import Packet
from tunsec.daemon.scope import Scope
from tunsec.machines import ike_peer, pair
from tunsec.model.flow import Child, Keying
from tunsec.model.ike import GIVES_UP_AFTER
from tunsec.model.names import Address, HostName, Mark, Reqid
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.record import Claim
from tunsec.model.sa import Sa, SaId
from tunsec.model.sp import Sp, SpDirection, SpId
from tunsec.policy.desired import Held

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World

MAX_KEYS = 3
"""Private keys: previous, current, next."""
MAX_SAS = 3
"""SAs of a child in one direction: previous, current, next."""
MAX_CHILD_SAS = 8
"""CHILD_SAs of a child: two of each sender, and as many that the peer has lost with its charon."""
MAX_PEER_OFFERS = 4
"""Offers kept of a peer: previous, current, next, and one on its way."""


class Broken(AssertionError):
    """A law was broken."""


class _Version(NamedTuple):
    """Equal as long as nothing that a law is about has changed."""

    open: tuple[object, ...]
    """What decides whether a packet may pass in clear."""
    kernel: int
    revoked: frozenset[tuple[str, int]]


@dataclass(slots=True)
class _Sas:
    """Keys of a host's inbound SAs by address and SPI, and its outbound SAs by peer."""

    inbound: dict[tuple[int, int], bytes] = field(default_factory=dict)
    outbound: dict[str, list[tuple[int, int, bytes, SaId]]] = field(default_factory=dict)


_NOTHING = _Sas()


class Laws:
    """Holds the world to laws 1 to 4 and 8, and the machines' own promises."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._packets: dict[int, tuple[Scope, frozenset[tuple[Packet, bool]]]] = {}
        self._keys: dict[bytes, set[tuple[str, SaId]]] = {}
        self._installs_seen: dict[str, int] = {}
        self._foreign: dict[str, tuple[dict[SaId, Sa], dict[SpId, Sp]]] = {}
        self._versions: dict[str, _Version] = {}
        self._sas: dict[str, _Sas] = {}
        self._excused: set[SaId] = set()
        self._leaving: dict[str, set[tuple[Reqid, Address]]] = {}
        self._owners = {
            int(address): host.name for host in world.intent.hosts for address in host.addresses
        }
        self._services = {
            int(address): service.name
            for service in world.intent.service_addresses
            for address in service.addresses
        }
        self._claims: dict[tuple[str, str], Claim] = {}
        """The newest claim on each service that each host ever believed, over all its lives."""
        self.checks = 0

    def check(self) -> None:
        """Raise Broken, with the story, if a law does not hold now."""
        self.checks += 1
        changed: list[SimHost] = []
        for host in self._world.hosts.values():
            self._excuse_what_is_spent(host)
        for host in self._world.hosts.values():
            version = _version(host)
            before = self._versions.get(host.name)
            if before == version:
                continue
            self._versions[host.name] = version
            if before is None or before.open != version.open:
                self._no_clear_packet(host)
            self._no_key_twice(host)
            self._only_what_is_ours(host)
            self._nothing_with_the_revoked(host)
            self._one_owner(host)
            self._tenants_apart(host)
            self._promises(host)
            self._note_sas(host)
            changed.append(host)
        for host in changed:
            self._receiver_first(host)

    def breaks(self, text: str) -> None:
        """Somebody else has seen a law broken."""
        self._break(text)

    def _break(self, text: str) -> None:
        raise Broken(f"{text}\n{self._world.tale()}")

    def _excuse_what_is_spent(self, host: "SimHost") -> None:
        """After a break law 7 counts more than law 2: what there is goes, whoever sends on it."""
        if host.engine is None or not host.engine.gates.needed:
            return
        for child in host.engine.scope.children:
            if host.engine.gates.closed_reason(child.id):
                self.excuse(
                    sa_id
                    for sa_id, sa in host.kernel.all_sas()
                    if sa.reqid == child.reqid and sa_id.dst == child.id.local
                )

    # What the world tells: what nobody could avoid

    def foreign_changed(self, host: "SimHost") -> None:
        """From now on these foreign SAs and SPs must stay just as they are."""
        self._foreign[host.name] = foreign(host)

    def excuse(self, ids: Iterable[SaId]) -> None:
        """Inbound SAs that go by somebody's hand, or by a reboot: their twins are orphans."""
        self._excused.update(ids)

    def kernel_replaced(self, host: "SimHost") -> None:
        """A reboot: the SAD is empty."""
        self.excuse(sa_id for sa_id, _ in host.kernel.all_sas())
        self._installs_seen[host.name] = 0
        self._foreign.pop(host.name, None)

    def may_expire(self, host: "SimHost") -> None:
        """SAs reach their end by the clock. The inbound one is the older by what its confirmation
        took, and lives longer by INBOUND_GRACE: a sender that could not rekey for a whole hard
        lifetime may be left alone for the difference."""
        self.excuse(host.kernel.expiring())

    def may_drop(self, host: "SimHost", scope: Scope) -> None:
        """A policy takes children away here, while peers may still have theirs."""
        before = host.scope if host.engine is None else host.engine.scope
        marks = {(one.id.flow, one.id.tenant): one.mark for one in before.children if one.mark}
        then = {(one.id, one.mark) for one in scope.with_held(Held({}, marks)).children}
        gone = {child.id for child in before.children if (child.id, child.mark) not in then}
        self._leaving[host.name] = {
            (child.reqid, child.id.local) for child in before.children if child.id in gone
        }
        self.drops_late(host)

    def drops_late(self, host: "SimHost") -> None:
        """What a policy took away goes now: a daemon may have died before it came to that, and
        have got new SAs meanwhile."""
        leaving = self._leaving.get(host.name, set())
        self.excuse(
            sa_id for sa_id, sa in host.kernel.all_sas() if (sa.reqid, sa_id.dst) in leaving
        )

    def may_cut_off(self, host: "SimHost", peer: "SimHost") -> None:
        """A peer is revoked here: what it sends on may go at any time from now on."""
        self.excuse(
            sa_id
            for sa_id, sa in host.kernel.all_sas()
            if self._owners.get(int(sa.src)) == peer.name and is_our_sa(sa)
        )

    def forgets(self, host: "SimHost") -> None:
        """A daemon ends that could not write down what it had learnt: its next life knows what the
        disk took, until the directory tells it the rest."""
        self._claims = {key: one for key, one in self._claims.items() if key[0] != host.name}
        for known in host.claims.claims:
            self._claims[host.name, known.claim.service] = known.claim

    def may_open(self, host: "SimHost", scope: Scope) -> None:
        """An admin releases flows."""
        self.may_drop(host, scope)
        host.closed &= packets(scope)

    # Law 1

    def _no_clear_packet(self, host: "SimHost") -> None:
        """Once closed, never open; and closed as soon as a daemon has started.

        SPs alone must hold; where somebody else opened them, the guard table must.
        """
        scope = host.scope if host.engine is None else host.engine.scope
        known = self._packets.get(id(scope))
        if known is None:
            known = scope, packets(scope)
            self._packets[id(scope)] = known
        leaks = False
        for packet, outbound in known[1] | host.closed:
            if not _leaks(host, packet, outbound=outbound):
                host.closed.add((packet, outbound))
                continue
            leaks = True
            if (packet, outbound) not in host.closed and host.engine is None:
                continue  # nothing was ever promised here
            by_others = host.tampered or _ruled_by_others(host, packet, outbound=outbound)
            if not (by_others and host.guard.drops_clear(packet)):
                way = "out of" if outbound else "into"
                self._break(f"law 1: {packet} goes {way} {host.name} in clear")
        if host.tampered and not leaks:
            held = {sp.id for sp in host.kernel.spd()}
            host.tampered = any(sp.id not in held for sp in scope.blocks)

    # Law 2

    def _note_sas(self, host: "SimHost") -> None:
        """Sort a host's SAs by where they lead, with names that are quick to look up.

        charon makes SAs in pairs. Those on which it is not this host that should send, or not yet,
        are spare; and what is left of another keying drains. So an outbound SA of a child that IKE
        keys counts when our SPs pin it.
        """
        sas = _Sas()
        pinned = {
            (template.dst, template.spi)
            for sp in host.kernel.spd()
            if sp.id.direction is SpDirection.OUT and is_our_sp(sp)
            for template in sp.templates
        }
        scope = host.scope if host.engine is None else host.engine.scope
        reqids = {child.reqid for child in scope.children}
        by_ike = set() if host.engine is None else host.engine.ike.reqids()
        for sa_id, sa, key in host.kernel.keyed_sas():
            owner = self._owners.get(int(sa_id.dst))
            if int(sa.src) in self._services:
                continue  # what moves has a law of its own
            if owner == host.name:
                sas.inbound[int(sa_id.dst), sa_id.spi] = key
                if sa.reqid not in reqids and host.kernel.made_by_others(sa_id):
                    self._excused.add(sa_id)  # the policy does not want what charon made, it goes
            elif owner is not None and is_our_sa(sa) and sa_id not in self._excused:
                spare = host.kernel.made_by_others(sa_id) or sa.reqid in by_ike
                if spare and (sa_id.dst, sa_id.spi) not in pinned:
                    continue
                if host.kernel.made_by_others(sa_id):
                    self._as_asked(host, sa)
                    if self._given_up(host, owner, sa_id, key):
                        continue
                sas.outbound.setdefault(owner, []).append((int(sa_id.dst), sa_id.spi, key, sa_id))
        self._sas[host.name] = sas

    def _given_up(self, host: "SimHost", peer: str, sa_id: SaId, key: bytes) -> bool:
        """Whether this is half of a CHILD_SA that the peer asked for, and gave up without our
        answer. Nobody tells that; having nothing better we may try it, and send to nobody."""
        came = (peer, sa_id) in self._keys.get(key, ())
        return not came and host.kernel.age_of(sa_id) >= GIVES_UP_AFTER

    def _as_asked(self, host: "SimHost", sa: Sa) -> None:
        """Law 6: what charon made otherwise than it was asked to is not used."""
        if not sa.replay.esn or sa.lifetimes.hard_seconds is None:
            self._break(f"law 6: {host.name} sends on {sa.id}, which is not as it was asked for")

    def _receiver_first(self, host: "SimHost") -> None:
        """An outbound SA of ours, here or at a peer, has its inbound twin with the same key."""
        for peer in self._world.hosts:
            self._twins(host.name, peer)
            self._twins(peer, host.name)

    def _twins(self, sender: str, receiver: str) -> None:
        inbound = self._sas.get(receiver, _NOTHING).inbound
        for dst, spi, key, sa_id in self._sas.get(sender, _NOTHING).outbound.get(receiver, ()):
            if inbound.get((dst, spi)) != key and sa_id not in self._excused:
                self._break(f"law 2: {sender} may send on {sa_id}, {receiver} has no twin")

    # Law 3

    def _no_key_twice(self, host: "SimHost") -> None:
        """A key is installed at most once in one SAD, and under one SPI and destination."""
        seen = self._installs_seen.get(host.name, 0)
        for sa_id, key in host.kernel.installed_keys[seen:]:
            places = self._keys.setdefault(key, set())
            if (host.name, sa_id) in places or any(other != sa_id for _, other in places):
                self._break(f"law 3: a key is used twice: {sa_id} on {host.name}")
            places.add((host.name, sa_id))
        self._installs_seen[host.name] = len(host.kernel.installed_keys)

    # Law 4

    def _only_what_is_ours(self, host: "SimHost") -> None:
        owned = self._foreign.get(host.name)
        if owned is not None and foreign(host) != owned:
            self._break(f"law 4: a foreign SA or SP changed on {host.name}")

    # Revocation

    def _nothing_with_the_revoked(self, host: "SimHost") -> None:
        """A daemon has no SA of directory keying with a peer whose certificate is revoked here."""
        if host.engine is None or not host.revoked:
            return
        peers = {name for name, number in host.revoked if self._certificate(name) == number}
        reqids = {
            child.reqid
            for child in host.engine.scope.children
            if child.keying is Keying.DIRECTORY and child.id.peer in peers
        }
        for sa_id, sa in host.kernel.all_sas():
            if sa.reqid in reqids and is_our_sa(sa):
                self._break(f"revoked: {host.name} has {sa_id} with one of {peers}")

    def _certificate(self, name: str) -> int:
        return self._world.hosts[HostName(name)].certificate

    # Law 8

    def _one_owner(self, host: "SimHost") -> None:
        """SAs over a service address are with the owner whose claim is the newest that the host
        ever believed; and on an owner, only while the address is there."""
        if host.engine is None:
            return
        for one in host.engine.vips.standings():
            known = self._claims.get((host.name, one.service.name))
            if known is not None and (one.claim is None or one.claim.token < known.token):
                self._break(f"law 8: {host.name} goes back behind {known} to {one.claim}")
            if one.claim is not None:
                self._claims[host.name, one.service.name] = one.claim
        children = {child.reqid: child.id for child in host.engine.scope.children}
        used = {template.reqid for sp in host.kernel.spd() for template in sp.templates}
        for sa_id, sa, key in host.kernel.keyed_sas():
            if not is_our_sa(sa) or not self._services.keys() & {int(sa.src), int(sa_id.dst)}:
                continue
            if host.kernel.silent or sa_id in self._excused:
                continue
            child = children.get(sa.reqid)
            if child is None:
                if sa.reqid in used or not host.kernel.made_by_others(sa_id):
                    self._break(f"law 8: {host.name} keeps {sa_id} with a former holder")
                continue  # charon takes its time to delete what no SP uses
            others = {name for name, _ in self._keys[key] if name != host.name}
            self._with_holder(host, child.local, host.name, {host.name})
            self._with_holder(host, child.remote, child.peer, others)

    def _with_holder(self, host: "SimHost", at: Address, holder: str, keyed: set[str]) -> None:
        """One end of an SA, if it is a service address; `keyed` are hosts that had its key."""
        service = self._services.get(int(at))
        if service is None:
            return
        claim = self._claims.get((host.name, service))
        if claim is None or not claim.held or claim.owner != holder or keyed - {holder}:
            self._break(f"law 8: {host.name} has SAs over {at} with {holder} {keyed}, by {claim}")
        if holder == host.name and at not in host.links.held:
            self._break(f"law 8: {host.name} has SAs over {at} and not the address")

    # Tenants

    def _tenants_apart(self, host: "SimHost") -> None:
        """What a tenant sends goes by its own SAs, and what its SAs decrypt bears its mark."""
        if host.engine is None:
            return  # which marks are in force, only the daemon's scope says
        marked = {
            child.reqid: child for child in host.engine.scope.children if child.mark is not None
        }
        owners: dict[Mark, set[object]] = {}
        for child in marked.values():
            if child.mark is not None:
                owners.setdefault(child.mark, set()).add((child.id.flow, child.id.tenant))
                self._by_its_own_sas(host, child, child.mark)
        for mark, sharing in owners.items():
            if len(sharing) > 1:
                self._break(f"tenants: {host.name} gives {mark} to {sharing}")
        for sa_id, sa, _ in host.kernel.keyed_sas():
            owner = marked.get(sa.reqid)
            if owner is None or sa_id.dst != owner.id.local or sa.output_mark == owner.mark:
                continue
            # charon has been told to end what has a mark of before; our SPs let none of it in.
            late = host.kernel.made_by_others(sa_id) and sa.output_mark not in owners
            if not late:
                self._break(f"tenants: {host.name} has {sa_id} of {owner.id} without its mark")

    def _by_its_own_sas(self, host: "SimHost", child: Child, mark: Mark) -> None:
        for selector in child.outbound:
            sent = Packet(
                child.id.local,
                child.id.remote,
                selector.proto,
                40_000,
                selector.dport.port,
                mark.value,
            )
            sp = host.kernel.lookup(SpDirection.OUT, sent)
            if sp is None or not is_our_sp(sp):
                continue
            if any(template.reqid != child.reqid for template in sp.templates):
                self._break(f"tenants: {host.name} sends {child.id} by the SAs of another")

    # Promises

    def _promises(self, host: "SimHost") -> None:
        if host.engine is None or host.ring is None:
            return
        for state in host.engine.pairs.values():
            pair.check(state)
            for flow in state.flows.values():
                if max(len(flow.outbound), len(flow.inbound)) > MAX_SAS:
                    self._break(
                        f"{host.name}: {flow.child.id} has {len(flow.outbound)} outbound and "
                        f"{len(flow.inbound)} inbound SAs"
                    )
        held = len(host.engine.offers.offers)
        if held > MAX_KEYS:
            self._break(f"{host.name} holds {held} offers")
        if host.ring.private_values != held:
            self._break(f"{host.name}: {host.ring.private_values} private keys, {held} offers")
        if host.ring.pair_secrets > held * MAX_PEER_OFFERS * (len(self._world.hosts) - 1):
            self._break(f"{host.name}: {host.ring.pair_secrets} secrets of pairs")
        for connection, ike_flow in host.engine.ike.flows():
            ike_peer.check(connection.state)
            if len(ike_flow.held) > MAX_CHILD_SAS:
                self._break(f"{host.name}: {ike_flow.child.id} has {len(ike_flow.held)} CHILD_SAs")


def packets(scope: Scope) -> frozenset[tuple[Packet, bool]]:
    """A packet of each flow that a scope answers for, to and from each peer; True leaves. Those
    that leave bear no mark, or that of any tenant."""
    return frozenset(
        (Packet(own, peer, flow.proto, 40_000, port, mark), True)
        if outbound
        else (Packet(peer, own, flow.proto, 40_000, port), False)
        for flow in scope.guarded
        for port in flow.ports
        for peer in flow.peers
        for own in scope.addresses
        if own.version == peer.version
        for outbound in (True, False)
        for mark in (0, *(one.mark.value for one in flow.tenants if outbound))
    )


def foreign(host: "SimHost") -> tuple[dict[SaId, Sa], dict[SpId, Sp]]:
    """SAs and SPs of other programs."""
    return (
        {sa_id: sa for sa_id, sa in host.kernel.all_sas() if not is_our_sa(sa)},
        {sp.id: sp for sp in host.kernel.spd() if not is_our_sp(sp)},
    )


def opened_by_others(host: "SimHost") -> bool:
    """Whether another program's SPs let packets of a flow pass: only the guard table holds them."""
    return any(_leaks(host, packet, outbound=outbound) for packet, outbound in packets(host.scope))


def _version(host: "SimHost") -> "_Version":
    kernel = host.kernel
    scope = host.scope if host.engine is None else host.engine.scope
    guarded = host.guard.guard is not None
    return _Version(
        (id(kernel), kernel.spd_version, guarded, host.engine is None, id(scope)),
        kernel.version,
        host.revoked,
    )


def _leaks(host: "SimHost", packet: Packet, *, outbound: bool) -> bool:
    if outbound:
        return host.kernel.would_send_clear(packet)
    return host.kernel.receive(packet)


def _ruled_by_others(host: "SimHost", packet: Packet, *, outbound: bool) -> bool:
    direction = SpDirection.OUT if outbound else SpDirection.IN
    sp = host.kernel.lookup(direction, packet)
    return sp is not None and not is_our_sp(sp)
