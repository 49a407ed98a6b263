"""DVT: reference and graphs against the official golden, resampling, reuse, host cascade, single graph."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from dvt_support import ARGS, GOLDEN, golden_cascade, pixels, recipe, runnable, spread_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import ExportError, RecipeError
from vitprune.methods.base import Geometry
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.methods.dvt import cost as dvt
from vitprune.methods.dvt import surgery as reuse
from vitprune.methods.dvt.graphs import member_graphs
from vitprune.methods.dvt.grids import axis_matrix, feature_matrix, patch_matrix, relation_matrix
from vitprune.methods.dvt.host import all_exits, confidence, in_fixed_batches, run_cascade, torch_members
from vitprune.methods.dvt.members import load, weights_of
from vitprune.methods.dvt.reference import Backbone, Cascade, EarlyExit, resample, resample_relation
from vitprune.methods.dvt.single import single_graph
from vitprune.recipe import Recipe

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "dvt_deit.npz") as data:
        yield data


@pytest.fixture(scope="module")
def cascade(golden):
    return golden_cascade(golden)


@pytest.fixture(scope="module")
def graphs(cascade):
    return member_graphs(cascade, recipe())


@pytest.fixture(scope="module")
def members(graphs):
    return runnable(graphs)


@pytest.fixture(scope="module")
def batch(golden):
    return np.concatenate([golden["x"], pixels(6, size=224)])


@pytest.fixture(scope="module")
def alone(members, batch, limits):
    return [run_cascade(members, batch[image : image + 1], limits) for image in range(len(batch))]


@pytest.fixture(scope="module")
def limits(cascade, batch):
    return spread_thresholds(cascade, batch)


def hand_through(members, x):
    """Everything every member returns, run to the end."""
    found, feeds = {}, {"image": x}
    for number, member in enumerate(members, start=1):
        out = dict(member(feeds))
        found[f"logits_exit{number}"] = out.pop("logits")
        found |= out
        feeds = {"image": x, **out}
    return found


@pytest.mark.parametrize("kind", ["reference", "graph"])
def test_golden(kind, golden, cascade, graphs):
    members = torch_members(cascade) if kind == "reference" else runnable(graphs)
    found = hand_through(members, golden["x"])
    for ours, theirs in (("logits_exit1",) * 2, ("logits_exit2",) * 2, ("logits_exit3",) * 2, ("z1", "Z1"), ("z2", "Z2"), ("r1", "R1"), ("r2", "R2")):  # fmt: skip
        np.testing.assert_allclose(found[ours], golden[theirs], atol=TOLERANCE, rtol=0, err_msg=ours)
    assert set(found) == {"logits_exit1", "logits_exit2", "logits_exit3", "z1", "z2", "r1", "r2"}


@pytest.mark.parametrize("exits", [1, 2, 3])
def test_golden_one_image_at_a_time(exits, golden, graphs):
    thresholds = {1: [0.0, 0.0], 2: [None, 0.0], 3: [None, None]}[exits]
    members = runnable(graphs)
    for image in range(len(golden["x"])):
        result = run_cascade(members, golden["x"][image : image + 1], thresholds)
        assert result.exits.tolist() == [exits]
        np.testing.assert_allclose(result.logits[0], golden[f"logits_exit{exits}"][image], atol=TOLERANCE, rtol=0)


def test_golden_mixed_exits(golden, cascade, graphs):
    chosen = recipe([0.75, 0.44])
    for logits, exits in (
        run_reference(cascade, chosen, golden["x"]),
        (lambda r: (r.logits, r.exits))(run_cascade(runnable(graphs), golden["x"], chosen.prune.thresholds)),
    ):
        wanted = [exit_of(golden, image, chosen.prune.thresholds) for image in range(4)]
        assert exits.tolist() == wanted == [1, 3, 1, 3]
        for image, number in enumerate(wanted):
            np.testing.assert_allclose(logits[image], golden[f"logits_exit{number}"][image], atol=TOLERANCE, rtol=0)


def exit_of(golden, image, thresholds):
    for number, limit in enumerate(thresholds, start=1):
        values = np.exp(golden[f"logits_exit{number}"][image].astype(np.float64))
        if (values / values.sum()).max() >= limit:
            return number
    return 3


def run_reference(cascade, chosen, x):
    module = EarlyExit(cascade, chosen.prune)
    with torch.inference_mode():
        logits = module(torch.as_tensor(x)).numpy()
    assert module.kept == module.margin == module.overflow == []
    return logits, module.exits.numpy()


# Resampling ------------------------------------------------------------------------------------------------------------------


def test_axis_matrix_is_the_published_one():
    third = 1 / 3
    rows = [[1], [0.5, 0.5], [0, 2 * third, third], [0, 0, 1], [0, 0, 0.5, 0.5]]
    wanted = np.zeros((10, 7))
    for row, values in enumerate(rows):
        wanted[row, : len(values)] = values
    wanted[5:] = wanted[:5][::-1, ::-1]
    np.testing.assert_allclose(axis_matrix(7, 10), wanted, atol=1e-12)
    finer = axis_matrix(10, 14)
    for row, entries in {
        2: {1: 2 * third, 2: third},
        4: {2: third, 3: 2 * third},
        6: {4: 1},
        9: {6: 2 * third, 7: third},
    }.items():
        assert {column: pytest.approx(value) for column, value in entries.items()} == {
            int(c): finer[row, c] for c in np.flatnonzero(finer[row])
        }


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 9), st.integers(1, 3))
def test_matrices_equal_repeat_then_pool(old, more, count):
    new = old + more
    torch.manual_seed(old * 100 + new)
    relation = torch.randn(count, 2, old * old + 1, old * old + 1)
    ours = relation_matrix(old, new) @ relation.numpy() @ relation_matrix(old, new).T
    np.testing.assert_allclose(ours, resample_relation(relation, old, new).numpy(), atol=1e-5)
    features = torch.randn(count, 5, old * old)
    np.testing.assert_allclose(features.numpy() @ patch_matrix(old, new).T, resample(features, old, new).numpy(), atol=1e-5)


@pytest.mark.parametrize(("old", "new", "batch"), [(7, 10, 2), (10, 14, 1)])
def test_resampling_of_the_published_grids(old, new, batch):
    torch.manual_seed(0)
    relation = torch.randn(batch, 4, old * old + 1, old * old + 1)
    matrix = relation_matrix(old, new)
    np.testing.assert_allclose(matrix @ relation.numpy() @ matrix.T, resample_relation(relation, old, new).numpy(), atol=1e-6)
    constant = torch.full((1, 1, old * old + 1, old * old + 1), 3.0)
    np.testing.assert_allclose(matrix @ constant.numpy() @ matrix.T, 3.0, atol=1e-5)
    symmetric = relation + relation.transpose(-2, -1)
    raised = matrix @ symmetric.numpy() @ matrix.T
    np.testing.assert_allclose(raised, raised.swapaxes(-2, -1), atol=1e-5)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(feature_matrix(old, new)[1:].sum(1), 1, atol=1e-6)
    assert not feature_matrix(old, new)[0].any()
    assert not feature_matrix(old, new)[:, 0].any()


@pytest.mark.parametrize(("grid", "wanted"), [(7, (32, 0)), (10, (23, 3)), (14, (16, 0))])
def test_embedding_of_the_published_grids(grid, wanted):
    assert dvt.embedding(224, grid) == wanted


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 64), st.integers(0, 400))
def test_embedding_gives_the_grid(grid, more):
    image = grid + more
    patch, padding = dvt.embedding(image, grid)
    assert (image + 2 * padding - patch) // patch + 1 == grid or patch == 1


# Graphs ----------------------------------------------------------------------------------------------------------------------


def test_graphs_hold_no_resampling_operator(graphs):
    for number, graph in enumerate(graphs, start=1):
        kinds = {node.op_type for node in graph.graph.node}
        assert not kinds & {"Resize", "Upsample", "AveragePool", "GlobalAveragePool", "GatherND", "NonZero", "Loop", "If"}, number
        onnx.checker.check_model(graph, full_check=True)
    outputs = [[value.name for value in graph.graph.output] for graph in graphs]
    inputs = [[value.name for value in graph.graph.input] for graph in graphs]
    assert outputs == [["logits", "z1", "r1"], ["logits", "z2", "r2"], ["logits"]]
    assert inputs == [["image"], ["image", "z1", "r1"], ["image", "z2", "r2"]]


def test_graphs_equal_reference(cascade, members, batch):
    ours, theirs = hand_through(members, batch), hand_through(torch_members(cascade), batch)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-4, rtol=1e-4, err_msg=name)
    assert np.abs(theirs["logits_exit2"] - theirs["logits_exit1"]).max() > 0.1


def test_the_reuse_tensors_matter(members, batch):
    """Other z or r give other logits: neither input is dead in the graphs."""
    whole = hand_through(members, batch)
    for number, member in ((2, members[1]), (3, members[2])):
        feeds = {"image": batch, f"z{number - 1}": whole[f"z{number - 1}"], f"r{number - 1}": whole[f"r{number - 1}"]}
        for name in (f"z{number - 1}", f"r{number - 1}"):
            changed = dict(member({**feeds, name: 0.5 * feeds[name][:, ::-1].copy()}))["logits"]
            assert np.abs(changed - whole[f"logits_exit{number}"]).max() > 1e-3, name


def test_cls_row_of_the_features_is_not_read(members, batch):
    whole = hand_through(members, batch)
    z = whole["z1"].copy()
    z[:, 0] = 1e3
    changed = dict(members[1]({"image": batch, "z1": z, "r1": whole["r1"]}))["logits"]
    np.testing.assert_allclose(changed, whole["logits_exit2"], atol=1e-5)


def test_zero_relation_convolution_switches_relation_reuse_off(graphs, members, batch):
    whole = hand_through(members, batch[:3])
    graph = onnx.ModelProto()
    graph.CopyFrom(graphs[1])
    zeroed = [t for t in graph.graph.initializer if "relation_reuse_conv.2." in t.name]
    assert len(zeroed) == 2
    for tensor in zeroed:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    member = runnable([graph])[0]
    x, z = batch[:3], whole["z1"]
    first, second = (dict(member({"image": x, "z1": z, "r1": r}))["logits"] for r in (whole["r1"], 50 * whole["r1"]))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - whole["logits_exit2"]).max() > 1e-3


def test_zero_features_are_not_a_no_op(cascade):
    """LN2 runs over the wider rows, so 48 zeros still change mean and variance (methods.md §4.9)."""
    block = cascade.members[1].blocks[0]
    with torch.inference_mode():
        rows = torch.randn(2, 101, 64)
        plain = torch.nn.functional.layer_norm(rows, (64,), block.norm2.weight[:64], block.norm2.bias[:64])
        wide = block.norm2(torch.nn.functional.pad(rows, (0, 48)))[..., :64]
    assert (plain - wide).abs().max() > 0.05


# The host cascade --------------------------------------------------------------------------------------------------------------


def test_every_exit_gives_its_own_logits(cascade, members, batch, limits):
    exits = all_exits(members, batch)
    for number, thresholds in enumerate(([-1.0, 0.5], [None, -1.0], [None, None]), start=1):
        result = run_cascade(members, batch, thresholds)
        assert result.exits.tolist() == [number] * len(batch)
        assert result.kept == []
        np.testing.assert_allclose(result.logits, exits[number - 1], atol=1e-5)
    mixed = run_cascade(members, batch, limits)
    assert set(mixed.exits.tolist()) == {1, 2, 3}
    for image, number in enumerate(mixed.exits):
        np.testing.assert_allclose(mixed.logits[image], exits[number - 1][image], atol=1e-5)
    logits, reference_exits = run_reference(cascade, recipe(limits), batch)
    assert reference_exits.tolist() == mixed.exits.tolist()
    np.testing.assert_allclose(mixed.logits, logits, atol=1e-4)


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_result_does_not_depend_on_batch_mates(cascade, members, batch, limits, alone, data):
    chosen = data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=6))
    together = run_cascade(members, batch[chosen], limits)
    logits, exits = run_reference(cascade, recipe(limits), batch[chosen])
    for place, image in enumerate(chosen):
        assert together.exits[place] == exits[place] == alone[image].exits[0]
        np.testing.assert_allclose(together.logits[place], alone[image].logits[0], atol=1e-5)
        np.testing.assert_allclose(logits[place], alone[image].logits[0], atol=1e-4)


def test_members_are_not_called_without_images(members, batch):
    calls = []

    def counted(number):
        def run(feeds):
            calls.append((number, len(feeds["image"])))
            return members[number - 1](feeds)

        return run

    watched = [counted(number) for number in (1, 2, 3)]
    run_cascade(watched, batch, [0.0, 0.0])
    assert calls == [(1, len(batch))]
    calls.clear()
    sure = np.sort(confidence(all_exits(members, batch)[0]))
    result = run_cascade(watched, batch, [float(sure[2] + sure[3]) / 2, 0.0])
    assert calls == [(1, len(batch)), (2, 3)]
    assert sorted(result.exits.tolist()) == [1] * (len(batch) - 3) + [2] * 3


@pytest.mark.parametrize("size", [1, 5, 16])
def test_fixed_batches(members, batch, size, limits):
    sizes = []

    def watched(member):
        def run(feeds):
            sizes.extend(len(value) for value in feeds.values())
            return member(feeds)

        return run

    fixed = [in_fixed_batches(watched(member), size) for member in members]
    ours, theirs = run_cascade(fixed, batch, limits), run_cascade(members, batch, limits)
    assert set(sizes) == {size}
    assert ours.exits.tolist() == theirs.exits.tolist()
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)


# One graph ---------------------------------------------------------------------------------------------------------------------


def test_single_graph_equals_host_cascade(graphs, members, batch, limits):
    for chosen in (limits, [None, None], [0.0, None]):
        session = make_session(single_graph(graphs, chosen).SerializeToString())
        host = run_cascade(members, batch, chosen)
        for image in range(len(batch)):
            logits, exits = session.run(None, {"image": batch[image : image + 1]})
            assert exits.tolist() == [host.exits[image]]
            np.testing.assert_allclose(logits[0], host.logits[image], atol=1e-5)


# TensorRT-RTX --------------------------------------------------------------------------------------------------------------------


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_rtx_builds_members_and_single_graph(graphs, tmp_path):
    from vitprune.backends.tensorrt_rtx import build

    whole = single_graph(graphs, [0.5, 0.5])
    for name, graph, profile in [
        *((f"exit{n}", g, (1, 2, 4)) for n, g in enumerate(graphs, start=1)),
        ("cascade", whole, (1, 1, 1)),
    ]:
        onnx.save(graph, str(tmp_path / f"{name}.onnx"))
        request = {
            "model": str(tmp_path / f"{name}.onnx"), "output": str(tmp_path / f"{name}.engine"), "log": str(tmp_path / "log"), "batch": profile
        }  # fmt: skip
        facts = build(request, lambda text: None)
        assert (tmp_path / f"{name}.engine").stat().st_size > 10_000
        assert facts["inputs"] == [value.name for value in graph.graph.input]


# Parameters and cost -------------------------------------------------------------------------------------------------------------


def test_cost_of_deit_small():
    geometry = Geometry(12, 196, 1, 384, 6, 1536, 196 * 768 * 384, 1000)
    prune = recipe().prune
    image = (3, 224, 224)
    assert model_macs(geometry, dense_blocks(geometry)) == pytest.approx(4.599e9, rel=1e-3)
    blocks = 12 * (4 * 197 * 384**2 + 2 * 197**2 * 384 + 2 * 197 * 384 * 1536)
    reuse = 12 * (101 * 128 * (384 + 48) + 197 * 101 * 48 + 197 * 48 * 1536)
    relation = 2 * 101**2 * 72 * 216 + 72 * (197 * 101**2 + 197**2 * 101)
    assert dvt.member_macs(prune, geometry, image, 2) == pytest.approx(196 * 768 * 384 + blocks + reuse + relation)
    one, two, three = dvt.exit_costs(prune, geometry, image)
    assert one == pytest.approx(49 * 3 * 32**2 * 384 + 12 * (4 * 50 * 384**2 + 2 * 50**2 * 384 + 2 * 50 * 384 * 1536))
    assert one < two < three
    assert three - two == dvt.member_macs(prune, geometry, image, 2)


@pytest.mark.parametrize(("member", "wanted"), [(1, 106e6), (2, 432e6)])
def test_relation_convolutions_cost_what_is_published_for_t2t_14(member, wanted):
    """T2T-ViT-14 sizes, 14 blocks of 6 heads: the difference between ratios 3 and 1 is two thirds of the convolutions."""
    geometry = Geometry(14, 196, 1, 384, 6, 1152, 0, 1000)
    three, one = (dvt.member_macs(recipe(relation_ratio=r).prune, geometry, (3, 224, 224), member) for r in (3, 1))
    assert (three - one) * 1.5 == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"grids": [7, 14, 10]}, "in order they are [7, 10, 14]"),
        ({"grids": [7, 14]}, "at least 3"),
        ({"stages": [3]}, "at most 0"),
        ({"exit_cost": [3.0, 1.0, 8.0]}, "cumulative"),
        ({"thresholds": [0.5]}, "at least 2"),
        ({"tresholds": [0.5, 0.5]}, "did you mean 'thresholds'"),
    ],
)
def test_wrong_parameters(keys, words):
    with pytest.raises(RecipeError) as caught:
        recipe(**keys)
    assert caught.value.code == "VP102"
    assert words in caught.value.cause
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("args", "prune", "code"),
    [
        ({"img_size": [56, 28]}, {}, "VP150"),
        ({}, {"grids": [4, 7, 12]}, "VP151"),
        ({"init_values": 0.1}, {}, "VP314"),
        ({"qk_norm": True}, {}, "VP314"),
        ({"reg_tokens": 2}, {}, "VP314"),
        ({"global_pool": "avg"}, {}, "VP314"),
        ({"class_token": False, "global_pool": "avg"}, {}, "VP312"),
    ],
)
def test_models_that_do_not_fit(args, prune, code):
    chosen = Recipe.load(
        {
            "model": {"name": "vit_tiny_patch16_224", "args": {**ARGS, **args}},
            "prune": {"method": "dvt", "thresholds": [0.5, 0.5], **prune},
        }
    )
    with pytest.raises((RecipeError, ExportError)) as caught:
        load(None, chosen, pretrained=False, seed=0, weights=None)
    assert caught.value.code == code
    assert caught.value.cause
    assert caught.value.next_step


def test_grid_finer_than_the_image():
    chosen = recipe()
    with pytest.raises(RecipeError, match="VP152"):
        load(Cascade(Backbone(1, 12, 8, 1, 1, 8, 2), chosen.prune), chosen, pretrained=False, seed=0, weights=None)


def test_pass_refuses_weights_of_another_model(cascade):
    weights = weights_of(cascade, 1)
    blocks = [SimpleNamespace(index=index, heads=2) for index in range(3)]
    surgery = SimpleNamespace(anatomy=SimpleNamespace(patches=100, prefix=1, width=64, blocks=blocks))

    def problem(taken):
        return reuse.DvtSurgery(2, taken, hands_on=True).requires(surgery)

    assert problem(reuse.Reuse(weights, 7, 10)) == ""
    assert "100 patches" in problem(reuse.Reuse(weights, 10, 14))
    few = {**weights, "relation_reuse_conv.0.weight": np.zeros((9, 3, 1, 1), np.float32)}
    assert "reads 3 maps" in problem(reuse.Reuse(few, 7, 10))
    narrow = {**weights, "blocks.1.norm2.weight": np.zeros(64, np.float32)}
    assert "norm2 of block 1" in problem(reuse.Reuse(narrow, 7, 10))
