"""What a daemon finds of an earlier life: each SA goes to the keying that made it."""

import ipaddress
from dataclasses import replace

import pytest

from tunsec.daemon.reconcile import Adoption, adopt
from tunsec.daemon.scope import Scope
from tunsec.model.aead import Aead
from tunsec.model.flow import Child, Keying
from tunsec.model.names import HostName, Spi
from tunsec.model.sa import Sa
from tunsec.model.selector import Selector
from tunsec.plan.image import Image
from tunsec.plan.sas import inbound_sa, outbound_sa
from tunsec.policy.desired import outbound_sps
from tunsec.policy.intent import parse_policy

POLICY = """\
version: 1
hosts:
  db1: {{address: [192.0.2.11]}}
  db2: {{address: [192.0.2.12]}}
flows:
  overlay: {{kind: vxlan, between: [db1, db2], keying: {keying}}}
"""
IN, OUT, UNPINNED = Spi(0x101), Spi(0x102), Spi(0x103)


def child_of(keying: Keying) -> Child:
    """The one child of a policy with this keying."""
    intent = parse_policy(POLICY.format(keying=keying), "test")
    [child] = Scope(HostName("db1"), intent, "test").children
    return child


def found(child: Child, *, charons: bool) -> Adoption:
    """Adopted from a kernel with one inbound SA, and two outbound ones of which one is pinned."""
    sas = [
        inbound_sa(child, IN, aead=Aead.AES_256_GCM, key=None),
        outbound_sa(child, OUT, aead=Aead.AES_256_GCM, key=None),
        outbound_sa(child, UNPINNED, aead=Aead.AES_256_GCM, key=None),
    ]
    if charons:
        sas = [as_charon_makes_it(sa) for sa in sas]
    have = Image({sa.id: sa for sa in sas}, {sp.id: sp for sp in outbound_sps(child, OUT)})
    return adopt({child.id: child}, have)


def as_charon_makes_it(sa: Sa) -> Sa:
    """With its addresses in the selector."""
    selector = Selector(ipaddress.ip_network(sa.src), ipaddress.ip_network(sa.id.dst))
    return replace(sa, selector=selector)


@pytest.mark.parametrize("keying", Keying)
def test_what_directory_keying_made_goes_to_the_pair(keying: Keying) -> None:
    child = child_of(keying)
    adoption = found(child, charons=False)
    [pair] = adoption.by_peer.values()
    assert [sa.spi for sa in pair.inbound] == [IN]
    assert [sa.spi for sa in pair.outbound] == [OUT]
    assert [sa_id.spi for sa_id in adoption.useless] == [UNPINNED]
    assert adoption.moving == ({child.id} if keying is Keying.IKE else set())
    assert not any(one.inbound or one.outbound for one in adoption.ike)


@pytest.mark.parametrize("keying", Keying)
def test_what_charon_made_goes_to_the_connection(keying: Keying) -> None:
    child = child_of(keying)
    adoption = found(child, charons=True)
    [one] = adoption.ike
    assert [sa.spi for sa in one.inbound] == [IN]
    assert one.outbound is not None
    assert one.outbound.spi == OUT
    assert adoption.useless == (), "one that is not pinned is charon's all the same"
    assert adoption.moving == ({child.id} if keying is Keying.DIRECTORY else set())
    assert not any(pair.inbound or pair.outbound for pair in adoption.by_peer.values())


def test_what_charon_has_reserved_is_left_to_it() -> None:
    child = child_of(Keying.IKE)
    larval = replace(inbound_sa(child, IN, aead=Aead.AES_256_GCM, key=None), larval=True)
    adoption = adopt({child.id: child}, Image({larval.id: larval}, {}))
    assert adoption.useless == ()
