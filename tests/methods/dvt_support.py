"""A small cascade, its graphs and runtimes for the DVT tests."""

from pathlib import Path

import numpy as np
import torch

from vitprune.recipe import Recipe

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ARGS = {"img_size": 56, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 6}


def recipe(thresholds=(0.7, 0.4), graph=None, validate=None, **keys):
    return Recipe.load(
        {
            "model": {"name": "deit_tiny_patch16_224", "args": ARGS},
            "prune": {"method": "dvt", "thresholds": list(thresholds), **keys},
            "graph": graph or {},
            "validate": validate or {"samples": 8},
        }
    )


def golden_cascade(golden):
    from vitprune.methods.dvt.reference import Backbone, Cascade

    cascade = Cascade(Backbone(3, 224, 64, 3, 2, 256, 10), recipe().prune).eval()
    cascade.load_state_dict({key[2:]: torch.tensor(golden[key]) for key in golden.files if key.startswith("w/")})
    return cascade


def lively_cascade(seed=1):
    """A small cascade whose confidences and relations vary from image to image (56 x 56 pixels, 6 classes)."""
    from vitprune.methods.dvt.members import random_cascade
    from vitprune.methods.dvt.reference import Backbone

    cascade = random_cascade(Backbone(3, 56, 32, 2, 2, 64, 6), recipe().prune, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in cascade.named_parameters():
            if value.ndim > 1 and "pos_embed" not in name:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / fan**0.5))
            else:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return cascade


def pixels(count, seed=0, size=56):
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def runnable(graphs):
    """Graphs as members for the host cascade."""
    from vitprune.backends.onnxruntime import make_session

    def wrap(graph):
        session = make_session(graph.SerializeToString(), threads=1)
        names = [value.name for value in session.get_outputs()]
        return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return [wrap(graph) for graph in graphs]


def spread_thresholds(cascade, x):
    """Thresholds at which all three exits answer some of the images x."""
    from vitprune.methods.dvt import rule as dvt

    with torch.inference_mode():
        first, second, _ = cascade(torch.from_numpy(x))
    sure = dvt.confidence(first).numpy()
    high = float(np.sort(sure)[-(len(sure) // 3)])
    left = np.sort(dvt.confidence(second).numpy()[sure < high])
    return [high - 1e-4, float(left[len(left) // 2]) - 1e-4]
