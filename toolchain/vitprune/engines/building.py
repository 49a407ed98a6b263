"""Builders run in a child process: NVIDIA's libraries may abort it, the user may interrupt it, memory may run out.

The child gets the request on stdin and writes one JSON object a line to stdout: {"progress": text}, then {"facts": {...}} or
{"error": {...}}. The engine goes to a temporary file that the parent moves into place. The child imports nothing from the current
folder and does not outlive its parent; see `support.processes`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from vitprune.errors import BuildError, RecipeError, VitpruneError
from vitprune.support.processes import isolated

LONGEST = 30 * 24 * 3600.0


def run_child(request: dict[str, Any], report: Callable[[str], None], timeout: float) -> dict[str, Any]:
    """Build in a child process.

    Args:
        request: backend, model, output, log, batch (min, opt, max), workspace_mib; JSON-ready.
        report: called with progress texts.
        timeout: seconds.

    Returns:
        Facts the backend reports.

    Raises:
        RecipeError: VP192 the timeout is none. BuildError: VP501 timeout, VP502 the child was killed by a signal, VP503 it ended without a result; or its own error.
    """
    require_timeout(timeout)
    process = subprocess.Popen(
        isolated("vitprune.engines.building", "child"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    tail: deque[str] = deque(maxlen=20)
    drain = threading.Thread(target=lambda: tail.extend(line.rstrip() for line in process.stderr or ()), daemon=True)
    drain.start()
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(process)

    timer = threading.Timer(timeout, expire)
    timer.start()
    outcome: dict[str, Any] = {}
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    report(message["progress"]) if "progress" in message else outcome.update(message)
        process.wait()
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        timer.cancel()
        drain.join(timeout=2)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if expired.is_set():
        raise BuildError(
            501, f"the build took longer than {timeout:.0f} s", cause="it was stopped", next_step="--timeout SECONDS"
        )
    return _result(process.returncode, outcome, list(tail))


def require_timeout(seconds: float) -> None:
    """Refuse a time that is none: nan, infinite, not above 0, beyond LONGEST.

    Raises:
        RecipeError: VP192.
    """
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST):
        raise RecipeError(
            192,
            f"a timeout of {seconds:g} seconds is none",
            cause=f"it is above 0 and at most {LONGEST:.0f} (30 days)",
            next_step="--timeout 3600",
        )


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _result(code: int, outcome: dict[str, Any], tail: list[str]) -> dict[str, Any]:
    if "facts" in outcome:
        facts: dict[str, Any] = outcome["facts"]
        return facts
    if "error" in outcome:
        error = outcome["error"]
        raise BuildError(int(error["code"][2:]), error["message"], cause=error["cause"], next_step=error["next_step"])
    last = tail[-1] if tail else "it printed nothing"
    if code < 0:
        name = signal.Signals(-code).name
        hint = (
            "memory may have run out: lower --workspace or the batch, or close other programs"
            if name == "SIGKILL"
            else "see build.log"
        )
        raise BuildError(502, f"the builder was killed by {name}", cause=f"last line: {last}", next_step=hint)
    raise BuildError(
        503,
        f"the builder ended with exit code {code} and no result",
        cause=f"last line: {last}",
        next_step="run again with --debug",
    )


def child() -> int:
    """Entry of the child: read the request from stdin, build, report on stdout."""
    from vitprune import backends

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print go to stderr; stdout carries only our messages

    def report(text: str) -> None:
        out.write(json.dumps({"progress": text}) + "\n")

    request = json.loads(sys.stdin.read())
    try:
        facts = backends.get(request["backend"]).build(request, report)
        out.write(json.dumps({"facts": facts}) + "\n")
        return 0
    except VitpruneError as error:
        number = error.code if error.code.startswith("VP5") else "VP504"
        out.write(json.dumps({"error": {**error.document(), "code": number}}) + "\n")
    except MemoryError:
        out.write(
            json.dumps(
                {
                    "error": {
                        "code": "VP505",
                        "message": "the build ran out of memory",
                        "cause": "",
                        "next_step": "lower --workspace or the batch",
                    }
                }
            )
            + "\n"
        )
    except OSError as error:
        out.write(
            json.dumps(
                {
                    "error": {
                        "code": "VP506",
                        "message": "the builder cannot write its result",
                        "cause": str(error),
                        "next_step": "free some space",
                    }
                }
            )
            + "\n"
        )
    except Exception as error:
        traceback.print_exc()
        out.write(
            json.dumps(
                {
                    "error": {
                        "code": "VP504",
                        "message": f"the builder failed: {type(error).__name__}",
                        "cause": str(error).split(chr(10))[0],
                        "next_step": "run again with --debug",
                    }
                }
            )
            + "\n"
        )
    return 2
