"""A fork bomb: ``fork_bomb.py MOST FD``. MOST processes at once, or, with 0, as many as the kernel gives.

Every process forks as long as it can, also in place of what has died, and tells FD with one byte that it was born and
with another one, ``!``, when a fork was refused. Each ends by itself after a minute.
"""

import os
import signal
import sys
import time


def main(most: int, fd: int) -> None:
    tokens, supply = os.pipe()
    os.set_blocking(tokens, False)
    os.write(supply, b"." * max(0, most - 1))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(60)
    os.write(fd, b".")
    refused = False
    while True:
        try:
            if most and not os.read(tokens, 1):
                break
            if os.fork() == 0:
                signal.alarm(60)
                refused = False
                os.write(fd, b".")
        except BlockingIOError:
            if most:  # no token left, or no process
                signal.pause()
            if not refused:
                refused = True
                os.write(fd, b"!")
            time.sleep(0.005)  # a bomb that leaves the machine to its neighbours


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
