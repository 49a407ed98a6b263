"""Merging sites as one operator of the native library: what the plain nodes do, alone and in batches, dynamic, padded and fixed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

import vitprune
from helpers import images, legacy_onnx
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.outlines import KEY, stored

SIDE = 40
CASES: dict[str, dict[str, Any]] = {
    "ward": {"method": "ward_merge", "mu": 0.6, "trace": True},
    "ward, three rounds, sketch, no power": {
        "method": "ward_merge", "mu": 1.5, "rounds": 3, "sketch": 16, "importance_power": 0.0, "trace": True,
    },
    "ward, sketch of sums of unlike length": {"method": "ward_merge", "mu": 0.6, "sketch": 20},
    "ward, fixed": {"method": "ward_merge", "counts": "fixed", "r": [4, 9, 3], "trace": True},
    "ward, capacity": {"method": "ward_merge", "mu": 0.6, "capacity": [14, 9, 5], "trace": True},
    "ward, no sizes": {"method": "ward_merge", "mu": 0.6, "prop_attn": False},
    "tome": {"method": "tome", "r": 4, "trace": True},
    "tome, all of A": {"method": "tome", "r": [12, 2, 1, 1]},
    "threshold": {"method": "tome_threshold", "tau": 0.6, "r_max": 5, "trace": True},
    "sampled": {"method": "ats_merge", "stages": [1, 2, 3], "num_samples": 16, "trace": True},
    "sampled, official": {"method": "ats_merge", "stages": [1, 2, 3], "num_samples": 16, "mode": "official", "trace": True},
    "sampled, mean attention": {"method": "ats_merge", "stages": [1, 2, 3], "num_samples": 16, "score": "mean_attention"},
    "sampled, capacity, no sizes": {
        "method": "ats_merge", "stages": [1, 2, 3], "num_samples": 20, "capacity": [16, 9, 5], "prop_attn": False,
    },
    "threshold, capacity": {"method": "tome_threshold", "tau": 0.7, "r_max": 6, "capacity": [21, 17, 15, 14], "trace": True},
}  # fmt: skip


def model_of(pool: str = "token", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=7, global_pool=pool,
        fc_norm=False,
    ).eval()  # fmt: skip
    for block in made.blocks:
        block.attn.qkv.weight.data.mul_(4)
    torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], onnx.ModelProto]:
    made: dict[str, onnx.ModelProto] = {}

    def get(pool: str) -> onnx.ModelProto:
        if pool not in made:
            path = tmp_path_factory.mktemp("dense") / "dense.onnx"
            legacy_onnx(model_of(pool), torch.from_numpy(images(2, (3, SIDE, SIDE))), path, 18)
            made[pool] = onnx.load(str(path))
        return made[pool]

    return get


def session(model: onnx.ModelProto, library: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_the_operator_does_what_the_plain_nodes_do(
    case: str, shapes: str, dense: Callable[[str], onnx.ModelProto], ort_library: Path
) -> None:
    pool = "avg" if case == "ward" else "token"
    wanted = vitprune.Recipe.load({"prune": CASES[case], "graph": {"shapes": shapes, "batch": "1:4:8"}})
    model, *_ = surgery.rewrite(dense(pool), wanted)
    native, facts = specialise(model, keep_outputs=True, native=True)
    plain, _ = specialise(model, keep_outputs=True)
    sites = [node for node in native.graph.node if node.op_type in ("WardMerge", "PairMerge", "SampledMerge")]
    assert facts["merging"] == len(sites) == len(stored(model)) >= 3
    assert not any(node.op_type in ("TopK", "ArgMin", "ArgMax", "ScatterND", "TokenSample") for node in native.graph.node)
    ours, theirs = session(native, ort_library), session(plain, ort_library)
    x = images(5, (3, SIDE, SIDE), seed=3)
    for batch in (x[:1], x, x[1:3]):
        found = ours.run(None, {ours.get_inputs()[0].name: batch})
        expected = theirs.run(None, {theirs.get_inputs()[0].name: batch})
        for value, one, other in zip(ours.get_outputs(), found, expected, strict=True):
            if one.dtype == np.int64:
                np.testing.assert_array_equal(one, other, err_msg=value.name)
            else:
                np.testing.assert_allclose(one, other, atol=2e-5, err_msg=value.name)


def test_nothing_of_a_site_is_left_beside_its_operator(dense: Callable[[str], onnx.ModelProto]) -> None:
    """Neither a second CLS row, nor the sketch's pieces, nor a bias spread over the queries."""
    wanted = vitprune.Recipe.load({"prune": {"method": "ward_merge", "mu": 0.6, "sketch": 16}})
    native, _ = specialise(surgery.rewrite(dense("token"), wanted)[0], keep_outputs=False, native=True)
    plain, _ = specialise(surgery.canonical(dense("token"), wanted), keep_outputs=False)
    more = Counter(node.op_type for node in native.graph.node) - Counter(node.op_type for node in plain.graph.node)
    assert more["SketchProducts"] == more["WardMerge"] == 3
    assert not {"MatMul", "Softmax", "ReduceSum", "Expand", "Gemm", "Mul", "Add"} & set(more)


