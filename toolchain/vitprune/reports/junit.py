"""JUnit XML of a validation: one test case per gate."""

from __future__ import annotations

from xml.etree import ElementTree

from vitprune.validation.verdict import Verdict


def junit_xml(verdict: Verdict) -> str:
    """The document as text; a failed gate is a failure."""
    failed = sum(not gate.passed for gate in verdict.gates)
    suites = ElementTree.Element("testsuites", tests=str(len(verdict.gates)), failures=str(failed))
    suite = ElementTree.SubElement(
        suites, "testsuite", name=f"vitprune validate {verdict.bundle}", tests=str(len(verdict.gates)), failures=str(failed)
    )
    for gate in verdict.gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"vitprune.{verdict.bundle}", name=gate.name)
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = gate.text()
        else:
            ElementTree.SubElement(
                case, "failure", message=gate.text()
            ).text = f"{gate.text()}; backend {verdict.backend}, reference {verdict.reference}"
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
