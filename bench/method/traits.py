"""The facts about a method that decide where it may run and with what. Never imports torch by
itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ditbench.suggest import suggest


class Stage(IntEnum):
    """When a method attaches. Lower stages attach first and detach last."""

    WEIGHTS = 10
    """Replaces or merges parameters: distillation, LoRA, pruning."""
    PRECISION = 20
    """Changes how parameters are stored or multiplied: quantisation."""
    OPERATOR = 30
    """Changes one operation inside a block: sparse attention, token merging."""
    SCHEDULE = 40
    """Decides which steps, blocks or tokens run at all: caching, skipping."""
    MODEL = 50
    """Decides which of several models runs at a step: stands round all that changes one of them."""
    COMPILE = 90
    """Sees what the others have replaced and rerouted, and compiles what is left below."""


CLAIMS: dict[str, str] = {
    "weights": "replaces the transformer's parameters by others of the same meaning, as a distilled student does",
    "linear-precision": "decides the number format linear layers are stored and multiplied in",
    "num-steps": "decides how many sampler steps are taken",
    "guidance": "decides the guidance scale, or whether there is a second guidance pass",
    "scheduler": "replaces the sampler",
    "block-schedule": "decides which blocks, sub-layers or tokens are computed at a step",
    "model-schedule": "decides which of several models is computed at a step",
    "attention-operator": "replaces the attention operation itself",
    "attended-tokens": "makes keys and values of other tokens than a sub-layer's own, merged ones say",
    "token-rows": "asks attention for the outputs of some tokens alone",
    "compile": "compiles the transformer, whole or in regions",
    "modulation": "decides how blocks come by the scale, shift and gate of their norms",
    "launches": "decides how the host launches what the transformer computes",
}
"""The parts of a pipeline a method can own alone. Two methods mix when their claims are
disjoint."""
EXACT = frozenset({"modulation", "compile", "launches"})
"""What a method may claim and change samples by rounding alone: nothing is prepared anew on top of
one that claims nothing else."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The facts about a method that decide where it may run and with what."""

    family: str
    """What it is for the reader of a table: `cache`, `quantisation`, `control`, `distillation`,
    `sparsity`..."""
    stage: Stage
    claims: frozenset[str]
    needs: frozenset[str]
    """`cuda`, `sm>=89`, `package:NAME`, `package:NAME>=2.1`, `model:FAMILY` (`|` between several),
    `guidance-pass` (the unconditional pass can be left out)."""
    conflicts: frozenset[str]
    """Methods known not to mix although their claims are disjoint, by name."""
    reversible: bool
    """False: the pipeline must be loaded again after it."""
    decides_per_batch: bool
    """True: one decision is taken for the whole batch, so that a sample depends on its
    companions."""
    paper: str
    cost_by_sample: bool = False
    """True: how much it computes depends on the sample, so that one sample's FLOPs are not the
    mean's."""
    role: str = ""
    """"control": the un-accelerated model at less compute, which combinations of methods are
    compared with at the values of its `dial`; "fixed-schedule": that of the method that its
    knob `of` names; else ""."""


ROLES = ("", "control", "fixed-schedule")

NEED = re.compile(r"cuda|sm>=\d+|package:.+|model:.+|guidance-pass")
FAMILY_NEEDS = ("model:", "guidance-pass")
"""How needs begin that the model's family meets or not, on whatever machine."""


def declared(
    name: str,
    *,
    stage: Any,
    claims: Iterable[str],
    needs: Iterable[str],
    conflicts: Iterable[str],
    **more: Any,
) -> Traits:
    """The traits a method declares; ValueError that names the method for a fact that is none."""
    if not isinstance(stage, Stage):
        raise ValueError(
            f"method {name}: stage={stage!r} is none of "
            f"{', '.join(f'Stage.{s.name}' for s in Stage)}"
        )
    sets: dict[str, Any] = {}
    for what, given in (("claims", claims), ("needs", needs), ("conflicts", conflicts)):
        if isinstance(given, str):
            raise ValueError(
                f"method {name}: {what} is a set, {{{given!r}}}, and not the text {given!r}"
            )
        sets[what] = frozenset(given)
    for claim in sets["claims"] - CLAIMS.keys():
        raise ValueError(
            f"method {name} claims {claim!r}, which is no part of a pipeline; "
            f"{suggest(claim, CLAIMS)}"
        )
    for need in sets["needs"]:
        if not NEED.fullmatch(need):
            raise ValueError(
                f"method {name} needs {need!r}, which is not something that can be checked"
            )
    if more.get("role"):
        if more["role"] not in ROLES:
            raise ValueError(
                f"method {name}: role={more['role']!r} is none of {', '.join(map(repr, ROLES))}"
            )
        if more["role"] == "control" and more["family"] != "control":
            raise ValueError(f"method {name} is a control, so its family is 'control'")
    return Traits(stage=stage, **sets, **more)


def unmet(need: str, pipeline: Any) -> str | None:
    """What a loaded pipeline lacks of one need, in words; None when it is met."""
    from ditbench.models.family import family_of

    transformer = pipeline.transformer
    return lacking(
        need,
        family_of(transformer).name if need.startswith(FAMILY_NEEDS) else "",
        str(transformer.device),
    )


def lacking(need: str, family: str, device: str) -> str | None:
    """What a model of that family on that device lacks of one need, in words; None when it is met.
    Torch only for `sm>=` on a GPU."""
    kind, _, rest = need.partition(":")
    if kind == "package":
        from importlib.metadata import PackageNotFoundError, version

        from packaging.requirements import Requirement

        wanted = Requirement(rest)
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            return f"needs the package {rest}, which is not installed"
        return (
            None
            if wanted.specifier.contains(installed, prereleases=True)
            else f"needs {rest}, but {wanted.name} {installed} is installed"
        )
    if kind == "model":
        return (
            None
            if family in rest.split("|")
            else f"works on {rest.replace('|', ' and ')}, not on {family}"
        )
    if need == "guidance-pass":
        from ditbench.models.family import family_named

        known = family_named(family)
        return (
            f"needs a guidance pass to leave out, and {known.title}'s guidance is embedded in its one"
            if known.guidance == "embedded"
            else None
        )
    match = re.fullmatch(r"sm>=(\d+)", need)
    if need != "cuda" and not match:
        raise ValueError(f"a method needs {need!r}, which is not something that can be checked")
    if not device.startswith("cuda"):
        return f"needs a CUDA device, but the model is on {device}"
    if match:
        import torch

        major, minor = torch.cuda.get_device_capability(device)
        if 10 * major + minor < int(match[1]):
            return f"needs compute capability {match[1]}, but has {major}{minor}"
    return None
