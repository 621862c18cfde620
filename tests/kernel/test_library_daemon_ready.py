"""`ready` and ``after``: when a daemon is ready, what is said when it is not, and that waiting can be cancelled."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_cgroup import Container, DaemonError, SpecError, _station, ready
from tests.as_user import OrdinaryUser
from tests.kernel.contain import DEADLINE_SECONDS
from tests.kernel.test_library_daemon import PY, SLEEP, Raised, failed, until

#: begins to listen when its stdin says so
_GATE = "import os, signal, socket, sys, time\nprint('waits', flush=True)\nos.read(0, 1)\n"
TCP = _GATE + "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nsignal.pause()"
UNIX = _GATE + "s = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\nsignal.pause()"
HTTP = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(self.path[1:]))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
#: a container of each kind of network
NETWORKS: list[Any] = [
    pytest.param({}, id="shared"),
    pytest.param({"net_ns": True}, marks=pytest.mark.requires("net_ns"), id="net_ns"),
    pytest.param({"net_ns": True, "pid_ns": True}, marks=pytest.mark.requires("net_ns", "pid_ns"), id="net_ns+pid_ns"),
]

NOT_A_FUNCTION: Any = 3


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    yield
    _station.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pytest-cgroup")]


@pytest.fixture
def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as found:
        yield found


class Gate:
    """What a program reads from before it begins."""

    def __enter__(self) -> Gate:
        self.theirs, self._ours = socket.socketpair()
        return self

    def open(self) -> None:
        self._ours.send(b"!")

    def __exit__(self, *_: object) -> None:
        self.theirs.close()
        self._ours.close()


@pytest.mark.parametrize("spec", NETWORKS)
def test_a_port(backend: str, spec: dict[str, Any], free_port: int, gate: Gate) -> None:
    with Container(backend=backend, **spec) as container:
        daemon = container.daemon(
            [PY, "-c", TCP, str(free_port)], ready=ready.port(free_port), wait=False, stdin=gate.theirs
        )
        until(lambda: daemon.tail() == "waits", "it was started")
        assert daemon.state == "starting"  # the control
        gate.open()
        daemon.wait_ready(DEADLINE_SECONDS)
        assert daemon.state == "ready"
        if not spec:
            socket.create_connection(("127.0.0.1", free_port)).close()


def test_a_port_of_somebody_else_is_no_sign(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, Container(backend=backend) as container:
        port = other.getsockname()[1]
        what = rf"daemon sleep is not ready ready\.port\({port}\) after 0\.1 s: another process listens on port {port}"
        with pytest.raises(DaemonError, match=what):
            container.daemon(SLEEP, ready=ready.port(port, timeout=0.1))
        assert not container.populated
        container.daemon(SLEEP, after=ready.port(port))  # but there it is


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_unix_socket(backend: str, spec: dict[str, Any], abstract: bool, tmp_path: Path, gate: Gate) -> None:
    path = f"{tmp_path}/a socket"
    name, bound = (f"@{path}", f"\0{path}") if abstract else (path, path)
    program = UNIX.replace("sys.argv[1]", repr(bound))
    with Container(backend=backend, **spec) as container:
        daemon = container.daemon([PY, "-c", program], ready=ready.unix(name), wait=False, stdin=gate.theirs)
        until(lambda: daemon.tail() == "waits", "it was started")
        assert daemon.state == "starting"
        gate.open()
        daemon.wait_ready(DEADLINE_SECONDS)


def test_a_unix_socket_by_a_relative_name(backend: str, tmp_path: Path) -> None:
    program = UNIX.replace(_GATE, "import signal, socket, sys\n")
    with Container(backend=backend) as container:
        container.daemon([PY, "-c", program, "own.sock"], cwd=tmp_path, ready=ready.unix(tmp_path / "own.sock"))


@pytest.mark.parametrize("spec", NETWORKS)
def test_a_url(backend: str, spec: dict[str, Any], free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    with Container(backend=backend, **spec) as container:
        daemon = container.daemon(
            [PY, "-c", HTTP, str(free_port)],
            ready=[ready.http(f"{url}/204"), ready.http(f"{url}/302"), ready.http(f"{url}/503", status=503)],
        )
        assert daemon.state == "ready"
        daemon.stop()
        what = (
            r"is not ready ready\.http\(.*/500'\) after 0\.5 s: (it answers with status 500|it was not asked yet|Conn)"
        )
        with pytest.raises(DaemonError, match=what):
            container.daemon(
                [PY, "-c", HTTP, str(free_port)], ready=ready.http(f"{url}/500", timeout=0.5), restart="temporary"
            )
    assert container.outcome is not None
    assert container.outcome.leaks == ()  # who asks from inside is none


def test_a_line_of_its_output(backend: str, gate: Gate) -> None:
    program = _GATE + "print('still not\\nready on 7', flush=True)\nsignal.pause()"
    with Container(backend=backend) as container:
        daemon = container.daemon([PY, "-c", program], ready=ready.log(r"^ready on \d$"), wait=False, stdin=gate.theirs)
        until(lambda: daemon.tail() == "waits", "it was started")
        assert daemon.state == "starting"
        gate.open()
        daemon.wait_ready(DEADLINE_SECONDS)


def test_a_line_of_the_run_before_does_not_count(backend: str, tmp_path: Path) -> None:
    once = f"mkdir {tmp_path}/once 2>/dev/null && echo up; exec sleep 1000"
    with Container(backend=backend) as container:
        daemon = container.daemon(["sh", "-c", once], ready=ready.log("up", timeout=2))
        with pytest.raises(DaemonError, match=r"is not ready ready\.log\('up'\) after 2 s: nothing that it printed"):
            daemon.restart()
        assert daemon.state == "failed"


def test_a_prompt_without_a_newline(backend: str) -> None:
    with Container(backend=backend) as container:
        assert container.daemon(["sh", "-c", "printf 'login: '; exec sleep 1000"], ready=ready.log("login: $")).running


def test_a_function(backend: str) -> None:
    asked: list[int] = []

    def third_time() -> bool:
        asked.append(0)
        if len(asked) == 1:
            raise OSError("not yet")
        return len(asked) == 3

    with Container(backend=backend) as container:
        container.daemon(SLEEP, ready=ready.callable(third_time))
        assert len(asked) == 3
        with pytest.raises(DaemonError, match=r"never\(\): ValueError: broken"):
            container.daemon(SLEEP, ready=ready.callable(never, timeout=0.05))


def never() -> bool:
    raise ValueError("broken")


# it does not become ready


@pytest.mark.parametrize("wait", [True, False])
def test_who_dies_before_fails_at_once_with_its_last_output(backend: str, wait: bool) -> None:
    """Also with a restart policy; the deadline is one that nobody waits for."""
    with Container(backend=backend) as container:
        with pytest.raises(DaemonError, match="daemon sh ended before it was ready: exit 3") as raised:
            container.daemon(
                ["sh", "-c", "echo one; echo no licence >&2; exit 3"], ready=ready.port(1, timeout=1e6), wait=wait
            ).wait_ready(DEADLINE_SECONDS)
        assert raised.value.output == "one\nno licence"
        assert str(raised.value).endswith("Its last output:\none\nno licence")
    assert container.outcome is not None  # and it is told once


def test_who_dies_unseen_is_an_error_of_the_containers_end(backend: str) -> None:
    container = Container(backend=backend).start()
    for argv in (["sh", "-c", "exit 3"], ["/no/such/program"]):
        failed(container.daemon(argv, ready=ready.port(1), wait=False))
    with pytest.raises(DaemonError, match="ended before it was ready") as raised:
        container.finish()
    assert "can't be started: [Errno 2] No such file" in raised.value.__notes__[0]


def test_a_deadline_that_passes(backend: str) -> None:
    program = ["sh", "-c", "echo thinking; exec sleep 1000"]
    with Container(backend=backend) as container:
        with pytest.raises(DaemonError, match=r"ready\.port\(1\) after 0\.2 s: nobody listens on port 1") as raised:
            container.daemon(program, ready=[ready.log("thinking"), ready.port(1, timeout=0.2)])
        assert raised.value.output == "thinking"
        assert not container.populated


@pytest.mark.parametrize("how", ["stop", "container", "destroy"])
def test_a_stop_cancels_a_pending_wait(backend: str, how: str) -> None:
    with Container(backend=backend) as container:
        daemon = container.daemon(SLEEP, ready=ready.port(1, timeout=1e6), wait=False)
        until(lambda: daemon.state == "starting", "it was started")
        waiting = Raised(daemon.wait_ready)
        if how == "stop":
            daemon.stop()
        else:
            getattr(container, how.replace("container", "stop"))()
        error = waiting.join()
        assert isinstance(error, DaemonError)
        assert "was stopped before it was ready" in str(error)
        assert daemon.state == "ended"


def test_the_end_of_the_container_cancels_who_is_starting_one(backend: str) -> None:
    with Container(backend=backend) as container:
        starting = Raised(container.daemon, SLEEP, ready=ready.port(1, timeout=1e6))
        assert container._life is not None
        until(lambda: container.populated, "it was started")
        container.stop()
        assert "was stopped before it was ready" in str(starting.join())


# after


def test_after_another_daemon(backend: str, free_port: int, gate: Gate) -> None:
    with Container(backend=backend) as container:
        db = container.daemon(
            [PY, "-c", TCP, str(free_port)], name="db", ready=ready.port(free_port), wait=False, stdin=gate.theirs
        )
        app = container.daemon(SLEEP, name="app", after=db, wait=False)
        until(lambda: db.tail() == "waits", "it was started")
        assert (app.state, app.pid) == ("waiting", None)
        gate.open()
        app.wait_ready(DEADLINE_SECONDS)
        assert db.state == "ready"


@pytest.mark.parametrize("spec", NETWORKS)
def test_after_a_port(backend: str, spec: dict[str, Any], free_port: int) -> None:
    with Container(backend=backend, **spec) as container:
        app = container.daemon(SLEEP, after=ready.port(free_port), wait=False)
        until(lambda: app.state == "waiting", "it waits")
        assert app.pid is None
        server = TCP.replace(_GATE, "import signal, socket, sys\n")
        container.popen([PY, "-c", server, str(free_port)])
        app.wait_ready(DEADLINE_SECONDS)


def test_after_what_never_comes(backend: str) -> None:
    with Container(backend=backend) as container:
        with pytest.raises(DaemonError, match=r"was not started: it waits for ready\.callable\(never\) after 0\.05 s"):
            container.daemon(SLEEP, after=ready.callable(never, timeout=0.05))
        app = container.daemon(SLEEP, after=ready.callable(never, timeout=1e6), wait=False)
        until(lambda: app.state == "waiting", "it waits")
        app.stop()
        assert (app.state, app.output_bytes) == ("ended", 0)
        broken = container.daemon(["sh", "-c", "exit 3"], ready=ready.port(1), wait=False)
        with pytest.raises(DaemonError, match="daemon sh ended before it was ready"):
            container.daemon(SLEEP, after=[broken])


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: ready.port(0), "port=0 (ready.port): is no TCP port"),
        (lambda: ready.port(1, timeout=0), "timeout=0 (port(1)): no time to wait"),
        (lambda: ready.http("127.0.0.1:80"), "is no URL of HTTP"),
        (lambda: ready.callable(NOT_A_FUNCTION), "can't be called"),
    ],
)
def test_a_condition_that_can_not_be(make: Any, what: str) -> None:
    with pytest.raises(SpecError) as raised:
        make()
    assert what in str(raised.value)


@pytest.mark.parametrize("backend", ["auto", "process"])
@pytest.mark.parametrize("net_ns", [False, pytest.param(True, marks=pytest.mark.requires("net_ns"))])
def test_as_an_ordinary_user(
    unprivileged: OrdinaryUser, backend: str, net_ns: bool, free_port: int, request: pytest.FixtureRequest
) -> None:
    if net_ns:
        request.getfixturevalue("user_namespaces")
    program = f"""
from pytest_cgroup import Container, ready
port = ready.port({free_port})
url = ready.http("http://127.0.0.1:{free_port}/200")
with Container(backend={backend!r}, net_ns={net_ns}) as container:
    daemon = container.daemon([{unprivileged.python!r}, "-c", {HTTP!r}, "{free_port}"], ready=[port, url])
    print(daemon.state)
"""
    done = unprivileged.run([unprivileged.python, "-c", program])
    assert done.stdout == "ready\n", done.stdout + done.stderr
