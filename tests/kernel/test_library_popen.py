"""Programs in a `Container`: everything that `subprocess` does, compared with what `subprocess` itself does."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_cgroup import Completed, Container, ContainerError, _launcher, _station
from pytest_cgroup._life import Life
from tests.kernel.contain import DEADLINE_SECONDS, PROGRAMS, descriptors
from tests.kernel.forked import forked

Start = Callable[..., "subprocess.Popen[Any]"]

#: tells what it was given
LOOK = """
import json, os, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "signals": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
    "umask": status["Umask"], "ids": [status["Uid"], status["Gid"], status["Groups"]],
    "caps": status["CapEff"], "leader": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "group": os.getpgid(0), "env": dict(os.environ), "cwd": os.getcwd(), "priority": os.getpriority(0, 0),
    "fds": sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")),
    "limits": [resource.getrlimit(n) for n in range(16)], "tty": status.get("TracerPid"),
}))
"""


@pytest.fixture(params=[pytest.param("cgroup", marks=pytest.mark.requires("cgroup")), "process"], scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    name: str = request.param
    return name


@pytest.fixture
def container(backend: str) -> Iterator[Container]:
    """A container; nothing of it stays open."""
    before = descriptors()
    with Container(backend=backend) as found:
        yield found
    _station.close()
    gc.collect()
    assert [fd for fd in descriptors() if fd not in before] == []


def look(start: Start, **options: Any) -> Any:
    """What a program says that was started by *start*."""
    process = start([sys.executable, "-I", "-S", "-c", LOOK], stdout=subprocess.PIPE, **options)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    seen = json.loads(out)
    for name in (
        "LINES",
        "COLUMNS",
    ):  # set by readline behind os.environ's back
        seen["env"].pop(name, None)
    blocked, ignored, caught = (int(bits, 16) for bits in seen["signals"])
    seen["signals"] = blocked, ignored & ~(3 << 31), caught  # posix_spawn(3) ignores the C library's own, 32 and 33
    if seen["leader"][1]:
        seen["group"] = "its own"
    return seen


def refused(start: Start, argv: Any, **options: Any) -> tuple[object, ...]:
    """The error of a program that can't be started."""
    try:
        process = start(argv, **options)
    except Exception as error:
        return type(error), str(error), getattr(error, "errno", None), getattr(error, "filename", None)
    process.kill()
    process.wait()
    raise AssertionError("it was started")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_new_session": True},
        {"process_group": 0},
        {"umask": 0o123},
        {"cwd": "/usr"},
        {"env": {"A": "b=c", "PATH": "/bin"}},
        {"env": {}},
        {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT},
        {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE},
        {"restore_signals": False},
        {"close_fds": False},
        {"shell": False, "executable": sys.executable},
        {"bufsize": 0},
    ],
    ids=str,
)
def test_a_program_sees_what_it_would_see(container: Container, options: dict[str, Any]) -> None:
    assert look(container.popen, **options) == look(subprocess.Popen, **options)


@pytest.mark.requires("root")
@pytest.mark.parametrize(
    "options",
    [
        {"user": 12345},
        {"user": 12345, "group": 12346, "extra_groups": [1, 2]},
        {"group": 12346},
        {"extra_groups": []},
    ],
    ids=str,
)
def test_another_user(container: Container, options: dict[str, Any]) -> None:
    interpreter = "/usr/bin/python3"
    options = {**options, "executable": interpreter} if os.path.exists(interpreter) else options
    assert look(container.popen, **options) == look(subprocess.Popen, **options)


