"""Fixtures shared by the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import jsonschema
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import ats, tiny  # noqa: E402
from vitprune.support import cache, json_text  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """All workers share caches of dense exports and of built libraries, which begin empty; none sees or touches the user's.

    Started in the background, the tests inherit an ignored SIGINT; those about interrupts need the usual one.
    """
    if not hasattr(config, "workerinput"):
        os.environ[cache.VARIABLE] = tempfile.mkdtemp(prefix="vitprune-tests-")
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vitprune-tests-")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        for variable in (cache.VARIABLE, "XDG_CACHE_HOME"):
            shutil.rmtree(os.environ.pop(variable), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers a file stays on one of them, and the folder of the native library too, so that it is built once."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group("plugins" if folder == "plugins" else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _documents_fit_their_schemas():
    """Every JSON document that any test makes a command write is held against the command's published schema."""
    from vitprune import console
    from vitprune.support.resources import schemas_folder

    validators = {
        path.stem: jsonschema.Draft202012Validator(json.loads(path.read_text())) for path in schemas_folder().glob("*.json")
    }
    write = console.document

    def checked(command, body):
        if command in validators:  # "" and unknown words are mistakes in the command line itself
            document = {"schema_version": console.SCHEMA_VERSION, "command": command, **body}
            found = list(validators[command].iter_errors(json.loads(json_text.written(document))))
            assert not found, f"schemas/{command}.json: {nearest(found)}"
        write(command, body)

    console.document = checked
    yield
    console.document = write


def nearest(errors):
    """The fault that a reader wants to see: the deepest one."""
    error = max(errors, key=lambda one: len(one.absolute_path))
    while error.context:
        error = max(error.context, key=lambda one: len(one.absolute_path))
    return f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"


@pytest.fixture(scope="session")
def tiny_model():
    return tiny()


@pytest.fixture(scope="session")
def tiny_dense(tiny_model):
    from vitprune.exporting.dense import dense_onnx
    from vitprune.recipe import Recipe

    return dense_onnx(tiny_model, (3, 64, 64), Recipe.load(ats(stages=[1])))


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory):
    """A bundle whose PyTorch model can be made again."""
    import vitprune

    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
    recipe = vitprune.Recipe.load(
        {"model": {"name": "vit_tiny_patch16_224", "args": sizes}, **ats(stages=[1, 2, 3], num_samples=30)}
    )
    return vitprune.export(None, recipe, tmp_path_factory.mktemp("made") / "bundle", pretrained=False, seed=3)


@pytest.fixture
def bundle_copy(made_bundle, tmp_path):
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(made_bundle.path, tmp_path / "bundle"))
