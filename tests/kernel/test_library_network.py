"""A container's ports, published by a forwarder that lives as long as it, and networks that containers share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

import pytest_cgroup
from pytest_cgroup import Container, ContainerError, Network, NotOffered, SpecError, _forwarder, _station
from pytest_cgroup._guard import SWITCH
from pytest_cgroup._popen import Launcher
from tests.conftest import not_offered
from tests.kernel.contain import DEADLINE_SECONDS, MB, PROGRAMS

pytestmark = [pytest.mark.requires("net_ns"), pytest.mark.usefixtures("given_back")]
LARGE = 24 * MB


@contextlib.contextmanager
def serve(
    container: Container, *, port: int = 8080, address: str = "127.0.0.1", name: str = "a"
) -> Iterator[IO[bytes]]:
    """A server inside that listens, and its stdout."""
    argv = [sys.executable, PROGRAMS / "tcp_server.py", address, str(port), name]
    with container.popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield server.stdout
        finally:
            server.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS)


def ask(port: int, request: bytes) -> bytes:
    """All that the server says to *request*, whose end it is told."""
    with connect(port) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return everything(client)


def everything(client: socket.socket) -> bytes:
    found = bytearray()
    while piece := client.recv(65536):
        found += piece
    return bytes(found)


def forwarder_of(container: Container) -> psutil.Process:
    """The process that serves the ports of *container*."""
    life: Any = container._life
    return psutil.Process(life._published.pid)


def is_gone(process: psutil.Process) -> bool:
    try:
        psutil.wait_procs([process], timeout=DEADLINE_SECONDS)
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ports


def test_many_containers_bind_the_same_port(backend: str) -> None:
    with contextlib.ExitStack() as stack:
        containers = [stack.enter_context(Container(backend=backend, ports={8080: 0})) for _ in range(8)]
        for number, container in enumerate(containers):
            stack.enter_context(serve(container, name=f"number {number}"))
        assert len({container.ports[8080] for container in containers}) == 8
        assert [ask(container.ports[8080], b"name\n") for container in containers] == [
            b"number %d" % n for n in range(8)
        ]


def test_a_large_answer_to_a_large_question(backend: str) -> None:
    data = os.urandom(MB) * (LARGE // MB)
    with Container(backend=backend, ports={8080: 0}) as container, serve(container):
        with connect(container.ports[8080]) as client:

            def send() -> None:
                client.sendall(b"echo\n" + data)
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            answer = everything(client)
            sender.join()
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()


def test_the_client_ends_its_way_first(backend: str) -> None:
    data = os.urandom(MB) * 4
    with Container(backend=backend, ports={8080: 0}) as container, serve(container):
        assert ask(container.ports[8080], b"hash\n" + data).decode() == hashlib.sha256(data).hexdigest()


def test_the_server_ends_its_way_first(backend: str) -> None:
    with Container(backend=backend, ports={8080: 0}) as container, serve(container) as output:
        with connect(container.ports[8080]) as client:
            client.sendall(b"flood %d\n" % (4 * MB))
            assert len(everything(client)) == 4 * MB
            client.sendall(b"y" * 4 * MB)
        assert output.readline() == b"%d\n" % (4 * MB)


def test_who_does_not_read_is_waited_for() -> None:
    with Container(ports={8080: 0}) as container:
        listen = "import socket; s = socket.create_server(('127.0.0.1', 8080)); print(flush=True); c, _ = s.accept()"
        read = "; input(); n = 0\nwhile p := c.recv(1 << 20): n += len(p)\nprint(n)"
        server = container.popen(
            [sys.executable, "-c", listen + read], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        server.stdout.readline()
        with connect(container.ports[8080]) as client:

            def send() -> None:
                client.sendall(b"z" * LARGE * 2)
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            out, _ = server.communicate("go\n", timeout=DEADLINE_SECONDS)
            sender.join()
        assert int(out) == LARGE * 2


def test_what_is_on_the_way_is_bounded() -> None:
    """Who sends faster than the other reads is held up, and costs no memory."""
    client, outer = socket.socketpair()
    inner, server = socket.socketpair()
    with client, outer, inner, server:
        for end in (client, outer, inner):
            end.setblocking(False)
        way, sent, moved = _forwarder._Way(outer, inner), 0, True
        while moved and sent < LARGE:
            before = sent, len(way.data)
            with contextlib.suppress(BlockingIOError):
                sent += client.send(b"z" * MB)
            way.take()
            way.give()
            moved = (sent, len(way.data)) != before
        assert not moved
        assert 0 < len(way.data) <= _forwarder._WINDOW + _forwarder._PIECE


def test_many_connections_at_once(backend: str) -> None:
    with Container(backend=backend, ports={8080: 0}) as container, serve(container):
        clients = [connect(container.ports[8080]) for _ in range(100)]
        for number, client in enumerate(clients):
            client.sendall(b"echo\n%d" % number)
            client.shutdown(socket.SHUT_WR)
        assert [everything(client) for client in clients] == [b"%d" % number for number in range(100)]
        for client in clients:
            client.close()


def test_nobody_listens_inside(backend: str) -> None:
    with Container(backend=backend, ports={8080: 0}) as container:
        with pytest.raises(ConnectionResetError), connect(container.ports[8080]) as client:
            client.recv(1)
        with serve(container):
            assert ask(container.ports[8080], b"name\n") == b"a", "the forwarder goes on"


@pytest.mark.skipif(not os.path.exists("/proc/sys/net/ipv6"), reason="this kernel has no IPv6")
def test_a_server_of_ipv6_alone() -> None:
    with Container(ports={8080: 0}) as container, serve(container, address="::1"):
        assert ask(container.ports[8080], b"name\n") == b"a"


def test_a_killed_server_resets_its_connections(backend: str) -> None:
    with (
        Container(backend=backend, ports={8080: 0}) as container,
        serve(container),
        connect(container.ports[8080]) as client,
    ):
        client.sendall(b"echo\nhello")
        assert client.recv(5) == b"hello"
        container.kill()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_several_ports_and_one_that_is_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    with Container(ports={8080: 0, 8081: free}) as container, serve(container), serve(container, port=8081, name="b"):
        assert container.ports.keys() == {8080, 8081}
        assert container.ports[8081] == free
        assert [ask(container.ports[port], b"name\n") for port in (8080, 8081)] == [b"a", b"b"]


def test_the_forwarder_is_not_in_the_container(backend: str) -> None:
    limits: dict[str, Any] = {"pids": 1} if backend == "cgroup" and os.geteuid() == 0 else {}
    with Container(backend=backend, ports={8080: 0}, **limits) as container:
        assert not container.populated
        assert container.wait_empty(0)
        pid = forwarder_of(container).pid
        assert container.run(["true"]).returncode == 0
        with container.popen(["sleep", "1000"]) as process:
            assert [one.pid for one in container.processes()] == [process.pid] != [pid]
            container.kill()
        assert forwarder_of(container).is_running(), "kill is for what is inside"
        outcome = container.destroy()
    assert (outcome.leaks, outcome.notes) == ((), ())


@pytest.mark.parametrize("end", ["destroy", "stop", "with", "error"])
def test_the_forwarder_ends_with_the_container(backend: str, end: str) -> None:
    container = Container(backend=backend, ports={8080: 0})
    with contextlib.suppress(ZeroDivisionError), container, serve(container):
        port, forwarder = container.ports[8080], forwarder_of(container)
        assert ask(port, b"name\n") == b"a"
        assert forwarder.is_running()
        if end in ("destroy", "stop"):
            getattr(container, end)()
            assert is_gone(forwarder)
        elif end == "error":
            raise ZeroDivisionError
    assert is_gone(forwarder)
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_a_forwarder_that_was_killed_is_told_of() -> None:
    with Container(ports={8080: 0}) as container:
        forwarder = forwarder_of(container)
        forwarder.kill()
        os.waitid(os.P_PID, forwarder.pid, os.WEXITED | os.WNOWAIT)
        assert container.run(["true"]).returncode == 0
        outcome = container.destroy()
    assert [f"pid {forwarder.pid}" in note for note in outcome.notes] == [True]


_PARENT = """
import os, subprocess, sys, pytest_cgroup
container = pytest_cgroup.Container(backend=sys.argv[1], ports={8080: 0}).start()
server = container.popen([sys.executable, sys.argv[2], "127.0.0.1", "8080", "a"], stdout=subprocess.PIPE)
assert server.stdout.readline()
published = container._life._published
holder = subprocess.Popen(["sleep", "1000"], pass_fds=[published._socket.fileno()], stdout=subprocess.DEVNULL,
                          start_new_session=True)
