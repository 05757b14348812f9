"""The laws, checked on what the kernels hold, not on what the machines believe."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tests.sim.kernel import Packet
from tunsec.daemon.scope import Scope
from tunsec.machines import pair
from tunsec.model.names import HostName
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import Sa, SaId
from tunsec.model.selector import UDP
from tunsec.model.sp import Sp, SpDirection, SpId

if TYPE_CHECKING:
    from tests.sim.host import SimHost
    from tests.sim.world import World

MAX_KEYS = 3
"""Private keys: previous, current, next."""
MAX_SAS = 3
"""SAs of a child in one direction: previous, current, next."""
MAX_PEER_OFFERS = 4
"""Offers kept of a peer: previous, current, next, and one on its way."""


class Broken(AssertionError):
    """A law was broken."""


class Laws:
    """Holds the world to laws 1 to 4 and the machines' own promises."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._packets: dict[int, tuple[Scope, frozenset[tuple[Packet, bool]]]] = {}
        self._keys: dict[bytes, set[tuple[str, SaId]]] = {}
        self._installs_seen: dict[str, int] = {}
        self._foreign: dict[str, tuple[dict[SaId, Sa], dict[SpId, Sp]]] = {}
        self._versions: dict[str, object] = {}
        self._excused: set[SaId] = set()
        self._owners = {
            address: host.name for host in world.intent.hosts for address in host.addresses
        }
        self.checks = 0

    def check(self) -> None:
        """Raise Broken, with the story, if a law does not hold now."""
        self.checks += 1
        changed: set[str] = set()
        for host in self._world.hosts.values():
            version = _version(host)
            if self._versions.get(host.name) != version:
                self._versions[host.name] = version
                changed.add(host.name)
                self._no_clear_packet(host)
                self._no_key_twice(host)
                self._only_what_is_ours(host)
                self._promises(host)
        if changed:
            for host in self._world.hosts.values():
                self._receiver_first(host, changed)

    def _break(self, text: str) -> None:
        raise Broken(f"{text}\n{self._world.tale()}")

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
        gone = {child.id for child in before.children} - {child.id for child in scope.children}
        reqids = {child.reqid for child in before.children if child.id in gone}
        self.excuse(
            sa_id
            for sa_id, sa in host.kernel.all_sas()
            if sa.reqid in reqids and sa_id.dst in before.addresses
        )

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
        if not leaks:
            host.tampered = False

    # Law 2

    def _receiver_first(self, host: "SimHost", changed: set[str]) -> None:
        """An outbound SA of ours has its inbound twin, with the same key, at the peer."""
        for sa_id, sa in host.kernel.all_sas():
            owner = self._owners.get(sa_id.dst)
            if (
                owner is None
                or owner == host.name
                or not (owner in changed or host.name in changed)
            ):
                continue
            if not is_our_sa(sa) or sa.larval or sa_id in self._excused:
                continue
            if self._world.hosts[HostName(owner)].kernel.holds(sa_id) != host.kernel.holds(sa_id):
                self._break(f"law 2: {host.name} may send on {sa_id}, {owner} has no twin")

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


def packets(scope: Scope) -> frozenset[tuple[Packet, bool]]:
    """A packet of each flow that a scope answers for, to and from each peer; True leaves."""
    return frozenset(
        (Packet(own, peer, UDP, 40_000, port), True)
        if outbound
        else (Packet(peer, own, UDP, 40_000, port), False)
        for flow in scope.guarded
        for port in flow.ports
        for peer in flow.peers
        for own in scope.addresses
        if own.version == peer.version
        for outbound in (True, False)
    )


def foreign(host: "SimHost") -> tuple[dict[SaId, Sa], dict[SpId, Sp]]:
    """SAs and SPs of other programs."""
    return (
        {sa_id: sa for sa_id, sa in host.kernel.all_sas() if not is_our_sa(sa)},
        {sp_id: sp for sp_id, sp in host.kernel.sps().items() if not is_our_sp(sp)},
    )


def opened_by_others(host: "SimHost") -> bool:
    """Whether another program's SPs let packets of a flow pass: only the guard table holds them."""
    return any(_leaks(host, packet, outbound=outbound) for packet, outbound in packets(host.scope))


def _version(host: "SimHost") -> tuple[object, ...]:
    return (id(host.kernel), host.kernel.version, host.guard.guard is None, host.engine is None)


def _leaks(host: "SimHost", packet: Packet, *, outbound: bool) -> bool:
    if outbound:
        return host.kernel.would_send_clear(packet)
    return host.kernel.receive(packet)


def _ruled_by_others(host: "SimHost", packet: Packet, *, outbound: bool) -> bool:
    direction = SpDirection.OUT if outbound else SpDirection.IN
    sp = host.kernel.lookup(direction, packet)
    return sp is not None and not is_our_sp(sp)
