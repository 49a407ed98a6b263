"""What a run writes down: CSV always, TensorBoard where it is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from vitprune.bundle import write_atomic


class Table:
    """A CSV file that a resumed run continues where its checkpoint was: later rows are cut off."""

    def __init__(self, path: Path, key: str, last: int | None) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        if last is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self.rows = [row for row in reader if row[key] and int(row[key]) <= last]
                self.columns = list(reader.fieldnames or [])
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; new columns are added at the right."""
        text = {name: f"{value:.8g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        new = [name for name in text if name not in self.columns]
        self.columns += new
        self.rows.append(text)
        if new:
            self._write()
            return
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self.columns, restval="").writerow(text)

    def _write(self) -> None:
        import io

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        if self.columns:
            writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, text.getvalue().encode())


class Logs:
    """`steps.csv`, `epochs.csv` and, with the package tensorboard, event files in `tensorboard/`.

    Args:
        folder: of the run. step, epoch: what is done already, None at a start.
    """

    def __init__(self, folder: Path, step: int | None, epoch: int | None) -> None:
        self.steps = Table(folder / "steps.csv", "step", step)
        self.epochs = Table(folder / "epochs.csv", "epoch", epoch)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=None if step is None else step + 1)

    def step(self, step: int, row: dict[str, float]) -> None:
        """Numbers of the steps up to `step`."""
        self.steps.add({"step": step, **row})
        self._plot("train", step, row)

    def epoch(self, epoch: int, step: int, row: dict[str, Any]) -> None:
        """Numbers of an epoch."""
        self.epochs.add({"epoch": epoch, "step": step, **row})
        self._plot("epoch", step, row)

    def _plot(self, group: str, step: int, row: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()
