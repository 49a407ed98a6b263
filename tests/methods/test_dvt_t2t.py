"""T2T-ViT: published sizes and cost, tokens-to-token against its definition, DVT with T2T-ViT members, ATS on a T2T-ViT."""

import importlib.util
import json

import numpy as np
import onnx
import pytest
import timm
import torch
from dvt_support import pixels, runnable
from torch.nn import functional

import vitprune
from vitprune import cli, console
from vitprune.errors import ExportError, RecipeError
from vitprune.methods.base import Geometry
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.methods.dvt import rule as dvt
from vitprune.methods.dvt.cost import exit_costs
from vitprune.methods.dvt.host import all_exits, in_fixed_batches, run_cascade, torch_members
from vitprune.methods.dvt.members import load
from vitprune.methods.dvt.reference import EarlyExit
from vitprune.recipe import Recipe
from vitprune.vit import loading, t2t, tokenizing
from vitprune.vit.dense import geometry
from vitprune.vit.t2t_sizes import Unfolding, tokenizer_macs, unfoldings

ARGS = {"img_size": 32, "grid": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 6}
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _plain_console():
    yield
    console.settings = console.Settings()


def recipe(thresholds=(0.7, 0.4), args=None, name="t2t_vit_7", **keys):
    prune = {"method": "dvt", "backbone": "t2t", "grids": [2, 3, 4], "thresholds": list(thresholds), **keys}
    model = {"name": name, "args": {**ARGS, **(args or {})}}
    return Recipe.load({"model": model, "prune": prune, "graph": {"batch": "4"}, "validate": {"samples": 8}})


def enliven(module, seed=3):
    """Weights that make answers differ from image to image and tokenizer attention differ from token to token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.requires_grad:
                scale = (0.4 if "kqv" in name else 1.5) / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1
                noise = torch.randn(value.shape, generator=generator) * scale
                value.copy_(noise if value.ndim > 1 else value + noise)
    return module.eval()


@pytest.fixture(scope="module")
def cascade():
    return enliven(load(None, recipe(), pretrained=False, seed=0, weights=None).module)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, cascade):
    """Exported on the command line from a checkpoint with the published names."""
    folder = tmp_path_factory.mktemp("t2t")
    torch.save({"state_dict": cascade.state_dict()}, folder / "weights.pth")
    (folder / "recipe.yaml").write_text(recipe().to_yaml())
    arguments = ["export", "-r", str(folder / "recipe.yaml"), "--weights", str(folder / "weights.pth"), "-o", str(folder / "b")]
    assert cli.run([*arguments, "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def graphs(bundle):
    return [onnx.load(bundle / "b" / f"exit{number}.onnx") for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def members(graphs):
    return [in_fixed_batches(member, 4) for member in runnable(graphs)]


# The model -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("t2t_vit_7", 4.3, 1.1), ("t2t_vit_10", 5.9, 1.5), ("t2t_vit_12", 6.9, 1.8), ("t2t_vit_14", 21.5, 4.8)],
)
def test_published_parameters_and_macs(name, parameters, macs):
    model = timm.create_model(name)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == parameters
    sizes = geometry(model)
    assert (sizes.patches, sizes.prefix) == (196, 1)
    assert round(model_macs(sizes, dense_blocks(sizes)) / 1e9, 1) == macs


@pytest.mark.parametrize(("grid", "published"), [(7, 0.47), (14, 1.78)])
def test_published_macs_of_dvt_members(grid, published):
    """T2T-ViT-12 on fewer tokens, by DVT's own count."""
    sizes = Geometry(12, grid * grid, 1, 256, 4, 512, tokenizer_macs(224, grid, 3, 256), 1000)
    assert model_macs(sizes, dense_blocks(sizes)) / 1e9 == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize(("grid", "first", "maps"), [(7, (14, 8, 3), [28, 14, 7]), (10, (11, 6, 5), [38, 19, 10]), (14, (7, 4, 2), [56, 28, 14])])  # fmt: skip
def test_published_unfoldings(grid, first, maps):
    found = unfoldings(224, grid)
    assert (found[0].kernel, found[0].stride, found[0].padding) == first
    assert [step.after for step in found] == maps
    assert all((step.kernel, step.stride, step.padding) == (3, 2, 1) for step in found[1:])


def test_unfoldings_of_other_sizes():
    for image, grid in [(384, 24), (448, 28), (32, 2), (32, 3), (32, 4), (56, 4), (224, 4), (16, 4)]:
        assert unfoldings(image, grid)[2].after == grid
    first = unfoldings(384, 24)[0]
    assert (first.kernel, first.stride, first.padding) == (7, 4, 2)
    with pytest.raises(ValueError, match="near 4 \\* 64"):
        unfoldings(224, 16)


@pytest.mark.parametrize("sizes", [Unfolding(12, 7, 4, 2), Unfolding(9, 3, 2, 1), Unfolding(30, 14, 8, 3)])
def test_unfolding_copies_exactly(sizes):
    cells = torch.randn(2, 5, sizes.before, sizes.before)
    ours = t2t.Unfold(5, sizes)(cells)
    assert ours.shape[1] == sizes.after**2
    assert torch.equal(ours, functional.unfold(cells, sizes.kernel, padding=sizes.padding, stride=sizes.stride).transpose(1, 2))


