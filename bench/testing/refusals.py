"""Which models the methods' own `check` refuses, asked of pipelines without values, written down for
`ditbench.analysis.pairs`: `python -m ditbench.testing.refusals`. `--check` writes nothing and exits
with 1 where the file differs.

About a minute: the transformers of all models are made on torch's meta device, in bfloat16, which
no format refuses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from ditbench.analysis.pairs import CHECK_REFUSALS
from ditbench.method.registry import find, names
from ditbench.models.table import Model, models

HEAD = """\
# Why a method's own `check` refuses a model at default knobs, a table for each model.
# Made by `python -m ditbench.testing.refusals`.
"""


def refused(model: Model) -> dict[str, str]:
    """Method -> why its `check` refuses the model at default knobs, by name."""
    import torch

    from ditbench.models.architecture import build

    pipe = build(
        model, device="meta", dtype=torch.bfloat16, parts=("transformer", "scheduler", "vae")
    )
    reasons = ((name, find(name)().check(pipe)) for name in names())
    return {name: reason for name, reason in reasons if reason}


def text(of: Iterable[Model]) -> str:
    """The file for these models."""
    tables = [HEAD]
    for model in of:
        if reasons := refused(model):
            lines = [f"{name} = {_quoted(reason)}" for name, reason in reasons.items()]
            tables.append("\n".join([f"[{_quoted(model.name)}]", *lines]) + "\n")
    return "\n".join(tables)


def _quoted(words: str) -> str:
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ditbench.testing.refusals")
    parser.add_argument("--check", action="store_true", help="compare only")
    made = text(models().values())
    if not parser.parse_args(arguments).check:
        CHECK_REFUSALS.write_text(made, encoding="utf-8")
        return 0
    if made == CHECK_REFUSALS.read_text(encoding="utf-8"):
        return 0
    print(f"{CHECK_REFUSALS.name} is not what the methods say", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
