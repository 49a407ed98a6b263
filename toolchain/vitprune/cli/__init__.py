"""The command line: one file per command, each parses, calls one function and renders."""

from __future__ import annotations

import errno
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune import console
from vitprune.errors import LoadError, RecipeError, VitpruneError, first_line
from vitprune.support import garbage, interrupts, registry
from vitprune.support.about import VERSION
from vitprune.support.interrupts import INTERRUPTED
from vitprune.support.limits import BeyondLimit, limits

app = typer.Typer(
    name="vitprune",
    help="Token-pruned Vision Transformers: export to ONNX, build engines, prove parity.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Read files of any size.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    console.settings.json |= json
    console.settings.quiet, console.settings.verbose, console.settings.debug = quiet, verbose, debug
    limits.on = not no_limits


def _register() -> None:
    """Every module in this folder with a function `command` is a command named after its file; `EXAMPLES` end its help."""
    for name in registry.inside(__name__):
        module = registry.module(f"{__name__}.{name}")
        app.command(name.replace("_", "-"), epilog=_examples(module.EXAMPLES))(_guarded(module.command))


def _examples(lines: tuple[str, ...]) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"vitprune {line}" for line in lines)])


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that refuses values no command takes, and whose end of a file is not mistaken for the end of the user's input."""

    @functools.wraps(command)
    def guarded(**values: Any) -> Any:
        for name, value in values.items():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if why := _unusable(one):
                    step = "vitprune --help"
                    raise RecipeError(194, f"--{name.replace('_', '-')} '{one}' cannot be used", cause=why, next_step=step)
        try:
            return command(**values)
        except EOFError as error:
            raise LoadError(607, "a file ends too early", cause=str(error), next_step="copy it again") from error

    return guarded


def _unusable(value: Any) -> str:
    """Why an option's value can be none, or ""."""
    if isinstance(value, float) and not math.isfinite(value):
        return "it is not a finite number"
    if isinstance(value, (str, Path)):
        if "\0" in str(value):
            return "it holds a zero byte"
        if isinstance(value, Path) and any(len(os.fsencode(part)) > 255 for part in value.parts):
            return "a part of it is longer than any file's name"
        if isinstance(value, Path) and (value.is_fifo() or value.is_socket() or value.is_char_device()):
            return "it is no regular file and no folder"
    return ""


def _commands() -> list[str]:
    return [name.replace("_", "-") for name in registry.inside(__name__)]


def _hoist(arguments: list[str]) -> list[str]:
    """Let the global switches stand behind the command too."""
    switches = [a for a in arguments if a in ("--json", "--quiet", "-q", "--verbose", "-v", "--debug", "--no-limits")]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return [*switches, *(a for i, a in enumerate(arguments) if a not in switches or i > cut)]


def run(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 fine, 1 a gate failed, 2 could not run, 130 interrupted, 141 nobody reads the output.
    """
    _register_once()
    console.settings.json = "--json" in arguments  # also where the command line itself cannot be understood
    # What an earlier line of this process asked for does not stay.
    console.settings.quiet = console.settings.verbose = console.settings.debug = False
    name = next((a for a in arguments if not a.startswith("-")), "")
    try:
        return _run(arguments, name)
    except console.Closed as closed:
        console.give_up()
        return closed.exit_code


def _run(arguments: list[str], name: str) -> int:
    try:
        outcome: Any = app(_hoist(arguments), standalone_mode=False)
        sys.stdout.flush()
        return int(outcome or 0)
    except VitpruneError as error:
        if console.settings.debug:
            console.settings.console.print_exception()
        console.show_error(error, name)
        return error.exit_code
    except typer.Exit as leave:
        return _interrupted() if leave.exit_code == INTERRUPTED else int(leave.exit_code)
    except SystemExit as leave:  # click's answer to a closed pipe
        if isinstance(leave.__context__, OSError):
            raise console.Closed(leave.__context__) from leave
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        if console.settings.debug and not hasattr(error, "format_message"):
            raise
        console.show_error(_explained(error, name), name)
        return 2


def _explained(error: Exception, name: str) -> VitpruneError:
    """An error of the command line, the system or nobody's making as one of ours."""
    misread = getattr(error, "format_message", None)  # click's usage errors; newer typer carries its own copy of click
    if misread is not None:
        step = f"vitprune {name} --help" if name in _commands() else "vitprune --help"
        return RecipeError(199, misread(), cause="the command line was not understood", next_step=step)
    if isinstance(error, MemoryError):
        return RecipeError(
            191,
            "memory ran out",
            cause=first_line(error)[:300],
            next_step="close other programs, or take a smaller model or batch",
        )
    if isinstance(error, BeyondLimit):
        return RecipeError(
            193, "an input is larger than what is read", cause=str(error), next_step="--no-limits reads it all the same"
        )
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.EPIPE:
            raise console.Closed(error) from error
        where = f" '{error.filename}'" if error.filename else ""
        return RecipeError(
            190,
            f"the system refuses{where}",
            cause=error.strerror or str(error),
            next_step="check the path, its permissions, the disk",
        )
    return RecipeError(
        198,
        f"unexpected {type(error).__name__}",
        cause=first_line(error)[:300],
        next_step="run again with --debug and report the output",
    )


def _interrupted() -> int:
    console.show("[bold red]interrupted[/bold red]; nothing was left half-written")
    return INTERRUPTED


_registered = False


def _register_once() -> None:
    global _registered
    if not _registered:
        _register()
        _registered = True


def main() -> None:
    """Run what the process was started with, and end it."""
    interrupts.install()
    garbage.in_a_process_of_its_own()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        console.give_up()
        code = console.Closed(error).exit_code
    if code == INTERRUPTED:
        # An interrupt that passed through exec() of a string makes CPython end itself by SIGINT whatever sys.exit asked for.
        os._exit(code)
    garbage.left_to_the_system()
    sys.exit(code)
