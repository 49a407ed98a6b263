"""Pieces of work on the runtime's threads: what one throws comes out where the work was asked for, never through the runtime."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_nothing_is_thrown_through_the_runtime(ort_library: Path) -> None:
    done = subprocess.run([ort_library.with_name("pool_driver")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "no memory: bad_alloc, 6 whole",
        "exception: planted, 6 whole",
        "refused: status, 6 whole",
        "none: 8 whole",
    ]
