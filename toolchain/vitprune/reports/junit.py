"""JUnit XML of what a command found: one test case per gate, finding or compared measurement.

The form is the one that CI systems read: testsuites > testsuite > testcase with failure, error or system-out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from vitprune.console import harmless
from vitprune.errors import LoadError


@dataclass(frozen=True)
class Case:
    """One case: its name, what was seen in a line, and "" where it is fine, else "failure" or "error" with the kind of it."""

    name: str
    text: str
    wrong: str = ""
    kind: str = ""


def junit_xml(documents: Sequence[dict[str, Any]]) -> str:
    """The text of the file, one suite per document.

    Args:
        documents: of commands, as they write them with --json or into bundles.

    Raises:
        LoadError: VP658 a document in which nothing passes or fails.
    """
    root = ElementTree.Element("testsuites")
    totals = [0, 0, 0]
    for document in documents:
        cases = cases_of(document)
        counts = [len(cases), *(sum(case.wrong == kind for case in cases) for kind in ("failure", "error"))]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        name = _plain(" ".join(str(word) for word in ("vitprune", _command(document), document.get("bundle", "")) if word))
        root.append(_suite(name, cases, counts, document))
    root.attrib.update(_counted(totals))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def cases_of(document: dict[str, Any]) -> list[Case]:
    """What passes or fails in a document.

    Raises:
        LoadError: VP658.
    """
    makers: dict[str, Callable[[Any], Case]] = {"gates": _gate, "findings": _finding, "changes": _change}
    if document.get("error"):
        error = document["error"]
        return [Case(str(error["code"]), f"{error['message']}; {error.get('cause', '')}", "error", str(error["code"]))]
    for key, make in makers.items():
        if isinstance(document.get(key), list) and document[key]:
            return [make(entry) for entry in document[key]]
    raise LoadError(
        658, "there is nothing that passes or fails", cause=f"a result of '{_command(document)}' holds no gates, findings or changes",
        next_step="--junit takes results of validate, demo, check and benchmark --compare, errors, and bundles that were validated",
    )  # fmt: skip


def _command(document: dict[str, Any]) -> str:
    return str(document.get("command") or document.get("kind") or "validate")


def _gate(gate: dict[str, Any]) -> Case:
    seen = "not finite" if gate["seen"] is None else f"{gate['seen']:.6g}"
    between = f", 95 % interval {gate['interval'][0]:.3g} to {gate['interval'][1]:.3g}" if gate.get("interval") else ""
    text = f"{gate['name']} {seen}{between}, limit {gate['limit']:g}"
    if gate["passed"]:
        return Case(gate["name"], text)
    kind = "undecided" if gate.get("undecided") else "beyond the limit"
    return Case(gate["name"], f"{text}: {kind}", "failure", kind)


def _finding(finding: dict[str, Any]) -> Case:
    text = f"{finding['verdict']}: {finding['text']}" + (f"; {finding['mend']}" if finding["mend"] else "")
    wrong = "failure" if finding["verdict"] == "blocked" else ""
    return Case(f"{finding['rule']} {finding['title']}", text, wrong, finding["verdict"] if wrong else "")


def _change(change: dict[str, Any]) -> Case:
    text = f"ratio {change['before']:.4g} before, {change['after']:.4g} now ({100 * (change['change'] - 1):+.1f} %): {change['verdict']}"
    wrong = "failure" if change["verdict"] in ("regression", "undecided") else ""
    return Case(f"{change['bundle']} batch {change['batch']}", text, wrong, change["verdict"] if wrong else "")


def _suite(name: str, cases: list[Case], counts: list[int], document: dict[str, Any]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": name, **_counted(counts)})
    told = {
        key: document[key] for key in ("backend", "reference", "data", "target", "runtime") if isinstance(document.get(key), str)
    }
    if told:
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in told.items():
            ElementTree.SubElement(properties, "property", name=key, value=_plain(value))
    for case in cases:
        shown = ElementTree.SubElement(suite, "testcase", classname=name.replace(" ", "."), name=_plain(case.name))
        if case.wrong:
            wrong = ElementTree.SubElement(shown, case.wrong, message=_plain(case.text), type=_plain(case.kind))
            wrong.text = _plain(case.text)
        else:
            ElementTree.SubElement(shown, "system-out").text = _plain(case.text)
    return suite


def _counted(counts: Sequence[int]) -> dict[str, str]:
    return dict(zip(("tests", "failures", "errors"), map(str, counts), strict=True))


def _plain(text: object) -> str:
    """Text that XML can hold: no control characters and no code points that are none."""
    return harmless(str(text)).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
