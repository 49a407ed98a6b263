"""vitprune report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vitprune import console

EXAMPLES = (
    "report out --html out.html",
    "report A B --markdown diff.md",
    "report result.json --summary",
    "report out --junit junit.xml",
)


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(help="A bundle, bundles to compare, or a result that a command wrote as JSON.", show_default=False),
    ],
    html: Annotated[Path | None, typer.Option(help="Write one HTML file, which needs no network.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML: gates, findings or changes as test cases.")] = None,
    sbom: Annotated[Path | None, typer.Option(help="Write a CycloneDX bill of materials of one bundle.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Append to the job summary of a GitHub action.")] = False,
) -> None:
    """Write a report on a result or on bundles side by side."""
    from vitprune.bundle import open_bundle, write_atomic
    from vitprune.bundle_parts.output import unwritable
    from vitprune.reports import markdown as text
    from vitprune.reports.junit import junit_xml
    from vitprune.reports.opening import documents, report_on
    from vitprune.reports.page import page
    from vitprune.reports.sbom import sbom as materials

    found = report_on(sources)
    written = []
    wanted: list[tuple[Path | None, Callable[[], str]]] = [
        (html, lambda: page(found)), (markdown, lambda: text.markdown(found)), (junit, lambda: junit_xml(documents(sources))), (sbom, lambda: materials(open_bundle(sources[0]))),
    ]  # fmt: skip
    for path, made in wanted:
        if path is not None:
            try:
                write_atomic(path, made().encode())
            except OSError as error:
                raise unwritable(path, error) from error
            written.append(path)
    if summary:
        written.append(text.append_summary(text.markdown(found)))
    for part in found.sections:
        if part.columns and not written:
            console.table(part.title, list(part.columns), [list(row) for row in part.rows])
    names = ", ".join(map(str, written)) or "nothing written: --html FILE, --markdown FILE"
    console.result(f"[bold]{console.plain(found.title)}[/bold] {console.plain(found.status.upper())} {console.plain(names)}")
    console.document("report", {"status": "ok", "exit_code": 0, "title": found.title, "written": [str(path) for path in written]})
