"""Everything that can break, in the order of the page."""

import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from scenarios.failover.scenario import BOTH, BY_DIRECTORY, BY_IKE, Scenario
from scenarios.failover.stage import RESTART_SECONDS, Stage
from scenarios.failover.traffic import KINDS, RdsService, Traffic
from tunsec import __version__
from tunsec.cli.client import Failed
from tunsec_lab.errors import LabError
from tunsec_lab.faults import Impairment
from tunsec_lab.host import Host
from tunsec_lab.service import VIP, announce, comes, goes, sas_over

CHECKOUT: Final = Path(__file__).resolve().parents[3]
NEXT_VERSION: Final = f"{__version__}.next"
EVERY_SECOND: Final = "rekey: {after: 1s, hard: 9h, jitter: 0%}"
EVERY_FEW_SECONDS: Final = "rekey: {after: 4s, hard: 9h}"
SELDOM: Final = "rekey: {after: 2h}"
HOUR: Final = 3600.0
FLAPS: Final = 20
RESETS: Final = 20
RDS_CONNECTIONS: Final = "sport = :16385 or dport = :16385"
RDS: Final[dict[str, Traffic]] = {"rds-tcp": KINDS["rds-tcp"]}
SERVICE: Final[dict[str, Traffic]] = {"rds-tcp": RdsService()}
AT_ONCE: Final = 10
LOSSY_REKEYS: Final = 15
LOSSY: Final = Impairment(loss_percent=5, delay_ms=5, reorder_percent=25)
ORDERLY: Final = Impairment()
"""It lets go what another one held back. A wire that gets its first impairment, or loses its last,
drops what comes in that moment: it has this one from before the first packet."""
STATE_BYTES: Final = 64 << 10
FLOOD_LINES: Final = 4000
FLOODS: Final = 3
FLOOD_WITHIN: Final = 60.0


def kill_tunsecd(stage: Stage) -> None:
    """One, then both at once."""
    stage.kill_daemons(stage.a)
    stage.kill_daemons(*stage.hosts)


def stop_tunsecd(stage: Stage) -> None:
    """Both, for a while."""
    for host in stage.hosts:
        stage.cluster.daemons[host.name].terminate()
    stage.lasts(5)
    stage.start_daemons(*stage.hosts)


def upgrade_tunsecd(stage: Stage) -> None:
    """One host after the other gets another version, and finds a policy that has changed."""
    checkout = stage.lab.folder / "next"
    shutil.copytree(CHECKOUT / "tunsec", checkout / "tunsec", dirs_exist_ok=True)
    version = checkout / "tunsec" / "__init__.py"
    version.write_text(version.read_text().replace(f'"{__version__}"', f'"{NEXT_VERSION}"'))
    stage.cluster.policy_file.write_text(stage.policy(SELDOM))
    for host in stage.hosts:
        stage.cluster.daemons[host.name].terminate()
        stage.cluster.start(host, checkout=checkout)
        if (found := stage.cluster.status(host).version) != NEXT_VERSION:
            raise LabError(f"{host.name} runs {found}, not {NEXT_VERSION}")


def kill_charon(stage: Stage) -> None:
    """One, then both at once."""
    stage.kill_charons(stage.a)
    stage.kill_charons(*stage.hosts)


def stop_charon(stage: Stage) -> None:
    """As `systemctl restart` does, for a moment: it takes its SAs away and tells its peers."""
    stage.cluster.charons[stage.a.name].stop()
    time.sleep(RESTART_SECONDS)
    stage.cluster.start_charon(stage.a)


def freeze_charon(stage: Stage) -> None:
    """Long enough that the peer takes it for dead."""
    charon = stage.cluster.charons[stage.a.name]
    charon.freeze()
    stage.lasts(20)
    charon.thaw()


def reboot(stage: Stage) -> None:
    """Power off, and on again."""
    stage.power_cycle(stage.b, 5)


def partition(stage: Stage) -> None:
    """Each host stands alone."""
    with stage.lab.faults.partition([stage.a.name], [stage.b.name]):
        stage.lasts(30)


def flap(stage: Stage) -> None:
    """The cable of one host is pulled and plugged in."""
    for _ in range(stage.times(FLAPS)):
        with stage.lab.faults.link_down(stage.b.name):
            time.sleep(0.1)
        time.sleep(0.1)


def reset_connections(stage: Stage) -> None:
    """All of RDS's, by one host and by the other in turn; its peer gets an RST for each."""
    for number in range(stage.times(RESETS)):
        if number:
            stage.over()
            time.sleep(1.0)
        stage.hosts[number % 2].run(["ss", "-K", RDS_CONNECTIONS])


def move_address(stage: Stage) -> None:
    """To the other owner, and back."""
    hand_over(stage, stage.a, stage.b)
    stage.over()
    stage.wait_for_holder(stage.b)
    stage.lasts(10)
    hand_over(stage, stage.b, stage.a)


