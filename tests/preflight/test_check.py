from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from helpers import tiny
from vitprune import targets
from vitprune.bundle import Bundle, open_bundle
from vitprune.cli import run as cli
from vitprune.errors import PreflightError, TargetError
from vitprune.pipelines import export
from vitprune.preflight import check as checking
from vitprune.preflight.check import check, require
from vitprune.preflight.findings import Finding, Report, Verdict
from vitprune.preflight.memory import estimate
from vitprune.preflight.rules import all_rules, rule
from vitprune.recipe import Recipe
from vitprune.support.gpus import Gpu

# Ids are promises: a new rule gets a new id, a rule that goes leaves a gap.
RULES = {
    "VP401": "opset", "VP402": "IR version", "VP403": "operators", "VP404": "forms of operators", "VP405": "TopK", "VP406": "CumSum",
    "VP407": "function or plugin", "VP408": "plugin namespace", "VP409": "memory", "VP410": "known wrong results",
    "VP411": "compute capability", "VP412": "number types", "VP413": "release and module", "VP414": "data-dependent shapes",
    "VP415": "file size", "VP416": "a builder of NVIDIA takes the graph", "VP417": "results on the device",
    "VP418": "padded counts", "VP419": "launches against work",
}  # fmt: skip


def look(bundle: Bundle, target: str, **options: Any) -> Report:
    extra = {key: options.pop(key) for key in ("batch", "architecture") if key in options}
    return check(bundle, targets.choose(targets.load(target), **options), **extra)


def of(report: Report, identifier: str) -> Finding:
    return next(finding for finding in report.findings if finding.rule == identifier)


def changed(bundle: Bundle, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    model = onnx.load(str(bundle.model_path))
    change(model)
    onnx.save(model, str(bundle.model_path))
    bundle.add_files(["model.onnx"])
    return open_bundle(bundle.path)


def add_node(kind: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node(kind, ["logits"], ["unused"], name="added", **attributes))

    return change


def record(bundle: Bundle, target: str, backend: str, **facts: Any) -> None:
    """What build-engine leaves in a bundle."""
    folder = bundle.engine_path(target)
    folder.mkdir(parents=True)
    digest = bundle.manifest.files["model.onnx"]
    document = {"backend": backend, "engine": "model.engine", "model_sha256": digest, "engine_sha256": "e", "facts": facts}
    (folder / "engine.json").write_text(json.dumps(document))
    bundle.list_engine(target)


def test_ids_are_stable() -> None:
    assert {one.id: one.title for one in all_rules()} == RULES


def test_every_rule_says_what_it_looks_at() -> None:
    assert all(one.check.__doc__ for one in all_rules())


def test_an_id_is_given_once() -> None:
    all_rules()
    with pytest.raises(ValueError, match="VP401 is taken"):
        rule("VP401", "again")(lambda context: None)


def test_jetpack_6_is_unverified_and_says_why(bundle: Bundle) -> None:
    report = look(bundle, "jetson-orin", jetpack="6.2", module="agx-64")
    assert report.verdict is Verdict.UNVERIFIED
    assert [f.rule for f in report.findings if f.verdict is Verdict.UNVERIFIED] == ["VP410"]
    assert "validate BUNDLE --backend tensorrt on the device" in of(report, "VP410").mend
    assert "as a loop" in of(report, "VP406").text
    assert "removes them" in of(report, "VP407").text
    assert report.runtime == "TensorRT 10.3.0 (JetPack 6.2)"


def test_jetpack_7_is_likely(bundle: Bundle) -> None:
    report = look(bundle, "jetson-orin", jetpack="7.2", module="agx-64")
    assert report.verdict is Verdict.LIKELY
    assert not [f for f in report.findings if f.rule == "VP406"]


def test_release_that_is_not_documented_for_the_module(bundle: Bundle) -> None:
    assert of(look(bundle, "jetson-orin", jetpack="7.2.2", module="nano-8"), "VP413").verdict is Verdict.UNVERIFIED
    assert of(look(bundle, "jetson-orin", jetpack="7.2.2", module="agx-64"), "VP413").verdict is Verdict.LIKELY


def test_opset_of_each_tensorrt(bundle: Bundle) -> None:
    newer = changed(bundle, lambda model: setattr(model.opset_import[0], "version", 22))
    blocked = of(look(newer, "jetson-orin", jetpack="6.2"), "VP401")
    assert blocked.verdict is Verdict.BLOCKED
    assert "--set graph.opset=20" in blocked.mend
    assert of(look(newer, "jetson-orin", jetpack="7.2"), "VP401").verdict is Verdict.LIKELY


def test_ir_version(bundle: Bundle) -> None:
    newer = changed(bundle, lambda model: setattr(model, "ir_version", 11))
    assert of(look(newer, "jetson-orin"), "VP402").verdict is Verdict.BLOCKED
    assert of(look(newer, "rtx"), "VP402").verdict is Verdict.LIKELY


@pytest.mark.parametrize(
    ("kind", "target", "options", "verdict"),
    [
        ("Unique", "jetson-orin", {}, Verdict.BLOCKED),
        ("Unique", "rtx", {}, Verdict.BLOCKED),
        ("NonZero", "jetson-orin", {}, Verdict.LIKELY),
        ("NonZero", "rtx", {}, Verdict.BLOCKED),
        ("Attention", "jetson-thor", {"jetpack": "7.0"}, Verdict.BLOCKED),
        ("Attention", "jetson-thor", {"jetpack": "7.2"}, Verdict.LIKELY),
        ("RMSNormalization", "jetson-thor", {"jetpack": "7.2"}, Verdict.UNVERIFIED),
        ("STFT", "jetson-orin", {"tensorrt": "10.4"}, Verdict.BLOCKED),
        ("STFT", "jetson-orin", {"tensorrt": "10.5"}, Verdict.LIKELY),
    ],
)
def test_operators_of_each_parser(bundle: Bundle, kind: str, target: str, options: dict[str, str], verdict: Verdict) -> None:
    assert of(look(changed(bundle, add_node(kind)), target, **options), "VP403").verdict is verdict


def test_forms_that_parsers_refuse(bundle: Bundle) -> None:
    worse = changed(bundle, add_node("ScatterND", reduction="add"))
    assert "ScatterND with reduction add" in of(look(worse, "jetson-orin"), "VP404").text
    assert look(worse, "jetson-orin").verdict is Verdict.BLOCKED
    unsorted = changed(bundle, add_node("TopK", sorted=0))
    assert "sorted=0" in of(look(unsorted, "rtx"), "VP404").text


def test_operators_inside_branches_count(bundle: Bundle) -> None:
    def branch(model: onnx.ModelProto) -> None:
        inner = onnx.helper.make_graph([onnx.helper.make_node("Unique", ["logits"], ["inner"])], "branch", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["logits"], ["unused"], then_branch=inner, else_branch=inner))

    assert of(look(changed(bundle, branch), "jetson-orin"), "VP403").verdict is Verdict.BLOCKED