def test_performer_is_attention_with_the_kernel():
    """Quadratic form: row i is sum_j phi(q_i) phi(k_j) v_j over sum_j phi(q_i) phi(k_j), which the layer never makes."""
    layer = enliven(t2t.Performer(20)).double()
    x = torch.randn(2, 9, 20, dtype=torch.float64)
    key, query, value = layer.kqv(layer.norm1(x)).chunk(3, dim=-1)

    def kernel(u, row):
        return torch.exp(u @ row - u.square().sum(-1) / 2) / 32**0.5

    weight = sum(kernel(query, row)[:, :, None] * kernel(key, row)[:, None, :] for row in layer.w)
    assert weight.std(dim=-1).max() > 0.05 * weight.mean()
    attended = value + layer.proj(weight / (weight.sum(-1, keepdim=True) + 1e-8) @ value)
    torch.testing.assert_close(layer(x), attended + layer.mlp(layer.norm2(attended)))
    torch.testing.assert_close(layer.w @ layer.w.T, 32 * torch.eye(32, dtype=torch.float64), atol=1e-4, rtol=0)


def test_positions_are_fixed_sinusoids():
    table = t2t.sinusoids(5, 4)[0].numpy()
    for row in range(5):
        wanted = [np.sin(row), np.cos(row), np.sin(row / 100), np.cos(row / 100)]
        np.testing.assert_allclose(table[row], wanted, atol=1e-6)
    model = timm.create_model("t2t_vit_7", **ARGS)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed, t2t.sinusoids(17, 32))


def test_front_end_equals_its_definition():
    ours = enliven(t2t.TokensToToken(40, 4, 3, 24))
    theirs = tokenizing.TokensToToken(40, 4, 3, 24).eval()
    state = {name: value for name, value in ours.state_dict().items() if not name.startswith("proj")}
    state |= {"project.weight": ours.proj.weight.flatten(1), "project.bias": ours.proj.bias}
    theirs.load_state_dict(state)
    x = torch.from_numpy(pixels(2, size=40))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
    assert theirs(x).std(dim=1).mean() > 0.05


