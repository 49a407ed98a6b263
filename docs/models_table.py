"""Writes the tables of docs/models.md from the results stored in recipes/: python docs/models_table.py."""

from __future__ import annotations

from pathlib import Path

from vitprune.reports import hugging_face, models, odd_models

PAGE = Path(__file__).parent / "models.md"
TABLES = {
    "docs/models_table.py": lambda: models.markdown(models.read()),
    "docs/models_table.py, Hugging Face": lambda: hugging_face.markdown(hugging_face.read()),
    "docs/models_table.py, other families": lambda: odd_models.markdown(odd_models.read()),
}
END = "<!-- end -->"


def with_tables(page: str) -> str:
    """The page with its tables as the stored results say."""
    for name, table in TABLES.items():
        begin = f"<!-- begin: written by {name} -->"
        before, _, rest = page.partition(begin)
        _, found, below = rest.partition(END)
        if not found:
            raise ValueError(f"'{begin}' and '{END}' are to stand in the page")
        page = f"{before}{begin}\n{table()}{END}{below}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
