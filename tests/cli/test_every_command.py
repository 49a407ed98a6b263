"""Every command once on tiny models: its JSON fits the published schema, its text fits 80 columns and ends in one line that says the result."""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from vitprune import cli, console
from vitprune.support import registry
from vitprune.support.resources import schemas_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

WIDTH = 80
# Name of the run -> what is typed, and the exit code. Order matters: later ones use what earlier ones left.
RUNS: dict[str, tuple[str, int]] = {
    "init": ("init vit_tiny_patch16_224 -o started.yaml", 0),
    "export": ("export -r topk.yaml -o out", 0),
    "export dvt": ("export --no-pretrained -r dvt.yaml -o cascade", 0),
    "rewrite": ("rewrite dense.onnx -r tome.yaml -o merged", 0),
    "check": ("check out -t jetson-orin", 0),
    "build-engine": ("build-engine out -t onnxruntime-cpu --plugin none", 0),
    "build-engine package": ("build-engine out -t jetson-orin --no-trials", 0),
    "validate": ("validate out --data idx", 0),
    "validate engine": ("validate out -t onnxruntime-cpu --reference stored --junit junit.xml", 0),
    "validate dvt": ("validate cascade", 0),
    "inspect": ("inspect out", 0),
    "benchmark": ("benchmark out merged --batch 1 --batch 2 --rounds 3 -o now.json", 0),
    "benchmark engine": ("benchmark out -t onnxruntime-cpu --rounds 3", 0),
    "benchmark dvt": ("benchmark cascade --no-dense --rounds 3", 0),
    "benchmark --compare": ("benchmark --compare now.json now.json --tolerance 0.9", 0),
    "benchmark --profile-tokens": ("benchmark tome.yaml --profile-tokens --counts 2 --rounds 2 --method tome -o table.json", 0),
    "calibrate": ("calibrate tome.yaml --data idx --budget-macs 0.8 -o new.yaml --samples 16", 0),
    "thresholds": ("thresholds cascade --data wide.npz --budget 0.01", 0),
    "finetune": ("finetune -r topk.yaml --data idx -o run", 0),
    "tune": ("tune tome.yaml --data idx --budget-macs 0.8 -o search --trials 2 --samples 16 --method tome", 0),
    "card": ("card out", 0),
    "report": ("report out --html out.html", 0),
    "report as junit": ("report out --junit again.xml", 0),
    "report to the screen": ("report out merged", 0),
    "package": ("package out --triton models", 0),
    "methods": ("methods", 0),
    "targets": ("targets", 0),
    "recipes": ("recipes", 0),
    "doctor": ("doctor", 0),
    "plugins": ("plugins info", 0),
    "schema": ("schema validate", 0),
    "error": ("validate nowhere", 2),
}
NOT_HERE = {"demo"}  # tests/cli/test_demo.py


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with recipes, weights, a dense graph and images."""
    import numpy as np
    import onnx
    from safetensors.torch import save_file
    from training_support import MODEL, idx, recipe, write_recipe

    from vitprune.exporting.dense import dense_onnx
    from vitprune.vit import loading

    folder = tmp_path_factory.mktemp("every")
    made = loading.load(recipe("topk").model, pretrained=False, seed=1).module
    save_file(made.state_dict(), str(folder / "weights.safetensors"))
    for method in ("topk", "tome"):
        plain = recipe(method, train={"epochs": 1}).to_dict()
        plain["model"] = {**MODEL, "weights": str(folder / "weights.safetensors")}
        (folder / f"{method}.yaml").write_text(json.dumps(plain))
    write_recipe(folder / "dvt.yaml", recipe("dvt"))
    onnx.save(dense_onnx(made, (1, 16, 16), recipe("topk")), str(folder / "dense.onnx"))
    images = np.random.default_rng(0).standard_normal((8, 1, 16, 16)).astype(np.float32)
    np.savez(folder / "wide.npz", images=images, labels=np.arange(8) % 3)
    idx(folder / "idx", train=160)
    return folder


@pytest.fixture(scope="module")
def said(place):
    """Name of the run -> exit code, document, lines of text, and whether the last thing shown was its closing line."""
    found = {}
    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    patch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for name, (typed, _) in RUNS.items():
        out, err, order = io.StringIO(), io.StringIO(), []
        patch.setattr(console, "settings", console.Settings(console=Console(file=err, width=WIDTH, highlight=False)))
        patch.setattr(sys, "stdout", out)
        real_show, real_result = console.show, console.result
        patch.setattr(console, "show", lambda content, real=real_show, order=order: (order.append("line"), real(content)))
        patch.setattr(console, "result", lambda text, real=real_result, order=order: (real(text), order.append("result")))
        try:
            code = cli.run([*shlex.split(typed), "--json"])
        finally:
            patch.setattr(console, "show", real_show)
            patch.setattr(console, "result", real_result)
        found[name] = (code, json.loads(out.getvalue()), err.getvalue().splitlines(), order)
    patch.undo()
    return found


def test_every_command_is_run():
    assert {typed.split()[0] for typed, _ in RUNS.values()} | NOT_HERE == {
        name.replace("_", "-") for name in registry.inside("vitprune.cli")
    }


@pytest.mark.parametrize("name", RUNS)
def test_exit_codes_and_documents(said, name):
    code, document, lines, _ = said[name]
    assert code == RUNS[name][1], "\n".join(lines)
    assert document["command"] == RUNS[name][0].split()[0]
    assert document["exit_code"] == code


@pytest.mark.parametrize("name", RUNS)
def test_no_line_is_longer_than_the_terminal(said, name):
    assert [line for line in said[name][2] if len(line.rstrip()) > WIDTH] == []


@pytest.mark.parametrize("name", [name for name in RUNS if name != "error"])
def test_the_result_is_what_stays_on_the_screen(said, name):
    assert said[name][3][-1] == "result", said[name][2][-3:]


# ---- schemas

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted(schemas_folder().glob("*.json"))}


def test_every_command_has_its_schema():
    assert set(SCHEMAS) == {name.replace("_", "-") for name in registry.inside("vitprune.cli")}
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    assert [name for name in SCHEMAS if f"schemas/{name}.json" not in page] == []
    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:vitprune:schema:{console.SCHEMA_VERSION}:{name}"


@pytest.mark.parametrize("name", RUNS)
def test_documents_fit_their_schemas(said, name):
    document = said[name][1]
    validator = jsonschema.Draft202012Validator(SCHEMAS[document["command"]])
    assert list(validator.iter_errors(document)) == []
    for planted in (
        {key: value for key, value in document.items() if key != "status"},
        document | {"exit_code": "0"},
        document | {"schema_version": 2},
        {key: value for key, value in document.items() if key in ("schema_version", "command", "status", "exit_code")},
    ):
        assert not validator.is_valid(planted)
