"""ssh's ProxyCommand of the tests: passes bytes on, stalls after some when told to, and notes how many went out.

Usage: device_relay.py HOST PORT STALL SENT. The file STALL, when there, holds the number of bytes after which nothing goes out any
more. SENT gets one line for each connection: bytes sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # ssh sends it on its way out; both ends close then, and the note is yet to be made
    host, port, stall, sent = sys.argv[1:5]
    limit = int(Path(stall).read_text()) if Path(stall).exists() else None
    line = socket.create_connection((host, int(port)))
    out = Outward(Path(sent))
    threading.Thread(target=inward, args=(line, out), daemon=True).start()
    while piece := os.read(0, 1 << 14):
        out.total += len(piece)
        if limit is not None and out.total > limit:
            parent, ends = os.getppid(), time.monotonic() + 30
            while os.getppid() == parent and time.monotonic() < ends:
                time.sleep(0.2)
            os._exit(1)
        line.sendall(piece)
    out.note()
    with contextlib.suppress(OSError):  # the server may have closed before
        line.shutdown(socket.SHUT_WR)


class Outward:
    """What went out; noted once, by whichever side ends first."""

    def __init__(self, log: Path) -> None:
        self.total, self._log, self._lock = 0, log, threading.Lock()

    def note(self) -> None:
        with self._lock:
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(f"{self.total}\n")
            self._log = None


def inward(line: socket.socket, out: Outward) -> None:
    while piece := line.recv(1 << 16):
        os.write(1, piece)
    out.note()
    os._exit(0)


main()
