"""The command line of the lab, its cache, and what it tells the guest."""

import argparse
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunsec_lab import cli
from tunsec_lab.boot import EXIT_LAB_FAILED, GuestRun, Mount, Stopped, Watch, memory_folder
from tunsec_lab.cache import Cache, Progress, Stages, cache_root, digest, remove_tree
from tunsec_lab.children import child, run_to_end
from tunsec_lab.errors import LabError
from tunsec_lab.image import image_key
from tunsec_lab.kernel import Clock
from tunsec_lab.site import requirements, site_key

LAB = cli.CHECKOUT / "netns-lab/lab"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", Progress())


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("2m", 120), ("1.5h", 5400), ("90", 90), ("250ms", 0.25)]
)
def test_spans(text: str, seconds: float) -> None:
    assert cli.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1 fortnight", "s"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a time span"):
        cli.parse_span(text)


def test_memory_and_cpus() -> None:
    assert cli.parse_memory("768m") == "768M"
    assert cli.parse_cpus("4") == 4
    for text in ("2", "0G", "2GiB", "G"):
        with pytest.raises(argparse.ArgumentTypeError, match="amount of memory"):
            cli.parse_memory(text)
    for text in ("0", "9", "two"):
        with pytest.raises(argparse.ArgumentTypeError, match="number of CPUs"):
            cli.parse_cpus(text)


def test_clocks() -> None:
    assert cli.parse_clock("virtual:cpu") is Clock.VIRTUAL_CPU
    with pytest.raises(argparse.ArgumentTypeError, match="real, virtual, virtual:cpu"):
        cli.parse_clock("sand")


