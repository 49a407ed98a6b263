"""The command line: one file per command, each parses, calls one function and renders."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

from vitprune import console
from vitprune.errors import RecipeError, VitpruneError
from vitprune.support import registry
from vitprune.support.about import VERSION

app = typer.Typer(
    name="vitprune",
    help="Token-pruned Vision Transformers: export to ONNX, build engines, prove parity.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # what shells report for Ctrl-C


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitprune {VERSION}")
        raise typer.Exit


@app.callback()
def _globals(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and warnings.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More detail.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    console.settings.json |= json
    console.settings.quiet |= quiet
    console.settings.verbose |= verbose
    console.settings.debug |= debug


def _register() -> None:
    """Every module in this folder with a function `command` is a command named after its file."""
    for name in registry.inside(__name__):
        app.command(name.replace("_", "-"))(registry.module(f"{__name__}.{name}").command)


def _commands() -> list[str]:
    return [name.replace("_", "-") for name in registry.inside(__name__)]


def _hoist(arguments: list[str]) -> list[str]:
    """Let the global switches stand behind the command too."""
    switches = [a for a in arguments if a in ("--json", "--quiet", "-q", "--verbose", "-v", "--debug")]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return [*switches, *(a for i, a in enumerate(arguments) if a not in switches or i > cut)]


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code: 0 fine, 1 a gate failed, 2 could not run, 130 interrupted."""
    _register_once()
    console.settings.json |= "--json" in arguments  # also where the command line itself cannot be understood
    name = next((a for a in arguments if not a.startswith("-")), "")
    try:
        outcome: Any = app(_hoist(arguments), standalone_mode=False)
        return int(outcome or 0)
    except VitpruneError as error:
        if console.settings.debug:
            console.settings.console.print_exception()
        console.show_error(error, name)
        return error.exit_code
    except typer.Exit as leave:
        return _interrupted() if leave.exit_code == INTERRUPTED else int(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        misread = getattr(error, "format_message", None)  # click's usage errors; newer typer carries its own copy of click
        if misread is not None:
            step = f"vitprune {name} --help" if name in _commands() else "vitprune --help"
            console.show_error(RecipeError(199, misread(), cause="the command line was not understood", next_step=step), name)
            return 2
        if console.settings.debug:
            raise
        unexpected = RecipeError(
            198,
            f"unexpected {type(error).__name__}",
            cause=str(error).split("\n")[0][:300],
            next_step="run again with --debug and report the output",
        )
        console.show_error(unexpected, name)
        return 2


def _interrupted() -> int:
    console.settings.console.print("[bold red]interrupted[/bold red]; nothing was left half-written")
    return INTERRUPTED


_registered = False


def _register_once() -> None:
    global _registered
    if not _registered:
        _register()
        _registered = True


def main() -> None:
    """Console script."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        # An interrupt that passed through exec() of a string makes CPython end itself by SIGINT whatever sys.exit asked for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
