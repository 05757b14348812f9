"""The laws, checked on what the kernels hold, not on what the machines believe."""

from typing import TYPE_CHECKING

from tests.sim.kernel import Packet
from tunsec.machines import pair
from tunsec.machines.flow import MAX_EPOCHS
from tunsec.model.ownership import is_our_sa, is_our_sp
from tunsec.model.sa import Sa, SaId
from tunsec.model.sp import Sp, SpId
from tunsec.policy.desired import child_ids

if TYPE_CHECKING:
    from tests.sim.world import SimHost, World


class Broken(AssertionError):
    """A law was broken."""


class Laws:
    """Holds the world to laws 1 to 4 and the machines' own promises."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._probes: dict[str, list[tuple[Packet, bool]]] = {}
        self._keys: dict[bytes, set[tuple[str, SaId]]] = {}
        self._installs_seen: dict[str, int] = {}
        self._foreign: dict[str, tuple[dict[SaId, Sa], dict[SpId, Sp]]] = {}
        self.orphan_excuses: set[SaId] = set()
        self.checks = 0
        self._versions: dict[str, object] = {}
        self._owners = {
            address: host.name for host in world.intent.hosts for address in host.addresses
        }

    def check(self) -> None:
        """Raise Broken, with the story, if a law does not hold now."""
        self.checks += 1
        changed = [
            host
            for host in self._world.hosts.values()
            if self._versions.get(host.name) != self._version(host)
        ]
        for host in changed:
            self._no_clear_packet(host)
            self._no_key_twice(host)
            self._only_what_is_ours(host)
            self._promises(host)
            self._versions[host.name] = self._version(host)
        if changed:
            names = {host.name for host in changed}
            for host in self._world.hosts.values():
                self._receiver_first(host, names)

    def _version(self, host: "SimHost") -> tuple[object, ...]:
        return (id(host.kernel), host.kernel.version, host.guard.guard is None)

    def own_foreign(self, host: "SimHost") -> None:
        """From now on these foreign SAs and SPs must stay just as they are."""
        self._foreign[host.name] = self._foreign_now(host)

    def kernel_replaced(self, host: "SimHost") -> None:
        """A reboot: the SAD is empty, and twins at peers are orphans that nobody could avoid."""
        self.orphan_excuses |= set(host.kernel.sas())
        self._installs_seen[host.name] = 0
        self._foreign.pop(host.name, None)

    def _break(self, text: str) -> None:
        raise Broken(f"{text}\n{self._world.tale()}")

    # Law 1

    def _packets(self, host: "SimHost") -> list[tuple[Packet, bool]]:
        known = self._probes.get(host.name)
        if known is None:
            known = []
            for child in child_ids(self._world.intent, host.name):
                for outbound in (True, False):
                    packet = self._world.packet(child, outbound=outbound, owner=host.name)
                    known.append((packet, outbound))
            self._probes[host.name] = known
        return known

    def _no_clear_packet(self, host: "SimHost") -> None:
        """Once closed, never open. SPs alone must hold; where somebody took one away by hand, the
        guard table must hold until it is back."""
        leaks = [one for one in self._packets(host) if self._leaks(host, *one)]
        if not host.closed:
            host.closed = not leaks
            return
        for packet, outbound in leaks:
            if not (host.tampered and host.guard.drops_clear(packet)):
                way = "out of" if outbound else "into"
                self._break(f"law 1: {packet} goes {way} {host.name} in clear")
        if not leaks:
            host.tampered = False

    def _leaks(self, host: "SimHost", packet: Packet, outbound: bool) -> bool:
        if outbound:
            return host.kernel.would_send_clear(packet)
        return host.kernel.receive(packet)

    # Law 2

    def _receiver_first(self, host: "SimHost", changed: set[str]) -> None:
        """An outbound SA of ours has its inbound twin, with the same key, at the peer."""
        for sa_id, sa in host.kernel.all_sas():
            if not is_our_sa(sa) or sa_id in self.orphan_excuses:
                continue
            peer = self._owner(sa_id)
            if peer is None or peer is host or not {peer.name, host.name} & changed:
                continue
            if peer.kernel.holds(sa_id) != host.kernel.holds(sa_id):
                self._break(f"law 2: {host.name} may send on {sa_id}, {peer.name} has no twin")

    def _owner(self, sa_id: SaId) -> "SimHost | None":
        name = self._owners.get(sa_id.dst)
        return None if name is None else self._world.hosts[name]

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

    def _foreign_now(self, host: "SimHost") -> tuple[dict[SaId, Sa], dict[SpId, Sp]]:
        return (
            {sa_id: sa for sa_id, sa in host.kernel.all_sas() if not is_our_sa(sa)},
            {sp_id: sp for sp_id, sp in host.kernel.sps().items() if not is_our_sp(sp)},
        )

    def _only_what_is_ours(self, host: "SimHost") -> None:
        owned = self._foreign.get(host.name)
        if owned is not None and self._foreign_now(host) != owned:
            self._break(f"law 4: a foreign SA or SP changed on {host.name}")

    # Promises

    def _promises(self, host: "SimHost") -> None:
        if host.engine is None:
            return
        for state in host.engine.pairs.values():
            pair.check(state)
            for flow in state.flows.values():
                if len(flow.outbound) > MAX_EPOCHS:
                    self._break(f"{host.name}: {flow.child.id} has {len(flow.outbound)} outbound")
        if len(host.engine.offers.offers) > 3:
            self._break(f"{host.name} holds {len(host.engine.offers.offers)} private keys")
        if host.ring is not None and host.ring.private_values != len(host.engine.offers.offers):
            self._break(f"{host.name}: {host.ring.private_values} private values are in the ring")
