"""A method of somebody else's: one folder with an entry point, no edit elsewhere, and every command takes it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers import images, legacy_onnx, tiny
from vitprune import export, methods, open_bundle, reference, rewrite
from vitprune.cli import run as cli
from vitprune.errors import RecipeError
from vitprune.pipelines import validate
from vitprune.recipe import Recipe

HEADS = Path(__file__).parents[2] / "docs" / "heads.py"
FILES = {
    "__init__.py": '''
from vitprune.methods.base import Method, MethodParams, Site
from vitprune.methods.cost import removed_before
from vitprune.methods.knob import Knob


class Params(MethodParams):
    method: str = "every_second"
    stages: list[int] = [2]
    step: int = 2


class Step(Knob):
    integer, rising = True, False

    def bounds(self, bench):
        return 1, 8

    def settings(self, bench, value):
        return {"step": int(value)}


class EverySecond(Method):
    """Every second patch stays."""

    name, summary, paper = "every_second", "patches 0, step, 2 step, ... stay", "nobody, nowhere"
    params, needs_cls = Params, False

    def sites(self, params, geometry):
        self.check_stages(params, geometry)
        found, entering = [], geometry.patches
        for block in params.stages:
            found.append(Site(block, entering, -(-entering // params.step)))
            entering = found[-1].limit
        return found

    def block_tokens(self, sites, geometry, kept):
        return removed_before(sites, geometry, kept)

    @property
    def reference(self):
        from every_second.reference import EverySecondReference

        return EverySecondReference

    @property
    def surgery(self):
        from every_second.surgery import EverySecondSurgery

        return EverySecondSurgery

    @property
    def knob(self):
        return Step()


METHOD = EverySecond()
''',
    "reference.py": """
from vitprune.vit.reference_method import ReferenceMethod
from vitprune.vit.tokens import take_rows


class EverySecondReference(ReferenceMethod):
    def block(self, index, block, x, state):
        if index in self.sites:
            chosen = state.valid.clone()
            chosen[:] = False
            chosen[:, :: self.params.step] = True
            x = take_rows(x, state.keep(chosen))
            state.record()
        return super().block(index, block, x, state)
""",
    "surgery.py": """
import numpy as np

from vitprune.graph.canonical import canonical
from vitprune.graph.emit import INT64
from vitprune.graph.passes.base import GraphPass
from vitprune.methods._dropping.selection import splice, track


class EverySecondSurgery(GraphPass):
    name = "every_second"

    def apply(self, surgery):
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            if block.index in sites:
                self.cut(surgery, block, sites[block.index])
            canonical(surgery, block)
        return True

    def cut(self, surgery, block, site):
        em = surgery.emitter.child(f"block{block.index}/cut")
        batch = em.slice(em.op("Shape", [surgery.graph.inputs[0]], "shape", dtype=INT64), 0, 1, 0, "batch", dtype=INT64)
        shape = em.op("Concat", [batch, em.constant([site.limit])], "full", dtype=INT64, axis=0)
        slots = np.arange(site.limit)[None] * surgery.recipe.prune.step
        rows = track(surgery, em, em.op("Expand", [em.constant(slots), shape], "index", dtype=INT64))
        splice(surgery, block.x, lambda x: em.take_rows(x, rows, "x/kept"))
""",
}
RECIPE = {"prune": {"method": "every_second", "stages": [1, 3]}, "validate": {"samples": 4}}


def install(folder):
    """What pip leaves behind: the package and the metadata with its entry point."""
    package, facts = folder / "every_second", folder / "every_second-1.0.dist-info"
    for path in (package, facts):
        path.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: every-second\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[vitprune.methods]\nevery_second = every_second\n")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    install(site)
    monkeypatch.syspath_prepend(str(site))
    caches = (methods._modules, methods.get)
    for cache in caches:
        cache.cache_clear()
    yield site
    for cache in caches:
        cache.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "every_second"]:
        del sys.modules[name]


def test_without_the_package_there_is_no_such_method():
    with pytest.raises(RecipeError, match="VP104"):
        Recipe.load(RECIPE)


def test_every_command_takes_it(installed, tmp_path, capsys):
    recipe, x = Recipe.load(RECIPE), images(4)
    model = tiny(img_size=32, embed_dim=32)

    bundle = export(model, recipe, tmp_path / "exported")
    x = x[:, :, :32, :32]
    result = bundle.run(x)
    assert [sorted(map(int, rows[0])) for rows in result.kept] == [list(range(0, 16, 2)), list(range(0, 16, 4))]
    import torch

    with torch.no_grad():
        expected = reference(model, recipe)(torch.from_numpy(x)).numpy()
    assert np.abs(result.logits - expected).max() <= 1e-4
    assert np.abs(result.logits - model(torch.from_numpy(x)).detach().numpy()).max() > 1e-3, "something left"

    dense = tmp_path / "dense.onnx"
    legacy_onnx(model, torch.from_numpy(x[:2]), dense, 17)
    assert np.abs(rewrite(dense, recipe, tmp_path / "rewritten").run(x).logits - expected).max() <= 1e-4
    assert validate(open_bundle(tmp_path / "exported")).passed

    assert cli(["--json", "methods"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["methods"]}
    assert listed["every_second"]["parameters"] == ["stages", "step"]

    section = {
        "name": "vit_tiny_patch16_224",
        "args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 10},
    }
    made = Recipe.load({"model": section, **RECIPE})
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    np.savez(tmp_path / "data.npz", images=x)
    arguments = [
        "--data",
        str(tmp_path / "data.npz"),
        "-o",
        str(tmp_path / "calibrated.yaml"),
        "--budget-macs",
        "0.5",
        "--no-pretrained",
    ]
    assert cli(["calibrate", str(tmp_path / "recipe.yaml"), *arguments]) == 0, capsys.readouterr().err
    assert Recipe.load(tmp_path / "calibrated.yaml").prune.step > 2


def test_its_page_can_be_begun(installed):
    paths = f"{installed}:{':'.join(path for path in sys.path if path)}"
    command = [sys.executable, str(HEADS), "--show", "every_second"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": paths}).stdout
    assert "# `every_second`: Every second patch stays" in shown
    assert "| `step` | `2` |" in shown
