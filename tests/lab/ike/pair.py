"""Two hosts with a real charon each, VXLAN between them, and SPs that the test makes by hand.

What tunsecd will do, without tunsecd: connections are loaded over VICI, SAs are charon's, SPs
protect and block the overlay from before the first packet.
"""

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tunsec.adapters import ca_files
from tunsec.adapters.charon import Charon
from tunsec.adapters.xfrm import XfrmKernel
from tunsec.keying.ca import KeyType
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds, WallTime
from tunsec.model.flow import Kind
from tunsec.model.ike import (
    CertificateAuth,
    EspProposal,
    IkeChild,
    IkeConnection,
    Limits,
    PskAuth,
    Revocation,
    SharedKind,
    SharedSecret,
    TrafficSelector,
    Unique,
)
from tunsec.model.ike_sa import (
    Algorithms,
    CharonLinked,
    CharonSaid,
    ChildEnded,
    ChildEstablished,
    ChildSa,
    ChildSaKeyed,
    IkeEvent,
    IkeSa,
)
from tunsec.model.names import Address, HostName, Reqid, Spi
from tunsec.model.ownership import PRIORITY_BLOCK, PRIORITY_PROTECT, REQID_FIRST
from tunsec.model.sa import Sa, SaId
from tunsec.model.secret import Secret
from tunsec.model.selector import UDP, any_network
from tunsec.model.sp import Sp, SpAction, SpDirection, SpId, Template
from tunsec.model.step import AddSp, UpdateSp
from tunsec.plan.ike_proposals import esp_proposals, ike_proposals
from tunsec.policy.kinds import selectors
from tunsec_lab.charon import LabCharon
from tunsec_lab.host import Host, Lab
from tunsec_lab.namespaces import inside

AEADS = (Aead.CHACHA20_POLY1305, Aead.AES_256_GCM)
FAMILIES = (4, 6)
CHILD = "overlay.0"
SUCCESSOR = "overlay.1"
PORT = 4789
EVENT_SECONDS = 20.0
E = TypeVar("E")


@dataclass
class Side:
    """One host: its charon, the adapter to it, its kernel, what charon told."""

    host: Host
    charon: LabCharon
    identity: Path
    told: list[IkeEvent] = field(default_factory=list)

    def link(self, *, tell: Callable[[IkeEvent], None] | None = None) -> None:
        """Open the adapter and the kernel."""

        def hear(event: IkeEvent) -> None:
            self.told.append(event)
            self.heard.set()
            if tell is not None:
                tell(event)

        self.heard = asyncio.Event()
        self.ike = Charon(self.charon.socket, tell=hear)
        with inside(self.host.netns):
            self.kernel = XfrmKernel()

    async def wait_event(self, kind: type[E], *, after: int = 0, count: int = 1) -> list[E]:
        """So many events of a kind, told after the first `after` events of any kind."""
        async with asyncio.timeout(EVENT_SECONDS):
            while len(found := self.events(kind, after=after)) < count:
                self.heard.clear()
                await self.heard.wait()
        return found

    def events(self, kind: type[E], *, after: int = 0) -> list[E]:
        """All events of a kind so far, told after the first `after` events of any kind."""
        told: list[object] = [*self.told[after:]]
        return [event for event in told if isinstance(event, kind)]

    def words(self, *, after: int = 0) -> str:
        """What charon said."""
        return "\n".join(said.words for said in self.events(CharonSaid, after=after))

    async def wait_words(self, words: str) -> None:
        """charon has said this; its log lines come a little later than other events."""
        async with asyncio.timeout(EVENT_SECONDS):
            while words not in self.words():
                self.heard.clear()
                await self.heard.wait()

    def address(self, version: int) -> Address:
        """Of the underlay."""
        return ipaddress.ip_address(str(self.host.ipv4 if version == 4 else self.host.ipv6))

    def sas(self, version: int | None = None) -> list[Sa]:
        """SAs of the kernel with keys."""
        return [
            sa
            for sa in self.kernel.sas().values()
            if not sa.larval and (version is None or sa.id.dst.version == version)
        ]

    async def child(self, version: int) -> tuple[IkeSa, ChildSa]:
        """The one CHILD_SA of a family that is installed."""
        found = [
            (ike, child)
            for ike in await self.ike.sas(ike=connection_name(version))
            for child in ike.children
            if child.state == "INSTALLED"
        ]
        assert len(found) == 1, await self.ike.sas()
        return found[0]


def connection_name(version: int) -> str:
    """One IKE_SA for each pair of addresses."""
    return f"tunsec-pair-{version}"


def reqid(version: int) -> Reqid:
    """One for each family."""
    return Reqid(REQID_FIRST + version)