def test_topk_beyond_the_limit(bundle: Bundle) -> None:
    bundle.manifest.model["geometry"]["patches"] = 5000
    bundle.manifest.sites[0]["limit"] = 4000
    report = look(bundle, "rtx")
    assert of(report, "VP405").verdict is Verdict.BLOCKED
    assert "4000 of 5000" in of(report, "VP405").text


def test_cumsum_in_the_graph_itself(bundle: Bundle) -> None:
    found = of(look(changed(bundle, add_node("CumSum")), "jetson-orin"), "VP406")
    assert found.verdict is Verdict.UNVERIFIED


def test_operator_that_nothing_can_carry_out(bundle: Bundle) -> None:
    bare = changed(bundle, lambda model: model.ClearField("functions"))
    assert of(look(bare, "rtx"), "VP407").verdict is Verdict.BLOCKED
    assert of(look(bare, "onnxruntime-cpu"), "VP407").verdict is Verdict.BLOCKED
    assert of(look(bare, "jetson-thor"), "VP407").verdict is Verdict.UNVERIFIED
    assert of(look(bare, "jetson-orin"), "VP407").verdict is Verdict.LIKELY


def test_node_without_namespace(bundle: Bundle) -> None:
    def strip(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "TokenSample":
                kept = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
                del node.attribute[:]
                node.attribute.extend(kept)

    assert of(look(changed(bundle, strip), "jetson-orin"), "VP408").verdict is Verdict.BLOCKED


def test_memory_of_modules(bundle: Bundle) -> None:
    assert of(look(bundle, "jetson-orin", module="nano-4"), "VP409").verdict is Verdict.LIKELY
    assert of(look(bundle, "jetson-orin", module="nano-4", batch=(1, 1, 20000)), "VP409").verdict is Verdict.BLOCKED
    assert of(look(bundle, "jetson-orin", module="agx-64", batch=(1, 1, 20000)), "VP409").verdict is Verdict.LIKELY
    roomy = targets.choose(targets.load("jetson-orin"), module="nano-4")
    assert of(check(bundle, roomy.with_workspace(200_000)), "VP409").verdict is Verdict.UNVERIFIED
    any_module = of(look(bundle, "jetson-orin", batch=(1, 1, 20000)), "VP409")
    assert any_module.verdict is Verdict.UNVERIFIED
    assert "nano-4" in any_module.text
    assert "agx-64" not in any_module.text


def test_estimate_by_hand(bundle: Bundle) -> None:
    """Block 0 is the largest: N = 65, C = 64, H = 4; residual, Q, K, V and two attention matrices against the MLP's 2 * N * 256."""
    model = onnx.load(str(bundle.model_path))
    found = estimate(bundle, model, 1000, 100)
    values = 65 * 64 + max(3 * 65 * 64 + 2 * 4 * 65 * 65, 2 * 65 * 256)
    assert found.activations == -(-1000 * values * 4 // 2**20)
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    assert found.weights == -(-weights // 2**20)
    assert found.workspace == 100


def test_wrong_compute_capability(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(look(bundle, "jetson-orin", architecture="8.9"), "VP411").verdict is Verdict.BLOCKED
    assert of(look(bundle, "jetson-orin", architecture="8.7"), "VP411").verdict is Verdict.LIKELY
    monkeypatch.setattr(checking, "local_gpus", lambda: [Gpu("H100", "90", 80000, False)])
    monkeypatch.setattr(checking.platform, "machine", lambda: "x86_64")
    assert "the GPU of this machine has SM 90" in of(look(bundle, "rtx"), "VP411").text
    assert of(look(bundle, "jetson-orin"), "VP411").verdict is Verdict.LIKELY, "this machine is no Jetson"
    with pytest.raises(TargetError, match="VP224"):
        look(bundle, "rtx", architecture="sm_87")


def test_engine_of_another_gpu_in_the_bundle(bundle: Bundle) -> None:
    record(bundle, "jetson-orin", "tensorrt", architecture="89", tensorrt="10.3.0")
    assert "the engine in the bundle has SM 89" in of(look(bundle, "jetson-orin"), "VP411").text


@pytest.mark.parametrize(
    ("mode", "target", "options", "verdict"),
    [
        ("fp16", "jetson-orin", {}, Verdict.LIKELY),
        ("fp8", "jetson-orin", {}, Verdict.BLOCKED),
        ("fp8", "server", {"module": "a100-80"}, Verdict.BLOCKED),
        ("fp8", "server", {"module": "h100"}, Verdict.LIKELY),
        ("bf16", "desktop", {"architecture": "75"}, Verdict.BLOCKED),
        ("fp8", "rtx", {}, Verdict.UNVERIFIED),
        ("fp8", "rtx", {"architecture": "86"}, Verdict.BLOCKED),
        ("fp8", "rtx", {"architecture": "89"}, Verdict.LIKELY),
        ("fp8", "jetson-thor", {}, Verdict.LIKELY),
    ],
)
def test_number_types(bundle: Bundle, mode: str, target: str, options: dict[str, str], verdict: Verdict) -> None:
    precision = bundle.recipe.precision.model_copy(update={"mode": mode})
    bundle.recipe = bundle.recipe.model_copy(update={"precision": precision})
    assert of(look(bundle, target, **options), "VP412").verdict is verdict


def test_verified_only_by_an_engine_of_this_very_target(bundle: Bundle) -> None:
    record(bundle, "rtx", "tensorrt_rtx", runtime="tensorrt_rtx 1.7")
    mine, other = look(bundle, "rtx"), look(bundle, "jetson-thor")
    assert of(mine, "VP403").verdict is Verdict.VERIFIED
    assert of(mine, "VP416").verdict is Verdict.VERIFIED
    assert mine.verdict is Verdict.LIKELY, "nothing was run on a GPU"
    assert of(other, "VP416").verdict is Verdict.VERIFIED
    assert "another builder than this target's" in of(other, "VP416").text
    assert of(other, "VP403").verdict is Verdict.LIKELY


def test_an_engine_of_another_model_or_version_proves_nothing(bundle: Bundle) -> None:
    record(bundle, "rtx", "tensorrt_rtx", runtime="tensorrt_rtx 1.7")
    record(bundle, "jetson-orin", "tensorrt", architecture="87", tensorrt="10.3.0")
    assert of(look(bundle, "jetson-orin", jetpack="6.2"), "VP401").verdict is Verdict.VERIFIED
    assert of(look(bundle, "jetson-orin", jetpack="7.2"), "VP401").verdict is Verdict.LIKELY
    stale = changed(bundle, lambda model: setattr(model, "doc_string", "changed"))
    assert of(look(stale, "rtx"), "VP416").verdict is Verdict.LIKELY


def test_validation_of_this_engine_verifies_results(bundle: Bundle) -> None:
    record(bundle, "jetson-orin", "tensorrt", architecture="87", tensorrt="10.3.0")
    report = {"status": "passed", "backend": "tensorrt", "comparison": {"evidence": {"engine_sha256": "e"}}}
    bundle.write_report("validate.json", json.dumps(report))
    found = look(bundle, "jetson-orin", jetpack="6.2")
    assert of(found, "VP410").verdict is Verdict.VERIFIED
    assert of(found, "VP417").verdict is Verdict.VERIFIED
    report["comparison"] = {"evidence": {"engine_sha256": "another"}}
    bundle.write_report("validate.json", json.dumps(report))
    assert of(look(bundle, "jetson-orin", jetpack="6.2"), "VP417").verdict is Verdict.LIKELY


def test_onnxruntime_was_run_at_export(bundle: Bundle) -> None:
    assert of(look(bundle, "onnxruntime-cpu"), "VP417").verdict is Verdict.VERIFIED
    assert of(look(bundle, "onnxruntime-cuda"), "VP417").verdict is Verdict.LIKELY


def test_worst_verdict_wins_and_blocked_can_be_required(bundle: Bundle) -> None:
    require(look(bundle, "jetson-thor", architecture="110"))
    report = look(changed(bundle, add_node("Unique")), "rtx")
    assert report.verdict is Verdict.BLOCKED
    with pytest.raises(PreflightError, match="VP400") as caught:
        require(report)
    assert "VP403" in caught.value.message


def test_command_line(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(bundle.path)
    assert cli(["check", path, "-t", "jetson-orin", "--jetpack", "7.2", "--module", "agx-64", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert (document["status"], document["exit_code"], document["module"]) == ("likely", 0, "agx-64")
    assert all(set(finding) == {"rule", "title", "verdict", "text", "mend", "warning"} for finding in document["findings"])
    assert cli(["check", path, "-t", "jetson-orin", "--sm", "89", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "blocked"
    assert cli(["check", path, "-t", "jetson-orin", "--sm", "89", "--exit-zero", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "blocked"
    assert cli(["check", path, "-t", "jetson-orin", "--module", "agx", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP220"
    assert cli(["check", path, "-t", "orin", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "VP202"


def test_inspect_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    record(bundle, "rtx", "tensorrt_rtx", runtime="tensorrt_rtx 1.7", layers=3)
    assert cli(["inspect", str(bundle.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["blocks"]) == 4
    first, third = document["blocks"][0], document["blocks"][2]
    assert first["macs"] == first["dense_macs"]
    assert third["entering"] == 1 + document["sites"][0]["kept_mean"]
    assert third["macs"] < third["dense_macs"]
    assert document["macs"]["pruned"] == pytest.approx(
        sum(block["macs"] for block in document["blocks"]) + document["geometry"]["embed_macs"]
    )
    assert document["engines"]["rtx"]["facts"]["layers"] == 3
    assert "model.onnx" in document["files"]


def test_padded_adaptive_merging_is_told_of_fixed_counts(tmp_path: Path) -> None:
    """Export and check say that padded capacities lose the gain, and what to do; with fixed counts there is nothing to say."""
    merging = {"method": "ward_merge", "mu": 0.5, "stages": [0, 1]}
    for name, keys, shapes in (
        ("padded", {}, "padded"), ("fixed", {"counts": "fixed", "r": 3}, "padded"), ("dynamic", {}, "dynamic"),
    ):  # fmt: skip
        recipe = Recipe.load({"prune": merging | keys, "graph": {"shapes": shapes}, "validate": {"samples": 2}})
        made = export(tiny(depth=3), recipe, tmp_path / name)
        found = [finding for finding in look(made, "onnxruntime-cpu").findings if finding.rule == "VP418"]
        notes = json.loads((made.path / "reports" / "export.json").read_text())
        assert bool(found) == bool(notes.get("warnings")) == (name == "padded")
        if found:
            assert "lose" in found[0].text
            assert "prune.counts=fixed" in found[0].mend
