"""Dropping sites as one operator of the native library: what the plain nodes do, in every way a graph can be fed; and how few nodes are left."""

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
from vitprune.exporting import ranges
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.outlines import KEY, stored
from vitprune.ops.sites import KEY_BIAS_ATTENTION
from vitprune.ops.token_sample import Attributes, token_sample

SIDE, PATCHES, DEPTH = 40, 25, 6
ATS = {"method": "ats", "stages": [2, 3, 4], "num_samples": 20}
ASVIT = {"method": "asvit", "stages": [3, 5], "thresholds": [0.01, 0.03]}
AVIT = {"method": "avit", "compact_at": [2, 4], "gate_scale": 5.0, "gate_center": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "topk": {"method": "topk", "stages": [2, 4], "keep_rate": 0.6},
    "topk, mean attention": {"method": "topk", "stages": [2, 4], "keep_rate": 0.6, "score": "mean_attention"},
    "evit": {"method": "evit", "stages": [2, 4], "keep_rate": 0.6},
    "pomt": {"method": "pomt", "stages": [2], "remove": 10},
    "ats": ATS,
    "ats, official": {**ATS, "mode": "official"},
    "ats, attention alone": {**ATS, "value_norm": False},
    "ats, mean attention": {**ATS, "score": "mean_attention"},
    "ats, capacity": {**ATS, "capacity": [16, 9, 5]},
    "asvit": ASVIT,
    "asvit, plain heads": {**ASVIT, "head_weight": False},
    "asvit, running": {**ASVIT, "score_mode": "ema", "thresholds": [0.03, 0.03]},
    "asvit, capacity": {**ASVIT, "capacity": [12, 5]},
    "avit": AVIT,
    "avit, halted patches stay": {**AVIT, "cls_exit": False},
    "avit, capacity": {**AVIT, "gate_center": 2.0, "capacity": [16, 9]},
    "avit, long": {**AVIT, "gate_center": 3.0, "eps": 0.3},
    "dynamicvit": {"method": "dynamicvit", "stages": [2, 4], "keep_rate": 0.6, "predictor": "random"},
}
OLD = ("TopK", "TokenSample", "GatherND", "GatherElements", "ScatterElements", "NonZero")


def model_of(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=48, depth=DEPTH, num_heads=3, num_classes=7
    ).eval()
    for block in made.blocks:
        block.attn.qkv.weight.data.mul_(4)
    torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    legacy_onnx(model_of(), torch.from_numpy(images(2, (3, SIDE, SIDE))), path, 18)
    return onnx.load(str(path))


def recipe(prune: dict[str, Any], shapes: str = "dynamic", batch: str = "1:4:8", **more: Any) -> vitprune.Recipe:
    return vitprune.Recipe.load({"prune": prune, "graph": {"shapes": shapes, "batch": batch}, **more})


