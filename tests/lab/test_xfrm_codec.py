"""The XFRM codec and adapter against the kernel: installed, read back, and shown by `ip xfrm`."""

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from tests.namespaces import private_namespace, run
from tunsec.adapters.netlink import NetlinkSocket
from tunsec.adapters.xfrm import XfrmEvents, XfrmKernel
from tunsec.model.aead import Aead
from tunsec.model.errors import Refused
from tunsec.model.event import (
    Acquired,
    EventsLost,
    HardExpired,
    KernelEvent,
    SaAdded,
    SadFlushed,
    SaRemoved,
    SoftExpired,
    SpChanged,
    SpdFlushed,
)
from tunsec.model.names import IfId, Mark, Reqid, Spi
from tunsec.model.sa import (
    IpsecMode,
    Lifetimes,
    Offload,
    OffloadKind,
    Replay,
    Sa,
    SaDirection,
    SaId,
    Usage,
)
from tunsec.model.secret import Secret
from tunsec.model.selector import UDP, PortMatch, Selector
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSa, AddSp, RemoveSa, RemoveSp, Step, UpdateSp
from tunsec.plan.compare import sa_matches, sp_matches
from tunsec.wire.netlink import Control, Flag, decode_answer, encode_message, messages
from tunsec.wire.xfrm.aevents import SaProgress, decode_progress, encode_progress
from tunsec.wire.xfrm.consts import NETLINK_XFRM, AeFlag, Msg
from tunsec.wire.xfrm.migrate import Migration, Move, encode_migration
from tunsec.wire.xfrm.replay import ReplayForm, ReplayState
from tunsec.wire.xfrm.requests import (
    SpiRequest,
    decode_sad_counts,
    decode_spd_counts,
    encode_counts_request,
    encode_sa_id,
    encode_spi_request,
)
from tunsec.wire.xfrm.sa import SaMessage, decode_sa_message, encode_sa
from tunsec.wire.xfrm.sp import encode_userpolicy
from tunsec.wire.xfrm.structs import Reader

pytestmark = pytest.mark.needs("esp-ipv4", "esp-ipv6", "xfrm-marks", "xfrm-policies")

A, B = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
ESN = Replay(window=1024, esn=True)


class Bench:
    """A namespace with a command lane, an event lane, and a bare socket."""

    def __init__(self, stack: ExitStack) -> None:
        self.kernel = XfrmKernel()
        stack.callback(self.kernel.close)
        self.events = XfrmEvents(ours=[self.kernel.tag])
        stack.callback(self.events.close)
        self._bare = stack.enter_context(NetlinkSocket(NETLINK_XFRM))

    def ask(self, kind: Msg, payload: bytes, flags: int = Flag.ACK) -> tuple[int, bytes]:
        """(message type, payload) of the answer to one request."""
        self._bare.send(encode_message(kind, payload, flags=Flag.REQUEST | flags, seq=1))
        datagram = self._bare.receive()
        assert datagram is not None
        message = next(messages(datagram))
        found = bytes(datagram[message.start : message.end])
        if message.kind == Control.ERROR:
            answer = decode_answer(datagram, message)
            if answer.errno:
                raise Refused(str(kind), errno=answer.errno, reason=answer.text)
        else:
            self._bare.receive()  # the ACK behind it
        return message.kind, found

    def whole_sa(self, sa_id: SaId) -> SaMessage:
        """One SA with its keys and everything else."""
        _, payload = self.ask(Msg.GETSA, encode_sa_id(sa_id))
        return decode_sa_message(payload, 0, len(payload), reader=Reader(), keep_keys=True)

    def done(self, *steps: Step) -> None:
        """Carry out steps that all succeed."""
        refused = [answer for answer in self.kernel.apply(steps) if answer is not None]
        assert refused == []

    def next_events(self, count: int) -> list[KernelEvent]:
        """Events as they come, until there are `count`; waits at most 10 s for each."""
        found: list[KernelEvent] = []
        while len(found) < count:
            ready, _, _ = select.select([self.events], [], [], 10)
            assert ready, f"only {found} came"
            found += self.events.read()
        return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    with private_namespace(), ExitStack() as stack:
        yield Bench(stack)


def make_sa(spi: int, aead: Aead = Aead.CHACHA20_POLY1305) -> Sa:
    key = bytes(range(aead.key_bytes + aead.salt_bytes))
    return Sa(SaId(B, Spi(spi)), A, Reqid(0x5400_0007), aead, Secret(key), replay=ESN)


