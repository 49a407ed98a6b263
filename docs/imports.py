"""Reads the imports of the package, the layers of docs/layers.yaml, and says what breaks them. Imports nothing of vitprune.

    python docs/imports.py        prints every breach; exit code 1 when there is one

Imports inside functions count like all others. Those under `if TYPE_CHECKING:` do not: they do not exist at run time. That importing
`a.b` runs `a/__init__.py` first is not counted either; the `__init__` of a room imports nothing that imports the room.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1] / "toolchain" / "vitprune"
TABLE = Path(__file__).parent / "layers.yaml"
PACKAGE = "vitprune"
# Parts of a method that both implementations may read: what it is set to, and the parameters it was trained to.
DESCRIBING = ("keys", "sites", "cost", "weights")
MOST_LINES, MOST_AT_ROOT, MOST_EXCEPTIONS = 320, 10, 8


@dataclass(frozen=True, order=True)
class Import:
    """One module imports another; names without the package's, the package itself is "vitprune". late: inside a function."""

    importer: str
    imported: str
    line: int = 0
    late: bool = False

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


@dataclass(frozen=True)
class Layers:
    """rows: rooms of every layer, lowest first. patterns: (pattern, room) in the order they are tried. holds: room -> one line."""

    rows: list[list[str]]
    patterns: list[tuple[str, str]]
    exceptions: dict[str, str] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)

    def room(self, module: str) -> str:
        """The room of a module; raises KeyError where no pattern fits."""
        for pattern, room in self.patterns:
            if fnmatchcase(module, pattern):
                return room
        raise KeyError(f"no room for '{module}' in {TABLE.name}")

    def height(self, room: str) -> int:
        """Number of a room's layer, 0 = lowest."""
        return next(number for number, row in enumerate(self.rows) if room in row)


def read_layers(path: Path = TABLE) -> Layers:
    """The table."""
    plain: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    rooms = [(name, room) for row in plain["layers"] for name, room in row.items()]
    patterns = [(pattern, name) for name, room in rooms for pattern in room["modules"]]
    return Layers([list(row) for row in plain["layers"]], patterns, plain["exceptions"], {n: r["holds"] for n, r in rooms})


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of a package, by its name without the package's."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE] = path
    return found


def imports(root: Path = ROOT) -> list[Import]:
    """Every import of one module of the package by another, once per pair: one that runs with the module where there is one."""
    known, found = modules(root), {}
    for name, path in known.items():
        for candidates, line, late in _statements(ast.parse(path.read_text(encoding="utf-8")), False, _base(name, path)):
            imported = next((one for one in map(_short, candidates) if one in known), name)
            if imported != name and (late, line) < found.get((name, imported), (True, sys.maxsize)):
                found[name, imported] = (late, line)
    return sorted(Import(*pair, line, late) for pair, (late, line) in found.items())


