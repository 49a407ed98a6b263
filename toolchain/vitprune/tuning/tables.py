"""`vitprune benchmark --profile-tokens`: from arguments to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitprune.bundle_parts.output import require_new_file, unwritable
from vitprune.errors import RecipeError
from vitprune.support.files import write_atomic
from vitprune.tuning.candidates import chosen_methods
from vitprune.tuning.table import LatencyTable


def write_table(
    source: str, output: Path, *, wanted: bool, batches: Sequence[int], methods: Sequence[str], counts: int, rounds: int,
    overrides: list[str] | None, force: bool, report: Callable[[int, int, str], None],
) -> LatencyTable:  # fmt: skip
    """Measure a table and write it.

    Raises:
        RecipeError: VP183 nothing to measure was named, VP106, VP107 the output, VP175, VP186; what opening the model raises.
    """
    if not wanted:
        raise RecipeError(
            183, "nothing to measure was named", cause="this version measures token counts only", next_step="add --profile-tokens"
        )
    require_new_file(output, force)
    names = chosen_methods(methods)
    from vitprune.vit.loading import require_torch

    require_torch("benchmark")
    from vitprune.tuning.opening import model_of, sizes
    from vitprune.tuning.profile import profile, token_counts

    found = model_of(source, None, False, overrides)
    base, module = found.recipe, found.module
    shape = sizes(module)
    fitting = [name for name in names if shape.has_cls or not _needs_cls(name)]
    table = profile(base, module, fitting, sorted(set(batches)), token_counts(shape, counts), rounds, report)
    try:
        write_atomic(output, (table.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise unwritable(output, error) from error
    return table


def _needs_cls(name: str) -> bool:
    from vitprune import methods

    return methods.get(name).needs_cls
