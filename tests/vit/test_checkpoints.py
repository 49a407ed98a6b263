"""Checkpoints as training code leaves them, written here and read safely; and weights that are no numbers."""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import resample_abs_pos_embed

import vitprune
from vitprune.backends.torch import dense_module
from vitprune.cli import run as cli
from vitprune.errors import ExportError
from vitprune.model_section import ModelSection
from vitprune.pipelines import rewrite
from vitprune.recipe import Recipe
from vitprune.vit.loading import load

NAME = "vit_tiny_patch16_224"
ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return timm.create_model(NAME, **ARGS).eval()


def section(path, **keys):
    return ModelSection(name=NAME, args=ARGS, weights=str(path), **keys)


def recipe(path=None) -> Recipe:
    model = {"name": NAME, "args": ARGS} | ({"weights": str(path)} if path else {})
    return Recipe.load({"model": model, "prune": {"method": "topk", "stages": [1]}, "validate": {"samples": 4}})


def saved(tmp_path, content, name="w.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(module, model) -> bool:
    return all(torch.equal(value, model.state_dict()[name]) for name, value in module.state_dict().items())


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


FORMS = {
    "deit": lambda s: {"model": s, "args": argparse.Namespace(lr=1e-3, output_dir=pathlib.PosixPath("/x"), model=NAME), "epoch": 3},
    "module": lambda s: under("module.", s),
    "model": lambda s: under("model.", s),
    "backbone": lambda s: under("backbone.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled blocks": lambda s: {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in s.items()},
    "nested": lambda s: {"state_dict": under("module.model._orig_mod.", s)},
    "lightning": lambda s: {
        "state_dict": under("model.", s) | {"criterion.weight": torch.ones(5)}, "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"lr": 1e-3}, "callbacks": {}, "global_step": 7,
    },
    "timm": lambda s: {"state_dict": {name: value + 1 for name, value in s.items()}, "state_dict_ema": s, "arch": NAME},
    "half": lambda s: {name: value.double() for name, value in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_training_code_leaves(tmp_path, model, form):
    made = load(section(saved(tmp_path, FORMS[form](model.state_dict()))))
    assert same(made.module, model)
    if form == "lightning":
        assert (made.source["prefix"], made.source["ignored"]) == ("model.", 1)


def test_shards_of_pytorch_files_and_folders(tmp_path, model):
    state = model.state_dict()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, own in parts.items():
        saved(tmp_path, {name: state[name] for name in own}, file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, own in parts.items() for name in own}}))
    for path in (index, tmp_path):
        assert same(load(section(path)).module, model)
    bundle = vitprune.export(None, recipe(tmp_path), tmp_path / "out")
    assert same(dense_module(bundle, str(tmp_path)), model)
    index.write_text(json.dumps({"weight_map": {"elsewhere": next(iter(parts)), **{name: next(iter(parts)) for name in names}}}))
    with pytest.raises(ExportError, match="VP302") as error:
        load(section(index))
    assert "no shard holds" in error.value.cause


def test_a_folder_that_does_not_tell(tmp_path, model):
    with pytest.raises(ExportError, match="VP302") as error:
        load(section(tmp_path))
    assert "no weights" in error.value.cause
    saved(tmp_path, model.state_dict(), "last.ckpt")
    assert same(load(section(tmp_path)).module, model)
    saved(tmp_path, model.state_dict(), "best.ckpt")
    with pytest.raises(ExportError, match="VP302") as error:
        load(section(tmp_path))
    assert "best.ckpt, last.ckpt" in error.value.cause


class Trap:
    ran = False

    def __reduce__(self):
        return (setattr, (Trap, "ran", True))


@pytest.mark.parametrize("content", ["trap", "module"])
def test_objects_are_named_and_not_read(tmp_path, model, content):
    path = saved(tmp_path, {"model": model.state_dict(), "extra": Trap()} if content == "trap" else model)
    with pytest.raises(ExportError, match="VP302") as error:
        load(section(path))
    assert "setattr" in error.value.cause or "timm.models" in error.value.cause
    assert "state_dict()" in error.value.next_step
    assert not Trap.ran


def test_two_models_in_one_file_are_refused(tmp_path, model):
    state = model.state_dict()
    path = saved(tmp_path, under("model.", state) | under("backbone.", state))
    with pytest.raises(ExportError, match="VP303") as error:
        load(section(path))
    assert "under 'model.' and under 'backbone.'" in error.value.cause


@pytest.mark.parametrize(("content", "cause"), [({"epoch": 3}, "dict with epoch"), ([1], "list")])
def test_files_without_weights(tmp_path, content, cause):
    with pytest.raises(ExportError, match="VP302") as error:
        load(section(saved(tmp_path, content)))
    assert cause in error.value.cause


def test_names_of_hugging_face_are_recognised(tmp_path, model):
    state = {f"vit.encoder.layer.0.{number}.weight": value for number, value in enumerate(model.state_dict().values())}
    with pytest.raises(ExportError, match="VP303") as error:
        load(section(saved(tmp_path, state)))
    assert "vitprune rewrite" in error.value.next_step


def test_positions_of_another_grid(tmp_path, model):
    torch.manual_seed(4)
    large = timm.create_model(NAME, **(ARGS | {"img_size": 48})).eval()
    path = saved(tmp_path, large.state_dict())
    with pytest.raises(ExportError, match="VP305") as error:
        load(section(path))
    assert "6 x 6 patches (48 pixels), the model has 4 x 4" in error.value.cause
    assert "model.image_size=48" in error.value.next_step
    assert "model.image_size=32" in error.value.next_step
    assert same(load(section(path, image_size=48)).module, large)
    made = load(section(path, image_size=32))
    expected = resample_abs_pos_embed(large.pos_embed, [4, 4], num_prefix_tokens=1)
    assert torch.equal(made.module.pos_embed, expected)
    assert made.source["resampled_to"] == 32
    one = recipe(path).with_("model.image_size", 32)
    bundle = vitprune.export(None, one, tmp_path / "out")
    again = dense_module(bundle, str(path))
    assert torch.equal(again.pos_embed, expected)
    state = large.state_dict() | {"pos_embed": large.pos_embed[:, :-1]}
    with pytest.raises(ExportError, match="VP305"):
        load(section(saved(tmp_path, state, "odd.pth"), image_size=32))


BAD = {
    "nan": lambda v: torch.where(torch.arange(v.numel()).view(v.shape) == 3, torch.nan, v),
    "inf": lambda v: torch.where(torch.arange(v.numel()).view(v.shape) == 3, torch.inf, v),
    "complex": lambda v: v.to(torch.complex64),
    "int8": lambda v: (v * 100).to(torch.int8),
    "text": lambda v: "weights",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["export", "calibrate", "finetune"])
def test_weights_that_are_no_numbers_are_named(tmp_path, model, capsys, kind, command):
    name = "blocks.1.mlp.fc1.weight"
    path = saved(tmp_path, model.state_dict() | {name: BAD[kind](model.state_dict()[name])})
    made = tmp_path / "r.yaml"
    made.write_text(recipe().to_yaml())
    np.savez(tmp_path / "x.npz", images=np.full((4, 3, 32, 32), 90, np.uint8), labels=np.arange(4))
    data = ["--data", str(tmp_path / "x.npz"), "--weights", str(path), "-o", str(tmp_path / "out")]
    call = {"export": ["export", "-r", str(made)], "calibrate": ["calibrate", str(made), "--budget-macs", "0.9"]}
    assert cli([*call.get(command, ["finetune", "-r", str(made)]), *data, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "VP306"
    assert name in error["cause"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "word"), [("nan", "NaN"), ("half", "float16"), ("complex", "complex64")])
def test_an_instance_is_checked_too(tmp_path, change, word):
    made = timm.create_model(NAME, **ARGS).eval()
    if change == "half":
        made = made.half()
    else:
        value = made.head.weight.data
        made.head.weight = torch.nn.Parameter(value.to(torch.complex64) if change == "complex" else value * float("nan"))
    with pytest.raises(ExportError, match="VP306") as error:
        vitprune.export(made, recipe(), tmp_path / "out")
    assert word in error.value.cause


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_graph_is_checked_too(tmp_path, tiny_dense, kind):
    graph = onnx.ModelProto.FromString(tiny_dense.SerializeToString())
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = {"nan": np.nan, "inf": np.inf}[kind]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, str(tmp_path / "dense.onnx"))
    with pytest.raises(ExportError, match="VP306") as error:
        rewrite(tmp_path / "dense.onnx", recipe(), tmp_path / "out")
    assert weight.name in error.value.cause


def test_a_compiled_model_is_exported_and_referenced(tmp_path, model):
    compiled = torch.compile(model)
    one = recipe()
    bundle = vitprune.export(compiled, one, tmp_path / "out")
    x = torch.from_numpy(bundle.samples()["images"][:2])
    with torch.inference_mode():
        assert torch.equal(vitprune.reference(compiled, one)(x), vitprune.reference(model, one)(x))
        assert torch.equal(vitprune.reference(torch.nn.DataParallel(model), one)(x), vitprune.reference(model, one)(x))
