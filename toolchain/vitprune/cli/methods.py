"""vitprune methods."""

from __future__ import annotations

from typing import Any

from vitprune import console


def _parameters(params: Any) -> list[str]:
    """Recipe keys of a method."""
    return [field.alias or name for name, field in params.model_fields.items() if name != "method"]


EXAMPLES = (
    "methods",
    "methods --verbose",
)


def command() -> None:
    """List the methods: what each does, what varies, what it needs, where it is from."""
    from vitprune import methods

    found = [methods.get(name) for name in methods.names()]
    rows = [[m.name, m.varies, m.training_need, "yes" if m.needs_cls else "no", m.paper] for m in found]
    console.table("methods", ["method", "what varies", "training", "needs CLS", "reference"], rows)
    for method in found:
        console.info(f"  [bold]{method.name}[/bold] {method.summary}")
        console.detail(f"    parameters: {', '.join(_parameters(method.params))}")
    listed = [
        {
            "name": m.name, "summary": m.summary, "varies": m.varies, "training": m.training_need, "needs_cls": m.needs_cls, "paper": m.paper,
            "parameters": _parameters(m.params),
        }
        for m in found
    ]  # fmt: skip
    free = sum(method.training_need == "none" for method in found)
    console.result(f"{len(found)} methods; {free} are applied without training")
    console.document("methods", {"status": "ok", "exit_code": 0, "methods": listed})