def test_this_process_as_it_is_now(container: Container, tmp_path: Path) -> None:
    """And not as it was when the first program was started."""
    container.run(["true"])
    before = os.getcwd()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    mask = os.umask(0o071)
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        os.chdir(tmp_path)
        os.environ["LATER"] = "yes"
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit[0] - 1, limit[1]))
        seen = look(container.popen)
        assert seen == look(subprocess.Popen)
        assert (seen["cwd"], seen["umask"], seen["env"]["LATER"]) == (str(tmp_path), "0071", "yes")
        assert seen["limits"][resource.RLIMIT_NOFILE][0] == limit[0] - 1
    finally:
        os.chdir(before)
        os.umask(mask)
        signal.signal(signal.SIGUSR2, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.environ.pop("LATER", None)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_what_a_thread_blocks_is_its_own(container: Container) -> None:
    def look_both_ways() -> tuple[Any, Any]:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
        return look(container.popen), look(subprocess.Popen)

    with ThreadPoolExecutor(1) as pool:
        inside, outside = pool.submit(look_both_ways).result()
    assert inside == outside
    assert inside["signals"][0] == 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGRTMIN - 1


def test_descriptors_are_passed_on(container: Container) -> None:
    """Under the numbers that they have here, high and many, and no other is."""
    pairs = [os.pipe() for _ in range(130)]
    fds = [fd for pair in pairs for fd in pair]
    try:
        program = f"import os; [os.write({pairs[-1][1]}, b'%d ' % fd) for fd in {fds} if os.fstat(fd)]"
        assert container.run([sys.executable, "-c", program], pass_fds=fds).returncode == 0
        assert os.read(pairs[-1][0], 65536).decode().split() == [str(fd) for fd in fds]
        assert container.run(
            [sys.executable, "-c", f"import os; os.fstat({fds[0]})"], stderr=subprocess.DEVNULL
        ).returncode
    finally:
        for fd in fds:
            os.close(fd)


def test_an_inheritable_descriptor_without_close_fds(container: Container) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        check = [sys.executable, "-c", f"import os; os.fstat({fd})"]
        os.set_inheritable(fd, True)
        assert container.run(check, close_fds=False).returncode == 0
        assert container.run(check, stderr=subprocess.DEVNULL).returncode == 1
        os.set_inheritable(fd, False)
        assert container.run(check, close_fds=False, stderr=subprocess.DEVNULL).returncode == 1
    finally:
        os.close(fd)


def test_standard_descriptors_that_are_closed(container: Container) -> None:
    """As a daemon has them."""
    backend = container._backend_name

    def child() -> list[Any]:
        for fd in (0, 2):
            os.close(fd)
        with Container(backend=backend) as inner:
            reader, writer = os.pipe()
            program = "import os; os.write(1, str([os.path.exists(f'/proc/self/fd/{n}') for n in (0, 1, 2)]).encode())"
            inner.popen([sys.executable, "-I", "-c", program], stdout=writer).wait()
            said = os.read(reader, 1000).decode()
        _station.close()
        return [said]

    assert forked(child) == ["[False, True, False]"]


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["no-such-program"], {}),
        (["/no/such/program"], {}),
        (["/etc/passwd"], {}),
        (["/usr"], {}),
        (["/etc/passwd/x"], {}),
        (["true"], {"cwd": "/no/such/directory"}),
        (["true"], {"cwd": "/etc/passwd"}),
        (["true", "a\0b"], {}),
        ([], {}),
        ([1], {}),
        (["true"], {"env": {"a=b": "c"}}),
        (["true"], {"user": "no-such-user"}),
        (["true"], {"pass_fds": [9999]}),
        (["true"], {"process_group": 1}),
        (["no-such-program"], {"env": {"PATH": "/usr/bin:/bin"}}),
    ],
    ids=str,
)
def test_pythons_own_errors(container: Container, argv: Any, options: dict[str, Any]) -> None:
    kind, text, number, filename = refused(container.popen, argv, **options)
    own = refused(subprocess.Popen, argv, **options)
    assert (kind, number, filename) == (own[0], own[2], own[3])
    if not options.get("pass_fds"):
        assert text == own[1]
    assert not container.populated


