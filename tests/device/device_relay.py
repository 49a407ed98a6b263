"""ssh's ProxyCommand of the tests: passes bytes on, stalls after some when told to, and notes how many went out.

Usage: device_relay.py HOST PORT STALL SENT. The file STALL, when there, holds the number of bytes after which nothing goes out any
more. SENT gets one line for each connection: bytes sent.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    host, port, stall, sent = sys.argv[1:5]
    limit = int(Path(stall).read_text()) if Path(stall).exists() else None
    line = socket.create_connection((host, int(port)))
    threading.Thread(target=inward, args=(line,), daemon=True).start()
    total = 0
    while piece := os.read(0, 1 << 14):
        total += len(piece)
        if limit is not None and total > limit:
            parent, ends = os.getppid(), time.monotonic() + 30
            while os.getppid() == parent and time.monotonic() < ends:
                time.sleep(0.2)
            os._exit(1)
        line.sendall(piece)
    line.shutdown(socket.SHUT_WR)
    with open(sent, "a") as log:
        log.write(f"{total}\n")


def inward(line: socket.socket) -> None:
    while piece := line.recv(1 << 16):
        os.write(1, piece)
    os._exit(0)


main()
