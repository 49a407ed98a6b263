"""The examples at the end of every command's help are understood by the command line."""

from __future__ import annotations

import shlex

import pytest
import typer

from vitprune import cli
from vitprune.support import registry

NAMES = registry.inside("vitprune.cli")


def commands():
    cli._register_once()
    return typer.main.get_command(cli.app).commands


def understood(line: str) -> None:
    hoisted = cli._hoist(shlex.split(line))  # switches of all commands may stand behind them
    name, *arguments = hoisted[next(at for at, word in enumerate(hoisted) if not word.startswith("-")) :]
    with commands()[name].make_context(name, arguments):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_understood(name):
    examples = registry.module(f"vitprune.cli.{name}").EXAMPLES
    assert examples
    for line in examples:
        assert line.split()[0] == name.replace("_", "-")
        understood(line)


def test_an_example_with_another_option_is_seen():
    with pytest.raises(Exception, match="[Nn]o such option"):
        understood("validate out --junitt junit.xml")


def test_help_ends_with_them(capsys):
    assert cli.run(["card", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().splitlines()[-1].strip() == "vitprune card out -o README.md"
