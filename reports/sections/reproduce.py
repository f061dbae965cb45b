"""The command that makes a row again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ditbench.method.stack import Stack
from ditbench.metrics.margins import MARGINS
from ditbench.models.family import families
from ditbench.models.lora import loras_of
from ditbench.models.sampling import PER_VIDEO
from ditbench.records.environment import differing
from ditbench.records.record import MEASURED, Record, environments_of
from ditbench.records.settings import DEFAULTS, OPTIONS
from ditbench.reports.sections.section import Section
from ditbench.suggest import suggest


def find_row(section: Section, wanted: str) -> Record:
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
    """The run that makes a cell, and the baseline it is compared with, again: keys of a spec. `spec`
    is the run's."""
    settings = _requested(record, spec)
    family = families().get(record["family"])
    reads_prompts = not record.get("world") and not (family and family.class_labels)
    table = {
        name: value
        for name, value in settings.items()
        if (name not in OPTIONS or value != DEFAULTS[name])
        and (name != "threads" or value)
        and (name != "prompts" or (value and reads_prompts))
    }
    table |= {"models": [record["model"]], "methods": [record["stack"]]}
    table |= {"references": list(spec.get("references", ()))}
    if reads_prompts and spec.get("training_prompts"):
        table["training_prompts"] = spec["training_prompts"]
    foreign = (
        "depends_on" not in record
        or record["status"] not in MEASURED
        or record["depends_on"].get("sources")
    )
    own = [text for text in spec.get("own_models", ()) if text.startswith(f"{record['model']}=")]
    loras = loras_of(record["model"], spec.get("models", ()), spec.get("lora", ()))
    table |= {"own_models": own, "lora": loras}
    return table | {"plugins": list(spec.get("plugins", ())) if foreign else []}


def _requested(record: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record's run as they were requested, less those that are not on record.

    Records of older versions have sample counts as made, where a video stands for four samples.
    """
    if "settings" in record:
        return dict(record["settings"])
    made, each = record["run"], PER_VIDEO if record["sampling"].get("frames", 1) > 1 else 1
    settings: dict[str, Any] = {}
    for name in DEFAULTS:
        if name in ("num_samples", "batch_size") and name in made:
            settings[name] = spec.get(name, each * made[name])
        elif name in spec or name in made:
            settings[name] = spec.get(name, made.get(name))
    return settings


def command_of(record: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """The command that makes a cell, and the baseline it is compared with, again in a folder of its
    own; `spec` is the run's."""
    table = asked_of(record, spec)
    words = [
        "python",
        "run_bench.py",
        "run",
        "--models",
        *table["models"],
        "--methods",
        *table["methods"],
    ]
    for name in DEFAULTS:
        words += [f"--{name.replace('_', '-')}", str(table[name])] if name in table else []
    if "training_prompts" in table:
        words += ["--training-prompts", table["training_prompts"]]
    for flag, name in (
        ("--reference", "references"), ("--plugin", "plugins"), ("--model", "own_models"),
        ("--lora", "lora"),
    ):  # fmt: skip
        words += [word for text in table[name] for word in (flag, text)]
    return shlex.join([*words, "--out", f"runs/again-{record['key']}"])


def elsewhere(
    record: Mapping[str, Any], spec: Mapping[str, Any], here: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What is not as it was: a row for each field of the environment that times or samples depend
    on, and for the margins of verdicts, which a command cannot tell. Of several environments that a
    record was timed in, the one that is most like this."""
    rows: list[dict[str, Any]] = []
    if (margins := spec.get("margins")) is not None and dict(margins) != dict(MARGINS):
        rows.append({"field": "margins", "record": dict(margins), "here": dict(MARGINS)})
    there = min(environments_of(record), key=lambda e: len(differing(e, here)))
    return rows + between(there, here)


def between(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each field, and each part of one, in which two environments differ."""
    rows = []
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
