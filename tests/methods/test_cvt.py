"""ATS on CvT's last stage: definition against a physical computation, graph against reference, invariants."""

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")

from cvt_support import export_cvt, small_cvt
from hypothesis import given, settings
from hypothesis import strategies as st

from vitprune.errors import ExportError, RecipeError
from vitprune.graph import surgery
from vitprune.graph.families import cvt
from vitprune.graph.families.cvt import incidence
from vitprune.methods.ats import rule as ats
from vitprune.methods.ats.cvt_reference import lift, reference, windows
from vitprune.recipe import Recipe

SIDE, GRID = 112, (7, 7)


def recipe(shapes="dynamic", batch="1:2:4", **keys):
    prune = {"method": "ats", "stages": [1, 2, 3], "num_samples": 20, **keys}
    return Recipe.load({"prune": prune, "graph": {"shapes": shapes, "batch": batch}})


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x})


def sets(kept):
    return [tuple(int(p) for p in row if p >= 0) for row in np.asarray(kept)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return small_cvt()


@pytest.fixture(scope="module")
def dense(model):
    return export_cvt(model, SIDE)


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def last_stage_input(model, x):
    """CLS and tokens [B,1+P,C] that enter the last stage."""
    *early, last = model.cvt.encoder.stages
    for stage in early:
        x, _ = stage(x)
    tokens = last.embedding(x).flatten(2).transpose(1, 2)
    return torch.cat([last.cls_token.expand(len(x), -1, -1), tokens], dim=1)


# ---- windows and shares


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 2), (3, 3, 0)]))
def test_windows_are_where_a_convolution_looks(height, width, shape):
    kernel, stride, padding = shape
    if min(height, width) + 2 * padding < kernel:
        return
    ones = torch.ones(1, 1, kernel, kernel)
    basis = torch.eye(height * width).reshape(-1, 1, height, width)
    expected = torch.nn.functional.conv2d(basis, ones, stride=stride, padding=padding).flatten(1).T
    assert torch.equal(windows((height, width), kernel, stride, padding), expected)
    assert np.array_equal(incidence((height, width), kernel, stride, padding), expected.numpy())


def test_shares_keep_the_total_and_go_to_present_tokens():
    window = windows(GRID, 3, 2, 1)
    live = torch.zeros(1, 49, dtype=torch.bool)
    live[0, [0, 1, 8, 30, 48]] = True
    seen = (window[:, live[0]].sum(1) > 0).float()
    score = torch.rand(1, 16) * seen
    shares = lift(score, live, window)
    assert float(shares.sum()) == pytest.approx(float(score.sum()), rel=1e-5)
    assert not shares[~live].any()


def test_shares_of_pointwise_projections_are_the_scores():
    score = torch.rand(2, 49)
    assert torch.equal(lift(score, torch.ones(2, 49, dtype=torch.bool), windows(GRID, 1, 1, 0)), score)


# ---- the definition


