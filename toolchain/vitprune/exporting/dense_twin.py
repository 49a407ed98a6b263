"""The dense model of a bundle, as the baseline of its speed: same canonical form, same types, nothing pruned.

A bundle carries it without carrying its weights twice: `dense.skeleton` is the dense graph whose large tensors name the tensors of
model.onnx that hold the same bytes. So every bundle can give its dense graph back, whether it came from a name, an instance or an ONNX file.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.bundle import Bundle
from vitprune.errors import LoadError, VitpruneError, first_line
from vitprune.exporting import parity
from vitprune.graph import surgery
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.skeletons import SKELETON, fleshed
from vitprune.support.onnx_file import read_model

CLOSE = (
    1e-4  # of the largest logit in fp32; other types compute with other roundings and are held to the direction of their logits
)
COSINE = 0.99


def dense_of(bundle: Bundle) -> onnx.ModelProto:
    """The dense graph of a bundle, proved by its stored samples: it must give the dense logits that were recorded at export.

    Raises:
        LoadError: VP650 the bundle cannot give it back, VP651 what it gives computes something else.
    """
    if len(bundle.model_files) > 1:
        raise _refused(
            "a cascade is trained as several models: it has no dense one", "--no-dense compares bundles with each other"
        )
    stored = bundle.samples()
    if "dense_logits" not in stored:
        raise _refused("its samples hold no logits of the dense model to prove it by", "export the bundle again")
    model = _given_back(bundle)
    seen = _logits(model, stored["images"], bundle)
    if why := _differs(seen, stored["dense_logits"], bundle.recipe.precision.mode):
        raise LoadError(
            651,
            "the dense graph that the bundle gives back is not its dense model",
            cause=why,
            next_step="export the bundle again",
        )
    return model


def _given_back(bundle: Bundle) -> onnx.ModelProto:
    """From the skeleton, or, for bundles of earlier versions, from the timm model that they were exported from."""
    if SKELETON in bundle.manifest.files:
        try:
            bare = onnx.load_model_from_string((bundle.path / SKELETON).read_bytes())
            return fleshed(bare, read_model(bundle.model_path))
        except Exception as error:
            raise LoadError(
                651, "the bundle's dense graph cannot be read", cause=first_line(error)[:200], next_step="export the bundle again"
            ) from error
    from vitprune.backends import torch as torch_backend
    from vitprune.exporting.dense import dense_onnx
    from vitprune.vit.features import dense_answers

    try:
        if why := torch_backend.missing():
            raise _refused(f"it was written without it, and {why}", "export the bundle again")
        channels, height, width = bundle.manifest.preprocessing["input_size"]
        module = torch_backend.dense_module(bundle)
        answers = dense_answers(module, bundle.recipe.output)
        return surgery.dense(dense_onnx(answers, (channels, height, width), bundle.recipe), bundle.recipe)
    except VitpruneError as error:
        raise _refused(error.cause or error.message, "export the bundle again with this version") from error


def _logits(model: onnx.ModelProto, pixels: NDArray[np.float32], bundle: Bundle) -> NDArray[np.float32]:
    try:
        session = make_session(emulated(model), spin=False)
        logits: NDArray[np.float32] = parity.run(session, pixels, bundle.recipe.graph.static_batch)[0]
        return logits
    except Exception as error:
        raise LoadError(
            651, "the bundle's dense graph cannot be run", cause=first_line(error)[:200], next_step="export the bundle again"
        ) from error


def _differs(seen: NDArray[np.float32], recorded: NDArray[np.float32], mode: str) -> str:
    """Why logits [n,classes] are not those recorded, or ""."""
    if seen.shape != recorded.shape or not np.isfinite(seen).all():
        return f"its logits are {list(seen.shape)}, recorded are {list(recorded.shape)}"
    if mode == "fp32":
        worst, limit = float(np.abs(seen - recorded).max()), CLOSE * max(1.0, float(np.abs(recorded).max()))
        return "" if worst <= limit else f"its logits differ from those recorded by {worst:.3g}, allowed is {limit:.3g}"
    one, other = (values - values.mean(axis=1, keepdims=True) for values in (seen, recorded))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = float(np.median((one * other).sum(axis=1) / np.maximum(norms, 1e-30)))
    return (
        ""
        if cosine >= COSINE
        else f"the cosine of its logits with those recorded is {cosine:.4f}, at least {COSINE} is asked for"
    )


def _refused(cause: str, next_step: str) -> LoadError:
    return LoadError(650, "the bundle cannot give its dense model back", cause=cause, next_step=next_step)
