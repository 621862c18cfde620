"""What a contained test makes of the run by what it says: nothing but its own verdict."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tests.e2e.inner import run

_TOOLS = r"""
import gc, json, stat

def inside():
    return next(one for one in gc.get_objects() if type(one).__name__ == "Inside")

def forge(when="call", beside=(), **changes):
    tell = inside().tell
    def forged(*, urgent=False, **message):
        if "report" in message and message["report"]["when"] == when:
            message["report"] = {**message["report"], **changes}
            message.update(beside)
        return tell(urgent=urgent, **message)
    inside().tell = forged

def raw(data):
    inside()._write(data, urgent=True)

def say(**message):
    data = json.dumps(message).encode()
    raw(b"%d\n%b" % (len(data), data))

def into_everything():
    for fd in range(3, 300):
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                continue  # a file that pytest writes, which a test can spoil without us as well
            os.set_blocking(fd, False)
            os.write(fd, b"garbage\n" + b"9" * 5000 + b" 1\n")
        except OSError:
            continue

def keep_the_pipe():
    if os.fork() == 0:
        os.setsid()
        raw(b"garbage")
        signal.pause()
"""
_ENTRY = {"lines": [1], "reprfuncargs": None, "reprlocals": None, "reprfileloc": None, "style": "long"}
_TRACEBACK = {"reprentries": [{"type": "ReprEntry", "data": _ENTRY}], "extraline": None, "style": "long"}
_CRASH = {"path": "x", "lineno": 1, "message": "y"}
_UNSHOWN = {"reprcrash": _CRASH, "reprtraceback": _TRACEBACK, "sections": [], "chain": None}
_WARNING = {"module": "builtins", "category": "UserWarning", "message": "x", "filename": "x", "lineno": 1}
#: by name, what the test does; each fails it, and it alone
_ATTACKS = {
    "another": "forge(nodeid='test_it.py::test_last', outcome='failed', longrepr='forged')",
    "outcome": "forge(outcome='splendid')",
    "when": "forge(when='teardown', beside={'report': 5})",
    "longrepr": f"forge(outcome='failed', longrepr={_UNSHOWN})",
    "crash": f"forge(outcome='failed', longrepr={ {**_UNSHOWN, 'reprcrash': {**_CRASH, 'message': 5}} })",
    "no text": "forge(outcome='failed', longrepr=5)",
    "skip": "forge(outcome='skipped', longrepr='no place')",
    "skip of nothing": "forge(outcome='skipped', longrepr=[1, 2, 3])",
    "xfail": "forge(outcome='skipped', wasxfail=5)",
    "duration": "forge(duration='long')",
    "nan": "forge(duration=float('nan'), stop=float('inf'))",
    "long": "forge(duration=10 ** 400)",
    "location": "forge(location=[])",
    "place": "forge(location=[5, 'x', None])",
    "keywords": "forge(keywords=5)",
    "sections": "forge(sections=[['a', 5]])",
    "properties": "forge(user_properties=[['a', 'b', 'c']])",
    "method": "forge(toterminal=5, outcome='failed', longrepr='x')",
    "worker": "forge(node=5)",
    "collected": "forge(**{'$report_type': 'CollectReport', 'result': None})",
    "subtest": "forge(**{'_report_type': 'SubTestReport', '_subtest.context': {'msg': 5, 'kwargs': [1]}})",
    "subtests": "forge(beside={'failed_subtests': 'many'})",
    "positions": "forge(beside={'positions': 5})",
    "nothing": "say()",
    "unknown": "say(hello='pytest')",
    "exit": "say(exit=5)",
    "status": "say(exit='x', returncode='y')",
    "warning": "say(refused='', warnings=[5])",
    "line": f"say(refused='', warnings=[{ {**_WARNING, 'lineno': 'x'} }])",
    "xml": "say(debugger=False, junit={'properties': [], 'attributes': {'a b<': 'x'}})",
    "zombies": "say(end=True, zombies={'9' * 5000: 'x'}, family={}); os._exit(0)",
    "zombie": "say(end=True, zombies={'\u00b2': 'x'}, family={}); os._exit(0)",
    "family": "say(end=True, zombies={}, family={'1': 5}); os._exit(0)",
    "started": "subprocess.Popen(['sleep', '60']); say(end=True, started=[[1, 2]]); os._exit(0)",
    "end": "say(end=True); os._exit(0)",
    "no end": "inside().end = lambda: os._exit(0)",
    "no end of a leak": "subprocess.Popen(['sleep', '60']); inside().end = lambda: os._exit(0)",
    "garbage": "raw(b'\\xff' * 100)",
    "length": "raw(b'9' * 19 + b'\\n')",
    "digits": "raw(b'9' * 5000)",
    "half": "raw(b'200000000\\n' + b'x' * 100_000)",
    "deep": "raw(b'200000\\n' + b'[' * 200_000)",
    "list": "raw(b'2\\n[]')",
    # pytest-xdist's own pipe to its controller is one of these, and whoever writes into that ends the worker's talk
    "pipes": "into_everything() if 'PYTEST_XDIST_WORKER' not in os.environ else raw(b'x' * 100)",
    "grandchild": "keep_the_pipe()",
}
_SOURCE = f"""
{_TOOLS}
ATTACKS = {_ATTACKS!r}

