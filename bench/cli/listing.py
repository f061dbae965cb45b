"""What there is: models, methods and metrics as rows for a table. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any


def rows(what: str, verbose: bool = False, plugins: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of `list models|methods|metrics`."""
    from ditbench.method.plugins import load_plugin

    for plugin in plugins:
        load_plugin(plugin)
    if what == "models":
        return _models(verbose)
    if what == "methods":
        return _methods(verbose)
    return _metrics()


def _models(verbose: bool) -> list[dict[str, Any]]:
    from ditbench.models.table import models

    found = []
    for model in models().values():
        size = f"{model.height}x{model.width}" + (f"x{model.frames}" if model.frames > 1 else "")
        row: dict[str, Any] = {
            "model": model.name,
            "group": model.group,
            "family": model.family,
            "size": size,
        }
        row |= {"steps": model.steps, "guidance": model.guidance}
        if verbose:
            row |= {"text_tokens": model.text_tokens, "weights": model.hub or "bundled"}
        found.append(row)
    return found


def _methods(verbose: bool) -> list[dict[str, Any]]:
    from ditbench.method.registry import find, names

    classes = {name: find(name) for name in names()}
    found: list[dict[str, Any]] = []
    for name, cls in sorted(classes.items(), key=lambda item: (item[1].traits.stage, item[0])):
        traits = cls.traits
        knobs = ", ".join(
            f"{f.name}={f.default!r}" for f in fields(cls) if f.default is not MISSING
        )
        row: dict[str, Any] = {"method": name, "family": traits.family, "knobs": knobs}
        row["what it does"] = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
        if verbose:
            row |= {"stage": traits.stage.name.lower(), "claims": ", ".join(sorted(traits.claims))}
            row |= {"needs": ", ".join(sorted(traits.needs)), "paper": traits.paper}
            row["more"] = cls.more() if hasattr(cls, "more") else ""
        found.append(row)
    return found


def _metrics() -> list[dict[str, Any]]:
    from ditbench.metrics.table import metrics

    return [
        {
            "metric": m.name,
            "better": m.better,
            "unit": m.unit,
            "needs": m.needs,
            "what it says": m.doc,
        }
        for m in metrics().values()
    ]
