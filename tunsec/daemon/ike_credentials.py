"""What charon gets to speak for this host, from its identity folder and the policy."""

from collections.abc import Sequence

from tunsec.adapters.identity import LoadedIdentity
from tunsec.adapters.key_files import pem_key, public_key_id
from tunsec.daemon.charon_link import Credentials, PrivateKey, Psk
from tunsec.keying.chain import certificate_der
from tunsec.model.aead import Aead
from tunsec.model.ike import CertificateAuth, IkeAuth, PskAuth
from tunsec.model.names import HostName
from tunsec.model.secret import Secret
from tunsec.policy.intent import Intent
from tunsec.policy.values import Ppk


def ike_credentials(
    loaded: LoadedIdentity,
    intent: Intent,
    host: HostName,
    *,
    psk: Secret | None,
    aeads: Sequence[Aead],
) -> Credentials:
    """Credentials for all connections of `host`; `psk` where the policy asks for one, `aeads` in
    the order of preference."""
    rules = intent.ike
    ppk = loaded.ppk if intent.ppk is Ppk.REQUIRED else None
    if rules.auth is IkeAuth.PSK and psk is not None:
        peers = sorted(one.identity for one in intent.hosts if one.name != host)
        owners = (intent.host(host).identity, *peers)
        return Credentials(None, PskAuth(), (), Psk(psk, owners), ppk, rules, tuple(aeads))
    auth = CertificateAuth(
        certificates=loaded.identity.der_chain,
        authorities=tuple(certificate_der(root) for root in loaded.roots),
        revocation=rules.revocation,
    )
    own = loaded.identity.key
    key = PrivateKey(Secret(pem_key(own)), public_key_id(own))
    lists = tuple(crl.der for crl in loaded.crls)
    return Credentials(key, auth, lists, None, ppk, rules, tuple(aeads))
