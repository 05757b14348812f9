"""The cluster that a scenario breaks: hosts, daemons, packets, and what can be done to them."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from scenarios.failover.traffic import Traffic
from tunsec.model.flow import Keying, OnReconnect
from tunsec.policy.intent import parse_policy
from tunsec_lab.capture import LeakWatch
from tunsec_lab.cluster import Cluster
from tunsec_lab.errors import LabError
from tunsec_lab.host import Host, Lab
from tunsec_lab.probe import Probe

RESTART_SECONDS: Final = 1.0
"""As RestartSec= of systemd/tunsecd.service."""
HELD_WITHIN: Final = 20.0
CERTIFICATE_AGE: Final = 7200.0
"""Seconds; so that they hold when the clock is an hour behind."""


class Load:
    """Numbered packets both ways, from `begin` to `end`, however often the hosts die meanwhile."""

    def __init__(self, traffic: Traffic, lab: Lab) -> None:
        self.traffic, self.lab = traffic, lab
        self.running: list[Probe] = []
        self.parts: list[list[Probe]] = []
        """Each time that it ran, its probes, which have their reports."""

    def begin(self) -> None:
        """Returns when packets are sent."""
        self.running = self.traffic.probes(self.lab)
        for probe in self.running:
            probe.__enter__()

    def end(self) -> None:
        """Returns when the last packets have come."""
        if self.running:
            for probe in self.running:
                probe.stop()
            self.parts.append(self.running)
            self.running = []


@dataclass
class Stage:
    """Everything runs on it. `pace` shortens how long a trouble lasts, `look_every` is how many
    seconds pass between two looks whether all is at rest. `today` is in `defaults:` of the policy
    where no trouble says otherwise, and `turn` says which host is the first one."""

    lab: Lab
    traffic: Traffic
    keying: Keying
    watch: LeakWatch
    pace: float = 1.0
    today: str = ""
    turn: int = 0
    look_every: float = 0.1
    ca_days: int = 60
    dropped_by_wire: int = 0
    """Packets that the scenario had the wire lose."""
    ended_at: list[float] = field(default_factory=list)
    """When each trouble had ended; monotonic seconds."""
    undo: ExitStack = field(default_factory=ExitStack)
    """What must be undone when no daemon runs any more."""

    def __post_init__(self) -> None:
        self.cluster = Cluster(
            self.lab,
            flows=self.traffic.flows,
            defaults=self._defaults(""),
            services=self.traffic.services,
            age=CERTIFICATE_AGE,
            ca_days=self.ca_days,
        )
        self.load = Load(self.traffic, self.lab)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All, from the one whose turn it is."""
        hosts = tuple(self.lab.hosts.values())
        return hosts[self.turn :] + hosts[: self.turn]

    @property
    def a(self) -> Host:
        """The first one."""
        return self.hosts[0]

    @property
    def b(self) -> Host:
        """The second one."""
        return self.hosts[1]

    def _defaults(self, more: str) -> str:
        parts = [f"keying: {self.keying}", *filter(None, [more or self.today])]
        return f"  {{{', '.join(parts)}}}\n"

    def policy(self, defaults: str = "") -> str:
        """The cluster's policy, with something of its own in `defaults:`."""
        return self.cluster.policy(defaults=self._defaults(defaults))

    @property
    def reauthenticates(self) -> bool:
        """Whether a new connection of the flow waits for fresh authentication."""
        flows = parse_policy(self.policy(), "policy").flows
        return any(flow.on_reconnect is OnReconnect.REAUTH for flow in flows)

    def start(self) -> None:
        """Everything protected and speaking."""
        for host in self.hosts:
            self.traffic.boot(host)
            self._start_charon(host)
        self.cluster.start_all()
        for host in self.hosts:
            self.traffic.open(host)

    def _start_charon(self, host: Host) -> None:
        if self.keying is Keying.IKE or host.name in self.cluster.charons:
            self.cluster.start_charon(host)

    def over(self) -> None:
        """A trouble has ended: packets must come again."""
        self.ended_at.append(time.monotonic())

    def others(self, host: Host) -> list[Host]:
        """All but one."""
        return [other for other in self.hosts if other is not host]

    def lasts(self, seconds: float) -> None:
        """The trouble goes on for a while."""
        time.sleep(seconds * self.pace)

    def times(self, count: int) -> int:
        """How often something is done."""
        return max(2, round(count * self.pace))

    # -- daemons ----------------------------------------------------------------------------

    def kill_daemons(self, *hosts: Host) -> None:
        """As by a bug; systemd starts them anew."""
        for host in hosts:
            self.cluster.daemons[host.name].kill9()
        time.sleep(RESTART_SECONDS)
        self.start_daemons(*hosts)

    def start_daemons(self, *hosts: Host) -> None:
        """Returns when all are ready."""
        for host in hosts:
            self.cluster.start(host, ready=False)
        for host in hosts:
            self.cluster.daemons[host.name].wait_for_line(r" ready host=", timeout=30)

    def kill_charons(self, *hosts: Host) -> None:
        """As by a bug; systemd starts them anew."""
        for host in hosts:
            self.cluster.charons[host.name].kill9()
        time.sleep(RESTART_SECONDS)
        for host in hosts:
            self.cluster.start_charon(host)

    def reload(self, policy: str) -> None:
        """Every daemon reads this policy, in its file; Failed when one does not take it."""
        self.cluster.policy_file.write_text(policy)
        for host in self.hosts:
            self.cluster.client(host).reload()

    def power_cycle(self, host: Host, seconds: float) -> None:
        """A host dies with all that it runs, and boots some time later.

        The probes end with it and begin again when it is there, before any daemon of it is. What
        closes its flows until then is what systemd/tunsec-guard.service loads.
        """
        self.load.end()
        host.destroy()
        self.lasts(seconds)
        host.recreate()
        self.traffic.boot(host)
        host.run(["nft", "-f", host.state_dir / "guard.nft"])
        self.load.begin()
        self._start_charon(host)
        self.start_daemons(host)
        self.traffic.open(host)

    # -- the flow -----------------------------------------------------------------------------

    def wait_for_rekeys(self, count: int, *, timeout: float = 60.0) -> None:
        """Returns when every relation of every host has been rekeyed so often from now on."""
        wanted = {
            host.name: max(flow.rekeys for flow in self.cluster.status(host).flows) + count
            for host in self.hosts
        }
        for host in self.hosts:
            self.cluster.wait_until(host, rekeys=wanted[host.name], timeout=timeout)

    def wait_for_holder(self, holder: Host) -> None:
        """Returns when every daemon says that a host holds the service address, and those that
        speak with it that all is protected: who has the address, too, speaks with itself there."""
        until = time.monotonic() + HELD_WITHIN
        for host in self.hosts:
            client = self.cluster.client(host)
            status = client.status()
            while (service := status.services[0]).holder != holder.name:
                if time.monotonic() > until:
                    raise LabError(f"{host.name} does not see {holder.name} as holder: {service}")
                status = client.status(wait=1.0)
            if not service.here:
                report = client.wait(None, max(0.0, until - time.monotonic()))
                if not report.protected:
                    raise LabError(f"{host.name} waits for {report.waiting_for}")
