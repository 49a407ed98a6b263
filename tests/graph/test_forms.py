"""One small ViT in the forms that exporters and optimisers give it: each is rewritten and gives what the PyTorch reference gives.

The judge is the reference on a timm model with the same weights, pruning on; it never sees the graph.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import vitprune
from helpers import images, legacy_onnx, run, sets
from vitprune.errors import ExportError
from vitprune.graph import surgery
from vitprune.graph.normal.operators import expand
from vitprune.pipelines import reference
from vitprune.validation.validate import validate

SIDE, WIDTH, HEADS, DEPTH, CLASSES = 32, 32, 4, 2, 5
PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [12, 9]},
    "topk": {"stages": [0, 1], "keep": [12, 8]},
    "evit": {"stages": [0, 1], "keep": [12, 8]},
    "tome": {"r": 3},
}
X = torch.zeros(2, 3, SIDE, SIDE)


def recipe(method: str, shapes: str = "dynamic", **graph: Any) -> vitprune.Recipe:
    return vitprune.Recipe.load(
        {"prune": {"method": method, **PRUNE[method]}, "graph": {"shapes": shapes, **graph}, "validate": {"samples": 8}}
    )


def timm_vit() -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * WIDTH] *= 2
    return model


def torchvision_vit(source: Any) -> Any:
    """torchvision's VisionTransformer with the weights of a timm one."""
    model = VisionTransformer(SIDE, 8, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES).eval()
    state = source.state_dict()
    names = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    names |= {f"patch_embed.proj.{w}": f"conv_proj.{w}" for w in ("weight", "bias")}
    names |= {f"norm.{w}": f"encoder.ln.{w}" for w in ("weight", "bias")} | {
        f"head.{w}": f"heads.head.{w}" for w in ("weight", "bias")
    }
    for index in range(DEPTH):
        ours, theirs = f"blocks.{index}", f"encoder.layers.encoder_layer_{index}"
        for w in ("weight", "bias"):
            names |= {f"{ours}.norm1.{w}": f"{theirs}.ln_1.{w}", f"{ours}.norm2.{w}": f"{theirs}.ln_2.{w}"}
            names |= {f"{ours}.attn.qkv.{w}": f"{theirs}.self_attention.in_proj_{w}"}
            names |= {f"{ours}.attn.proj.{w}": f"{theirs}.self_attention.out_proj.{w}"}
            names |= {f"{ours}.mlp.fc1.{w}": f"{theirs}.mlp.0.{w}", f"{ours}.mlp.fc2.{w}": f"{theirs}.mlp.3.{w}"}
    model.load_state_dict({names[name]: value for name, value in state.items()})
    return model


