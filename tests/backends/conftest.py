from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

import vitprune
from vitprune.support.gpus import Gpu

RECIPE = {"prune": {"method": "ats", "stages": [1, 2], "num_samples": 20}, "graph": {"batch": "2:4:6"}}


def small_vit() -> Any:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tensorrt") / "bundle"
    vitprune.export(small_vit(), vitprune.Recipe.load(RECIPE), path)
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> vitprune.Bundle:
    """A bundle that a test may change."""
    return vitprune.open_bundle(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def merging_bundle(tmp_path: Path) -> vitprune.Bundle:
    """One whose sites merge tokens."""
    rules = vitprune.Recipe.load({"prune": {"method": "tome", "r": 2}, "graph": {"batch": "1:4:8"}})
    vitprune.export(small_vit(), rules, tmp_path / "merging")
    return vitprune.open_bundle(tmp_path / "merging")


@pytest.fixture
def orin() -> Gpu:
    return Gpu("Orin", "87", 8192, True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, orin: Gpu) -> Callable[[str], Any]:
    """Install the fake module in a version, on a machine with one Orin GPU and 6 GiB free."""
    from vitprune.backends import tensorrt as backend
    from vitprune.backends._tensorrt import session

    def install(version: str) -> Any:
        module = fake_tensorrt.module(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        for where in (backend, session):
            monkeypatch.setattr(where, "local_gpus", lambda: [orin])
        monkeypatch.setattr(backend, "free_memory", lambda: 6 << 30)
        monkeypatch.setattr(session, "device_memory", fake_tensorrt.HostMemory)
        return module

    return install
