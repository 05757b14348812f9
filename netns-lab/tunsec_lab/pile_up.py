"""What could pile up on the hosts of a cluster over a long time, counted and compared."""

import time
from collections import Counter
from pathlib import Path
from typing import Final

from tunsec.adapters.vici_socket import ViciSocket
from tunsec.model.ike_sa import IkeSa
from tunsec.wire.vici.answers import decode_list_sa
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host
from tunsec_lab.process import Process

ANSWERED_SECONDS: Final = 1.0
"""A daemon or charon that was asked just now has closed its end of the connection by then."""
WRITTEN_LATE: Final = "sequences.json"
SLACK_KIB: Final = 2048
SLACK_CHARON_KIB: Final = 4096
"""charon's heap fills up ever more slowly: by 276 KiB in the first six hours, by 52 in the last six
of four days, by 2.6 MiB in a week."""
SLACK_SAS: Final = 4
"""Of a rekey that is under way."""
SLACKS: Final = {
    "SAs": SLACK_SAS,
    "KiB of tunsecd": SLACK_KIB,
    "KiB of charon": SLACK_CHARON_KIB,
}


def left_over(cluster: Cluster) -> Counter[str]:
    """SAs, SPs, files, and IKE_SAs that carry nothing, of each host and of the directory.

    How many IKE_SAs carry a pair's flows is chance: two hosts that begin at once make one each.
    """
    found: Counter[str] = Counter()
    for host in cluster.lab.hosts.values():
        count = {
            "SAs": len(lines(host, "state")),
            "SPs": len(lines(host, "policy")),
            "state files": sum(path.name != WRITTEN_LATE for path in host.state_dir.iterdir()),
        }
        if host.name in cluster.charons:
            count["idle IKE_SAs"] = sum(not ike.children for ike in ike_sas(cluster, host))
        found.update({f"{host.name}: {name}": number for name, number in count.items()})
    found["directory files"] = sum(path.is_file() for path in cluster.directory.rglob("*"))
    return found


def piled_up(cluster: Cluster) -> Counter[str]:
    """What is left over, and IKE_SAs, open files and memory, of each host."""
    found = left_over(cluster)
    for host in cluster.lab.hosts.values():
        if host.name in cluster.charons:
            found[f"{host.name}: IKE_SAs"] = len(ike_sas(cluster, host))
    time.sleep(ANSWERED_SECONDS)
    for host in cluster.lab.hosts.values():
        for name, process in programs(cluster, host).items():
            found[f"{host.name}: open files of {name}"] = open_files(process.pid)
            found[f"{host.name}: KiB of {name}"] = resident(process.pid)
    return found


def assert_nothing_piled_up(early: Counter[str], late: Counter[str]) -> None:
    """Raises unless there is as much of everything as before, but for the slack."""
    for name, before in early.items():
        slack = SLACKS.get(name.partition(": ")[2], 0)
        assert late[name] <= before + slack, f"{name}: {before} then {late[name]}"


def programs(cluster: Cluster, host: Host) -> dict[str, Process]:
    """What runs on a host for a long time."""
    found = {"tunsecd": cluster.daemons[host.name]}
    if host.name in cluster.charons:
        found["charon"] = cluster.charons[host.name].running
    return found


def lines(host: Host, what: str) -> list[str]:
    """One of each SA (`state`) or SP (`policy`)."""
    return host.run(["ip", "-o", "xfrm", what]).stdout.splitlines()


def ike_sas(cluster: Cluster, host: Host) -> list[IkeSa]:
    """All that charon keeps."""
    found: list[IkeSa] = []
    with ViciSocket(cluster.charons[host.name].socket, seconds=5) as vici:
        vici.stream(
            "list-sas", "list-sa", seconds=5, see=lambda told: found.append(decode_list_sa(told))
        )
    return found


def open_files(pid: int) -> int:
    """Descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid: int) -> int:
    """VmRSS in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
