"""Targets whose device may be this machine: without their runtime or GPU nothing is made unless it is asked for."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitprune import backends, cli, console, targets
from vitprune.bundle import Bundle
from vitprune.device import hardware
from vitprune.pipelines import open_bundle
from vitprune.reports.doctor import target_states
from vitprune.support.gpus import Gpu

Here = Callable[..., None]
L4 = Gpu("NVIDIA L4", "89", 23034, False)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Say what this machine has."""
    monkeypatch.setattr(console, "settings", console.Settings())
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    get = backends.get

    def have(missing: str, *gpus: Gpu) -> None:
        backend = SimpleNamespace(missing=lambda: missing, version=lambda: "10.16.2")
        monkeypatch.setattr(backends, "get", lambda name: backend if name == "tensorrt" else get(name))
        monkeypatch.setattr(hardware, "local_gpus", lambda: list(gpus))

    return have


def run(capsys: pytest.CaptureFixture[str], bundle: Bundle, target: str, *more: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(["build-engine", str(bundle.path), "-t", target, "--no-trials", "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def old_engine(bundle: Bundle, target: str) -> Callable[[], bool]:
    """Put an engine into a bundle; returns whether engine and manifest are untouched."""
    folder = bundle.engine_path(target)
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"old")
    bundle.list_engine(target)

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}

    before = contents()
    return lambda: contents() == before


@pytest.mark.parametrize("target", ["desktop", "server"])
@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize(
    ("missing", "gpus", "named"),
    [
        ("TensorRT is not installed", [L4], ["TensorRT is not installed"]),
        ("", [], ["no NVIDIA GPU"]),
        ("TensorRT is not installed", [], ["TensorRT is not installed", "no NVIDIA GPU"]),
    ],
)
def test_refused_with_what_is_missing(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], here: Here, target: str, force: list[str], missing: str,
    gpus: list[Gpu], named: list[str],
) -> None:  # fmt: skip
    here(missing, *gpus)
    untouched = old_engine(bundle, target)
    code, document = run(capsys, bundle, target, *force)
    assert (code, document["error"]["code"]) == (2, "VP212")
    assert all(word in document["error"]["cause"] for word in named)
    assert ("GPU" in document["error"]["cause"]) == (not gpus)
    assert "--remote user@host" in document["error"]["next_step"]
    assert "--package" in document["error"]["next_step"]
    assert untouched()


def test_another_gpu_than_the_targets(bundle: Bundle, capsys: pytest.CaptureFixture[str], here: Here) -> None:
    here("", Gpu("RTX 5090", "120", 32768, False))
    untouched = old_engine(bundle, "server")
    code, document = run(capsys, bundle, "server", "--force")
    assert (code, document["error"]["code"]) == (2, "VP212")
    assert "SM 120" in document["error"]["cause"]
    here("", L4)
    assert run(capsys, bundle, "server", "--force", "--module", "a100-40")[1]["error"]["code"] == "VP212"
    assert untouched()


def test_nothing_lacks(here: Here) -> None:
    here("", L4)
    assert hardware.lacking(targets.load("desktop")) == ""
    assert hardware.lacking(targets.load("server")) == ""
    states = {state["name"]: state for state in target_states()}
    assert states["desktop"]["engine"] is True
    here("")
    states = {state["name"]: state for state in target_states()}
    assert (states["desktop"]["engine"], states["desktop"]["package"]) == (False, True)
    assert "no NVIDIA GPU" in states["desktop"]["reason"]


@pytest.mark.parametrize("target", ["desktop", "server"])
def test_package_on_request_keeps_the_engine(bundle: Bundle, capsys: pytest.CaptureFixture[str], here: Here, target: str) -> None:
    here("TensorRT is not installed")
    old_engine(bundle, target)
    code, document = run(capsys, bundle, target, "--package")
    assert (code, document["error"]["code"]) == (2, "VP106")
    code, document = run(capsys, bundle, target, "--package", "--force")
    assert (code, document["package"]["engine_there"]) == (0, True)
    assert Path(document["package"]["path"]).is_file()
    assert (bundle.engine_path(target) / "model.engine").read_bytes() == b"old"
    assert f"engines/{target}/model.engine" in open_bundle(bundle.path).manifest.files


def test_other_machines_get_their_package_unasked(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("TensorRT is not installed")
    assert run(capsys, bundle, "jetson-orin")[0] == 0
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert run(capsys, bundle, "desktop")[0] == 0, "an x86-64 target, seen from aarch64"


@pytest.mark.parametrize("target", ["rtx", "onnxruntime-cpu"])
def test_no_packages_for_what_is_built_anywhere(bundle: Bundle, capsys: pytest.CaptureFixture[str], target: str) -> None:
    code, document = run(capsys, bundle, target, "--package")
    assert (code, document["error"]["code"]) == (2, "VP199")
    assert document["error"]["message"].startswith("--package")
