"""The cascade on the host: run a member on the images that are still open, answer the confident ones, gather the rest.

Per image and independent of batch mates: rows are gathered, never padded, and logits go back to the image's own place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends
from vitprune.backends import Result
from vitprune.backends._inputs import images
from vitprune.errors import LoadError
from vitprune.methods.base import keys_of
from vitprune.methods.dvt.keys import EXITS, Params

if TYPE_CHECKING:
    from vitprune.bundle import Bundle

Arrays = Mapping[str, NDArray[Any]]
Member = Callable[[Arrays], Arrays]


def member_file(number: int) -> str:
    """Name of the graph of exit `number` (from 1)."""
    return f"exit{number}.onnx"


def confidence(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Largest softmax probability [B] of logits [B,classes], in double precision."""
    wide = logits.astype(np.float64)
    total: NDArray[np.float64] = np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return 1.0 / total


def fires(certainty: NDArray[np.float64], threshold: float | None) -> NDArray[np.bool_]:
    """Which images [B] an exit answers: confidence >= threshold; a null threshold answers none."""
    return np.zeros(len(certainty), bool) if threshold is None else certainty >= threshold


def run_cascade(members: Sequence[Member], x: NDArray[np.float32], thresholds: Sequence[float | None]) -> Result:
    """Run a batch through the cascade.

    Args:
        members: functions from {"image", "z<k>", "r<k>"} to {"logits", "z<k+1>", "r<k+1>"}; a member is not called when no image is left.
        x: images float32 [B,C,H,W], B >= 1. thresholds: of all exits but the last, which answers whatever is left.

    Returns:
        Result with logits in the order of x, `kept` empty and `exits` int64 [B] counted from 1.
    """
    open_rows = np.arange(len(x))
    exits = np.zeros(len(x), np.int64)
    logits: NDArray[np.float32] | None = None
    feeds: Arrays = {"image": x}
    for number, member in enumerate(members, start=1):
        if not len(open_rows):
            break
        outputs = dict(member(feeds))
        own = outputs.pop("logits")
        if logits is None:
            logits = np.empty((len(x), own.shape[1]), own.dtype)
        last = number == len(members)
        answered = np.ones(len(own), bool) if last else fires(confidence(own), thresholds[number - 1])
        logits[open_rows[answered]] = own[answered]
        exits[open_rows[answered]] = number
        open_rows = open_rows[~answered]
        feeds = {"image": feeds["image"][~answered], **{name: value[~answered] for name, value in outputs.items()}}
    assert logits is not None
    return Result(logits, [], exits)


def all_exits(members: Sequence[Member], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Logits [B,classes] of every exit, run to the end whatever the confidence."""
    feeds, found = {"image": x}, []
    for member in members:
        outputs = dict(member(feeds))
        found.append(outputs.pop("logits"))
        feeds = {"image": x, **outputs}
    return found


def in_fixed_batches(member: Member, size: int) -> Member:
    """A member whose graph has a fixed batch: rows are fed in pieces of `size`, the last one filled up with copies."""

    def run(feeds: Arrays) -> Arrays:
        count = len(feeds["image"])
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(member({name: np.ascontiguousarray(value[rows]) for name, value in feeds.items()}))
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    return run


class Session:
    """A cascade bundle on a backend: `run(x)` with the recipe's thresholds, `all_exits(x)` without."""

    def __init__(self, bundle: Bundle, members: Sequence[Member]) -> None:
        self._shape = tuple(bundle.manifest.preprocessing["input_size"])
        self.thresholds: Sequence[float | None] = keys_of(bundle.recipe.prune, Params).thresholds
        static = bundle.recipe.graph.static_batch
        self.members = [in_fixed_batches(member, static) if static else member for member in members]

    def run(self, x: Any) -> Result:
        """Run images float32 [B,C,H,W] of any batch."""
        return run_cascade(self.members, images(x, self._shape), self.thresholds)

    def all_exits(self, x: Any) -> list[NDArray[np.float32]]:
        """Logits of every exit."""
        return all_exits(self.members, images(x, self._shape))


def open_session(bundle: Bundle, backend: str, engine: Path | None = None) -> Session:
    """Open the members of a bundle.

    Args:
        bundle: an opened bundle. backend: its name. engine: folder of engines built for the backend, None = the ONNX files.

    Raises:
        LoadError: VP615 a member is missing from the bundle, VP616 the backend cannot run several models, VP613 no PyTorch model.
    """
    if backend == "torch":
        return Session(bundle, torch_members(_cascade(bundle)))
    module = backends.get(backend)
    if why := module.missing():
        raise LoadError(611, f"backend '{backend}' cannot be used here", cause=why, next_step="vitprune doctor")
    if not hasattr(module, "open_model"):
        raise LoadError(
            616,
            f"backend '{backend}' does not run cascades in this version",
            cause="a cascade is several models with tensors handed from one to the next",
            next_step="use --backend onnxruntime",
        )
    paths = [bundle.path / member_file(number) for number in range(1, EXITS + 1)]
    for path in paths:
        if path.name not in bundle.manifest.files or not path.is_file():
            raise LoadError(
                615,
                f"bundle '{bundle.path}' has no {path.name}",
                cause="a cascade runs three models, one per exit",
                next_step="export the bundle again, or copy it again",
            )
    if engine is not None:
        suffix = next((path.suffix for path in engine.glob("exit1.*") if path.suffix != ".log"), ".onnx")
        paths = [engine / f"{path.stem}{suffix}" for path in paths]
    return Session(bundle, [module.open_model(path) for path in paths])


def _cascade(bundle: Bundle) -> Any:
    from vitprune.methods.dvt.members import again
    from vitprune.methods.dvt.precision import in_precision

    return in_precision(again(bundle.manifest.model["source"], bundle.recipe), bundle.recipe)


def torch_members(cascade: Any) -> list[Member]:
    """The reference's members as functions of arrays."""
    import torch

    def wrap(number: int, member: Any) -> Member:
        def run(feeds: Arrays) -> Arrays:
            values = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in _inputs(number)]
            with torch.inference_mode():
                logits, z, r = member(*values)
            handed = {f"z{number}": z.numpy(), f"r{number}": r.numpy()} if number < EXITS else {}
            return {"logits": logits.numpy(), **handed}

        return run

    return [wrap(number, member) for number, member in enumerate(cascade.members, start=1)]


def _inputs(number: int) -> list[str]:
    return ["image"] if number == 1 else ["image", f"z{number - 1}", f"r{number - 1}"]
