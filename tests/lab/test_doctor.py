"""`tunsec doctor` on hosts with a real kernel, a real charon and real daemons."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.namespaces import inside, private_namespace, run
from tunsec.adapters.strongswan_files import CharonProcess, read_settings
from tunsec.adapters.vici_socket import ViciSocket
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.cli.doctor.charon_settings import RETRANSMISSION, SETTINGS
from tunsec.cli.doctor.finding import Verdict
from tunsec.cli.doctor.kernel import check_guard, check_overlay, check_sps, probe_sa, try_sa
from tunsec.model.aead import Aead
from tunsec.model.flow import Kind
from tunsec.model.sa import SaDirection
from tunsec.model.secret import Secret
from tunsec.model.step import AddSa
from tunsec.wire.vici.answers import decode_stats
from tunsec_lab.charon import PLUGINS, RECOMMENDED, LabCharon
from tunsec_lab.cluster import Cluster
from tunsec_lab.host import Host, Lab

pytestmark = pytest.mark.needs(
    "esp-ipv4", "esp-ipv6", "esn", "vxlan", "bridge", "nft-inet", "nft-netdev-egress"
)

IKE = "  {keying: ike}\n"
ACQUIRE = Path("/proc/sys/net/core/xfrm_acq_expires")
UNSET = """
  retransmit_tries =
  retransmit_timeout =
  retransmit_base =
  retransmit_jitter =
  half_open_timeout =
  cookie_threshold =
  cookie_threshold_ip =
  block_threshold =
  threads =
  ikesa_table_size =
  ikesa_table_segments =
  replay_window =
  make_before_break =
  install_routes =
  install_virtual_ip =
  plugins {
    kernel-netlink {
      xfrm_acq_expires =
    }
  }
"""
"""Takes back all that systemd/charon-tunsec.conf sets: charon's defaults."""
ODD = """
  threads = 2 # and a comment
  threads = "17"
}
base {
  threads = 3
}
charon : base {
  plugins { kernel-netlink { xfrm_acq_expires = 0x0c } }
  include odd.d/*.conf
"""
"""Closed by the one that follows it in the file."""


class Said(NamedTuple):
    """What the doctor said of one check."""

    verdict: str
    found: str
    remedy: str


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("two-hosts") as made:
        yield made