def child_config(
    name: str, version: int, *, local: Address, remote: Address, algorithms: Algorithms
) -> IkeChild:
    """All UDP of the pair: the ports are the SPs' business. The label tells generations apart."""
    return IkeChild(
        name=name,
        reqid=reqid(version),
        local=(TrafficSelector(ipaddress.ip_network(local), UDP),),
        remote=(TrafficSelector(ipaddress.ip_network(remote), UDP),),
        proposals=esp_proposals(algorithms, AEADS),
        replay_window=1024,
        seconds=Limits(rekey=3600, life=5400, jitter=360),
        volume=Limits(rekey=1 << 38, life=1 << 39, jitter=1 << 33),
        packets=Limits(rekey=1 << 40, life=1 << 41, jitter=1 << 33),
        label=name,
    )


@dataclass
class Pair:
    """Both sides."""

    a: Side
    b: Side
    algorithms: Algorithms
    dpd_after: Seconds | None = None
    """charon takes the SAs of a peer down that does not answer, whatever traffic there is."""
    revocation: Revocation = Revocation.RELAXED

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.a, self.b

    def other(self, side: Side) -> Side:
        """The peer of a side."""
        return self.b if side is self.a else self.a

    def connection(self, side: Side, version: int, *, psk: bool = False) -> IkeConnection:
        """What a side loads for one family."""
        peer = self.other(side)
        local, remote = side.address(version), peer.address(version)
        auth: CertificateAuth | PskAuth = PskAuth()
        if not psk:
            auth = CertificateAuth(
                certificates=(der(side.identity / "cert.pem"),),
                authorities=(der(side.identity / "ca.pem"),),
                revocation=self.revocation,
            )
        return IkeConnection(
            name=connection_name(version),
            local=(local,),
            remote=(remote,),
            local_identity=side.host.name,
            remote_identity=peer.host.name,
            auth=auth,
            proposals=ike_proposals(self.algorithms, AEADS),
            children=tuple(
                child_config(name, version, local=local, remote=remote, algorithms=self.algorithms)
                for name in (CHILD, SUCCESSOR)
            ),
            seconds=Limits(rekey=14_400, life=18_000, jitter=1440),
            dpd_after=self.dpd_after,
            unique=Unique.NEVER,
        )

    async def load(
        self, side: Side, *, psk: bool = False, versions: Sequence[int] = FAMILIES
    ) -> None:
        """Load credentials and connections of one side."""
        if psk:
            await side.ike.load_secret(psk_of(side, self.other(side)))
        else:
            await side.ike.load_key(Secret((side.identity / "key.pem").read_bytes()))
        for version in versions:
            await side.ike.load_connection(self.connection(side, version, psk=psk))

    async def load_both(self, *, psk: bool = False) -> None:
        """Load credentials and connections of both sides."""
        for side in self.sides:
            await self.load(side, psk=psk)

    async def initiate(self, side: Side | None = None, *, seconds: float = 10.0) -> None:
        """Bring up both families."""
        for version in FAMILIES:
            await (side or self.a).ike.initiate(connection_name(version), CHILD, seconds=seconds)

    async def bring_up(self) -> None:
        """Protected, keyed, pinned; then the overlays come up."""
        self.protect()
        await self.load_both()
        await self.initiate()
        await self.pin_all()
        for side in self.sides:
            side.host.raise_overlays()

    def protect(self, *, versions: Sequence[int] = FAMILIES) -> None:
        """SPs of both sides: protect by reqid, block what has no SA."""
        for side in self.sides:
            for version in versions:
                steps = [AddSp(sp) for sp in sps(side, self.other(side), version)]
                assert side.kernel.apply(steps) == [None] * len(steps)

    def pin(self, side: Side, version: int, spi: Spi | None) -> None:
        """The outbound SP asks for one SA, or with None for any of the reqid."""
        outbound = sps(side, self.other(side), version)[0]
        pinned = replace(outbound, templates=(replace(outbound.templates[0], spi=spi),))
        assert side.kernel.apply([UpdateSp(pinned, outbound)]) == [None]

    async def pin_all(self) -> None:
        """Every outbound SP asks for the SA that is there."""
        for side in self.sides:
            for version in FAMILIES:
                _, child = await side.child(version)
                self.pin(side, version, keyed(child).spi_out)

    async def succeed(self, version: int, name: str) -> ChildSa:
        """Make before break: a second CHILD_SA beside the first, and both sides switch to it.

        The initiator may send at once: charon answers when its inbound SA is in place. The
        responder waits for the first packet on its new inbound SA, as the initiator installs its
        own inbound SA before it sends. (charon tells the responder sooner.) Returns the
        initiator's new CHILD_SA.
        """
        first, second = len(self.a.told), len(self.b.told)
        await self.a.ike.initiate(connection_name(version), name)
        (here,) = await self.a.wait_event(ChildEstablished, after=first)
        self.pin(self.a, version, keyed(here.child).spi_out)
        (there,) = await self.b.wait_event(ChildEstablished, after=second)
        inbound = SaId(self.b.address(version), keyed(there.child).spi_in)
        async with asyncio.timeout(EVENT_SECONDS):
            while not _used(self.b.kernel, inbound):  # noqa: ASYNC110 - the kernel tells no event
                await asyncio.sleep(0.005)
        self.pin(self.b, version, keyed(there.child).spi_out)
        return here.child

    async def retire(self, version: int, *, but: ChildSa) -> None:
        """Delete the CHILD_SAs of a family but one."""
        after = len(self.a.told)
        old = [
            (ike, child)
            for ike in await self.a.ike.sas(ike=connection_name(version))
            for child in ike.children
            if child.id != but.id
        ]
        for ike, child in old:
            await self.a.ike.terminate_child(ike.ref, child.id)
        await self.a.wait_event(ChildEnded, after=after, count=len(old))


