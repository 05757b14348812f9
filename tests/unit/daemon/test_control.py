"""The control socket: what is answered, who may ask, and what hostile clients cannot do."""

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.daemon.control_fake import (
    EXPLANATION,
    OVERLAY,
    FakeDaemon,
    Served,
    nobody,
    served,
)
from tunsec.cli.client import Client, Failed
from tunsec.cli.exits import Exit
from tunsec.daemon import control, http
from tunsec.daemon.control import Access, ControlServer
from tunsec.model.errors import Bug, Refused, Unavailable
from tunsec.wire.control import (
    PolicyBody,
    ReleaseReport,
    ServiceStatus,
    Status,
    WaitReport,
    encode,
)
from tunsec.wire.control_explain import EspBody, ExplainBody, Verdict

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "control.sock") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Client:
    return Client(server.path)


def raw(path: Path, request: bytes, *, finish: bool = True) -> bytes:
    """What comes back for the bytes of a request."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
            if finish:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


def everybody_protected(status: Status) -> Status:
    return replace(status, flows=(OVERLAY,))


def test_every_endpoint_answers(server: Served, client: Client) -> None:
    assert client.status() == server.daemon.current
    assert client.explain(ExplainBody(esp=EspBody("c002"))) == EXPLANATION
    assert client.explain(ExplainBody(flow="backbone")).verdict == Verdict.BLOCKED
    assert client.plan(None).steps == ()
    assert client.plan(PolicyBody("good", "p.yaml")).flows_added == ("backbone",)
    assert client.apply(PolicyBody("good", "p.yaml")).changed
    assert not client.apply(PolicyBody("good", "p.yaml")).changed
    assert client.release("tenant-overlay") == ReleaseReport(("tenant-overlay",))
    assert client.wait(None, 0).waiting_for == ("backbone db3: db3 has published no offer",)


def test_metrics_are_prometheus_text(server: Served, client: Client) -> None:
    service = ServiceStatus(
        "rds-vip", ("192.0.2.100",), ("db1", "db2"), "db2", 7, "FENCED", here=True
    )
    server.daemon.current = replace(server.daemon.current, services=(service,))
    text = client.metrics()
    labels = (
        '{flow="tenant-overlay",local="192.0.2.11",peer="db2",remote="192.0.2.12",tenant="red"}'
    )
    assert f"tunsec_flow_protected{labels} 1.0" in text
    assert f"tunsec_flow_received_bytes_total{labels} 3.145728e+06" in text
    assert (
        'tunsec_guard_dropped_packets_total{flow="tenant-overlay",why="local_injection"} 3.0'
        in text
    )
    assert (
        'tunsec_guard_dropped_packets_total{flow="tenant-overlay",why="cross_tenant"} 4.0' in text
    )
    assert 'tunsec_drift_repaired_total{what="sp"} 2.0' in text
    assert 'tunsec_records_refused_total{reason="stale"} 1.0' in text
    assert 'tunsec_trouble{part="kernel"} 1.0' in text
    assert 'tunsec_trouble{part="guard"} 0.0' in text
    assert 'tunsec_service_token{service="rds-vip"} 7.0' in text
    assert 'tunsec_service_holder{holder="db2",service="rds-vip"} 1.0' in text
    assert 'tunsec_service_here{service="rds-vip"} 1.0' in text


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (lambda client: client.apply(PolicyBody("bad", "p")), Exit.NO, "not taken"),
        (lambda client: client.reload(), Exit.AWAY, "file system is away"),
        (lambda client: client.release("backbone"), Exit.REFUSED, "Operation not permitted"),
        (lambda client: client.release("nothing"), Exit.USAGE, "backbone, tenant-overlay"),
        (lambda client: client.explain(ExplainBody("nothing")), Exit.USAGE, "no flow 'nothing'"),
        (lambda client: client.wait("nothing", 0), Exit.USAGE, "no flow 'nothing'"),
    ],
)
def test_errors_keep_their_kind_over_the_wire(
    client: Client, call: object, status: Exit, said: str
) -> None:
    assert callable(call)
    with pytest.raises(Failed, match=said) as caught:
        call(client)
    assert caught.value.status is status


def test_all_problems_of_a_policy_arrive(server: Served, client: Client) -> None:
    with pytest.raises(Failed) as caught:
        client.apply(PolicyBody("bad", "p"))
    assert caught.value.body is not None
    assert [problem.remedy for problem in caught.value.body.problems] == ["write a good one"] * 2
    assert server.daemon.applied == []


def test_waiting_ends_when_the_flow_is_protected(server: Served, client: Client) -> None:
    reports: list[WaitReport] = []
    waiter = threading.Thread(target=lambda: reports.append(client.wait(None, 20)))
    waiter.start()
    while server.listeners() == 0:
        select.select([], [], [], 0.01)
    server.show(replace(server.daemon.current, uptime=1.0))  # a change, not the one waited for
    server.show(everybody_protected(server.daemon.current))
    waiter.join(10)
    assert reports == [WaitReport(protected=True)]
    assert client.wait("tenant-overlay", 20).protected


def test_waiting_is_given_up_in_time(client: Client) -> None:
    assert client.wait(None, 0.05) == WaitReport(
        protected=False, waiting_for=("backbone db3: db3 has published no offer",)
    )


def test_a_look_at_the_status_may_wait_for_a_change(server: Served, client: Client) -> None:
    found: list[Status] = []
    watcher = threading.Thread(target=lambda: found.append(client.status(wait=20)))
    watcher.start()
    while server.listeners() == 0:
        select.select([], [], [], 0.01)
    server.show(everybody_protected(server.daemon.current))
    watcher.join(10)
    assert found[0].unprotected == ()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"POST /apply HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /apply HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", 400),
        (b"GET /status?wait=soon HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /status?wait=nan HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /status?wait=1&wait=2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /status?%ff%fe=1&;;& HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[::1/status HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /status HTTP/1.1\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (
            b"POST /apply HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n"
            + b"x" * 5_000_000,
            413,
        ),
    ],
)
def test_nonsense_gets_an_answer_and_does_no_harm(
    server: Served, client: Client, request_bytes: bytes, status: int
) -> None:
    answer = raw(server.path, request_bytes, finish=False)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["kind"] == "request"
    assert client.status().host == "db1"


def test_a_body_may_come_in_chunks_and_after_a_100(server: Served) -> None:
    body = encode(PolicyBody("good", "p.yaml"))
    head = b"POST /apply HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(server.path))
        sock.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        for octet in body:
            sock.sendall(b"1\r\n" + bytes([octet]) + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_silent_clients_are_cut_off_and_keep_nobody_out(
    server: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT", 0.3)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(100)]
        for sock in silent[:64]:
            sock.connect(str(server.path))
            sock.sendall(b"GET /status HTTP/1.1\r\n")
        for sock in silent[64:]:
            sock.setblocking(False)
            sock.connect_ex(str(server.path))
        assert client.status().host == "db1"
        silent[0].settimeout(5)
        assert silent[0].recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_listen_is_cut_off(
    server: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RESPONSE_TIMEOUT", 0.3)
    server.show(replace(server.daemon.current, warnings=("x" * 1000,) * 3000))
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(server.path))
        deaf.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(client.status().warnings) == 3000
        deaf.settimeout(5)
        received = 0
        while chunk := deaf.recv(1 << 16):  # ends only when the server has hung up
            received += len(chunk)
            select.select([], [], [], 0.02)
        assert received < 3_000_000


def test_clients_that_hang_up_at_any_point_do_no_harm(server: Served, client: Client) -> None:
    request = b"POST /apply HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{"
    for length in range(0, len(request), 5):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(server.path))
            sock.sendall(request[:length])
    assert client.status().host == "db1"


def test_long_polls_leave_room_for_others(server: Served, client: Client) -> None:
    poll = b"GET /status?wait=20 HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(control.MAX_WAITING):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(server.path))
            sock.sendall(poll)
        while server.listeners() < control.MAX_WAITING:
            select.select([], [], [], 0.01)
        assert client.status().host == "db1"
        with pytest.raises(Failed, match="too many clients wait") as caught:
            client.status(wait=20)
        assert caught.value.status is Exit.AWAY


def as_nobody(path: Path, request: str, *, groups: tuple[int, ...] = ()) -> tuple[int, str]:
    """Status and body that another user gets; status 0 when it cannot connect."""
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: print('0'); sys.exit()\n"
        "s.sendall(sys.argv[2].encode().decode('unicode_escape').encode())\n"
        "answer = b''\n"
        "while chunk := s.recv(65536): answer += chunk\n"
        "head, _, body = answer.decode().partition('\\r\\n\\r\\n')\n"
        "print(head.split()[1], body)\n"
    )
    done = subprocess.run(
        (*nobody(groups), sys.executable, "-c", program, str(path), request),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    status, _, body = done.stdout.partition(" ")
    return int(status), body


GET_STATUS = r"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
POST_RELEASE = r"POST /release HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    return tmp_path / "control.sock"


@needs_root
def test_others_cannot_even_connect(open_path: Path) -> None:
    with served(open_path) as server:
        assert oct(open_path.stat().st_mode) == "0o140660"
        assert as_nobody(open_path, GET_STATUS) == (0, "")
        assert server.daemon.current.flows


@needs_root
def test_members_of_the_group_may_do_everything(open_path: Path) -> None:
    with served(open_path, Access(gid=4242)) as server:
        assert open_path.stat().st_gid == 4242
        assert as_nobody(open_path, GET_STATUS, groups=(4242,))[0] == 200
        assert as_nobody(open_path, POST_RELEASE, groups=(4242,))[0] == 200
        assert server.daemon.current.flows == ()


@needs_root
def test_others_may_read_if_allowed_and_never_change(open_path: Path) -> None:
    with served(open_path, Access(gid=4242, anyone_reads=True)) as server:
        assert as_nobody(open_path, GET_STATUS)[0] == 200
        status, body = as_nobody(open_path, POST_RELEASE)
        assert status == 403
        assert json.loads(body)["kind"] == "denied"
        assert as_nobody(open_path, GET_STATUS.replace("status", "plan"))[0] == 403
        assert server.daemon.current.flows


def test_a_bug_is_told_and_ends_the_server(server: Served, client: Client) -> None:
    server.daemon.bug = ZeroDivisionError("division by zero")
    with pytest.raises(Failed, match="division by zero") as caught:
        client.status()
    assert caught.value.status is Exit.BROKEN
    ended = server.wait_until_ended()
    assert isinstance(ended, BaseExceptionGroup)
    assert ended.subgroup(Bug) is not None


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.unit.daemon.control_fake import FakeDaemon\n"
        "from tunsec.daemon.control import Access, ControlServer\n"
        "server = ControlServer(Path(sys.argv[1]), FakeDaemon(), access=Access(None))\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        (sys.executable, "-c", program, str(path)), stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        with pytest.raises(Refused, match="another tunsecd runs here"), served(path):
            pass
        killed.send_signal(signal.SIGKILL)
    assert path.is_socket()
    with served(path) as server:
        assert Client(server.path).status().host == "db1"
    assert not path.exists()


def test_a_socket_that_somebody_else_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Refused, match="somebody listens there"), served(path):
            pass
        assert path.is_socket()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(Refused, match="is no socket"), served(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"), served(tmp_path / "nowhere" / "c.sock"):
        pass
    with pytest.raises(Unavailable, match="too long"), served(tmp_path / ("x" * 120)):
        pass


@pytest.mark.parametrize("steps", range(8))
def test_a_client_that_comes_while_the_server_ends_is_not_left_open(
    tmp_path: Path, steps: int
) -> None:
    """Whatever had been done for it by then."""
    path = tmp_path / "control.sock"

    async def end_soon(server: ControlServer, client: socket.socket) -> None:
        task = asyncio.create_task(server.run())
        await asyncio.sleep(0.01)
        client.connect(str(path))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with (
        ControlServer(path, FakeDaemon(), access=Access(gid=None)) as server,
        socket.socket(socket.AF_UNIX) as client,
    ):
        asyncio.run(end_soon(server, client))
    gc.collect()  # what is still open is told of, and fails the test