def doctor(cluster: Cluster, host: Host, *options: str) -> dict[tuple[str, str], list[Said]]:
    """All findings by group and check; the exit status says whether there is a problem."""
    done = host.run(
        [
            *("tunsec", "doctor", "--json", "--host", host.name, "--policy", cluster.policy_file),
            *("--identity", cluster.identity(host), "--directory", cluster.directory.as_uri()),
            *("--charon", LabCharon(host).url, "--run", host.run_dir, "--state", host.state_dir),
            *options,
        ],
        check=False,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    found: dict[tuple[str, str], list[Said]] = {}
    for one in answer["findings"]:
        said = Said(one["verdict"], one["found"], one["remedy"])
        found.setdefault((one["group"], one["check"]), []).append(said)
    problems = [said for ones in found.values() for said in ones if said.verdict == "problem"]
    assert answer["good"] is (not problems)
    assert done.status == (1 if problems else 0)
    return found


def not_ok(found: dict[tuple[str, str], list[Said]], verdict: str) -> dict[str, list[str]]:
    """What has this verdict, but for the AES instructions that a guest's kernel cannot use."""
    return {
        check: texts
        for (_, check), ones in found.items()
        if check != "speed" and (texts := [said.found for said in ones if said.verdict == verdict])
    }


def sas(host: Host) -> set[str]:
    """SPIs in a host's kernel."""
    lines = host.run(["ip", "-o", "xfrm", "state"]).stdout.split()
    return {word for word in lines if word.startswith("0x")}


def test_a_host_on_which_all_is_well(lab: Lab) -> None:
    a, b = lab.hosts.values()
    cluster = Cluster(lab, defaults=IKE)
    for host in (a, b):
        cluster.start_charon(host)
    cluster.start_all()
    before = sas(a), a.run(["nft", "list", "ruleset"]).stdout
    found = doctor(cluster, a)
    assert not_ok(found, "problem") == {}
    assert not_ok(found, "warning") == {}
    assert (sas(a), a.run(["nft", "list", "ruleset"]).stdout) == before
    assert {group for group, _ in found} == {"host", "kernel", "daemon", "charon"}
    assert found["charon", "acquire"] == [Said("ok", "10 s", "")]
    assert found["charon", "settings"][0].found.startswith("as systemd/charon-tunsec.conf")
    assert found["charon", "connections"][0].found == "2 of tunsec, 0 of others"
    assert found["daemon", "flows"][0].found == "2 of 2 protected"
    assert found["kernel", "direction"][0].found == "SAs know their direction"
    # The charon of another host keys another kernel.
    foreign = doctor(cluster, b, "--charon", LabCharon(a).url)
    assert list(not_ok(foreign, "problem")) == ["network"]


def test_charons_defaults_are_warned_of_and_a_missing_charon_is_a_problem(lab: Lab) -> None:
    a, _ = lab.hosts.values()
    cluster = Cluster(lab, defaults=IKE)
    charon = cluster.start_charon(a, settings=UNSET)
    found = doctor(cluster, a)
    assert not_ok(found, "problem") == {}
    warned = {said.found.split()[0] for said in found["charon", "settings"]}
    assert warned == {
        "a",  # peer that does not answer
        *("threads", "xfrm_acq_expires"),
        *(one.key for one in SETTINGS if one.default != one.wanted),
    }
    told = "\n".join(said.found for said in found["charon", "settings"])
    assert "given up after 165 s" in told
    assert "xfrm_acq_expires is 165" in told
    assert "threads is 16" in told
    assert all("charon-tunsec.conf" in said.remedy for said in found["charon", "settings"])
    assert "not running here" in found["daemon", "tunsecd"][0].found
    charon.kill9()
    found = doctor(cluster, a)
    assert found["charon", "socket"][0].verdict == "problem"
    assert "Connection refused" in found["charon", "socket"][0].found


def test_a_plugin_that_does_harm_and_files_that_were_changed(lab: Lab) -> None:
    a, _ = lab.hosts.values()
    cluster = Cluster(lab, defaults=IKE)
    charon = cluster.start_charon(a)
    conf = a.folder / "strongswan.conf"
    good = conf.read_text()
    conf.write_text(good + "charon { install_routes = yes\n }")
    later = time.time() + 5
    os.utime(conf, (later, later))
    found = doctor(cluster, a)
    assert "was changed after charon started" in found["charon", "files"][0].found
    assert [said.found.split()[0] for said in found["charon", "settings"]] == ["install_routes"]
    conf.write_text(good + "charon {")
    found = doctor(cluster, a)
    assert found["charon", "files"][0].verdict == "problem"
    assert "section charon has no end" in found["charon", "files"][0].found
    charon.stop()
    LabCharon(a, plugins=f"{PLUGINS} bypass-lan").start()
    found = doctor(cluster, a)
    assert not_ok(found, "problem")["plugins"] == [
        "bypass-lan is loaded: it lets the local network pass in clear"
    ]


def test_files_are_read_as_charon_reads_them(lab: Lab) -> None:
    """What can be seen of charon from outside, held against what its files say to us."""
    a, _ = lab.hosts.values()
    folder = a.folder / "odd.d"
    folder.mkdir()
    (folder / "2.conf").write_text('threads = "2\\\n4"\n')
    (folder / "1.conf").write_text("threads = 99\nplugins {\n}\n")
    charon = LabCharon(a, settings=ODD).start()
    with ViciSocket(charon.socket, seconds=5.0) as vici:
        workers = decode_stats(vici.request("stats", seconds=5.0)).workers
    with inside(a.netns):
        acquire = ACQUIRE.read_text().strip()
    settings = read_settings(CharonProcess(a.folder / "strongswan.conf")).settings
    assert (settings.value("charon.threads"), workers) == ("24", 24)
    acquired = settings.value("charon.plugins.kernel-netlink.xfrm_acq_expires")
    assert (acquired, acquire) == ("0x0c", "12")


def test_what_the_recommended_file_sets_is_what_is_taken_back(lab: Lab) -> None:
    """UNSET names all of it: a new setting there must be looked at here too."""
    (lab.folder / "strongswan.conf").write_text(f"include {RECOMMENDED}\ncharon {{ {UNSET} }}")
    taken = read_settings(CharonProcess(lab.folder / "strongswan.conf")).settings
    assert set(taken.values.values()) == {None}
    assert set(RETRANSMISSION) - {"retransmit_limit"} <= set(UNSET.split())


def test_kernel_settings_that_switch_ipsec_off(lab: Lab) -> None:
    a, _ = lab.hosts.values()
    cluster = Cluster(lab)
    with inside(a.netns):
        Path("/proc/sys/net/ipv4/conf/all/disable_xfrm").write_text("1")
    found = doctor(cluster, a)
    (said,) = found["kernel", "settings"]
    assert said.verdict == "problem"
    assert "disable_xfrm" in said.found


def test_each_attempt_at_the_kernel_can_fail() -> None:
    """What stands in the way is told, in the kernel's words."""
    with private_namespace():
        kernel = XfrmKernel()
        sa = probe_sa(Aead.CHACHA20_POLY1305)
        assert sa.key is not None
        twin = replace(sa, key=Secret(sa.key.reveal()))
        assert kernel.apply([AddSa(twin, SaDirection.INBOUND)]) == [None]
        assert try_sa(kernel, sa) == "File exists"
        assert check_sps(kernel).verdict is Verdict.OK
        run("ip xfrm policy add src 192.0.2.1 dst 192.0.2.2 proto udp dport 4789 dir out")
        finding = check_sps(kernel)
        assert (finding.verdict, finding.found.rpartition(": ")[2]) == ("problem", "File exists")
        assert check_overlay(Kind.VXLAN).verdict is Verdict.OK
        assert check_overlay(Kind.VXLAN).found.endswith("File exists")
        assert check_guard().verdict is Verdict.OK
        run("nft add table inet tunsec")
        run("nft add chain inet tunsec x")
        assert check_guard().verdict is Verdict.OK
        kernel.close()
