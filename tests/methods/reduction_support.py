"""Small models, cached dense exports and sessions for the tests of top-k, EViT, POMT, AS-ViT and DynamicViT."""

import copy
import io
import logging
import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer

from vitprune import methods
from vitprune.graph.surgery import rewrite
from vitprune.methods.base import Geometry
from vitprune.methods.cost import model_macs
from vitprune.pipelines import reference
from vitprune.recipe import Recipe

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
INVARIANCE = 1e-5
torch.set_num_threads(1)  # more threads only wait for each other on models this small


@cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}


@cache
def golden_model(name):
    weights = {key[2:]: torch.tensor(value) for key, value in golden(name).items() if key.startswith("w/")}
    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=64, depth=12, num_heads=4, num_classes=10)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing
    assert all(key.startswith("score_predictor.") for key in unexpected)
    return model.eval()


@cache
def small_model(kind="plain"):
    """Six blocks, 16 patches; peaky attention so that scores differ."""
    options = {
        "plain": {},
        "registers": {"reg_tokens": 1, "init_values": 0.5, "qk_norm": True},
        "mean": {"global_pool": "avg", "class_token": False},
        "cls_mean": {"global_pool": "avg"},
    }[kind]
    torch.manual_seed(3)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=4, num_classes=5, **options).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "token" in name or "pos_embed" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2.0 / parameter[0].numel()) ** 0.5)
            if "gamma" in name:
                parameter.copy_(0.3 + 0.4 * torch.rand(parameter.shape, generator=generator))
    return model


def export(model, image):
    batch = torch.export.Dim("batch", min=1, max=1024)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (image,), dynamo=True, opset_version=18, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: batch},), verbose=False,
        )  # fmt: skip
    return program.model_proto


@cache
def golden_dense(name):
    """Dense ONNX of a golden model: all golden models are alike, so one export serves with other weights."""
    if name == "evit_keep70":
        return export(golden_model(name), torch.tensor(golden(name)["x"]))
    model = onnx.ModelProto()
    model.CopyFrom(golden_dense("evit_keep70"))
    source, target = golden_model("evit_keep70").state_dict(), golden_model(name).state_dict()
    left = set(source)
    for tensor in model.graph.initializer:
        old = numpy_helper.to_array(tensor)
        for key in left:
            plain = source[key].numpy()
            turned = old.shape != plain.shape or not np.array_equal(old, plain)
            if np.array_equal(old, plain.T if turned else plain):
                new = target[key].numpy()
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new.T if turned else new), tensor.name))
                left.remove(key)
                break
    assert not left
    return model


@cache
def small_dense(kind="plain"):
    """By the TorchScript exporter: quick, and a second form of graph besides that of `export`."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            small_model(kind), (images(2),), file, dynamo=False, opset_version=18, input_names=["image"],
            output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def images(batch, seed=0, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def recipe(prune, shapes="dynamic", batch="1:4:8"):
    return Recipe.load({"prune": copy.deepcopy(prune), "graph": {"shapes": shapes, "batch": batch}})


def pruned(dense, rules, has_cls=None):
    return rewrite(dense, rules, has_cls)[0]


def deit_small():
    """Geometry of DeiT-S at 224: 197 tokens, patch embedding of 16 x 16 x 3."""
    return Geometry(depth=12, patches=196, prefix=1, width=384, heads=6, mlp_hidden=1536, embed_macs=196 * 768 * 384)


def giga_macs(prune, geometry):
    """GMACs of a recipe with all sites at their static bound."""
    rules = recipe(prune)
    method = methods.get(rules.prune.method)
    sites = method.sites(rules.prune, geometry)
    return model_macs(geometry, method.block_tokens(sites, geometry, [site.limit for site in sites])) / 1e9


def session(model: onnx.ModelProto):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_graph(model, x):
    """(logits, kept lists) of a pruned graph; `model` is a ModelProto or a session."""
    runner = session(model) if isinstance(model, onnx.ModelProto) else model
    logits, *kept = runner.run(None, {"image": np.asarray(x, np.float32)})
    return logits, kept


def run_reference(model, rules, x):
    """(logits, kept lists) of the reference, and the reference itself."""
    judge = reference(model, rules)
    with torch.no_grad():
        logits = judge(torch.as_tensor(x)).numpy()
    return logits, [kept.numpy() for kept in judge.kept], judge


def golden_kept(rows):
    """Golden rows [B,K] in any order, as ascending lists of original patch numbers (fused tokens are not listed)."""
    return [sorted(int(number) for number in row if number >= 0) for row in rows]


def listed(rows):
    """Kept rows [B,K] as lists; what is not a patch must be padding at the end."""
    lists = []
    for row in rows:
        numbers = [int(number) for number in row if number >= 0]
        assert list(row[: len(numbers)]) == numbers == sorted(set(numbers))
        assert all(number == -1 for number in row[len(numbers) :])
        lists.append(numbers)
    return lists


def assert_nested(kept):
    for earlier, later in zip(kept, kept[1:], strict=False):
        for before, after in zip(listed(earlier), listed(later), strict=True):
            assert set(after) <= set(before)


def assert_alone_equals_batch(run, x, logits, kept):
    """run(x) -> (logits, kept): every image alone, and the batch in reverse, give what the batch gave."""
    for order in ([[i] for i in range(len(x))], [list(range(len(x)))[::-1]]):
        for rows in order:
            some, lists = run(x[rows])
            np.testing.assert_allclose(some, logits[rows], atol=INVARIANCE, rtol=0)
            for stage, whole in zip(lists, kept, strict=True):
                assert listed(stage) == listed(whole[rows])


def rtx_builds(model, image=(3, 32, 32)):
    """Build a TensorRT-RTX engine on the CPU; returns the parser's and builder's complaints, empty when it succeeded."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    if -1 in tuple(network.get_input(0).shape):
        profile = builder.create_optimization_profile()
        profile.set_shape("image", (1, *image), (2, *image), (4, *image))
        config.add_optimization_profile(profile)
    return [] if builder.build_serialized_network(network, config) is not None else ["no engine"]


def has_rtx():
    if os.environ.get("VITPRUNE_SKIP_RTX"):
        return False
    try:
        import tensorrt_rtx  # noqa: F401
    except ImportError:
        return False
    return True
