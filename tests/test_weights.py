"""Weights in one file and in shards."""

import json

import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

import vitprune
from vitprune.errors import ExportError
from vitprune.recipe import Recipe
from vitprune.vit import loading

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
INDEX = "w.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(3)
    state = timm.create_model("vit_tiny_patch16_224", **ARGS).state_dict()
    save_torch_state_dict(state, tmp_path, filename_pattern="w{suffix}.safetensors", max_shard_size=60_000)
    save_file(state, tmp_path / "whole.safetensors")
    assert len(list(tmp_path.glob("w-*.safetensors"))) > 1
    return tmp_path, state


def recipe(path):
    model = {"name": "vit_tiny_patch16_224", "args": ARGS, "weights": str(path)}
    return Recipe.load({"model": model, "prune": {"method": "topk", "stages": [1]}, "validate": {"samples": 4}})


def test_shards_hold_what_one_file_does(checkpoint):
    folder, state = checkpoint
    for path in (folder / INDEX, folder / "whole.safetensors"):
        found = loading.read_weights(path)
        assert set(found) == set(state)
        assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_bundle_knows_its_shards(checkpoint, monkeypatch):
    from vitprune.pipelines import validate

    folder, _ = checkpoint
    monkeypatch.chdir(folder)  # where the weights named by the bundle lie
    bundle = vitprune.export(None, recipe(folder / INDEX), folder / "bundle")
    assert validate(bundle, reference="torch").passed
    part = next(folder.glob("w-00001*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    with pytest.raises(vitprune.errors.LoadError, match="VP613"):
        validate(bundle, reference="torch")


@pytest.mark.parametrize("broken", ["shard", "index", "map"])
def test_a_broken_set_of_shards_is_refused(checkpoint, broken):
    folder, _ = checkpoint
    if broken == "shard":
        next(folder.glob("w-00002*.safetensors")).unlink()
    else:
        (folder / INDEX).write_text("{" if broken == "index" else json.dumps({"weights": {}}))
    with pytest.raises(ExportError) as caught:
        vitprune.export(None, recipe(folder / INDEX), folder / "bundle")
    assert caught.value.code == "VP302"
    assert caught.value.cause
    assert not (folder / "bundle").exists()


def test_an_index_names_files_beside_it_only(checkpoint):
    folder, _ = checkpoint
    (folder / INDEX).write_text(json.dumps({"weight_map": {"head.weight": "../../elsewhere.safetensors"}}))
    assert loading.shards(folder / INDEX) == [folder / "elsewhere.safetensors"]