print(published.pid, holder.pid, container.ports[8080], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("guard", [True, False])
def test_nothing_is_left_when_the_parent_is_killed(backend: str, guard: bool) -> None:
    """Somebody holds what would tell the forwarder: then it is the guard that ends it, and without one it lives."""
    environment = {**os.environ, SWITCH: "" if guard else "1"}
    argv = [sys.executable, "-c", _PARENT, backend, str(PROGRAMS / "tcp_server.py")]
    parent = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent:
        pid, holder_pid, port = map(int, parent.stdout.readline().split())
        forwarder, holder = psutil.Process(pid), psutil.Process(holder_pid)
        try:
            assert ask(port, b"name\n") == b"a"
            parent.kill()
            parent.wait()
            if guard:
                assert is_gone(forwarder)
            else:
                assert forwarder.is_running()
                assert forwarder.status() != psutil.STATUS_ZOMBIE
        finally:
            parent.kill()
            holder.kill()
            assert is_gone(forwarder)
    if not guard:
        subprocess.run([sys.executable, "-c", _CLEAN, str(parent.pid)], check=True, timeout=DEADLINE_SECONDS)


#: removes what the run without a guard left, and nothing of anybody else's
_CLEAN = """
import os, sys, time
from pytest_cgroup._orphans import Cleaned
from pytest_cgroup._recover import _walk, Cgroup, end_session
from pytest_cgroup._kernel_files import read_file
from pytest_cgroup._kernel_text import cgroup_mounts
for mount in sorted(cgroup_mounts(read_file("/proc/self/mountinfo")), key=lambda mount: -mount.version):
    for path in _walk(mount.mount_point, Cleaned()):
        if os.path.basename(path).startswith(f"pytest-cgroup-{sys.argv[1]}-"):
            tree = Cgroup(path) if mount.version == 2 else Cgroup(None, dict.fromkeys(mount.controllers, path))
            end_session([tree], (), Cleaned())
"""


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        container = Container(ports={8080: port})
        with pytest.raises(ContainerError) as raised:
            container.start()
    why = os.strerror(errno.EADDRINUSE)
    assert f"port 8080 can't be published (bind {port} 127.0.0.1:{port}): {why}" in str(raised.value)
    assert "0 takes any port that is free" in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"ports": [8080]}, "is no mapping"),
        ({"ports": {0: 0}}, "is no pair of TCP ports"),
        ({"ports": {8080: 65536}}, "is no pair of TCP ports"),
        ({"ports": {8080: True}}, "is no pair of TCP ports"),
        ({"ports": {"8080": 0}}, "is no pair of TCP ports"),
        ({"ports": {8080: 0}, "net_ns": False}, "needs net_ns"),
        ({"network": "host"}, "is no network"),
        ({"network": Network(), "net_ns": True}, "is beside network"),
    ],
)
def test_a_bad_request(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError) as raised:
        Container(**asked)
    assert what in str(raised.value)


