"""Reports for people and for CI: JUnit, HTML."""
