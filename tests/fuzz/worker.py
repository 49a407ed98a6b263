"""One case in a forked child of a process that has the packages loaded: memory and time are limited, everything is recorded."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60
ADDRESSES = 10 << 30
MEMORY = 4 << 30


@dataclass(frozen=True)
class Outcome:
    """exit: the code, -signal, or "hang". code: VP code or "". memory: peak bytes. seconds: wall clock. said: the output's end."""

    exit: int | str
    code: str
    traceback: bool
    memory: int
    seconds: float
    said: str


def warm() -> None:
    """Load what the commands import, so that each child starts with it."""
    import onnx  # noqa: F401
    import onnx_graphsurgeon  # noqa: F401
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401
    import torch  # noqa: F401
    import torchvision.datasets  # noqa: F401

    import vitprune.pipelines.calibrate  # noqa: F401
    from vitprune import cli

    cli._register_once()


def run(arguments: list[str], place: Path, seconds: float = SECONDS) -> Outcome:
    """Run the command line in a fork, in place/work, with home and temporary folders of its own; `seconds` without waiting for a core."""
    began = time.monotonic()
    output = place / "output.txt"
    child = os.fork()
    if child == 0:
        _child(arguments, place, output)
    status, usage = _wait(child, began + seconds)
    text = output.read_text(errors="replace") if output.exists() else ""
    ended: int | str = "hang" if status is None else os.waitstatus_to_exitcode(status)
    code = ""
    for line in text.splitlines():
        if line.startswith("{") or '"code":' not in line:
            continue
        code = line.split('"')[3]
    trace = "Traceback (most recent call last)" in text
    return Outcome(ended, code, trace, usage, round(time.monotonic() - began, 2), text[-1500:])


def starved(child: int) -> float:
    """Seconds for which a process was ready and no core was free for it: a busy machine is no hang."""
    try:
        return int(Path(f"/proc/{child}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _wait(child: int, until: float) -> tuple[int | None, int]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage.ru_maxrss * 1024
        if time.monotonic() > until and time.monotonic() > until + starved(child):
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return None, usage.ru_maxrss * 1024
        time.sleep(0.005)


def _child(arguments: list[str], place: Path, output: Path) -> None:
    code = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        handle = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(place / "work")
        os.environ |= {
            "HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "home" / "cache"), "TMPDIR": str(place / "tmp"),
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        import tempfile

        tempfile.tempdir = None
        from rich.console import Console

        from vitprune import cli, console

        console.settings.console = Console(stderr=True, highlight=False, width=300)
        code = cli.run([*arguments, "--json"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def document(outcome: Outcome) -> dict[str, object]:
    """JSON-ready."""
    return json.loads(json.dumps(vars(outcome)))
