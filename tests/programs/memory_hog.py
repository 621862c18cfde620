"""Take memory and touch it: ``memory_hog.py MEGABYTES [FD]``; then a byte to FD, where there is one, and stay."""

import os
import signal
import sys

signal.alarm(60)
with open("/proc/self/oom_score_adj", "w") as f:
    f.write("1000")  # where the kernel chooses a victim, it is this one
held = [bytearray(os.urandom(1)) * (1 << 20) for _ in range(int(sys.argv[1]))]
if len(sys.argv) > 2:
    os.write(int(sys.argv[2]), b"!")
    signal.pause()
