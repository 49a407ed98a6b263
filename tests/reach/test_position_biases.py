"""Biases of positions on attention logits (BEiT, relative positions): rows follow the queries, columns the keys, merged rows take means."""

from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from helpers import run, sets
from vitprune.errors import ExportError
from vitprune.exporting.graph_vit import GraphViT
from vitprune.graph import biasing
from vitprune.graph.anatomy.find import find
from vitprune.graph.intake import take_in
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.surgery import canonical, rewrite
from vitprune.pipelines import reference
from vitprune.recipe import Recipe
from vitprune.support.attention import PositionBias
from vitprune.vit.pruned import PrunedViT

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))

from merging_support import export, images  # noqa: E402

PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [20, 12]},
    "topk": {"stages": [0, 1], "keep_rate": 0.5},
    "evit": {"stages": [0, 1], "keep_rate": 0.6},
    "tome": {"r": 5},
    "tome_threshold": {"tau": 0.2, "r_max": 8},
    "ward_merge": {"stages": [0, 1], "mu": 2.0},
}
SIZES = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5, "mlp_ratio": 2.0}
KINDS = ("own tables", "shared table", "computed", "post norm")


class HuggingFace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers", reason="extra 'test' brings transformers")
        config = transformers.BeitConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=48, patch_size=8,
            use_relative_position_bias=True, use_mean_pooling=False, attn_implementation="eager",
        )  # fmt: skip
        self.net = transformers.BeitForImageClassification(config)

    def forward(self, image: Any) -> Any:
        return self.net(image).logits


