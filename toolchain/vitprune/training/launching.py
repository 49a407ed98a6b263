"""The Accelerator of a run."""

from __future__ import annotations

from typing import Any

from vitprune.errors import RecipeError
from vitprune.training.behaviour import Behaviour


def accelerator_for(behaviour: type[Behaviour], precision: str) -> Any:
    """An Accelerator in the environment that `accelerate launch` (or nothing) has set up.

    Raises:
        RecipeError: VP165 the machine cannot compute in that precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the first run's settings in the process
    try:
        return Accelerator(
            mixed_precision=precision,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=behaviour.unused)],
        )
    except ValueError as error:
        raise RecipeError(
            165, f"train.precision '{precision}' is not available here", cause=str(error), next_step="--set train.precision=no"
        ) from error
