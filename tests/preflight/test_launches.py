"""The launch model: figures computed by hand, kernels counted on real graphs, and what inspect and check make of them."""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest

from vitprune import targets
from vitprune.bundle import Bundle, open_bundle
from vitprune.cli import run as cli
from vitprune.exporting.inspecting import launches
from vitprune.graph import skeletons
from vitprune.graph.launches import Launches, by_block, executed, with_plugins
from vitprune.methods.base import BlockTokens, Geometry
from vitprune.methods.cost import dense_blocks
from vitprune.preflight import launch_model
from vitprune.preflight.check import check
from vitprune.preflight.findings import Verdict
from vitprune.support.device_speed import LaunchTime, Speed
from vitprune.support.resources import shipped_targets

# One block of 4 tokens, width 2, hidden 8: small enough to be counted on paper.
SMALL = Geometry(depth=1, patches=3, prefix=1, width=2, heads=1, mlp_hidden=8, embed_macs=30, classes=10)
DENSE, PRUNED = dense_blocks(SMALL), [BlockTokens(4, 3, 3)]
LAUNCH = LaunchTime(kernel_us=3, captured_us=0.5, copy_us=20)


def test_bytes_and_macs_by_hand() -> None:
    # Norms 16 + 16, maps 16 + 24, attention 32, projection and sum 24, MLP 40 + 48; the tokens themselves 16; weights 10 + 48 + 20.
    assert launch_model.values_moved(DENSE[0], 4, SMALL) == 216
    assert launch_model.weights_of(SMALL) == 78
    # Norms 16 + 12, maps 12 + 24, attention 28, projection 18, MLP 30 + 36; the site reads 16 and copies 24.
    assert launch_model.values_moved(PRUNED[0], 4, SMALL) == 216
    assert launch_model.work(SMALL, DENSE, 10, 1, "fp32") == launch_model.Work(10, 4 * (216 + 16 + 78), 30 + 64 + 64 + 128)
    assert launch_model.work(SMALL, DENSE, 10, 2, "fp16") == launch_model.Work(10, 2 * (2 * 232 + 78), 2 * 286)
    assert launch_model.work(SMALL, PRUNED, 12, 1, "fp32", copies=1).macs == 30 + (32 + 24) + 48 + 96


def test_times_by_hand() -> None:
    found = launch_model.time(launch_model.Work(10, 1240, 286), LAUNCH, Speed(memory_gbs=1, tera_ops={}), 1e9)
    assert found.launching == pytest.approx(0.030)
    assert found.copying == 0
    assert found.moving == pytest.approx(0.00124)
    assert found.multiplying == pytest.approx(0.000286)
    assert found.total == pytest.approx(0.031526)
    assert found.captured == pytest.approx(0.006526)
    waiting = launch_model.time(launch_model.Work(10, 1240, 286, copies=2), LAUNCH, Speed(memory_gbs=1, tera_ops={}), 1e9)
    assert waiting.total == pytest.approx(0.071526)
    assert waiting.captured is None


def test_rates_by_type() -> None:
    speed = Speed(memory_gbs=1, tera_ops={"fp16": 2, "int8": 4})
    assert speed.macs_per_second("fp16") == speed.macs_per_second("bf16") == 1e12
    assert speed.macs_per_second("fp8") == 2e12
    assert speed.macs_per_second("fp32") is None


def test_every_constant_of_a_target_stands_with_a_source() -> None:
    for name, path in shipped_targets().items():
        target, text = targets.load(name), path.read_text()
        if target.launch is not None:
            assert all(module.speed for module in target.modules.values()), name
            assert "# speed: data sheet" in text, name
            assert text.count("issue 4194") == text.count("pull request 1017") == 1, name


def kernels(exported: Any, target: str = "rtx", **options: Any) -> dict[str, Any]:
    return launches(open_bundle(exported), targets.choose(targets.load(target), module=options.pop("module", None)), **options)


def test_kernels_of_a_bundle(exported: Any) -> None:
    """Blocks without a site start what the dense ones start; blocks with one keep their one attention and start more."""
    for target in ("rtx", "jetson-orin", "onnxruntime-cpu"):
        found = kernels(exported, target)
        assert not found["unknown"]
        assert [one["block"] for one in found["blocks"]] == [-1, 0, 1, 2, 3]
        for one in found["blocks"]:
            assert one["dense"]["attention"] == one["pruned"]["attention"] == (one["block"] >= 0)
            more = [one["pruned"][kind] - one["dense"][kind] for kind in ("products", "glue")]
            assert min(more) >= 0, one
            assert max(more) == 0 if one["block"] < 1 else max(more) > 3 or one["block"] == 3, one
        for which in ("dense", "pruned"):
            assert found[which] == {kind: sum(one[which][kind] for one in found["blocks"]) for kind in found[which]}
    assert kernels(exported)["blocks"][1]["dense"] == {
        "products": 6,
        "attention": 1,
        "glue": 2,
    }  # Q, K, V, proj, fc1, fc2; two norms


