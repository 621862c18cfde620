"""What is written wrong: an error of that test alone, or a usage error; never a traceback of ours, nor with xdist."""

from __future__ import annotations

import pytest

from tests.e2e.inner import run

# name: marker's arguments, what the message must hold beside the field's name
MARKERS = {
    "unknown_field": ('memroy="1G"', ["memroy='1G'", "did you mean memory?"]),
    "bad_unit": ('memory="64MB"', ["memory='64MB'", "64MB", "write M or MiB"]),
    "no_unit": ('memory="lots"', ["memory='lots'", '"256M"']),
    "negative": ("pids=-1", ["pids=-1", "negative", "1 to 4194304"]),
    "zero": ("timeout=0", ["timeout=0", "seconds above 0"]),
    "not_a_number": ('timeout=float("nan")', ["timeout=nan", "not a number"]),
    "infinite": ('cpu_time=float("inf")', ["cpu_time=inf", "seconds above 0"]),
    "below_a_page": ("memory=100", ["memory=100", "minimum of 4096"]),
    "below_the_quota": ("cpu=0.001", ["cpu=0.001", "minimum of 0.01"]),
    "flag": ('pid_ns="perhaps"', ["pid_ns='perhaps'", "True or False"]),
    "object": ("memory=object()", ["memory=<object"]),
    "raises": ("memory=Hostile()", ["memory="]),
    "long": ('hostname="x" * 100_000', ["hostname='xxx", "1 to 64"]),
    "control": ('controls={"../../x": "1"}', ["controls=", "../../x"]),
    "rlimit": ('rlimits={"nofiles": 1}', ["rlimits=", "nofiles"]),
    "leaks": ('leaks="sometimes"', ["leaks='sometimes'", '"fail", "warn" or "ignore"']),
    "expect": ('expect="signal:NONE"', ["expect='signal:NONE'", "signal:SEGV"]),
    "clash_high": ('memory="1M", memory_high="2M"', ["memory_high=2097152", "above memory"]),
    "clash_swap": ('swap="1M"', ["swap=1048576", "memory is not"]),
    "clash_uts": ('hostname="x", uts_ns=False', ["hostname='x'", "uts_ns"]),
    "clash_mount": ("private_tmp=True, mount_ns=False", ["private_tmp=True", "mount_ns"]),
    "clash_expect": ('expect="timeout"', ["expect='timeout'", "timeout is not given"]),
    "no_user": ('user="nobody-such"', ["user='nobody-such'", "no such user"]),
    "no_group": ('group="no-such-group"', ["group='no-such-group'", "no such group"]),
    "no_account": ("user=4_242_424", ["user=4242424", "give `group` too"]),
    "relative": ('readonly="etc"', ["readonly='etc'", "absolute"]),
    "no_readonly": ('readonly=["/no/such/path"]', ["readonly='/no/such/path'", "no such path"]),
    "no_hidden": ('hidden="/no/such/path"', ["hidden='/no/such/path'", "no such path"]),
    "in_place": ('isolation="shared", pids=5', ["pids=5", "would hold for pytest itself"]),
    "positional": ('"64M"', ["('64M',)", "by keyword"]),
}
HOSTILE = """
class Hostile:
    def __repr__(self): raise ValueError("no repr")
    def __index__(self): raise ValueError("no index")
    def __str__(self): raise ValueError("no str")
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_marker_is_an_error_of_its_test_alone(pytester: pytest.Pytester, workers: int) -> None:
    source = HOSTILE + "".join(
        f"""