def test_a_script_without_an_interpreter(container: Container, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("neither this nor that")
    script.chmod(0o755)
    assert refused(container.popen, [str(script)]) == refused(subprocess.Popen, [str(script)])


def test_no_preexec_fn(container: Container) -> None:
    with pytest.raises(ValueError, match="preexec_fn is not to be had"):
        container.popen(["true"], preexec_fn=lambda: None)


def test_a_user_that_is_not_there(backend: str) -> None:
    """An error of ours is no exit code of the program's."""
    with Container(backend=backend) as container:
        assert isinstance(container._life, Life)
        container._life._spawner.entry = {"user": "nobody-of-this-name"}
        with pytest.raises(ContainerError, match="no such user"):
            container.popen(["true"])
        assert not container.populated
    _station.close()


@pytest.mark.requires("cgroup")
def test_it_is_a_child_of_ours() -> None:
    with Container() as container:
        process = container.popen(["sh", "-c", "exit 5"])
        assert isinstance(process, subprocess.Popen)
        assert psutil.Process(process.pid).ppid() == os.getpid()
        assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 5
        process.returncode = 5
    _station.close()


@pytest.mark.requires("cgroup")
def test_it_is_inside_before_the_program_begins() -> None:
    """In every hierarchy, and so are its first children; the negative control is outside of all."""
    program = ["sh", "-c", "cat /proc/self/cgroup"]
    with Container(memory="64M", name="inside") as container:
        own = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
        inside = container.run(program, capture_output=True, text=True).stdout.splitlines()
        assert isinstance(container._life, Life)
        tree: Any = container._life.tree
        joined = {*tree.cgroup.controllers, *([""] if tree.cgroup.unified else [])}
        for line in inside:
            controllers = set(line.split(":")[1].split(",")) & joined
            assert ("-inside" in line) is bool(controllers), line
        assert not [line for line in own if "-inside" in line]
    _station.close()


def test_returncodes(container: Container) -> None:
    assert container.popen(["sh", "-c", "exit 7"]).wait(DEADLINE_SECONDS) == 7
    assert container.popen(["sh", "-c", "kill -SEGV $$"]).wait(DEADLINE_SECONDS) == -signal.SIGSEGV
    process = container.popen(["sleep", "1000"])
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.02)
    process.terminate()
    assert process.wait(DEADLINE_SECONDS) == -signal.SIGTERM
    assert process.poll() == -signal.SIGTERM
    process.kill()  # harmless


def test_communicate_and_text(container: Container) -> None:
    with container.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate("héllo\n") == ("héllo\n", None)
    assert process.returncode == 0
    shell = container.popen("echo $0 $((1 + 2))", shell=True, stdout=subprocess.PIPE)
    assert shell.communicate()[0] == b"/bin/sh 3\n"


# in namespaces

NAMESPACES = [
    pytest.param({"pid_ns": True}, marks=pytest.mark.requires("pid_ns"), id="pid_ns"),
    pytest.param({"pid_ns": True, "user_ns": True}, marks=pytest.mark.requires("pid_ns", "user_ns"), id="user_ns"),
    pytest.param({"net_ns": True, "hostname": "inside"}, marks=pytest.mark.requires("net_ns", "uts_ns"), id="net_ns"),
    pytest.param({"pid_ns": True, "private_tmp": True, "ipc_ns": True}, marks=pytest.mark.requires("pid_ns"), id="tmp"),
]


@pytest.mark.parametrize("asked", NAMESPACES)
def test_every_program_is_in_the_same_namespaces(backend: str, asked: dict[str, Any]) -> None:
    kinds = ("pid", "net", "mnt", "ipc", "uts", "user")
    expected = {"pid_ns": "pid", "net_ns": "net", "hostname": "uts", "private_tmp": "mnt", "ipc_ns": "ipc"}
    links = [sys.executable, "-I", "-c", f"import os; print([os.readlink('/proc/self/ns/' + k) for k in {kinds}])"]
    with Container(backend=backend, **asked) as container:
        first, second = (container.run(links, capture_output=True, text=True).stdout for _ in range(2))
    outside = subprocess.run(links, capture_output=True, text=True, check=True).stdout
    assert first == second
    pairs = dict(zip(kinds, zip(eval(first), eval(outside), strict=True), strict=True))
    for field, kind in expected.items():
        inside, out = pairs[kind]
        if field in asked:
            assert inside != out
    _station.close()


