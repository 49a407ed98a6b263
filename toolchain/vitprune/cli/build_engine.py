"""vitprune build-engine."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument, ForceOption
from vitprune.errors import RecipeError


def command(
    bundle: BundleArgument,
    target: Annotated[str, typer.Option("--target", "-t", help="Target name (vitprune targets) or YAML file.")],
    batch: Annotated[str | None, typer.Option(help="min:opt:max or one number; default: the recipe's.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Builder memory with its unit, for example 2GiB.")] = None,
    plugin: Annotated[str, typer.Option(help="TensorRT: auto (build it), none, or the path of a library.")] = "auto",
    embed_plugin: Annotated[bool, typer.Option("--embed-plugin", help="TensorRT: put the plugin into the engine.")] = False,
    kept_outputs: Annotated[bool, typer.Option("--kept-outputs", help="The engine also returns the kept patches.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 1800.0,
    force: ForceOption = False,
) -> None:
    """Build an engine for a target and add it to the bundle; the builder runs in a child process."""
    from vitprune import targets
    from vitprune.bundle import open_bundle
    from vitprune.engines import build_engine, require_backend

    chosen = targets.load(target)
    require_backend(chosen)
    opened = open_bundle(bundle)
    with console.step(f"build {chosen.name} engine") as step:
        document = build_engine(
            opened,
            chosen,
            batch=parse_batch(batch),
            workspace_mib=parse_memory(workspace),
            plugin=plugin,
            embed_plugin=embed_plugin,
            kept_outputs=kept_outputs,
            timeout=timeout,
            force=force,
            report=step.update,
        )
    size = document["engine_bytes"] / 2**20
    files = document["engine"] if isinstance(document["engine"], list) else [document["engine"]]
    console.info(
        f"engine {opened.engine_path(chosen.name)}/{', '.join(files)} ({size:.1f} MiB, {document['seconds']} s, {document['facts']['runtime']})"
    )
    console.info(
        "evidence: the builder accepts the graph; nothing was run on a GPU"
        if chosen.backend.startswith("tensorrt")
        else "evidence: the runtime loads the graph"
    )
    console.document("build-engine", {"status": "ok", "exit_code": 0, "engine": document})


def parse_batch(text: str | None) -> tuple[int, int, int] | None:
    """min:opt:max or one number.

    Raises:
        RecipeError: VP108.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise RecipeError(108, f"--batch '{text}' is not a batch profile", next_step="--batch 1:4:8 (min:opt:max) or --batch 1")
    low, opt, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if not low <= opt <= high:
        raise RecipeError(108, f"--batch '{text}' does not ascend", next_step="--batch min:opt:max")
    return low, opt, high


def parse_memory(text: str | None) -> int | None:
    """Memory with its unit, in MiB.

    Raises:
        RecipeError: VP108.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)", text)
    if match is None:
        raise RecipeError(108, f"--workspace '{text}' has no unit", next_step="--workspace 2GiB")
    return max(1, int(float(match[1]) * (1024 if match[2] == "GiB" else 1)))
