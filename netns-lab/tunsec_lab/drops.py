"""What hosts have refused, dropped or overrun: the kernel's counters, and the guards'."""

from pathlib import Path
from typing import Final

from tunsec.cli.client import Failed
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host

DROPPED: Final = ("Discards", "Errors", "OverLimit", "NoRoutes", "MemErrors")
"""In names of /proc/net/snmp and snmp6."""
SOFTNET: Final = Path("/proc/net/softnet_stat")
SOFTNET_DROPPED: Final = 1


def xfrm_errors(host: Host) -> dict[str, int]:
    """Counters of /proc/net/xfrm_stat that count something."""
    return _counting(host.run(["cat", "/proc/net/xfrm_stat"]).stdout)


def drops(cluster: Cluster) -> list[str]:
    """Of each host of a cluster, in words; nothing of a host that dropped nothing."""
    said = []
    for host in cluster.lab.hosts.values():
        counted = xfrm_errors(host) | _ip_errors(host)
        words = [f"{name} {count}" for name, count in counted.items()]
        try:
            guard = cluster.status(host).guard.drops
        except Failed as error:
            words.append(str(error))
        else:
            words += [f"guard of {flow}: {count}" for flow, count in guard.items()]
        said += [f"{host.name}: {', '.join(words)}"] if words else []
    if overrun := _softnet_dropped():
        said.append(f"the kernel's backlog was full {overrun} times")
    return said


def _counting(lines: str) -> dict[str, int]:
    pairs = [line.split() for line in lines.splitlines()]
    return {name: int(count) for name, count in pairs if count != "0"}


def _ip_errors(host: Host) -> dict[str, int]:
    """IP's and UDP's own, both families. /proc/net/snmp has a line of names, then one of counts."""
    found = _counting(host.run(["cat", "/proc/net/snmp6"]).stdout)
    rows = [line.split() for line in host.run(["cat", "/proc/net/snmp"]).stdout.splitlines()]
    for names, counts in zip(rows[::2], rows[1::2], strict=True):
        protocol = names[0].rstrip(":")
        for name, count in zip(names[1:], counts[1:], strict=True):
            if protocol in {"Ip", "Udp"} and count != "0":
                found[f"{protocol}{name}"] = int(count)
    return {name: count for name, count in found.items() if name.endswith(DROPPED)}


def _softnet_dropped() -> int:
    """Packets that found the backlog full, on all CPUs, since boot: it has no namespaces."""
    rows = [line.split() for line in SOFTNET.read_text().splitlines()]
    return sum(int(row[SOFTNET_DROPPED], 16) for row in rows)
