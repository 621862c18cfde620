"""Serves TCP connections at a port: a line of what it is to do, and what comes of that.

``echo``: what it is sent, as it comes. ``hash``: after the client has ended its way, the SHA-256 of what it sent.
``flood N``: N bytes; it ends its own way first, and then tells on stdout how much it was sent. ``name``: its argument.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading

PIECE = 65536


def serve(connection: socket.socket, name: str) -> None:
    """One connection."""
    with connection, connection.makefile("rb") as stream:
        word, *rest = stream.readline().split()
        if word == b"name":
            connection.sendall(name.encode())
        elif word == b"echo":
            while piece := stream.read1(PIECE):
                connection.sendall(piece)
        elif word == b"hash":
            digest = hashlib.sha256()
            while piece := stream.read1(PIECE):
                digest.update(piece)
            connection.sendall(digest.hexdigest().encode())
        elif word == b"flood":
            connection.sendall(b"x" * int(rest[0]))
            connection.shutdown(socket.SHUT_WR)
            count = 0
            while piece := stream.read1(PIECE):
                count += len(piece)
            sys.stdout.write(f"{count}\n")
            sys.stdout.flush()


def main(address: str, port: int, name: str) -> None:
    """Say that it listens, and serve for ever."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, name), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