def hand_over(stage: Stage, holder: Host, successor: Host) -> None:
    """The address goes from a host and comes to another."""
    leave(holder)
    comes(successor, *stage.others(successor))


def leave(host: Host) -> None:
    """The address goes from a host with the connections over it, as docs/operations.md advises."""
    goes(host)
    host.run(["ss", "-K", f"src {VIP}"])


def split_brain(stage: Stage) -> None:
    """The other owner takes the address, too; neighbours hear the one that holds it no longer, and
    the holder again; then it gives it up."""
    former, holder, sender = stage.hosts
    comes(holder, *stage.others(holder))
    stage.over()
    stage.wait_for_holder(holder)
    stage.lasts(10)
    announce(former, *stage.others(former))
    stage.lasts(10)
    if left := sas_over(former) & sas_over(sender):
        raise LabError(f"{former.name} does not hold the address and has the SAs over it: {left}")
    announce(holder, *stage.others(holder))
    stage.over()
    stage.lasts(10)
    leave(holder)
    announce(former, *stage.others(former))


def flush(stage: Stage) -> None:
    """Somebody takes all SAs and SPs out of a kernel, in one go."""
    stage.a.ip("xfrm state flush", "xfrm policy flush")


def impair(stage: Stage, impairment: Impairment) -> None:
    """Of the wire, both ways."""
    for host in stage.hosts:
        stage.lab.faults.impair(host.name, impairment)


def lose_and_reorder(stage: Stage) -> None:
    """The wire is bad both ways while keys change every second."""
    before = dropped(stage)
    impair(stage, LOSSY)
    stage.wait_for_rekeys(stage.times(LOSSY_REKEYS))
    impair(stage, ORDERLY)
    time.sleep(10 * LOSSY.delay_ms / 1000)
    stage.dropped_by_wire += dropped(stage) - before


def dropped(stage: Stage) -> int:
    """Frames that impairments of the wire have dropped until now."""
    return sum(stage.lab.faults.dropped(host.name) for host in stage.hosts)


def lose_directory(stage: Stage) -> None:
    """Nobody finds the folder."""
    away = stage.cluster.directory.with_name("away")
    stage.cluster.directory.rename(away)
    stage.lasts(60)
    away.rename(stage.cluster.directory)


def clock_ahead(stage: Stage) -> None:
    """An hour ahead, and back."""
    step_clock(stage, HOUR)


def clock_behind(stage: Stage) -> None:
    """An hour behind, and back."""
    step_clock(stage, -HOUR)


def step_clock(stage: Stage, seconds: float) -> None:
    """All hosts have the same clock. Keys change as before, whatever it says."""
    undo = stage.undo.enter_context(ExitStack())
    for step in (seconds, -seconds):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
        undo.callback(put_back, -step)
        stage.wait_for_rekeys(2)
    undo.pop_all()


def put_back(step: float) -> None:
    """The clock as it was."""
    time.clock_settime(time.CLOCK_REALTIME, time.time() + step)


def reload_policies(stage: Stage) -> None:
    """Good ones and bad ones in turn."""
    good = stage.policy()
    for _ in range(stage.times(5)):
        stage.reload(stage.policy(SELDOM))
        try:
            stage.reload(good.replace("between: all", "between: nobody"))
        except Failed:
            pass
        else:
            raise LabError("a bad policy was taken")
        stage.reload(good)


def rekey_at_once(stage: Stage) -> None:
    """Daemons that stood still until both sides' rekeys were due go on in the same moment."""
    daemons = [stage.cluster.daemons[host.name] for host in stage.hosts]
    for _ in range(stage.times(AT_ONCE)):
        for daemon in daemons:
            daemon.freeze()
        time.sleep(1.1)  # longer than `after` of EVERY_SECOND
        for daemon in daemons:
            daemon.thaw()
        stage.wait_for_rekeys(1)


def small_state(stage: Stage) -> None:
    """State on a disk of its own."""
    if os.path.ismount(stage.a.state_dir):
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES}", "none", str(stage.a.state_dir)]
    subprocess.run(mount, check=True)
    stage.undo.callback(subprocess.run, ["umount", str(stage.a.state_dir)], check=True)


def fill_disk(stage: Stage) -> None:
    """Nothing can be written while keys change and a daemon dies; then there is room again."""
    filler = stage.a.state_dir / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    stage.wait_for_rekeys(2)
    stage.kill_daemons(stage.a)
    stage.wait_for_rekeys(2)
    filler.unlink()
    stage.kill_daemons(stage.a)


