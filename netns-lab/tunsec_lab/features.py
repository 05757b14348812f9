"""What the kernel underneath can do, found out by trying in a namespace made for it.

Versions and option lists are not asked: distributions patch and disable. Each probe does the
thing that scenarios will do and raises what the kernel said.
"""

import errno
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from tunsec_lab.errors import LabError
from tunsec_lab.external import encap_route, vlan_bridge
from tunsec_lab.namespaces import inside, ip

IN_LAB: Final = "TUNSEC_IN_LAB"  # set by the lab guest, where a missing feature is a failure
AF_RDS: Final = 21
SOL_RDS: Final = 276
SO_RDS_TRANSPORT: Final = 8
RDS_TRANS_TCP: Final = 2
TCP_ULP: Final = 31
SYSCALL_TIMEOUT_SECONDS: Final = 20.0

# AEAD as XFRM names it: key bytes with salt, ICV bits.
AEADS: Final = {
    "aes-gcm-128": ("rfc4106(gcm(aes))", 20, 128),
    "aes-gcm-256": ("rfc4106(gcm(aes))", 36, 128),
    "aes-ccm-128": ("rfc4309(ccm(aes))", 19, 128),
    "chacha20-poly1305": ("rfc7539esp(chacha20,poly1305)", 36, 128),
}
PAIRS: Final = {"ipv4": ("192.0.2.1", "192.0.2.2"), "ipv6": ("2001:db8::1", "2001:db8::2")}


@dataclass(frozen=True)
class Scratch:
    """A namespace to try things in, with a veth pair `one` and `two` in it."""

    netns: str

    def ip(self, *lines: str) -> None:
        ip(*lines, netns=self.netns)

    def nft(self, ruleset: str) -> None:
        self.command(["nft", "-f", "-"], stdin=ruleset)

    def command(self, argv: list[str], *, stdin: str = "") -> None:
        with inside(self.netns):
            done = subprocess.run(
                argv,
                input=stdin,
                check=False,
                capture_output=True,
                text=True,
                timeout=SYSCALL_TIMEOUT_SECONDS,
            )
        if done.returncode:
            raise LabError(f"{argv[0]}: {(done.stderr or done.stdout).strip()}")


@contextmanager
def scratch() -> Iterator[Scratch]:
    name = f"probe{secrets.token_hex(3)}"
    ip(f"netns add {name}")
    try:
        ip("link set lo up", "link add one type veth peer name two", netns=name)
        yield Scratch(name)
    finally:
        ip(f"netns del {name}")


def add_sa(where: Scratch, family: str, aead: str, extra: str = "") -> None:
    src, dst = PAIRS[family]
    name, key_bytes, icv = AEADS[aead]
    key = "0x" + bytes(range(key_bytes)).hex()
    where.ip(
        f"xfrm state add src {src} dst {dst} proto esp spi 0x{secrets.randbelow(2**31) + 256:x} "
        f'mode transport {extra} aead "{name}" {key} {icv}'
    )


def try_aead(aead: str) -> Callable[[Scratch], None]:
    return lambda where: add_sa(where, "ipv4", aead)


def try_esp(family: str) -> Callable[[Scratch], None]:
    return lambda where: add_sa(where, family, "aes-gcm-128")


def try_esn(where: Scratch) -> None:
    add_sa(where, "ipv4", "aes-gcm-128", "replay-window 1024 flag esn")


def try_marks(where: Scratch) -> None:
    add_sa(where, "ipv4", "aes-gcm-128", "mark 41 mask 0xffff")
    add_sa(where, "ipv4", "aes-gcm-128", "output-mark 41 mask 0xffff")


def try_policies(where: Scratch) -> None:
    for src, dst in PAIRS.values():
        where.ip(
            f"xfrm policy add src {src} dst {dst} proto udp dport 4789 dir out action block",
            f"xfrm policy add src {dst} dst {src} proto udp dport 4789 dir in action block",
        )


def try_overlay(kind: str) -> Callable[[Scratch], None]:
    def attempt(where: Scratch) -> None:
        for vni, (_, remote) in enumerate(PAIRS.values(), start=41):
            where.ip(f"link add tun{vni} type {kind} id {vni} remote {remote} dstport {4700 + vni}")

    return attempt


def try_encap_routes(where: Scratch) -> None:
    to, mac = "198.51.100.1", "02:00:00:00:00:01"
    for kind in ("vxlan", "geneve"):
        where.ip(f"link add tun0 type {kind} external dstport 4700", "link set tun0 up")
        for _, remote in PAIRS.values():
            where.ip(*encap_route(to, "tun0", mac=mac, vni=41, remote=ip_address(remote)))
        where.ip("link del tun0")


def try_vlan_tunnels(where: Scratch) -> None:
    local, remote = PAIRS["ipv4"]
    where.ip(f"link add tun0 type vxlan external nolearning local {local} dstport 4700")
    vlan_bridge(where.netns, "bridge0", "tun0", vnis={10: 41}, remote=ip_address(remote))


def try_tc(filter_and_action: str) -> Callable[[Scratch], None]:
    """What a device sends is filtered."""

    def attempt(where: Scratch) -> None:
        added = f"filter add dev one egress protocol all {filter_and_action} continue"
        ip("qdisc add dev one clsact", added, netns=where.netns, program="tc")

    return attempt


