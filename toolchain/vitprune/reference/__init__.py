"""PyTorch reference: a method applied to a timm VisionTransformer, per image, for any batch.

`vitprune.reference` is both this package and the public function `vitprune.reference(module, recipe)`: importing any module of the
package would otherwise replace the function on the parent package.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitprune.recipe import Recipe


class _CallablePackage(ModuleType):
    def __call__(self, module: Any, recipe: Recipe) -> Any:
        """See `vitprune.reference.vit.reference`."""
        from vitprune.reference.vit import reference

        return reference(module, recipe)


sys.modules[__name__].__class__ = _CallablePackage
