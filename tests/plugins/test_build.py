"""Finding tools, building and caching."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitprune.ops.token_sample import Attributes
from vitprune.plugins import BuildReport, PluginError, build, built, cache_folder, find_sources, load
from vitprune.plugins.sources import source_digest
from vitprune.plugins.toolchain import find_toolchain


def test_report_says_what_is_in_the_library(report: BuildReport) -> None:
    loaded = load(report.library)
    parts = {"cuda": report.nvcc, "tensorrt": report.tensorrt, "onnxruntime": report.onnxruntime_api}
    assert loaded.features == tuple(name for name, version in parts.items() if version)
    info = loaded.build_info
    for field in ("version", "compiler", "nvcc", "tensorrt", "onnxruntime_api"):
        assert info[field] == getattr(report, field)
    assert bool(report.architectures) == bool(report.nvcc)


def test_second_build_comes_from_the_cache(report: BuildReport) -> None:
    again = build(architectures=report.architectures, tests=True, cache=report.library.parent.parent)
    assert again == dataclasses.replace(report, cached=True)
    assert [folder for folder in report.library.parent.parent.iterdir() if folder.name.startswith("building-")] == []


def test_host_only_library(report: BuildReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_INCLUDE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert built() is None
    host = build(cuda=False)
    assert built() == dataclasses.replace(host, cached=True)
    assert (host.cached, host.nvcc, host.architectures, host.tensorrt) == (False, "", (), "")
    library = load(host.library)
    assert "cuda" not in library.features
    assert library.max_count(Attributes("threshold", capacity=3), 10) == 3
    assert host.library.parent.name != report.library.parent.name


def test_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one", encoding="utf-8")
    first = source_digest(tmp_path)
    (tmp_path / "notes.md").write_text("not a source", encoding="utf-8")
    assert source_digest(tmp_path) == first
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    second = source_digest(tmp_path)
    (tmp_path / "b.h").write_text("two", encoding="utf-8")
    assert len({first, second, source_digest(tmp_path)}) == 3


def test_sources_are_found() -> None:
    assert (find_sources() / "include" / "vitprune_plugin.h").is_file()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vitprune" / "plugins"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/vitprune/plugins")


def test_missing_tools_and_headers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="NvInfer.h") as caught:
        find_toolchain(tensorrt_include=tmp_path)
    assert caught.value.code == "VP602"
    monkeypatch.setenv("ORT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(PluginError, match=r"onnxruntime_c_api\.h"):
        find_toolchain()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PluginError, match="cmake") as caught:
        find_toolchain(cuda=False)
    assert caught.value.code == "VP601"


def test_failing_compiler_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho out of coffee >&2\nexit 1\n', encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(PluginError, match="out of coffee") as caught:
        build(cuda=False, cache=tmp_path / "cache")
    assert caught.value.code == "VP604"
    assert caught.value.next_step
    assert list((tmp_path / "cache").iterdir()) == []


def test_not_a_library(tmp_path: Path) -> None:
    text = tmp_path / "libvitprune_plugin.so"
    text.write_text("no", encoding="utf-8")
    with pytest.raises(PluginError, match="cannot be loaded") as caught:
        load(text)
    assert caught.value.code == "VP605"


def test_library_of_another_interface(tmp_path: Path) -> None:
    source, path = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int vp_abi_version(void) { return 99; }", encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    with pytest.raises(PluginError, match="interface 99") as caught:
        load(path)
    assert caught.value.code == "VP606"


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone", "info"])
def test_a_damaged_build_is_built_again(tmp_path, monkeypatch, damage):
    """What the cache holds counts only as it was made."""
    building = sys.modules["vitprune.plugins.build"]
    made = []

    def compile_(sources, work, tools, options, jobs):
        made.append(1)
        stage = work / "stage"
        stage.mkdir()
        (stage / building.LIBRARY).write_bytes(b"library")
        info = {"version": "1", "compiler": "c", "nvcc": "", "architectures": "", "tensorrt": "", "onnxruntime_api": ""}
        (stage / "build_info.json").write_text(json.dumps(info))
        building._note(stage)
        return stage

    monkeypatch.setattr(building, "_compile", compile_)
    library = building.build(cache=tmp_path, cuda=False).library
    assert building.build(cache=tmp_path, cuda=False).cached
    assert len(made) == 1
    if damage == "changed":
        library.write_bytes(b"librarx")
    elif damage == "cut off":
        library.write_bytes(b"")
    elif damage == "gone":
        library.unlink()
    else:
        (library.parent / "build_info.json").write_text("{}")
    again = building.build(cache=tmp_path, cuda=False)
    assert (again.cached, again.library.read_bytes(), len(made)) == (False, b"library", 2)
    assert [path.name for path in tmp_path.iterdir()] == [library.parent.name]