def test_checkpoint_names(cascade):
    """Parameters of DVT's published T2T-ViT checkpoints, by name and shape; names of blocks and reuse are those of the DeiT golden."""
    found = {
        name: tuple(value.shape) for name, value in cascade.less_token.state_dict().items() if not name.startswith("blocks.")
    }
    layers = {}
    for number, width in ((1, 75), (2, 576)):
        layers |= {
            f"attention{number}.{name}": shape
            for name, shape in {
                "w": (32, 64), "kqv.weight": (192, width), "kqv.bias": (192,), "proj.weight": (64, 64), "proj.bias": (64,),
                "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (64,), "norm2.bias": (64,),
                "mlp.0.weight": (64, 64), "mlp.0.bias": (64,), "mlp.2.weight": (64, 64), "mlp.2.bias": (64,),
            }.items()
        }  # fmt: skip
    layers |= {"project.weight": (32, 576), "project.bias": (32,)}
    rest = {"cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    rest |= {f"relation_reuse_conv.{number}.{part}" for number in (0, 2) for part in ("weight", "bias")}
    assert {name: found[f"tokens_to_token.{name}"] for name in layers} == layers
    assert set(found) == rest | {f"tokens_to_token.{name}" for name in layers}
    assert "blocks.0.attn.qkv.bias" not in cascade.less_token.state_dict()


def test_checkpoint_of_one_model_loads_under_both_names(tmp_path):
    from safetensors.torch import save_file

    model = enliven(timm.create_model("t2t_vit_7", **ARGS))
    published = {name: value.contiguous() for name, value in t2t.to_published(model.state_dict()).items()}
    assert published["tokens_to_token.project.weight"].shape == (32, 576)
    for number, state in enumerate((published, model.state_dict())):
        save_file(state, tmp_path / f"{number}.safetensors")
        section = recipe().model.model_copy(update={"weights": str(tmp_path / f"{number}.safetensors")})
        found = loading.load(section, pretrained=False).module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


# DVT ---------------------------------------------------------------------------------------------------------------------------


def test_graphs_equal_reference(cascade, members):
    x = pixels(6, size=32)
    feeds, wanted = {"image": x}, {"image": x}
    for ours, theirs in zip(members, torch_members(cascade), strict=True):
        found, right = dict(ours(feeds)), dict(theirs(wanted))
        for name, value in right.items():
            if name in found:
                np.testing.assert_allclose(found[name], value, atol=TOLERANCE, rtol=1e-4, err_msg=name)
        feeds, wanted = ({"image": x, **{k: v for k, v in out.items() if k != "logits"}} for out in (found, right))
    for logits in all_exits(members, x):
        assert logits.std(axis=0).mean() > 0.05  # images are told apart


def test_exits(cascade, members):
    x = pixels(12, size=32)
    logits = all_exits(torch_members(cascade), x)
    sure = [np.sort(dvt.confidence(torch.from_numpy(value)).numpy()) for value in logits]
    mixed = [float(sure[0][6] + sure[0][7]) / 2, float(sure[1][5] + sure[1][6]) / 2]
    for thresholds, exits in (([-1.0, 0.5], {1}), ([None, None], {3}), (mixed, {1, 2, 3})):
        reference = EarlyExit(cascade, recipe(thresholds).prune)
        with torch.inference_mode():
            wanted = reference(torch.from_numpy(x)).numpy()
        found = run_cascade(members, x, thresholds)
        assert found.exits.tolist() == reference.exits.tolist()
        assert set(found.exits.tolist()) == exits
        np.testing.assert_allclose(found.logits, wanted, atol=TOLERANCE)


def test_bundle(bundle, capsys):
    manifest = vitprune.open_bundle(bundle / "b").manifest
    wanted = geometry(timm.create_model("t2t_vit_7", **ARGS))
    assert manifest.model["geometry"]["embed_macs"] == wanted.embed_macs == tokenizer_macs(32, 4, 3, 32)
    assert manifest.preprocessing["input_size"] == [3, 32, 32]
    capsys.readouterr()
    assert cli.run(["validate", str(bundle / "b"), "--weights", str(bundle / "weights.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "PyTorch, live"


def test_graphs_hold_no_gathered_windows(graphs):
    for graph in graphs:
        kinds = [node.op_type for node in graph.graph.node]
        assert kinds.count("Gather") == 1  # the CLS token before the head
        assert not {"Einsum", "Col2Im", "ScatterND", "GatherND", "Pad", "Resize"} & set(kinds)


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_rtx_builds_members(bundle, tmp_path):
    from vitprune.backends.tensorrt_rtx import build

    for number in (1, 2, 3):
        request = {
            "model": str(bundle / "b" / f"exit{number}.onnx"), "output": str(tmp_path / "engine"), "log": str(tmp_path / "log"),
            "batch": (4, 4, 4),
        }  # fmt: skip
        assert build(request, lambda text: None)["inputs"][0] == "image"
        assert (tmp_path / "engine").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "args", "prune", "code"),
    [
        ("t2t_vit_7", {}, {"backbone": "deit"}, "VP157"),
        ("deit_tiny_patch16_224", {"grid": None, "patch_size": 8}, {}, "VP157"),
        ("t2t_vit_7", {}, {"grids": [2, 3, 8]}, "VP151"),
        ("t2t_vit_7", {"img_size": 24, "grid": 6}, {"grids": [2, 5, 6]}, "VP152"),
    ],
)
def test_recipes_that_do_not_fit(name, args, prune, code):
    chosen = recipe(args=args, name=name, **prune)
    if args.get("grid", 0) is None:
        del chosen.model.args["grid"]
    with pytest.raises(RecipeError) as caught:
        load(None, chosen, pretrained=False, seed=0, weights=None)
    assert caught.value.code == code
    assert caught.value.next_step


@pytest.mark.parametrize(("args", "pretrained", "code"), [({}, True, "VP302"), ({"img_size": [32, 16]}, False, "VP301"), ({"img_size": 24, "grid": 5}, False, "VP301")])  # fmt: skip
def test_models_that_cannot_be_made(args, pretrained, code):
    with pytest.raises(ExportError) as caught:
        loading.load(recipe(args=args).model, pretrained=pretrained)
    assert caught.value.code == code


def test_shipped_recipe():
    chosen = Recipe.load("dvt_t2t_vit_12")
    one, two, three = exit_costs(
        chosen.prune, Geometry(12, 196, 1, 256, 4, 512, tokenizer_macs(224, 14, 3, 256), 1000), (3, 224, 224)
    )
    assert (chosen.model.name, chosen.prune.backbone) == ("t2t_vit_12", "t2t")
    assert one / 1e9 == pytest.approx(0.47, rel=0.015)
    assert one < two < three


# One model -----------------------------------------------------------------------------------------------------------------------


def test_ats_on_a_t2t_vit(tmp_path):
    chosen = Recipe.load(
        {
            "model": {"name": "t2t_vit_7", "args": ARGS},
            "prune": {"method": "ats", "stages": [0], "num_samples": 10},
            "validate": {"samples": 8},
        }
    )
    model = enliven(timm.create_model("t2t_vit_7", **ARGS))
    bundle = vitprune.export(model, chosen, tmp_path / "b")
    assert cli.run(["validate", str(tmp_path / "b"), "--quiet"]) == 0
    found = bundle.manifest.model["geometry"]  # as read from the graph
    assert (found["patches"], found["prefix"], found["depth"]) == (16, 1, 1)
    assert found["embed_macs"] == tokenizer_macs(32, 4, 3, 32)
    kept = bundle.samples()["kept_0"]
    assert 1 < (kept >= 0).sum(axis=1).mean() < 16