@contained
def test_first(): pass

@contained(timeout=30)
@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name):
    exec(ATTACKS[name])

@contained
@pytest.mark.parametrize("name", ATTACKS)
def test_between(name): pass

@contained
def test_last(record_property): record_property("said", "nothing")
"""
backends = pytest.mark.parametrize("backend", ["auto", "process"])


@pytest.mark.parametrize(("backend", "workers"), [("auto", 0), ("process", 0), ("auto", 2)])
def test_a_hostile_child_fails_itself_and_nobody_else(pytester: pytest.Pytester, backend: str, workers: int) -> None:
    """The negative control is each attack's own verdict: what it said was not taken for anything else."""
    more = ("-ra", "--durations=3", "--resource-usage=0", f"--cgroup-backend={backend}")
    result = run(pytester, _SOURCE, *more, workers=workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, result.text
    verdicts: dict[str, set[str]] = {}
    for case in ElementTree.parse(result.junit).getroot().iter("testcase"):
        said = verdicts.setdefault(case.get("name") or "?", set())
        said.update(child.tag for child in case if child.tag in ("failure", "error", "skipped"))
    failed = {name for name, said in verdicts.items() if said}
    assert failed == {name for name in verdicts if name.startswith("test_attack[")}, result.text
    assert len(verdicts) == 2 * len(_ATTACKS) + 2
    assert all("skipped" not in said for said in verdicts.values())
    assert result.counts["passed"] >= len(_ATTACKS) + 2


@backends
def test_the_line_of_a_warning_is_read_by_the_test_itself(pytester: pytest.Pytester, backend: str) -> None:
    """Pytest may read what a test, of another user or with hidden paths, may not."""
    secret = pytester.path / "secret"
    secret.write_text("the secret\n", encoding="utf-8")
    forged = {**_WARNING, "filename": str(secret), "message": "forged"}
    source = f"{_TOOLS}\nimport warnings\n@contained\ndef test_it():\n    warnings.warn('honest')\n"
    source += f"    forge(beside={{'warnings': [{forged!r}]}})\n"
    result = run(pytester, source, f"--cgroup-backend={backend}")
    assert "UserWarning: forged" in result.text
    assert "the secret" not in result.text
    honest = run(pytester, "import warnings\n@contained\ndef test_it():\n    warnings.warn('honest')  # shown\n")
    assert "warnings.warn('honest')  # shown" in honest.text


@backends
def test_a_test_tells_its_own_usage_to_nobody(pytester: pytest.Pytester, backend: str) -> None:
    source = """
@contained
def test_it(record_property):
    record_property("contained", '{"ended": "oom", "backend": "forged", "usage": {}}')
"""
    result = run(pytester, source, f"--cgroup-backend={backend}", "--resource-usage=0")
    assert result.record["backend"] != "forged"
    assert result.record["ended"] == "exit"
    assert "forged" not in result.text


@backends
def test_no_name_in_tmp_and_nobody_else_may_read(pytester: pytest.Pytester, backend: str) -> None:
    """What is kept on disk has no name there to guess, and is 0600 whatever the umask says."""
    tmp = pytester.path / "tmp"
    tmp.mkdir()
    source = f"""
import gc, stat, tempfile
@contained
def test_it():
    output = next(one for one in gc.get_objects() if type(one).__name__ == "Inside")._output
    print("x" * 3_000_000)
    for fd in [*output.files.values(), output.coverage]:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert tempfile.gettempdir() == {str(tmp)!r}
    assert os.listdir({str(tmp)!r}) == []

def test_after():
    assert os.listdir({str(tmp)!r}) == []
    with open("control", "w"): pass
    assert stat.S_IMODE(os.stat("control").st_mode) == 0o666
"""
    prefix = ("sh", "-c", 'umask 0; TMPDIR="$0" exec "$@"', str(tmp))
    result = run(pytester, source, f"--cgroup-backend={backend}", "--process-leaks=fail", prefix=prefix)
    assert result.counts == {"passed": 2}
