"""Attention pooling behind the blocks (SigLIP's head): pads are hidden, merged rows count by their patches, in reference and graph."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitprune
from helpers import run, sets, uneven
from vitprune.errors import ExportError
from vitprune.exporting.graph_vit import GraphViT
from vitprune.graph.anatomy.find import find
from vitprune.graph.intake import take_in
from vitprune.graph.passes import attention_pooling
from vitprune.graph.surgery import canonical, rewrite
from vitprune.pipelines import reference
from vitprune.recipe import Recipe
from vitprune.training.policy import embed
from vitprune.vit.pruned import PrunedViT
from vitprune.vit.timm_vit import TimmViT

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

from merging_support import export, images  # noqa: E402

PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [20, 12], "score": "mean_attention"},
    "topk": {"stages": [1], "keep_rate": 0.5, "score": "mean_attention"},
    "evit": {"stages": [0, 1], "keep_rate": 0.6, "score": "mean_attention"},
    "tome": {"r": 5},
    "tome_threshold": {"tau": 0.2, "r_max": 8},
    "ward_merge": {"stages": [0, 1]},
    "ats_merge": {"stages": [0, 1], "num_samples": [20, 12], "score": "mean_attention"},
}
KINDS: dict[str, dict[str, Any]] = {
    "siglip": {"class_token": False},
    "behind cls": {"class_token": True},
    "with cls": {"class_token": True, "pool_include_prefix": True},
}


@cache
def small(kind: str) -> VisionTransformer:
    """Three blocks, 36 patches, random weights with uneven attention."""
    torch.manual_seed(7)
    model = VisionTransformer(
        img_size=48,
        patch_size=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        num_classes=5,
        mlp_ratio=2,
        global_pool="map",
        **KINDS[kind],
    ).eval()
    return uneven(model, shift=0.5)


@cache
def dense(kind: str) -> onnx.ModelProto:
    return export(small(kind), images(2))


def recipe(method: str, shapes: str = "dynamic") -> Recipe:
    return Recipe.load({"prune": {"method": method, **PRUNE[method]}, "graph": {"shapes": shapes, "batch": "1:4:8"}})


def judged(kind: str, method: str, shapes: str, x: torch.Tensor) -> tuple[np.ndarray, list[Any]]:
    oracle = reference(small(kind), recipe(method, shapes))
    with torch.no_grad():
        return oracle(x).numpy(), [sets(rows) for rows in oracle.kept]


CASES = [
    ("siglip", "ats", "padded"), ("siglip", "ats_merge", "dynamic"), ("siglip", "tome", "dynamic"), ("siglip", "tome_threshold", "padded"),
    ("siglip", "topk", "dynamic"), ("siglip", "ward_merge", "dynamic"), ("behind cls", "evit", "dynamic"), ("with cls", "ats", "dynamic"),
    ("with cls", "tome_threshold", "padded"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "method", "shapes"), CASES)
def test_graph_and_reference_agree(kind: str, method: str, shapes: str) -> None:
    x = images(4, seed=3)
    logits, kept = judged(kind, method, shapes, x)
    pruned = rewrite(dense(kind), recipe(method, shapes), has_cls=kind != "siglip")[0]
    got, *lists = run(pruned, x.numpy())
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert [sets(rows) for rows in lists[: len(kept)]] == kept
    alone = np.concatenate([run(pruned, x[i : i + 1].numpy())[0] for i in range(4)])
    np.testing.assert_allclose(alone, got, atol=1e-5)
    with torch.no_grad():
        assert np.abs(small(kind)(x).numpy() - logits).max() > 1e-3, "pruning must change something"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_pruned_is_the_model_itself(kind: str) -> None:
    x, free = images(2), Recipe.load({"prune": {"method": "tome", "r": 0}})
    with torch.no_grad():
        plain = small(kind)(x).numpy()
        np.testing.assert_allclose(reference(small(kind), free)(x).numpy(), plain, atol=1e-5)
    np.testing.assert_allclose(run(canonical(dense(kind), free), x.numpy())[0], plain, atol=1e-5)


def test_hiding_keys_gives_what_removing_tokens_gives() -> None:
    """timm's own blocks and pool on all tokens, with those hidden as keys that the reference has dropped."""
    model, x = small("siglip"), images(3, seed=9)
    oracle = reference(model, recipe("ats"))
    with torch.no_grad():
        logits = oracle(x)
        rows = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        seen = torch.ones(3, rows.shape[1])
        for number, block in enumerate(model.blocks):
            rows = block(rows, attn_mask=torch.where(seen[:, None, None, :] > 0, 0.0, -torch.inf))
            if number < len(oracle.kept):
                seen = torch.zeros_like(seen)
                for image, kept in enumerate(oracle.kept[number]):
                    seen[image, kept[kept >= 0]] = 1
        pooled = model.attn_pool(model.norm(rows), attn_mask=torch.where(seen[:, None, None, :] > 0, 0.0, -torch.inf))
        masked = model.head(model.fc_norm(pooled))
    assert float(seen.min()) == 0
    np.testing.assert_allclose(masked.numpy(), logits.numpy(), atol=1e-5)


def test_a_row_of_two_patches_is_two_rows() -> None:
    model, rows = small("siglip"), torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        twice = model.forward_head(model.norm(rows[:, [0, 1, 1, 2, 3, 3, 3]]))
        weighed = TimmViT(model).head(rows, torch.tensor([[1.0, 2, 1, 3, 0, 0]] * 2))
    torch.testing.assert_close(weighed, twice, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "shapes"), [("tome", "dynamic"), ("ats", "padded")])
