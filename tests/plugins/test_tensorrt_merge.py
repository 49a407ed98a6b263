"""PairMerge, WardMerge and SampledMerge as TensorRT plugins, without TensorRT: called as a builder would, and run with emulated kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_memory import Attributes, cut, merging, run
from plugin_runs import run_plugin
from test_tensorrt_glue import BOOL, FLOAT, INT64, drive, shapes

from vitprune.graph.lowering.plugin_merging import INPUTS, OUTPUTS
from vitprune.ops import token_sample as specification
from vitprune.ops.sites import PAIR_MERGE, SAMPLED_MERGE, WARD_MERGE
from vitprune.plugins import PluginLibrary

COMMON = {"prefix": 1, "most": 0, "padded": 0, "loses": 0, "proportional": 1}
SAMPLING = {
    "form": "per_head", "combine": "nothing", "heads": 6, "prefix_tokens": 1, "originals": 196, "mode": "inverse_transform",
    "threshold": 0.5, "num_samples": 108, "capacity": 0, "expected": 70, "pad_to_capacity": 0,
}  # fmt: skip
OWN = {
    PAIR_MERGE: COMMON | {"pairs": 16, "by_threshold": 1, "floor": 6e-12, "threshold": 0.75},
    WARD_MERGE: COMMON | {"pairs": -1, "rounds": 2, "heads": 6, "limit": 0.5, "power": 0.4375, "everyone": 197.0, "share": 0.125},
    SAMPLED_MERGE: COMMON | {"floor": 6e-12},
}
NUMBERS = OWN | {SAMPLED_MERGE: OWN[SAMPLED_MERGE] | SAMPLING}
READ = {
    PAIR_MERGE: "x,products,metric,size,patch,valid,group",
    WARD_MERGE: "x,gram,query,key,size,patch,valid,group,asked_bias",
    SAMPLED_MERGE: "x,metric,query,key,value,size,patch,valid,group,asked_bias",
}
WRITTEN = "rows,size,bias,index,keep,group,patch,kept,count"
KINDS = tuple(NUMBERS)
OF_MEMORY = {PAIR_MERGE: "pair", WARD_MERGE: "ward", SAMPLED_MERGE: "sampled"}  # kinds as the C interface names them
RENAMED = {"size": "size_out", "bias": "bias_out", "group": "group_out", "patch": "patch_out", "score": "score_out"}
NO_ROOM = 20


def fields(kind: str, **others: object) -> list[str]:
    given = {"inputs": READ[kind], "outputs": WRITTEN} | NUMBERS[kind] | others
    return [f"{name}={value}" for name, value in given.items()]


@pytest.mark.parametrize(
    ("kind", "others", "k"),
    [
        (PAIR_MERGE, {}, "size(output=8,opt=P,upper=P)"),
        (PAIR_MERGE, {"most": 150}, "size(output=8,opt=P,upper=P)"),
        (PAIR_MERGE, {"by_threshold": 0}, "sub(P,min(div(P,2),16))"),
        (PAIR_MERGE, {"padded": 1, "most": 180}, "180"),
        (WARD_MERGE, {}, "size(output=8,opt=P,upper=P)"),
        (WARD_MERGE, {"most": 96}, "size(output=8,opt=min(P,96),upper=min(P,96))"),
        (WARD_MERGE, {"most": 96, "padded": 1}, "96"),
        (SAMPLED_MERGE, {}, "size(output=8,opt=min(min(P,108),70),upper=min(P,108))"),
        (SAMPLED_MERGE, {"mode": "threshold", "capacity": 90}, "size(output=8,opt=min(min(P,90),70),upper=min(P,90))"),
        (SAMPLED_MERGE, {"padded": 1, "most": 90, "capacity": 90, "pad_to_capacity": 1}, "90"),
    ],
)
def test_shapes(driver: Path, kind: str, others: dict[str, object], k: str) -> None:
    """Those of the rows that stay: a formula where the count follows from the shapes, else a size tensor with its bound."""
    k = k.replace("P", "sub(N,1)")
    answer = shapes(driver, kind, *fields(kind, **others))
    m = str(int(k) + 1) if k.isdigit() else f"sum({k},1)"
    assert answer["status"] == answer["configure"] == answer["configure_bounds"] == 0
    assert answer["shapes"] == [
        ["B", m, "C"],
        ["B", m],
        ["B", "1", "1", m],
        ["B", k],
        ["B", k],
        ["B", "G"],
        ["B", k],
        ["B", k],
        [],
    ]
    assert answer["output_types"] == [FLOAT, FLOAT, FLOAT, INT64, BOOL, INT64, INT64, INT64, INT64]


@pytest.mark.parametrize(("prefix", "members"), [(0, "div(sum(N,1),2)"), (1, "div(sub(N,1),2)"), (2, "div(sum(sub(N,2),1),2)")])
def test_members_of_a_are_even_token_rows(driver: Path, prefix: int, members: str) -> None:
    """How many pairs can merge at most, where a constant number does."""
    given = fields(PAIR_MERGE, by_threshold=0, prefix=prefix, outputs="rows,group,count")
    patches = f"sub(N,{prefix})" if prefix else "N"
    assert shapes(driver, PAIR_MERGE, *given)["shapes"][0][1].startswith(
        f"sum(sub({patches},min({members},16))" if prefix else f"sub({patches},min({members},16))"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_only_linear_tensors_of_the_right_type(driver: Path, kind: str) -> None:
    answer = shapes(driver, kind, *fields(kind))
    assert answer["formats"] == [[1, 0, 0]] * len((READ[kind] + "," + WRITTEN).split(","))
    assert answer["workspace"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_fields_survive_clone_serialisation_and_attachment(driver: Path, kind: str) -> None:
    answer = shapes(driver, kind, *fields(kind), "plugin_version=1", "plugin_namespace=vitprune")
    assert answer["fields"] == pytest.approx({"inputs": READ[kind], "outputs": WRITTEN} | NUMBERS[kind])
    assert (answer["name"], answer["version"], answer["namespace"]) == (kind, "1", "vitprune")


@pytest.mark.parametrize(
    ("kind", "others", "message"),
    [
        (PAIR_MERGE, {"inputs": "x,metric,size,patch,valid,group"}, "lacks a tensor that the site needs"),
        (PAIR_MERGE, {"inputs": "x,metric,products,group"}, "in their order"),
        (PAIR_MERGE, {"inputs": "x,products,metric,key,group"}, "does not read: key"),
        (PAIR_MERGE, {"outputs": "rows,group,score,count"}, "does not write: score"),
        (PAIR_MERGE, {"outputs": "size,group,count"}, "lacks rows"),
        (PAIR_MERGE, {"outputs": "rows,rows,group"}, "in their order"),
        (PAIR_MERGE, {"outputs": "rows,group"}, "lacks count"),
        (PAIR_MERGE, {"outputs": "rows,count"}, "group is read and written"),
        (PAIR_MERGE, {"inputs": "x,products,metric"}, "group is read and written"),
        (PAIR_MERGE, {"pairs": -1}, "pairs"),
        (PAIR_MERGE, {"prefix": -1}, "prefix"),
        (PAIR_MERGE, {"padded": 1}, "capacity"),
        (PAIR_MERGE, {"rounds": 2}, "'rounds' is unknown"),
        (PAIR_MERGE, {"pairs": "many"}, "'pairs' is unknown or of a wrong type"),
        (WARD_MERGE, {"inputs": "x,query,key,group"}, "lacks a tensor that the site needs"),
        (WARD_MERGE, {"inputs": "x,gram,group"}, "lacks a tensor that the site needs"),
        (WARD_MERGE, {"inputs": "x,gram,query,group"}, "lacks a tensor that the site needs"),
        (WARD_MERGE, {"inputs": "x,gram,attention,group,asked_bias"}, "belongs to a query"),
        (WARD_MERGE, {"heads": 0}, "heads"),
        (WARD_MERGE, {"heads": 2000}, "heads"),
        (WARD_MERGE, {"prefix": 0}, "prefix"),
        (WARD_MERGE, {"rounds": -1}, "rounds"),
        (SAMPLED_MERGE, {"inputs": "x,query,key,value,group"}, "lacks a tensor that the site needs"),
        (SAMPLED_MERGE, {"inputs": "x,metric,query,key,group"}, "lacks a tensor that the site needs"),
        (SAMPLED_MERGE, {"inputs": "x,metric,score,group", "form": "sum"}, "lacks a tensor that the site needs"),
        (SAMPLED_MERGE, {"combine": "mean"}, "must agree"),
        (SAMPLED_MERGE, {"prefix_tokens": 2}, "must agree"),
        (SAMPLED_MERGE, {"pad_to_capacity": 1}, "must agree"),
        (SAMPLED_MERGE, {"mode": "all"}, "mode"),
        (SAMPLED_MERGE, {"form": "first"}, "form"),
    ],
)
def test_what_makes_no_sense_is_refused(driver: Path, kind: str, others: dict[str, object], message: str) -> None:
    done = drive(driver, "shapes", kind, *fields(kind, **others))
    assert done.returncode == 3, done.stdout
    assert f"{kind} 'node':" in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_missing_is_refused(driver: Path, kind: str) -> None:
    """None has a value that suits every site."""
    for name in OWN[kind]:
        done = drive(driver, "shapes", kind, *(field for field in fields(kind) if not field.startswith(f"{name}=")))
        assert done.returncode == 3, name
        assert f"there is no field '{name}'" in done.stderr


@pytest.mark.parametrize(
    ("kind", "others", "message"),
    [
        (PAIR_MERGE, {"prefix": 2}, "products has another shape"),
        (WARD_MERGE, {"heads": 5}, "heads must divide"),
        (WARD_MERGE, {"inputs": "x,gram,attention,group", "heads": 5}, "attention has another shape"),
        (WARD_MERGE, {"inputs": "x,gram,attention,group", "heads": 0}, "attention has another shape"),
        (WARD_MERGE, {"prefix": 2}, "gram has another shape"),
        (SAMPLED_MERGE, {"heads": 5}, "heads must divide"),
        (SAMPLED_MERGE, {"prefix": 2, "prefix_tokens": 2}, "patch has another shape"),
        (SAMPLED_MERGE, {"inputs": "x,metric,query,key,value,group", "prefix": 0, "prefix_tokens": 0}, "prefix"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(driver: Path, kind: str, others: dict[str, object], message: str) -> None:
    done = drive(driver, "shapes", kind, *fields(kind, **others))
    if done.returncode == 0:
        assert json.loads(done.stdout)["configure"] == -1
    assert message in done.stderr


def fields_of(kind: str, one: dict[str, Any]) -> dict[str, Any]:
    attributes, site, sample = one["attributes"], one["attributes"].site, one["attributes"].site.sample
    told = {
        "form": site.form.decode(), "combine": site.combine.decode(), "prefix_tokens": site.prefix_tokens, "originals": site.originals,
        "mode": sample.mode.decode(), "pad_to_capacity": sample.pad_to_capacity, "prefix": attributes.prefix_tokens,
        "heads": site.heads if kind == SAMPLED_MERGE else one["sizes"].heads,
    }  # fmt: skip
    told |= {
        name: float(sample.threshold) if name == "threshold" else getattr(sample, name) for name in SAMPLING if name not in told
    }
    if kind != SAMPLED_MERGE:
        told |= {name: getattr(attributes, name) for name in OWN[kind] if name not in ("prefix", "heads")}
    return {name: told[name] if name in told else getattr(attributes, name) for name in NUMBERS[kind]}


def as_padded(kind: str, one: dict[str, Any]) -> dict[str, Any]:
    """The same site with the count that its plugin knows beforehand, where a constant number of pairs merges."""
    attributes, patches = one["attributes"], one["sizes"].patches
    if kind != PAIR_MERGE or attributes.by_threshold or attributes.padded:
        return one
    even = (patches - attributes.prefix_tokens % 2 + 1) // 2
    other = Attributes.from_buffer_copy(attributes)
    other.padded, other.most = 1, patches - min(attributes.pairs, even)
    return one | {"attributes": other}


@pytest.mark.parametrize("kind", KINDS)
def test_plugin_and_twin_agree_on_every_bit(kind: str, runner: tuple[Path, Path], library: PluginLibrary, tmp_path: Path) -> None:
    """Whatever tensors a site has; no byte beyond an allocation is written (`plugin_runner`)."""
    rng, seen = np.random.default_rng(KINDS.index(kind)), set()
    for number, patches in enumerate([1, 2, 9, 33, 70] * 8):
        one = merging(rng, OF_MEMORY[kind], patches)
        arrays, sizes = one["arrays"], one["sizes"]
        status, wanted, twin = run(library.raw.vp_merge_cpu, as_padded(kind, one))
        if status == NO_ROOM:
            continue
        assert status == 0
        given = {role: arrays["bias" if role == "asked_bias" else role] for role in INPUTS}
        if given["asked_bias"] is not None and rng.integers(2):
            given["asked_bias"] = given["asked_bias"][:, None, None]
        if kind == SAMPLED_MERGE and given["query"] is not None and rng.integers(2):
            given["query"] = given["query"][:, None]
        given = {role: value for role, value in given.items() if value is not None}
        outputs = {role: kind_ for role, kind_ in OUTPUTS.items() if role not in ("group", "score") or RENAMED[role] in twin}
        written = run_plugin(runner, tmp_path, kind, fields_of(kind, one), given, outputs)
        count = int(written.pop("count")[0])
        plugin = cut({RENAMED.get(role, role): value for role, value in written.items()}, one, count)
        assert count == wanted
        assert plugin.keys() == twin.keys()
        for name, value in twin.items():
            np.testing.assert_array_equal(value, plugin[name], err_msg=f"{name}: {kind}, {number}, {patches}")
        seen |= {"joins" if (plugin["kept"] >= 0).sum() < sizes.batch * patches else "stays", *given}
        if kind == SAMPLED_MERGE:
            decides_as_specified(one, plugin, count)
    assert seen >= {"joins", "stays"} | {role for role in READ[kind].split(",") if role != "asked_bias"}


def decides_as_specified(one: dict[str, Any], plugin: dict[str, np.ndarray], count: int) -> None:
    """Who stays, by the scores that the operator tells."""
    sample, valid = one["attributes"].site.sample, one["arrays"]["valid"]
    valid = np.ones_like(plugin["score_out"], bool) if valid is None else valid
    rules = specification.Attributes(
        sample.mode.decode(), sample.num_samples, sample.threshold, sample.capacity, 0, bool(sample.pad_to_capacity)
    )
    index, keep, specified = specification.token_sample(plugin["score_out"], valid, rules)
    assert count == specified
    np.testing.assert_array_equal(plugin["index"], index)
    np.testing.assert_array_equal(plugin["keep"], keep)


@pytest.mark.parametrize("kind", KINDS)
def test_announced_fields(driver: Path, kind: str) -> None:
    """What NVIDIA's parser takes over from a node."""
    lines = [json.loads(line) for line in drive(driver, "creators").stdout.splitlines()]
    announced = next(line["fields"] for line in lines if line["name"] == kind)
    assert set(announced) == {"inputs", "outputs", "plugin_version", "plugin_namespace", *NUMBERS[kind]}
