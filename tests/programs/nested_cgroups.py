"""Make cgroups in one's own, two deep, and leave a process in the inner one: ``nested_cgroups.py FD DIRECTORY…``."""

import os
import signal
import sys

for directory in sys.argv[2:]:
    os.makedirs(f"{directory}/outer/inner")
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.setsid()
    for directory in sys.argv[2:]:
        with open(f"{directory}/outer/inner/cgroup.procs", "w") as f:
            f.write("0")
    os.write(writer, b"!")
    signal.alarm(120)
    signal.pause()
os.close(writer)
os.read(reader, 1)
os.write(int(sys.argv[1]), f"{pid}\n".encode())
