"""Which vision models of transformers work through `rewrite`, from the stored results of tests/reach/hugging_face.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitprune.reports import models
from vitprune.reports.models import LEAST, LIMITS


def read(path: Path | None = None) -> dict[str, Any]:
    """The stored results; errors as `models.read`."""
    return models.read(path, "hugging_face.json", "hugging_face.py")


def failure(case: dict[str, Any]) -> str:
    """Why a case does not pass, "" where it does, or where there is no such graph: no such attention, or an exporter that cannot write it."""
    if "absent" in case:
        return ""
    if "refused" in case:
        return str(case["refused"])
    limits = LIMITS | {"judge": LIMITS["parity"]}
    failed = [f"{key} {case[key]:.2g}" for key, limit in limits.items() if not case[key] <= limit]
    failed += [] if case["pruned"] >= LEAST else ["nothing pruned"]
    return "; ".join([*failed, *([] if case["kept"] else ["kept lists differ"])])


def _cases(rows: dict[str, Any], exporter: str) -> list[dict[str, Any]]:
    return [case for key, case in rows.items() if key.startswith(f"{exporter} ")]


def state(cases: list[dict[str, Any]]) -> str:
    """How many pass of the graphs that there are; "–" where there are none, "not run" where none was tried."""
    run = [case for case in cases if "absent" not in case]
    passed = sum(not failure(case) for case in run)
    return "not run" if not cases else f"{passed} of {len(run)}" if run else "–"


def _worst(rows: dict[str, Any], key: str) -> str:
    found = [case[key] for case in rows.values() if key in case and not failure(case)]
    return f"{max(found):.1e}" if found else "–"


def _reasons(models: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: what does not pass or is not there, once for each reason."""
    for name, rows in models.items():
        seen: dict[str, list[str]] = {}
        for key, case in rows.items():
            if why := failure(case) or case.get("absent", ""):
                seen.setdefault(why.split(" \x1b")[0], []).append(key)
        for why, keys in seen.items():
            yield f"| {name} | {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''} | {why} |"


def markdown(stored: dict[str, Any]) -> str:
    """Models by exporter, and what does not pass."""
    models, exporters = stored["models"], stored["exporters"]
    run = [case for rows in models.values() for case in rows.values() if "absent" not in case]
    passed = sum(not failure(case) for case in run)
    lines = [
        f"transformers {stored['transformers']}, torch {stored['torch']}: {len(models)} models, {passed} of {len(run)} cases pass.",
        "",
        f"| model | {' | '.join(exporters)} | worst parity | worst against transformers' own layers |",
        "|---|" + "---|" * (len(exporters) + 2),
    ]
    for name, rows in models.items():
        states = " | ".join(state(_cases(rows, one)) for one in exporters)
        lines.append(f"| {name} | {states} | {_worst(rows, 'parity')} | {_worst(rows, 'judge')} |")
    if reasons := list(_reasons(models)):
        lines += ["", "| what does not pass, or is not there | case | why |", "|---|---|---|", *reasons]
    return "\n".join(lines) + "\n"
