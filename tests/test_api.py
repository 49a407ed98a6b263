"""The Python API on a model of the user's own: a VisionTransformer that timm's registry knows nothing about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitprune

PRUNE = {"prune": {"method": "ats", "stages": [1, 2], "num_samples": 30}}


@pytest.fixture(scope="module")
def own() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=64, patch_size=8, in_chans=1, embed_dim=64, depth=4, num_heads=4, num_classes=7)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 1, 64, 64)).astype(np.float32)


def test_reference_export_and_run_agree(own: VisionTransformer, images: np.ndarray, tmp_path: Path) -> None:
    recipe = vitprune.Recipe.load(PRUNE)
    oracle = vitprune.reference(own, recipe)
    with torch.no_grad():
        logits = oracle(torch.from_numpy(images))
    made = vitprune.export(own, recipe, tmp_path / "out")
    assert made.manifest.preprocessing["input_size"] == [1, 64, 64]
    result = vitprune.open_bundle(tmp_path / "out").run(images, backend="onnxruntime")
    np.testing.assert_allclose(result.logits, logits.numpy(), atol=1e-5)
    assert len(result.kept) == len(oracle.kept) == 2
    for ours, theirs in zip(result.kept, oracle.kept, strict=True):
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, theirs.numpy())
        for row in ours:
            real = row[row >= 0]
            assert (np.diff(real) > 0).all()
            assert (row[len(real) :] == -1).all()


def test_export_leaves_the_module_as_it_was(own: VisionTransformer, images: np.ndarray, tmp_path: Path) -> None:
    x = torch.from_numpy(images)
    with torch.no_grad():
        before = own.eval()(x)
    vitprune.export(own, vitprune.Recipe.load(PRUNE), tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(own(x), before, rtol=0, atol=0)


def test_rewrite_of_the_users_own_file(own: VisionTransformer, images: np.ndarray, tmp_path: Path) -> None:
    recipe = vitprune.Recipe.load(PRUNE)
    from vitprune.exporting.dense import dense_onnx

    onnx.save(dense_onnx(own.eval(), (1, 64, 64), recipe), str(tmp_path / "dense.onnx"))
    one = vitprune.rewrite(tmp_path / "dense.onnx", recipe, tmp_path / "rewritten").run(images)
    two = vitprune.export(own, recipe, tmp_path / "exported").run(images)
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-5)
    for ours, theirs in zip(one.kept, two.kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
