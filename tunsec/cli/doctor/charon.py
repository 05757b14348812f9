"""The charon that keys this host's flows: what it says over VICI, and what only its files say."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tunsec.adapters.charon import ANSWER_SECONDS, parse_url
from tunsec.adapters.charon_events import check_fit
from tunsec.adapters.strongswan_files import CharonProcess, find_process, read_settings
from tunsec.adapters.vici_socket import Answer, ViciSocket, decoded
from tunsec.cli.doctor.charon_settings import ACQUIRE, DROP_IN, THREADS, judge, judge_settings
from tunsec.cli.doctor.finding import Finding, Group, Verdict, ok, problem, told, warning
from tunsec.cli.doctor.user import User, acting_as
from tunsec.model.aead import Aead
from tunsec.model.clock import Seconds
from tunsec.model.errors import PolicyError, Refused, TunsecError, Unavailable
from tunsec.model.ike import NAME_PREFIX
from tunsec.model.ike_sa import Algorithms, CharonStats, LoadedConnection
from tunsec.plan.ike_proposals import esp_proposals, ike_proposals
from tunsec.wire.strongswan_conf import Malformed
from tunsec.wire.vici.answers import decode_algorithms, decode_list_conn, decode_stats

CHARON: Final = Group.CHARON
ACQUIRE_SETTING: Final = Path("/proc/sys/net/core/xfrm_acq_expires")
SHORTEST_ACQUIRE: Final = 4
"""Seconds: an SPI must stay reserved while its exchange is under way (3.6 s)."""
START_SLACK: Final = Seconds(1.0)
"""The kernel counts the start in ticks, and charon reads its files after it."""
NEEDED_PLUGINS: Final = {
    "kernel-netlink": "nothing else puts SAs into the kernel",
    "nonce": "IKE needs nonces",
    "pubkey": "nothing else makes public keys usable",
    "revocation": "a revoked host gets in without it",
}
SOCKET_PLUGINS: Final = frozenset({"socket-default", "socket-dynamic"})
HARMFUL_PLUGINS: Final = {
    "kernel-libipsec": "takes ESP away from the kernel",
    "bypass-lan": "lets the local network pass in clear",
    "farp": "answers ARP for other hosts",
}


def check_charon(url: str, user: User) -> Iterator[Finding]:
    """Everything about it; stops where nothing more can be asked."""
    try:
        path = parse_url(url)
    except PolicyError as error:
        yield from told(CHARON, "socket", error.problems, Verdict.PROBLEM)
        return
    with ExitStack() as opened:
        try:
            with acting_as(user):
                vici = opened.enter_context(ViciSocket(path, seconds=ANSWER_SECONDS))
        except Unavailable as error:
            yield problem(CHARON, "socket", f"{error}, asked as {user.name}", _way_in(error))
            return
        try:
            yield from _asked(vici)
        except TunsecError as error:
            yield problem(CHARON, "answers", str(error), "restart charon")


def _way_in(error: Unavailable) -> str:
    if isinstance(error.__cause__, PermissionError):
        return "charon.group = tunsec in charon's configuration, and restart charon"
    return "start charon with its vici plugin, or name its socket with --charon"


def _asked(vici: ViciSocket) -> Iterator[Finding]:
    version = vici.version(seconds=ANSWER_SECONDS)
    try:
        check_fit(version)
    except Refused as error:
        yield problem(CHARON, "version", error.reason, "docs/ike.md, setting charon up")
        return
    yield ok(CHARON, "version", f"{version.daemon} {version.version}")
    answer = vici.request("get-algorithms", seconds=ANSWER_SECONDS)
    yield check_algorithms(decoded("get-algorithms", lambda: decode_algorithms(answer)))
    figures = vici.request("stats", seconds=ANSWER_SECONDS)
    stats = decoded("stats", lambda: decode_stats(figures))
    yield from check_plugins(stats)
    yield check_threads(stats)
    yield check_connections(_connections(vici))
    yield check_acquire(ACQUIRE_SETTING)
    yield from _looked_at(vici.pid, version.daemon)


def _connections(vici: ViciSocket) -> tuple[LoadedConnection, ...]:
    found: list[Answer] = []
    vici.stream("list-conns", "list-conn", seconds=ANSWER_SECONDS, see=found.append)
    return decoded("list-conns", lambda: tuple(map(decode_list_conn, found)))


def _looked_at(pid: int, daemon: str) -> Iterator[Finding]:
    try:
        process = find_process(pid)
    except Unavailable as error:
        yield warning(CHARON, "settings", str(error), "run tunsec doctor as root beside charon")
        return
    yield check_network(process)
    yield from check_files(process, daemon)


def check_algorithms(algorithms: Algorithms) -> Finding:
    """Whether tunsec finds something to propose."""
    aeads = tuple(Aead)
    try:
        ike_proposals(algorithms, aeads)
        offer = esp_proposals(algorithms, aeads)[0]
    except Refused as error:
        return problem(CHARON, "algorithms", error.reason, "docs/ike.md names the plugins")
    more = f"then {offer.additional}" if offer.additional else "no ML-KEM"
    return ok(CHARON, "algorithms", ", ".join((*offer.key_exchanges, more)))


def check_plugins(stats: CharonStats) -> list[Finding]:
    """Whether those are loaded that tunsec needs, and none that does harm."""
    loaded = set(stats.plugins)
    remedy = "charon.load as in docs/ike.md, and restart charon"
    found = [
        problem(CHARON, "plugins", f"{name} is loaded: it {harm}", remedy)
        for name, harm in HARMFUL_PLUGINS.items()
        if name in loaded
    ]
    found += [
        problem(CHARON, "plugins", f"{name} is not loaded: {why}", remedy)
        for name, why in NEEDED_PLUGINS.items()
        if name not in loaded
    ]
    if not loaded & SOCKET_PLUGINS:
        either = " nor ".join(sorted(SOCKET_PLUGINS))
        found.append(problem(CHARON, "plugins", f"neither {either} is loaded", remedy))
    return found or [ok(CHARON, "plugins", f"{len(loaded)} loaded")]


def check_threads(stats: CharonStats) -> Finding:
    """Whether there are enough for a mass start."""
    found = judge(THREADS, str(stats.workers), "running")
    return found or ok(CHARON, "threads", f"{stats.workers}, {stats.idle_workers} idle")


def check_connections(connections: tuple[LoadedConnection, ...]) -> Finding:
    """Whose they are: others beside tunsec's are left alone."""
    ours = sum(connection.name.startswith(NAME_PREFIX) for connection in connections)
    return ok(CHARON, "connections", f"{ours} of tunsec, {len(connections) - ours} of others")


