"""Every block of commands and code in README and docs is run, or marked as only read and why; a block that is neither fails.

    <!-- read: REASON -->     before a block: its commands are understood by the command line, its code compiles; nothing runs

Names that the documents use (DIR, out, deit_small_patch16_224, shipped recipes, ...) stand for tiny things here, so that this is quick.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console

from vitprune import cli, console
from vitprune.device import entry
from vitprune.recipe import Recipe
from vitprune.support import resources

sys.path.insert(0, str(Path(__file__).parent / "training"))

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Programs of others, in blocks that are only read. Words that stand for something.
THEIRS = ("tar", "nvpmodel", "sudo", "trtexec")
WORDS = {"T": "onnxruntime-cpu", "RECIPE_OR_BUNDLE": "my.yaml"}
# How many blocks are read only: one more has to be meant.
READ_ONLY = 16


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its language, its text, and why it is only read ("" where it is run)."""

    place: str
    language: str
    text: str
    reason: str


def blocks(name: str, text: str) -> list[Block]:
    found = re.finditer(r"(?:^<!-- read: ([^\n]*) -->\n\n?)?^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(f"{name}:{text[: hit.start(2)].count(chr(10)) + 1}", hit[2], hit[3], hit[1] or "") for hit in found]


BLOCKS = [block for page in PAGES for block in blocks(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))]
TOLD = [block for block in BLOCKS if block.reason == "what a command printed"]
REST = [block for block in BLOCKS if block not in TOLD]


def lines_of(block: Block) -> list[str]:
    """Command lines without comments."""
    return [shlex.join(words) for line in block.text.splitlines() if (words := shlex.split(line, comments=True))]


# ---- reading


def understood(line: str) -> None:
    """vitprune's lines by the command line's own parser; make's and pip's by what there is."""
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "pip":
        extras = re.findall(r"vitprune\[([\w,-]+)\]", line)
        tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras
        assert set(extras[0].split(",")) <= set(known), line
    elif program == "./run.sh":
        entry.arguments(words)
    elif program in THEIRS:
        return
    else:
        assert program == "vitprune", line
        cli._register_once()
        hoisted = cli._hoist(words)
        name, *arguments = hoisted[next(at for at, word in enumerate(hoisted) if not word.startswith("-")) :]
        with typer.main.get_command(cli.app).commands[name].make_context(name, arguments):
            pass


@pytest.mark.parametrize("block", REST, ids=lambda block: block.place)
def test_blocks_are_understood(block, tmp_path):
    if block.language == "python":
        compile(block.text, block.place, "exec")
    elif block.language == "toml":
        assert pytest.importorskip("tomllib", reason="from Python 3.11 on").loads(block.text)
    elif block.language == "yaml":
        (tmp_path / "recipe.yaml").write_text(block.text)
        Recipe.load(tmp_path / "recipe.yaml")
    else:
        assert block.language == "", f"{block.place}: a block in '{block.language}' is neither run nor read"
        for line in lines_of(block):
            understood(line)


def test_commands_stand_in_blocks_alone():
    """An indented line would be shown as code, and be seen by no test."""
    stray = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"    (\$ )?(vitprune|pip|make|python|\./run\.sh|tar|sudo) ", line)
    ]
    assert stray == []


def test_what_is_only_read_is_counted_and_says_why():
    assert [block.place for block in TOLD if block.language] == []
    only = [block for block in REST if block.reason]
    ours = [
        block
        for block in REST
        if not block.reason and block.language == ""
        for line in lines_of(block)
        if line.split()[0] in THEIRS
    ]
    assert ours == []
    assert all(len(block.reason) > 10 for block in only)
    assert len(only) == READ_ONLY, [(block.place, block.reason) for block in only]


def test_a_block_with_a_wrong_option_is_seen():
    (planted,) = blocks("planted.md", "text\n\n```\nvitprune validate out --junits x  # comment\n```\n")
    with pytest.raises(Exception, match="[Nn]o such option"):
        understood(lines_of(planted)[0])
    (told,) = blocks("planted.md", "<!-- read: needs a device -->\n```\nvitprune doctor\n```\n")
    assert told.reason == "needs a device"


# ---- running

