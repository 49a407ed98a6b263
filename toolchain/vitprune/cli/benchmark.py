"""vitprune benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune import console
from vitprune.cli._common import DataOption, ForceOption, SetOption
from vitprune.errors import RecipeError

EXAMPLES = (
    "benchmark out",
    "benchmark out --batch 1 --batch 8 -o now.json",
    "benchmark --compare before.json now.json",
)

SAME_STATE = 0.01  # changes of the dense model's time that are not worth a word


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles; with --profile-tokens a timm model, a recipe or a bundle.", show_default=False),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Time the engines of this target.")] = None,
    backend: Annotated[str, typer.Option(help="Without a target: what runs model.onnx.")] = "onnxruntime",
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Images at once; repeatable; default: 1.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; in each everything is run once. Default: 50; of --profile-tokens 21.")
    ] = None,
    most_rounds: Annotated[
        int | None, typer.Option(min=1, help="Go on to as many while a ratio is not known to 1 %. Default: 4 times --rounds.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of CPU kernels.")] = 1,
    clock: Annotated[str | None, typer.Option(help="cpu or wall; default: cpu for one thread on the CPU, else wall.")] = None,
    data: DataOption = None,
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Against the dense model in the same precision and lowering.")
    ] = True,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Also the slice oracle: the dense model cut to the same token counts for nothing.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Also memory at the peak, in processes of their own.")
    ] = True,
    require_locked_clocks: Annotated[
        bool, typer.Option("--require-locked-clocks", help="Exit 2 unless the clocks are known to be held.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two results, earlier and new: exit 1 where the new one is slower.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Of --compare: the slowdown that must not get through.")] = 0.05,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result, JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result: .svg, .png or .pdf.")] = None,
    profile_tokens: Annotated[
        bool, typer.Option("--profile-tokens", help="Measure a block and a method's site by token count: a table for tune.")
    ] = False,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Of --profile-tokens: whose sites; default: all that need no training.")
    ] = None,
    counts: Annotated[
        int, typer.Option(min=2, max=200, help="Of --profile-tokens: token counts, evenly spread; knees are added.")
    ] = 8,
    foreign_code: Annotated[
        bool, typer.Option("--foreign-code", help="Let engines load native code that was not built on this machine.")
    ] = False,
    overrides: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Time bundles against their dense models, or compare two results; with --profile-tokens, what token counts cost."""
    if compare is not None:
        return _compare(compare, tolerance, models)
    if not models:
        raise RecipeError(183, "nothing to measure was named", cause="no bundle is given", next_step="vitprune benchmark BUNDLE")
    if profile_tokens:
        return _profile(models, output, batches or [1], methods or [], counts, rounds or 21, overrides, force)
    from vitprune.benchmarking.running import run

    with console.bar("benchmark") as bar:
        document = run(
            models, target=target, backend=backend, batches=batches or [1], rounds=rounds or 50, threads=threads, clock=clock,
            data=data, dense=dense, oracle=oracle, memory=memory, most=most_rounds or 4 * (rounds or 50), require_locked=require_locked_clocks, foreign_code=foreign_code, output=output, force=force,
            report=bar.update,
        )  # fmt: skip
    if plot is not None:
        from vitprune.reports.speed import draw

        draw(document, plot)
    _show(document)
    console.document("benchmark", {"status": "ok", "exit_code": 0, **document, "benchmark_schema": document["schema_version"]})
    return None


def _show(document: dict[str, Any]) -> None:
    rows = []
    for entry in document["results"]:
        for kind in ("dense", "oracle", "pruned"):
            if (timing := entry[kind]) is not None:
                times = (f"{timing[key]:.2f}" for key in ("median_ms", "p95_ms", "p99_ms"))
                rows.append([f"{entry['bundle']} {kind}", str(entry["batch"]), *times, f"{timing['images_per_second']:.1f}"])
    console.table("latency in ms", ["model", "batch", "median", "p95", "p99", "images/s"], rows)
    costs = [_costs(entry) for entry in document["results"]]
    console.table(
        "costs of an image, memory of a batch",
        ["model", "batch", "MACs", "tokens, mean", "model MiB", "peak MiB", "dense"],
        costs,
    )
    for text in document["warnings"]:
        console.warn(text)
    where = document["runtime"]
    name = where["target"] or where["backend"]
    *others, last = [speed_up(entry) + f" on {console.plain(name)}, {document['rounds']} rounds" for entry in document["results"]]
    for line in others:
        console.info(line)
    console.result(last)


