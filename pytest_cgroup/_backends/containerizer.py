"""An outside program that limits containers and measures them, for the backend ``exec:PROGRAM``.

Theory of operation. That nothing of a container survives is the business of the process backend, which needs nobody's
help for it. What that can't give, limits and the numbers of a whole tree, an outside program may: a batch system's, or
one that root has given more rights. As in Mesos' external containerizer it is run once for each thing that is asked of
it, and reads one message and writes another: ``PROGRAM VERB``, a JSON object on stdin, a JSON object on stdout. See
docs/reference/containerizer.md.

The process above a container is taken in before that forks its first, so whatever there is in the container was born in
what the program made: `Gate`.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from .._cgroup import PREFIX
from .._isolated import json, os, subprocess
from .._outcome import Usage
from .._ownership import named_owner, session_name, this_process
from .._trace import trace
from ..exceptions import ContainerError, NotOffered

if TYPE_CHECKING:
    from .._spec import Spec

#: what a program can offer: the fields that the process backend does not have, or has weaker
OFFERS = (
    *("memory", "swap", "memory_high", "oom_group", "pids"),
    *("cpu", "cpu_weight", "cpuset", "io", "io_weight", "controls"),
)
_ANSWER_SECONDS = 30.0
_MOST_SAID = 1000
_TAKEN_IN = b"!"
_NUMBERS = frozenset(field.name for field in dataclasses.fields(Usage)) - {"wall_seconds"}
_REMEDY = 'the page "Containerizer" of the reference says what it is asked, and how it has to answer'


class Containerizer:
    """The program. What dead runs of pytest left with it is ended.

    Args:
        command: the program, with arguments if it takes some, as a shell would read it.

    Raises:
        NotOffered: it can't be run, or does not say what it offers.

    Attributes:
        offers: the fields that it takes.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        try:
            self._argv = shlex.split(command)
            self.offers = frozenset(map(str, self.ask("offers", {})["fields"])) & {*OFFERS}
            for name in self.ask("containers", {})["ids"]:
                if _is_dead(str(name)):
                    self.ask("destroy", {"id": str(name)})
        except ContainerError as error:
            raise NotOffered(f"--cgroup-backend=exec:{command}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            why = f"it says nothing of {error}" if isinstance(error, KeyError) else str(error)
            raise NotOffered(f"--cgroup-backend=exec:{command}: {why}", remedy=_REMEDY) from error

    def __str__(self) -> str:
        return f"{self.command!r} for {', '.join(name for name in OFFERS if name in self.offers) or 'nothing'}"

    def launch(self, spec: Spec, name: str) -> Held:
        """A container, empty, with those limits of *spec* that the program takes.

        Raises:
            ContainerError: it refused.
        """
        return Held(self, f"{session_name(this_process())}.{name}", spec)

    def fields(self, spec: Spec) -> dict[str, Any]:
        """Those of *spec* that are asked for, and that the program takes."""
        asked = spec.to_json()
        return {name: asked[name] for name in OFFERS if name in self.offers and asked[name] not in (None, {})}

    def ask(self, verb: str, message: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            ContainerError: it can't be run, failed, took too long, or did not answer in JSON.
        """
        trace("containerizer: %s %s", verb, message)
        what = f"the containerizer {self.command!r} "
        try:
            done = subprocess.run(
                [*self._argv, verb],
                input=json.dumps(message).encode(),
                capture_output=True,
                timeout=_ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            what += f"gave no answer in {_ANSWER_SECONDS:.0f} s"
            raise ContainerError(what, operation=verb, remedy=_REMEDY) from error
        except OSError as error:
            raise ContainerError(what + "can't be run", operation=verb, errno=error.errno, remedy=_REMEDY) from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-_MOST_SAID:]
            raise ContainerError(what + f"failed: {said or done.returncode}", operation=verb, remedy=_REMEDY)
        try:
            answer = json.loads(done.stdout or b"{}")
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ContainerError(what + "did not answer with a JSON object", operation=verb, remedy=_REMEDY)
        return answer


class Held:
    """One container of the program's.

    Attributes:
        offers: the fields that the program takes.
        limits: those in force, as it says.
    """

    def __init__(self, program: Containerizer, name: str, spec: Spec) -> None:
        self._program = program
        self.offers = program.offers
        self._message = {"id": name}
        self.limits: dict[str, str] = {}
        self._take_limits(program.ask("launch", {**self._message, "fields": program.fields(spec)}))
        self._gate = Gate()

    def _take_limits(self, answer: dict[str, Any]) -> None:
        if isinstance(limits := answer.get("limits"), dict):
            self.limits.update((str(name), str(value)) for name, value in limits.items())

    def wait(self) -> None:
        """In a process above the container: until the program has taken it in.

        Raises:
            ContainerError: it has not.
        """
        self._gate.wait()

    def take_in(self, pid: int, *, waits: bool = True) -> None:
        """Have the program take in *pid*, and what that starts from now on. Who *waits* there is told what came of it.

        Raises:
            ContainerError: the program refused, of one that does not wait.
        """
        refused = "pytest was interrupted"
        try:
            self._program.ask("join", {**self._message, "pid": pid})
            refused = ""
        except ContainerError as error:
            if not waits:
                raise
            refused = str(error)
        finally:
            if waits:
                self._gate.open(refused)
                self._gate = Gate()  # the next one's: this one may have ended, and not have read

    def update(self, spec: Spec) -> None:
        """Set the limits of *spec*, and no other."""
        self._take_limits(self._program.ask("update", {**self._message, "fields": self._program.fields(spec)}))

    def usage(self) -> dict[str, Any]:
        """The numbers that it knows, by the names that `Usage` has; that it fails at that ends nothing."""
        try:
            answer = self._program.ask("usage", self._message)
        except ContainerError as error:
            trace("containerizer: %s", error)
            return {}
        numbers = {name: answer[name] for name in _NUMBERS & answer.keys()}
        return {name: number for name, number in numbers.items() if type(number) in (int, float) and number >= 0}

    def destroy(self) -> None:
        """It is over.

        Raises:
            ContainerError: the program failed at it.
        """
        self._gate.close()
        self._program.ask("destroy", self._message)


class Gate:
    """Where one process waits for what its parent says; made before it is forked."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def wait(self) -> None:
        """In the process.

        Raises:
            ContainerError: it is refused, for the reason that is given.
        """
        os.close(self._writer)
        said = os.read(self._reader, 4096)
        os.close(self._reader)
        if said != _TAKEN_IN:
            raise ContainerError(said.decode(errors="replace") or "pytest has ended", operation="join")

    def open(self, refused: str = "") -> None:
        """In its parent, once."""
        os.write(self._writer, refused.encode(errors="replace")[:4096] or _TAKEN_IN)
        self.close()

    def close(self) -> None:
        """In its parent, where nobody waits."""
        os.close(self._reader)
        os.close(self._writer)


def _is_dead(name: str) -> bool:
    session, _, rest = name.partition(".")
    owner = named_owner(session) if rest and session.startswith(PREFIX) else None
    return owner is not None and bool(owner.is_dead)
