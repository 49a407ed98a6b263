"""What a running step shows."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from vitprune.console import Step


def test_a_phase_without_numbers_has_no_bar_of_the_last():
    progress = Progress(console=Console(file=io.StringIO()))
    task = progress.add_task("step", total=None)
    step = Step(progress, task, "step")
    step.update("images 12/1000")
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (12, 1000)
    step.update("writing")
    assert progress.tasks[0].total is None
    step.update("images 3 of 9")
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (3, 9)