def physical_layer(layer, x, patch):
    """One layer on one image [1,1+K,C] whose tokens sit at cells `patch`: cells without a token are removed, not masked."""
    attn = layer.attention.attention
    h = layer.layernorm_before(x)
    grid = torch.zeros(1, h.shape[2], *GRID)
    for row, cell in enumerate(patch):
        grid[0, :, cell // 7, cell % 7] = h[0, 1 + row]
    taken = [(cell // 7, cell % 7) for cell in patch]
    near = [
        4 * r + c
        for r in range(4)
        for c in range(4)
        if any(abs(2 * r - row) <= 1 and abs(2 * c - column) <= 1 for row, column in taken)
    ]
    query = torch.cat([h[:, :1], attn.convolution_projection_query(grid)[:, list(patch)]], dim=1)
    key = torch.cat([h[:, :1], attn.convolution_projection_key(grid)[:, near]], dim=1)
    value = torch.cat([h[:, :1], attn.convolution_projection_value(grid)[:, near]], dim=1)
    heads = [
        linear(rows)[0].reshape(rows.shape[1], 2, 16).transpose(0, 1)
        for linear, rows in ((attn.projection_query, query), (attn.projection_key, key), (attn.projection_value, value))
    ]
    weights = (heads[0] @ heads[1].transpose(1, 2) * attn.scale).softmax(-1)
    x = x + layer.attention.output.dense((weights @ heads[2]).transpose(0, 1).reshape(1, -1, 32))
    return layer.output(layer.intermediate(layer.layernorm_after(x)), x), (weights[:, 0, 1:], heads[2][:, 1:], near)


def test_masked_computation_is_the_physical_one(model, images):
    """Image by image with tokens and empty cells really gone: same logits."""
    module = reference(model, recipe(), SIDE)
    with torch.no_grad():
        logits = module(images)
        layers = model.cvt.encoder.stages[-1].layers
        for image in range(len(images)):
            x = last_stage_input(model, images[image : image + 1])
            patch = tuple(range(49))
            for index, layer in enumerate(layers):
                full, _ = physical_layer(layer, x, patch)
                if index >= 1:
                    stay = sets(module.kept[index - 1])[image]
                    assert set(stay) <= set(patch)
                    assert index > 1 or len(stay) < len(patch)
                    # keys and values are those of all who entered: rows of the full layer
                    full = full[:, [0, *(1 + patch.index(p) for p in stay)]]
                    patch = stay
                x = full
            alone = model.classifier(model.layernorm(x[:, :1]).mean(dim=1))
            assert float((alone - logits[image]).abs().max()) <= 1e-4


def test_first_decision_by_hand(model, images):
    """Scores of the first site from the physical layer, shares by explicit loops."""
    module = reference(model, recipe(stages=[0]), SIDE)
    with torch.no_grad():
        module(images)
        x = last_stage_input(model, images[:1])
        row, value, near = physical_layer(model.cvt.encoder.stages[-1].layers[0], x, tuple(range(49)))[1]
    cells = (row * value.norm(dim=-1)).sum(0)
    shares = [0.0] * 49
    for score, cell in zip(cells.tolist(), near, strict=True):
        r, c = 2 * (cell // 4), 2 * (cell % 4)
        inside = [7 * i + j for i in range(r - 1, r + 2) for j in range(c - 1, c + 2) if 0 <= i < 7 and 0 <= j < 7]
        for patch in inside:
            shares[patch] += score / len(inside)
    keep, _ = ats.select(torch.tensor([shares]), torch.ones(1, 49, dtype=torch.bool), 20)
    assert sets(module.kept[0])[0] == tuple(torch.nonzero(keep[0])[:, 0].tolist())


def test_bypass_gives_the_dense_logits(model, dense, images):
    chosen = recipe(num_samples=None)
    with torch.no_grad():
        expected = model(images).logits
        assert float((reference(model, chosen, SIDE)(images) - expected).abs().max()) <= 1e-5
    assert np.abs(run(surgery.rewrite(dense, chosen)[0], images.numpy())[0] - expected.numpy()).max() <= 1e-4


# ---- graph against reference


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"mode": "official", "num_samples": 49},
        {"stages": [0, 2], "num_samples": [12, None]},
        {"capacity": [9, None, 3]},
        {"num_samples": 1},
    ],
)
def test_graph_agrees_with_the_reference(model, dense, images, shapes, keys):
    chosen = recipe(shapes, **keys)
    module = reference(model, chosen, SIDE)
    with torch.no_grad():
        logits = module(images).numpy()
        plain = model(images).logits.numpy()
    outputs = run(surgery.rewrite(dense, chosen)[0], images.numpy())
    assert [sets(kept) for kept in outputs[1:]] == [sets(kept) for kept in module.kept]
    assert np.abs(outputs[0] - logits).max() <= 1e-4
    assert np.abs(logits - plain).max() > 1e-2
    before = [set(range(49))] * len(images)
    for kept in outputs[1:]:
        assert all(list(row) == sorted(row) and set(row) <= full for row, full in zip(sets(kept), before, strict=True))
        before = [set(row) for row in sets(kept)]


def test_single_image_graph(model, dense, images):
    chosen = recipe(batch="1")
    graph = surgery.rewrite(dense, chosen)[0]
    module = reference(model, chosen, SIDE)
    for image in images.split(1):
        with torch.no_grad():
            logits = module(image).numpy()
        assert np.abs(run(graph, image.numpy())[0] - logits).max() <= 1e-4


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_result_of_an_image_does_not_depend_on_its_batch(dense, images, shapes):
    """In float64, where the convolutions of the early stages do not round differently with the batch size."""
    chosen = recipe(shapes)
    module = reference(small_cvt().double(), chosen, SIDE)
    with torch.no_grad():
        whole = module(images.double())
        kept = module.kept
        for picked in ([0], [3], [2, 2, 1]):
            part = module(images[picked].double())
            assert float((part - whole[picked]).abs().max()) <= 1e-5
            for few, many in zip(module.kept, kept, strict=True):
                assert sets(few) == [sets(many)[image] for image in picked]
    graph = surgery.rewrite(dense, chosen)[0]
    outputs = run(graph, images.numpy())
    for picked in ([0], [3, 1]):
        part = run(graph, images[picked].numpy())
        assert np.abs(part[0] - outputs[0][picked]).max() <= 1e-5
        assert [sets(k) for k in part[1:]] == [[sets(k)[i] for i in picked] for k in outputs[1:]]


@pytest.mark.slow
def test_pointwise_projections_with_one_key_per_token():
    """Kernel 1, stride 1: the grid plays no part any more."""
    small = small_cvt(kernel=1, stride_kv=1)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    chosen = recipe(num_samples=9)
    module = reference(small, chosen, 64)
    with torch.no_grad():
        logits = module(x).numpy()
    outputs = run(surgery.rewrite(export_cvt(small, 64), chosen)[0], x.numpy())
    assert [sets(kept) for kept in outputs[1:]] == [sets(kept) for kept in module.kept]
    assert np.abs(outputs[0] - logits).max() <= 1e-4


# ---- cost and canonical form


def test_cost_counts_strided_keys_and_constant_parts(dense):
    from vitprune.methods import get
    from vitprune.methods.cost import dense_blocks, model_macs

    sizes = surgery.geometry(cvt.find(dense))
    assert (sizes.patches, sizes.keys, sizes.depth) == (49, 17, 4)

    # stem 28x28x16x147 | stage 1, one block: q 784, k and v 196 rows; 2x784x196 products | ... | last stage 50 queries, 17 keys
    def stage(tokens, keys, cells, width, blocks):
        convolutions = 9 * width * (tokens + 2 * cells)
        products = 2 * tokens * keys * width
        return blocks * (convolutions + products + (2 * tokens + 2 * keys) * width**2 + 8 * tokens * width**2)

    stems = 784 * 16 * 3 * 49 + 196 * 32 * 16 * 9 + 49 * 32 * 32 * 9
    last = stage(50, 17, 16, 32, 4) - 4 * 9 * 32  # CLS is not convolved
    expected = stems + stage(784, 196, 196, 16, 1) + stage(196, 49, 49, 32, 2) + last
    assert model_macs(sizes, dense_blocks(sizes)) == expected
    sites = get("ats").sites(recipe().prune, sizes)
    pruned = model_macs(sizes, get("ats").block_tokens(sites, sizes, [20, 20, 20]))
    assert expected - pruned == 3 * 29 * (2 * 17 * 32 + 2 * 32**2 + 8 * 32**2)


def test_canonical_form_computes_the_dense_logits(model, dense, images):
    with torch.no_grad():
        expected = model(images).logits.numpy()
    assert np.abs(run(surgery.canonical(dense, recipe()), images.numpy())[0] - expected).max() <= 1e-4


# ---- refusals


def test_refusals(model, dense):
    with pytest.raises(RecipeError) as error:
        surgery.rewrite(dense, Recipe.load({"prune": {"method": "avit", "gate_scale": 1, "gate_center": 1, "compact_at": [1]}}))
    assert error.value.code == "VP144"
    with pytest.raises(RecipeError) as error:
        reference(model, recipe(stages=[4]), SIDE)
    assert error.value.code == "VP110"
    with pytest.raises(ExportError) as refusal:
        reference(torch.nn.Linear(2, 2), recipe(), SIDE)
    assert refusal.value.code == "VP310"
    with pytest.raises(ExportError) as refusal:
        reference(small_cvt(cls_token=[False] * 3), recipe(), SIDE)
    assert refusal.value.code == "VP312"
    with pytest.raises(ExportError) as refusal:
        reference(small_cvt(stride_q=[1, 1, 2]), recipe(), SIDE)
    assert refusal.value.code == "VP311"


@pytest.mark.rtx
@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
def test_builds_on_tensorrt_rtx(dense, shapes):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from avit_support import builds_on_rtx

    assert builds_on_rtx(surgery.rewrite(dense, recipe(shapes, stages=[1, 3]))[0], (3, SIDE, SIDE)) is True
