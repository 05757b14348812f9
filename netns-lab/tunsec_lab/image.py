"""The lab image: a small Debian root file system with the programs that scenarios use."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tunsec_lab.apt import KEYRING, mirror, need_programs
from tunsec_lab.cache import Cache, digest, remove_tree
from tunsec_lab.children import run_to_end
from tunsec_lab.errors import LabError

SUITE: Final = "trixie"
PYTHON_VERSION: Final = "3.13"  # of that suite
RECIPE: Final = "1"
GUEST: Final = Path(__file__).resolve().parent.parent / "guest"
BOOT_PROGRAM: Final = "sbin/lab-boot"
# Folders that the guest mounts over; a read-only root cannot make them.
MOUNT_POINTS: Final = ("lab", "overlay", "opt/site", "tunsec")

PACKAGES: Final = (
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "etcd-client",
    "etcd-server",
    "ethtool",
    "ibverbs-providers",
    "ibverbs-utils",
    "iperf3",
    "iproute2",
    "iputils-arping",
    "iputils-ping",
    "keepalived",
    "kmod",
    "libcharon-extra-plugins",
    "libstrongswan-extra-plugins",
    "libstrongswan-standard-plugins",
    "nftables",
    "openssl",
    "perftest",
    "procps",
    "python3",
    "python3-venv",
    "rdma-core",
    "socat",
    "strongswan-charon",
    "strongswan-swanctl",
    "tcpdump",
    "wireguard-tools",
)

BUILD_PACKAGES: Final = {
    "mmdebstrap": "mmdebstrap",
    str(KEYRING): "debian-archive-keyring",
}


def image_key() -> str:
    boot = (GUEST / "boot").read_text()
    return digest(RECIPE, SUITE, boot, *MOUNT_POINTS, *PACKAGES)


def cached_image(cache: Cache) -> Path | None:
    folder = cache.place("image", image_key())
    return folder / "root" if folder.is_dir() else None


def get_image(cache: Cache) -> Path:
    """The root folder, from the cache or made now."""
    return cached_image(cache) or build_image(cache)


def build_image(cache: Cache) -> Path:
    key = image_key()
    with cache.building("image", key) as work:
        if found := cached_image(cache):
            return found
        cache.progress.say(f"image {key}: not in the cache, building (about 1 minute)")
        need_programs(BUILD_PACKAGES, cache.progress)
        ready = work / "ready"
        remove_tree(ready)
        ready.mkdir()
        archive = work / "root.tar"
        make_archive(cache, archive, log=work / "mmdebstrap.log")
        unpack(archive, ready / "root")
        finish(ready / "root")
        made_from = {"suite": SUITE, "packages": PACKAGES, "recipe": RECIPE}
        (ready / "made-from.json").write_text(json.dumps(made_from, indent=2) + "\n")
        cache.publish(ready, "image", key)
        remove_tree(work)
        cache.progress.say(f"image {key}: done")
    return cache.place("image", key) / "root"


def make_archive(cache: Cache, archive: Path, *, log: Path) -> None:
    """A tar file, which mmdebstrap makes with or without root in the same way."""
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--format=tar",
        f"--include={','.join(PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        SUITE,
        str(archive),
        mirror(),
    ]
    cache.progress.say(f"image: {len(PACKAGES)} packages and what they need, log in {log}")
    with log.open("w") as file:
        status = run_to_end(command, output=file)
    if status:
        lines = "\n".join(f"  {line}" for line in log.read_text().splitlines()[-15:])
        raise LabError(
            f"mmdebstrap failed:\n{lines}",
            remedy="without root it needs user namespaces and the package uidmap; "
            "with a broken download simply run the lab again",
        )


def unpack(archive: Path, root: Path) -> None:
    """Files belong to whoever builds: the guest's root sees them through that user's eyes."""
    root.mkdir()
    subprocess.run(
        ["tar", "-C", str(root), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)],
        check=True,
    )
    archive.unlink()


def finish(root: Path) -> None:
    for folder in MOUNT_POINTS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    program = root / BOOT_PROGRAM
    shutil.copyfile(GUEST / "boot", program)
    program.chmod(0o755)
    for name, text in {
        "etc/hostname": "lab\n",
        "etc/hosts": "127.0.0.1 localhost lab\n::1 localhost\n",
        "etc/resolv.conf": "",
    }.items():
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text)
    for trash in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        remove_tree(root / trash)
        (root / trash).mkdir()
