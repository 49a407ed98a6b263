"""Results kept between runs: whole, proved, bounded, and given up rather than trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitprune.support import cache

KEY = "0123abcd"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "kind"


def test_what_was_written_is_read(place):
    assert cache.read("kind", KEY) is None
    cache.write("kind", KEY, b"body")
    assert cache.read("kind", KEY) == b"body"
    assert [path.name for path in place.iterdir()] == [KEY]  # nothing is left lying beside it


@pytest.mark.parametrize("at", [0, cache.DIGEST, -1], ids=["hash", "body", "end"])
def test_a_damaged_entry_is_not_used_and_goes(place, at):
    cache.write("kind", KEY, b"body")
    data = bytearray((place / KEY).read_bytes())
    data[at] ^= 1
    (place / KEY).write_bytes(data)
    assert cache.read("kind", KEY) is None
    assert not (place / KEY).exists()


def test_an_entry_under_another_name_is_none(place):
    cache.write("kind", KEY, b"body")
    os.rename(place / KEY, place / "other")
    assert cache.read("kind", "other") is None


def test_a_link_is_not_followed(place, tmp_path):
    cache.write("kind", KEY, b"body")
    os.rename(place / KEY, tmp_path / "elsewhere")
    (place / KEY).symlink_to(tmp_path / "elsewhere")
    assert cache.read("kind", KEY) is None


def test_what_was_used_longest_ago_goes_first(place, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 3 * (cache.DIGEST + 100))
    for number, name in enumerate("abc"):
        cache.write("kind", name, bytes(100))
        os.utime(place / name, (number, number))
    assert cache.read("kind", "a") == bytes(100)  # used now
    cache.write("kind", "d", bytes(100))
    assert sorted(path.name for path in place.iterdir()) == ["a", "c", "d"]


def test_what_is_larger_than_half_of_all_is_not_kept(place, monkeypatch):
    monkeypatch.setattr(cache, "MOST", 100)
    cache.write("kind", KEY, bytes(51))
    assert not place.exists()


def test_off_keeps_nothing(monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, "off")
    cache.write("kind", KEY, b"body")
    assert cache.folder() is None
    assert cache.read("kind", KEY) is None


def test_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "vitprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "vitprune"


def test_a_folder_that_cannot_be_written_is_no_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    cache.write("kind", KEY, b"body")
    assert cache.read("kind", KEY) is None


def test_entries_of_another_user_are_not_used(place, monkeypatch):
    cache.write("kind", KEY, b"body")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache.read("kind", KEY) is None
    cache.write("kind", "new", b"body")
    assert not (place / "new").exists()
