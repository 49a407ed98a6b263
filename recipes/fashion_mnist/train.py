"""Train the small Vision Transformer that ships with vitprune on Fashion-MNIST.

Three phases: a long one with shifts and label smoothing, a short one without, and a last one with small shifts whose weights are averaged
over the steps (exponential moving average). A phase may use another patch size than the one before it: the weights are then
resampled with timm's patch and position resampling.
Interrupted runs go on from the last epoch: weights, optimiser, schedule and random state are in the checkpoint.

    python recipes/fashion_mnist/train.py --out /tmp/fmnist            # all phases, then model.safetensors
    python recipes/fashion_mnist/train.py --out /tmp/fmnist --eval     # accuracy on the 10,000 test images
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.utils import ModelEmaV3

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
MEAN, STD = 0.2860, 0.3530
ARCH = {"img_size": 28, "in_chans": 1, "num_classes": 10, "embed_dim": 96, "depth": 8, "num_heads": 3}
PHASES = (
    {"name": "patch4", "patch_size": 4, "epochs": 14, "lr": 1.5e-3, "drop": 0.0, "smoothing": 0.1, "shift": 2},
    {"name": "polish", "patch_size": 4, "epochs": 6, "lr": 8e-4, "drop": 0.0, "smoothing": 0.0, "shift": 0},
    {"name": "refine", "patch_size": 4, "epochs": 8, "lr": 6e-4, "drop": 0.0, "smoothing": 0.05, "shift": 1, "average": 0.998},
)


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes into an array of its stored shape."""
    with gzip.open(path) as stream:
        raw = stream.read()
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N,1,28,28] float32, normalised, and labels [N] int64 of split "train" or "t10k"."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz").astype(np.float32) / 255
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz").astype(np.int64)
    return torch.from_numpy((images - MEAN) / STD)[:, None], torch.from_numpy(labels)


def build(patch_size: int, drop: float = 0.0) -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", patch_size=patch_size, patch_drop_rate=drop, **ARCH)


def to_patch(state: dict[str, torch.Tensor], patch_size: int) -> dict[str, torch.Tensor]:
    """Resample patch embedding (FlexiViT's pseudo-inverse) and position embedding to another patch size."""
    grid = ARCH["img_size"] // patch_size
    state = dict(state)
    state["patch_embed.proj.weight"] = resample_patch_embed(state["patch_embed.proj.weight"], [patch_size] * 2)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [grid, grid], num_prefix_tokens=1)
    return state


def augment(images: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Random horizontal flip and a shift of up to `shift` pixels, per image."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    if not shift:
        return images
    padded = F.pad(images, (shift,) * 4, value=-MEAN / STD)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, len(images)), generator=generator)
    rows = dy[:, None] + torch.arange(28)
    cols = dx[:, None] + torch.arange(28)
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], cols[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 250) -> float:
    """Top-1 in percent."""
    model.eval()
    hits = sum(
        (model(images[i : i + batch]).argmax(1) == labels[i : i + batch]).sum().item() for i in range(0, len(images), batch)
    )
    return 100.0 * hits / len(images)


def run_phase(phase: dict, start: dict | None, out: Path, data: Path, batch: int) -> dict[str, torch.Tensor]:
    """Train one phase, or go on with it; returns the final state dict."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = build(phase["patch_size"], phase["drop"])
    if start is not None:
        model.load_state_dict(to_patch(start, phase["patch_size"]))
    images, labels = load_split(data, "train")
    test_images, test_labels = load_split(data, "t10k")
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=phase["lr"]
    )
    average = ModelEmaV3(model, decay=phase["average"]) if "average" in phase else None
    steps = len(images) // batch
    total, warm = steps * phase["epochs"], steps // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min(1.0, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / total))) + 1e-3
    )
    checkpoint, first = out / f"{phase['name']}.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        if average is not None:
            average.module.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["rng"])
        first = saved["epoch"]
    for epoch in range(first, phase["epochs"]):
        began, seen = time.time(), 0.0
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            pick = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(
                model(augment(images[pick], phase["shift"], generator)), labels[pick], label_smoothing=phase["smoothing"]
            )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if average is not None:
                average.update(model)
            seen += loss.item()
        result = model if average is None else average.module
        last = epoch + 1 == phase["epochs"]
        tested = slice(None) if last else slice(2000)
        record = {
            "phase": phase["name"], "epoch": epoch + 1, "loss": round(seen / steps, 4),
            "test_top1": accuracy(result, test_images[tested], test_labels[tested]),
            "seconds": round(time.time() - began, 1),
        }  # fmt: skip
        print(json.dumps(record), flush=True)
        saved = {
            "model": model.state_dict(), "average": result.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
            "generator": generator.get_state(), "rng": torch.get_rng_state(), "epoch": epoch + 1,
        }  # fmt: skip
        torch.save(saved, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return model.state_dict() if average is None else average.module.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and model.safetensors")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the four IDX files")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--eval", action="store_true", help="only evaluate OUT/model.safetensors")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.out / "model.safetensors"
    if not args.eval:
        state = None
        for phase in PHASES:
            state = run_phase(phase, state, args.out, args.data, args.batch)
        assert state is not None
        save_file({k: v.contiguous() for k, v in state.items()}, weights, metadata={"licence": "Apache-2.0"})
    model = timm.create_model("vit_tiny_patch16_224", patch_size=PHASES[-1]["patch_size"], checkpoint_path=str(weights), **ARCH)
    print(json.dumps({"test_images": 10000, "top1": accuracy(model, *load_split(args.data, "t10k"))}))


if __name__ == "__main__":
    main()
