"""The contract of ports.Directory on the simulation's directory, in virtual time."""

from collections.abc import Callable

import pytest

from tests.contract.directory_contract import DirectoryContract, Meeting, Member
from tests.sim.cast import policy
from tests.sim.world import World
from tunsec.model.names import HostName

PATIENCE = 10.0
"""Virtual seconds."""


class FakeMeeting:
    """A world without daemons: its directory alone."""

    def __init__(self) -> None:
        self._world = World(1, policy(3), start_within=None)

    def join(self, name: str) -> Member:
        """A host begins to watch."""
        member = Member(self._world.directory_of(HostName(name)))
        self._world.directory.watch(name, member.hear)
        return member

    def until(self, true: Callable[[], bool]) -> None:
        """Let virtual time pass."""
        self._world.run_until(true, PATIENCE, look=0.001)

    def settle(self) -> None:
        """Nothing takes longer."""
        self._world.run(1.0)

    def go_away(self) -> None:
        """As a partition."""
        self._world.directory.away = True

    def come_back(self) -> None:
        """The partition heals."""
        self._world.directory_back()


class TestFakeDirectory(DirectoryContract):
    """The promises, kept by the fake."""

    @pytest.fixture
    def meeting(self) -> Meeting:
        return FakeMeeting()
