"""What `vitprune report` was given: bundles, or one JSON document of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitprune.bundle import open_bundle
from vitprune.errors import LoadError
from vitprune.reports.parts import Report
from vitprune.reports.sections import of_bundles, of_document
from vitprune.support import files, json_text


def report_on(sources: Sequence[Path]) -> Report:
    """The report on bundles (one, or several side by side) or on one document.

    Raises:
        LoadError: VP600 a folder that is no bundle; VP655 a file that is no document, or several of them.
    """
    if all(source.is_dir() for source in sources):
        keys = [source.resolve().name for source in sources]
        names = [str(source) if keys.count(key) > 1 else key for source, key in zip(sources, keys, strict=True)]
        bundles = {name: open_bundle(source) for name, source in zip(names, sources, strict=True)}
        results = {name: _read(bundle.path / "reports" / "validate.json") for name, bundle in bundles.items()}
        speeds = {name: _read(bundle.path / "reports" / "benchmark.json") for name, bundle in bundles.items()}
        there = [{name: one for name, one in found.items() if one is not None} for found in (results, speeds)]
        return of_bundles(bundles, *there)
    if len(sources) > 1:
        raise LoadError(
            655,
            "several sources are compared as bundles",
            cause=f"'{sources[0]}' or another is no folder",
            next_step="name bundles, or one file",
        )
    document = _read(sources[0])
    if document is None:
        raise LoadError(
            655,
            f"'{sources[0]}' is no result",
            cause="it is not there, or no JSON document of a command",
            next_step="vitprune COMMAND --json > FILE",
        )
    try:
        return of_document(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LoadError(
            655,
            f"'{sources[0]}' is no result",
            cause=f"{type(error).__name__}: {error}",
            next_step="vitprune COMMAND --json > FILE",
        ) from error


def documents(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """The result that a file holds, or the last validations of bundles.

    Raises:
        LoadError: VP655 no result; VP658 a bundle that was not validated.
    """
    found = []
    for source in sources:
        document = _read(source / "reports" / "validate.json" if source.is_dir() else source)
        if document is None and source.is_dir():
            raise LoadError(
                658,
                f"'{source}' was not validated",
                cause="it holds no reports/validate.json",
                next_step=f"vitprune validate {source}",
            )
        if document is None:
            raise LoadError(
                655,
                f"'{source}' is no result",
                cause="it is not there, or no JSON document of a command",
                next_step="vitprune COMMAND --json > FILE",
            )
        found.append(document)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json_text.parse(files.read_text(path))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document else None