@pytest.mark.parametrize("asked", NAMESPACES)
def test_popen_in_namespaces(backend: str, asked: dict[str, Any]) -> None:
    with Container(backend=backend, **asked) as container:
        assert container.run(["sh", "-c", "kill -ABRT $$"]).returncode == -signal.SIGABRT
        with pytest.raises(FileNotFoundError):
            container.popen(["no-such-program"])
        process = container.popen(["sleep", "1000"])
        process.send_signal(signal.SIGUSR1)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGUSR1
        assert container.popen(["pwd"], cwd="/usr", stdout=subprocess.PIPE).communicate()[0] == b"/usr\n"
        assert not container.populated
    _station.close()


@pytest.mark.requires("pid_ns")
def test_orphans_of_a_pid_namespace_are_reaped(backend: str) -> None:
    program = "(sleep 0.01 &) ; exec ps -e -o pid=,stat= 2>/dev/null || true"
    with Container(backend=backend, pid_ns=True) as container:
        container.run(["sh", "-c", program], stdout=subprocess.DEVNULL)
        assert container.wait_empty(DEADLINE_SECONDS)
        listed = container.run([sys.executable, "-c", _LIST_PIDS], capture_output=True, text=True).stdout
    assert json.loads(listed)[0] == 1
    assert len(json.loads(listed)) == 2  # the init, and who asks: no zombie
    _station.close()


_LIST_PIDS = "import json, os; print(json.dumps(sorted(int(n) for n in os.listdir('/proc') if n.isdigit())))"


@pytest.mark.requires("pid_ns")
def test_an_init_that_dies_takes_all_with_it(backend: str) -> None:
    with Container(backend=backend, pid_ns=True) as container:
        process = container.popen(["sleep", "1000"])
        assert isinstance(container._life, Life)
        launcher = psutil.Process(container._life._spawner.launcher().pid)
        (init,) = [each for each in launcher.children() if each.pid != process.pid]
        init.kill()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    _station.close()


def test_a_namespace_that_can_not_be_set_up(backend: str) -> None:
    with pytest.raises(ContainerError, match="hidden"), Container(backend=backend, hidden="/no/such/path"):
        pass
    _station.close()


# run


def test_run(container: Container) -> None:
    done = container.run(["sh", "-c", "cat; echo no >&2; exit 3"], input="hello", capture_output=True, text=True)
    assert isinstance(done, Completed)
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello", "no\n")
    assert (done.outcome.ended, done.outcome.exit_code, done.outcome.leaks) == ("exit", 3, ())
    with pytest.raises(subprocess.CalledProcessError):
        done.check_returncode()


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_run_carries_much_both_ways(container: Container, size: int) -> None:
    data = os.urandom(size)
    done = container.run(["tee", "/dev/stderr"], input=data, capture_output=True)
    assert (done.stdout == data, done.stderr == data) == (True, True)


def test_run_with_input_that_is_not_read(container: Container) -> None:
    assert container.run(["true"], input=b"x" * 1_000_000).returncode == 0


def test_run_checks(container: Container) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        container.run(["sh", "-c", "echo out; exit 2"], check=True, stdout=subprocess.PIPE)
    assert (raised.value.returncode, raised.value.output) == (2, b"out\n")
    with pytest.raises(ValueError, match="may not be used with capture_output"):
        container.run(["true"], capture_output=True, stdout=subprocess.PIPE)
    with pytest.raises(ValueError, match="may not both be used"):
        container.run(["true"], input=b"", stdin=subprocess.DEVNULL)
    with pytest.raises(TypeError, match="input is text"):
        container.run(["true"], input="text")


def test_run_tells_a_signal(container: Container) -> None:
    done = container.run(["sh", "-c", "kill -TERM $$"])
    assert (done.returncode, done.outcome.ended, done.outcome.signal) == (-15, "signal", 15)


