"""Marks by VNI as tc text: what is written, what of tc's listings is ours, what differs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunsec.model.errors import Refused
from tunsec.model.guard import VniMarks
from tunsec.model.names import Mark, Vni
from tunsec.wire.tc_text import (
    HANDLES,
    PREF_OTHERS,
    PREF_TENANTS,
    Filter,
    FilterId,
    change_script,
    differences,
    filters,
    has_clsact,
    is_empty,
    is_our_clsact,
    parse_filters,
)

RED = Mark(0x8100_0000, 0xFF00_0000)
BLUE = Mark(0x8200_0000, 0xFF00_0000)
LISTED = """[{"protocol":"all","pref":21588,"kind":"flower","chain":0},
{"protocol":"all","pref":21588,"kind":"flower","chain":0,"options":{"handle":1409286185,
"keys":{"enc_key_id":41},"skip_hw":true,"not_in_hw":true,"actions":[{"order":1,"kind":"skbedit",
"mark":2164260864,"mask":"ff000000","control_action":{"type":"continue"},"index":1,"ref":1,
"bind":1}]}}]"""
"""As iproute2 6.15 says it of what the first line of a script makes."""

tenant_marks = st.dictionaries(
    st.integers(0, 0xFF_FFFF).map(Vni),
    st.integers(1, 127).map(lambda number: Mark(0x8000_0000 | number << 24, 0xFF00_0000)),
    max_size=5,
)
wanted = st.builds(
    lambda marks, others: VniMarks("vx0", 7, tuple(sorted(marks.items())), others),
    tenant_marks,
    st.none() | st.just(Mark(0xFE00_0000, 0xFF00_0000)),
)


def listing(*, carried_out: str) -> str:
    """What tc lists after a script without deletions."""
    entries: list[object] = []
    for line in carried_out.splitlines():
        words = line.split()
        value, _, mask = words[words.index("mark") + 1].partition("/")
        keys = (
            {"enc_key_id": int(words[words.index("enc_key_id") + 1])} if "enc_key" in line else {}
        )
        action = {"kind": "skbedit", "control_action": {"type": words[-1]}}
        action |= {"mark": int(value, 16), "mask": mask.removeprefix("0x")}  # type: ignore[dict-item]
        pref = int(words[words.index("pref") + 1])
        options = {
            "handle": int(words[words.index("handle") + 1], 16),
            "keys": keys,
            "skip_hw": True,
            "actions": [action],
        }
        about = {"protocol": "all", "pref": pref, "kind": "flower", "chain": 0}
        entries += [about, {**about, "options": options}]
    return json.dumps(entries)


def test_a_vni_gets_its_mark_and_others_go_on() -> None:
    want = filters(VniMarks("vx0", 7, ((Vni(41), RED),)))
    assert change_script("vx0", want, {}) == (
        "filter replace dev vx0 egress pref 21588 handle 0x54000029 protocol all flower "
        "enc_key_id 41 skip_hw action skbedit mark 0x81000000/0xff000000 continue\n"
    )
    assert parse_filters(LISTED) == want


@given(wanted, wanted)
def test_a_script_turns_one_state_into_another(want: VniMarks, have: VniMarks) -> None:
    target, present = filters(want), filters(have)
    script = change_script("vx0", target, present)
    lines = script.splitlines(keepends=True)
    gone = [line for line in lines if line.startswith("filter del")]
    made = parse_filters(listing(carried_out="".join(line for line in lines if line not in gone)))
    assert len(gone) == len(present.keys() - target.keys())
    kept = {one: present[one] for one in present if one in target}
    assert {**kept, **made} == target
    assert bool(script) == bool(list(differences(target, present, "vx0")))


@given(wanted)
def test_all_vnis_together_are_marked_before_each_gets_its_own(want: VniMarks) -> None:
    prefs = [one.pref for one in sorted(filters(want))]
    assert prefs == sorted(prefs)
    assert (PREF_OTHERS in prefs) == (want.others is not None)


def test_what_others_have_is_not_ours() -> None:
    entry = json.loads(LISTED)[1]
    foreign = [
        {**entry, "pref": 10},
        {**entry, "chain": 3},
        {**entry, "options": {**entry["options"], "handle": 1}},
        {"protocol": "ip", "pref": 49152, "kind": "bpf", "chain": 0, "options": {"handle": "0x1"}},
        {"protocol": "ip", "pref": 49152, "kind": "u32", "chain": 0, "options": {"fh": "800:"}},
    ]
    assert parse_filters(json.dumps(foreign)) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"keys": {"enc_key_id": 41, "enc_dst_port": 4789}},
        {"keys": {"eth_type": "ipv4"}},
        {"skip_hw": False},
        {"actions": []},
        {"actions": [{"kind": "gact", "control_action": {"type": "drop"}}]},
        {"keys": {"enc_key_id": 42}},
    ],
)
def test_what_was_changed_is_seen(change: dict[str, object]) -> None:
    entry = json.loads(LISTED)[1]
    changed = {**entry, "options": {**entry["options"], **change}}
    have = parse_filters(json.dumps([changed]))
    want = filters(VniMarks("vx0", 7, ((Vni(41), RED),)))
    assert list(differences(want, have, "vx0")) == ["vx0: filter of VNI 41 was changed"]
    assert change_script("vx0", want, have).startswith("filter replace dev vx0 ")


def test_what_is_gone_and_what_is_too_much_is_told() -> None:
    red, blue = Filter(Vni(41), RED), Filter(Vni(42), BLUE)
    all_of_it = Filter(None, BLUE)
    said = differences({red.id: red}, {blue.id: blue, all_of_it.id: all_of_it}, "vx0")
    assert list(said) == [
        "vx0: all is not wanted",
        "vx0: filter of VNI 41 is gone",
        "vx0: filter of VNI 42 is not wanted",
    ]
    assert all_of_it.id == FilterId(PREF_OTHERS, HANDLES)
    assert blue.id == FilterId(PREF_TENANTS, HANDLES | 42)


@pytest.mark.parametrize("name", ["vx 0", "vx#0", "vx'0", 'vx"', "", "a" * 16, "vx\n0"])
def test_a_name_that_would_be_something_else_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="rename the device"):
        filters(VniMarks(name, 7, ((Vni(41), RED),)))


def test_whose_clsact_it_is() -> None:
    assert has_clsact('[{"kind":"noqueue"},{"kind":"clsact","handle":"ffff:"}]')
    assert not has_clsact('[{"kind":"ingress","handle":"ffff:"}]')
    assert is_our_clsact('[{"parent":"ffff:","chain":5526357},{"parent":"ffff:","chain":0}]')
    assert not is_our_clsact('[{"parent":"ffff:","chain":0}]')
    assert is_empty("[]\n")
    assert is_empty("")
    assert not is_empty(LISTED)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "nothing"])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="read tc's listing"):
        parse_filters(text)
