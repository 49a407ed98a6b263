"""vitprune methods."""

from __future__ import annotations

from vitprune import console


def command() -> None:
    """List the methods: what each does, what varies, what it needs, where it is from."""
    from vitprune import methods

    found = [methods.get(name) for name in methods.names()]
    rows = [[m.name, m.varies, m.training, "yes" if m.needs_cls else "no", m.paper] for m in found]
    console.table("methods", ["method", "what varies", "training", "needs CLS", "reference"], rows)
    for method in found:
        console.info(f"  [bold]{method.name}[/bold] {method.summary}")
        console.detail(f"    parameters: {', '.join(name for name in method.params.model_fields if name != 'method')}")
    listed = [
        {
            "name": m.name, "summary": m.summary, "varies": m.varies, "training": m.training, "needs_cls": m.needs_cls, "paper": m.paper,
            "parameters": [name for name in m.params.model_fields if name != "method"],
        }
        for m in found
    ]  # fmt: skip
    console.document("methods", {"methods": listed})