def overrun_events(stage: Stage) -> None:
    """A foreign program changes SAs of its own while tunsecd stands still and reads of none."""
    key = "0x" + "42" * 20
    lines = []
    for spi in range(0x1000, 0x1000 + FLOOD_LINES):
        sa = f"src 198.51.100.1 dst 198.51.100.2 proto esp spi {spi}"
        lines.append(f"xfrm state add {sa} reqid 7 mode transport aead rfc4106(gcm(aes)) {key} 128")
        lines.append(f"xfrm state delete {sa}")
    until = time.monotonic() + FLOOD_WITHIN
    daemon = stage.cluster.daemons[stage.a.name]
    while not stage.cluster.status(stage.a).drift.events_lost:
        if time.monotonic() > until:
            raise LabError("the event lane did not overrun")
        daemon.freeze()
        for _ in range(FLOODS):
            stage.a.ip(*lines)
        daemon.thaw()


SCENARIOS: Final = (
    Scenario(
        "tunsecd-killed",
        "`kill -9` of tunsecd, started again after 1 s: on one host, then on both at once",
        kill_tunsecd,
        reauth=BY_DIRECTORY,
    ),
    Scenario(
        "tunsecd-stopped",
        "SIGTERM to both tunsecds, started again after 5 s",
        stop_tunsecd,
        reauth=BY_DIRECTORY,
    ),
    Scenario(
        "tunsecd-upgraded",
        "another version of tunsec and a changed policy file, one host after the other",
        upgrade_tunsecd,
        reauth=BY_DIRECTORY,
    ),
    Scenario(
        "charon-killed",
        "`kill -9` of charon, started again after 1 s: on one host, then on both at once",
        kill_charon,
        keyings=BY_IKE,
        reauth=BY_IKE,
    ),
    Scenario(
        "charon-stopped",
        "charon stopped cleanly, so that it takes its SAs away, and started again after 1 s",
        stop_charon,
        keyings=BY_IKE,
        gap=BY_IKE,
        reauth=BY_IKE,
    ),
    Scenario(
        "charon-frozen",
        "SIGSTOP to charon for 20 s, with `dead_after` as by default",
        freeze_charon,
        keyings=BY_IKE,
        gap=BY_IKE,
    ),
    Scenario(
        "host-rebooted",
        "power off for 5 s; the host is back when its daemons are ready",
        reboot,
        gap=BOTH,
        reauth=BOTH,
    ),
    Scenario("partition", "the hosts cannot reach each other for 30 s", partition, gap=BOTH),
    Scenario(
        "link-flaps",
        "the cable of a host is pulled and plugged in 20 times, 0.1 s each",
        flap,
        gap=BOTH,
    ),
    Scenario(
        "rds-reset",
        "`ss -K` of all connections of RDS, 20 times: on one host, then on the other",
        reset_connections,
        kinds=RDS,
        gap=BOTH,
        reconnects=True,
    ),
    Scenario(
        "address-moved",
        "a service address goes from one owner and comes to the other, while a third host sends to "
        "it; after 10 s back",
        move_address,
        kinds=SERVICE,
        gap=BOTH,
        reauth=BOTH,
    ),
    Scenario(
        "address-split",
        "another owner takes the address while the first one has it; after 10 s neighbours hear "
        "the first one for 10 s; 10 s later the second one gives it up",
        split_brain,
        kinds=SERVICE,
        gap=BOTH,
        reauth=BOTH,
    ),
    Scenario(
        "flushed",
        "`ip xfrm state flush` and `ip xfrm policy flush` on one host",
        flush,
        gap=BOTH,
    ),
    Scenario(
        "loss-and-reordering",
        "5 % loss, and a quarter of what is left out of order, both ways, during 15 rekeys each "
        "1 s after the other",
        lose_and_reorder,
        defaults=EVERY_SECOND,
        prepare=lambda stage: impair(stage, ORDERLY),
    ),
    Scenario(
        "directory-gone",
        "the directory's folder is away for 60 s, with rekeys due every 4 s",
        lose_directory,
        keyings=BY_DIRECTORY,
        defaults=EVERY_FEW_SECONDS,
    ),
    Scenario(
        "clock-ahead",
        "the clock of all hosts is stepped by an hour ahead and, two rekeys later, back",
        clock_ahead,
        defaults=EVERY_SECOND,
    ),
    Scenario(
        "clock-behind",
        "the clock of all hosts is stepped back by an hour and, two rekeys later, ahead",
        clock_behind,
        defaults=EVERY_SECOND,
    ),
    Scenario(
        "policy-reloaded",
        "`tunsec reload` on both hosts, 15 times: good policies, and bad ones between them",
        reload_policies,
    ),
    Scenario(
        "rekeys-at-once",
        "both hosts rekey in the same moment, 10 times",
        rekey_at_once,
        defaults=EVERY_SECOND,
    ),
    Scenario(
        "disk-full",
        "no room in the state folder during rekeys and a crash of tunsecd; another crash after it",
        fill_disk,
        defaults=EVERY_SECOND,
        prepare=small_state,
    ),
    Scenario(
        "events-overrun",
        "a foreign program changes SAs of its own while a tunsecd stands still, until the kernel "
        "drops events (ENOBUFS)",
        overrun_events,
    ),
)
