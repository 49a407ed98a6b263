"""Asking programs of the system, without ever failing: a program that is absent or silent is a finding, not an error."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

SYSTEM_FOLDERS = ("usr/local/bin", "usr/bin", "bin", "usr/sbin", "sbin", "usr/local/cuda/bin", "usr/src/tensorrt/bin")


def find_program(name: str, root: Path = Path("/")) -> Path | None:
    """A program on PATH, else in the system's usual folders below `root`; PATH counts only for the real root."""
    if root == Path("/") and (found := shutil.which(name)):
        return Path(found)
    return next((file for folder in SYSTEM_FOLDERS if os.access(file := root / folder / name, os.X_OK) and file.is_file()), None)


def output_of(program: Path | None, arguments: Sequence[str] = (), timeout: float = 10.0) -> tuple[str, str]:
    """Run a program; returns (its stdout, "") or ("", why there is none)."""
    if program is None:
        return "", "not installed"
    try:
        process = _started(program, arguments)
    except OSError as error:
        return "", error.strerror or str(error)
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout:g} s"
    finally:
        _end(process)
    if process.returncode:
        reason = (complaint.strip() or output.strip() or "it said nothing").splitlines()[0]
        return "", f"exit code {process.returncode}: {reason}"
    return output.strip(), ""


def first_line(program: Path | None, arguments: Sequence[str] = (), timeout: float = 5.0) -> tuple[str, str]:
    """First line of a program that never ends by itself (tegrastats); it is stopped after that line."""
    if program is None:
        return "", "not installed"
    try:
        process = _started(program, arguments)
    except OSError as error:
        return "", error.strerror or str(error)
    try:
        line = _read_line(process, timeout)
    finally:
        _end(process)
    return (line, "") if line else ("", f"no line within {timeout:g} s")


def _started(program: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The program in a session of its own, so that helpers it starts end with it."""
    return subprocess.Popen(
        [str(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _read_line(process: subprocess.Popen[str], timeout: float) -> str:
    import select

    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    return process.stdout.readline().strip() if ready else ""