def test_a_plugin_saves_kernels(exported: Any) -> None:
    assert kernels(exported, "jetson-orin")["pruned"]["glue"] < kernels(exported, "rtx")["pruned"]["glue"]
    native = by_block(executed(onnx.load(str(exported / "model.onnx")), "one operator"), 4, True)
    dense = by_block(executed(dense_graph(exported), "nodes"), 4, True)
    assert sum((one.total - other.total for one, other in zip(native, dense, strict=True)), 0) <= 3 * 2 + 4


def test_sites_as_plugin_nodes_are_counted_beside_plain_ones(exported: Any) -> None:
    """Two launches and a memset a site in the place of its nodes, in the blocks of the sites alone; nothing for builders without plugins."""
    found = kernels(exported, "jetson-orin", module="agx-64")
    plain, plugin = found["pruned"], found["plugin"]
    assert plugin["sites"] == 2
    assert plugin["pruned"]["attention"] == plain["attention"] == 4
    nodes = by_block(executed(onnx.load(str(exported / "model.onnx")), "sampling"), 4, True)
    graph, made = with_plugins(onnx.load(str(exported / "model.onnx")))
    counted = by_block(graph, 4, True)
    dense = by_block(executed(dense_graph(exported), "nodes"), 4, True)
    assert made == 2
    assert sum(counted, Launches()).total == sum(plugin["pruned"].values()) < sum(plain.values())
    assert counted[:2] == nodes[:2] == dense[:2]
    for block in (1, 2):
        glue = counted[block + 1].glue - dense[block + 1].glue
        assert 3 <= glue < nodes[block + 1].glue - dense[block + 1].glue, block
    model, other = found["model"], plugin["model"]
    kernel = targets.load("jetson-orin").launch.kernel_us
    fewer = sum(plain.values()) - sum(plugin["pruned"].values())
    assert other["what"] == "modelled, not measured"
    assert model["pruned"]["launching_ms"] - other["pruned"]["launching_ms"] == pytest.approx(fewer * kernel / 1e3)
    assert model["pruned"]["copying_ms"] == other["pruned"]["copying_ms"] > 0
    for target in ("rtx", "onnxruntime-cpu"):
        assert kernels(exported, target)["plugin"] is None


def test_a_given_score_needs_no_memset(exported: Any) -> None:
    graph, _ = with_plugins(onnx.load(str(exported / "model.onnx")))
    before = sum(by_block(graph, 4, True), Launches())
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "PruneSite" and attribute.name == "form":
                attribute.s = b"given"
    assert before.glue - sum(by_block(graph, 4, True), Launches()).glue == 2


def dense_graph(folder: Any) -> onnx.ModelProto:
    return skeletons.fleshed(onnx.load_model(folder / skeletons.SKELETON), onnx.load(str(folder / "model.onnx")))


def test_an_attention_that_nothing_fuses_is_not_counted(exported: Any) -> None:
    model = dense_graph(exported)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Sigmoid"
    with pytest.raises(ValueError, match="block 0 has no attention"):
        by_block(executed(model, "nodes"), 4, True)


def test_shape_arithmetic_is_no_kernel(exported: Any) -> None:
    model = dense_graph(exported)
    before = by_block(executed(model, "nodes"), 4, True)
    shape = onnx.helper.make_node("Shape", [model.graph.output[0].name], ["shape_of_logits"])
    model.graph.node.extend([shape, onnx.helper.make_node("Neg", ["shape_of_logits"], ["negative"], name="negative")])
    model.graph.output.append(onnx.helper.make_tensor_value_info("negative", onnx.TensorProto.INT64, [2]))
    assert by_block(executed(model, "nodes"), 4, True) == before
    model.graph.node[-1].op_type, model.graph.node[-1].input[0] = "Neg", model.graph.output[0].name
    after = by_block(executed(model, "nodes"), 4, False)
    assert sum(after, Launches()).glue == sum(by_block(executed(dense_graph(exported), "nodes"), 4, False), Launches()).glue + 1


def test_what_cannot_be_counted_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "on the device" in kernels(bundle.path, "onnxruntime-cuda")["unknown"]
    model = onnx.load(str(bundle.model_path))
    model.graph.node.append(onnx.helper.make_node("STFT", ["logits"], ["unused"], name="nonsense"))
    with pytest.raises(ValueError, match="cannot be lowered: .*nonsense"):
        launch_model.count(bundle, model, "tensorrt_rtx")
    monkeypatch.setattr("vitprune.preflight.context.read_model", lambda path: model)
    said = next(one for one in look(bundle) if one.rule == "VP419")
    assert said.warning
    assert "launches were not counted: the graph cannot be lowered" in said.text
    monkeypatch.undo()
    (bundle.path / skeletons.SKELETON).unlink()
    bundle._store(lambda listed: {name: value for name, value in listed.items() if name != skeletons.SKELETON})
    assert "no dense graph" in kernels(bundle.path)["unknown"]
    assert not [one for one in look(open_bundle(bundle.path)) if one.rule == "VP419"]


