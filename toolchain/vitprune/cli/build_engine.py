"""vitprune build-engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune import console
from vitprune.cli._common import (
    BatchOption,
    BundleArgument,
    ForceOption,
    JetpackOption,
    ModuleOption,
    SmOption,
    TensorrtOption,
)
from vitprune.errors import RecipeError
from vitprune.recipe_parts.values import read_profile

EXAMPLES = (
    "build-engine out --target onnxruntime-cpu",
    "build-engine out --target onnxruntime-cpu --batching packed",
    "build-engine out --target jetson-orin --package",
)


def command(
    bundle: BundleArgument,
    target: Annotated[str, typer.Option("--target", "-t", help="Target name (vitprune targets) or YAML file.")],
    jetpack: JetpackOption = None,
    module: ModuleOption = None,
    tensorrt: TensorrtOption = None,
    sm: SmOption = "",
    batch: BatchOption = None,
    precision: Annotated[
        str | None, typer.Option(help="Insist on this precision: that of the bundle, and one that the target computes with.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Builder memory with its unit, for example 2GiB.")] = None,
    plugin: Annotated[
        str,
        typer.Option(help="The native library: auto (TensorRT builds it, onnxruntime-cpu takes a built one), none, or its path."),
    ] = "auto",
    batching: Annotated[
        str,
        typer.Option(
            help="onnxruntime-cpu: padded, or packed: token rows of a batch without pads, for methods whose counts vary."
        ),
    ] = "padded",
    sites: Annotated[
        str,
        typer.Option(help="TensorRT: nodes, or plugin: a site is one node of the plugin library, not yet run on a device."),
    ] = "nodes",
    embed_plugin: Annotated[bool, typer.Option("--embed-plugin", help="TensorRT: put the plugin into the engine.")] = False,
    kept_outputs: Annotated[bool, typer.Option("--kept-outputs", help="The engine also returns the kept patches.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 1800.0,
    remote: Annotated[
        str | None, typer.Option(help="user@host[:folder]: build on that device over ssh and fetch the engine.")
    ] = None,
    ssh_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for ssh, such as Port=2222; repeatable.")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="With --remote: ONNX Runtime in place of TensorRT, no engine.")
    ] = False,
    package: Annotated[
        bool, typer.Option("--package", help="Only a package for another machine, also where an engine could be built here.")
    ] = False,
    profile_tokens: Annotated[
        bool, typer.Option("--profile-tokens", help="Package: with small models that run.sh --profile-tokens times for tune.")
    ] = False,
    require_engine: Annotated[bool, typer.Option("--require-engine", help="Exit 2 when there is no engine in the end.")] = False,
    trials: Annotated[
        bool, typer.Option("--trials/--no-trials", help="Try plugin and graph with the compilers found here.")
    ] = True,
    force: ForceOption = False,
) -> None:
    """Build an engine for a target and add it to the bundle; for a device that is not this machine, a package for it.

    --jetpack, --module, --tensorrt and --sm say which device is meant, as for check. The builder runs in a child process. With --remote the package is copied to the device, run there, and engine and reports are
    fetched; after a broken connection the same command continues.
    """
    from vitprune import targets
    from vitprune.bundle import open_bundle
    from vitprune.cli._device import packaged as render
    from vitprune.device.build import package_engine, require_device, run_remotely, wants_package
    from vitprune.device.remote import parse_remote
    from vitprune.engines import build_engine
    from vitprune.engines.batching import batch_profile
    from vitprune.engines.requirements import require_backend, require_precision, require_release

    choice = targets.choose(targets.load(target), jetpack=jetpack, module=module, tensorrt=tensorrt)
    chosen = choice.target
    profile, memory = parse_batch(batch), parse_memory(workspace)
    place = parse_remote(remote, ssh_option) if remote is not None else None
    if rehearse and place is None:
        raise RecipeError(
            199,
            "--rehearse goes with --remote",
            cause="a package is rehearsed by its own run.sh --rehearse",
            next_step="add --remote",
        )
    if wants_package(chosen) or (chosen.builds_on == "device" and (package or place is not None)):
        ignored = {
            "--plugin": plugin != "auto", "--batching": batching != "padded", "--embed-plugin": embed_plugin, "--kept-outputs": kept_outputs,
        }  # fmt: skip
        if given := [name for name, value in ignored.items() if value]:
            raise RecipeError(
                199,
                f"{given[0]} does not go with a package for another machine",
                cause="the package's run.sh builds plugin and engine there, in the form that validation needs",
                next_step="leave it out, or build on the device with vitprune itself",
            )
        if profile_tokens and sites != "nodes":
            raise RecipeError(
                199,
                "--sites plugin does not go with --profile-tokens",
                cause="the small models that are timed have plain nodes for their sites",
                next_step="leave one of them out",
            )
        opened = open_bundle(bundle)
        require_precision(chosen, opened.recipe.precision.mode, precision)
        with console.step(f"package for {console.plain(chosen.name)}") as step:
            more = None
            if profile_tokens:
                from vitprune.tuning.packing import profile_files

                step.update("models by token count")
                low, usual, _ = batch_profile(opened, profile)
                more = profile_files(opened, (low, usual))
            packaged = package_engine(
                opened,
                choice,
                architecture=sm,
                batch=profile,
                workspace_mib=memory,
                timeout=timeout,
                trials=trials,
                sites=sites,
                force=force,
                more=more,
                report=step.update,
            )
        result = None
        if place is not None:
            with console.step(f"run on {console.plain(place.host)}") as step:
                result = run_remotely(
                    opened, chosen, Path(packaged["path"]), place, rehearse=rehearse, again=force, report=step.update
                )
        raise typer.Exit(render(packaged, result, require_engine))
    if profile_tokens:
        raise RecipeError(
            199,
            "--profile-tokens goes with a package for another machine",
            cause=f"the engine for '{chosen.name}' is built here",
            next_step="vitprune benchmark MODEL --profile-tokens -o table.json",
        )
    if package or place is not None:
        raise RecipeError(
            199,
            f"{'--package' if package else '--remote'} does not go with target '{chosen.name}'",
            cause="its engines are built on this machine",
            next_step="leave it out",
        )
    chosen = choice.narrowed(targets.capability(sm))
    require_device(chosen)
    require_release(choice, require_backend(chosen))
    opened = open_bundle(bundle)
    require_precision(chosen, opened.recipe.precision.mode, precision)
    with console.step(f"build {console.plain(chosen.name)} engine") as step:
        document = build_engine(
            opened,
            chosen,
            batch=profile,
            workspace_mib=memory,
            plugin=plugin,
            batching=batching,
            sites=sites,
            embed_plugin=embed_plugin,
            kept_outputs=kept_outputs,
            timeout=timeout,
            force=force,
            report=step.update,
        )
    for line in types_of(document["facts"]):
        console.info(line)
    console.info(
        "evidence: the builder accepts the graph; nothing was run on a GPU"
        if chosen.backend.startswith("tensorrt")
        else "evidence: the runtime loads the graph"
    )
    size = document["engine_bytes"] / 2**20
    files = document["engine"] if isinstance(document["engine"], list) else [document["engine"]]
    console.result(
        f"engine {console.plain(opened.engine_path(chosen.name))}/{', '.join(files)} ({size:.1f} MiB, {document['seconds']} s, {console.plain(document['facts']['runtime'])})"
    )
    console.document("build-engine", {"status": "ok", "exit_code": 0, "engine": document})


def types_of(facts: dict[str, Any]) -> list[str]:
    """What the products and convolutions of a network compute in, and its quantising layers; no line where the builder says nothing."""
    counts = (("products and convolutions", "layers_by_precision"), ("quantising layers", "quantising_layers"))
    return [
        f"{title}: {', '.join(f'{count} {console.plain(kind)}' for kind, count in facts[key].items())}"
        for title, key in counts
        if isinstance(facts.get(key), dict) and facts[key]
    ]


def parse_batch(text: str | None) -> tuple[int, int, int] | None:
    """min:opt:max or one number.

    Raises:
        RecipeError: VP108.
    """
    if text is None:
        return None
    try:
        return read_profile(text)
    except ValueError as error:
        raise RecipeError(
            108,
            f"--batch '{text}' is not a batch profile",
            cause=str(error),
            next_step="--batch 1:4:8 (min:opt:max) or --batch 1",
        ) from error


def parse_memory(text: str | None) -> int | None:
    """Memory with its unit, in MiB.

    Raises:
        RecipeError: VP108.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]+)?)\s*(MiB|GiB)", text)
    if match is None:
        raise RecipeError(108, f"--workspace '{text}' has no unit", next_step="--workspace 2GiB")
    return max(1, int(float(match[1]) * (1024 if match[2] == "GiB" else 1)))