@pytest.mark.requires("pid_ns", "mount_ns")
@pytest.mark.parametrize("more", [{"pid_ns": True}, {"user_ns": True}, {"pid_ns": True, "user_ns": True}])
def test_ports_of_a_container_with_other_namespaces(backend: str, more: dict[str, Any]) -> None:
    with Container(backend=backend, ports={8080: 0}, **more) as container, serve(container):
        assert ask(container.ports[8080], b"name\n") == b"a"
        if "pid_ns" in more:
            shown = container.run(["ls", "/proc"], capture_output=True, text=True).stdout.split()
            assert str(forwarder_of(container).pid) not in shown
            assert len([name for name in shown if name.isdigit()]) == 3, "init, the server, ls"


# networks


def network_of(container: Container) -> str:
    done = container.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True)
    assert done.returncode == 0
    return str(done.stdout)


@pytest.fixture(params=[True, False], ids=["veth", "shared"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """One in which each has an address, and one in which all have the same."""
    try:
        network = Network(veth=request.param).start()
    except NotOffered as why:
        not_offered("veth", str(why))
    with network:
        yield network


_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 8080), timeout=30) as client:
    client.sendall(b"name\\n")
    print(client.recv(100).decode())
"""


@pytest.mark.requires("pid_ns", "mount_ns")
@pytest.mark.parametrize("more", [{}, {"pid_ns": True}, {"user_ns": True}], ids=["plain", "pid_ns", "user_ns"])
def test_two_containers_on_one_network(backend: str, network: Network, more: dict[str, Any]) -> None:
    with (
        Container(backend=backend, network=network, **more) as one,
        Container(backend=backend, network=network, **more) as two,
        Container(backend=backend, net_ns=True) as alone,
        serve(one, address=str(one.address), name="in one"),
    ):
        client = [sys.executable, "-c", _CLIENT, str(one.address)]
        assert two.run(client, capture_output=True, text=True, check=True).stdout == "in one\n"
        assert (network_of(one) == network_of(two)) == (one.address == two.address)
        assert len({network_of(alone), os.readlink("/proc/self/ns/net") + "\n", network_of(one)}) == 3
        refused = alone.run(client, capture_output=True, text=True).stderr
        assert "ConnectionRefusedError" in refused or "Network is unreachable" in refused
        assert alone.address is None
        if os.geteuid() == 0 or "pid_ns" not in more:
            inside = two.call(lambda: os.readlink("/proc/self/ns/net"))
            assert inside + "\n" == network_of(two)


def test_each_has_its_port_where_each_has_an_address(backend: str, network: Network) -> None:
    """The negative control is the network in which all have the same."""
    with contextlib.ExitStack() as stack:
        containers = [stack.enter_context(Container(backend=backend, network=network)) for _ in range(3)]
        addresses = [str(container.address) for container in containers]
        stack.enter_context(serve(containers[0], address=addresses[0], name=addresses[0]))
        if len({*addresses}) == 1:
            with pytest.raises(AssertionError), serve(containers[1], address=addresses[0]):
                pass
            return
        for container, address in zip(containers[1:], addresses[1:], strict=True):
            stack.enter_context(serve(container, address=address, name=address))
        for container in containers:
            client = [[sys.executable, "-c", _CLIENT, address] for address in addresses]
            told = [container.run(argv, capture_output=True, text=True, check=True).stdout for argv in client]
            assert told == [f"{address}\n" for address in addresses]


def test_a_daemon_of_a_network_is_ready(backend: str, network: Network) -> None:
    with Container(backend=backend, network=network) as container:
        argv = [sys.executable, PROGRAMS / "tcp_server.py", str(container.address), "8080", "a"]
        container.daemon(argv, ready=pytest_cgroup.ready.port(8080))


def test_a_device_goes_with_its_container(backend: str, network: Network) -> None:
    """The other end of each pair is at the bridge, where a new container sees none of it."""
    with Container(backend=backend, network=network) as one, Container(backend=backend, network=network) as two:
        assert devices(two) == ({"lo"} if one.address == two.address else {"lo", "eth0"})
        pid = network.pid
        before = devices_of(pid)
        one.destroy()
        deadline = time.monotonic() + DEADLINE_SECONDS
        gone = before - {"veth1"}
        while devices_of(pid) != gone and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel takes a network namespace down in its own time
        assert devices_of(pid) == gone


def devices(container: Container) -> set[str]:
    text = container.run(["cat", "/proc/self/net/dev"], capture_output=True, text=True, check=True).stdout
    return _device_names(text)


def devices_of(pid: int) -> set[str]:
    return _device_names(Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii"))


def _device_names(text: str) -> set[str]:
    return {line.partition(":")[0].strip() for line in text.splitlines()[2:]}


def test_a_kernel_without_such_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for them is refused, with the reason; who leaves it open gets one address for all."""
    really = Launcher.ask

    def ask(self: Launcher, message: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        return {"refused": "no bridge to be had"} if "bridge" in message else really(self, message, fds)

    monkeypatch.setattr(Launcher, "ask", ask)
    with pytest.raises(NotOffered, match="can't honour veth: no bridge to be had") as raised:
        Network(veth=True).start()
    assert raised.value.missing == ("veth",)
    with Network() as network, Container(network=network) as one, Container(network=network) as two:
        assert one.address == two.address == "127.0.0.1"
        assert network_of(one) == network_of(two)


def test_one_of_a_network_is_published(backend: str, network: Network) -> None:
    with (
        Container(backend=backend, network=network, ports={8080: 0}) as one,
        Container(backend=backend, network=network, ports={8080: 0}) as two,
        serve(one, name="one"),
        contextlib.nullcontext() if one.address == two.address else serve(two, name="two"),
    ):
        assert one.ports[8080] != two.ports[8080]
        assert ask(one.ports[8080], b"name\n") == b"one"
        assert ask(two.ports[8080], b"name\n") == (b"one" if one.address == two.address else b"two")


def test_a_network_that_ended_takes_in_nobody(backend: str) -> None:
    with Network(name="short") as network, Container(backend=backend, network=network) as container:
        network.close()
        network.close()
        assert container.run(["true"]).returncode == 0, "who is in it stays"
        with pytest.raises(ContainerError, match="network short is not live"):
            Container(backend=backend, network=network).start()
    with pytest.raises(ContainerError, match="network new is not live"):
        Container(backend=backend, network=Network(name="new")).start()


def test_a_network_ends_whole() -> None:
    network = Network().start()
    holder = psutil.Process(network.pid)
    with pytest.raises(ContainerError, match="was started already"):
        network.start()
    assert holder.is_running()
    network.close()
    assert is_gone(holder)
    with Network() as second:
        holder = psutil.Process(second.pid)
        _station.close()
        assert is_gone(holder), "what was forgotten ends with this process"


def test_it_is_another_processs() -> None:
    made_elsewhere = pytest.raises(ContainerError, match="was made by another process")
    with Network() as network, Container() as container, made_elsewhere:
        container.call(lambda: network.pid)


def test_it_is_a_public_name() -> None:
    assert pytest_cgroup.Network is Network
    assert "not live" in repr(Network(name="x"))