def _short(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.")


def _base(name: str, path: Path) -> list[str]:
    """The package that relative imports of a module start from."""
    parts = [PACKAGE, *([] if name == PACKAGE else name.split("."))]
    return parts if path.name == "__init__.py" else parts[:-1]


def _statements(node: ast.AST, late: bool, base: list[str]) -> Iterator[tuple[list[str], int, bool]]:
    """Import statements below a node: names of what may be meant, most exact first; line; whether inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).split(".")[-1] == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _statements(ast.Module([other], []), late, base)
        elif isinstance(child, ast.Import):
            yield from (([alias.name], child.lineno, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = base[: len(base) - child.level + 1] if child.level else []
            module = ".".join([*start, *([child.module] if child.module else [])])
            yield from (([f"{module}.{alias.name}", module], child.lineno, late) for alias in child.names)
        else:
            yield from _statements(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda), base)


def circles(found: Iterable[Import]) -> list[str]:
    """Groups of modules that reach each other."""
    ahead: dict[str, set[str]] = {}
    for one in found:
        ahead.setdefault(one.importer, set()).add(one.imported)
    reach = {name: reachable(name, ahead) for name in ahead}
    groups = {frozenset({name, *(n for n in reach[name] if name in reach.get(n, ()))}) for name in ahead if name in reach[name]}
    return sorted("circle: " + ", ".join(sorted(group)) for group in groups)


def reachable(start: str, ahead: dict[str, set[str]]) -> set[str]:
    """Everything that `start` imports, directly or not."""
    seen: set[str] = set()
    pending = list(ahead.get(start, ()))
    while pending:
        if (name := pending.pop()) not in seen:
            seen.add(name)
            pending += ahead.get(name, ())
    return seen


def climbs(found: Iterable[Import], layers: Layers) -> list[Import]:
    """Imports of a higher layer, or of another room of the same one."""

    def climbing(one: Import) -> bool:
        here, there = layers.room(one.importer), layers.room(one.imported)
        return here != there and layers.height(there) >= layers.height(here)

    return [one for one in found if climbing(one)]


def unexplained(found: Iterable[Import], layers: Layers) -> list[str]:
    """Climbs without a reason in the table, reasons that nothing needs any more, and too many of them."""
    climbing = {str(one) for one in climbs(found, layers)}
    told = [f"against the layers: {name}" for name in sorted(climbing - set(layers.exceptions))]
    told += [f"the exception '{name}' is not needed" for name in sorted(set(layers.exceptions) - climbing)]
    told += [
        f"the exception '{name}' has no reason" for name, reason in layers.exceptions.items() if not str(reason or "").strip()
    ]
    many = len(layers.exceptions) > MOST_EXCEPTIONS
    return told + ([f"{len(layers.exceptions)} exceptions, at most {MOST_EXCEPTIONS} are allowed"] if many else [])


def sizes(root: Path = ROOT) -> list[str]:
    """Modules of more than 320 lines, and more than ten modules at the root."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(root).items()}
    told = [f"{name} has {count} lines, at most {MOST_LINES} are allowed" for name, count in lines.items() if count > MOST_LINES]
    loose = sorted(root.glob("*.py"))
    many = len(loose) > MOST_AT_ROOT
    return told + ([f"{len(loose)} modules at the root, at most {MOST_AT_ROOT} are allowed"] if many else [])


def loaders(root: Path = ROOT, allowed: str = "support.registry") -> list[str]:
    """Modules, save the registry, that import by name."""
    return [
        f"{name}:{line} imports by name; only {allowed} may"
        for name, path in modules(root).items()
        if name != allowed
        for line in _by_name(ast.parse(path.read_text(encoding="utf-8")))
    ]


def _by_name(tree: ast.Module) -> list[int]:
    """Lines that use importlib.import_module, __import__ or runpy; importlib.util.find_spec and importlib.metadata are fine."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            bad = node.attr == "import_module"
        elif isinstance(node, ast.Name):
            bad = node.id == "__import__"
        elif isinstance(node, ast.ImportFrom):
            bad = (
                node.module in ("importlib", "runpy")
                and {alias.name for alias in node.names} - {"metadata", "util", "resources"} != set()
            )
        else:
            bad = isinstance(node, ast.Import) and any(alias.name == "runpy" for alias in node.names)
        if bad:
            lines.append(node.lineno)
    return lines


def twins(found: Iterable[Import]) -> list[str]:
    """Code of methods that serves both of a method's implementations, which are to agree without copying from each other.

    Counted: everything in methods/ that a surgery or a reference reaches, save what describes a method (DESCRIBING).
    """
    ahead: dict[str, set[str]] = {}
    for one in found:
        if all(name.startswith("methods.") and not _describes(name) for name in (one.importer, one.imported)):
            ahead.setdefault(one.importer, set()).add(one.imported)
    names = {*ahead, *(name for targets in ahead.values() for name in targets)}
    cut = {name: {name} | reachable(name, ahead) for name in names}
    surgeries, references = ([n for n in sorted(names) if n.rsplit(".", 1)[-1].endswith(end)] for end in ("surgery", "reference"))
    told = [f"{one} is used by {a} and {b}" for a in surgeries for b in references for one in sorted(cut[a] & cut[b])]
    return told + [f"{a} reaches {one}" for a in surgeries for one in sorted(cut[a]) if one.endswith(".rule")]


def _describes(name: str) -> bool:
    parts = name.split(".")
    return len(parts) == 2 or parts[-1] in DESCRIBING


def doors(found: Iterable[Import], layers: Layers, root: Path = ROOT) -> list[str]:
    """Folders of methods without a METHOD, and METHODs that load more than descriptions when they are imported."""
    folders = [path for path in sorted((root / "methods").iterdir()) if path.is_dir() and not path.name.startswith("_")]
    names = {f"methods.{path.name}" for path in folders}
    told = [f"methods.{path.name} has no METHOD" for path in folders if not _defines(path / "__init__.py", "METHOD")]
    low = layers.height("methods")
    early = [one for one in found if one.importer in names and one.imported not in names and not one.late]
    return told + [f"{one} is imported at once" for one in early if layers.height(layers.room(one.imported)) > low]


def _defines(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    targets = [
        target
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def breaches() -> list[str]:
    """Everything that is wrong with the package."""
    found, layers = imports(), read_layers()
    return [*circles(found), *unexplained(found, layers), *sizes(), *loaders(), *twins(found), *doors(found, layers)]


if __name__ == "__main__":
    wrong = breaches()
    print("\n".join(wrong) or "the layers hold")
    sys.exit(1 if wrong else 0)
