"""Two hosts whose overlays are down, and a watch over the wire between them."""

from collections.abc import Iterator

import pytest

from tunsec_lab.capture import LeakWatch
from tunsec_lab.host import Lab
from tunsec_lab.packets import protect


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("two-hosts", overlays_up=False) as made:
        yield made


@pytest.fixture
def watch(lab: Lab) -> Iterator[LeakWatch]:
    """Sees every packet until the test ends, and was shown clear ones before."""
    a, b = lab.hosts.values()
    with LeakWatch(lab, protected=[protect("vxlan")]) as seen:

        def clear() -> None:
            for host in (a, b):
                host.raise_overlays()
            assert a.reaches(b.overlay_addresses("red")[0])
            for host in (a, b):
                host.ip(*(f"link set {each.device} down" for each in lab.overlays_of(host)))

        seen.prove_sees(clear)
        yield seen
        seen.assert_closed()