def _costs(entry: dict[str, Any]) -> list[str]:
    """MACs and tokens by the stored samples; sizes; "–" where something is not known."""
    macs, tokens, memory = entry["macs"], entry["tokens"], entry["memory"]
    peaks = ("–" if value is None else f"{value / 2**20:.1f}" for value in (memory["pruned_bytes"], memory["dense_bytes"]))
    return [
        entry["bundle"], str(entry["batch"]), "–" if macs is None else f"{macs['pruned'] / 1e6:.1f} M ({macs['ratio']:.2f}x)",
        "–" if tokens is None else f"{sum(tokens) / len(tokens):.1f} of {tokens[0]:.0f}", f"{entry['model_bytes'] / 2**20:.1f}", *peaks,
    ]  # fmt: skip


def speed_up(entry: dict[str, Any]) -> str:
    """One line: how many times as fast, with its interval."""
    low, high = entry["ratio_interval"]
    over = entry.get("over_oracle")
    oracle = f", {over:.3f}x the time of the slice oracle" if over else ""
    word = "dense" if entry["dense"] else f"'{console.plain(entry['against'])}'"
    return (
        f"[bold]{console.plain(entry['bundle'])}[/bold] batch {entry['batch']}: {1 / entry['ratio']:.2f}x as fast as {word} "
        f"(95 % interval {1 / high:.2f} to {1 / low:.2f})" + oracle
    )


def _compare(paths: tuple[Path, Path], tolerance: float, models: list[str] | None) -> None:
    from vitprune.benchmarking.comparing import compare, read

    if models:
        raise RecipeError(
            199,
            "--compare reads two results and measures nothing",
            cause=f"'{models[0]}' is named beside it",
            next_step="leave it out",
        )
    before, after = (read(path) for path in paths)
    found = compare(before, after, tolerance)
    rows = [
        [
            one["bundle"], str(one["batch"]), f"{one['before']:.3f}", f"{one['after']:.3f}",
            f"{100 * (one['change'] - 1):+.1f} %", f"{100 * (one['low'] - 1):+.1f} to {100 * (one['high'] - 1):+.1f}", one["verdict"],
        ]
        for one in found["changes"]
    ]  # fmt: skip
    console.table("ratio to the dense model", ["bundle", "batch", "before", "after", "change", "95 %", "verdict"], rows)
    for note in found["notes"]:
        console.info(f"  {console.plain(note)}")
    for one in found["changes"]:
        if one["verdict"] == "undecided":
            more = (
                _other_state(one)
                if one["more_rounds"] is None
                else f"about {one['more_rounds']} more rounds of each would decide it"
            )
            console.info(f"  {console.plain(one['bundle'])} batch {one['batch']}: {more}")
    colour = {"passed": "green", "failed": "red", "undecided": "yellow"}[found["status"]]
    worst = max(found["changes"], key=lambda one: float(one["change"]))
    console.result(
        f"[bold {colour}]{found['status'].upper()}[/] largest change {100 * (worst['change'] - 1):+.1f} %, "
        f"a slowdown of {100 * tolerance:g} % must not get through"
    )
    console.document("benchmark", found)
    if found["exit_code"]:
        raise typer.Exit(found["exit_code"])


def _other_state(change: dict[str, Any]) -> str:
    """Why no number of rounds decides a change."""
    moved = change["dense_change"]
    if moved is None or abs(moved - 1) < SAME_STATE:
        return "no number of rounds decides it"
    return f"the dense model itself took {100 * (moved - 1):+.1f} %, the machine was in another state: measure both runs again"


def _profile(
    models: list[str], output: Path | None, batches: list[int], methods: list[str], counts: int, rounds: int,
    overrides: list[str] | None, force: bool,
) -> None:  # fmt: skip
    from vitprune.tuning.tables import write_table

    if len(models) != 1 or output is None:
        raise RecipeError(
            199, "--profile-tokens takes one model and needs -o", cause=f"{len(models)} models, -o {output}", next_step="vitprune benchmark MODEL --profile-tokens -o table.json"
        )  # fmt: skip
    with console.bar("benchmark") as bar:
        table = write_table(
            models[0], output, wanted=True, batches=batches, methods=methods, counts=counts, rounds=rounds, overrides=overrides,
            force=force, report=bar.update,
        )  # fmt: skip
    for batch, part in table.batches.items():
        rows = [
            [str(tokens), *(f"{curve.milliseconds[place]:.3f}" for curve in (part.block, part.rest, *part.sites.values()))]
            for place, tokens in enumerate(part.block.tokens)
        ]
        console.table(f"milliseconds, batch {batch}", ["tokens", "block", "rest", *part.sites], rows)
    console.info(f"next: vitprune tune MODEL --data DIR --budget-latency 0.8 --latency-table {console.plain(output)} -o FOLDER")
    console.result(f"table [bold]{console.plain(output)}[/bold]: {len(part.block.tokens)} token counts, {len(part.sites)} sites")
    console.document("benchmark", {"status": "ok", "exit_code": 0, "table": str(output), **table.model_dump(mode="json")})
