"""What a spec asks of a cgroup, as the kernel's files take it."""

from __future__ import annotations

import contextlib
import errno
import stat
from typing import TYPE_CHECKING

from .._isolated import io, os
from ..exceptions import ContainerError

if TYPE_CHECKING:
    from .._spec import Spec

#: the period of cpu.max that cores are turned into, in microseconds: the kernel's own default
_PERIOD_USEC = 100_000


def limits_of(spec: Spec, *, swap: bool) -> list[tuple[str, str]]:
    """What to write for each field, in the order that the kernel wants: v1's memory.memsw counts from memory.max."""
    found: list[tuple[str, str]] = []
    if spec.memory is not None:
        found.append(("memory", str(spec.memory)))
    if swap or spec.swap:
        found.append(("swap", str(spec.swap or 0)))
    if spec.memory_high is not None:
        found.append(("memory_high", str(spec.memory_high)))
    if spec.oom_group:
        found.append(("oom_group", "1"))
    if spec.pids is not None:
        found.append(("pids", str(spec.pids)))
    if spec.cpu is not None:
        found.append(("cpu", f"{round(spec.cpu * _PERIOD_USEC)} {_PERIOD_USEC}"))
    if spec.cpu_weight is not None:
        found.append(("cpu_weight", str(spec.cpu_weight)))
    if spec.cpuset is not None:
        found.append(("cpuset", spec.cpuset))
    for device, limits in dict(spec.io or {}).items():
        words = " ".join(f"{key}={value}" for key, value in dict(limits).items())
        found.append(("io", f"{device_number(device)} {words}"))
    if spec.io_weight is not None:
        found.append(("io_weight", f"default {spec.io_weight}"))
    return found


def is_as_asked(asked: str, in_force: str) -> bool:
    """Equal, or rounded to a page as the kernel does with sizes."""
    if asked == in_force:
        return True
    with contextlib.suppress(ValueError):
        return abs(int(asked) - int(in_force)) < os.sysconf("SC_PAGE_SIZE")
    return False


def device_number(device: str) -> str:
    """``"/dev/vda1"`` -> ``"254:0"``: the number of the whole disk, which is what io.max takes.

    Raises:
        ContainerError: there is no such block device.
    """
    if not device.startswith("/"):
        return device
    try:
        status = os.stat(device)
        if not stat.S_ISBLK(status.st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), device)
    except OSError as error:
        raise ContainerError(
            "io: not a block device",
            path=device,
            operation="stat",
            errno=error.errno,
            remedy="name a disk of `lsblk`, as /dev/NAME or MAJOR:MINOR",
        ) from error
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    with contextlib.suppress(OSError), io.open(f"/sys/dev/block/{number}/../dev", encoding="ascii") as whole:
        return whole.read().strip()  # it is a partition
    return number


def is_size(field: str, value: str) -> bool:
    """Whether *value*, in force for *field*, is a number of bytes."""
    return field in ("memory", "swap", "memory_high") and value.isdecimal()
