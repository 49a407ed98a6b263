"""How an engine runs several images: with pads up to the longest of them, or with their token rows behind each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vitprune.errors import BuildError, RecipeError
from vitprune.support.suggestions import did_you_mean

if TYPE_CHECKING:
    from vitprune.bundle import Bundle
    from vitprune.targets import Target

Batching = Literal["padded", "packed"]


def require_batching(bundle: Bundle, target: Target, batching: str) -> None:
    """Refuse a way of batching that the target does not have, or that has nothing to win.

    Raises:
        RecipeError: VP147 there is no such way, VP199 the target's engines have pads. BuildError: VP535 packing gains nothing here.
    """
    if batching not in get_args(Batching):
        known = get_args(Batching)
        raise RecipeError(
            147, f"unknown batching '{batching}'", cause=did_you_mean(batching, known), next_step="--batching packed"
        )
    if batching == "padded":
        return
    if target.backend != "onnxruntime":
        raise RecipeError(
            199,
            f"--batching packed does not go with target '{target.name}'",
            cause="packed token rows need an operator and shapes that only the engines of onnxruntime-cpu have",
            next_step="--target onnxruntime-cpu, or leave --batching out",
        )
    if why := _nothing_to_win(bundle):
        raise BuildError(535, "packed execution gains nothing for this bundle", cause=why[0], next_step=why[1])


def _nothing_to_win(bundle: Bundle) -> tuple[str, str] | None:
    """Why every image of a batch has as many token rows, and what to do; None where it has not."""
    from vitprune import methods  # needs pydantic, which a device package does without

    graph, method = bundle.recipe.graph, methods.get(bundle.recipe.prune.method)
    without = "leave --batching out"
    if graph.shapes == "padded":
        return (
            "its shapes are padded: every image has the capacity's rows, whatever it keeps",
            "export with --set graph.shapes=dynamic",
        )
    if graph.static_batch == 1:
        return "its batch is fixed at one image, which is never padded", without
    if len(bundle.model_files) > 1:
        return f"{method.name} runs several models, and in each of them all images have as many tokens", without
    if bundle.recipe.precision.mode != "fp32":
        return f"ONNX Runtime's CPU emulates {bundle.recipe.precision.mode} node by node", "export with --set precision.mode=fp32"
    from vitprune.graph import ragged
    from vitprune.support.onnx_file import read_model

    if not ragged.stored(read_model(bundle.model_path))[1]:
        cause = f"its graph names no place where images keep different numbers of tokens; {method.name}: {method.varies}"
        return cause, f"{without}; a bundle of an older vitprune has to be exported again"
    return None


def batch_profile(bundle: Bundle, batch: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The batch asked for, or the recipe's.

    Raises:
        RecipeError: VP108 when the graph has another, fixed batch.
    """
    static = bundle.recipe.graph.static_batch
    profile = batch or bundle.recipe.graph.profile
    if static is not None and profile != (static,) * 3:
        raise RecipeError(
            108,
            f"the graph has a fixed batch of {static}",
            cause=f"asked for {':'.join(map(str, profile))}",
            next_step='export with --set graph.batch="1:4:8"',
        )
    return profile