def make_sp(dport: int = 4789) -> Sp:
    selector = Selector(ip_network(A), ip_network(B), UDP, dport=PortMatch(dport))
    template = Template(A, B, Reqid(0x5400_0007))
    return Sp(SpId(selector, SpDirection.OUT), 5453, SpAction.ALLOW, (template,))


def add(sa: Sa) -> AddSa:
    return AddSa(sa, SaDirection.INBOUND)


VARIANTS = {
    "gcm-128": make_sa(1000, Aead.AES_128_GCM),
    "gcm-256": make_sa(1001, Aead.AES_256_GCM),
    "chacha": make_sa(1002),
    "ipv6": replace(make_sa(1003), id=SaId(B6, Spi(1003)), src=A6),
    "marks": replace(
        make_sa(1004), id=SaId(B, Spi(1004), mark=Mark(0x29, 0xFFFF)), output_mark=Mark(7, 0xF)
    ),
    "if_id": replace(make_sa(1005), if_id=IfId(0x99)),
    "limits": replace(
        make_sa(1006), lifetimes=Lifetimes(1 << 40, 1 << 41, 1 << 42, 1 << 43, 60, 70, 80, 90)
    ),
    "widest window": replace(make_sa(1007), replay=Replay(window=4096, esn=True)),
    "no esn": replace(make_sa(1008), replay=Replay(window=32)),
    "wide without esn": replace(make_sa(1009), replay=Replay(window=512)),
    "no window": replace(make_sa(1010), replay=Replay()),
    "selector": replace(
        make_sa(1011), selector=Selector(ip_network(A), ip_network(B), UDP, dport=PortMatch(4789))
    ),
    "tunnel": replace(make_sa(1012), mode=IpsecMode.TUNNEL, flags=1),
    "declared inbound": replace(make_sa(1013), direction=SaDirection.INBOUND),
    "on a CPU": replace(make_sa(1014), direction=SaDirection.INBOUND, cpu=0),
    "numbers": replace(make_sa(1015), replay=Replay(1024, True, 1 << 32 | 5, 1 << 33 | 6)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_sa_is_read_back_equal(bench: Bench, name: str) -> None:
    sa = VARIANTS[name]
    bench.done(add(sa))
    assert bench.kernel.sas() == {sa.id: sa}
    assert bench.kernel.sa(sa.id) == sa
    assert sa_matches(sa, bench.kernel.sas()[sa.id])
    whole = bench.whole_sa(sa.id)
    assert sa.key is not None
    assert whole.sa.key is not None
    assert whole.sa.key.reveal() == sa.key.reveal()
    assert whole.rest == ()
    bench.done(RemoveSa(sa.id))
    assert bench.kernel.sas() == {}


def test_an_outbound_sa_needs_no_direction_and_may_have_one(bench: Bench) -> None:
    plain = make_sa(1100)
    declared = replace(make_sa(1101), direction=SaDirection.OUTBOUND)
    bench.done(AddSa(plain, SaDirection.OUTBOUND), AddSa(declared, SaDirection.OUTBOUND))
    there = bench.kernel.sas()
    assert there[plain.id] == plain
    assert there[declared.id] == replace(declared, replay=Replay(window=0, esn=True))
    assert sa_matches(declared, there[declared.id])


def test_ip_shows_the_same_sa(bench: Bench) -> None:
    sa = replace(
        make_sa(0xCAFE), id=SaId(B, Spi(0xCAFE), mark=Mark(0x29, 0xFF)), output_mark=Mark(3, 0xF)
    )
    bench.done(add(replace(sa, lifetimes=Lifetimes(hard_bytes=5000, soft_seconds=600))))
    shown = " ".join(run("ip xfrm state").split())
    assert sa.key is not None
    for words in (
        "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x0000cafe reqid 1409286151",
        "mode transport",
        "flag esn",
        f"aead rfc7539esp(chacha20,poly1305) 0x{sa.key.reveal().hex()} 128",
        "mark 0x29/0xff",
        "output-mark 0x3/0xf",
        "replay_window 1024, bitmap-length 32",
    ):
        assert words in shown
    limits = run("ip -s xfrm state")
    assert "soft (INF)(bytes), hard 5000(bytes)" in limits
    assert "expire add: soft 600(sec), hard 0(sec)" in limits


def test_ip_shows_the_same_sps(bench: Bench) -> None:
    marked = replace(
        make_sp(6081), id=replace(make_sp(6081).id, mark=Mark(0x29, 0xFF), if_id=IfId(9))
    )
    pinned = replace(make_sp(), templates=(replace(make_sp().templates[0], spi=Spi(0xCAFE)),))
    block = replace(
        make_sp(16385), action=SpAction.BLOCK, templates=(), priority=5463,
        lifetimes=Lifetimes(hard_seconds=900),
    )  # fmt: skip
    bench.done(AddSp(marked), AddSp(pinned), AddSp(block))
    assert bench.kernel.sps() == {sp.id: sp for sp in (marked, pinned, block)}
    shown = " ".join(run("ip xfrm policy").split())
    for words in (
        "src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4789 dir out priority 5453",
        "proto esp spi 0x0000cafe reqid 1409286151 mode transport",
        "proto udp dport 16385 dir out action block priority 5463",
        "mark 0x29/0xff",
        "if_id 0x9",
    ):
        assert words in shown


def test_what_ip_installs_is_understood(bench: Bench) -> None:
    run(
        "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x200 reqid 2 mode tunnel "
        "replay-window 32 enc cbc(aes) 0x000102030405060708090a0b0c0d0e0f auth-trunc "
        f"hmac(sha256) 0x{bytes(range(32)).hex()} 128 encap espinudp 4500 4501 0.0.0.0"
    )
    (sa,) = bench.kernel.sas().values()
    assert (sa.aead, sa.mode, sa.replay) == (None, IpsecMode.TUNNEL, Replay(window=32))
    whole = bench.whole_sa(sa.id)
    bench.done(RemoveSa(sa.id))
    bench.ask(Msg.NEWSA, encode_sa(whole))
    again = bench.whole_sa(sa.id)
    assert [(one.name, one.icv_bits) for one in again.algorithms] == [
        (one.name, one.icv_bits) for one in whole.algorithms
    ]
    assert again.encap == whole.encap


def test_an_unmarked_sa_answers_for_every_mark(bench: Bench) -> None:
    """__xfrm_state_lookup compares under the found SA's own mask, and adds see it, too."""
    plain = make_sa(1200)
    marked = replace(plain, id=replace(plain.id, mark=Mark(5)))
    bench.done(add(plain))
    (answer,) = bench.kernel.apply([add(marked)])
    assert answer is not None
    assert answer.errno == errno.EEXIST
    assert bench.kernel.sa(marked.id) is None
    assert bench.kernel.sa(plain.id) == plain


def test_the_kernels_words_reach_the_refusal(bench: Bench) -> None:
    odd = replace(make_sa(1300), replay=Replay(window=0, esn=True))
    on_no_cpu = replace(make_sa(1301), direction=SaDirection.INBOUND, cpu=4096)
    pointless = replace(make_sa(1302), id=SaId(B, Spi(1302), mark=Mark(0x100, 0xFF)))
    good = make_sa(1303)
    answers = bench.kernel.apply([add(odd), add(on_no_cpu), add(pointless), add(good)])
    assert [answer and answer.errno for answer in answers] == [
        errno.EINVAL, errno.ERANGE, errno.EINVAL, None,
    ]  # fmt: skip
    assert [answer and answer.reason for answer in answers[:2]] == [
        "ESN replay window must be > 0",
        "pCPU number too big",
    ]
    assert answers[0] is not None
    assert "esp 00000514 to 192.0.2.2" in answers[0].what
    assert set(bench.kernel.sas()) == {good.id}


def test_lost_answers_are_looked_up() -> None:
    """A receive buffer too small for a batch of errors: ENOBUFS, and still the right answers."""
    with private_namespace(), ExitStack() as stack:
        kernel = XfrmKernel(receive_bytes=1)
        stack.callback(kernel.close)
        sas = [make_sa(2000 + number) for number in range(64)]
        half = sas[::2]
        assert kernel.apply([add(sa) for sa in half]) == [None] * 32
        others = [replace(sa, reqid=Reqid(0x5400_0008)) for sa in sas]
        answers = kernel.apply([add(sa) for sa in others])
        refused = {answer.errno for answer in answers if answer is not None}
        assert errno.ENOBUFS in refused, "nothing was lost: this test tests nothing"
        assert [answer is not None for answer in answers] == [True, False] * 32
        assert {sa_id for sa_id, sa in kernel.sas().items() if sa.reqid == 0x5400_0008} == {
            sa.id for sa in sas[1::2]
        }
        assert kernel.apply([RemoveSa(sa.id) for sa in sas]) == [None] * 64
        sp = make_sp()
        steps: list[Step] = [AddSp(sp), *[RemoveSa(sa.id) for sa in sas[:60]], UpdateSp(sp, sp)]
        answers = kernel.apply(steps)
        assert answers[0] is None
        assert answers[-1] is None


def test_thousands_come_and_go(bench: Bench) -> None:
    sas = [make_sa(0x10000 + number) for number in range(2000)]
    sps = [make_sp(1 + number) for number in range(2000)]
    bench.done(*(add(sa) for sa in sas), *(AddSp(sp) for sp in sps))
    there, policies = bench.kernel.sas(), bench.kernel.sps()
    assert all(sa_matches(sa, there[sa.id]) for sa in sas)
    assert all(sp_matches(sp, policies[sp.id]) for sp in sps)
    assert (len(there), len(policies)) == (2000, 2000)
    _, payload = bench.ask(Msg.GETSADINFO, encode_counts_request())
    assert decode_sad_counts(payload, 0, len(payload)).sas == 2000
    _, payload = bench.ask(Msg.GETSPDINFO, encode_counts_request())
    assert decode_spd_counts(payload, 0, len(payload)).outbound == 2000
    bench.done(*(RemoveSp(sp) for sp in sps), *(RemoveSa(sa.id) for sa in sas))
    assert bench.kernel.sas() == {}
    assert bench.kernel.sps() == {}
    assert bench.events.read() == []


def test_per_socket_sps_are_left_out(bench: Bench) -> None:
    """IP_XFRM_POLICY (17) takes a bare xfrm_userpolicy_info."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        own = replace(make_sp(), templates=(), action=SpAction.ALLOW)
        owner.setsockopt(socket.IPPROTO_IP, 17, encode_userpolicy(own))
        assert "socket out" in run("ip xfrm policy")
        assert bench.kernel.sps() == {}


def test_what_others_do_is_told_and_what_we_do_is_not(bench: Bench) -> None:
    sa, sp = make_sa(1400), make_sp()
    bench.done(add(sa), AddSp(sp))
    assert bench.events.read() == []
    who = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x578"
    run(f"ip xfrm state delete {who}")
    what = "src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4789 dir out"
    run(f"ip xfrm policy delete {what}")
    run(f"ip xfrm policy add {what} action block")
    run(f"ip xfrm state add {who} reqid 3 aead rfc4106(gcm(aes)) 0x{bytes(20).hex()} 128")
    run("ip xfrm state flush")
    run("ip xfrm policy flush")
    assert bench.events.read() == [
        SaRemoved(sa.id, sa.reqid),
        SpChanged(sp.id, removed=True),
        SpChanged(sp.id, removed=False),
        SaAdded(sa.id, Reqid(3)),
        SadFlushed(),
        SpdFlushed(),
    ]


def test_limits_are_told(bench: Bench) -> None:
    sa = replace(make_sa(1500), lifetimes=Lifetimes(soft_seconds=1, hard_seconds=2))
    bench.done(add(sa))
    assert bench.next_events(2) == [SoftExpired(sa.id, sa.reqid), HardExpired(sa.id, sa.reqid)]
    assert bench.kernel.sas() == {}


def test_a_packet_without_an_sa_is_told(bench: Bench) -> None:
    run("ip link add v0 type veth peer name v1")
    run("ip link set v0 up")
    run("ip addr add 192.0.2.1/24 dev v0")
    bench.done(AddSp(make_sp()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(b"x", (str(B), 4789))
        port = sender.getsockname()[1]
    (event,) = bench.next_events(1)
    selector = Selector(ip_network(A), ip_network(B), UDP, PortMatch(port), PortMatch(4789))
    assert isinstance(event, Acquired)
    assert (event.src, event.dst, event.reqid) == (A, B, 0x5400_0007)
    assert replace(event.selector, ifindex=0) == selector
    (larval,) = bench.kernel.sas().values()
    assert larval.larval


def test_an_overrun_event_lane_says_so_and_goes_on() -> None:
    with private_namespace(), ExitStack() as stack:
        kernel = XfrmKernel()
        stack.callback(kernel.close)
        events = XfrmEvents(receive_bytes=1)
        stack.callback(events.close)
        sas = [make_sa(3000 + number) for number in range(200)]
        assert kernel.apply([add(sa) for sa in sas]) == [None] * 200
        found = events.read()
        assert found[-1] == EventsLost()
        assert len(found) < 200
        assert events.read() == []
        assert kernel.apply([RemoveSa(sas[0].id)]) == [None]
        assert events.read() == [SaRemoved(sas[0].id, sas[0].reqid)]


def test_an_spi_is_allocated(bench: Bench) -> None:
    bare = replace(make_sa(0), aead=None, key=None, replay=Replay())
    request = SpiRequest(SaMessage(bare), 0x7000, 0x7000)
    kind, payload = bench.ask(Msg.ALLOCSPI, encode_spi_request(request))
    assert kind == Msg.NEWSA
    message = decode_sa_message(payload, 0, len(payload), reader=Reader())
    assert (message.sa.id.spi, message.sa.larval) == (0x7000, True)
    assert bench.kernel.sas()[message.sa.id].larval


def test_replay_numbers_are_read_and_set(bench: Bench) -> None:
    sa = make_sa(1600)
    bench.done(add(sa))
    everything = AeFlag(15)
    question = SaProgress(sa.id, sa.src, sa.reqid, everything)
    _, payload = bench.ask(Msg.GETAE, encode_progress(question))
    progress = decode_progress(payload, 0, len(payload), reader=Reader())
    assert progress.replay is not None
    assert (progress.replay.window, progress.replay.oseq) == (1024, 0)
    ahead = replace(progress.replay, form=ReplayForm.BITMAP, oseq=1 << 32 | 9)
    usage = Usage(usage_bytes=1234, usage_packets=5)
    answer = replace(question, replay=ahead, usage=usage)
    bench.ask(Msg.NEWAE, encode_progress(answer), Flag.ACK | Flag.REPLACE)
    there = bench.kernel.sa(sa.id)
    assert there is not None
    assert there.replay == Replay(1024, True, 1 << 32 | 9, 0)
    assert (there.usage.usage_bytes, there.usage.usage_packets) == (1234, 5)
    assert sa_matches(sa, there)
    assert isinstance(ahead, ReplayState)


def test_a_migration_is_told(bench: Bench) -> None:
    selector = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
    template = Template(A, B, Reqid(77), mode=IpsecMode.TUNNEL)
    sp = Sp(SpId(selector, SpDirection.OUT), 9, SpAction.ALLOW, (template,))
    bench.done(AddSp(sp))
    new_src, new_dst = IPv4Address("192.0.2.3"), IPv4Address("192.0.2.4")
    move = Move(A, B, new_src, new_dst, template.proto, template.mode, Reqid(77))
    bench.ask(Msg.MIGRATE, encode_migration(Migration(sp.id, (move,))))
    assert bench.events.read() == [SpChanged(sp.id, removed=False)]
    moved = bench.kernel.sp(sp.id)
    assert moved is not None
    assert moved.templates == (replace(template, src=new_src, dst=new_dst),)


def test_another_namespace_is_not_touched(bench: Bench) -> None:
    bench.done(add(make_sa(1700)), AddSp(make_sp()))
    with private_namespace(), ExitStack() as stack:
        other = Bench(stack)
        assert other.kernel.sas() == {}
        assert other.kernel.sps() == {}
    assert len(bench.kernel.sas()) == 1


@pytest.mark.needs("netdevsim")
def test_offload_to_a_device_is_read_back(bench: Bench) -> None:
    buses = Path("/sys/bus/netdevsim")
    before = set(socket.if_nameindex())
    (buses / "new_device").write_text("4713 1")
    try:
        ((ifindex, name),) = set(socket.if_nameindex()) - before
        run(f"ip link set {name} up")
        offload = Offload(OffloadKind.CRYPTO, ifindex, inbound=False)
        # netdevsim cannot advance ESN.
        sa = replace(make_sa(1800, Aead.AES_128_GCM), offload=offload, replay=Replay(window=32))
        bench.done(add(sa))
        assert bench.kernel.sas() == {sa.id: sa}
        assert "crypto offload parameters: dev" in run("ip xfrm state")
        packet = replace(
            sa, id=SaId(B, Spi(1801)), offload=replace(offload, kind=OffloadKind.PACKET)
        )
        (answer,) = bench.kernel.apply([add(packet)])
        assert answer is not None
        assert answer.reason
        bench.done(RemoveSa(sa.id))
    finally:
        (buses / "del_device").write_text("4713")
