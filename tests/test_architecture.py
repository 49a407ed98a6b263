"""The layers hold, and each check fails where it should."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import imports as reader  # noqa: E402

LAYERS = reader.Layers(
    [["low"], ["methods", "beside"], ["high"], ["a method"]],
    [
        ("low*", "low"),
        ("beside", "beside"),
        ("high", "high"),
        ("methods", "methods"),
        ("methods.*.keys", "methods"),
        ("methods.*", "a method"),
    ],
)


def tree(folder, **files):
    """A package of files named `a__b` for a/b.py and `a__init` for a/__init__.py; returns its root."""
    root = folder / "vitprune"
    for name, text in files.items():
        *folders, last = name.replace("__", "/").split("/")
        path = root.joinpath(*folders, "__init__.py" if last == "init" else f"{last}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# ---- the package


@pytest.fixture(scope="module")
def found():
    return reader.imports()


@pytest.fixture(scope="module")
def layers():
    return reader.read_layers()


def test_every_module_has_one_room_and_every_pattern_a_module(layers):
    names = reader.modules()
    assert {layers.room(name) for name in names} == {room for row in layers.rows for room in row}
    for pattern, room in layers.patterns:
        assert any(reader.fnmatchcase(name, pattern) for name in names), f"{room}: nothing is called {pattern}"


def test_no_circles(found):
    assert reader.circles(found) == []


def test_nothing_climbs_without_a_reason(found, layers):
    assert reader.unexplained(found, layers) == []


def test_sizes_of_modules_and_root():
    assert reader.sizes() == []


def test_only_the_registry_imports_by_name():
    assert reader.loaders() == []


def test_surgeries_and_references_are_independent(found):
    assert reader.twins(found) == []


def test_every_folder_of_a_method_has_a_light_door(found, layers):
    assert reader.doors(found, layers) == []


def test_descriptions_need_neither_torch_nor_onnx():
    code = "import sys; from vitprune import methods; [methods.get(n) for n in methods.names()]; print(sorted({'torch', 'onnx', 'timm'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# ---- the checks, on trees with a defect


def test_imports_are_read(tmp_path):
    text = """
from typing import TYPE_CHECKING
import vitprune.high
from vitprune import beside
from . import low as other
if TYPE_CHECKING:
    from vitprune import absent
else:
    import vitprune.absent_too

def later():
    from vitprune.low import deep, name
    class Inner:
        import vitprune.late