RUN = [
    block
    for block in REST
    if not block.reason
    and (block.language == "python" or block.language == "" and any(line.startswith("vitprune ") for line in lines_of(block)))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder in which every name of the documents is there, and shipped recipes are tiny."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from training_support import MODEL, PRUNE, idx, recipe
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from vitprune.exporting.dense import dense_onnx
    from vitprune.vit import loading

    folder, patch = tmp_path_factory.mktemp("blocks"), pytest.MonkeyPatch()
    patch.setattr(torch.onnx, "export", remembering(torch.onnx.export))
    patch.setattr(resources, "recipes_folder", lambda: folder / "recipes")
    made = loading.load(recipe("topk").model, pretrained=False, seed=1).module
    save_file(made.state_dict(), str(folder / "weights.safetensors"))

    def tiny(method, **more):
        plain = recipe(method, train={"epochs": 1}, **more).to_dict()
        plain["model"] = {**MODEL, "name": "deit_small_patch16_224", "weights": str(folder / "weights.safetensors")}
        return json.dumps(plain)

    (folder / "recipes").mkdir()
    for method in PRUNE:
        (folder / "recipes" / f"{method}_deit_small.yaml").write_text(tiny(method))
    (folder / "recipes" / "targets").symlink_to(ROOT / "recipes" / "targets")
    (folder / "recipes" / "fashion_mnist").mkdir()
    (folder / "recipes" / "fashion_mnist" / "dynamicvit.yaml").write_text(tiny("dynamicvit", predictor="random"))
    images, labels = np.random.default_rng(0).integers(0, 255, (16, 16, 16), dtype=np.uint8), np.arange(16) % 3
    np.savez(folder / "recipes" / "fashion_mnist" / "test_images.npz", images=images, labels=labels)
    for name in ("recipe.yaml", "my.yaml"):
        (folder / name).write_text(tiny("tome_threshold"))
    onnx_file = folder / "dense.onnx"
    import onnx

    onnx.save(dense_onnx(made, (1, 16, 16), recipe("topk")), str(onnx_file))
    for name in ("DIR", "IMAGES"):
        idx(folder / name)
    config = ViTConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4, num_labels=3, num_channels=1)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "folder")
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder / "folder")
    Image.new("L", (16, 16)).save(folder / "picture.png")
    patch.chdir(folder)
    assert cli.run(shlex.split("export deit_small_patch16_224 -r topk_deit_small -o BUNDLE")) == 0
    for line in (
        "export deit_small_patch16_224 -r topk_deit_small -o out", "build-engine out -t onnxruntime-cpu --plugin none",
        "rewrite dense.onnx -r tome_deit_small -o A", "rewrite dense.onnx -r topk_deit_small -o B", "validate out",
        "benchmark out -t onnxruntime-cpu --batch 1 --batch 8 --rounds 2 -o before.json",
    ):  # fmt: skip
        assert cli.run(shlex.split(line)) == 0, line
    shutil.copy(folder / "out" / "reports" / "validate.json", folder / "result.json")
    yield folder, {"module": made, "x": torch.zeros(2, 1, 16, 16), "timm": timm}
    patch.undo()


def remembering(export):
    """torch.onnx.export that exports a module with the same weights once; what it gives is copied."""
    import copy
    import hashlib
    from types import SimpleNamespace

    import torch

    known = {}

    def exported(module, arguments, **options):
        digest = hashlib.sha256(
            str((type(module).__name__, [tuple(one.shape) for one in arguments], options["opset_version"])).encode()
        )
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode() + value.detach().to(torch.float32).numpy().tobytes())
        key = digest.hexdigest()
        if key not in known:
            known[key] = export(module, arguments, **options).model_proto
        return SimpleNamespace(model_proto=copy.deepcopy(known[key]))

    return exported


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_blocks_run(block, base, tmp_path, monkeypatch):
    folder, names = base
    for item in folder.iterdir():
        if (
            re.search(rf'-o {re.escape(item.name)}(\s|$)|"{re.escape(item.name)}"', block.text, re.MULTILINE)
            and item.name != "dense.onnx"
        ):
            continue  # the block makes it itself
        if (item / "manifest.json").is_file():
            shutil.copytree(item, tmp_path / item.name)
        else:
            (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    said = io.StringIO()
    monkeypatch.setattr(console, "settings", console.Settings(console=Console(file=said, width=200)))
    if block.language == "python":
        exec(compile(block.text, block.place, "exec"), dict(names))
        return
    for line in lines_of(block):
        if not line.startswith("vitprune ") or ("rtx" in line and not rtx()):
            continue  # make and pip are read above
        code = cli.run([WORDS.get(word, word) for word in shlex.split(line)[1:]])
        assert code == 0 or (code == 1 and "--compare" in line), (
            f"{line}: exit {code}\n{said.getvalue()}"
        )  # two timings may differ, or not be decided
    if any("rtx" in line for line in lines_of(block)) and not rtx():
        pytest.skip("tensorrt_rtx is not installed: the rest of the block ran")


def rtx() -> bool:
    import importlib.util

    return importlib.util.find_spec("tensorrt_rtx") is not None
