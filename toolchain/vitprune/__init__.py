"""vitprune: token-pruned Vision Transformers from PyTorch to ONNX and TensorRT.

Public API (everything else may change):

    Recipe.load(path | dict)                      a recipe, checked
    reference(module, recipe)                     PyTorch reference; forward(x) -> logits, then .kept
    export(module_or_name, recipe, output)        timm VisionTransformer -> Bundle
    rewrite(onnx_path, recipe, output)            dense ViT ONNX -> Bundle
    open_bundle(path)                             verified Bundle; .run(x, backend=...) -> Result with .logits and .kept
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitprune.support.about import VERSION

__version__ = VERSION

__all__ = ["Bundle", "Recipe", "Result", "VitpruneError", "__version__", "export", "open_bundle", "reference", "rewrite"]

if TYPE_CHECKING:
    from vitprune.backends import Result as Result
    from vitprune.bundle import Bundle as Bundle
    from vitprune.errors import VitpruneError as VitpruneError
    from vitprune.pipelines import export as export
    from vitprune.pipelines import open_bundle as open_bundle
    from vitprune.pipelines import reference as reference
    from vitprune.pipelines import rewrite as rewrite
    from vitprune.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import vitprune` stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'vitprune' has no attribute '{name}'")
    if name == "Result":
        from vitprune.backends import Result

        return Result
    if name == "Recipe":
        from vitprune.recipe import Recipe

        return Recipe
    if name == "VitpruneError":
        from vitprune.errors import VitpruneError

        return VitpruneError
    if name == "Bundle":
        from vitprune.bundle import Bundle

        return Bundle
    from vitprune import pipelines

    return getattr(pipelines, name)
