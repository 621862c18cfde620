"""Ports and networks of containers that fixtures make, also in contained tests and under xdist."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run
from tests.kernel.contain import PROGRAMS

pytestmark = pytest.mark.requires("net_ns")
_SOURCE = f"""
import pytest_cgroup
def serve(container, name, address="127.0.0.1"):
    argv = [sys.executable, {str(PROGRAMS / "tcp_server.py")!r}, address, "8080", name]
    server = container.popen(argv, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\\n"
def ask(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"name\\n")
        return client.recv(100).decode()
@pytest.fixture(scope="module")
def server(contained_factory):
    container = contained_factory(name="server", ports={{8080: 0}})
    serve(container, "of the module")
    return container.ports[8080]
@pytest.mark.parametrize("n", range(6))
def test_in_place(contained_factory, server, n):
    container = contained_factory(ports={{8080: 0}})
    serve(container, f"number {{n}}")
    assert ask(container.ports[8080]) == f"number {{n}}"
    assert ask(server) == "of the module"
@pytest.mark.parametrize("n", range(2))
@contained
def test_forked(contained_factory, server, n):
    container = contained_factory(ports={{8080: 0}})
    serve(container, f"number {{n}}")
    assert ask(container.ports[8080]) == f"number {{n}}"
    assert ask(server) == "of the module"
def test_network(contained_factory):
    with pytest_cgroup.Network() as network:
        one, two = contained_factory(network=network), contained_factory(network=network)
        serve(one, "shared", one.address)
        client = ["python3", "-c", "import socket, sys; c = socket.create_connection((sys.argv[1], 8080)); "
                  "c.sendall(b'name\\\\n'); print(c.recv(9).decode())", one.address]
        assert two.run(client, capture_output=True, text=True).stdout == "shared\\n"
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", [pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"])
def test_ports_in_tests(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    result = run(pytester, _SOURCE, "--process-leaks=fail", f"--cgroup-backend={backend}", workers=workers)
    assert (result.ret, result.counts) == (0, {"passed": 9}), result.text
