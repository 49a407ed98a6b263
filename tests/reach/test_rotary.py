"""Rotary positions: tables leave with their tokens, in the reference and in the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rotary_vits import dense, images, small

from helpers import run, sets
from vitprune.errors import ExportError
from vitprune.exporting.graph_vit import GraphViT
from vitprune.graph import turning
from vitprune.graph.anatomy.find import find
from vitprune.graph.surgery import rewrite
from vitprune.pipelines import reference
from vitprune.recipe import Recipe
from vitprune.vit.pruned import PrunedViT

PRUNE: dict[str, dict[str, Any]] = {
    "ats": {"stages": [0, 1], "num_samples": [20, 12]},
    "topk": {"stages": [1], "keep_rate": 0.5},
    "evit": {"stages": [0, 1], "keep_rate": 0.6},
    "asvit": {"stages": [1], "thresholds": 0.02},
    "tome": {"r": 5},
    "tome_threshold": {"tau": 0.2, "r_max": 8},
    "ward_merge": {"stages": [0, 1]},
    "ats_merge": {"stages": [0, 1], "num_samples": [20, 12]},
}
CASES = [
    ("eva02", "ats", "dynamic"), ("eva02", "tome", "padded"), ("eva02 mean", "tome_threshold", "padded"), ("dinov3", "evit", "dynamic"),
    ("dinov3", "ward_merge", "dynamic"), ("pe", "ats", "padded"), ("pe", "topk", "dynamic"), ("post norm", "ats", "dynamic"),
]  # fmt: skip


def recipe(method: str, shapes: str = "dynamic") -> Recipe:
    return Recipe.load({"prune": {"method": method, **PRUNE[method]}, "graph": {"shapes": shapes, "batch": "1:4:8"}})


def judged(kind: str, method: str, shapes: str, x: torch.Tensor) -> tuple[np.ndarray, list[Any]]:
    oracle = reference(small(kind), recipe(method, shapes))
    with torch.no_grad():
        return oracle(x).numpy(), [sets(rows) for rows in oracle.kept]


@pytest.mark.parametrize(("kind", "method", "shapes"), CASES)
def test_graph_and_reference_agree(kind: str, method: str, shapes: str) -> None:
    x = images(3, seed=5)
    logits, kept = judged(kind, method, shapes, x)
    pruned = rewrite(dense(kind), recipe(method, shapes), has_cls=True)[0]
    got, *lists = run(pruned, x.numpy())
    np.testing.assert_allclose(got, logits, atol=1e-4)
    assert [sets(rows) for rows in lists[: len(kept)]] == kept
    alone = np.concatenate([run(pruned, x[i : i + 1].numpy())[0] for i in range(3)])
    np.testing.assert_allclose(alone, got, atol=1e-5)
    with torch.no_grad():
        assert np.abs(small(kind)(x).numpy() - logits).max() > 1e-3, "pruning must change something"


@pytest.mark.parametrize("kind", ["eva02", "eva02 mean", "dinov3", "pe", "mixed", "post norm"])
def test_nothing_pruned_is_the_model_itself(kind: str) -> None:
    x = images(2)
    with torch.no_grad():
        free = Recipe.load({"prune": {"method": "tome", "r": 0}})
        np.testing.assert_allclose(reference(small(kind), free)(x).numpy(), small(kind)(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["eva02", "dinov3", "mixed"])
def test_hiding_keys_gives_what_removing_tokens_gives(kind: str) -> None:
    """timm's own blocks on all tokens, with those hidden as keys that the reference has dropped: the CLS token sees the same."""
    model, x = small(kind), images(3, seed=9)
    oracle = reference(model, recipe("ats"))
    with torch.no_grad():
        logits = oracle(x)
        rows, rope = model._pos_embed(model.patch_embed(x))
        rows, prefix = model.norm_pre(rows), model.num_prefix_tokens
        seen = torch.ones(3, rows.shape[1])
        for number, block in enumerate(model.blocks):
            hidden = torch.where(seen[:, None, None, :] > 0, 0.0, -torch.inf)
            rows = block(rows, rope=rope[number] if model.rope_mixed else rope, attn_mask=hidden)
            if number < len(oracle.kept):
                seen[:, prefix:] = 0
                for image, kept in enumerate(oracle.kept[number]):
                    seen[image, kept[kept >= 0] + prefix] = 1
        masked = model.forward_head(model.norm(rows))
    assert float(seen.min()) == 0
    np.testing.assert_allclose(masked.numpy(), logits.numpy(), atol=1e-5)


def test_tables_that_stay_behind_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: rows get the tables of the first patches instead of their own."""
    right = turning._rows

    def wrong(surgery: Any, emit: Any, table: np.ndarray, none: float, label: str) -> Any:
        return right(surgery, emit, table if surgery.patch is None else np.roll(table, 1, axis=1), none, label)

    monkeypatch.setattr(turning, "_rows", wrong)
    x = images(3, seed=5)
    got = run(rewrite(dense("eva02"), recipe("ats"), has_cls=True)[0], x.numpy())[0]
    assert np.abs(got - judged("eva02", "ats", "dynamic", x)[0]).max() > 1e-3


def test_anatomy_reads_the_tables_that_timm_computes() -> None:
    for kind, half in (("eva02", False), ("dinov3", True)):
        rotation = find(dense(kind)).blocks[1].rotation
        assert rotation is not None
        assert rotation.half is half
        model = small(kind)
        sin, cos = model._pos_embed(model.patch_embed(images(1)))[1].chunk(2, dim=-1)
        np.testing.assert_allclose(rotation.cos[0], cos.numpy(), atol=1e-6)
        np.testing.assert_allclose(rotation.sin[0], sin.numpy(), atol=1e-6)


def test_the_reference_made_of_the_graph_agrees() -> None:
    x, rules = images(3, seed=5), recipe("ats")
    with torch.no_grad():
        ours = PrunedViT(GraphViT(dense("eva02"), find(dense("eva02"))), rules)(x).numpy()
    np.testing.assert_allclose(ours, judged("eva02", "ats", "dynamic", x)[0], atol=1e-5)


def test_half_precision_is_refused() -> None:
    rules = Recipe.load({"prune": {"method": "tome", "r": 2}, "precision": {"mode": "fp16"}})
    with pytest.raises(ExportError, match="VP315"):
        reference(small("dinov3"), rules)
