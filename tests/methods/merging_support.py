"""Small models, cached dense exports and sessions for the tests of the merging methods (tome, tome_threshold, ats_merge)."""

import io
import json
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from timm.models.vision_transformer import VisionTransformer

from helpers import uneven
from vitprune.graph.surgery import rewrite
from vitprune.pipelines import reference
from vitprune.recipe import Recipe

GOLDEN = Path(__file__).parents[1] / "golden"
PATCHES = 36
VARIANTS = {
    "plain": {},
    "scaled": {"init_values": 0.5, "qk_norm": True},
    "registers": {"reg_tokens": 1},
    "many_registers": {"reg_tokens": 4},
    "mean": {"global_pool": "avg", "class_token": False},
    "cls_mean": {"global_pool": "avg"},
}
BOTH_SHAPES = [("plain", "padded"), ("mean", "padded"), *((variant, "dynamic") for variant in VARIANTS)]


@cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


@cache
def golden_model():
    weights = {key[2:]: torch.tensor(value) for key, value in golden("tome_r4_prop").items() if key.startswith("w/")}
    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=64, depth=12, num_heads=4, num_classes=10)
    model.load_state_dict(weights)
    return model.eval()


@cache
def small(variant="plain"):
    """Four blocks, 36 patches, random weights with uneven attention; every parameter differs from its neutral value."""
    torch.manual_seed(7)
    model = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=5, **VARIANTS[variant]
    ).eval()
    return uneven(model)


def export(model, image, opset=18):
    """Dense graph by the TorchScript exporter, which takes a quarter of a second where the newer one takes five."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (image,), target, dynamo=False, opset_version=opset, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(target.getvalue())


@cache
def golden_dense():
    return export(golden_model(), torch.tensor(golden("tome_r4_prop")["x"]))


@cache
def small_dense(variant="plain", opset=18):
    return export(small(variant), images(2), opset)


def images(batch, seed=0):
    """Smooth and rough images, so that counts differ."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(batch, 3, 48, 48, generator=generator)
    coarse = torch.randn(batch, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    share = torch.linspace(0, 1, batch)[:, None, None, None]
    return share * rough + 2 * (1 - share) * smooth


def recipe(prune, shapes="dynamic", batch="1:4:8", opset=18):
    return Recipe.load({"prune": prune, "graph": {"shapes": shapes, "batch": batch, "opset": opset}})


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Graph:
    """A rewritten graph on ONNX Runtime: graph(x) -> (logits, kept lists, groups)."""

    def __init__(self, dense, rules, has_cls=None):
        self.model = rewrite(dense, rules, has_cls)[0]
        self.session = session(self.model)
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, x):
        values = dict(zip(self.names, self.session.run(None, {"image": np.asarray(x, np.float32)}), strict=True))
        kept = [value for name, value in values.items() if name.startswith("kept_")]
        groups = [value for name, value in values.items() if name.startswith("group_")]
        return values["logits"], kept, groups


class Judge:
    """The PyTorch reference with the same face."""

    def __init__(self, model, rules):
        self.model = reference(model, rules)

    def __call__(self, x):
        with torch.no_grad():
            logits = self.model(torch.as_tensor(np.asarray(x, np.float32))).numpy()
        return logits, [kept.numpy() for kept in self.model.kept], list(self.model.extra["groups"].numpy())


def both(variant, prune, shapes="dynamic", batch="1:4:8"):
    """(reference, graph) of a variant; a pair is made once per session."""
    return _both(variant, json.dumps(prune), shapes, batch)


@cache
def _both(variant, prune, shapes, batch):
    rules = recipe(json.loads(prune), shapes, batch)
    return Judge(small(variant), rules), Graph(small_dense(variant), rules, VARIANTS[variant].get("class_token", True))


def assert_same(first, second, tolerance=1e-4):
    """Logits, kept lists and, where both have them, groups."""
    np.testing.assert_allclose(first[0], second[0], atol=tolerance, rtol=0)
    for ours, theirs in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if first[2] and second[2]:
        np.testing.assert_array_equal(np.stack(first[2]), np.stack(second[2]))


def assert_batch_invariant(run, x):
    """Every image alone, and the batch reversed, give what the batch gave (kept lists up to padding)."""
    whole = run(x)
    for rows in [[i] for i in range(len(x))] + [list(range(len(x)))[::-1]]:
        part = run(x[rows])
        np.testing.assert_allclose(part[0], whole[0][rows], atol=1e-5, rtol=0)
        for ours, theirs in zip(part[1], whole[1], strict=True):
            assert [list(row[row >= 0]) for row in ours] == [list(row[row >= 0]) for row in theirs[rows]]
    return whole


def assert_partition(kept, groups):
    """Kept lists are nested; every patch belongs to exactly one kept patch, every kept patch to itself."""
    before = None
    for rows, group in zip(kept, groups, strict=True):
        for image in range(len(rows)):
            present = rows[image][rows[image] >= 0]
            assert len(set(present)) == len(present) >= 1
            assert set(group[image]) == set(present)
            np.testing.assert_array_equal(group[image][present], present)
            if before is not None:
                assert set(present) <= set(before[image])
        before = rows


def dense_logits(variant, x):
    with torch.no_grad():
        return small(variant)(torch.as_tensor(x)).numpy()


@cache
def twins():
    """A model without positions, and an image whose neighbouring patches are equal: each pair may merge without any loss."""
    model = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=5, **VARIANTS["scaled"]
    ).eval()
    model.load_state_dict({**small("scaled").state_dict(), "pos_embed": torch.zeros_like(model.pos_embed)})
    left = images(3, seed=5).reshape(3, 3, 6, 8, 3, 2, 8)[:, :, :, :, :, 0]
    return model, left.repeat_interleave(2, dim=4).reshape(3, 3, 48, 48)


@cache
def twins_dense():
    return export(twins()[0], twins()[1])


def rtx_problems(model):
    """What TensorRT-RTX has against a graph when it builds an engine on the CPU; empty when it succeeded."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 48, 48), (2, 3, 48, 48), (4, 3, 48, 48))
    config.add_optimization_profile(profile)
    return [] if builder.build_serialized_network(network, config) is not None else ["no engine"]
