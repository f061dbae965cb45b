"""Which artefacts the methods of a stack need, in the order they attach. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.artifact import Artifact, Need, find
from ditbench.method.plugins import source_sha256
from ditbench.method.preparing import PLAINLY, Preparing
from ditbench.method.stack import Stack
from ditbench.method.traits import EXACT
from ditbench.models.own import own_flags
from ditbench.models.prompts import find_training_prompts
from ditbench.models.requests import takes_prompts
from ditbench.models.sampling import sampling_of
from ditbench.models.weights import weights_sha256
from ditbench.models.workload import flags_of, sampler_of
from ditbench.records.files import file_sha256

if TYPE_CHECKING:
    from ditbench.models.table import Model

SETS_STEPS = frozenset({"num-steps", "scheduler"})
"""Claims of methods that decide which steps there are to prepare for."""


def needs_of(
    model: Model, stack: Stack, weights: str, plugins: Sequence[str] = (),
    root: Path | None = None, preparing: Preparing = PLAINLY,
) -> list[Need]:  # fmt: skip
    """What the methods of a stack must have been prepared for, in the order they attach; `plugins`
    are files the command names, `root` a folder to look for artefacts in before the others.

    ValueError for weights, prompts, or a file a knob names, that cannot be read, and for a damaged
    artefact below.
    """
    flags: tuple[str, ...] = () if weights == "bundled" else ("--weights", weights)
    flags += own_flags(model) + flags_of(model)
    if not (reads := takes_prompts(model)):
        preparing = replace(preparing, prompts="")
    flags += preparing.flags
    flags += tuple(word for plugin in plugins for word in ("--plugin", plugin))
    needs = []
    for m in stack.methods:
        if (recipe := m.recipe()) is not None:
            if training := training_of(m):  # the first has the key it had before there were several
                recipe = recipe | {"training": training}
            below = below_of(stack, m)
            sampling = below.adapt(sampling_of(model))
            content = {
                "prepared": {
                    n.method: prepared_sha256(n, root)
                    for n in needs_of(model, below, weights, (), root, preparing)
                },
                "inputs": inputs_of(below),
                "sources": sources_of(Stack((*below.methods, m))),
            }
            if others := others_of(model, Stack((*below.methods, m)), weights):
                content["others"] = others
            if reads:
                content["prompts"] = _sha256(find_training_prompts(preparing.prompts))
            hopeless = m.unpreparable(sampling) or m.unpreparable_for(model) or ""
            needs.append(
                Need(
                    method=m.name, recipe=recipe, model=model.name,
                    weights_sha256=weights_sha256(model, weights),
                    steps=m.adapt(sampling).steps, below=str(below),
                    sampling=asdict(sampling) | sampler_of(model),
                    content=content,
                    stack=str(Stack((*below.methods, m))), flags=flags, hopeless=hopeless,
                )
            )  # fmt: skip
    return needs


def prepared_sha256(need: Need, root: Path | None = None) -> str:
    """The hash of an artefact's files, "" when it is absent; ValueError when it is damaged."""
    artifact = find(need, root)
    return artifact.sha256 if artifact else ""


def inputs_of(stack: Stack) -> dict[str, list[str]]:
    """sha256 of the files that knobs name, by method; ValueError when one cannot be read."""
    return {
        m.name: [_sha256(path) for path in paths] for m in stack.methods if (paths := m.inputs())
    }


def sources_of(stack: Stack) -> dict[str, str]:
    """sha256 of the files that methods are declared in, of those that do not come with ditbench."""
    return {m.name: sha256 for m in stack.methods if (sha256 := source_sha256(m))}


def others_of(model: Model, stack: Stack, weights: str) -> dict[str, str]:
    """sha256 of the weights of the models that methods run beside `model`, by name; weights of the
    hub are left out, as the model's own are. ValueError for weights that cannot be found."""
    others = {o.name: o for m in stack.methods for o in m.other_models(model)}
    if weights == "hub":
        return {}
    return {name: weights_sha256(other, weights) for name, other in others.items()}


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def below_of(stack: Stack, method: Any) -> Stack:
    """What a method of a stack is prepared on top of: the methods that attach before it, and those
    that set the sampler's steps whenever they attach; or nothing where it was tuned alone.

    Without those that claim what the method is `blind_to`, and those that change samples by rounding
    alone.
    """
    if getattr(method, "tuned", "stack") == "alone":
        return Stack()
    place = stack.methods.index(method)
    before = [
        m
        for i, m in enumerate(stack.methods)
        if i < place or (i > place and m.traits.claims & SETS_STEPS)
    ]
    return Stack(
        tuple(
            m
            for m in before
            if not m.traits.claims & getattr(method, "blind_to", frozenset())
            and not (m.traits.claims and m.traits.claims <= EXACT)
        )
    )


def training_of(method: Any) -> int:
    """Which training of its recipe a method uses: its knob `training`, 0 for the first and for
    methods without the knob."""
    return getattr(method, "training", 0)


def resolve(
    model: Model, stack: Stack, weights: str, plugins: Sequence[str] = (),
    root: Path | None = None, preparing: Preparing = PLAINLY,
) -> dict[str, Artifact]:  # fmt: skip
    """The artefacts of a stack's methods by name; ValueError with the command to run when one is
    absent."""
    artifacts = {}
    for need in needs_of(model, stack, weights, plugins, root, preparing):
        if (artifact := find(need, root)) is None:
            raise ValueError(need.sentence)
        artifacts[need.method] = artifact
    return artifacts
