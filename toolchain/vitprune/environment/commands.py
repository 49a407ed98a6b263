"""Asking programs of the system, without ever failing: a program that is absent or silent is a finding, not an error."""

from __future__ import annotations

import os
import shutil
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
        done = subprocess.run(
            [str(program), *arguments], capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout:g} s"
    except OSError as error:
        return "", error.strerror or str(error)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[0]
        return "", f"exit code {done.returncode}: {said}"
    return done.stdout.strip(), ""


def first_line(program: Path | None, arguments: Sequence[str] = (), timeout: float = 5.0) -> tuple[str, str]:
    """First line of a program that never ends by itself (tegrastats); it is stopped after that line."""
    if program is None:
        return "", "not installed"
    try:
        process = subprocess.Popen(
            [str(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
    except OSError as error:
        return "", error.strerror or str(error)
    line = _read_line(process, timeout)
    process.kill()
    process.communicate()
    return (line, "") if line else ("", f"no line within {timeout:g} s")


def _read_line(process: subprocess.Popen[str], timeout: float) -> str:
    import select

    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    return process.stdout.readline().strip() if ready else ""