class HuggingFaceViT(nn.Module):
    """transformers' ViTModel with the weights of a timm one: all tokens first, then the pooled CLS token."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        import transformers

        config = transformers.ViTConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=2 * WIDTH, image_size=SIDE,
            patch_size=8, attn_implementation="eager", layer_norm_eps=1e-6, pooler_output_size=CLASSES,
        )  # fmt: skip
        self.net = transformers.ViTModel(config).eval()
        mine = dict(self.net.named_parameters())
        state = source.state_dict()
        for name, value in _hugging_face_names(state).items():
            assert mine[name].shape == value.shape, name
            mine[name].data.copy_(value)

    def forward(self, image: Any) -> Any:
        found = self.net(image)
        return found.last_hidden_state, found.pooler_output


def _hugging_face_names(state: dict[str, Any]) -> dict[str, Any]:
    """By what the parameters are, for the two ways in which transformers has named them."""
    import transformers

    probe = dict(transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1)).named_parameters())
    new = any(name.startswith("layers.") or ".q_proj." in name for name in probe)
    found = {
        "embeddings.cls_token": state["cls_token"], "embeddings.position_embeddings": state["pos_embed"],
    }  # fmt: skip
    for w in ("weight", "bias"):
        found |= {f"embeddings.patch_embeddings.projection.{w}": state[f"patch_embed.proj.{w}"]}
        found |= {f"layernorm.{w}": state[f"norm.{w}"], f"pooler.dense.{w}": state[f"head.{w}"]}
        for index in range(DEPTH):
            ours = f"blocks.{index}"
            query, key, value = state[f"{ours}.attn.qkv.{w}"].split(WIDTH)
            if new:
                theirs = f"layers.{index}"
                parts = {"attention.q_proj": query, "attention.k_proj": key, "attention.v_proj": value}
                parts |= {"attention.o_proj": state[f"{ours}.attn.proj.{w}"], "layernorm_before": state[f"{ours}.norm1.{w}"]}
                parts |= {"layernorm_after": state[f"{ours}.norm2.{w}"], "mlp.fc1": state[f"{ours}.mlp.fc1.{w}"]}
                parts |= {"mlp.fc2": state[f"{ours}.mlp.fc2.{w}"]}
            else:
                theirs = f"encoder.layer.{index}"
                parts = {f"attention.attention.{n}": v for n, v in (("query", query), ("key", key), ("value", value))}
                parts |= {
                    "attention.output.dense": state[f"{ours}.attn.proj.{w}"],
                    "layernorm_before": state[f"{ours}.norm1.{w}"],
                }
                parts |= {"layernorm_after": state[f"{ours}.norm2.{w}"], "intermediate.dense": state[f"{ours}.mlp.fc1.{w}"]}
                parts |= {"output.dense": state[f"{ours}.mlp.fc2.{w}"]}
            found |= {f"{theirs}.{name}.{w}": value for name, value in parts.items()}
    return found


def dynamo(model: Any, batch: int | None = None) -> onnx.ModelProto:
    sizes = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (X[: batch or 2],), dynamo=True, opset_version=18, input_names=["image"], dynamic_shapes=sizes, verbose=False
        )
    return program.model_proto


def fixed(model: Any, path: Path, opset: int = 17) -> onnx.ModelProto:
    """By the TorchScript exporter, with a batch of one baked in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (X[:1],), str(path), dynamo=False, opset_version=opset, input_names=["image"])
    return onnx.load(str(path))


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim."""
    onnxsim = pytest.importorskip("onnxsim", reason="extra 'test' brings onnxsim")
    done, well = onnxsim.simplify(model)
    assert well
    return done


def slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxslim."""
    onnxslim = pytest.importorskip("onnxslim", reason="extra 'test' brings onnxslim")
    return onnxslim.slim(model)


def optimised(model: onnx.ModelProto, level: str, path: Path) -> onnx.ModelProto:
    """What ONNX Runtime writes at a level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(path))


def transformers_optimised(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """onnxruntime.transformers: SkipLayerNormalization, BiasGelu."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from onnxruntime.transformers import optimizer

        made = optimizer.optimize_model(model, model_type="vit", num_heads=HEADS, hidden_size=WIDTH, opt_level=0)
        made.save_model_to_file(str(path))
    return onnx.load(str(path))


