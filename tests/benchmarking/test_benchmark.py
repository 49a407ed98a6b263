"""`vitprune benchmark`: baselines that are proved, ratios with intervals, a gate that sees 5 % and not the day's mood."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import onnx
import pytest

from helpers import ats, images, legacy_onnx, run, tiny
from vitprune import cli, console
from vitprune.benchmarking import comparing, subjects, suite
from vitprune.bundle import open_bundle
from vitprune.device import measuring
from vitprune.device.timing import Variant, combined, measure, median_interval, student
from vitprune.environment import clocks
from vitprune.errors import VitpruneError
from vitprune.exporting import dense_twin
from vitprune.graph import skeletons
from vitprune.recipe import Recipe


@pytest.fixture(autouse=True)
def _fresh_settings():
    before = vars(console.settings).copy()
    yield
    for name, value in before.items():
        setattr(console.settings, name, value)


def call(capsys, *arguments):
    code = cli.run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


# ---- the dense model of a bundle


def test_a_bundle_gives_its_dense_model_back(made_bundle):
    """By its skeleton, with no tensor stored twice; it computes the dense logits."""
    model = dense_twin.dense_of(made_bundle)
    stored = made_bundle.samples()
    np.testing.assert_allclose(run(model, stored["images"])[0], stored["dense_logits"], atol=1e-5)
    assert (made_bundle.path / skeletons.SKELETON).stat().st_size < 0.1 * made_bundle.model_path.stat().st_size


def test_so_do_bundles_of_instances_and_of_onnx_files_and_of_half_types(tmp_path):
    """Neither could be made again from a name."""
    import torch

    import vitprune

    model = tiny(img_size=32, embed_dim=32, depth=2)
    recipe = Recipe.load(ats(stages=[1], num_samples=8) | {"precision": {"mode": "fp16"}})
    half = vitprune.export(model, recipe, tmp_path / "half")
    twin = dense_twin.dense_of(half)
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in twin.graph.initializer}
    legacy_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "dense.onnx", 17)
    given = vitprune.rewrite(tmp_path / "dense.onnx", Recipe.load(ats(stages=[1], num_samples=8)), tmp_path / "given")
    x = images(3, (3, 32, 32))
    with torch.inference_mode():
        np.testing.assert_allclose(run(dense_twin.dense_of(given), x)[0], model(torch.from_numpy(x)).numpy(), atol=1e-4)


def replaced(folder, change):
    """A bundle whose skeleton was changed by `change`, with a fitting manifest."""
    bundle = open_bundle(folder)
    model = onnx.load_model_from_string((folder / skeletons.SKELETON).read_bytes())
    change(model)
    (folder / skeletons.SKELETON).write_bytes(model.SerializeToString())
    bundle.add_files([skeletons.SKELETON])
    return open_bundle(folder)


def test_another_dense_model_is_refused(bundle_copy):
    """Planted: two blocks' weights of one shape swapped, as a baseline that computes something else."""

    def swap(model):
        first, second = [t for t in model.graph.initializer if list(t.dims) == [64, 64] and t.doc_string][:2]
        first.doc_string, second.doc_string = second.doc_string, first.doc_string

    with pytest.raises(VitpruneError) as caught:
        dense_twin.dense_of(replaced(bundle_copy, swap))
    assert caught.value.code == "VP651"


def test_a_skeleton_that_names_nothing_is_refused(bundle_copy):
    def lose(model):
        next(t for t in model.graph.initializer if t.doc_string).doc_string = skeletons.REFERENCE + "nowhere"

    with pytest.raises(VitpruneError) as caught:
        dense_twin.dense_of(replaced(bundle_copy, lose))
    assert caught.value.code == "VP651"


def without_skeleton(folder):
    """The bundle as an earlier version wrote it."""
    bundle = open_bundle(folder)
    (folder / skeletons.SKELETON).unlink()
    bundle._store(lambda listed: {name: value for name, value in listed.items() if name != skeletons.SKELETON})
    return open_bundle(folder)


