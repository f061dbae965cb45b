"""The command that makes a row again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ditbench.method.stack import Stack
from ditbench.metrics.margins import MARGINS
from ditbench.models.family import families
from ditbench.models.sampling import PER_VIDEO
from ditbench.records.record import MEASURED
from ditbench.reports.sections.rows import differing
from ditbench.reports.sections.section import Section
from ditbench.suggest import suggest


def find_row(section: Section, wanted: str) -> dict[str, Any]:
    """The record `MODEL/STACK`, with a key, or with a stack where one model alone has it; ValueError
    gives the nearest rows."""
    if wanted in section.records:
        return section.records[wanted]
    named = {f"{r['model']}/{_canonical(r['stack'])}": r for r in section.records.values()}
    model, slash, stack = wanted.partition("/")
    if slash and (record := named.get(f"{model}/{_canonical(stack)}")):
        return record
    matches = [name for name in named if name.partition("/")[2] == _canonical(wanted)]
    if len(matches) == 1:
        return named[matches[0]]
    if matches:
        raise ValueError(
            f"{wanted} was run on several models; say which by key or as {', '.join(matches)}"
        )
    raise ValueError(f"no row {wanted!r} in {section.name}; {suggest(wanted, named)}")


def _canonical(stack: str) -> str:
    """A stack's one spelling; the text as it is when it cannot be read here, as a plug-in's."""
    try:
        return str(Stack.parse(stack))
    except ValueError:
        return stack.strip()


def asked_of(record: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The run that makes a cell, and the baseline it is held against, again: keys of a spec. `spec`
    is the run's.

    Sample counts are as they were asked for; a record counts what was done, and a video stands for
    four samples.
    """
    run, each = record["run"], PER_VIDEO if record["sampling"].get("frames", 1) > 1 else 1
    done = {name: run[name] for name in ("rounds", "seed", "device", "dtype", "weights")}
    done |= {name: each * run[name] for name in ("num_samples", "batch_size")}
    settings = {name: spec.get(name, done[name]) for name in ("num_samples", "batch_size", *done)}
    settings |= {"threads": spec["threads"]} if spec.get("threads") else {}
    settings |= {"models": [record["model"]], "methods": [record["stack"]]}
    family = families().get(record["family"])
    reads_prompts = not record.get("world") and not (family and family.class_labels)
    settings |= {"prompts": spec["prompts"]} if spec.get("prompts") and reads_prompts else {}
    settings |= {"references": list(spec.get("references", ()))}
    foreign = (
        "depends_on" not in record
        or record["status"] not in MEASURED
        or record["depends_on"].get("sources")
    )
    return settings | {"plugins": list(spec.get("plugins", ())) if foreign else []}


def command_of(record: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """The command that makes a cell, and the baseline it is held against, again in a folder of its
    own; `spec` is the run's."""
    settings = asked_of(record, spec)
    words = [
        "python",
        "run_bench.py",
        "run",
        "--models",
        *settings["models"],
        "--methods",
        *settings["methods"],
    ]
    for name in (
        "num_samples",
        "batch_size",
        "rounds",
        "seed",
        "threads",
        "device",
        "dtype",
        "weights",
        "prompts",
    ):
        words += [f"--{name.replace('_', '-')}", str(settings[name])] if name in settings else []
    for flag, name in (("--reference", "references"), ("--plugin", "plugins")):
        words += [word for text in settings[name] for word in (flag, text)]
    return shlex.join([*words, "--out", f"runs/again-{record['key']}"])


def elsewhere(
    record: Mapping[str, Any], spec: Mapping[str, Any], here: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What is not as it was: a row for each field of the environment that times or samples depend
    on, and for the margins of verdicts, which a command cannot tell."""
    there = record["environment"]
    rows: list[dict[str, Any]] = []
    if (margins := spec.get("margins")) is not None and dict(margins) != dict(MARGINS):
        rows.append({"field": "margins", "record": dict(margins), "here": dict(MARGINS)})
    for name in differing(there, here):
        one, other = there.get(name), here.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            rows += [
                {"field": f"{name}.{part}", "record": one.get(part), "here": other.get(part)}
                for part in sorted({*one, *other})
                if one.get(part) != other.get(part)
            ]
        else:
            rows.append({"field": name, "record": one, "here": other})
    return rows
