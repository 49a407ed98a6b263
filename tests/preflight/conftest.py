from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vitprune

RECIPE = {"prune": {"method": "ats", "stages": [1, 2], "num_samples": 20}}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10
    )
    path: Path = tmp_path_factory.mktemp("preflight") / "bundle"
    vitprune.export(module, vitprune.Recipe.load(RECIPE), path)
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> vitprune.Bundle:
    """A bundle that a test may change."""
    return vitprune.open_bundle(shutil.copytree(exported, tmp_path / "bundle"))