@contained({given})
def test_{name}(): open("{name}.ran", "w")
"""
        for name, (given, _) in MARKERS.items()
    )
    good = "\n@contained\ndef test_contained(): pass\ndef test_plain(): pass\n"
    result = run(pytester, source + good, workers=workers)
    assert result.ret == 1
    assert result.counts == {"passed": 2, "error": len(MARKERS)}
    for name, (given, said) in MARKERS.items():
        block = result.blocks[f"ERROR at setup of test_{name}"]
        assert block.startswith("contained: "), name
        assert f"(@pytest.mark.contained on test_{name}" in block, "where it was written"
        assert all(text in block for text in said), (given, block)
        assert "Traceback" not in block
        assert "pytest_cgroup" not in block
        assert len(block.splitlines()[0]) < 1200
    assert not list(pytester.path.glob("*.ran")), "none of them ran uncontained"


@pytest.mark.parametrize("place", ["class", "module", "param", "fixture order"])
def test_the_place_is_named(pytester: pytest.Pytester, place: str) -> None:
    source = {
        "class": "@contained(pids=0)\nclass TestIt:\n    def test_it(self): pass",
        "module": "pytestmark = contained(pids=0)\ndef test_it(): pass",
        "param": '@pytest.mark.parametrize("x", [pytest.param(1, marks=contained(pids=0))])\ndef test_it(x): pass',
        "fixture order": (
            '@pytest.fixture(scope="session", autouse=True)\ndef loud(): raise RuntimeError("set up all the same")\n'
            "@contained(pids=0)\ndef test_it(): pass"
        ),
    }[place]
    result = run(pytester, source)
    (block,) = result.blocks.values()
    where = {"class": "TestIt", "module": "test_it.py"}.get(place, "test_it")
    assert block.startswith(f"contained: pids=0 (@pytest.mark.contained on {where})")
    assert "set up all the same" not in result.text


def test_contradictions_across_places_name_them_all(pytester: pytest.Pytester) -> None:
    source = """
@contained(memory="1M")
class TestIt:
    @contained(memory_high="2M")
    def test_it(self): pass
"""
    (block,) = run(pytester, source, "--contained=pids=10").blocks.values()
    assert "(--contained and @pytest.mark.contained on TestIt and @pytest.mark.contained on test_it)" in block


def test_a_test_that_is_skipped_here_may_ask_for_what_is_not_here(pytester: pytest.Pytester) -> None:
    source = """
@pytest.mark.skipif(True, reason="not on this host")
@contained(readonly="/no/such/path")
def test_skipped(): pass
@pytest.mark.xfail(reason="does not cover a typing error")
@contained(pids=0)
def test_xfail(): pass
"""
    assert run(pytester, source).counts == {"skipped": 1, "error": 1}


@pytest.mark.requires("cgroup", "io", "cpuset", "memory")
def test_what_only_the_kernel_can_refuse(pytester: pytest.Pytester) -> None:
    source = """
