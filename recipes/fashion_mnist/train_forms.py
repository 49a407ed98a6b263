"""Train two other forms of the shipped Fashion-MNIST model: rotary positions, and the mean of the patches instead of a CLS token.

Both start from the shipped weights, with what the form has not left out (absolute positions of the one, the CLS token of the other), and
are trained for two epochs with small shifts, which takes about ten minutes of one core each. Interrupted runs go on from the last
checkpoint, with the same images in the same order.

    python recipes/fashion_mnist/train_forms.py rotary --out /tmp/rotary     # writes rotary.safetensors
    python recipes/fashion_mnist/train_forms.py average --out /tmp/average
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from train import ARCH, DATA, accuracy, augment, load_split

HERE = Path(__file__).parent
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary": ("vit_small_patch16_rope_224", {**ARCH, "patch_size": 4}),
    "average": ("vit_tiny_patch16_224", {**ARCH, "patch_size": 4, "global_pool": "avg", "class_token": False}),
}
EPOCHS, BATCH, LR, SMOOTHING, SHIFT, EVERY = 2, 128, 6e-4, 0.05, 1, 100


def start(form: str) -> torch.nn.Module:
    """The form with the shipped weights, scales of LayerScale at 1."""
    name, args = FORMS[form]
    model = timm.create_model(name, **args)
    shipped = load_file(HERE / "model.safetensors")
    known = model.state_dict()
    if "fc_norm.weight" in known:
        shipped |= {key.replace("norm.", "fc_norm."): shipped[key] for key in ("norm.weight", "norm.bias")}
        shipped["pos_embed"] = shipped["pos_embed"][:, 1:]
    taken = {key: value for key, value in shipped.items() if key in known}
    ones = {key: torch.ones_like(value) for key, value in known.items() if "gamma" in key}
    missing = set(known) - set(taken) - set(ones)
    assert not missing, missing
    model.load_state_dict(taken | ones)
    return model


def order(epoch: int, count: int) -> torch.Tensor:
    """Which image stands where in an epoch, int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("form", choices=list(FORMS))
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the weights")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the four IDX files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, (images, labels) = start(args.form), load_split(args.data, "train")
    groups = [[p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    optimiser = torch.optim.AdamW([{"params": group, "weight_decay": 0.05 * (not n)} for n, group in enumerate(groups)], lr=LR)
    steps = len(images) // BATCH
    total, warm = steps * EPOCHS, steps // 8
    checkpoint, done = args.out / f"{args.form}.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["steps"]
    for step in range(done, total):
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / total)) + 1e-6
        epoch, place = divmod(step, steps)
        pick = order(epoch, len(images))[place * BATCH : (place + 1) * BATCH]
        model.train()
        shifted = augment(images[pick], SHIFT, torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(shifted), labels[pick], label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % EVERY == 0 or step + 1 == total:
            print(json.dumps({"form": args.form, "step": step + 1, "of": total, "loss": round(loss.item(), 4), "cpu_s": round(time.process_time())}), flush=True)  # fmt: skip
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "steps": step + 1}, f"{checkpoint}.tmp")
            os.replace(f"{checkpoint}.tmp", checkpoint)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, args.out / f"{args.form}.safetensors", metadata={"licence": "Apache-2.0"})
    print(json.dumps({"form": args.form, "test_images": 10000, "top1": accuracy(model, *load_split(args.data, "t10k"))}))


if __name__ == "__main__":
    main()
