"""Where shipped recipes and targets lie: inside the wheel, or beside the sources in a checkout."""

from __future__ import annotations

import re
from pathlib import Path

SHIPPED = "shipped:"
HUB_NAME = re.compile(r"hf:\w[\w.-]*/\w[\w.-]*")  # a model of the Hugging Face hub


def located(text: str) -> Path:
    """The path of a file that a recipe names; "shipped:" names files that come with vitprune."""
    return recipes_folder() / text.removeprefix(SHIPPED) if text.startswith(SHIPPED) else Path(text).expanduser()


def schemas_folder() -> Path:
    """Folder with the JSON schemas of the commands' documents, one file each."""
    return Path(__file__).parents[1] / "schemas"


def recipes_folder() -> Path:
    """Folder with *.yaml recipes, `targets/` and `fashion_mnist/`."""
    packaged = Path(__file__).parents[1] / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of every shipped recipe."""
    root = recipes_folder()
    found = {path.stem: path for path in sorted(root.glob("*.yaml"))}
    return found | {f"{path.parent.name}/{path.stem}": path for path in sorted(root.glob("fashion_mnist/*.yaml"))}


def shipped_targets() -> dict[str, Path]:
    """Name -> path of every shipped target."""
    return {path.stem: path for path in sorted((recipes_folder() / "targets").glob("*.yaml"))}