@contained(io={"/dev/no-such-disk": {"rbps": "1M"}})
def test_device(): pass
@contained(io={"/dev/null": {"rbps": "1M"}})
def test_no_disk(): pass
@contained(cpuset="4000")
def test_cpuset(): pass
@contained(controls={"memory.nonsense": "1"})
def test_control(): pass
@contained(rlimits={"nofile": (1 << 40, 1 << 40)})
def test_rlimit(): pass
@contained
def test_good(): pass
"""
    result = run(pytester, source, "--cgroup-missing=fail")
    assert result.counts == {"passed": 1, "error": 5}
    said = {
        "test_device": "/dev/no-such-disk",
        "test_no_disk": "/dev/null",
        "test_cpuset": "4000",
        "test_control": "memory.nonsense",
        "test_rlimit": "nofile",
    }
    for name, text in said.items():
        block = result.blocks[f"ERROR at setup of {name}"]
        assert block.startswith("contained: ")
        assert text in block.splitlines()[0]
        assert "Traceback" not in block
        assert "direct cause" not in block


USAGE = {
    "--contained=memroy=1G": ["memroy='1G'", "(--contained)", "did you mean memory?"],
    "--contained=memory=64MB": ["memory='64MB'", "(--contained)", "powers of 1024"],
    "--contained=expect=timeout": ["expect='timeout'", "(--contained)"],
    "--contained=user=nobody-such": ["user='nobody-such'", "(--contained)", "no such user"],
    "--contained=io={": ["io=", "not JSON"],
    "-o contained=pids=0": ["pids='0'", "(ini contained)", "1 to 4194304"],
    "-o contained=readonly=/no/such/path": ["readonly='/no/such/path'", "(ini contained)"],
    "--resource-usage=many": ["--resource-usage", "'many'", "from 0 on"],
    "--resource-usage=-1": ["--resource-usage", "'-1'", "from 0 on"],
    "-o resource_usage=many": ["ini resource_usage", "'many'", "from 0 on"],
    "--resource-usage-json=/no/such/dir/file": ["--resource-usage-json=/no/such/dir/file", "No such file"],
    "-o resource_usage_json=/no/such/dir/file": ["ini resource_usage_json=/no/such/dir/file", "No such file"],
    "--cgroup-backend=docker": ["--cgroup-backend='docker'", "auto, cgroup, process"],
    "-o cgroup_backend=docker": ["ini cgroup_backend='docker'", "auto, cgroup, process"],
    "--cgroup-base=/no/such/cgroup": ["/no/such/cgroup", "is not a cgroup", "cgroup mount"],
    "-o cgroup_base=/tmp": ["/tmp", "is not a cgroup", "cgroup mount"],
    "--cgroup-base=../../../../tmp": ["tmp", "is not a cgroup", "cgroup mount"],
    "--cgroup-base=../../../../../../tmp": ["tmp", "is not a cgroup", "cgroup mount"],
    "--cgroup-scope=yes": ["--cgroup-scope='yes'", "auto, no"],
    "-o cgroup_scope=never": ["ini cgroup_scope='never'", "auto, no"],
    "-o cgroup_take_over=maybe": ["ini cgroup_take_over='maybe'", "no, yes"],
    "--cgroup-missing=ignore": ["--cgroup-missing='ignore'", "skip, fail, warn"],
    "-o cgroup_missing=ignore": ["ini cgroup_missing='ignore'", "skip, fail, warn"],
    "--cgroup-backend=process --cgroup-base=/": ["--cgroup-base", "makes no cgroups"],
}


@pytest.mark.parametrize("arguments", USAGE)
def test_a_wrong_option_is_a_usage_error(pytester: pytest.Pytester, arguments: str) -> None:
    check_usage(pytester, arguments)


@pytest.mark.parametrize("arguments", [*[a for a in USAGE if a.startswith("-o")][:3], "--contained=memroy=1G"])
def test_a_usage_error_under_xdist(pytester: pytest.Pytester, arguments: str) -> None:
    check_usage(pytester, arguments, workers=2)


def check_usage(pytester: pytest.Pytester, arguments: str, *, workers: int = 0) -> None:
    source = "def test_it(): open('ran', 'w')\n"
    result = run(pytester, source, *arguments.split(), workers=workers, usage_json="json" not in arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert all(text in result.text for text in USAGE[arguments]), result.text
    assert "Traceback" not in result.text
    assert not pytester.path.joinpath("ran").exists()


@pytest.mark.parametrize("path", ["test_it.py", "sub", "sub/test_no.py", "test_it.py::test_it", "a=b", "test_no.py"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_option_that_swallowed_a_path_says_so(pytester: pytest.Pytester, path: str, workers: int) -> None:
    for directory in ("sub", "a=b"):
        pytester.mkdir(directory)
    result = run(pytester, "def test_it(): open('ran', 'w')\n", "--contained", path, workers=workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--contained took {path!r} for its SPEC, and that is a path: write --contained= {path}" in result.text
    assert "or the path before" in result.text
    assert "Traceback" not in result.text
    result = run(pytester, None, "--resource-usage", path, workers=workers)
    assert f"that is a path: write --resource-usage=N {path}" in result.text
    assert not pytester.path.joinpath("ran").exists()


def test_the_remedies_for_a_swallowed_path_work(pytester: pytest.Pytester) -> None:
    source = "def test_it(): pass\n"
    assert run(pytester, source, "--contained=", "test_it.py").record["ended"] == "exit"
    assert run(pytester, source, "test_it.py", "--contained").record["ended"] == "exit"


@pytest.mark.requires("uts_ns")
def test_a_field_is_no_path_though_there_may_be_one_of_its_name(pytester: pytest.Pytester) -> None:
    pytester.mkdir("uts_ns")
    source = """
def name(): return os.readlink("/proc/self/ns/uts")
OUTSIDE = name()
def test_it(): assert name() != OUTSIDE
"""
    assert run(pytester, source, "--contained", "uts_ns", "test_it.py").counts == {"passed": 1}


def test_a_mistake_in_a_spec_is_no_path(pytester: pytest.Pytester) -> None:
    for text in ("pid_nss", "readonly=/no/such"):
        result = run(pytester, "def test_it(): pass\n", "--contained", text)
        assert "(--contained)" in result.text
        assert "that is a path" not in result.text
