"""The TensorRT plugin without TensorRT: a small program loads the library and calls it as a builder would."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vitprune.plugins import BuildReport, PluginLibrary

INT64, BOOL, FLOAT = 8, 4, 0  # nvinfer1::DataType


def drive(driver: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(driver), str(driver.with_name("libvitprune_plugin.so")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def shapes(driver: Path, name: str, *fields: str) -> dict[str, Any]:
    done = drive(driver, "shapes", name, *fields)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_creators(driver: Path) -> None:
    lines = [json.loads(line) for line in drive(driver, "creators").stdout.splitlines()]
    assert [line["name"] for line in lines] == [
        "TokenSample",
        "TokenScoreSample",
        "PruneSite",
        "PairMerge",
        "WardMerge",
        "SampledMerge",
    ]
    common = {"mode", "num_samples", "threshold", "capacity", "expected", "pad_to_capacity", "plugin_version", "plugin_namespace"}
    assert set(lines[0]["fields"]) == common
    assert set(lines[1]["fields"]) == common | {"score_form", "scale", "prefix_tokens"}
    own = {"inputs", "outputs", "form", "combine", "heads", "prefix_tokens", "originals"}
    assert set(lines[2]["fields"]) == common | own
    for line in lines:
        assert (line["version"], line["namespace"], line["kind"]) == ("1", "vitprune", "PLUGIN CREATOR_V3ONE")


@pytest.mark.parametrize(
    ("fields", "opt", "upper"),
    [
        (["mode=threshold"], "P", "P"),
        (["mode=threshold", "capacity=96"], "min(P,96)", "min(P,96)"),
        (["mode=inverse_transform", "num_samples=108"], "min(P,108)", "min(P,108)"),
        (
            ["mode=inverse_transform_official", "num_samples=108", "capacity=150", "expected=70"],
            "min(min(min(P,150),108),70)",
            "min(min(P,150),108)",
        ),
    ],
)
def test_data_dependent_shape_is_a_size_tensor(driver: Path, fields: list[str], opt: str, upper: str) -> None:
    answer = shapes(driver, "TokenSample", *fields)
    slots = f"size(output=2,opt={opt},upper={upper})"
    assert answer["shapes"] == [["B", slots], ["B", slots], []]
    assert answer["size_tensor"] is True
    assert answer["status"] == 0


@pytest.mark.parametrize(("capacity", "slots"), [(96, "min(P,96)"), (0, "P")])
def test_padded_shape_is_static(driver: Path, capacity: int, slots: str) -> None:
    fields = ["mode=inverse_transform", "num_samples=50", f"capacity={capacity}", "pad_to_capacity=1"]
    answer = shapes(driver, "TokenSample", *fields)
    assert answer["shapes"] == [["B", slots], ["B", slots], []]
    assert answer["size_tensor"] is False


def test_fused_plugin_also_gives_scores(driver: Path) -> None:
    answer = shapes(driver, "TokenScoreSample", "mode=threshold", "capacity=9", "pad_to_capacity=1", "prefix_tokens=1")
    assert answer["shapes"] == [["B", "min(P,9)"], ["B", "min(P,9)"], [], ["B", "P"]]
    assert answer["output_types"] == [INT64, BOOL, INT64, FLOAT]


@pytest.mark.parametrize("name", ["TokenSample", "TokenScoreSample"])
def test_only_linear_tensors_of_the_right_type(driver: Path, name: str) -> None:
    answer = shapes(driver, name, "mode=threshold")
    assert answer["formats"] == [[1, 0, 0]] * len(answer["formats"])
    assert answer["configure"] == 0


def test_wrong_number_of_prefix_tokens_is_refused(driver: Path) -> None:
    done = drive(driver, "shapes", "TokenScoreSample", "mode=threshold", "prefix_tokens=2")
    assert json.loads(done.stdout)["configure"] == -1
    assert "prefix_tokens" in done.stderr


def test_fields_survive_clone_serialisation_and_attachment(driver: Path) -> None:
    given = {
        "mode": "inverse_transform_official",
        "num_samples": 197,
        "threshold": 0.125,
        "capacity": 150,
        "expected": 97,
        "pad_to_capacity": 1,
        "score_form": "official",
        "scale": 0.25,
        "prefix_tokens": 1,
    }
    answer = shapes(driver, "TokenScoreSample", *[f"{name}={value}" for name, value in given.items()], "plugin_version=1")
    assert answer["fields"] == given
    assert (answer["name"], answer["version"], answer["namespace"]) == ("TokenScoreSample", "1", "vitprune")


def test_workspace_is_what_the_entry_point_asks_for(driver: Path, library: PluginLibrary) -> None:
    needed = ctypes.c_size_t()
    library.raw.vp_token_sample_workspace(4, 196, ctypes.byref(needed))
    assert shapes(driver, "TokenSample", "mode=threshold")["workspace"] == needed.value
    library.raw.vp_token_score_sample_workspace(4, 6, 196, 1, ctypes.byref(needed))
    assert shapes(driver, "TokenScoreSample", "mode=threshold")["workspace"] == needed.value


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (["mode=softmax"], "unknown mode"),
        ([], "unknown mode"),
        (["mode=inverse_transform", "num_samples=0"], "num_samples"),
        (["mode=threshold", "capacity=-1"], "capacity"),
        (["mode=threshold", "capacity=1.5"], "'capacity' is unknown or of a wrong type"),
        (["mode=threshold", "keep_rate=1"], "'keep_rate' is unknown"),
        (["mode=threshold", "scale=1.0"], "'scale' is unknown"),
    ],
)
def test_bad_fields_make_no_plugin(driver: Path, fields: list[str], sentence: str) -> None:
    done = drive(driver, "shapes", "TokenSample", *fields)
    no_plugin = 3
    assert done.returncode == no_plugin
    assert sentence in done.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_symbols(report: BuildReport) -> None:
    def names(*options: str) -> set[str]:
        done = subprocess.run(["nm", "-D", *options, str(report.library)], capture_output=True, text=True, check=True)
        return {line.split()[-1] for line in done.stdout.splitlines()}

    foreign = ("nvinfer", "getPluginRegistry", "createInfer", "cuda", "OrtGetApiBase")
    assert not [name for name in names("--undefined-only") if any(word in name for word in foreign)]
    defined = names("--defined-only")
    assert {"vp_token_sample_cpu", "vp_status_string", "vp_build_info"} <= defined
    assert ({"getCreators", "setLoggerFinder"} <= defined) == bool(report.tensorrt)
    assert ("RegisterCustomOps" in defined) == bool(report.onnxruntime_api)
    assert ("vp_token_sample_cuda" in defined) == bool(report.nvcc)
