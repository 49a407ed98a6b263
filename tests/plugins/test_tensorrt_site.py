"""PruneSite as a TensorRT plugin, without TensorRT: called as a builder would, and run with its kernels emulated."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_memory import DTYPES, TYPED, cut, run, site, typed
from test_tensorrt_glue import BOOL, FLOAT, INT64, drive, shapes

from vitprune.ops.token_sample import Attributes, token_sample
from vitprune.plugins import PluginLibrary

INT32, HALF, BF16 = 3, 1, 7  # nvinfer1::DataType
INPUTS = {
    "x": FLOAT, "valid": BOOL, "query": FLOAT, "key": FLOAT, "value": FLOAT, "score": FLOAT, "h": FLOAT, "patch": INT64, "theta": FLOAT,
}  # fmt: skip
OUTPUTS = {
    "rows": np.float32, "rows2": np.float32, "index": np.int64, "keep": np.bool_, "patch": np.int64, "kept": np.int64, "mask": np.int32,
    "score_kept": np.float32, "bias": np.float32, "score": np.float32, "count": np.int64,
}  # fmt: skip
OF_MEMORY = {"patch": "patch_out", "score": "score_out"}  # outputs that the C interface names otherwise
FORMS = ("given", "per_head", "pooled", "sum", "mean", "head_share")
DYNAMIC = [
    "mode=inverse_transform",
    "num_samples=108",
    "expected=70",
    "form=per_head",
    "heads=6",
    "prefix_tokens=1",
    "originals=196",
]
RANKING = ["mode=threshold", "capacity=96", "pad_to_capacity=1", "form=mean", "heads=6", "prefix_tokens=1", "originals=196"]
SCORED = "inputs=x,query,key,value,h"


def test_data_dependent_shapes_follow_a_size_tensor(driver: Path) -> None:
    answer = shapes(driver, "PruneSite", SCORED, "outputs=rows,rows2,index,keep,patch,kept,mask,bias,score,count", *DYNAMIC)
    k = "size(output=9,opt=min(min(sub(N,1),108),70),upper=min(sub(N,1),108))"
    m = f"sum({k},1)"
    assert answer["status"] == answer["configure"] == 0
    assert answer["shapes"] == [
        ["B", m, "C"], ["B", m, "C"], ["B", k], ["B", k], ["B", k], ["B", k], ["B", m], ["B", "1", "1", m], ["B", "sub(N,1)"], [],
    ]  # fmt: skip
    assert answer["output_types"] == [FLOAT, FLOAT, INT64, BOOL, INT64, INT64, INT32, FLOAT, FLOAT, INT64]


def test_padded_shapes_are_known_and_a_combined_row_counts(driver: Path) -> None:
    answer = shapes(driver, "PruneSite", "inputs=x,query,key", "outputs=rows,patch,kept", "combine=weighted", *RANKING)
    k = "min(sub(N,1),96)"
    assert answer["shapes"] == [["B", f"sum({k},2)", "C"], ["B", f"sum({k},1)"], ["B", k]]
    assert answer["size_tensor"] is False


def test_only_linear_tensors_of_the_right_type(driver: Path) -> None:
    answer = shapes(
        driver, "PruneSite", f"{SCORED},patch,theta".replace("x,", "x,valid,"), f"outputs={','.join(OUTPUTS)}", *DYNAMIC
    )
    assert answer["formats"] == [[1, 0, 0]] * (8 + len(OUTPUTS))
    assert answer["workspace"] > 0


@pytest.mark.parametrize("half", [HALF, BF16])
def test_rows_have_the_type_of_what_they_are_gathered_from(half: int, driver: Path) -> None:
    outputs = "outputs=rows,rows2,kept,bias,score,count"
    for x, h in ((FLOAT, half), (half, FLOAT), (half, half)):
        answer = shapes(driver, "PruneSite", f"types={x},{half},{half},{FLOAT},{h}", SCORED, outputs, *DYNAMIC)
        assert answer["output_types"] == [x, h, INT64, FLOAT, FLOAT, INT64]
        assert answer["formats"] == [[1, 0, 0]] * (5 + 6)
        assert answer["configure"] == 0
    assert shapes(driver, "PruneSite", f"types={INT64}", SCORED, outputs, *DYNAMIC)["formats"][0] == [0, 0, 0]


def test_bounds_of_tokens_need_not_agree(driver: Path) -> None:
    """Each tensor's own, where the number of tokens follows the data; constant dimensions must."""
    answer = shapes(driver, "PruneSite", f"{SCORED},patch".replace("x,", "x,valid,"), "outputs=rows,rows2,count", *DYNAMIC)
    assert (answer["configure"], answer["configure_bounds"]) == (0, 0)


