"""Small models and exports shared by the tests."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

GOLDEN = Path(__file__).parent / "golden"
RECIPES = Path(__file__).parents[1] / "recipes"


def absent(what: str) -> NoReturn:
    """Skip a test for want of a compiler or header; with VITPRUNE_TEST_INSIST (`make test`, CI) the want is a failure."""
    if os.environ.get("VITPRUNE_TEST_INSIST"):
        pytest.fail(f"needs {what}, and VITPRUNE_TEST_INSIST says that nothing is to be left out")
    pytest.skip(f"needs {what}")


def script(path: Path) -> Any:
    """A script as a module of its own: two folders have a `report.py`."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ats(**prune: Any) -> dict[str, Any]:
    return {"prune": {"method": "ats", **prune}}


def golden_model(name: str = "ats_drop") -> tuple[Any, dict[str, np.ndarray]]:
    """timm model with the weights of a golden file, and the file's arrays."""
    import timm
    import torch

    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files}
    config = json.loads(str(arrays["config"]))
    keys = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    model = timm.create_model("vit_tiny_patch16_224", **{key: config[key] for key in keys})
    state = {key[2:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("w/")}
    model.load_state_dict({key: value for key, value in state.items() if key in model.state_dict()})
    return model.eval(), arrays


def tiny(name: str = "vit_tiny_patch16_224", seed: int = 0, **args: Any) -> Any:
    """A small random VisionTransformer with uneven attention and visible LayerScale."""
    import timm
    import torch

    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, **(sizes | args)).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * block.attn.attn_dim] *= 6
        for scale in (block.ls1, block.ls2):
            if hasattr(scale, "gamma"):
                scale.gamma.data.uniform_(0.3, 0.9)
    return model


def images(count: int, shape: tuple[int, ...] = (3, 64, 64), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def legacy_onnx(model: Any, x: Any, path: Path, opset: int) -> onnx.ModelProto:
    """Export with torch's TorchScript exporter."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, opset_version=opset, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load(str(path))


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    from vitprune.backends.onnxruntime import make_session

    session = make_session(model.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})


def sets(kept: Any) -> list[list[int]]:
    """Kept rows without padding."""
    return [[int(v) for v in row if v >= 0] for row in kept]


def uneven(model: Any, shift: float = 0.2, left: str = "") -> Any:
    """Random weights that make attention uneven, in place: maps keep the scale of rows, everything else is shifted.

    Args:
        shift: of biases, gains and tokens. left: parameters whose names hold this stay as they are.
    """
    import torch

    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if left and left in name:
                continue
            if parameter.ndim == 2:
                parameter.copy_(noise * (2.0 / parameter.shape[1]) ** 0.5)
            elif parameter.ndim == 4:
                parameter.copy_(noise * (1.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(shift * noise)
    return model
