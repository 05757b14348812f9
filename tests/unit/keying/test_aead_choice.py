"""Both ends of a pair choose the same AEAD, and a good one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.keying.aead_choice import agree
from tunsec.model.aead import Aead, AeadSpeed
from tunsec.model.errors import Refused

A128, A256, CHACHA = Aead.AES_128_GCM, Aead.AES_256_GCM, Aead.CHACHA20_POLY1305

speeds = st.dictionaries(st.sampled_from(Aead), st.integers(0, 10**10)).map(
    lambda found: tuple(AeadSpeed(aead, speed) for aead, speed in found.items())
)
allowed = st.frozensets(st.sampled_from(Aead))


def able(**by_name: int) -> tuple[AeadSpeed, ...]:
    names = {"a128": A128, "a256": A256, "chacha": CHACHA}
    return tuple(AeadSpeed(names[name], speed) for name, speed in by_name.items())


@given(speeds, speeds, allowed)
def test_it_is_symmetric_possible_and_near_the_best(
    one: tuple[AeadSpeed, ...], other: tuple[AeadSpeed, ...], may: frozenset[Aead]
) -> None:
    here = {speed.aead: speed.bytes_per_second for speed in one}
    there = {speed.aead: speed.bytes_per_second for speed in other}
    common = here.keys() & there.keys() & may
    if not common:
        with pytest.raises(Refused):
            agree(one, other, may)
        return
    chosen = agree(one, other, may)
    assert chosen == agree(tuple(reversed(other)), tuple(reversed(one)), sorted(may))
    assert chosen in common
    best = max(min(here[aead], there[aead]) for aead in common)
    assert min(here[chosen], there[chosen]) >= 0.9 * best


def test_the_slower_side_decides() -> None:
    server = able(a128=5_000, a256=4_000, chacha=1_500)
    small = able(a128=100, a256=80, chacha=600)
    assert agree(server, small, tuple(Aead)) is CHACHA
    assert agree(server, server, tuple(Aead)) is A128


def test_the_longer_key_wins_a_tie() -> None:
    assert agree(able(a128=1_000, a256=900), able(a128=1_000, a256=900), tuple(Aead)) is A256
    assert agree(able(a128=1_000, a256=899), able(a128=1_000, a256=899), tuple(Aead)) is A128
    assert agree(able(a128=0, a256=0), able(a128=0, a256=0), tuple(Aead)) is A256


def test_the_policy_decides_before_speed() -> None:
    all_of_them = able(a128=1_000, a256=900, chacha=1)
    assert agree(all_of_them, all_of_them, (CHACHA,)) is CHACHA


def test_nothing_in_common_says_who_can_what() -> None:
    with pytest.raises(Refused, match="here aes-128-gcm; there aes-256-gcm; policy"):
        agree(able(a128=1), able(a256=1), tuple(Aead))
