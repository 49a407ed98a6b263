"""Reading recipes: files, shipped names, `extends:` and `--set`, up to plain mappings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from vitprune import methods
from vitprune.errors import RecipeError
from vitprune.support import files
from vitprune.support.resources import shipped_recipes
from vitprune.support.suggestions import did_you_mean
from vitprune.support.yaml_text import parse


def read_text(text: str, name: str) -> dict[str, Any]:
    """The mapping that a recipe's text holds.

    Raises:
        RecipeError: VP101.
    """
    try:
        data = parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            101,
            f"recipe '{name}' cannot be read",
            cause=" ".join(str(error).split())[:300],
            next_step="check the file's YAML syntax",
        ) from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(
            101,
            f"recipe '{name}' is not a mapping",
            cause="a recipe has keys such as prune: and graph:",
            next_step="vitprune recipes",
        )
    return data


def read(path: Path) -> dict[str, Any]:
    """A recipe file's mapping, or a shipped recipe's by its name.

    Raises:
        RecipeError: VP100, VP101.
    """
    if not os.path.exists(path):  # unlike Path's, it takes a name that is too long for one that is not there
        shipped = shipped_recipes()
        if str(path) not in shipped:
            raise RecipeError(
                100, f"recipe '{path}' not found", cause=did_you_mean(str(path), shipped), next_step="vitprune recipes"
            )
        path = shipped[str(path)]
    try:
        text = files.read_text(path)
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(
            101, f"recipe '{path}' cannot be read", cause=" ".join(str(error).split()), next_step="give a YAML file"
        ) from error
    return read_text(text, str(path))


def with_files(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Files that lie beside a recipe are found from everywhere: a trained recipe names its weights without a folder."""
    prune = data.get("prune")
    keys: tuple[str, ...] = ()
    if isinstance(prune, dict) and prune.get("method") in methods.names():
        keys = methods.get(prune["method"]).params.paths
    for section, names in (("model", ("weights",)), ("prune", keys)):
        own: Any = data.get(section)
        for key in names if isinstance(own, dict) else ():
            beside = path.parent / own[key] if isinstance(own.get(key), str) and "\0" not in own[key] else None
            if beside is not None and os.path.isfile(beside):
                own[key] = str(beside)
    return data


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `top`, section by section."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override(data: dict[str, Any], text: str) -> None:
    """Apply one "key.path=value".

    Raises:
        RecipeError: VP105.
    """
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(105, f"--set '{text}' is not key.path=value", next_step="for example --set prune.num_samples=64")
    here = data
    for key in keys[:-1]:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise RecipeError(
                105,
                f"--set '{text}' goes through a value",
                cause=f"'{key}' holds no keys",
                next_step="for example --set prune.num_samples=64",
            )
    try:
        here[keys[-1]] = parse(value)
    except yaml.YAMLError as error:
        raise RecipeError(105, f"--set '{text}': the value is not YAML", cause=" ".join(str(error).split())) from error
