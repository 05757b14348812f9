"""What every ports.Kernel keeps to: the real one, and the one of the simulation.

A test class inherits KernelContract and supplies fixtures: `kernel`, an empty SAD and SPD;
`plain_device` and `nic`, the ifindex of a device in its namespace without ESP offload, and of
one as netdevsim has it.
"""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.names import Address, Mark, Reqid, Spi
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT
from tunsec.model.sa import (
    Lifetimes,
    Offload,
    OffloadKind,
    Replay,
    Sa,
    SaDirection,
    SaId,
)
from tunsec.model.secret import Secret
from tunsec.model.selector import TCP, UDP, PortMatch, Selector, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.ports import Kernel

LOCAL, PEER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
LOCAL6, PEER6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
VXLAN = PortMatch(4789)


def make_sa(
    spi: int, *, aead: Aead = Aead.AES_128_GCM, dst: Address = PEER, mark: Mark | None = None
) -> Sa:
    """An outbound SA as tunsec installs them, with a key of its own."""
    src = LOCAL if dst.version == 4 else LOCAL6
    return Sa(
        SaId(dst, Spi(spi), mark=mark),
        src,
        Reqid(0x5400_0001),
        aead,
        Secret(bytes((spi + at) & 0xFF for at in range(aead.key_bytes + aead.salt_bytes))),
        lifetimes=Lifetimes(
            soft_bytes=1 << 33,
            hard_bytes=1 << 34,
            soft_packets=1 << 35,
            hard_packets=1 << 36,
            soft_seconds=3600,
            hard_seconds=7200,
        ),
        replay=Replay(window=1024, esn=True),
    )


def make_sp(
    *,
    dport: int = 4789,
    direction: SpDirection = SpDirection.OUT,
    spi: int | None = None,
    mark: Mark | None = None,
    dst: Address = PEER,
) -> Sp:
    """A protect SP between the two hosts."""
    src = LOCAL if dst.version == 4 else LOCAL6
    selector = Selector(ip_network(src), ip_network(dst), UDP, dport=PortMatch(dport))
    template = Template(src, dst, Reqid(0x5400_0001), None if spi is None else Spi(spi))
    return Sp(SpId(selector, direction, mark), PRIORITY_PROTECT, SpAction.ALLOW, (template,))


def make_block(version: int, direction: SpDirection) -> Sp:
    """A block SP for the overlay port from anywhere to anywhere."""
    everything = any_network(version)
    selector = Selector(everything, everything, UDP, dport=VXLAN)
    return Sp(SpId(selector, direction), PRIORITY_BLOCK, SpAction.BLOCK)


def add(sa: Sa) -> AddSa:
    """The step that installs it as an outbound SA."""
    return AddSa(sa, SaDirection.OUTBOUND)


def whole(ifindex: int) -> Offload:
    """Packet offload of what goes out."""
    return Offload(OffloadKind.PACKET, ifindex, inbound=False)


def errnos(answers: list[Refused | None]) -> list[int | None]:
    """Error number of each answer, None for success."""
    return [None if answer is None else answer.errno for answer in answers]


def done(kernel: Kernel, *steps: Step) -> None:
    """Carry out steps that all succeed."""
    assert errnos(kernel.apply(steps)) == [None] * len(steps)