def test_fields_survive_clone_serialisation_and_attachment(driver: Path) -> None:
    given = {
        "inputs": "x,score,h,theta", "outputs": "rows,rows2,count", "form": "given", "combine": "nothing", "heads": 6, "prefix_tokens": 1,
        "originals": 196, "mode": "threshold", "num_samples": 1, "threshold": 0.125, "capacity": 150, "expected": 97, "pad_to_capacity": 0,
    }  # fmt: skip
    answer = shapes(driver, "PruneSite", *[f"{name}={value}" for name, value in given.items()], "plugin_version=1")
    assert answer["fields"] == given
    assert (answer["name"], answer["version"], answer["namespace"]) == ("PruneSite", "1", "vitprune")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["inputs=x,query,key", "outputs=rows,count"], "lacks a tensor that the form needs"),
        (["inputs=x,key,query,value", "outputs=rows,count"], "in their order"),
        (["inputs=x,,query", "outputs=rows,count"], "in their order"),
        ([SCORED.removesuffix(",h"), "outputs=rows,rows"], "in their order"),
        ([SCORED.removesuffix(",h"), "outputs=rows"], "lacks count"),
        ([SCORED.removesuffix(",h"), "outputs=index,count"], "lacks rows"),
        ([SCORED, "outputs=rows,count"], "come together"),
        ([SCORED, "outputs=rows,rows2,count", "heads=0"], "heads"),
        ([SCORED, "outputs=rows,rows2,count", "combine=sum"], "combine"),
        ([SCORED, "outputs=rows,rows2,count", "form=first"], "form"),
        ([SCORED, "outputs=rows,rows2,count", "prefix_tokens=0"], "prefix"),
        ([SCORED, "outputs=rows,rows2,count", "tokens=3"], "'tokens' is unknown"),
    ],
)
def test_what_makes_no_sense_is_refused(driver: Path, fields: list[str], message: str) -> None:
    done = drive(driver, "shapes", "PruneSite", *DYNAMIC, *fields)
    assert done.returncode == 3
    assert "PruneSite 'node':" in done.stderr
    assert message in done.stderr


def test_tensors_that_do_not_fit_are_refused(driver: Path) -> None:
    done = drive(driver, "shapes", "PruneSite", SCORED, "outputs=rows,rows2,count", *DYNAMIC[:-3], "heads=5", "prefix_tokens=1")
    assert json.loads(done.stdout)["configure"] == -1
    assert "heads must divide" in done.stderr
    done = drive(driver, "shapes", "PruneSite", f"{SCORED},patch", "outputs=rows,rows2,count", *DYNAMIC[:-2], "prefix_tokens=2")
    assert json.loads(done.stdout)["configure"] == -1
    assert "patch has another shape" in done.stderr


def fields_of(one: dict[str, Any], inputs: list[str], outputs: list[str]) -> list[str]:
    attributes, sample = one["attributes"], one["attributes"].sample
    return [
        f"inputs={','.join(inputs)}", f"outputs={','.join(outputs)}", f"form={attributes.form.decode()}",
        f"combine={attributes.combine.decode()}", f"heads={attributes.heads}", f"prefix_tokens={attributes.prefix_tokens}",
        f"originals={attributes.originals}", f"mode={sample.mode.decode()}", f"num_samples={sample.num_samples}",
        f"threshold={float(sample.threshold)!r}", f"capacity={sample.capacity}", f"pad_to_capacity={sample.pad_to_capacity}",
    ]  # fmt: skip