def check_acquire(setting: Path) -> Finding:
    """What charon wrote for the kernel."""
    try:
        span = int(setting.read_text())
    except (OSError, ValueError) as error:
        return warning(CHARON, "acquire", f"{setting}: {error}", "a kernel with CONFIG_XFRM")
    found = judge(ACQUIRE, str(span), "in the kernel")
    if found is not None:
        return found
    if span < SHORTEST_ACQUIRE:
        text = f"xfrm_acq_expires is {span}: SPIs are given away while they are negotiated"
        return warning(CHARON, "settings", text, f"charon.{ACQUIRE.key} = 10, as in {DROP_IN}")
    return ok(CHARON, "acquire", f"{span} s")


def check_network(process: CharonProcess) -> Finding:
    """Whether it keys this network namespace's kernel."""
    if not process.same_network:
        found = "charon runs in another network namespace: its SAs are of no use here"
        return problem(CHARON, "network", found, "start it in this one, or name another --charon")
    return ok(CHARON, "network", "the same namespace")


def check_files(process: CharonProcess, daemon: str) -> Iterator[Finding]:
    """What VICI does not show: the settings in its files."""
    try:
        found = read_settings(process)
    except Unavailable as error:
        yield warning(CHARON, "files", str(error), "run tunsec doctor as root beside charon")
        return
    except Malformed as error:
        yield problem(CHARON, "files", str(error), "correct it: charon would not start again")
        return
    name = str(process.conf or "no file: charon's defaults")
    if process.started_at is not None and found.changed_at > process.started_at + START_SLACK:
        text = f"{name}, or what it includes, was changed after charon started"
        yield warning(CHARON, "files", text, "restart charon")
    else:
        yield ok(CHARON, "files", name)
    yield from judge_settings(found.settings, daemon)
