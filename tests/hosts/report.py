"""The table of docs/reference/hosts.md, made of what the probe found in each guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- made by: python -m tests.hosts --table docs/reference/hosts.md -->"
END: Final = "<!-- end of what is made -->"
COLUMNS: Final = (
    *("host", "kernel", "systemd", "Python", "where", "found how"),
    *("limits", "kill", "leaks", "usage", "namespaces"),
)
LIMITS: Final = (
    *("memory", "swap", "memory_high", "oom_group", "pids"),
    *("cpu", "cpu_weight", "cpuset", "io", "io_weight"),
)
NAMESPACES: Final = ("user_ns", "pid_ns", "net_ns", "mount_ns", "ipc_ns", "uts_ns", "cgroup_ns", "time_ns")
FIGURES: Final = (
    *("wall_seconds", "cpu_user_seconds", "cpu_system_seconds", "memory_peak_bytes"),
    *("pids_peak", "io_read_bytes", "io_write_bytes", "oom_kill", "pids_max_hits"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A word, and what it does not say."""

    word: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What the probe found on one host."""

    answer: Mapping[str, Any]

    def row(self) -> list[Cell]:
        environment = self.answer["doctor"]["environment"]
        return [
            Cell(str(environment["kernel"])),
            Cell(str(environment["systemd_version"] or "-")),
            Cell(self.answer["python"]),
            Cell(where(environment)),
            Cell(self.answer["doctor"]["rungs"][-1]["name"]),
            self.limits(),
            self.kill(),
            self.leaks(),
            self.usage(),
            self.namespaces(),
        ]

    def limits(self) -> Cell:
        """yes: the kernel stopped a test at its memory, and refused it a process."""
        watched = [text for text in self.answer["doctor"]["not_enforced"] if ": " in text]
        missing = [name for name in self._missing(LIMITS) if not any(text.startswith(f"{name}:") for text in watched)]
        note = "; ".join([*watched, *without(missing)])
        memory, pids = self._test("test_memory"), self._test("test_pids")
        if memory.get("ended") == "oom" and (pids.get("pids_max_hits") or 0) > 0 and memory["backend"] == "cgroup":
            return Cell("yes", note)
        return Cell("weaker" if memory.get("ended") == "oom" else "no", note)

    def kill(self) -> Cell:
        """yes: a daemon that left its session is dead after its test, by one act of the kernel's."""
        if self.answer["survived"] or not self._test("test_daemon"):
            return Cell("no")
        if self._missing(("kill",)):
            return Cell("weaker", "each process is killed, again until none is left: no `cgroup.kill`")
        return Cell("yes")

    def leaks(self) -> Cell:
        """yes: the daemon was named."""
        return Cell("yes" if [leak["argv"][0] for leak in self._test("test_daemon").get("leaks", ())] else "no")

    def usage(self) -> Cell:
        """yes: every figure is there."""
        figures = self._test("test_usage")
        if not figures:
            return Cell("no")
        missing = [name for name in FIGURES if figures[name] is None]
        return Cell("weaker" if missing else "yes", "; ".join(without(missing)))

    def namespaces(self) -> Cell:
        """yes: a test was alone in a pid namespace with a /proc of its own; and the doctor got the other kinds."""
        missing = self._missing(NAMESPACES)
        note = "; ".join(without(missing))
        if self._test("test_pid_ns"):
            return Cell("yes", note)
        return Cell("no" if "user_ns" in missing and "net_ns" in missing else "weaker", note)

    def _missing(self, names: Iterable[str]) -> list[str]:
        capabilities = self.answer["doctor"]["capabilities"]
        return [name for name in names if not capabilities[name]["offered"]]

    def _test(self, name: str) -> Mapping[str, Any]:
        """The record of a test that ran; {} if it was skipped."""
        record: Mapping[str, Any] = self.answer["tests"].get(name, {})
        return record


def where(environment: Mapping[str, Any]) -> str:
    """Who stands where, as the doctor recognised it."""
    who = "root" if environment["uid"] == 0 else "user"
    return f"{who}, {environment['container'] or environment['session'] or 'no systemd'}"


def without(names: Iterable[str]) -> list[str]:
    return [f"without {listed}"] if (listed := ", ".join(f"`{name}`" for name in names)) else []


def table(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each host, and below it the notes, each once."""
    notes: dict[str, int] = {}

    def shown(cell: Cell) -> str:
        return f"{cell.word} [^{notes.setdefault(cell.note, len(notes) + 1)}]" if cell.note else cell.word

    lines = [line(COLUMNS), line("---" for _ in COLUMNS)]
    lines += [line((f"`{name}`", *map(shown, Found(answer).row()))) for name, answer in answers.items()]
    return "\n".join([*lines, "", *(f"[^{number}]: {note}" for note, number in notes.items())])


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_table(page: Path, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the table between the page's two marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: no place for the table: it has no lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{table(answers)}\n\n{END}{after}", encoding="utf-8")
