"""No-op and pruned parity on timm families, other exporters, and refusals that name the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from helpers import ats, images, legacy_onnx, run, sets, tiny
from vitprune.errors import ExportError
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import find
from vitprune.graph.intake import upgrade
from vitprune.ops.token_sample import NAME
from vitprune.pipelines import reference
from vitprune.recipe import Recipe

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
FAMILIES = {
    "deit": ("deit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "vit augreg": ("vit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 112, "patch_size": 14, "num_classes": 10}),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 112, "patch_size": 14, "num_classes": 10}),
    "clip": ("vit_base_patch32_clip_224", {}),
    "q/k norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
}
RECIPE = ats(stages=[1, 2, 3], num_samples=[40, 30, 20])


def keep_everything(recipe: Recipe, dense: onnx.ModelProto) -> onnx.ModelProto:
    """The rewritten graph with every TokenSample turned into a threshold that nothing fails: all inserted nodes run, nothing leaves."""
    from vitprune.ops.function import function

    pruned = surgery.rewrite(dense, recipe)[0]
    del pruned.functions[:]
    pruned.functions.append(function("threshold", overflow=False, padded=False))
    for node in pruned.graph.node:
        if node.op_type == NAME:
            for attribute in node.attribute:
                if attribute.name == "threshold":
                    attribute.f = -1.0
                if attribute.name == "mode":
                    attribute.s = b"threshold"
    return pruned


@pytest.mark.parametrize("family", FAMILIES)
def test_no_op_and_pruned_parity(family):
    name, args = FAMILIES[family]
    model = tiny(name, **(SMALL | args))
    size = (SMALL | args)["img_size"]
    recipe, free = Recipe.load(RECIPE), Recipe.load({**RECIPE, **ats(stages=[1, 2, 3], num_samples=None)})
    if family == "average pooling":
        with pytest.raises(ExportError, match="VP312"):  # the graph alone cannot show that token 0 is a class token
            surgery.rewrite(dense_onnx(model, (3, size, size), recipe), recipe)
    dense = dense_onnx(model, (3, size, size), recipe)
    x = images(3, (3, size, size))
    with torch.inference_mode():
        dense_logits = model(torch.from_numpy(x)).numpy()
        oracle = reference(model, recipe)
        logits = oracle(torch.from_numpy(x)).numpy()
        assert np.abs(reference(model, free)(torch.from_numpy(x)).numpy() - dense_logits).max() <= 1e-5
    assert np.abs(run(surgery.rewrite(dense, free, has_cls=True)[0], x)[0] - dense_logits).max() <= 1e-5
    monkey = keep_everything(recipe, dense) if family != "average pooling" else None
    if monkey is not None:
        kept_all = run(monkey, x)
        assert np.abs(kept_all[0] - dense_logits).max() <= 1e-5
        assert all(len(row) == find(dense).patches for row in sets(kept_all[3]))
    pruned = surgery.rewrite(dense, recipe, has_cls=True)[0]
    graph_logits, *graph_kept = run(pruned, x)
    assert np.abs(graph_logits - logits).max() <= 1e-4
    assert [sets(rows) for rows in graph_kept] == [sets(rows) for rows in oracle.kept]
    assert np.abs(logits - dense_logits).max() > 1e-3, "pruning must change something for parity to mean anything"


def test_structure_after_surgery(tiny_dense):
    recipe = Recipe.load(RECIPE)
    pruned = surgery.rewrite(tiny_dense, recipe)[0]
    operators = [node.op_type for node in pruned.graph.node]
    assert operators.count(NAME) == 3
    assert [body.name for body in pruned.functions] == [NAME]
    assert surgery.forbidden(pruned) == []
    assert pruned.ir_version <= 10
    assert max(entry.version for entry in pruned.opset_import if entry.domain == "") == 18
    readers: dict[str, int] = {}
    for node in pruned.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    chains = [node for node in pruned.graph.node if node.op_type == "Softmax" and node.name.endswith("/probabilities")]
    assert len(chains) == 4
    assert all(readers[node.output[0]] == 1 for node in chains)


def test_static_batch_of_one_from_an_old_opset(tmp_path):
    """The legacy exporter bakes sizes into reshapes and writes LayerNorm as nine primitives at opset 14."""
    model = tiny()
    x = images(2)
    dense = legacy_onnx(model, torch.from_numpy(x), tmp_path / "legacy.onnx", 14)
    assert not any(node.op_type == "LayerNormalization" for node in dense.graph.node)
    recipe = Recipe.load(RECIPE)
    oracle = reference(model, recipe)
    with torch.inference_mode():
        logits = oracle(torch.from_numpy(x)).numpy()
    graph_logits, *kept = run(surgery.rewrite(dense, recipe)[0], x)
    assert np.abs(graph_logits - logits).max() <= 1e-4
    assert [sets(rows) for rows in kept] == [sets(rows) for rows in oracle.kept]


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_hugging_face_models_by_the_legacy_exporter(kind, tmp_path):
    """Separate q, k, v projections, decomposed norms; pruning by one-site-only top counts must still read the right rows."""
    transformers = pytest.importorskip("transformers", reason="extra 'test' brings transformers")
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "num_labels": 10,
    }
    torch.manual_seed(0)
    if kind == "ViT":
        net = transformers.ViTForImageClassification(
            transformers.ViTConfig(intermediate_size=128, attn_implementation="eager", **sizes)
        )
    else:
        net = transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(attn_implementation="eager", layerscale_value=0.5, **sizes)
        )

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net.eval()

        def forward(self, image):
            return self.net(image).logits

    x = images(2)
    dense = legacy_onnx(Logits(), torch.from_numpy(x), tmp_path / "hf.onnx", 14)
    with torch.inference_mode():
        dense_logits = Logits()(torch.from_numpy(x)).numpy()
    recipe = Recipe.load(RECIPE)
    anatomy = find(upgrade(dense, 18))
    assert (len(anatomy.blocks), anatomy.patches, anatomy.prefix, anatomy.reads_cls) == (4, 64, 1, True)
    assert np.abs(run(surgery.canonical(dense, recipe), x)[0] - dense_logits).max() <= 1e-5
    assert np.abs(run(keep_everything(recipe, dense), x)[0] - dense_logits).max() <= 1e-5
    pruned = surgery.rewrite(dense, recipe)[0]
    whole, *kept = run(pruned, x)
    alone = np.concatenate([run(pruned, x[i : i + 1])[0] for i in range(2)])
    assert np.abs(whole - alone).max() <= 1e-5
    assert all(0 < len(row) < 64 for row in sets(kept[0]))


def test_refusals_name_the_reason():
    import timm

    from vitprune.pipelines import reference as make

    siglip = timm.create_model("vit_base_patch32_siglip_256", embed_dim=64, depth=2, num_heads=4, img_size=64).eval()
    with pytest.raises(ExportError) as error:
        make(siglip, Recipe.load(ats(stages=[1])))
    assert error.value.code == "VP312"
    assert "CLS" in error.value.cause
    convnet = timm.create_model("resnet18").eval()
    with pytest.raises(ExportError, match="VP310"):
        make(convnet, Recipe.load(ats(stages=[1])))


def test_a_cnn_is_refused():
    import timm

    recipe = Recipe.load(ats(stages=[1]))
    cnn = dense_onnx(timm.create_model("resnet18", num_classes=3).eval(), (3, 64, 64), recipe)
    with pytest.raises(ExportError) as error:
        surgery.rewrite(cnn, recipe)
    assert error.value.code == "VP321"
    assert "Conv" in error.value.cause
