"""What is mutated: a small model in every form that a command reads, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
RECIPE = """version: 1
model:
  name: vit_tiny_patch16_224
  args: {img_size: 32, patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2, num_classes: 5}
prune:
  method: ats
  stages: [1, 2]
  num_samples: 8
graph:
  opset: 18
  shapes: dynamic
  batch: "1:4:8"
validate:
  samples: 8
  gates: {logits_max_abs: 1.0e-3, top1_agreement: 0.5, flip_margin: 1.0e-4}
"""
TARGET = """name: here
summary: ONNX Runtime on this machine
backend: onnxruntime
engine_file: model.onnx
builds_on: any
keep_kept_outputs: true
max_opset: 20
max_ir: 10
precisions: [fp32]
"""


def make(folder: Path) -> None:
    """Write recipe.yaml, target.yaml, dense.onnx, weights.safetensors, weights.pth, images.npz, pictures/ and bundle/ with an engine."""
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from vitprune import cli

    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "target.yaml").write_text(TARGET)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **SIZES).eval()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(folder / "weights.safetensors"))
    torch.save(state, folder / "weights.pth")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(6) % 5)
    for number, image in enumerate(pixels):
        place = folder / "pictures" / f"class{number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number}.png")
    common = ["-r", str(folder / "recipe.yaml"), "-q"]
    weights = ["--weights", str(folder / "weights.safetensors")]
    assert cli.run(["export", *common, *weights, "-o", str(folder / "bundle")]) == 0
    assert cli.run(["build-engine", str(folder / "bundle"), "--target", "onnxruntime-cpu", "-q"]) == 0
    from vitprune.exporting.dense import dense_onnx
    from vitprune.recipe import Recipe

    dense = dense_onnx(model, (3, 32, 32), Recipe.load(str(folder / "recipe.yaml")))
    (folder / "dense.onnx").write_bytes(dense.SerializeToString())


def fresh(corpus: Path, place: Path) -> Path:
    """A copy for one case, with a folder beside it that nothing may write to."""
    shutil.copytree(corpus, place / "in")
    for name in ("work", "home", "tmp", "outside"):
        (place / name).mkdir()
    (place / "outside" / "precious.txt").write_text("precious")
    return place / "in"