def test_a_pool_without_its_bias_is_noticed(method: str, shapes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: sizes (tome) or pads (ats) do not reach the pool."""
    monkeypatch.setattr(attention_pooling, "_bias", lambda *_: None)
    x = images(4, seed=3)
    got = run(rewrite(dense("siglip"), recipe(method, shapes), has_cls=False)[0], x.numpy())[0]
    assert np.abs(got - judged("siglip", method, shapes, x)[0]).max() > 1e-3


@pytest.mark.parametrize(("kind", "method"), [("siglip", "tome_threshold"), ("with cls", "tome")])
def test_the_reference_made_of_the_graph_agrees(kind: str, method: str) -> None:
    x, rules = images(3, seed=5), recipe(method)
    taken = take_in(dense(kind), rules).model
    with torch.no_grad():
        ours = PrunedViT(GraphViT(taken, find(taken)), rules)(x).numpy()
    np.testing.assert_allclose(ours, judged(kind, method, "dynamic", x)[0], atol=1e-5)


def test_what_is_not_understood_is_refused() -> None:
    """Positions of the pool's own, half types, and methods that may leave no patch."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, class_token=False, global_pool="map"
    ).eval()
    model.attn_pool.pos_embed = torch.nn.Parameter(torch.randn(16, 32))
    with pytest.raises(ExportError, match="VP313"):
        reference(model, recipe("tome"))
    with pytest.raises(ExportError, match="VP327"):
        rewrite(export(model, torch.randn(2, 3, 32, 32)), recipe("tome"))
    half = Recipe.load({"prune": {"method": "tome", "r": 2}, "precision": {"mode": "fp16"}})
    with pytest.raises(ExportError, match="VP315"):
        reference(small("siglip"), half)
    empty = Recipe.load({"prune": {"method": "asvit", "stages": [3], "thresholds": 0.02}})
    deep = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=3, global_pool="map"
    ).eval()
    with pytest.raises(ExportError, match="VP313"):
        reference(deep, empty)
    with pytest.raises(ExportError, match="VP313"):
        rewrite(export(deep, torch.randn(2, 3, 32, 32)), empty, has_cls=True)


class Siglip(torch.nn.Module):
    """Hugging Face's SigLIP vision tower, random weights: its pooled output."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers", reason="extra 'test' brings transformers")
        config = transformers.SiglipVisionConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=8,
            attn_implementation=implementation,
        )  # fmt: skip
        torch.manual_seed(3)
        self.net = transformers.SiglipVisionModel(config)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * (2 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else parameter.data + 0.2 * noise

    def forward(self, image: Any) -> Any:
        return self.net(image).pooler_output


def test_hugging_face_siglip_gives_what_hidden_keys_give() -> None:
    """Padded, so that the pool has pads: the model's own layers and head on all tokens, dropped ones hidden as keys."""
    model, x = Siglip("eager").eval(), images(4, seed=3)
    pruned = rewrite(export(model, x), recipe("ats", "padded"))[0]
    found = run(pruned, x.numpy())
    seen = [torch.zeros(4, 36, dtype=torch.bool) for _ in range(2)]
    for site in range(2):
        for image, rows in enumerate(found[1 + site]):
            seen[site][image, torch.as_tensor(rows[rows >= 0])] = True
    assert len(set(seen[1].sum(dim=1).tolist())) > 1, "no pads otherwise"
    mask = torch.zeros(4, 1, 1, 36).masked_fill(~seen[0][:, None, None, :], -torch.inf)

    def hide(_: Any, args: Any, known: dict[str, Any]) -> Any:
        return args, {**known, "key_padding_mask": ~seen[1]}

    with torch.no_grad():
        plain = model(x).numpy()
        model.net.encoder.layers[1].register_forward_pre_hook(lambda _, args: (args[0], mask, *args[2:]))
        model.net.head.attention.register_forward_pre_hook(hide, with_kwargs=True)
        hidden = model(x).numpy()
    np.testing.assert_allclose(found[0], hidden, atol=1e-4)
    assert np.abs(hidden - plain).max() > 1e-3, "pruning must change something"


def test_hugging_face_siglip_merged_agrees_with_the_reference_of_its_graph() -> None:
    model, x, rules = Siglip("sdpa").eval(), images(3, seed=5), recipe("tome")
    graph = export(model, x)
    taken = take_in(graph, rules).model
    with torch.no_grad():
        ours = PrunedViT(GraphViT(taken, find(taken)), rules)(x).numpy()
        plain = model(x).numpy()
    np.testing.assert_allclose(run(rewrite(graph, rules)[0], x.numpy())[0], ours, atol=1e-4)
    np.testing.assert_allclose(run(canonical(graph, rules), x.numpy())[0], plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(ours - plain).max() > 1e-3, "merging must change something"


def test_masked_training_is_refused() -> None:
    with pytest.raises(ExportError, match="VP313"):
        embed(small("siglip"), images(1))


def test_the_public_verbs(tmp_path: Path) -> None:
    """`export` of timm's model, `rewrite` of Hugging Face's graph."""
    rules = recipe("tome")
    vitprune.export(small("siglip"), rules, tmp_path / "exported")
    onnx.save(export(Siglip("sdpa").eval(), images(2)), tmp_path / "siglip.onnx")
    vitprune.rewrite(tmp_path / "siglip.onnx", rules, tmp_path / "rewritten")
    for bundle in ("exported", "rewritten"):
        assert (tmp_path / bundle).is_dir()