def try_nft_inet(where: Scratch) -> None:
    where.nft(
        "table inet t { chain o { type filter hook output priority 0; udp dport 4789 drop\n}\n}"
    )


def try_nft_egress(where: Scratch) -> None:
    where.nft(
        "table netdev t { chain e { type filter hook egress device one priority 0; "
        "meta mark set 41\n}\n}"
    )


def try_rt_ipsec(where: Scratch) -> None:
    where.nft(
        "table inet t { chain o { type filter hook output priority 0; "
        "udp dport 4789 rt ipsec missing drop\n}\n}"
    )


def try_meta_ipsec(where: Scratch) -> None:
    where.nft(
        "table inet t { chain i { type filter hook input priority 0; "
        "udp dport 4789 meta ipsec missing drop\n}\n}"
    )


def try_ktls(where: Scratch) -> None:
    with inside(where.netns), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as one, listener.accept()[0]:
            one.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")


def try_rds_tcp(where: Scratch) -> None:
    with inside(where.netns), socket.socket(AF_RDS, socket.SOCK_SEQPACKET) as sock:
        sock.setsockopt(SOL_RDS, SO_RDS_TRANSPORT, RDS_TRANS_TCP.to_bytes(4, sys.byteorder))


def try_rxe(where: Scratch) -> None:
    where.ip("link set one up", "link set two up")
    name = f"rxe{secrets.token_hex(3)}"
    where.command(["rdma", "link", "add", name, "type", "rxe", "netdev", "one"])
    where.command(["rdma", "link", "delete", name])


def try_netdevsim(_: Scratch) -> None:
    bus = Path("/sys/bus/netdevsim")
    number = secrets.randbelow(1 << 16) + 1000
    (bus / "new_device").write_text(f"{number} 1")
    (bus / "del_device").write_text(f"{number}")


def try_af_alg(_: Scratch) -> None:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0) as sock:
        sock.bind(("aead", "gcm(aes)"))


def try_xfrm_statistics(_: Scratch) -> None:
    Path("/proc/net/xfrm_stat").read_text()


def try_netem(where: Scratch) -> None:
    ip("qdisc add dev one root netem loss 1%", netns=where.netns, program="tc")


def try_bridge(where: Scratch) -> None:
    where.ip("link add bridge0 type bridge")


def try_sock_destroy(where: Scratch) -> None:
    """inet_diag and its destroy command, as `ss -K` uses it (of a socket that is not there)."""
    where.command(["ss", "-K", "dst", "192.0.2.99"])


def try_ping(where: Scratch) -> None:
    where.command(["ping", "-q", "-c1", "127.0.0.1"])


PROBES: Final[dict[str, Callable[[Scratch], None]]] = {
    "esp-ipv4": try_esp("ipv4"),
    "esp-ipv6": try_esp("ipv6"),
    **{f"aead-{name}": try_aead(name) for name in AEADS},
    "esn": try_esn,
    "xfrm-marks": try_marks,
    "xfrm-policies": try_policies,
    "xfrm-statistics": try_xfrm_statistics,
    "vxlan": try_overlay("vxlan"),
    "geneve": try_overlay("geneve"),
    "encap-routes": try_encap_routes,
    "vlan-tunnels": try_vlan_tunnels,
    "tc-vni-marks": try_tc("flower enc_key_id 41 action skbedit mark 41/0xffff"),
    "tc-tunnel-keys": try_tc(
        "matchall action tunnel_key set id 41 src_ip 192.0.2.1 dst_ip 192.0.2.2"
    ),
    "nft-inet": try_nft_inet,
    "nft-netdev-egress": try_nft_egress,
    "nft-rt-ipsec": try_rt_ipsec,
    "nft-meta-ipsec": try_meta_ipsec,
    "ktls": try_ktls,
    "rds-tcp": try_rds_tcp,
    "rxe": try_rxe,
    "netdevsim": try_netdevsim,
    "af-alg": try_af_alg,
    "bridge": try_bridge,
    "netem": try_netem,
    "sock-destroy": try_sock_destroy,
    "ping": try_ping,
}


def probe_features(names: Iterable[str] | None = None) -> dict[str, str]:
    """What is missing: feature -> what the kernel (or the lack of a program) said."""
    wanted = tuple(PROBES if names is None else names)
    if unknown := sorted(set(wanted) - set(PROBES)):
        raise LabError(
            f"no such feature: {', '.join(unknown)}", remedy=f"there are: {', '.join(PROBES)}"
        )
    if os.geteuid() != 0:
        return dict.fromkeys(wanted, "probing needs root")
    return {name: reason for name in wanted if (reason := probe(name))}


def probe(name: str) -> str:
    """Empty if the feature is there."""
    try:
        with scratch() as where:
            PROBES[name](where)
    except FileNotFoundError as error:
        return f"{error.filename or 'what was asked for'} is not there"
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}"
    except (LabError, subprocess.TimeoutExpired) as error:
        return str(error).splitlines()[0]
    return ""


def main() -> int:
    missing = probe_features()
    for name in PROBES:
        print(f"{'MISSING' if name in missing else 'ok':8} {name:24} {missing.get(name, '')}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