@cache
def made(kind: str) -> Any:
    """Random tables: those of a new model are zero, which is no bias. The exporter here cannot write fused attention with biases."""
    torch.manual_seed(0)
    if kind == "Hugging Face":
        model: Any = HuggingFace()
    elif kind == "own tables":
        model = Beit(**SIZES, use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=0.5)
    elif kind == "shared table":
        model = Beit(**SIZES, use_shared_rel_pos_bias=True)
    else:
        from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock

        block = ResPostRelPosBlock if kind == "post norm" else RelPosBlock
        model = VisionTransformerRelPos(**SIZES, class_token=True, block_fn=block, global_pool="token")
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "table" in name:
                parameter.copy_(noise)
            elif parameter.ndim == 2:
                parameter.copy_(noise * (2.0 / parameter.shape[1]) ** 0.5)
            elif parameter.ndim == 4:
                parameter.copy_(noise * (1.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.2 * noise)
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return model.eval()


@cache
def dense(kind: str) -> onnx.ModelProto:
    return export(made(kind), images(2))


def recipe(method: str, shapes: str = "dynamic") -> Recipe:
    return Recipe.load({"prune": {"method": method, **PRUNE[method]}, "graph": {"shapes": shapes, "batch": "1:4:8"}})


def judged(kind: str, method: str, shapes: str, x: torch.Tensor) -> tuple[np.ndarray, list[Any]]:
    oracle = reference(made(kind), recipe(method, shapes))
    with torch.no_grad():
        return oracle(x).numpy(), oracle.kept


CASES = [
    ("own tables", "ats", "padded"), ("own tables", "evit", "dynamic"), ("own tables", "tome", "dynamic"), ("own tables", "ward_merge", "padded"),
    ("shared table", "topk", "dynamic"), ("shared table", "tome_threshold", "padded"), ("computed", "ats", "dynamic"), ("computed", "tome", "padded"),
    ("post norm", "topk", "dynamic"), ("post norm", "ward_merge", "dynamic"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "method", "shapes"), CASES)
def test_graph_and_reference_agree(kind: str, method: str, shapes: str) -> None:
    x = images(4, seed=3)
    logits, kept = judged(kind, method, shapes, x)
    got, *lists = run(rewrite(dense(kind), recipe(method, shapes), has_cls=True)[0], x.numpy())
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert [sets(rows) for rows in lists[: len(kept)]] == [sets(rows) for rows in kept]
    alone = np.concatenate([run(rewrite(dense(kind), recipe(method, shapes), has_cls=True)[0], x[:1].numpy())[0]])
    np.testing.assert_allclose(alone, got[:1], atol=1e-5)
    with torch.no_grad():
        assert np.abs(made(kind)(x).numpy() - logits).max() > 1e-3, "pruning must change something"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_pruned_is_the_model_itself(kind: str) -> None:
    x, free = images(2), Recipe.load({"prune": {"method": "tome", "r": 0}})
    with torch.no_grad():
        plain = made(kind)(x).numpy()
        np.testing.assert_allclose(reference(made(kind), free)(x).numpy(), plain, atol=1e-5)
    np.testing.assert_allclose(run(canonical(dense(kind), free), x.numpy())[0], plain, atol=1e-5)


def test_hiding_keys_gives_what_removing_tokens_gives() -> None:
    """timm's own projections and biases on all tokens, with those hidden as keys that the reference has dropped."""
    model, x = made("own tables"), images(3, seed=9)
    logits, lists = judged("own tables", "ats", "dynamic", x)
    with torch.no_grad():
        rows = model.patch_embed(x)
        rows = torch.cat([model.cls_token.expand(3, -1, -1), rows], dim=1)
        seen = torch.ones(3, rows.shape[1])
        for number, block in enumerate(model.blocks):
            attn = block.attn
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
            packed = torch.nn.functional.linear(block.norm1(rows), attn.qkv.weight, bias)
            query, key, value = packed.reshape(3, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(2, 3) * attn.scale + attn._get_rel_pos_bias()
            weights = scores.masked_fill(seen[:, None, None, :] == 0, -torch.inf).softmax(dim=-1)
            rows = rows + block.gamma_1 * attn.proj((weights @ value).transpose(1, 2).flatten(2))
            rows = rows + block.gamma_2 * block.mlp(block.norm2(rows))
            if number < len(lists):
                seen = torch.zeros_like(seen)
                seen[:, 0] = 1
                for image, kept in enumerate(lists[number]):
                    seen[image, kept[kept >= 0] + 1] = 1
        hidden = model.forward_head(model.norm(torch.where(seen[:, :, None] > 0, rows, 0.0)))
        left = torch.stack([rows[i, 1:][seen[i, 1:] > 0].mean(dim=0) for i in range(3)])
        hidden = model.head(model.fc_norm(left))
    assert float(seen.min()) == 0
    np.testing.assert_allclose(hidden.numpy(), logits, atol=1e-5)


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_biases_that_do_not_follow_are_noticed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: every row has the biases of its neighbour's place."""
    right_tokens, right_shares = biasing._tokens, biasing._shares

    def tokens(surgery: Any, rows: Any, prefix: int) -> Any:
        found = right_tokens(surgery, rows, prefix)
        if rows.patch is None:
            return found
        emit = surgery.emitter.child(f"planted{len(surgery.graph.nodes)}")
        return emit.op(
            "Max",
            [emit.op("Sub", [found, emit.constant(1)], "one_less", dtype=np.int64), emit.constant(0)],
            "moved",
            dtype=np.int64,
        )

    def shares(surgery: Any, rows: Any, prefix: int) -> Any:
        found = right_shares(surgery, rows, prefix)
        emit = surgery.emitter.child(f"planted{len(surgery.graph.nodes)}")
        return emit.op("Concat", [emit.slice(found, 1, None, 2, "behind"), emit.slice(found, 0, 1, 2, "front")], "moved", axis=2)

    monkeypatch.setattr(biasing, "_tokens", tokens)
    monkeypatch.setattr(biasing, "_shares", shares)
    x = images(3, seed=5)
    got = run(rewrite(dense("own tables"), recipe(method), has_cls=True)[0], x.numpy())[0]
    assert np.abs(got - judged("own tables", method, "dynamic", x)[0]).max() > 1e-3


def test_a_token_without_a_position_takes_the_mean_over_the_patches() -> None:
    table = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
    wide = PositionBias(table, 1).extended()
    np.testing.assert_array_equal(wide[:, :5, :5], table)
    np.testing.assert_allclose(wide[:, 5, :5], table[:, 1:].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(wide[:, :5, 5], table[:, :, 1:].mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(wide[:, 5, 5], table[:, 1:, 1:].mean(axis=(1, 2)), atol=1e-6)


def test_anatomy_reads_the_tables_that_timm_computes() -> None:
    for kind in ("own tables", "shared table"):
        model, found = made(kind), find(dense(kind)).blocks[1].position_bias
        assert found is not None
        assert found.prefix == 1
        wanted = model.blocks[1].attn._get_rel_pos_bias() if kind == "own tables" else model.rel_pos_bias()
        np.testing.assert_allclose(found.table, wanted.detach().reshape(found.table.shape).numpy(), atol=1e-6)


@pytest.mark.parametrize("method", ["topk", "tome"])
def test_hugging_face_beit_agrees_with_the_reference_of_its_graph(method: str) -> None:
    x, rules = images(3, seed=5), recipe(method)
    taken = take_in(dense("Hugging Face"), rules).model
    with torch.no_grad():
        ours = PrunedViT(GraphViT(taken, find(taken)), rules)(x).numpy()
        plain = made("Hugging Face")(x).numpy()
    np.testing.assert_allclose(run(rewrite(dense("Hugging Face"), rules)[0], x.numpy())[0], ours, atol=1e-4)
    np.testing.assert_allclose(run(canonical(dense("Hugging Face"), rules), x.numpy())[0], plain, atol=1e-5)
    assert np.abs(ours - plain).max() > 1e-3, "pruning must change something"


@pytest.mark.parametrize(("method", "shapes"), [("ats", "padded"), ("tome", "dynamic")])
def test_fused_for_onnx_runtime_it_computes_the_same(method: str, shapes: str) -> None:
    """Biases of pairs are no padding mask: the fused operator takes them as they are."""
    x, pruned = images(3, seed=5).numpy(), rewrite(dense("own tables"), recipe(method, shapes), has_cls=True)[0]
    fused, facts = specialise(pruned, keep_outputs=True)
    assert facts["attention"] == 3
    np.testing.assert_allclose(run(fused, x)[0], run(pruned, x)[0], atol=1e-5)


def test_numbers_that_hide_keys_are_a_mask_and_refused() -> None:
    model = copy.deepcopy(made("shared table"))
    with torch.no_grad():
        model.rel_pos_bias.relative_position_bias_table[3] = -1e9
    with pytest.raises(ExportError, match="VP322") as error:
        rewrite(export(model, images(2)), recipe("tome"))
    assert "masks that hide keys" in error.value.cause
    assert "node '" in error.value.cause


def test_half_types_and_windows_are_refused() -> None:
    half = Recipe.load({"prune": {"method": "tome", "r": 2}, "precision": {"mode": "fp16"}})
    with pytest.raises(ExportError, match="VP315"):
        reference(made("own tables"), half)
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    sam = VisionTransformerSAM(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, window_size=4)
    with pytest.raises(ExportError, match="VP310") as error:
        reference(sam, recipe("tome"))
    assert "windows" in error.value.cause