def test_a_daemon_that_holds_the_pipe_does_not_hang_it(container: Container) -> None:
    """`subprocess.run` would wait for the daemon's end: that is the negative control, cut short."""
    argv = ["sh", "-c", "echo hello; (trap '' HUP; exec sleep 1000) & exit 4"]
    with container.popen(argv, stdout=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.2)
        container.kill()
    begun = time.monotonic()
    done = container.run(argv, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert time.monotonic() - begun < 10
    assert (done.returncode, done.stdout) == (4, "hello\n")
    assert [leak.argv for leak in done.outcome.leaks] == [("sleep", "1000")]
    assert container.populated  # it is left there on purpose


def test_a_flood_from_a_daemon_ends(container: Container) -> None:
    done = container.run(["sh", "-c", "yes & echo"], capture_output=True, timeout=DEADLINE_SECONDS)
    assert done.returncode == 0
    container.kill()


def test_run_ends_at_its_timeout_with_all_that_came_of_it(container: Container) -> None:
    other = container.popen(["sleep", "2000"])
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        container.run(["sh", "-c", "echo so far; sleep 1000 & sleep 1000"], timeout=2, stdout=subprocess.PIPE)
    assert raised.value.output == b"so far\n"
    assert [process.pid for process in container.processes()] == [other.pid]
    other.kill()
    other.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        container.run([sys.executable, str(PROGRAMS / "leaker.py"), "double_fork", "9"], timeout=0.0001)


def test_many_at_once(container: Container) -> None:
    """200 short commands from 20 threads; none fails, and each gets its own answer."""
    wrong: list[object] = []

    def work(thread: int) -> None:
        for i in range(10):
            try:
                done = container.run(["echo", f"{thread} {i}"], capture_output=True, text=True)
                if (done.returncode, done.stdout) != (0, f"{thread} {i}\n"):
                    wrong.append(done)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert wrong == []
    assert container.wait_empty(DEADLINE_SECONDS)


def born(directory: str) -> tuple[int | None, int | None]:
    """What becomes of a process that is to be born in the cgroup *directory*: it is a child of this one."""

    def birth() -> tuple[int | None, int | None]:
        pid, stillborn = _launcher._give_birth(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        if pid == 0:
            os.closerange(3, 100)  # who waits for the other's answer waits for its end
            while True:
                signal.pause()
        return pid, stillborn

    return forked(birth)


def of_v2(container: Container) -> str:
    directory: str = container._life.tree.cgroup.unified  # type: ignore[union-attr]
    return directory


@pytest.mark.requires("cgroup", "kill")
def test_it_is_born_in_its_cgroup() -> None:
    with Container(backend="cgroup") as container:
        pid, _ = born(of_v2(container))
        assert pid is not None
        assert pid in container
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it is our child, not the launcher's"
    _station.close()
    assert born("/") == (None, None), "who can't be has to join"


@pytest.mark.requires("cgroup", "kill")
def test_where_the_cgroup_was_killed_before() -> None:
    """Kernels have killed at once who is born where cgroup.kill was written before: then it joins, and lives."""
    with Container(backend="cgroup") as container:
        for _ in range(2):
            Path(of_v2(container), "cgroup.kill").write_text("1", encoding="ascii")
            for _ in range(2):
                assert container.run(["true"]).returncode == 0
        pid, stillborn = born(of_v2(container))
        left = pid or stillborn
        assert left
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        assert os.waitpid(left, 0)[1] == signal.SIGKILL
    _station.close()


def test_a_launcher_that_is_killed_is_told(container: Container) -> None:
    assert isinstance(container._life, Life)
    container.run(["true"], umask=0o22)  # which the C library alone can't
    os.kill(container._life._spawner.launcher().pid, signal.SIGKILL)
    with pytest.raises(ContainerError, match="has ended"):
        container.run(["true"], umask=0o22)
    with Container(backend=container._backend_name) as another:
        assert another.run(["true"]).returncode == 0