class KernelContract:
    """The promises of ports.Kernel."""

    def test_an_empty_kernel_holds_nothing(self, kernel: Kernel) -> None:
        assert kernel.sas() == {}
        assert kernel.sps() == {}
        assert kernel.sa(make_sa(0x1000).id) is None
        assert kernel.sp(make_sp().id) is None
        assert kernel.apply([]) == []

    @pytest.mark.parametrize("aead", Aead)
    @pytest.mark.parametrize("dst", [PEER, PEER6])
    def test_an_sa_is_read_back_as_it_was_asked_for(
        self, kernel: Kernel, aead: Aead, dst: Address
    ) -> None:
        sa = make_sa(0x1001, aead=aead, dst=dst)
        done(kernel, add(sa))
        assert kernel.sas() == {sa.id: sa}
        assert kernel.sa(sa.id) == sa

    def test_a_key_never_comes_back(self, kernel: Kernel) -> None:
        sa = make_sa(0x1002)
        done(kernel, add(sa))
        one = kernel.sa(sa.id)
        assert one is not None
        assert one.key is None
        assert [found.key for found in kernel.sas().values()] == [None]

    def test_an_sp_is_read_back_as_it_was_asked_for(self, kernel: Kernel) -> None:
        wanted = [
            make_sp(spi=0x1003),
            make_sp(direction=SpDirection.IN),
            make_sp(dst=PEER6, mark=Mark(0x29, 0xFFFF)),
            *(
                make_block(version, direction)
                for version in (4, 6)
                for direction in (SpDirection.IN, SpDirection.OUT)
            ),
        ]
        done(kernel, *(AddSp(sp) for sp in wanted))
        assert kernel.sps() == {sp.id: sp for sp in wanted}
        for sp in wanted:
            assert kernel.sp(sp.id) == sp

    def test_an_sa_is_added_only_when_it_is_not_there(self, kernel: Kernel) -> None:
        sa = make_sa(0x1004)
        done(kernel, add(sa))
        other = replace(make_sa(0x1004, aead=Aead.AES_256_GCM), reqid=Reqid(0x5400_0002))
        assert errnos(kernel.apply([add(other)])) == [errno.EEXIST]
        assert kernel.sa(sa.id) == sa

    def test_an_sp_is_added_only_when_it_is_not_there(self, kernel: Kernel) -> None:
        sp = make_sp()
        done(kernel, AddSp(sp))
        block = replace(sp, action=SpAction.BLOCK, templates=())
        assert errnos(kernel.apply([AddSp(sp), AddSp(block)])) == [errno.EEXIST, errno.EEXIST]
        assert kernel.sps() == {sp.id: sp}

    def test_removing_what_is_not_there_is_refused(self, kernel: Kernel) -> None:
        answers = kernel.apply([RemoveSa(make_sa(0x1005).id), RemoveSp(make_sp())])
        assert errnos(answers) == [errno.ESRCH, errno.ENOENT]

    def test_what_is_removed_is_gone(self, kernel: Kernel) -> None:
        sa, sp = make_sa(0x1006), make_sp()
        done(kernel, add(sa), AddSp(sp))
        done(kernel, RemoveSp(sp), RemoveSa(sa.id))
        assert kernel.sas() == {}
        assert kernel.sps() == {}
        assert kernel.sa(sa.id) is None
        assert kernel.sp(sp.id) is None

    def test_a_removed_sp_may_be_added_again(self, kernel: Kernel) -> None:
        sp = make_sp()
        done(kernel, AddSp(sp), RemoveSp(sp), AddSp(sp))
        shown = kernel.sps()[sp.id]
        done(kernel, RemoveSp(shown), AddSp(shown))
        assert kernel.sps() == {sp.id: sp}

    def test_an_update_takes_the_place_of_what_is_there(self, kernel: Kernel) -> None:
        old, new = make_sp(spi=0x1007), make_sp(spi=0x1008)
        done(kernel, AddSp(old), UpdateSp(new, old))
        assert kernel.sps() == {new.id: new}
        lower = replace(new, priority=new.priority + 1, templates=(), action=SpAction.BLOCK)
        done(kernel, UpdateSp(lower, new))
        assert kernel.sps() == {new.id: lower}

    def test_an_update_of_what_is_not_there_installs_it(self, kernel: Kernel) -> None:
        sp = make_sp()
        done(kernel, UpdateSp(sp, sp))
        assert kernel.sps() == {sp.id: sp}

    def test_sps_are_shown_in_the_order_they_were_written_the_last_first(
        self, kernel: Kernel
    ) -> None:
        sps = [make_sp(dport=port) for port in (6081, 4789, 500)]
        done(kernel, *(AddSp(sp) for sp in sps))
        assert list(kernel.sps()) == [sp.id for sp in reversed(sps)]
        done(kernel, UpdateSp(sps[1], sps[1]))
        assert list(kernel.sps()) == [sps[at].id for at in (1, 2, 0)]

    def test_marks_tell_sps_apart(self, kernel: Kernel) -> None:
        red, blue, plain = make_sp(mark=Mark(41)), make_sp(mark=Mark(42)), make_sp()
        done(kernel, AddSp(red), AddSp(plain), AddSp(blue))
        assert set(kernel.sps()) == {red.id, blue.id, plain.id}
        done(kernel, RemoveSp(red))
        assert set(kernel.sps()) == {blue.id, plain.id}
        assert errnos(kernel.apply([RemoveSp(red)])) == [errno.ENOENT]
        assert kernel.sp(red.id) is None
        assert kernel.sp(blue.id) == blue

    def test_an_sp_keeps_the_mask_of_its_mark(self, kernel: Kernel) -> None:
        red, blue = (make_sp(mark=Mark(value << 24, 0xFF << 24)) for value in (0x81, 0x82))
        block = make_block(4, SpDirection.OUT)
        done(kernel, AddSp(block), AddSp(red), AddSp(blue))
        assert kernel.sps() == {sp.id: sp for sp in (block, red, blue)}
        pinned = replace(red, templates=(replace(red.templates[0], spi=Spi(0x1020)),))
        done(kernel, UpdateSp(pinned, red))
        assert kernel.sps() == {sp.id: sp for sp in (block, pinned, blue)}
        done(kernel, RemoveSp(pinned))
        assert kernel.sps() == {sp.id: sp for sp in (block, blue)}

    def test_what_an_sa_sets_on_packets_is_read_back(self, kernel: Kernel) -> None:
        sa = replace(make_sa(0x1021, dst=LOCAL), output_mark=Mark(0x81 << 24, 0xFF << 24))
        done(kernel, AddSa(sa, SaDirection.INBOUND))
        assert kernel.sas() == {sa.id: sa}

    def test_marks_tell_sas_apart(self, kernel: Kernel) -> None:
        red, blue = make_sa(0x1009, mark=Mark(41)), make_sa(0x1009, mark=Mark(42))
        done(kernel, add(red), add(blue))
        assert kernel.sas() == {red.id: red, blue.id: blue}
        assert kernel.sa(replace(red.id, mark=None)) is None
        done(kernel, RemoveSa(red.id))
        assert kernel.sas() == {blue.id: blue}
        assert errnos(kernel.apply([RemoveSa(red.id)])) == [errno.ESRCH]
        assert kernel.sa(blue.id) == blue

    def test_directions_ports_and_protocols_tell_sps_apart(self, kernel: Kernel) -> None:
        sps = [make_sp(), make_sp(direction=SpDirection.IN), make_sp(dport=6081)]
        selector = sps[0].id.selector
        for other in (
            replace(selector, proto=TCP),
            replace(selector, sport=VXLAN, dport=PortMatch(0, 0)),
            replace(selector, dst=ip_network("192.0.2.0/24")),
        ):
            sps.append(replace(sps[0], id=replace(sps[0].id, selector=other)))
        done(kernel, *(AddSp(sp) for sp in sps))
        assert kernel.sps() == {sp.id: sp for sp in sps}
        done(kernel, RemoveSp(sps[0]))
        assert kernel.sps() == {sp.id: sp for sp in sps[1:]}

    def test_steps_run_in_order_and_answer_one_by_one(self, kernel: Kernel) -> None:
        first, second, sp = make_sa(0x100A), make_sa(0x100B), make_sp()
        answers = kernel.apply(
            [
                add(first),
                add(first),
                RemoveSa(second.id),
                AddSp(sp),
                add(second),
                RemoveSa(first.id),
                RemoveSa(first.id),
                AddSp(sp),
            ]
        )
        assert errnos(answers) == [
            None, errno.EEXIST, errno.ESRCH, None, None, None, errno.ESRCH, errno.EEXIST,
        ]  # fmt: skip
        assert set(kernel.sas()) == {second.id}
        assert set(kernel.sps()) == {sp.id}

    def test_a_refusal_names_the_step(self, kernel: Kernel) -> None:
        step = RemoveSa(make_sa(0x100C).id)
        (answer,) = kernel.apply([step])
        assert answer is not None
        assert answer.what == str(step)
        assert answer.reason

    def test_hundreds_of_steps_in_one_call(self, kernel: Kernel) -> None:
        sas = [make_sa(0x2000 + number) for number in range(300)]
        steps: list[Step] = [add(sa) for sa in sas]
        steps.insert(150, add(sas[0]))
        answers = kernel.apply(steps)
        assert errnos(answers).index(errno.EEXIST) == 150
        assert sum(answer is not None for answer in answers) == 1
        assert kernel.sas() == {sa.id: sa for sa in sas}
        done(kernel, *(RemoveSa(sa.id) for sa in sas))
        assert kernel.sas() == {}

    def test_an_sa_without_a_key_is_refused(self, kernel: Kernel) -> None:
        good, bad = make_sa(0x100D), replace(make_sa(0x100E), key=None)
        assert errnos(kernel.apply([add(bad), add(good)])) == [errno.EINVAL, None]
        assert set(kernel.sas()) == {good.id}

    def test_foreign_objects_are_shown_and_left_alone(self, kernel: Kernel) -> None:
        foreign_sa = replace(make_sa(0x100F, dst=PEER6), reqid=Reqid(7))
        foreign_sp = replace(
            make_sp(dport=500),
            priority=100_000,
            templates=(Template(LOCAL, PEER, Reqid(7)),),
        )
        done(kernel, add(foreign_sa), AddSp(foreign_sp))
        sa, sp, block = make_sa(0x1010), make_sp(), make_block(4, SpDirection.OUT)
        done(kernel, AddSp(block), add(sa), AddSp(sp))
        assert set(kernel.sas()) == {foreign_sa.id, sa.id}
        assert set(kernel.sps()) == {foreign_sp.id, sp.id, block.id}
        done(kernel, RemoveSp(sp), RemoveSa(sa.id), RemoveSp(block))
        assert kernel.sas() == {foreign_sa.id: foreign_sa}
        assert kernel.sps() == {foreign_sp.id: foreign_sp}

    def test_addresses_of_one_spi_tell_sas_apart(self, kernel: Kernel) -> None:
        here = make_sa(0x1011)
        there = make_sa(0x1011, dst=ip_address("192.0.2.3"))
        done(kernel, add(here), add(there))
        done(kernel, RemoveSa(here.id))
        assert kernel.sas() == {there.id: there}

    def test_a_nic_gets_what_it_takes(self, kernel: Kernel, nic: int) -> None:
        """Crypto offload of AES-GCM with 32-bit sequence numbers, as netdevsim does it."""
        sa = replace(
            make_sa(0x1012),
            offload=Offload(OffloadKind.CRYPTO, nic, inbound=False),
            replay=Replay(window=32),
        )
        done(kernel, add(sa))
        assert kernel.sa(sa.id) == sa
        refused = [
            replace(sa, id=SaId(PEER, Spi(0x1013)), offload=whole(nic)),
            replace(sa, id=SaId(PEER, Spi(0x1014)), replay=Replay(window=1024, esn=True)),
            replace(
                make_sa(0x1015, aead=Aead.CHACHA20_POLY1305),
                offload=sa.offload,
                replay=Replay(window=32),
            ),
        ]
        for one in refused:
            (answer,) = kernel.apply([add(one)])
            assert answer is not None
            assert answer.errno == errno.EINVAL
            assert answer.reason
        assert "ESN" in str(kernel.apply([add(refused[1])])[0])
        sp = replace(make_sp(spi=0x1012), offload=whole(nic))
        assert errnos(kernel.apply([AddSp(sp)])) == [errno.EINVAL]
        assert set(kernel.sas()) == {sa.id}
        assert kernel.sps() == {}

    def test_a_device_that_knows_no_offload(self, kernel: Kernel, plain_device: int) -> None:
        """The kernel does crypto offload itself and says nothing; packet offload it refuses."""
        sa = make_sa(0x1016)
        crypto = Offload(OffloadKind.CRYPTO, plain_device, inbound=False)
        done(kernel, add(replace(sa, offload=crypto)))
        assert kernel.sa(sa.id) == sa
        packet = replace(make_sa(0x1017), offload=whole(plain_device))
        assert errnos(kernel.apply([add(packet)])) == [errno.EINVAL]
        sp = replace(make_sp(spi=0x1017), offload=whole(plain_device))
        assert errnos(kernel.apply([AddSp(sp)])) == [errno.EINVAL]