def nameless(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node:
        node.name = ""
    return bare


class Forms:
    """Exports made once and handed out by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, {}
        self.timm = timm_vit()
        self.torchvision = torchvision_vit(self.timm)

    def get(self, name: str) -> onnx.ModelProto:
        if name not in self.made:
            self.made[name] = FORMS[name](self)
        copy = onnx.ModelProto()
        copy.CopyFrom(self.made[name])
        return copy

    def path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.onnx"


FORMS: dict[str, Callable[[Forms], onnx.ModelProto]] = {
    "timm": lambda f: legacy_onnx(f.timm, X, f.path("timm"), 17),
    "timm, batch 1": lambda f: fixed(f.timm, f.path("timm1")),
    "torchvision": lambda f: legacy_onnx(f.torchvision, X, f.path("torchvision"), 17),
    "torchvision, dynamo": lambda f: dynamo(f.torchvision),
    "torchvision, batch 1": lambda f: fixed(f.torchvision, f.path("torchvision1")),
    "timm, onnxsim": lambda f: simplified(f.get("timm")),
    "timm, batch 1, onnxsim": lambda f: simplified(f.get("timm, batch 1")),
    "torchvision, onnxsim": lambda f: simplified(f.get("torchvision")),
    "timm, onnxslim": lambda f: slimmed(f.get("timm")),
    "timm, batch 1, onnxslim": lambda f: slimmed(f.get("timm, batch 1")),
    "torchvision, batch 1, onnxslim": lambda f: slimmed(f.get("torchvision, batch 1")),
    "timm, ONNX Runtime basic": lambda f: optimised(f.get("timm"), "BASIC", f.path("basic")),
    "timm, ONNX Runtime extended": lambda f: optimised(f.get("timm"), "EXTENDED", f.path("extended")),
    "timm, batch 1, ONNX Runtime extended": lambda f: optimised(f.get("timm, batch 1"), "EXTENDED", f.path("extended1")),
    "torchvision, ONNX Runtime extended": lambda f: optimised(f.get("torchvision"), "EXTENDED", f.path("tvextended")),
    "timm, onnxruntime.transformers": lambda f: transformers_optimised(f.get("timm"), f.path("optimizer")),
    "torchvision, nameless": lambda f: nameless(f.get("torchvision")),
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


def judged(model: Any, wanted: vitprune.Recipe, x: np.ndarray) -> tuple[np.ndarray, list[list[list[int]]]]:
    """Logits and kept sets of the PyTorch reference."""
    oracle = reference(model, wanted)
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(x)).numpy()
    return logits, [sets(rows) for rows in oracle.kept]


def agrees(
    dense: onnx.ModelProto,
    judge: Any,
    method: str,
    shapes: str,
    after: Callable[[np.ndarray], np.ndarray] | None = None,
    **graph: Any,
) -> None:
    wanted = recipe(method, shapes, **graph)
    x = images(4, (3, SIDE, SIDE), seed=7)
    logits, kept = judged(judge, wanted, x)
    with torch.inference_mode():
        plain = judge(torch.from_numpy(x)).numpy()
    pruned = surgery.rewrite(dense, wanted)[0]
    size = pruned.graph.input[0].type.tensor_type.shape.dim[0].dim_value or len(x)
    pieces = [run(pruned, x[start : start + size]) for start in range(0, len(x), size)]
    got = np.concatenate([piece[0] for piece in pieces])
    lists = [[row for piece in pieces for row in sets(piece[1 + site])] for site in range(len(kept))]
    if after is not None:
        logits, plain = after(logits), after(plain)
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert lists == kept
    assert np.abs(got - plain).max() > 1e-3, "pruning must change something for equality to mean anything"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_the_reference_gives(form: str, forms: Forms) -> None:
    """Each form with one method, padded or not; which ones goes round."""
    number = list(FORMS).index(form)
    agrees(forms.get(form), forms.timm, list(PRUNE)[number % 4], ["dynamic", "padded"][number % 3 % 2])


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("method", PRUNE)
def test_every_method_on_torchvision(method: str, shapes: str, forms: Forms) -> None:
    agrees(forms.get("torchvision"), forms.timm, method, shapes)


@pytest.mark.parametrize("form", ["torchvision", "timm, batch 1, onnxsim"])
def test_the_whole_command(form: str, forms: Forms, tmp_path: Path) -> None:
    """`rewrite` with all of its checks, then `validate`."""
    path = tmp_path / "dense.onnx"
    onnx.save(forms.get(form), str(path))
    bundle = vitprune.rewrite(path, recipe("ats"), tmp_path / "bundle")
    assert validate(bundle, reference="stored").passed
    x = images(3, (3, SIDE, SIDE), seed=3)
    np.testing.assert_allclose(bundle.run(x).logits, judged(forms.timm, recipe("ats"), x)[0], atol=1e-4)


def test_hugging_face_with_all_tokens_and_a_pooler(forms: Forms, tmp_path: Path) -> None:
    """Two outputs: the pooled one is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            HuggingFaceViT(forms.timm), (X,), str(tmp_path / "hf.onnx"), dynamo=False, opset_version=17, input_names=["pixel_values"],
            output_names=["last_hidden_state", "pooler_output"], dynamic_axes={"pixel_values": {0: "batch"}},
        )  # fmt: skip
    dense = onnx.load(str(tmp_path / "hf.onnx"))
    for method, shapes in (("ats", "dynamic"), ("tome", "padded")):
        agrees(dense, forms.timm, method, shapes, after=np.tanh, output="pooler_output")
    bundle = vitprune.rewrite(tmp_path / "hf.onnx", recipe("evit", output="pooler_output"), tmp_path / "bundle")
    assert validate(bundle, reference="stored").passed


