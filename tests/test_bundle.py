"""Bundles: whole or not at all, verified on opening; the Python API around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vitprune
from helpers import ats, images, sets, tiny
from vitprune.bundle import folder_in_place
from vitprune.errors import LoadError, RecipeError


def test_api_on_a_module_of_the_users_own(tmp_path):
    """Recipe, reference, export, open_bundle and run agree with each other."""
    module = tiny(seed=5)
    recipe = vitprune.Recipe.load(ats(stages=[1, 2], num_samples=30))
    bundle = vitprune.export(module, recipe, tmp_path / "bundle")
    assert isinstance(bundle, vitprune.Bundle)
    x = images(5, seed=2)
    oracle = vitprune.reference(module, recipe)
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(x)).numpy()
    for source in (x, torch.from_numpy(x)):
        result = vitprune.open_bundle(tmp_path / "bundle").run(source, backend="onnxruntime")
        assert np.abs(result.logits - logits).max() < 1e-4
        assert [sets(rows) for rows in result.kept] == [sets(rows) for rows in oracle.kept]
    for rows in result.kept:
        assert rows.dtype == np.int64
        for row in rows:
            real = row[row >= 0]
            assert (np.diff(real) > 0).all()
            assert (row[len(real) :] == -1).all()


def test_torch_backend_gives_the_same(made_bundle):
    x = made_bundle.samples()["images"][:4]
    ours, theirs = made_bundle.run(x), made_bundle.run(x, backend="torch")
    assert np.abs(ours.logits - theirs.logits).max() < 1e-4
    assert [sets(rows) for rows in ours.kept] == [sets(rows) for rows in theirs.kept]


@pytest.mark.parametrize("name", ["model.onnx", "recipe.yaml", "samples.npz", "manifest.json"])
def test_one_changed_byte_is_found(bundle_copy, name):
    data = bytearray((bundle_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_copy / name).write_bytes(data)
    with pytest.raises(LoadError) as error:
        vitprune.open_bundle(bundle_copy)
    assert error.value.code == "VP601"
    assert name in error.value.message


def test_missing_files_links_and_other_folders(bundle_copy, tmp_path):
    (bundle_copy / "samples.npz").rename(tmp_path / "elsewhere.npz")
    with pytest.raises(LoadError, match="VP601"):
        vitprune.open_bundle(bundle_copy)
    (bundle_copy / "samples.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(LoadError, match="VP601"):
        vitprune.open_bundle(bundle_copy)
    with pytest.raises(LoadError, match="VP600"):
        vitprune.open_bundle(tmp_path)


def test_wrong_input_shape_and_unknown_backend(made_bundle):
    with pytest.raises(LoadError) as error:
        made_bundle.run(np.zeros((1, 3, 32, 32), np.float32))
    assert error.value.code == "VP603"
    with pytest.raises(LoadError, match="VP610"):
        made_bundle.run(np.zeros((1, 3, 64, 64), np.float32), backend="onnxruntimes")


def test_nothing_is_left_of_a_failed_write(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_in_place(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="VP106"), folder_in_place(tmp_path / "out", force=True):
        pass
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_full_disk(tmp_path, monkeypatch):
    import errno

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = vitprune.Recipe.load(ats(stages=[1]))
    monkeypatch.setattr("vitprune.exporting.writing.onnx.save", full)
    with pytest.raises(RecipeError) as error:
        vitprune.export(tiny(), recipe, tmp_path / "bundle")
    assert error.value.code == "VP107"
    assert "No space left" in error.value.cause
    assert list(tmp_path.iterdir()) == []


def test_manifest_has_no_absolute_paths(made_bundle):
    text = (made_bundle.path / "manifest.json").read_text() + (made_bundle.path / "recipe.yaml").read_text()
    assert str(made_bundle.path.parent) not in text
    model = made_bundle.model_path.read_bytes()
    assert b"site-packages" not in model


def test_static_batch_is_fed_in_pieces(tmp_path):
    module = tiny()
    recipe = vitprune.Recipe.load({**ats(stages=[1], num_samples=20), "graph": {"batch": 4}})
    bundle = vitprune.export(module, recipe, tmp_path / "bundle")
    x = images(6)
    with torch.inference_mode():
        logits = vitprune.reference(module, recipe)(torch.from_numpy(x)).numpy()
    assert np.abs(bundle.run(x).logits - logits).max() < 1e-4
