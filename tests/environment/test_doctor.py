"""vitprune doctor and vitprune plugins, through the command line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from environment_trees import plant, program

from vitprune import cli, console
from vitprune.environment.packages import version
from vitprune.environment.report import environment, tensorrt_headers
from vitprune.plugins import cache_folder


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")  # read when a console is made; long names are not to be wrapped
    monkeypatch.setattr(console, "settings", console.Settings())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = cli.run([*arguments, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


@pytest.mark.parametrize("name", ["orin-nano", "agx-orin", "agx-thor"])
def test_on_a_jetson(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root = plant(tmp_path / "root", name)
    code, document, shown = run(capsys, "doctor", "--root", str(root))
    assert code == 0
    assert document["jetson"]["model"] in shown
    assert document["power_mode"] in shown
    assert f"JetPack {document['jetson']['jetpack']}" in shown


def test_on_any_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, document, _ = run(capsys, "doctor", "--root", str(tmp_path))
    assert (code, document["jetson"], document["gpus"]) == (0, None, [])
    assert document["packages"]["numpy"] == version("numpy")
    assert document["python"]["executable"] == sys.executable
    states = {state["name"]: state for state in document["targets"]}
    assert states["onnxruntime-cpu"]["engine"] is True
    assert states["jetson-orin"]["engine"] is False
    assert states["jetson-orin"]["package"] is True
    assert all(state["engine"] or state["reason"] for state in states.values())
    assert document["plugin"]["built"] == []


def test_gpus_and_headers_below_a_root(tmp_path: Path) -> None:
    program(tmp_path, "usr/bin/nvidia-smi", 'echo "NVIDIA L4, 8.9, 570.1, 23034 MiB"')
    folder = tmp_path / "usr" / "include"
    folder.mkdir()
    (folder / "NvInfer.h").write_text("")
    (folder / "NvInferVersion.h").write_text(
        "#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n"
    )
    found = environment(tmp_path)
    assert found["gpus"] == [{"name": "NVIDIA L4", "compute_cap": "8.9", "driver_version": "570.1", "memory.total": "23034 MiB"}]
    assert tensorrt_headers(tmp_path) == {"folder": str(folder), "version": "10.3.0"}


def test_versions_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systempackage.py").write_text('raise SystemExit("imported")\n__version__ = "10.3.0"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version("systempackage") == "10.3.0"
    assert version("no_such_package") is None


def test_plugins_info_before_any_build(capsys: pytest.CaptureFixture[str]) -> None:
    code, document, shown = run(capsys, "plugins", "info")
    assert (code, document["libraries"]) == (0, [])
    assert "no library is built yet" in shown
    assert Path(document["sources"], "CMakeLists.txt").is_file()


def test_plugins_info_names_a_library_that_cannot_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    broken = cache_folder() / "abc" / "libvitprune_plugin.so"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    code, document, _ = run(capsys, "plugins", "info")
    assert code == 0
    assert "VP605" in document["libraries"][0]["error"]


def test_plugins_build_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs cmake and a C++ compiler")
    code, document, _ = run(capsys, "plugins", "build", "--no-cuda")
    assert (code, document["build"]["cached"], document["build"]["nvcc"]) == (0, False, "")
    assert Path(document["build"]["library"]).is_file()
    assert run(capsys, "plugins", "build", "--no-cuda")[1]["build"]["cached"] is True
    assert run(capsys, "plugins", "info")[1]["libraries"][0]["library"] == document["build"]["library"]


def test_plugins_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, document, _ = run(capsys, "plugins", "build", "--nvcc", str(tmp_path / "nvcc"))
    assert (code, document["error"]["code"]) == (2, "VP243")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, document, _ = run(capsys, "plugins", "build", "--no-cuda")
    assert (code, document["error"]["code"]) == (2, "VP243")
    assert "VP601" in document["error"]["message"]
    code, document, _ = run(capsys, "plugins", "info")
    assert (code, document["reason"][:5]) == (0, "VP601")
    assert run(capsys, "plugins", "tidy")[0] == 2
