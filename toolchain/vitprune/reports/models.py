"""Which plain ViTs of timm work with which methods, from the stored results of tests/reach/matrix.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.errors import LoadError
from vitprune.support.resources import recipes_folder

LIMITS = {
    "parity": 1e-4,
    "noop": 1e-5,
    "batch": 1e-5,
}  # of the largest logit: graph against reference, nothing pruned, alone against in a batch
LEAST = 1e-3  # by how much pruning must change the logits, or nothing was checked


@dataclass(frozen=True)
class Row:
    """A form of model.

    Attributes:
        form: what distinguishes it. names: timm's names, smallest first. states: per method "yes", "partly" (not in both kinds of
            shapes), "no" or "not run". why: the first reason of a "no". worst: the largest parity of its cases. built: cases that
            TensorRT-RTX built, and those given to it.
    """

    form: str
    names: list[str]
    states: dict[str, str]
    why: str
    worst: float
    built: tuple[int, int]


def read(path: Path | None = None, name: str = "models.json", script: str = "matrix.py") -> dict[str, Any]:
    """Stored results: of a file, else of `name` among the recipes, which `script` of tests/reach writes.

    Raises:
        LoadError: VP604 there are none.
    """
    place = path or recipes_folder() / name
    if not place.is_file():
        raise LoadError(
            604, f"'{place.name}' not found", cause="no results are stored", next_step=f"python tests/reach/{script} --store"
        )
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def failure(case: dict[str, Any]) -> str:
    """Why a case does not pass, "" where it does."""
    if "refused" in case:
        return str(case["refused"])
    failed = [f"{key} {case[key]:.2g}" for key, limit in LIMITS.items() if not case[key] <= limit]
    failed += ["nothing pruned"] if case["pruned"] < LEAST else []
    failed += [] if case["kept"] else ["kept lists differ"]
    return "; ".join([*failed, *([f"rtx: {case['rtx']}"] if case.get("rtx", "built") != "built" else [])])


def methods(stored: dict[str, Any]) -> list[str]:
    """The methods of the matrix."""
    return [name for kind in stored["methods"].values() for name in kind]


def rows(stored: dict[str, Any]) -> list[Row]:
    """One row a form, those with most names first."""
    made = []
    for one in stored["forms"]:
        states, cases = {}, one["cases"]
        for method in methods(stored):
            of = [failure(case) for key, case in cases.items() if key.split()[0] == method]
            passed = sum(not why for why in of)
            shapes = {key.split()[1] for key, case in cases.items() if key.split()[0] == method and not failure(case)}
            states[method] = (
                "not run" if not of else "no" if not passed else "yes" if passed == len(of) and len(shapes) == 2 else "partly"
            )
        reasons = [why for case in cases.values() if (why := failure(case))]
        given = [case["rtx"] for case in cases.values() if "rtx" in case]
        worst = max((case.get("parity", 0.0) for case in cases.values() if not failure(case)), default=0.0)
        made.append(
            Row(one["form"], one["names"], states, reasons[0] if reasons else "", worst, (given.count("built"), len(given)))
        )
    return sorted(made, key=lambda row: (-len(row.names), row.form))


def shares(stored: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Per method: names that work in both kinds of shapes, names that work in at least one, all names."""
    made, every = rows(stored), sum(len(one["names"]) for one in stored["forms"])
    return {
        method: (
            sum(len(row.names) for row in made if row.states[method] == "yes"),
            sum(len(row.names) for row in made if row.states[method] in ("yes", "partly")),
            every,
        )
        for method in methods(stored)
    }


def markdown(stored: dict[str, Any]) -> str:
    """Shares and forms as tables."""
    columns, made = methods(stored), rows(stored)
    lines = [
        f"timm {stored['timm']}: {len(stored['forms'])} forms, {sum(len(one['names']) for one in stored['forms'])} names.",
        "",
        "| method | names, dynamic and padded | names, at least one of them | of all |",
        "|---|---|---|---|",
    ]
    for method, (both, any_, every) in shares(stored).items():
        lines.append(f"| {method} | {both} | {any_} | {100 * any_ / every:.1f} % |")
    lines += [
        "",
        f"| form | names | smallest | {' | '.join(columns)} | worst parity | RTX built |",
        "|---|---|---|" + "---|" * (len(columns) + 2),
    ]
    for row in made:
        worst = f"{row.worst:.1e}" if row.worst else "–"
        built = f"{row.built[0]} of {row.built[1]}" if row.built[1] else "not run"
        lines.append(
            f"| {row.form} | {len(row.names)} | {row.names[0]} | {' | '.join(row.states[one] for one in columns)} | {worst} | {built} |"
        )
    refused = [(row, row.why) for row in made if row.why]
    if refused:
        lines += ["", "| what does not pass | names | why |", "|---|---|---|"]
        lines += [f"| {row.form} | {len(row.names)} | {why} |" for row, why in refused]
    return "\n".join(lines) + "\n"
