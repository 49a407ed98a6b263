"""Packed execution: what padded batches give, alone and in batches, for every method whose counts differ between images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import vitprune
from helpers import images, legacy_onnx
from vitprune import cli, engines, targets
from vitprune.backends.onnxruntime import make_session
from vitprune.errors import BuildError, RecipeError, VitpruneError
from vitprune.graph import ragged, surgery
from vitprune.graph.lowering import layouts
from vitprune.graph.lowering import packed as lowering
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.ops import packed_attention
from vitprune.pipelines import open_bundle, validate

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import packed as bench

sys.path.insert(0, str(Path(__file__).parents[1] / "reach"))
import test_position_biases as biased

SIDE = 40
TARGET = "onnxruntime-cpu"
# method keys; how many attentions of the five blocks have rows to pack
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "ats": ({"method": "ats", "stages": [1, 2, 3], "num_samples": 14}, 4),
    "ats, first block": ({"method": "ats", "stages": [0, 2], "num_samples": 25}, 5),
    "ats, capacity": ({"method": "ats", "stages": [1, 3], "num_samples": 18, "capacity": [16, 11]}, 4),
    "asvit": ({"method": "asvit", "stages": [3, 4], "thresholds": [0.038, 0.04]}, 2),
    "avit": ({"method": "avit", "compact_at": [1, 3], "gate_scale": 3.0, "gate_center": 1.0, "channel": 4, "cls_exit": False}, 4),
    "avit, exit": ({"method": "avit", "compact_at": [2, 4], "gate_scale": 3.0, "gate_center": 1.0, "channel": 4}, 3),
    "tome_threshold": ({"method": "tome_threshold", "tau": 0.6, "r_max": 5}, 4),
    "ats_merge": ({"method": "ats_merge", "stages": [1, 2], "num_samples": 14}, 3),
    "ward": ({"method": "ward_merge", "mu": 0.6, "trace": True}, 4),
    "ward, no sizes": ({"method": "ward_merge", "mu": 0.9, "prop_attn": False}, 4),
}


def model_of(pool: str, name: str = "vit_tiny_patch16_224") -> Any:
    torch.manual_seed(0)
    made = timm.create_model(
        name, img_size=SIDE, patch_size=8, embed_dim=48, depth=5, num_heads=3, num_classes=7, global_pool=pool, fc_norm=False,
    ).eval()  # fmt: skip
    for block in made.blocks:
        block.attn.qkv.weight.data.mul_(4)
    torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., onnx.ModelProto]:
    made: dict[tuple[str, ...], onnx.ModelProto] = {}

    def get(pool: str = "token", name: str = "vit_tiny_patch16_224") -> onnx.ModelProto:
        if (pool, name) not in made:
            path = tmp_path_factory.mktemp("dense") / "dense.onnx"
            legacy_onnx(model_of(pool, name), torch.from_numpy(images(2, (3, SIDE, SIDE))), path, 18)
            made[pool, name] = onnx.load(str(path))
        return made[pool, name]

    return get


def pruned(dense: onnx.ModelProto, prune: dict[str, Any], **graph: Any) -> onnx.ModelProto:
    return surgery.rewrite(dense, vitprune.Recipe.load({"prune": prune, "graph": {"batch": "1:4:8", **graph}}))[0]


def pair(model: onnx.ModelProto, library: Path, attentions: int) -> tuple[Any, Any]:
    """Padded and packed sessions of a model."""
    padded, _ = specialise(model, keep_outputs=True, native=True)
    packed, facts = specialise(model, keep_outputs=True, native=True, packed=True)
    assert facts["packed"]["attention"] == attentions
    return opened(padded, library), opened(packed, library)


def opened(model: onnx.ModelProto, library: Path | None) -> Any:
    return make_session(model.SerializeToString(), threads=1, library=library)


def run(session: onnxruntime.InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    return session.run(None, {session.get_inputs()[0].name: x})


def varied(count: int) -> np.ndarray:
    """Images of unlike contrast, so that methods keep unlike numbers of tokens."""
    return images(count, (3, SIDE, SIDE), seed=3) * np.linspace(0.05, 2.5, count, dtype=np.float32)[:, None, None, None]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if one.dtype == np.int64:
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_packed_is_padded(case: str, dense: Callable[..., onnx.ModelProto], ort_library: Path) -> None:
    """All outputs, in batches of several compositions; and what an image gets does not depend on its batch mates."""
    prune, attentions = CASES[case]
    padded, packed = pair(pruned(dense(), prune), ort_library, attentions)
    x = varied(6)
    together = run(packed, x)
    counts = [(one >= 0).sum(axis=1) for one in together[1:] if one.dtype == np.int64]
    if "capacity" not in prune:
        assert any(len(set(one.tolist())) > 1 for one in counts), "the images of this test keep as many tokens each"
    for order in ([0, 1, 2, 3, 4, 5], [5, 0], [3, 3, 1], *([one] for one in range(6))):
        found = run(packed, x[order])
        same(found, run(padded, x[order]))
        np.testing.assert_allclose(found[0], together[0][order], atol=1e-5)


@pytest.mark.parametrize("pool", ["avg"])
def test_heads_that_read_all_tokens(pool: str, dense: Callable[..., onnx.ModelProto], ort_library: Path) -> None:
    padded, packed = pair(pruned(dense(pool), CASES["tome_threshold"][0]), ort_library, 4)
    same(run(packed, varied(5)), run(padded, varied(5)))


def test_all_and_one(dense: Callable[..., onnx.ModelProto], ort_library: Path) -> None:
    """Decisions from outside: images that keep everything beside images that keep one token, at every site."""
    model = bench.steered(pruned(dense(), CASES["ats"][0]))
    assert len(ragged.stored(model)[1]) == 1 + 2 * 3
    padded, packed = pair(model, ort_library, 4)
    rng = np.random.default_rng(5)
    for kept in (
        [[25, 1, 25], [25, 1, 1], [25, 1, 1]],
        [[1, 1], [1, 1], [1, 1]],
        [[25, 25], [25, 25], [25, 25]],
        [[7], [3], [1]],
    ):
        batch = len(kept[0])
        fed = bench.decisions(np.array(kept), rng, patches=25)
        fed[packed.get_inputs()[0].name] = images(batch, (3, SIDE, SIDE), seed=batch)
        found = [
            session.run(["logits"], {one.name: fed[one.name] for one in session.get_inputs()})[0] for session in (padded, packed)
        ]
        np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_the_function_body_does_the_same(dense: Callable[..., onnx.ModelProto], ort_library: Path) -> None:
    """The packed graph without any native code: plain operators all the way."""
    model = pruned(dense(), CASES["ats"][0])
    packed, _ = specialise(model, keep_outputs=True, packed=True)
    packed.functions.append(packed_attention.function(bias=False))
    padded, _ = specialise(model, keep_outputs=True)
    same(run(opened(packed, None), varied(4)), run(opened(padded, None), varied(4)))
    del ort_library


def test_linear_maps_norms_and_activations_have_no_pads(dense: Callable[..., onnx.ModelProto]) -> None:
    """Behind the first site only the score reads keys with pads; nothing else is brought back."""
    packed, facts = specialise(pruned(dense(), CASES["ats"][0]), keep_outputs=True, native=True, packed=True)
    assert facts["packed"] == {"attention": 4, "unpacked": 4}  # keys and value norms of the two sites that enter packed
    gemms = [node for node in packed.graph.node if node.op_type == "Gemm" and node.name.endswith("/gemm")]
    assert (
        len(gemms) >= 4 * 6 - 2
    )  # q, k, v, projection and both halves of the MLP of four blocks, but keys and values of the first


@pytest.mark.parametrize(("case", "planted"), [("avit", "bias"), ("tome_threshold", "bias"), ("ats", "rows")])
def test_a_planted_defect_is_noticed(
    case: str, planted: str, dense: Callable[..., onnx.ModelProto], ort_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key biases taken for padding masks; rows of an image gathered from the images' own numbers."""
    if planted == "bias":
        monkeypatch.setattr(lowering, "_hides_only", lambda flat, keep: True)
    else:
        monkeypatch.setattr(
            layouts.Layout,
            "place",
            lambda self: self.emit.op("CumSum", [self.live(), self.emit.constant(1)], "p", dtype=np.int64),
        )
    padded, packed = pair(pruned(dense(), CASES[case][0]), ort_library, 4)
    with pytest.raises((AssertionError, VitpruneError, Fail)):
        same(run(packed, varied(5)), run(padded, varied(5)))