def look(bundle: Bundle, target: Any = "jetson-orin", module: str | None = "agx-64", **options: Any) -> list[Any]:
    chosen = targets.load(target) if isinstance(target, str) else target
    return check(bundle, targets.choose(chosen, module=module), **options).findings


def test_check_warns_where_launches_eat_the_gain(bundle: Bundle) -> None:
    found = next(one for one in look(bundle, batch=(1, 1, 8)) if one.rule == "VP419")
    assert found.verdict is Verdict.LIKELY
    assert found.warning
    assert "pruning loses on agx-64, modelled, not measured" in found.text
    assert "at batch 1" in found.text
    assert found.mend
    slow = targets.load("jetson-orin")
    module = slow.modules["agx-64"].model_copy(update={"speed": Speed(memory_gbs=0.1, tera_ops={"fp32": 0.001})})
    slow = slow.model_copy(update={"modules": {**slow.modules, "agx-64": module}})
    other = next(one for one in look(bundle, slow, batch=(1, 8, 8)) if one.rule == "VP419")
    assert not other.warning
    assert "pruning wins on agx-64, modelled, not measured" in other.text
    everywhere = next(one for one in look(bundle, module=None) if one.rule == "VP419")
    assert "also on" in everywhere.text
    assert not [one for one in look(bundle, "rtx", None) if one.rule == "VP419"]


def test_check_names_the_option_where_it_turns_the_verdict(bundle: Bundle) -> None:
    """With work that weighs just so much that pruning loses by the launches of plain sites, and wins by those of plugin nodes."""
    loses = next(one for one in look(bundle, batch=(1, 1, 8)) if one.rule == "VP419")
    assert "--sites plugin" not in loses.mend  # there even the plugin's launches are too many
    found = kernels(bundle.path, "jetson-orin", module="agx-64")
    plain, plugin = found["model"], found["plugin"]["model"]
    target = targets.load("jetson-orin")

    def told(gbs: float) -> Any:
        module = target.modules["agx-64"].model_copy(update={"speed": Speed(memory_gbs=gbs, tera_ops={"fp32": 1e6})})
        changed = target.model_copy(update={"modules": {"agx-64": module}})
        return next(one for one in look(bundle, changed, batch=(1, 1, 8)) if one.rule == "VP419")

    # What pruning costs in launches and waits, by either form; what it saves in bytes at a bandwidth: between the two the option decides.
    speed = target.modules["agx-64"].speed
    saved = (plain["dense"]["moving_ms"] - plain["pruned"]["moving_ms"]) * speed.memory_gbs
    lost = [sum(one[which][part] * sign for which, sign in (("pruned", 1), ("dense", -1)) for part in ("launching_ms", "copying_ms"))
            for one in (plain, plugin)]  # fmt: skip
    between = told(2 * saved / sum(lost))
    assert between.warning
    assert "pruning loses on agx-64" in between.text
    assert between.mend.startswith("build-engine --sites plugin, with which pruning wins on agx-64: modelled, not measured")
    assert not told(0.9 * saved / max(lost)).warning
    assert "--sites plugin" not in told(1.1 * saved / min(lost)).mend


def test_inspect_prints_and_writes_the_model(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["inspect", str(bundle.path), "--target", "jetson-orin", "--module", "agx-64", "--batch", "2"]
    assert cli(options) == 0
    shown = capsys.readouterr()
    assert "glue" in shown.out + shown.err
    assert "modelled, not measured" in " ".join((shown.out + shown.err).split())
    assert cli([*options, "--json"]) == 0
    assert "with --sites plugin (2 sites as plugin nodes)" in " ".join((shown.out + shown.err).split())
    launched = json.loads(capsys.readouterr().out)["launches"]
    model = launched["model"]
    assert launched["plugin"]["model"]["ratio"] < model["ratio"]
    assert cli(["check", str(bundle.path), "-t", "jetson-orin", "--module", "agx-64", "--batch", "1"]) == 0
    assert "warning: VP419: pruning loses" in " ".join(capsys.readouterr().err.split())
    assert model["what"] == "modelled, not measured"
    assert model["batch"] == 2
    assert model["captured_ratio"] is None
    assert model["ratio"] == pytest.approx(model["pruned"]["ms"] / model["dense"]["ms"])


def test_padded_shapes_run_at_their_limits(bundle: Bundle) -> None:
    means = launch_model.kept_as_run(bundle, 1)
    most = launch_model.kept_as_run(bundle, 8)
    assert all(one <= other for one, other in zip(means, most, strict=True))
    assert means != most
    graph = bundle.recipe.graph.model_copy(update={"shapes": "padded"})
    object.__setattr__(bundle, "recipe", bundle.recipe.model_copy(update={"graph": graph}))
    assert launch_model.kept_as_run(bundle, 1) == [float(site["limit"]) for site in bundle.manifest.sites]
