"""Writes the table of docs/models.md from recipes/models.json: python docs/models_table.py."""

from __future__ import annotations

from pathlib import Path

from vitprune.reports import models

PAGE = Path(__file__).parent / "models.md"
BEGIN, END = "<!-- begin: written by docs/models_table.py -->", "<!-- end -->"


def with_table(page: str) -> str:
    """The page with its table as the stored results say."""
    before, _, rest = page.partition(BEGIN)
    _, found, below = rest.partition(END)
    if not found:
        raise ValueError(f"'{BEGIN}' and '{END}' are to stand in the page")
    return f"{before}{BEGIN}\n{models.markdown(models.read())}{END}{below}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
