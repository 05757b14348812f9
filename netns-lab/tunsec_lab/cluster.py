"""tunsecd on the hosts of a lab: a CA, an identity each, one policy, a directory they all see."""

import os
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from tunsec.adapters import ca_files
from tunsec.cli.client import Client, Failed
from tunsec.keying.ca import KeyType
from tunsec.model.clock import WallTime
from tunsec.model.names import HostName
from tunsec.wire.control import FlowStatus, Status, WaitReport
from tunsec_lab.charon import LabCharon
from tunsec_lab.errors import LabError
from tunsec_lab.host import Host, Lab
from tunsec_lab.process import Process

CONFINED: Final = ("setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all")
"""CAP_NET_ADMIN and no other, as in systemd/tunsecd.service: file modes hold for this root too."""


def from_checkout(checkout: Path) -> dict[str, str]:
    """An environment in which `tunsecd` is run from there, wherever one stands."""
    path = os.pathsep.join((str(checkout), os.environ.get("PYTHONPATH", "")))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


@dataclass
class Cluster:
    """Daemons of a lab. Hosts bear the same names in the lab and in the policy.

    `flows` is the `flows:` part of the policy as YAML, `defaults` its `defaults:`, `ike` its
    `ike:`, `services` its `service_addresses:`. The CA and what it issued are `age` seconds old;
    the CA lasts `ca_days`. `look_every` is how often daemons read all that the kernel holds.
    `charons` are those that were started, by host.
    """

    lab: Lab
    flows: str = "  overlay: {kind: vxlan, between: all}\n"
    defaults: str = "  {}\n"
    ike: str = "  {}\n"
    services: str = "  {}\n"
    age: float = 0.0
    ca_days: int = 60
    look_every: str = "5m"
    daemons: dict[str, Process] = field(default_factory=dict)
    charons: dict[str, LabCharon] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.lab.folder / "cluster"
        self.directory = self.folder / "directory"
        self.directory.mkdir(parents=True)
        now = WallTime(time.time() - self.age)
        (self.folder / "identity").mkdir()
        ca = self.folder / "ca"
        ca_files.init(ca, name="lab", days=self.ca_days, kind=KeyType.ED25519, wall_now=now)
        authority = ca_files.load(ca, wall_now=now)
        for host in self.lab.hosts.values():
            ca_files.issue_to(
                self.identity(host),
                HostName(host.name),
                authority=authority,
                addresses=[ip_address(str(address)) for address in host.addresses],
                days=30,
                kind=KeyType.ED25519,
                wall_now=now,
            )
        self.policy_file.write_text(self.policy())

    @property
    def policy_file(self) -> Path:
        """The policy file that every daemon is started with."""
        return self.folder / "policy.yaml"

    def identity(self, host: Host) -> Path:
        """The identity folder of a host."""
        return self.folder / "identity" / host.name

    def policy(
        self, *, defaults: str | None = None, flows: str | None = None, ike: str | None = None
    ) -> str:
        """A policy for all hosts of the lab."""
        lines = ["version: 1", "hosts:"]
        lines += [
            f"  {host.name}: {{address: [{', '.join(map(str, host.addresses))}]}}"
            for host in self.lab.hosts.values()
        ]
        head = "\n".join(lines)
        return (
            f"{head}\ndefaults:\n{self.defaults if defaults is None else defaults}"
            f"ike:\n{self.ike if ike is None else ike}"
            f"service_addresses:\n{self.services}"
            f"flows:\n{self.flows if flows is None else flows}"
        )

    def start(
        self,
        host: Host,
        *options: str,
        ready: bool = True,
        confined: bool = False,
        checkout: Path | None = None,
    ) -> Process:
        """Start the daemon of a host; returns when it is ready (its flows are closed).

        A `confined` one has no more rights over files than their modes give. `checkout` is where
        another version of tunsec lies.
        """
        for folder in (host.run_dir, host.state_dir):
            folder.mkdir(parents=True, exist_ok=True)
        daemon = host.spawn(
            [
                *(CONFINED if confined else ()),
                "tunsecd",
                *("--host", host.name),
                *("--policy", self.policy_file),
                *("--identity", self.identity(host)),
                *("--directory", self.directory.as_uri()),
                *("--charon", LabCharon(host).url),
                *("--look-every", self.look_every),
                *("--run", host.run_dir),
                *("--state", host.state_dir),
                *options,
            ],
            name="tunsecd",
            env=None if checkout is None else from_checkout(checkout),
        )
        self.daemons[host.name] = daemon
        if ready:
            daemon.wait_for_line(r" ready host=", timeout=30)
        return daemon

    def start_all(self) -> None:
        """Start every daemon and wait until everything is protected."""
        for host in self.lab.hosts.values():
            self.start(host, ready=False)
        for host in self.lab.hosts.values():
            self.daemons[host.name].wait_for_line(r" ready host=", timeout=30)
        self.wait_protected()

    def start_charon(self, host: Host, *, settings: str = "") -> LabCharon:
        """Start the charon of a host; returns when it answers."""
        host.run_dir.mkdir(parents=True, exist_ok=True)
        charon = self.charons[host.name] = LabCharon(host, settings=settings).start()
        return charon

    def client(self, host: Host) -> Client:
        """The control API of a host's daemon."""
        return Client(host.run_dir / "control.sock")

    def status(self, host: Host) -> Status:
        """What a daemon says of itself."""
        return self.client(host).status()

    def flow(self, host: Host, *, version: int = 4, flow: str = "overlay") -> FlowStatus:
        """The status of one relation of a two-host cluster."""
        return next(
            one
            for one in self.status(host).flows
            if one.flow == flow and ip_address(one.remote).version == version
        )

    def wait_protected(self, *, timeout: float = 20.0) -> None:
        """Returns when every daemon says that all its flows are protected."""
        until = time.monotonic() + timeout
        for host in self.lab.hosts.values():
            while not (report := self._wait(host, until - time.monotonic())).protected:
                if time.monotonic() >= until:
                    log = self.daemons[host.name].tail()
                    raise LabError(f"{host.name} waits for {report.waiting_for}{log}")

    def _wait(self, host: Host, left: float) -> WaitReport:
        try:
            return self.client(host).wait(None, max(0.0, left))
        except Failed as error:
            raise LabError(f"{host.name}: {error}{self.daemons[host.name].tail()}") from error

    def wait_settled(self) -> None:
        """Returns when no relation is being rekeyed: its SPIs stay as they are, and count on."""
        for host in self.lab.hosts.values():
            client = self.client(host)
            while any(flow.state != "INSTALLED" for flow in client.status().flows):
                client.status(wait=1.0)

    def wait_until(self, host: Host, *, rekeys: int, timeout: float = 60.0) -> None:
        """Returns when every relation of a host has been rekeyed so many times."""
        until = time.monotonic() + timeout
        client = self.client(host)
        status = client.status()
        while any(flow.rekeys < rekeys for flow in status.flows):
            left = until - time.monotonic()
            if left <= 0:
                counts = [flow.rekeys for flow in status.flows]
                raise LabError(f"{host.name}: {counts} rekeys after {timeout:g} s, not {rekeys}")
            status = client.status(wait=min(left, 5.0))
