"""What a site is in an engine: its plain nodes, or one node of the plugin library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vitprune.errors import RecipeError
from vitprune.support.suggestions import did_you_mean

if TYPE_CHECKING:
    from vitprune.targets import Target

Sites = Literal["nodes", "plugin"]


def require_sites(target: Target, sites: str, plugin: str = "auto") -> None:
    """Refuse sites that the target's builder does not take.

    Raises:
        RecipeError: VP147 there is no such form, VP199 the builder takes no plugins, or none is wanted.
    """
    known = get_args(Sites)
    if sites not in known:
        raise RecipeError(147, f"unknown sites '{sites}'", cause=did_you_mean(sites, known), next_step="--sites plugin")
    if sites == "nodes":
        return
    if target.backend != "tensorrt":
        causes = {
            "tensorrt_rtx": "TensorRT-RTX finds the plugin in its registry, but its parser ends the process when it adds one to a network",
            "onnxruntime": "its engines have one operator a site wherever the native library is built",
        }
        raise RecipeError(
            199,
            f"--sites plugin does not go with target '{target.name}'",
            cause=causes.get(target.backend, "only TensorRT's builder takes plugins"),
            next_step="leave --sites out",
        )
    if plugin == "none":
        raise RecipeError(
            199,
            "--sites plugin does not go with --plugin none",
            cause="a site that is a plugin node has nothing else to run",
            next_step="leave one of them out",
        )