class Weighing(nn.Module):
    """nn.MultiheadAttention that also returns its weights: three axes, images and heads in one."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.net = torchvision_vit(source)

    def forward(self, image: Any) -> Any:
        net = self.net
        x = net._process_input(image)
        x = torch.cat([net.class_token.expand(x.shape[0], -1, -1), x], dim=1) + net.encoder.pos_embedding
        for layer in net.encoder.layers:
            h = layer.ln_1(x)
            x = x + layer.self_attention(h, h, h, need_weights=True)[0]
            x = x + layer.mlp(layer.ln_2(x))
        return net.heads(net.encoder.ln(x)[:, 0])


def test_attention_with_images_and_heads_in_one_axis(forms: Forms) -> None:
    dense = legacy_onnx(Weighing(forms.timm), X, forms.path("weighing"), 17)
    ranks = {
        len(v.type.tensor_type.shape.dim)
        for v in onnx.shape_inference.infer_shapes(dense).graph.value_info
        if "Softmax" in v.name
    }
    assert ranks == {3}
    agrees(dense, forms.timm, "evit", "dynamic")


def contrib(
    op: str, inputs: list[str], outputs: list[str], constants: dict[str, np.ndarray], **attributes: Any
) -> onnx.ModelProto:
    """A graph of one foreign operator on x [2,6,8]."""
    make = onnx.helper
    node = make.make_node(op, inputs, outputs, domain="com.microsoft", name="it", **attributes)
    graph = make.make_graph(
        [node], "one", [make.make_tensor_value_info("x", 1, [2, 6, 8])], [make.make_tensor_value_info(outputs[0], 1, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [make.make_opsetid("", 17), make.make_opsetid("com.microsoft", 1)]
    return make.make_model(graph, opset_imports=opsets, ir_version=8)


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


OPERATORS: dict[str, tuple[list[str], dict[str, np.ndarray], dict[str, Any]]] = {
    "Gelu": (["x"], {}, {}),
    "BiasGelu": (["x", "b"], {"b": rows(8)}, {}),
    "FastGelu": (["x", "b"], {"b": rows(8)}, {}),
    "QuickGelu": (["x"], {}, {"alpha": 1.5}),
    "SkipLayerNormalization": (["x", "s", "w", "b", "c"], {"s": rows(2, 6, 8, seed=1), "w": rows(8), "b": rows(8), "c": rows(8)}, {"epsilon": 1e-3}),
    "SkipSimplifiedLayerNormalization": (["x", "s", "w"], {"s": rows(2, 6, 8, seed=1), "w": rows(8)}, {"epsilon": 1e-3}),
    "FusedMatMul": (["x", "m"], {"m": rows(2, 5, 8)}, {"alpha": 0.3, "transB": 1}),
    "Attention": (["x", "w", "b"], {"w": rows(8, 24), "b": rows(24)}, {"num_heads": 2}),
    "MultiHeadAttention": (["x", "x", "x", "b"], {"b": rows(24)}, {"num_heads": 2}),
}  # fmt: skip


@pytest.mark.parametrize("op", OPERATORS)
def test_foreign_operators_are_written_out_as_they_compute(op: str) -> None:
    inputs, constants, attributes = OPERATORS[op]
    model = contrib(op, inputs, ["y"], constants, **attributes)
    plain, counts = expand(model)
    assert counts == {op: 1}
    assert {node.domain for node in plain.graph.node} <= {"", "ai.onnx"}
    x = rows(2, 6, 8, seed=5)
    np.testing.assert_allclose(run(plain, x)[0], run(model, x)[0], atol=1e-5)


@pytest.mark.parametrize("op", ["NhwcConv", "Attention", "FusedGemm"])
def test_other_foreign_operators_are_refused_by_name(op: str) -> None:
    """One that is not known, one with a mask, one with an activation that is not known."""
    inputs, attributes = {
        "Attention": (["x", "w", "b", "m"], {"num_heads": 2}),
        "FusedGemm": (["x", "w"], {"activation": "Elu"}),
    }.get(op, (["x", "w"], {}))
    model = contrib(op, inputs, ["y"], {"w": rows(8, 24), "b": rows(24), "m": np.ones(2, np.int32)}, **attributes)
    with pytest.raises(ExportError, match="VP334") as error:
        expand(model)
    assert op in error.value.message
    assert "'it'" in error.value.cause
