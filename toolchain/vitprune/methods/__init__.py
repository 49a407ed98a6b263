"""Token-reduction methods, one folder each; a folder in here is a method, there is no list to edit.

Packages of third parties add methods through the entry-point group `vitprune.methods`: `name = "their.package"`, a package or module
with a `METHOD` of the type `vitprune.methods.base.Method`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from vitprune.errors import ExportError, RecipeError
from vitprune.methods.base import Method as Method
from vitprune.methods.base import Site
from vitprune.support import registry
from vitprune.support.suggestions import did_you_mean

GROUP = "vitprune.methods"


@cache
def _modules() -> dict[str, str]:
    """Module of every method, by name; a method of ours cannot be replaced from outside."""
    return registry.from_packages(GROUP) | {name: f"{__name__}.{name}" for name in registry.inside(__name__, folders=True)}


def names() -> list[str]:
    """Names of all methods."""
    return sorted(_modules())


@cache
def get(name: str) -> Method:
    """The method called `name`.

    Raises:
        RecipeError: VP104 when there is none, VP146 when a third party's package does not hold one.
    """
    if name not in _modules():
        raise RecipeError(104, f"unknown method '{name}'", cause=did_you_mean(name, names()), next_step="vitprune methods")
    module = _modules()[name]
    try:
        method = registry.module(module).METHOD
    except (ImportError, AttributeError) as error:
        raise _unusable(name, module, f"{type(error).__name__}: {error}") from error
    if not isinstance(method, Method) or method.name != name:
        raise _unusable(name, module, f"its METHOD is not a vitprune.methods.base.Method called '{name}'")
    return method


def _unusable(name: str, module: str, cause: str) -> RecipeError:
    return RecipeError(
        146, f"the method '{name}' of package '{module}' cannot be used", cause=cause, next_step="update or remove the package"
    )


def without_cls() -> list[str]:
    """Names of the methods that work on models without a CLS token."""
    return [name for name in names() if not get(name).needs_cls]


def require_places(method: Method, fill: str | None, sites: Sequence[Site[Any]] = ()) -> None:
    """Dense features need to know what stands in every patch's place.

    Args:
        method: what prunes. fill: `output.fill` of the recipe. sites: of a model, where they are known already.

    Raises:
        RecipeError: VP119 when a place would be empty.
    """
    keep = [name for name in names() if get(name).places == "map"]
    if not method.places:
        raise RecipeError(
            119,
            f"{method.name} gives no features",
            cause="what it answers with is no sequence of tokens behind a block, so patches have no rows",
            next_step=f"--set prune.method with one that merges: {', '.join(keep)}",
        )
    if fill is None and (method.places == "last" or method.loses(sites)):
        what = "drops tokens" if method.places == "last" else "loses rows to its capacity"
        raise RecipeError(
            119,
            f"{method.name} {what}, so features have empty places",
            cause="behind a block only the tokens that are left have rows",
            next_step=f"--set output.fill=last puts the last row of a token in its place; {', '.join(keep)} keep a row for every patch",
        )


def _by_all(name: str) -> str:
    """The key that lets a method score without a CLS token, where it has one."""
    return "--set prune.score=mean_attention, or " if "score" in get(name).params.model_fields else ""


def needs_a_cls_token(name: str, cause: str) -> ExportError:
    """VP312 for a method that scores by the CLS row on a model (or a graph) without one; cause: why there is none."""
    others = without_cls()
    return ExportError(
        312,
        f"{name} needs a CLS token",
        cause=cause,
        next_step=f"{_by_all(name)}methods that work without a CLS token: {', '.join(others)}"
        if others
        else "use a model with a CLS token such as deit_small_patch16_224",
    )