def test_a_bundle_of_an_earlier_version_is_made_again_or_refused(bundle_copy):
    old = without_skeleton(bundle_copy)
    stored = old.samples()
    np.testing.assert_allclose(run(dense_twin.dense_of(old), stored["images"])[0], stored["dense_logits"], atol=1e-5)
    old.manifest.model["source"] = {"kind": "onnx", "file": "dense.onnx"}
    with pytest.raises(VitpruneError) as caught:
        dense_twin.dense_of(old)
    assert caught.value.code == "VP650"


# ---- timing


def test_intervals_of_medians_by_ranks():
    """Ranks of the sign test: 6 and 15 of 20 values, 10 and 21 of 30 (tables of order statistics)."""
    assert median_interval([float(value) for value in range(1, 21)]) == (6.0, 15.0)
    assert median_interval([float(value) for value in range(1, 31)]) == (10.0, 21.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([3.0]) == (3.0, 3.0)


def test_intervals_cover_the_median_as_often_as_they_say():
    chance = random.Random(3)
    hits = 0
    for _ in range(400):
        low, high = median_interval([chance.gauss(0, 1) for _ in range(25)])
        hits += low <= 0 <= high
    assert 0.93 <= hits / 400 <= 0.99


class Machine:
    """A clock that its variants wind: cost times noise times a mood that drifts over the run."""

    def __init__(self, seed: int) -> None:
        self.now, self.chance, self.calls = 0.0, random.Random(seed), 0

    def variant(self, name: str, cost: float, against: str = "") -> Variant:
        def call() -> None:
            self.calls += 1
            mood = 1 + 0.3 * math.sin(self.calls / 60)
            self.now += cost * mood * self.chance.lognormvariate(0, 0.03)

        return Variant(name, 1, call, [call] * 7, against)


def document(ratio: float, seed: int) -> dict:
    """A benchmark of one bundle on a machine of its own."""
    machine = Machine(seed)
    variants = [machine.variant("b dense", 0.01), machine.variant("b pruned", 0.01 * ratio, "b dense")]
    (one,) = [one for one in measure(variants, rounds=50, seed=seed, clock=lambda: machine.now) if one.name == "b pruned"]
    entry = {"bundle": "b", "batch": 1, "against": "dense", "ratio": one.ratio, "ratio_interval": [one.ratio_low, one.ratio_high]}
    return {
        "schema_version": 1, "kind": suite.KIND, "tool_version": "0", "rounds": 50, "machine": {"processor": "p"}, "results": [entry],
        "runtime": {"backend": "onnxruntime", "target": None, "threads": 1, "clock": "cpu", "version": "1"},
    }  # fmt: skip


def test_five_percent_slower_is_a_regression_and_a_rerun_is_none_20_of_20():
    for seed in range(20):
        before = document(0.7, seed)
        slower = comparing.compare(before, document(0.7 * 1.05, 100 + seed))
        again = comparing.compare(before, document(0.7, 200 + seed))
        assert (slower["status"], slower["exit_code"]) == ("failed", 1), slower
        assert (again["status"], again["exit_code"]) == ("passed", 0), again


@pytest.mark.parametrize(
    ("ratio", "dense", "processor", "verdict"),
    [
        (1.04, 1.0, "p", "regression"),
        (1.04, 1.08, "p", "undecided"),  # a busier machine explains it
        (1.04, 1 / 1.08, "p", "undecided"),
        (1.08, 1.08, "p", "regression"),  # and this it does not
        (1.04, 1.08, "q", "regression"),  # times of other processors say nothing
        (1.0, 1.05, "p", "same"),
    ],
)
def test_a_ratio_may_move_with_the_machines_state(ratio, dense, processor, verdict):
    def measured(ratio, dense, processor):
        entry = {"bundle": "b", "batch": 1, "against": "dense", "ratio": ratio, "ratio_interval": [ratio / 1.01, ratio * 1.01]}
        made = {**document(0.7, 1), "machine": {"processor": processor}}
        return {**made, "results": [{**entry, "dense": {"median_ms": 10 * dense}}]}

    (change,) = comparing.compare(measured(0.7, 1, "p"), measured(0.7 * ratio, dense, processor))["changes"]
    assert change["verdict"] == verdict
    assert change["dense_change"] == (pytest.approx(dense) if processor == "p" else None)
    if verdict == "undecided":
        assert change["more_rounds"] is None


def test_a_machine_in_another_state_is_named():
    from vitprune.cli.benchmark import _other_state

    assert "took +8.0 %" in _other_state({"dense_change": 1.08})
    assert _other_state({"dense_change": 1.001}) == _other_state({"dense_change": None}) == "no number of rounds decides it"


def test_faster_is_an_improvement_and_few_noisy_rounds_decide_nothing():
    faster = comparing.compare(document(0.7, 1), document(0.6, 2))
    assert faster["changes"][0]["verdict"] == "improvement"
    wide = document(0.7, 3)
    wide["results"][0]["ratio_interval"] = [0.6, 0.8]
    found = comparing.compare(wide, document(0.7, 4))
    assert (found["status"], found["exit_code"]) == ("undecided", 1)


def test_calls_of_a_round_and_the_variant_compared_with():
    machine = Machine(0)
    machine.chance.lognormvariate = lambda *_: 1.0
    variants = [machine.variant("a", 0.01), machine.variant("b", 0.03), machine.variant("c", 0.03, "b")]
    found = {one.name: one for one in measure(variants, rounds=9, warmup=0, clock=lambda: machine.now)}
    assert machine.calls == 3 * 9 * 8
    assert found["b"].ratio == pytest.approx(3, rel=0.2)
    assert found["c"].ratio == pytest.approx(1, rel=0.1)
    assert found["b"].p99_ms >= found["b"].p95_ms >= found["b"].median_ms


# ---- passes over fresh sessions


def test_students_quantiles():
    """Fisher and Yates' table: 12.706, 2.776, 2.228, 2.086 and 1.980 for 1, 4, 10, 20 and 120 degrees of freedom."""
    for freedom, value in ((1, 12.706), (4, 2.776), (10, 2.228), (20, 2.086), (120, 1.980)):
        assert student(freedom) == pytest.approx(value, abs=6e-4)


def test_sessions_that_differ_widen_the_interval():
    """Rounds agree to the last digit within a pass: only the passes tell that the ratio is not known so well."""
    ratio, low, high = combined([[0.70] * 10, [0.72] * 10, [0.71] * 10])
    assert ratio == pytest.approx(0.71, abs=1e-3)
    assert low < 0.69
    assert high > 0.73
    assert combined([[0.7, 0.71, 0.72]]) == (0.71, 0.70, 0.72)


def test_passes_go_on_while_a_ratio_is_not_known(monkeypatch):
    """Every pass has another ratio: 0.7 give or take 3 %. Where they agree, five are enough."""

    def run(spread, most):
        chance, made, now = random.Random(1), [], [0.0]

        def taking(seconds):
            return lambda: now.__setitem__(0, now[0] + seconds)

        def make():
            made.append(0.7 * chance.lognormvariate(0, spread))
            return [Variant("b dense", 1, taking(1.0)), Variant("b pruned", 1, taking(made[-1]), against="b dense")]

        monkeypatch.setattr(measuring.time, "process_time", lambda: now[0])
        timings, counts = measuring.in_passes(make, rounds=10, most=most, seed=0, clock="cpu")
        return timings[1], counts, len(made)

    assert run(0.0, 100)[1:] == ({"rounds": 10, "passes": 5}, 5)
    timing, counts, made = run(0.03, 400)
    assert counts == {"rounds": 2 * made, "passes": made}
    assert 10 < made < 200
    assert timing.ratio_high - timing.ratio_low <= 0.02 * timing.ratio
    assert run(0.5, 20)[2] == 10  # as far as it is allowed


def test_how_many_more_rounds_decide():
    """An interval of +-4 % about +1 % over 50 rounds: +5 % is excluded once it is as narrow as the room to it."""
    found = comparing._change(*(entry(0.7 * f, 0.7 * f / 1.02, 0.7 * f * 1.02) for f in (1, 1.01)), 0.05, 50)
    assert found.verdict == "same"
    found = comparing._change(*(entry(0.7 * f, 0.7 * f / 1.03, 0.7 * f * 1.03) for f in (1, 1.01)), 0.05, 50)
    assert found.verdict == "undecided"
    assert found.more_rounds == pytest.approx(50 * ((2**0.5 * math.log(1.03) / math.log(1.05 / 1.01)) ** 2 - 1), abs=1)


def entry(ratio, low, high):
    return {"bundle": "b", "batch": 1, "ratio": ratio, "ratio_interval": [low, high]}


# ---- the slice oracle, memory


def test_the_slice_oracle_computes_with_the_tokens_that_are_kept(made_bundle, tmp_path):
    where = subjects.runtime(None, "onnxruntime", 1)
    model = onnx.load(str(subjects.oracle(made_bundle, where, tmp_path, lambda text: None)))
    assert not {node.op_type for node in model.graph.node} & {"TokenSample", "TopK", "CumSum", "GatherElements"}
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert {node.op_type for node in found.graph.node} >= {"Slice", "Softmax"}
    assert run(model, made_bundle.samples()["images"][:2])[0].shape == (2, 10)


@pytest.mark.parametrize(
    ("says", "expected"), [("41, 100\n42, 300\n42, 12\n", 312 * 2**20), ("41, 100\n", None), ("42, [N/A]\n", None), ("", None)]
)
def test_memory_on_a_gpu_is_what_the_driver_says_of_the_process(monkeypatch, tmp_path, says, expected):
    from vitprune.benchmarking import memory

    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{says}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert memory.on_gpu(42) == expected


def test_oracle_and_memory_are_in_the_document(capsys, made_bundle):
    code, found = call(capsys, "benchmark", made_bundle.path, "--rounds", 3, "--oracle")
    (one,) = found["results"]
    assert code == 0
    assert one["oracle"]["median_ms"] > 0
    assert one["over_oracle"] == pytest.approx(one["ratio"] / one["oracle"]["ratio"])
    assert one["memory"]["dense_bytes"] > 2**20
    assert one["memory"]["pruned_bytes"] > 2**20


# ---- clocks


def test_clocks_are_read_and_insisted_on(tmp_path):
    folder = tmp_path / clocks.CPUFREQ / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    for name, value in (("scaling_governor", "ondemand"), ("scaling_min_freq", "800"), ("scaling_max_freq", "3000")):
        (folder / name).write_text(value + "\n")
    wandering = clocks.state(False, tmp_path)
    assert wandering["locked"] is False
    (folder / "scaling_min_freq").write_text("3000")
    clocks.require_locked(clocks.state(False, tmp_path))
    for state in (wandering, clocks.state(False, tmp_path / "nowhere"), clocks.state(True, tmp_path)):
        with pytest.raises(VitpruneError) as caught:
            clocks.require_locked(state)
        assert caught.value.code == "VP247"


@pytest.mark.parametrize(
    ("source", "text", "held"),
    [
        ("jetson_clocks", "GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000", True),
        ("jetson_clocks", "GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000", False),
        ("nvidia_smi", "NVIDIA X, P0, 1980 MHz, 1980 MHz, 2619 MHz, 118.20 W, 700.00 W, 31", True),
        ("nvidia_smi", "NVIDIA X, P8, 345 MHz, 1980 MHz, 2619 MHz, 75.10 W, 700.00 W, 31", False),
        ("none", "", None),
    ],
)
def test_clocks_of_gpus(source, text, held):
    assert clocks._gpu({source: {"value": text}})[0] is held


def test_watts():
    assert clocks.watts({"nvidia_smi": {"value": "NVIDIA X, P0, 1980 MHz, 1980 MHz, 2619 MHz, 118.20 W, 700.00 W, 31"}}) == 118.2
    assert clocks.watts({"tegrastats": {"value": "RAM 3/7 VDD_IN 4312mW/4312mW"}}) == 4.312
    assert clocks.watts({}) is None


# ---- the command


def test_the_command_measures_and_compares(capsys, made_bundle, tmp_path):
    first, second = tmp_path / "A.json", tmp_path / "B.json"
    code, found = call(capsys, "benchmark", made_bundle.path, "--batch", 1, "--batch", 2, "--rounds", 6, "-o", first)
    assert code == 0
    assert [(entry["batch"], entry["against"]) for entry in found["results"]] == [(1, "dense"), (2, "dense")]
    entry = found["results"][0]
    assert entry["ratio_interval"][0] <= entry["ratio"] <= entry["ratio_interval"][1]
    assert entry["pruned"]["p99_ms"] >= entry["pruned"]["median_ms"] > 0
    assert entry["macs"]["ratio"] < 1
    assert found["runtime"]["clock"] == "cpu"
    document = json.loads(first.read_text())
    for slower in document["results"]:
        slower["ratio_interval"] = [slower["ratio"] * 0.999, slower["ratio"] * 1.001]
    first.write_text(json.dumps(document))
    for slower in document["results"]:
        slower["ratio"] *= 1.05
        slower["ratio_interval"] = [1.05 * end for end in slower["ratio_interval"]]
    second.write_text(json.dumps(document))
    assert call(capsys, "benchmark", "--compare", first, second)[0] == 1
    assert call(capsys, "benchmark", "--compare", first, first)[0] == 0
    document["runtime"]["threads"] = 4
    second.write_text(json.dumps(document))
    assert call(capsys, "benchmark", "--compare", first, second)[1]["error"]["code"] == "VP654"
    second.write_text("{}")
    assert call(capsys, "benchmark", "--compare", first, second)[1]["error"]["code"] == "VP653"


def test_engines_are_timed_against_a_dense_engine_made_the_same_way(capsys, bundle_copy):
    assert call(capsys, "build-engine", bundle_copy, "-t", "onnxruntime-cpu", "--plugin", "none")[0] == 0
    code, found = call(capsys, "benchmark", bundle_copy, "-t", "onnxruntime-cpu", "--rounds", 3)
    assert (code, found["runtime"]["target"]) == (0, "onnxruntime-cpu")
    assert found["results"][0]["dense"]["median_ms"] > 0


def test_the_dense_engine_is_lowered_as_the_bundles_own(made_bundle, bundle_copy, tmp_path):
    """Both hold the fused operators of ONNX Runtime: the same kernels are compared."""
    from vitprune import engines, targets

    bundle = open_bundle(bundle_copy)
    engines.build_engine(bundle, targets.load("onnxruntime-cpu"), plugin="none")
    where = subjects.runtime("onnxruntime-cpu", "onnxruntime", 1)
    engine = subjects.dense(bundle, where, tmp_path, lambda text: None)
    kinds = [
        {node.op_type for node in onnx.load(str(path)).graph.node if node.domain == "com.microsoft"}
        for path in (bundle.engine_path("onnxruntime-cpu") / "model.onnx", engine)
    ]
    assert kinds[1]
    assert kinds[1] <= kinds[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "VP183"),
        (["BUNDLE", "--batch", "5000"], "VP188"),
        (["BUNDLE", "--clock", "sun"], "VP199"),
        (["BUNDLE", "-t", "onnxruntime-cpu"], "VP630"),
        (["BUNDLE", "BUNDLE"], "VP199"),
        (["nowhere"], "VP600"),
        (["BUNDLE", "--require-locked-clocks"], "VP247"),
    ],
)
def test_refused(capsys, made_bundle, arguments, code, monkeypatch):
    monkeypatch.setattr(clocks, "cpu_clocks", lambda root: {})
    given = [str(made_bundle.path) if text == "BUNDLE" else text for text in arguments]
    exit_code, found = call(capsys, "benchmark", *given)
    assert (exit_code, found["error"]["code"]) == (2, code)


def test_a_model_without_finite_logits_is_not_timed(made_bundle):
    class Broken:
        logits = np.full((1, 10), np.nan)

    with pytest.raises(VitpruneError) as caught:
        suite._call(lambda batch: Broken, np.zeros((1, 3, 64, 64), np.float32))
    assert caught.value.code == "VP652"


def test_a_drawing(made_bundle, tmp_path):
    pytest.importorskip("matplotlib")
    from vitprune.reports.speed import draw

    timing = {"median_ms": 2.0, "p95_ms": 3.0}
    draw({"results": [{"bundle": "b", "batch": 1, "dense": timing, "pruned": timing}]}, tmp_path / "speed.svg")
    assert "<svg" in (tmp_path / "speed.svg").read_text()
    with pytest.raises(VitpruneError):
        draw({"results": []}, tmp_path / "speed.txt")