def session(model: onnx.ModelProto, library: Path, threads: int = 1, into: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    if into is not None:
        options.optimized_model_filepath = str(into)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_alike(ours: onnxruntime.InferenceSession, theirs: onnxruntime.InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    found = ours.run(None, {ours.get_inputs()[0].name: x})
    expected = theirs.run(None, {theirs.get_inputs()[0].name: x})
    for value, one, other in zip(ours.get_outputs(), found, expected, strict=True):
        if one.dtype == np.int64:
            np.testing.assert_array_equal(one, other, err_msg=value.name)
        else:
            np.testing.assert_allclose(one, other, atol=2e-5, err_msg=value.name)
    return found


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_the_operator_does_what_the_plain_nodes_do(case: str, shapes: str, dense: onnx.ModelProto, ort_library: Path) -> None:
    model, *_ = surgery.rewrite(dense, recipe(CASES[case], shapes))
    native, facts = specialise(model, keep_outputs=True, native=True)
    plain, _ = specialise(model, keep_outputs=True)
    halting = CASES[case]["method"] == "avit"
    sites = [node for node in native.graph.node if node.op_type == ("TokenHalt" if halting else "PruneSite")]
    lists = [output.name for output in model.graph.output if output.name.startswith("kept_")]
    assert facts["sites"] == len(lists)
    assert len(sites) == facts["halting"] == DEPTH if halting else len(sites) == len(lists)
    assert facts["scores"] == (len(lists) if CASES[case]["method"] in ("dynamicvit", "pomt") else 0)
    biased = sum(node.op_type == KEY_BIAS_ATTENTION for node in native.graph.node)
    assert facts["native"] - biased == len(stored(model)) == len(sites) + facts["scores"]
    assert not any(node.op_type in OLD for node in native.graph.node)
    ours, theirs = session(native, ort_library, threads=2), session(plain, ort_library)
    x = images(5, (3, SIDE, SIDE), seed=3)
    whole = assert_alike(ours, theirs, x)
    assert sum(int((rows >= 0).sum()) for rows in whole[1:]) < 5 * PATCHES * len(lists)  # tokens do leave
    for some in (slice(0, 1), slice(1, 3)):
        part = assert_alike(ours, theirs, x[some])
        np.testing.assert_allclose(part[0], whole[0][some], atol=1e-5)


@pytest.mark.parametrize("batch", ["1", "1:4:8"])
@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("method", ["topk", "evit", "ats", "asvit", "avit", "dynamicvit", "pomt", "ats_merge"])
def test_few_nodes_are_left(
    method: str, shapes: str, batch: str, dense: onnx.ModelProto, ort_library: Path, tmp_path: Path
) -> None:
    """What ONNX Runtime executes: dense + three nodes a site + four, and no arithmetic on shapes."""
    rules = recipe(CASES.get(method, {**ATS, "method": method}), shapes, batch)
    pruned, *_ = surgery.rewrite(dense, rules)
    counted = {}
    for label, graph in (("dense", surgery.canonical(dense, rules)), ("pruned", pruned)):
        special, facts = specialise(graph, keep_outputs=True, native=True)
        assert facts["attention"] == facts["gelu"] == DEPTH
        session(special, ort_library, into=tmp_path / f"{label}.onnx")
        counted[label] = Counter(node.op_type for node in onnx.load(str(tmp_path / f"{label}.onnx")).graph.node)
    sites = sum(output.name.startswith("kept_") for output in pruned.graph.output)
    assert counted["pruned"].total() <= counted["dense"].total() + 3 * sites + 4, counted["pruned"] - counted["dense"]
    for kind in ("Shape", "Concat", "Transpose", "Gelu"):
        assert counted["pruned"][kind] == counted["dense"][kind], kind
    assert counted["pruned"]["MultiHeadAttention"] + counted["pruned"][KEY_BIAS_ATTENTION] == DEPTH
    if batch == "1":
        assert counted["pruned"]["Shape"] == 0


def test_decisions_are_those_of_the_specification(ort_library: Path) -> None:
    """By the scores that the operator tells, bit for bit, whatever is valid."""
    rng = np.random.default_rng(0)
    for mode, threshold in (("inverse_transform", 0.0), ("inverse_transform_official", 0.0), ("threshold", 0.4)):
        for padded in (0, 1):
            attributes = {
                "mode": mode,
                "num_samples": 30,
                "threshold": threshold,
                "capacity": 21 if padded else 0,
                "pad_to_capacity": padded,
            }
            run = alone(
                {"form": "per_head", "heads": 3, "prefix_tokens": 2, "originals": 40, "combine": "nothing", **attributes},
                ort_library,
            )
            for _ in range(6):
                feeds = scored_feeds(rng, batch=4, patches=40, prefix=2, heads=3, width=24)
                rows, index, keep, kept, score = run(["rows", "index", "keep", "kept", "score"], feeds)
                wanted = token_sample(
                    score, feeds["valid"], Attributes(mode, 30, threshold, attributes["capacity"], 0, bool(padded))
                )
                np.testing.assert_array_equal(index, wanted[0])
                np.testing.assert_array_equal(keep, wanted[1])
                np.testing.assert_array_equal(kept, np.where(keep, np.take_along_axis(feeds["patch"], index, 1), -1))
                behind = np.take_along_axis(feeds["x"][:, 2:], index[:, :, None], 1)
                np.testing.assert_array_equal(rows, np.concatenate([feeds["x"][:, :2], behind], axis=1))
                np.testing.assert_allclose(score, per_head(feeds, 3, 2), rtol=2e-5, atol=1e-7)


def scored_feeds(
    rng: np.random.Generator, batch: int, patches: int, prefix: int, heads: int, width: int
) -> dict[str, np.ndarray]:
    tokens = prefix + patches

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    valid = rng.random((batch, patches)) < 0.7
    valid[0] = True
    patch = np.stack([rng.permutation(patches) for _ in range(batch)])
    return {
        "x": normal(batch, tokens, 16), "query": normal(batch, heads * width), "key": normal(batch, tokens, heads * width),
        "value": normal(batch, tokens, heads * width), "valid": valid, "patch": patch,
    }  # fmt: skip


def per_head(feeds: dict[str, np.ndarray], heads: int, prefix: int) -> np.ndarray:
    """Sum over heads of attention times value norm, in float64."""
    batch, tokens, row = feeds["key"].shape
    key, value = (feeds[name].astype(np.float64).reshape(batch, tokens, heads, row // heads) for name in ("key", "value"))
    logits = np.einsum("bhd,bnhd->bhn", feeds["query"].astype(np.float64).reshape(batch, heads, -1), key)
    live = np.concatenate([np.ones((batch, prefix), bool), feeds["valid"]], axis=1)
    logits = np.where(live[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return (weights * np.linalg.norm(value, axis=3).transpose(0, 2, 1)).sum(axis=1)[:, prefix:]


def alone(attributes: dict[str, Any], library: Path) -> Callable[[list[str], dict[str, np.ndarray]], list[np.ndarray]]:
    """A graph of one PruneSite node with all outputs."""
    kinds = {
        np.dtype(np.float32): onnx.TensorProto.FLOAT,
        np.dtype(np.int64): onnx.TensorProto.INT64,
        np.dtype(bool): onnx.TensorProto.BOOL,
    }
    names = ["x", "valid", "query", "key", "value", "", "", "patch"]
    outputs = {
        "rows": 1,
        "": 0,
        "index": 7,
        "keep": 9,
        "patch_out": 7,
        "kept": 7,
        "mask": 6,
        "score_kept": 1,
        "shape": 7,
        "score": 1,
    }
    ranks = {"x": 3, "query": 2, "key": 3, "value": 3, "valid": 2, "patch": 2}
    types = {"valid": kinds[np.dtype(bool)], "patch": kinds[np.dtype(np.int64)]}
    inputs = [onnx.helper.make_tensor_value_info(name, types.get(name, 1), [None] * rank) for name, rank in ranks.items()]
    node = onnx.helper.make_node("PruneSite", names, list(outputs), domain="vitprune", expected=0, **attributes)
    made = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items() if name]
    graph = onnx.helper.make_graph([node], "site", inputs, made)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("vitprune", 1)]
    runner = session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), library)
    return lambda wanted, feeds: runner.run(wanted, {name: feeds[name] for name in ranks})


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
@pytest.mark.parametrize("case", ["ats", "topk", "evit", "asvit", "avit", "dynamicvit", "pomt"])
def test_half_types_round_where_they_did(case: str, mode: str, dense: onnx.ModelProto, ort_library: Path) -> None:
    """A site in which nothing is rounded is an operator there, too, with the same decisions; what is rounded stays plain nodes."""
    model, *_ = surgery.rewrite(dense, recipe(CASES[case], precision={"mode": mode}))
    half = emulated(model)
    native, facts = specialise(half, keep_outputs=True, native=True)
    assert facts["sites"] == sum(output.name.startswith("kept_") for output in model.graph.output)
    if case == "pomt":
        assert facts["scores"] == 0  # its attention is in the half type
    x = images(5, (3, SIDE, SIDE), seed=3)
    assert_alike(session(native, ort_library), session(specialise(half, keep_outputs=True)[0], ort_library), x)


@pytest.mark.parametrize("case", ["ats", "topk", "evit", "ats_merge"])
def test_quantised_products_leave_the_sites_alone(case: str, dense: onnx.ModelProto, ort_library: Path) -> None:
    given = images(16, (3, SIDE, SIDE), seed=5)
    asked = ranges.with_opset(recipe(CASES.get(case, {**ATS, "method": case}), precision={"mode": "int8", "rest": "fp32"}))
    model, *_ = surgery.rewrite(dense, ranges.settle(dense, asked, True, lambda count: given[:count]))
    native, facts = specialise(model, keep_outputs=True, native=True)
    kinds = Counter(node.op_type for node in native.graph.node)
    assert kinds["QuantizeLinear"] > DEPTH
    sites = sum(output.name.startswith("kept_") for output in model.graph.output)
    assert kinds["SampledMerge" if case == "ats_merge" else "PruneSite"] == sites > 0
    plain = session(specialise(model, keep_outputs=True)[0], ort_library)
    assert_alike(session(native, ort_library), plain, images(5, (3, SIDE, SIDE), seed=3))


def test_a_site_with_a_rounding_inside_keeps_its_nodes(dense: onnx.ModelProto) -> None:
    """Planted between the gathering of rows and their readers, in one of three sites: to a half type, or to int8 and back."""
    model, *_ = surgery.rewrite(dense, recipe(ATS))
    rows = stored(model)[1].outputs["rows"]
    assert specialise(model, keep_outputs=True, native=True)[1]["sites"] == 3
    next(node for node in model.graph.node if rows in node.output).output[0] = "planted/exact"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "planted/scale"))
    for there, back, more, to in (
        ("Cast", "Cast", [], onnx.TensorProto.FLOAT16),
        ("QuantizeLinear", "DequantizeLinear", ["planted/scale"], None),
    ):
        spoilt = onnx.ModelProto()
        spoilt.CopyFrom(model)
        attributes = [{}, {}] if to is None else [{"to": to}, {"to": onnx.TensorProto.FLOAT}]
        spoilt.graph.node.append(onnx.helper.make_node(there, ["planted/exact", *more], ["planted/half"], **attributes[0]))
        spoilt.graph.node.append(onnx.helper.make_node(back, ["planted/half", *more], [rows], **attributes[1]))
        assert specialise(spoilt, keep_outputs=True, native=True)[1]["sites"] == 2