@pytest.mark.parametrize(("prune", "graph"), [
    ({"method": "topk", "stages": [1], "keep_rate": 0.5}, {}), ({"method": "tome", "r": 3}, {}),
    ({"method": "asvit", "stages": [3], "thresholds": [0.04], "infer": "batch_topk"}, {}),
    (CASES["ats"][0], {"shapes": "padded"}), (CASES["ats"][0], {"batch": "1"}),
])  # fmt: skip
def test_equal_counts_name_no_place(prune: dict[str, Any], graph: dict[str, Any], dense: Callable[..., onnx.ModelProto]) -> None:
    model = pruned(dense(), prune, **graph)
    assert ragged.stored(model) == (0, [])
    assert specialise(model, keep_outputs=True, native=True, packed=True)[1]["packed"] == {"attention": 0, "unpacked": 0}


def test_biases_between_positions_keep_their_pads(ort_library: Path) -> None:
    """A bias for every pair of tokens is none of a key alone: such attention stays as it is, and `build-engine` refuses (VP535)."""
    model = surgery.rewrite(biased.dense("own tables"), biased.recipe("ats"), has_cls=True)[0]
    assert len(ragged.stored(model)[1]) == 5
    padded, packed = pair(model, ort_library, 0)
    x = biased.images(5, seed=3).numpy()
    same(run(packed, x), run(padded, x))