def run_plugin(runner: tuple[Path, Path], folder: Path, one: dict[str, Any]) -> tuple[int, dict[str, np.ndarray]]:
    """K and what the plugin wrote, by the names of the C interface, every output as [B,...] of K."""
    inputs = [name for name in INPUTS if one["arrays"][name] is not None]
    outputs = [name for name in OUTPUTS if name != "rows2" or "h" in inputs]
    lines = []
    for number, name in enumerate(inputs):
        array = np.ascontiguousarray(one["arrays"][name])
        (folder / f"in{number}").write_bytes(array.tobytes())
        kind = (FLOAT, HALF, BF16)[DTYPES.index(array.dtype)] if name in TYPED else INPUTS[name]
        lines.append(f"{kind} {one['arrays'][name].ndim} {' '.join(map(str, one['arrays'][name].shape))}")
    (folder / "inputs.txt").write_text("\n".join(lines) + "\n")
    program, library = runner
    command = [str(program), str(library), "PruneSite", str(folder), *fields_of(one, inputs, outputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    types = {**OUTPUTS, "rows": one["arrays"]["x"].dtype, "rows2": one["arrays"]["h"].dtype if "h" in inputs else None}
    held = {name: np.fromfile(folder / f"out{number}", types[name]) for number, name in enumerate(outputs)}
    allocated = dict(zip(outputs, json.loads(done.stdout)["shapes"], strict=True))
    assert {name: value.size for name, value in held.items()} == {name: np.prod(s, dtype=int) for name, s in allocated.items()}
    count = int(held.pop("count")[0])
    return count, cut({OF_MEMORY.get(name, name): value for name, value in held.items()}, one, count)


@pytest.mark.parametrize("form", FORMS)
def test_plugin_and_twin_agree_on_every_bit(form: str, runner: tuple[Path, Path], library: PluginLibrary, tmp_path: Path) -> None:
    """And both decide as the specification says; no byte beyond an allocation is written (`plugin_runner`)."""
    rng = np.random.default_rng(FORMS.index(form))
    cases = [("nothing", "inverse_transform"), ("nothing", "inverse_transform_official"), ("nothing", "threshold")]
    for combine, mode in [*cases, ("weighted", "threshold"), ("mean", "threshold")]:
        for patches in (1, 33, 70):
            one = site(rng, form, combine, mode, patches)
            status, wanted, twin = run(library.raw.vp_prune_site_cpu, one)
            assert status == 0
            count, plugin = run_plugin(runner, tmp_path, one)
            assert count == wanted
            assert plugin.keys() == twin.keys()
            for name, value in twin.items():
                np.testing.assert_array_equal(value, plugin[name], err_msg=f"{name}: {form}, {combine}, {mode}, {patches}")
            np.testing.assert_array_equal(plugin["bias"], np.where(plugin["mask"] != 0, np.float32(0), np.float32(-1e4)))
            sample, arrays = one["attributes"].sample, one["arrays"]
            valid = np.ones((3, patches), bool) if arrays["valid"] is None else arrays["valid"]
            compared = plugin["score_out"] - (np.float32(0) if arrays["theta"] is None else arrays["theta"])
            attributes = Attributes(mode, sample.num_samples, sample.threshold, sample.capacity, 0, bool(sample.pad_to_capacity))
            index, keep, specified = token_sample(compared, valid, attributes)
            assert count == specified
            np.testing.assert_array_equal(plugin["index"], index)
            np.testing.assert_array_equal(plugin["keep"], keep)


@pytest.mark.parametrize("form", FORMS)
def test_plugin_and_twin_agree_in_half_types(
    form: str, runner: tuple[Path, Path], library: PluginLibrary, tmp_path: Path
) -> None:
    rng = np.random.default_rng(FORMS.index(form))
    for combine, mode in (("nothing", "inverse_transform"), ("weighted", "threshold"), ("mean", "threshold")):
        for patches in (1, 33, 70):
            one = typed(rng, site(rng, form, combine, mode, patches))
            _, wanted, twin = run(library.raw.vp_prune_site_cpu, one)
            count, plugin = run_plugin(runner, tmp_path, one)
            assert (count, plugin.keys()) == (wanted, twin.keys())
            for name, value in twin.items():
                assert value.tobytes() == plugin[name].tobytes(), f"{name}: {form}, {combine}, {mode}, {patches}"
