"""Folders that transformers saved: logits against transformers itself, preprocessing, the hub's cache, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import images
from vitprune import open_bundle
from vitprune.cli import run as cli
from vitprune.errors import VitpruneError
from vitprune.model_section import ModelSection
from vitprune.vit.loading import load

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}


def processor(kind: str, side: int, **more) -> dict:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    if kind == "vit":
        return (
            common | {"size": {"height": side, "width": side}, "resample": 2, "image_processor_type": "ViTImageProcessor"} | more
        )
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}, "size": {"shortest_edge": 2 * side}}
    return common | crop | {"resample": 3, "image_processor_type": "BitImageProcessor"} | more


def saved(folder, form: str):
    """A model with random weights, uneven attention and visible LayerScale, as save_pretrained leaves it; and the model."""
    torch.manual_seed(0)
    kind = "vit" if form.startswith("vit") else "dinov2"
    if kind == "vit":
        config = transformers.ViTConfig(**SIZES, intermediate_size=80, image_size=32, patch_size=8, layer_norm_eps=1e-3)
        made = transformers.ViTModel if form == "vit-features" else transformers.ViTForImageClassification
    else:
        config = transformers.Dinov2Config(**SIZES, image_size=56, patch_size=14, use_swiglu_ffn=form == "dinov2-gated")
        made = transformers.Dinov2ForImageClassification if form != "dinov2-features" else transformers.Dinov2Model
    model = made(config).eval()
    for name, value in model.named_parameters():
        if "_proj.weight" in name:
            value.data *= 12
        elif "lambda1" in name:
            value.data.uniform_(0.3, 0.9)
        elif name.endswith("bias"):
            value.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    side = 28 if form == "dinov2-resampled" else config.image_size
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(kind, side)))
    return model, side


def answer(model, x):
    """What the model says of images: logits of a classifier, else the CLS token behind the last norm."""
    found = model(torch.from_numpy(x))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state[:, 0]


@pytest.mark.parametrize("form", ["vit", "vit-features", "dinov2", "dinov2-features", "dinov2-gated", "dinov2-resampled"])
def test_logits_are_those_of_transformers(tmp_path, form):
    model, side = saved(tmp_path / "folder", form)
    loaded = load(ModelSection(name=str(tmp_path / "folder")))
    x = images(3, (3, side, side))
    with torch.inference_mode():
        ours, theirs = loaded.module(torch.from_numpy(x)), answer(model, x)
    assert loaded.image_shape == (3, side, side)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert float(theirs.std()) > 1e-2


@pytest.mark.parametrize("form", ["vit", "dinov2"])
def test_export_and_validate(tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)
    model, side = saved(tmp_path / "folder", form)
    (tmp_path / "r.yaml").write_text("prune: {method: topk, stages: [0], keep_rate: 0.6}\nvalidate: {samples: 4}\n")
    assert cli(["export", "./folder", "-r", "r.yaml", "-o", "out"]) == 0
    bundle = open_bundle("out")
    assert bundle.manifest.model["source"]["kind"] == "hugging_face"
    told = bundle.manifest.preprocessing
    assert told["input_size"] == [3, side, side]
    assert told["known"]
    assert told["origin"] == "preprocessor_config.json"
    assert told["mean"] == [0.4, 0.5, 0.6]
    assert told["interpolation"] == ("bilinear" if form == "vit" else "bicubic")
    assert told["crop_pct"] == (1.0 if form == "vit" else 0.5)
    stored = bundle.samples()
    with torch.inference_mode():
        dense = answer(model, stored["images"]).numpy()
    np.testing.assert_allclose(stored["dense_logits"], dense, atol=2e-5)
    assert np.abs(stored["logits"] - dense).max() > 1e-4  # something was pruned
    capsys.readouterr()
    assert cli(["validate", "out", "--reference", "torch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "passed"
    # another model in the same folder is no reference for this bundle
    state = load_file("folder/model.safetensors")
    save_file({name: value + 0.01 for name, value in state.items()}, "folder/model.safetensors")
    assert cli(["validate", "out", "--reference", "torch", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP613"


def refused(folder, **keys) -> VitpruneError:
    with pytest.raises(VitpruneError) as caught:
        load(ModelSection(name=str(folder), **keys))
    assert caught.value.next_step
    return caught.value


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "folder"
    saved(folder, "vit")
    return folder


@pytest.fixture
def folder(vit_folder, tmp_path):
    shutil.copytree(vit_folder, tmp_path / "folder")
    return tmp_path / "folder"


def edited(folder, name="config.json", **keys):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def reweighed(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    error = refused(folder)
    assert error.code == "VP307"
    assert name in str(error)


def test_preprocessing_of_the_recipe_stands_in(folder):
    (folder / "preprocessor_config.json").unlink()
    found = load(ModelSection(name=str(folder), mean=[0.5], std=[0.5], interpolation="bicubic", crop_pct=0.9)).preprocessing
    assert found["known"]
    assert found["origin"] == "recipe"
    assert found["input_size"] == [3, 32, 32]


BLOCK = "vit.encoder.layer.0."
WRONG = {
    "model type": (lambda f: edited(f, model_type="swin"), "VP308", "swin"),
    "no mapping": (lambda f: (f / "config.json").write_text("[]"), "VP307", "config.json"),
    "activation": (lambda f: edited(f, hidden_act="quick_gelu"), "VP308", "quick_gelu"),
    "width": (lambda f: edited(f, hidden_size=64), "VP303", "(5, 32)|cls_token|patch_embed"),
    "depth": (lambda f: edited(f, num_hidden_layers=3), "VP303", "blocks.2"),
    "fewer blocks": (lambda f: edited(f, num_hidden_layers=1), "VP303", "blocks.1"),
    "labels": (lambda f: edited(f, id2label={"0": "a", "1": "b"}), "VP303", "2"),
    "positions": (lambda f: edited(f, image_size=64), "VP305", "64"),
    "image size": (lambda f: edited(f, "preprocessor_config.json", size={"height": 64, "width": 64}), "VP305", "64"),
    "a tensor less": (lambda f: reweighed(f, lambda s: s.pop(BLOCK + "layernorm_after.bias")), "VP303", "norm2.bias"),
    "no keys": (lambda f: reweighed(f, lambda s: s.pop(BLOCK + "attention.attention.key.bias")), "VP303", "query"),
    "a tensor more": (lambda f: reweighed(f, lambda s: s.update(odd=torch.ones(2))), "VP308", "odd"),
    "not numbers": (lambda f: reweighed(f, lambda s: s["classifier.bias"].fill_(float("nan"))), "VP306", "classifier.bias"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(folder, what):
    change, code, told = WRONG[what]
    change(folder)
    error = refused(folder)
    assert error.code == code
    assert any(part in f"{error} {error.cause}" for part in told.split("|"))


def test_names_of_classes(folder):
    edited(folder, id2label={str(number): name for number, name in enumerate("abcde")})
    assert load(ModelSection(name=str(folder))).preprocessing["classes"] == list("abcde")
    assert refused(folder, classes=list("abcdef")).code == "VP128"
    assert refused(folder, args={"depth": 3}).code == "VP301"


def test_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--name" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load(ModelSection(name="hf:owner/name"))
    assert loaded.name == "name"
    assert loaded.source["folder"] == "hf:owner/name"
    error = refused("hf:owner/other")
    assert error.code == "VP309"
    assert "HF_HUB_OFFLINE" in str(error.cause)
    assert refused("hf:owner").code == "VP309"
    assert refused("./nowhere").code == "VP307"


@pytest.mark.parametrize(
    ("folder", "fine"),
    [("folder", True), ("a/b", True), ("hf:owner/name", True), ("../a", False), ("/etc", False), ("hf:../a", False)],
)
def test_a_bundle_points_at_no_folder_outside(made_bundle, folder, fine):
    source = {"kind": "hugging_face", "name": "n", "weights": "folder", "folder": folder, "image_size": 32, "sha256": "0" * 64}
    manifest = made_bundle.manifest.model_copy(update={"model": made_bundle.manifest.model | {"source": source}})
    assert (manifest.complaint() == "") == fine