def test_a_tampered_outline_is_no_danger(dense: onnx.ModelProto, ort_library: Path) -> None:
    """Names that are not there leave the plain nodes; attributes that make no sense are refused when the session is made."""
    model, *_ = surgery.rewrite(dense, recipe(ATS))
    text = next(entry for entry in model.metadata_props if entry.key == KEY)
    told = json.loads(text.value)

    def sites(changed: dict[str, Any]) -> int:
        text.value = json.dumps([changed, *told[1:]])
        return int(specialise(model, keep_outputs=True, native=True)[1]["sites"])

    assert sites(told[0]) == 3
    assert sites({**told[0], "inputs": {**told[0]["inputs"], "x": "nowhere"}}) == 2
    assert sites({**told[0], "inputs": {**told[0]["inputs"], "more": "image"}}) == 2
    assert sites({**told[0], "inputs": {**told[0]["inputs"], "score": told[0]["outputs"]["index"]}}) == 2
    assert sites({**told[0], "attributes": {}}) == 2
    for key, value, problem in (
        ("form", "nonsense", "form"),
        ("heads", 0, "heads"),
        ("mode", "nonsense", "mode"),
        ("combine", "", "combine"),
    ):
        text.value = json.dumps([{**told[0], "attributes": {**told[0]["attributes"], key: value}}, *told[1:]])
        broken, _ = specialise(model, keep_outputs=True, native=True)
        with pytest.raises(Exception, match=problem):
            session(broken, ort_library)


def test_wrong_shapes_are_refused(ort_library: Path) -> None:
    run = alone(
        {"form": "per_head", "heads": 3, "prefix_tokens": 2, "originals": 40, "combine": "nothing", "mode": "threshold"},
        ort_library,
    )
    feeds = scored_feeds(np.random.default_rng(1), batch=2, patches=8, prefix=2, heads=3, width=8)
    for name in ("query", "key", "value", "valid", "patch"):
        with pytest.raises(Exception, match=name if name != "key" else "shape|heads"):
            run(["rows"], {**feeds, name: feeds[name][:, 1:] if feeds[name].ndim == 2 else feeds[name][:, :-1]})
    with pytest.raises(Exception, match="heads"):
        run(["rows"], {**feeds, "key": feeds["key"][:, :, 1:]})
