"""Files and folders under way: nested in one another, swept when their process is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitprune.support import temporary
from vitprune.support.locking import hold


@pytest.mark.timeout(20)  # it hung once
@pytest.mark.parametrize("make", [temporary.file, temporary.folder])
def test_one_under_way_holds_another(tmp_path: Path, make) -> None:
    """A package is written as a file under way inside a folder under way: the second does not wait for the first."""
    with temporary.folder(tmp_path / "engines") as outer, make(outer / "part") as inner:
        assert inner.exists()
        temporary.sweep(outer)
        assert inner.exists()
        assert hold(outer) is None
    assert not list(tmp_path.iterdir())


def test_what_a_dead_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / f".engines.0123{temporary.SUFFIX}"
    left.mkdir()
    (left / "half").write_text("written")
    with temporary.folder(tmp_path / "engines"):
        assert not left.exists()