def keyed(child: ChildSa) -> ChildSaKeyed:
    """The keyed part of a CHILD_SA that must have one."""
    assert child.keyed is not None, child
    return child.keyed


def _used(kernel: XfrmKernel, sa_id: SaId) -> bool:
    sa = kernel.sa(sa_id)
    assert sa is not None, sa_id
    return sa.usage.usage_packets > 0


def sps(side: Side, peer: Side, version: int) -> tuple[Sp, ...]:
    """Outbound, inbound, and the block SPs under them."""
    local, remote = side.address(version), peer.address(version)
    anywhere = any_network(version)
    made: list[Sp] = []
    for direction, src, dst in (
        (SpDirection.OUT, local, remote),
        (SpDirection.IN, remote, local),
    ):
        template = Template(src=src, dst=dst, reqid=reqid(version))
        ends = {"src": ipaddress.ip_network(src), "dst": ipaddress.ip_network(dst)}
        made += [
            Sp(SpId(selector, direction), PRIORITY_PROTECT, SpAction.ALLOW, (template,))
            for selector in selectors(Kind.VXLAN, direction, port=PORT, **ends)
        ]
    for direction in (SpDirection.OUT, SpDirection.IN):
        made += [
            Sp(SpId(selector, direction), PRIORITY_BLOCK, SpAction.BLOCK)
            for selector in selectors(Kind.VXLAN, direction, port=PORT, src=anywhere, dst=anywhere)
        ]
    return tuple(made)


def psk_of(side: Side, peer: Side, key: bytes = b"correct horse battery staple") -> SharedSecret:
    """The secret of the two."""
    return SharedSecret("tunsec-psk", SharedKind.PSK, Secret(key), (side.host.name, peer.host.name))


def der(path: Path) -> bytes:
    """The first certificate of a file."""
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def esp_only(algorithms: Algorithms, aead: Aead) -> tuple[EspProposal, ...]:
    """Proposals with one AEAD."""
    return esp_proposals(algorithms, (aead,))


def issue(
    folder: Path,
    ca: Path,
    name: str,
    *,
    addresses: Sequence[object] = (),
    days: float = 30,
    kind: KeyType = KeyType.ED25519,
    at: float | None = None,
) -> Path:
    """An identity folder for `name` under a CA."""
    now = WallTime(time.time() if at is None else at)
    ca_files.issue_to(
        folder,
        HostName(name),
        authority=ca_files.load(ca, wall_now=WallTime(time.time())),
        addresses=[ipaddress.ip_address(str(address)) for address in addresses],
        days=days,
        kind=kind,
        wall_now=now,
    )
    return folder


def make_ca(folder: Path, *, name: str = "lab", kind: KeyType = KeyType.ED25519) -> Path:
    """A CA in a new folder."""
    ca_files.init(folder, name=name, days=60, kind=kind, wall_now=WallTime(time.time()))
    return folder


@asynccontextmanager
async def pair_of(
    lab: Lab, *, settings: str = "", kind: KeyType = KeyType.ED25519
) -> AsyncIterator[Pair]:
    """Both charons up and linked, identities issued; nothing loaded, nothing protected."""
    folder = lab.folder / "ike"
    folder.mkdir()
    ca = make_ca(folder / "ca", kind=kind)
    sides = []
    for host in lab.hosts.values():
        identity = issue(folder / host.name, ca, host.name, addresses=host.addresses, kind=kind)
        sides.append(Side(host, LabCharon(host, settings=settings).start(), identity))
    try:
        for side in sides:
            side.link()
        for side in sides:
            await side.wait_event(CharonLinked)
        yield Pair(sides[0], sides[1], await sides[0].ike.algorithms())
    finally:
        for side in sides:
            side.ike.close()
            side.kernel.close()