"""
    root = tree(tmp_path, init="", here=text, high="", beside="", low__init="", low__deep="", absent="", absent_too="", late="")
    assert [(one.imported, one.late) for one in reader.imports(root)] == [
        ("absent_too", False), ("beside", False), ("high", False), ("late", True), ("low", False), ("low.deep", True)
    ]  # fmt: skip


def test_a_circle_is_found(tmp_path):
    late = "def f():\n    from vitprune import c\n"
    root = tree(tmp_path, a="import vitprune.b", b=late, c="from vitprune.a import x", d="import vitprune.a")
    assert reader.circles(reader.imports(root)) == ["circle: a, b, c"]
    (root / "b.py").write_text("if TYPE_CHECKING:\n    from vitprune import c\n")
    assert reader.circles(reader.imports(root)) == []


def test_a_climb_needs_a_reason(tmp_path):
    root = tree(
        tmp_path,
        low="def f():\n    import vitprune.high",
        beside="import vitprune.methods",
        high="import vitprune.low",
        methods="",
    )
    found = reader.imports(root)
    assert reader.unexplained(found, LAYERS) == ["against the layers: beside -> methods", "against the layers: low -> high"]

    def told(**reasons):
        names = {name.replace("__", " -> "): reason for name, reason in reasons.items()}
        return reader.unexplained(found, reader.Layers(LAYERS.rows, LAYERS.patterns, names))

    assert told(beside__methods="because", low__high="because") == []
    assert told(beside__methods="because", low__high=" ") == ["the exception 'low -> high' has no reason"]
    assert "the exception 'high -> low' is not needed" in told(high__low="because")
    many = {f"low{number}__high": "because" for number in range(9)}
    assert "9 exceptions, at most 8 are allowed" in told(**many)
    with pytest.raises(KeyError, match="no room for 'cellar'"):
        LAYERS.room("cellar")


def test_a_long_module_and_a_full_root_are_found(tmp_path):
    names = {f"m{number}": "" for number in range(10)}
    root = tree(tmp_path, **names, room__long="pass\n" * 320)
    assert reader.sizes(root) == []
    tree(tmp_path, one_more="", room__long="pass\n" * 321)
    assert reader.sizes(root) == [
        "room.long has 321 lines, at most 320 are allowed",
        "11 modules at the root, at most 10 are allowed",
    ]


@pytest.mark.parametrize(
    "text",
    ["import importlib\nimportlib.import_module('x')", "from importlib import import_module", "__import__('x')", "import runpy",
     "from runpy import run_module", "def f():\n    import importlib as i\n    return i.import_module('x')"],
)  # fmt: skip
def test_an_import_by_name_is_found(tmp_path, text):
    root = tree(
        tmp_path,
        support__registry=text,
        other="import importlib.util\nfrom importlib import metadata\nimportlib.util.find_spec('x')",
    )
    assert reader.loaders(root) == []
    assert len(reader.loaders(tree(tmp_path, other=text))) == 1


@pytest.mark.parametrize(
    ("module", "text", "told"),
    [
        (
            "m__surgery",
            "from vitprune.methods.m import reference",
            "methods.m.reference is used by methods.m.surgery and methods.m.reference",
        ),
        ("m__surgery", "from vitprune.methods.m.rule import x", "methods.m.surgery reaches methods.m.rule"),
        (
            "m__surgery",
            "from vitprune.methods._shared import torch_part",
            "methods._shared.torch_part is used by methods.m.surgery and methods.m.reference",
        ),
        (
            "m__reference",
            "from vitprune.methods._shared import graph_part",
            "methods.m.surgery is used by methods.m.surgery and methods.m.reference",
        ),
        (
            "m__reference",
            "from vitprune.methods._shared import common",
            "methods._shared.common is used by methods.m.surgery and methods.m.reference",
        ),
    ],
)
def test_a_shared_implementation_is_found(tmp_path, module, text, told):
    files = {
        "m__init": "def f():\n    from vitprune.methods.m import reference, surgery\n", "m__keys": "", "m__rule": "",
        "m__surgery": "import vitprune.methods.m.keys\nfrom vitprune.methods._shared import common",
        "m__reference": "import vitprune.methods.m.keys, vitprune.methods.m.rule\nfrom vitprune.methods._shared import torch_part",
        "_shared__init": "", "_shared__torch_part": "", "_shared__graph_part": "import vitprune.methods.m.surgery", "_shared__common": "",
    }  # fmt: skip
    root = tree(tmp_path, **{f"methods__{name}": code for name, code in files.items()})
    assert reader.twins(reader.imports(root)) == []
    tree(tmp_path, **{f"methods__{module}": files[module] + "\n" + text})
    assert told in reader.twins(reader.imports(root))


def test_a_door_is_there_and_light(tmp_path):
    door = "from vitprune.methods.m.keys import x\nMETHOD = 1\ndef f():\n    from vitprune import high\n"
    root = tree(tmp_path, methods__init="", methods__m__init=door, methods__m__keys="", methods___shared__init="", high="")
    assert reader.doors(reader.imports(root), LAYERS, root) == []
    tree(tmp_path, methods__n__init="", methods__m__init=door + "import vitprune.high\n")
    assert reader.doors(reader.imports(root), LAYERS, root) == [
        "methods.n has no METHOD",
        "methods.m -> high is imported at once",
    ]


def test_no_two_test_files_share_a_name():
    """pytest imports them by their names alone: of two, the second is not collected by a worker that has the first."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
