"""A namespace to try things in."""

import os
from pathlib import Path

import pytest

from tests.namespaces import missing_capability
from tunsec.adapters.scratch_namespace import scratch_namespace
from tunsec.model.errors import Unavailable

NOBODY = 65534

needs_root = pytest.mark.skipif(missing_capability() is not None, reason=str(missing_capability()))


def namespace() -> Path:
    """Of this thread."""
    return Path("/proc/thread-self/ns/net").readlink()


def look_around() -> None:
    """Namespace and devices in the middle of an error."""
    with scratch_namespace():
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        raise LookupError(namespace(), [line.partition(":")[0].strip() for line in lines])


@needs_root
def test_it_is_empty_and_left_again_even_by_an_error() -> None:
    home = namespace()
    with pytest.raises(LookupError) as caught:
        look_around()
    there, devices = caught.value.args
    assert there != home
    assert devices == ["lo"]
    assert namespace() == home


@needs_root
def test_who_may_not_make_one_is_told() -> None:
    os.seteuid(NOBODY)
    try:
        with pytest.raises(Unavailable, match="Operation not permitted"):
            look_around()
    finally:
        os.seteuid(0)
