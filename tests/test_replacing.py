"""A folder takes another's place: in one step, or with the old one coming back when that fails."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from vitprune.support import replacing
from vitprune.support.replacing import replace_folder, replaced


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.fixture(params=["one step", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(replacing, "_swapped", lambda one, other: False)
    return str(request.param)


def test_new_takes_the_place(way: str, tmp_path: Path) -> None:
    replace_folder(folder(tmp_path / ".new", "new"), folder(tmp_path / "place", "old"))
    assert (tmp_path / "place" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_failure_afterwards_brings_the_old_back(way: str, tmp_path: Path) -> None:
    new, place = folder(tmp_path / ".new", "new"), folder(tmp_path / "place", "old")
    with pytest.raises(KeyboardInterrupt), replaced(new, place):
        assert (place / "file").read_text() == "new"
        raise KeyboardInterrupt
    assert ((place / "file").read_text(), (new / "file").read_text()) == ("old", "new")
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_there_before(way: str, tmp_path: Path) -> None:
    new, place = folder(tmp_path / ".new", "new"), tmp_path / "place"
    with pytest.raises(ValueError, match="no"), replaced(new, place):
        raise ValueError("no")
    assert not place.exists()
    replace_folder(new, place)
    assert (place / "file").read_text() == "new"


def test_second_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, place = folder(tmp_path / ".new", "new"), folder(tmp_path / "place", "old")
    rename = os.rename

    def fails(one: Path, other: Path) -> None:
        if one == new:
            raise OSError(5, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(replacing, "_swapped", lambda one, other: False)
    monkeypatch.setattr(replacing.os, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        replace_folder(new, place)
    assert (place / "file").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange in one step is Linux's")
def test_there_is_a_folder_at_any_moment(tmp_path: Path) -> None:
    place = folder(tmp_path / "place", "0")
    if not replacing._swapped(folder(tmp_path / "probe", "p"), place):
        pytest.skip("this file system does not exchange folders")
    stop, missing, looks = threading.Event(), [], []

    def look() -> None:
        while not stop.is_set():
            looks.append(1)
            if not place.is_dir():
                missing.append(1)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for number in range(300):
            replace_folder(folder(tmp_path / f".{number}", str(number)), place)
    finally:
        stop.set()
        looker.join()
    assert len(looks) > 300
    assert not missing
