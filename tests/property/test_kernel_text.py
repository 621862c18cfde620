"""The parsers against whatever a kernel may say: what was written is read, and a new key or line breaks nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_cgroup._kernel_text import cgroup_mounts, flat_keyed, io_bytes, io_bytes_v1, membership

KEYS = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
NUMBERS = st.integers(0, 2**64)
LINE = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), max_size=30)
PATHS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, blacklist_characters="\x7f\x85\xa0")).map(
    "/".__add__
)


@given(st.dictionaries(KEYS, NUMBERS))
def test_flat_keyed(numbers: dict[str, int]) -> None:
    assert flat_keyed("".join(f"{key} {number}\n" for key, number in numbers.items())) == numbers


@given(st.lists(LINE))
def test_flat_keyed_never_raises(lines: list[str]) -> None:
    assert all(value >= 0 for value in flat_keyed("\n".join(lines)).values())


@given(st.lists(st.tuples(NUMBERS, NUMBERS)))
def test_io(devices: list[tuple[int, int]]) -> None:
    read, written = sum(r for r, _ in devices), sum(w for _, w in devices)
    v2 = "".join(f"8:{n} rbytes={r} wbytes={w} rios=1 new=x\n" for n, (r, w) in enumerate(devices))
    v1 = "".join(f"8:{n} Read {r}\n8:{n} Write {w}\n8:{n} Total {r + w}\n" for n, (r, w) in enumerate(devices))
    assert io_bytes(v2) == (read, written)
    assert io_bytes_v1(f"{v1}Total {read + written}\n") == ((read, written) if read + written else None)


@given(st.dictionaries(st.sampled_from(["cpu", "memory", "pids", "name=systemd", ""]), st.text("/ab:c.", min_size=1)))
def test_membership(paths: dict[str, str]) -> None:
    text = "".join(f"{n}:{controller}:{path}\n" for n, (controller, path) in enumerate(paths.items()))
    assert membership(text) == paths


@given(PATHS, PATHS, st.sampled_from(["cgroup2", "cgroup", "tmpfs"]))
def test_mounts(root: str, point: str, kind: str) -> None:
    def escaped(path: str) -> str:
        return path.replace("\\", "\\134").replace(" ", "\\040")

    text = f"29 23 0:25 {escaped(root)} {escaped(point)} rw,nosuid shared:1 master:2 - {kind} none rw,memory\n"
    mounts = cgroup_mounts(text)
    assert [(mount.root, mount.mount_point) for mount in mounts] == ([] if kind == "tmpfs" else [(root, point)])
