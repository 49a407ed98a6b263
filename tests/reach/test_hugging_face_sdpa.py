"""Hugging Face models with scaled_dot_product_attention, by torch's newer exporter: Softmax behind a guard for masked rows."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from helpers import run
from vitprune.graph.normal.safe_softmax import unguard
from vitprune.graph.surgery import rewrite
from vitprune.recipe import Recipe

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "attn_implementation": "sdpa",
}  # fmt: skip


class Logits(torch.nn.Module):
    """The CLS token behind a Hugging Face model, classified."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers", reason="extra 'test' brings transformers")
        if kind == "ViT":
            self.net = transformers.ViTModel(transformers.ViTConfig(intermediate_size=64, **SIZES), add_pooling_layer=False)
        else:
            self.net = transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, layerscale_value=0.5, **SIZES))
        self.head = torch.nn.Linear(32, 5)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * (2 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else parameter.data + 0.2 * noise

    def forward(self, image: Any) -> Any:
        return self.head(self.net(image).last_hidden_state[:, 0])


def exported(model: torch.nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, opset_version=18, input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), verbose=False,
        )  # fmt: skip
    made: onnx.ModelProto = program.model_proto
    return made


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_pruned_logits_are_those_of_hidden_keys(kind: str) -> None:
    """The model's own layers on all tokens, with those hidden as keys that the pruned graph has dropped."""
    torch.manual_seed(0)
    model, x = Logits(kind).eval(), torch.randn(3, 3, 32, 32)
    dense = exported(model, x)
    assert any(node.op_type == "IsNaN" for node in dense.graph.node), "the form that this test is about"
    pruned = rewrite(dense, Recipe.load({"prune": {"method": "ats", "stages": [0], "num_samples": [8]}}))[0]
    logits, kept = run(pruned, x.numpy())
    seen = torch.zeros(3, 17, dtype=torch.bool)
    seen[:, 0] = True
    for image, rows in enumerate(kept):
        seen[image, torch.as_tensor(rows[rows >= 0]) + 1] = True
    assert not seen.all(dim=1).any()
    layers = getattr(model.net, "layers", None) or model.net.encoder.layer
    with torch.no_grad():
        plain = model(x).numpy()
        layers[1].register_forward_pre_hook(lambda _, args: (args[0], seen[:, None, None, :], *args[2:]))
        hidden = model(x).numpy()
    np.testing.assert_allclose(logits, hidden, atol=1e-4)
    assert np.abs(logits - plain).max() > 1e-3, "pruning must change something"


def guarded(mask: np.ndarray | None) -> onnx.ModelProto:
    """Where(IsNaN(p), 0, p) of p = Softmax(x @ xT + mask); the mask is an input where None is given."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "xt"], ["product"]),
        helper.make_node("Add", ["product", "mask"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=-1),
        helper.make_node("IsNaN", ["p"], ["nan"]),
        helper.make_node("Where", ["nan", "zero", "p"], ["safe"]),
        helper.make_node("MatMul", ["safe", "x"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [2, 3, 4])] + ([value("mask", TensorProto.FLOAT, [3, 3])] if mask is None else [])
    constants = [numpy_helper.from_array(np.float32(0), "zero")]
    constants += [] if mask is None else [numpy_helper.from_array(mask.astype(np.float32), "mask")]
    graph = helper.make_graph(nodes, "guarded", inputs, [value("y", TensorProto.FLOAT, [2, 3, 4])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_guard_that_may_act_stays() -> None:
    inf = -np.inf
    one, all_of_a_row = np.array([[0, inf, 0], [0, 0, 0], [0, inf, inf]]), np.array([[0, 0, 0], [inf, inf, inf], [0, 0, 0]])
    for mask, taken in ((np.zeros((3, 3)), 1), (one, 1), (all_of_a_row, 0), (np.full((3, 3), np.nan), 0), (None, 0)):
        bare, count = unguard(guarded(mask))
        assert count == taken
        assert any(node.op_type == "IsNaN" for node in bare.graph.node) is not bool(taken)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    model = guarded(one)
    assert (_run(unguard(model)[0], x) == _run(model, x)).all()
    assert np.isfinite(_run(guarded(all_of_a_row), x)).all(), "the guard acts"


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    from vitprune.backends.onnxruntime import make_session

    found: np.ndarray = make_session(model.SerializeToString()).run(None, {"x": x})[0]
    return found
