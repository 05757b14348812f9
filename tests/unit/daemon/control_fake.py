"""A daemon in memory behind a real control socket: the port's fake, for tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tunsec.daemon.control import Access, ControlServer
from tunsec.model.errors import PolicyError, Problem, Refused, Unavailable
from tunsec.wire.control import (
    ApplyReport,
    DirectoryStatus,
    DriftStatus,
    FlowDrops,
    FlowStatus,
    GuardStatus,
    PlanReport,
    PolicyBody,
    PolicyStatus,
    ReleaseReport,
    Status,
)
from tunsec.wire.control_explain import (
    ExplainBody,
    Explanation,
    GuardReport,
    Relation,
    SaReport,
    SpReport,
    Verdict,
)

OVERLAY = FlowStatus(
    *("tenant-overlay", "vxlan", "db2", "red", "esp", "directory", "192.0.2.11", "192.0.2.12"),
    *("INSTALLED", "", True, "0000c001", "0000c002", "chacha20-poly1305"),
    age=125.0,
    next_rollover=3475.0,
    rekeys=3,
    in_bytes=3 << 20,
    out_bytes=512,
)
BACKBONE = FlowStatus(
    *("backbone", "geneve", "db3", None, "esp", "directory", "2001:db8::11", "2001:db8::13"),
    *("BLOCKED", "db3 has published no offer", False),
)

SP = SpReport(
    *("out", "192.0.2.11/32 -> 192.0.2.12/32 udp dport 4789", "protect", 5453, 9),
    *("tenant-overlay/red db2", "0x81000000/0xff000000", "0x54000001", "0000c002", 2.0),
)
SA = SaReport(
    *("out", "0000c002", "192.0.2.11", "192.0.2.12", "0x54000001", "chacha20-poly1305"),
    state="ACTIVE",
    in_use=True,
    age=125.0,
    used=2.0,
    carried_bytes=512,
    packets=7,
    esn=True,
    replay_window=1024,
    sequence=7,
    drops=0,
    hard_after=7200.0,
)
EXPLANATION = Explanation(
    "out: udp 192.0.2.11:49152 > 192.0.2.12:4789 VNI 41",
    Verdict.PROTECTED,
    "flow tenant-overlay/red: leaves to db2 in ESP, SPI 0000c002",
    ("192.0.2.11 > 192.0.2.12: ESP(spi=0x0000c002)",),
    (SP,),
    (Relation(OVERLAY, "vxlan, udp port 4789, VNI 41 (tenant red)", 41, None, (SP,), (SA,)),),
    (GuardReport("drops what no SP protects", "clear_out.tenant-overlay", 3),),
    ("the underlay is small",),
)


def problem_with(text: str) -> Problem:
    """What the fake finds wrong with a policy that contains the word `bad`."""
    return Problem("p.yaml:1: flows", f"{text!r} is bad", "write a good one")


def nobody(groups: tuple[int, ...] = ()) -> tuple[str, ...]:
    """What to put before a command that is to run as the user nobody."""
    also = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ("setpriv", "--reuid=65534", "--regid=65534", also)


class FakeDaemon:
    """A ControlTarget whose policy is `good ...` or refused, and whose flows tests change."""

    def __init__(self) -> None:
        self.current = Status(
            host="db1",
            version="0.1.0",
            uptime=90061.0,
            flows=(OVERLAY, BACKBONE),
            policy=PolicyStatus("/etc/tunsec/policy.yaml", "0123456789abcdef", 3.0),
            directory=DirectoryStatus(
                "file:/srv/tunsec", False, "Permission denied", 4, 2, {"stale": 1}
            ),
            guard=GuardStatus(True, "", {"tenant-overlay": FlowDrops(1, 2, 3, 4)}),
            drift=DriftStatus(1, 2, 1),
            warnings=("the clock went back",),
            troubles={"kernel": "ip xfrm state: No buffer space available"},
        )
        self.applied: list[str] = []
        self.bug: Exception | None = None
        self._listeners: set[asyncio.Future[None]] = set()

    def status(self) -> Status:
        if self.bug is not None:
            raise self.bug
        return self.current

    def flows(self) -> tuple[FlowStatus, ...]:
        return self.status().flows

    async def explain(self, body: ExplainBody) -> Explanation:
        if body.flow is not None:
            relation = replace(EXPLANATION.relations[0], status=BACKBONE, sps=(), sas=())
            return Explanation(f"flow {body.flow}", Verdict.BLOCKED, "0 of 1", (), (), (relation,))
        return EXPLANATION

    async def plan(self, policy: PolicyBody | None) -> PlanReport:
        if policy is None:
            return PlanReport("/etc/tunsec/policy.yaml", "0123456789abcdef", ())
        self._judge(policy)
        return PlanReport(policy.source, "fedcba9876543210", ("add SP one",), ("backbone",))

    async def apply(self, policy: PolicyBody) -> ApplyReport:
        self._judge(policy)
        changed = policy.text not in self.applied
        self.applied.append(policy.text)
        return ApplyReport(policy.source, "fedcba9876543210", changed, ("backbone",))

    async def reload(self) -> ApplyReport:
        raise Unavailable("the policy's file system is away")

    async def release(self, flow: str | None) -> ReleaseReport:
        if flow == "backbone":
            raise Refused("remove SP", errno=1, reason="Operation not permitted")
        kept = tuple(one for one in self.current.flows if flow not in (None, one.flow))
        gone = {one.flow for one in self.current.flows} - {one.flow for one in kept}
        self.show(replace(self.current, flows=kept))
        return ReleaseReport(tuple(sorted(gone)))

    async def changed(self) -> None:
        heard = asyncio.get_running_loop().create_future()
        self._listeners.add(heard)
        try:
            await heard
        finally:
            self._listeners.discard(heard)

    def show(self, status: Status) -> None:
        """Change the status; must run in the server's loop."""
        self.current = status
        for heard in self._listeners:
            if not heard.done():
                heard.set_result(None)

    def _judge(self, policy: PolicyBody) -> None:
        if "bad" in policy.text:
            raise PolicyError([problem_with("bad"), problem_with("worse")])


class Served:
    """A control server that runs in a thread of its own."""

    def __init__(self, path: Path, daemon: FakeDaemon, access: Access) -> None:
        self.path = path
        self.daemon = daemon
        self.failure: BaseException | None = None
        self._server = ControlServer(path, daemon, access=access)
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._server.run())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def show(self, status: Status) -> None:
        """Change the daemon's status from the test's thread."""
        self._loop.call_soon_threadsafe(self.daemon.show, status)

    def listeners(self) -> int:
        """How many long polls hang on the daemon now."""

        async def count() -> int:
            return len(self.daemon._listeners)

        return asyncio.run_coroutine_threadsafe(count(), self._loop).result(5)

    def wait_until_ended(self) -> BaseException | None:
        """Until the server ends on its own; what ended it."""
        self._thread.join(10)
        return self.failure

    def stop(self) -> None:
        """End the server."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 the test looks at it
            self.failure = error
        finally:
            self._loop.close()


@contextmanager
def served(path: Path, access: Access | None = None) -> Iterator[Served]:
    """A fake daemon behind a real socket."""
    server = Served(path, FakeDaemon(), access or Access(gid=None))
    try:
        yield server
    finally:
        server.stop()