def test_tampered_places_are_no_danger(dense: Callable[..., onnx.ModelProto], ort_library: Path) -> None:
    """Names that are not there leave pads where they are; nonsense is no place at all."""
    model = pruned(dense(), CASES["ats"][0])
    entry = next(one for one in model.metadata_props if one.key == ragged.KEY)
    told = json.loads(entry.value)
    for place in told["places"][-2:]:
        place["tokens"] = "nowhere"
    entry.value = json.dumps(told)
    padded, packed = pair(model, ort_library, 2)
    same(run(packed, varied(3)), run(padded, varied(3)))
    for nonsense in ("{", "[]", "[" * 100_000, '{"prefix": 1, "places": [{"tokens": 3}]}', '{"prefix": true, "places": []}'):
        entry.value = nonsense
        assert ragged.stored(model) == (0, [])


def test_the_engine(bundle_copy: Path, ort_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["build-engine", str(bundle_copy), "--target", TARGET, "--batching", "packed", "--plugin", str(ort_library)]
    assert cli.run(command) == 0
    document = json.loads((bundle_copy / "engines" / TARGET / "engine.json").read_text())
    assert document["batching"] == "packed"
    assert document["facts"]["packed"]["attention"] == 3
    assert document["facts"]["sites"] == 0, "an operator for a whole site wants all rows with pads"
    assert validate(open_bundle(bundle_copy), target=TARGET).passed


def test_the_engine_is_refused_where_it_gains_nothing(
    bundle_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = open_bundle(bundle_copy), targets.load(TARGET)
    with pytest.raises(BuildError, match="VP536"):
        engines.build_engine(bundle, target, batching="packed", plugin="none")
    with pytest.raises(RecipeError, match="VP147"):
        engines.build_engine(bundle, target, batching="ragged")
    assert cli.run(["build-engine", str(bundle_copy), "--target", "rtx", "--batching", "packed"]) == 2
    assert "VP199" in capsys.readouterr().err
    monkeypatch.setattr(ragged, "stored", lambda model: (0, []))
    with pytest.raises(BuildError, match="VP535") as refused:
        engines.build_engine(bundle, target, batching="packed")
    assert "tokens per image and site" in refused.value.cause
    recipe = bundle.recipe
    for graph, cause in (({"shapes": "padded"}, "capacity"), ({"batch": "1"}, "one image")):
        changed = recipe.model_copy(update={"graph": recipe.graph.model_copy(update=graph)})
        monkeypatch.setattr(bundle, "recipe", changed, raising=False)
        with pytest.raises(BuildError, match="VP535") as refused:
            engines.build_engine(bundle, target, batching="packed")
        assert cause in refused.value.cause