def test_mounts(tmp_path: Path) -> None:
    assert cli.parse_mount(f"{tmp_path}:/results") == Mount(tmp_path.resolve(), "/results", "rw")
    assert cli.parse_mount(f"{tmp_path}:/results:ro").kind == "ro"
    for text, message in (
        (f"{tmp_path}", "is not HOSTDIR:GUESTDIR"),
        (f"{tmp_path}:/a:wr", "is not HOSTDIR:GUESTDIR"),
        (f"{tmp_path}/none:/a", "not a folder"),
        (f"{tmp_path}:relative", "no absolute path"),
        (f"{tmp_path}:/a,b", "takes no comma"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            cli.parse_mount(text)


def test_the_command_starts_at_the_first_double_dash() -> None:
    assert cli.split_command(["exec", "--cpus", "1", "--", "a", "--", "b"]) == (
        ["exec", "--cpus", "1"],
        ["a", "--", "b"],
    )
    assert cli.split_command(["doctor"]) == (["doctor"], [])


@pytest.mark.parametrize("arguments", [["exec"], ["exec", "true"], ["exec", "--"]])
def test_exec_without_a_command_says_how(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "lab exec -- uname -a" in capsys.readouterr().err


def test_defaults() -> None:
    options = cli.parser().parse_args(["exec"])
    assert (options.cpus, options.memory, options.timeout, options.clock) == (
        2,
        "2G",
        None,
        Clock.REAL,
    )


def test_the_script_needs_nothing_but_the_standard_library() -> None:
    """-I -S: no site-packages, no environment."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(LAB), "--help"], capture_output=True, text=True, check=True
    )
    assert "doctor" in done.stdout


# -- what the guest is told ---------------------------------------------------------------------


def guest_run(tmp_path: Path, **changes: object) -> GuestRun:
    plain = {"kernel": tmp_path / "linux", "root": tmp_path, "command": ("true",)}
    return GuestRun(**plain | changes)  # type: ignore[arg-type]


def test_words_of_the_command_reach_the_guest_as_they_are(tmp_path: Path) -> None:
    words = ("echo", "a b", "it's", "$HOME", "*", "", "\udcff")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    guest_run(tmp_path, command=("printf", "%s\\0", *words)).write_orders(run_dir)
    said = subprocess.run(["sh", str(run_dir / "command")], capture_output=True, check=True).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_orders_of_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run = guest_run(tmp_path, mounts=(Mount(tmp_path, "/x", "view"),), environment={"SEED": "a b"})
    run.write_orders(run_dir)
    assert (run_dir / "mounts").read_text() == f"view\t{tmp_path}\t/x\n"
    assert "LAB_TERMINAL=no" in (run_dir / "settings").read_text()
    command = (run_dir / "command").read_text()
    assert "export SEED='a b'" in command
    assert "export TUNSEC_IN_LAB=1" in command
    assert "export TUNSEC_LAB_CLOCK=real" in command
    assert (run_dir / "root").resolve() == tmp_path.resolve()


def test_clocks_and_cpus_become_kernel_arguments(tmp_path: Path) -> None:
    real = guest_run(tmp_path, cpus=3, memory="512M").kernel_arguments(tmp_path)
    assert {"mem=512M", "ncpus=3", "ro"} <= set(real)
    virtual = guest_run(tmp_path, clock=Clock.VIRTUAL).kernel_arguments(tmp_path)
    assert "time-travel=inf-cpu" in virtual
    assert not any(word.startswith("ncpus") for word in virtual)
    paid = guest_run(tmp_path, clock=Clock.VIRTUAL_CPU).kernel_arguments(tmp_path)
    assert "time-travel" in paid


def test_guest_memory_goes_elsewhere_if_shared_memory_is_small() -> None:
    assert "TMPDIR" in memory_folder(f"{1 << 20}G")


# -- the cache ----------------------------------------------------------------------------------


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tunsec-lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache/tunsec-lab"


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest("ab")


def test_the_site_key_follows_the_dependency_lists(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["b>=1", "a"]\n'
        '[project.optional-dependencies]\ntest = ["pytest"]\ndev = ["ruff"]\n'
    )
    wanted = requirements(project)
    assert wanted == ("a", "b>=1", "pytest")
    assert site_key(wanted) != site_key((*wanted, "c"))
    project.write_text("[tool]\n")
    with pytest.raises(LabError, match="dependency lists"):
        requirements(project)


def test_the_image_key_is_stable() -> None:
    assert image_key() == image_key()


def test_a_thing_is_published_whole_and_resumed_until_then(cache: Cache) -> None:
    with cache.building("image", "k") as work:
        Stages(work).mark("unpacked")
    with cache.building("image", "k") as work:
        assert Stages(work).done("unpacked")
        assert not Stages(work).done("built")
        (work / "ready").mkdir()
        assert not cache.place("image", "k").exists()
        cache.publish(work / "ready", "image", "k")
    assert cache.place("image", "k").is_dir()


def test_a_second_build_waits_for_the_first_and_says_so(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def second() -> None:
        with cache.building("kernel", "k"):
            order.append("second")

    thread = threading.Thread(target=second)
    with cache.building("kernel", "k"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"another run (pid {os.getpid()}) is building it; waiting" in capsys.readouterr().err


def test_different_things_are_built_at_the_same_time(cache: Cache) -> None:
    with cache.building("kernel", "one"), cache.building("kernel", "two"):
        pass


def test_clean_refuses_while_a_run_uses_the_cache(cache: Cache) -> None:
    def clean() -> None:
        with cli.in_use(cache, alone=True):
            pass

    with cli.in_use(cache), cli.in_use(cache), pytest.raises(LabError, match="in use"):
        clean()
    clean()


def test_clean_keeps_what_the_checkout_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = cache_root()
    kept, stale = root / "image" / image_key(), root / "image/0123456789abcdef"
    for folder in (kept, stale, root / "work/kernel-x"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    assert cli.main(["clean", "--quiet"]) == 0
    assert kept.exists()
    assert not stale.exists()
    assert not (root / "work").exists()
    assert cli.main(["clean", "--all", "--quiet"]) == 0
    assert not kept.exists()


def test_a_cache_that_cannot_be_made_is_told_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.main(["exec", "--", "true"]) == EXIT_LAB_FAILED
    told, remedy = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in told
    assert "XDG_CACHE_HOME" in remedy


def test_read_only_folders_are_removed_too(tmp_path: Path) -> None:
    locked = tmp_path / "tree/locked"
    locked.mkdir(parents=True)
    (locked / "file").write_text("x")
    locked.chmod(0o500)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


# -- the end of a run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason", "status"),
    [
        (None, "timeout after 0.2 s", 124),
        (signal.SIGINT, "stopped by SIGINT", 130),
        (signal.SIGTERM, "stopped by SIGTERM", 143),
    ],
)
def test_a_timeout_or_a_signal_ends_all_that_runs_and_says_so(
    number: signal.Signals | None, reason: str, status: int
) -> None:
    """An ordinary process with a child stands for the guest, which is one."""
    read_end, write_end = os.pipe()
    guest = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & sleep 1000"], stdout=write_end, start_new_session=True
    )
    os.close(write_end)
    watched, still_held = os.dup(read_end), read_end

    def wait_for_the_end() -> None:
        with Watch(guest, 0.2 if number is None else 60.0) as watch:
            if number is not None:
                os.kill(os.getpid(), number)
            watch.until_gone({watched: bytearray()})

    with pytest.raises(Stopped, match=reason) as stopped:
        wait_for_the_end()
    assert stopped.value.status == status
    with os.fdopen(still_held, "rb") as output:
        assert output.read() == b"", "the end of the stream: nobody is left who could write"


# -- programs of the builder --------------------------------------------------------------------


def test_output_and_status_of_a_program(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        assert run_to_end(["sh", "-c", "echo out; echo err >&2; exit 3"], output=file) == 3
    assert log.read_text() == "out\nerr\n"


def test_a_program_and_its_children_end_with_an_interrupted_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "sleep 1000 & echo $!; wait"

    def interrupted() -> None:
        with child(["sh", "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            log.write_text(process.stdout.readline())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    try:
        ended = os.pidfd_open(int(log.read_text()))
    except ProcessLookupError:
        return
    try:
        # Readable once it is gone, or a zombie that nobody has reaped yet.
        assert select.select([ended], [], [], 10)[0]
    finally:
        os.close(ended)