def test_an_older_outline_still_serves(dense: Callable[[str], onnx.ModelProto], ort_library: Path) -> None:
    """One without queries and heads: the row of the CLS token is taken from the plain nodes."""
    model, *_ = surgery.rewrite(dense("token"), vitprune.Recipe.load({"prune": CASES["ward"]}))
    plain, _ = specialise(model, keep_outputs=True)
    text = next(entry for entry in model.metadata_props if entry.key == KEY)
    told = json.loads(text.value)
    for one in told:
        for role in ("query", "key", "asked_bias"):
            one["inputs"].pop(role, None)
        one["attributes"].pop("heads")
    text.value = json.dumps(told)
    older, facts = specialise(model, keep_outputs=True, native=True)
    assert facts["merging"] == len(told)
    x = images(3, (3, SIDE, SIDE), seed=3)
    ours, theirs = session(older, ort_library), session(plain, ort_library)
    for one, other in zip(ours.run(None, {"image": x}), theirs.run(None, {"image": x}), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(("role", "said"), [("query", "a query needs keys|query must be"), ("key", "key has a wrong shape")])
def test_inputs_of_a_wrong_form_are_refused(
    role: str, said: str, dense: Callable[[str], onnx.ModelProto], ort_library: Path
) -> None:
    """A query or keys that are of other rows end the run with a reason; nothing is read beyond them."""
    model, *_ = surgery.rewrite(dense("token"), vitprune.Recipe.load({"prune": CASES["ward"]}))
    native, _ = specialise(model, keep_outputs=False, native=True)
    site = next(node for node in native.graph.node if node.op_type == "WardMerge")
    place = 7 if role == "query" else 8
    native.graph.node.insert(0, onnx.helper.make_node("Concat", [site.input[place]] * 2, ["twice"], axis=1))
    moved = native.graph.node[0]
    del native.graph.node[0]
    at = next(number for number, node in enumerate(native.graph.node) if node.name == site.name)
    native.graph.node.insert(at, moved)
    native.graph.node[at + 1].input[place] = "twice"
    broken = session(native, ort_library)
    with pytest.raises(Exception, match=said):
        broken.run(None, {"image": images(2, (3, SIDE, SIDE))})


def test_half_types_keep_their_nodes(dense: Callable[[str], onnx.ModelProto]) -> None:
    wanted = vitprune.Recipe.load({"prune": CASES["tome"], "precision": {"mode": "fp16"}})
    model, *_ = surgery.rewrite(dense("token"), wanted)
    assert specialise(emulated(model), keep_outputs=True, native=True)[1]["merging"] == 0


def test_a_tampered_outline_is_no_danger(dense: Callable[[str], onnx.ModelProto], ort_library: Path) -> None:
    """Names that are not there leave the plain nodes; attributes that make no sense are refused when the session is made."""
    model, *_ = surgery.rewrite(dense("token"), vitprune.Recipe.load({"prune": CASES["tome"]}))
    text = next(entry for entry in model.metadata_props if entry.key == KEY)
    told = json.loads(text.value)
    told[0]["inputs"]["x"] = "nowhere"
    text.value = json.dumps(told)
    _, facts = specialise(model, keep_outputs=True, native=True)
    assert facts["merging"] == len(told) - 1
    less = {key: value for key, value in told[1]["attributes"].items() if key != "prefix"}
    text.value = json.dumps([told[0], {**told[1], "attributes": less}])
    assert specialise(model, keep_outputs=True, native=True)[1]["merging"] == 0
    told[1]["attributes"]["prefix"] = -3
    text.value = json.dumps(told)
    broken, _ = specialise(model, keep_outputs=True, native=True)
    with pytest.raises(Exception, match="negative"):
        session(broken, ort_library)
    for nonsense in (
        "{",
        "[1]",
        "[" * 100_000,
        '[{"kind": "PairMerge"}]',
        '[{"kind": 1, "inputs": {"x": 2}, "outputs": {}, "attributes": {}}]',
    ):
        text.value = nonsense
        assert stored(model) == []
        assert specialise(model, keep_outputs=True, native=True)[1]["merging"] == 0
