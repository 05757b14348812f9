"""Labs for tests that need a real kernel.

The tests run inside the lab guest, many in one boot (`netns-lab/lab exec -- python3 -m pytest
tests/lab`), or as root on a capable host. `@pytest.mark.needs("esp-ipv4", ...)` names what the
kernel must have: without it a test is skipped on a host and fails in the lab.
"""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab.watched import watched
from tunsec_lab.capture import LeakWatch
from tunsec_lab.features import IN_LAB, probe_features
from tunsec_lab.host import Lab

CLOCK: Final = "TUNSEC_LAB_CLOCK"  # set by the lab guest
PROBED: Final[dict[str, str]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*features): what the kernel must be able to do (tunsec_lab.features)"
    )
    config.addinivalue_line(
        "markers", "virtual_time: waits for hours; collected only on the virtual-time kernel"
    )
    config.addinivalue_line("markers", "long: waits for most of a minute or more; `make lab-long`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    waiting = [item for item in items if item.get_closest_marker("virtual_time")]
    if os.environ.get(CLOCK, "").startswith("virtual"):
        for item in waiting:
            item.add_marker(pytest.mark.timeout(0))  # hours of the clock pass in seconds
    elif waiting:
        config.hook.pytest_deselected(items=waiting)
        items[:] = [item for item in items if item not in waiting]


def missing(features: tuple[str, ...]) -> dict[str, str]:
    """Probes each feature once a session."""
    new = [name for name in features if name not in PROBED]
    if new:
        PROBED.update(dict.fromkeys(new, "") | probe_features(new))
    return {name: PROBED[name] for name in features if PROBED[name]}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "tests/lab" not in str(item.path):
        return
    in_lab = os.environ.get(IN_LAB) == "1"
    if os.geteuid() != 0:
        pytest.skip("lab tests need root; run them with netns-lab/lab exec")
    wanted = tuple(name for mark in item.iter_markers("needs") for name in mark.args)
    if lacking := missing(wanted):
        shown = "; ".join(f"{name} ({reason})" for name, reason in lacking.items())
        if in_lab:
            pytest.fail(f"the lab kernel lacks {shown}", pytrace=False)
        pytest.skip(f"this kernel lacks {shown}")


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    with Lab("two-hosts") as lab:
        yield lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two hosts. Overlay devices exist but are down: nothing is sent over them yet."""
    with Lab("two-hosts", overlays_up=False) as made:
        yield made


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    """Over the lab's wire, from before the first daemon to after the last."""
    with watched(lab) as seen:
        yield seen


@pytest.fixture
def three_hosts() -> Iterator[Lab]:
    with Lab("three-hosts") as lab:
        yield lab
