"""A spec becomes cells, one per model and stack; a cell that cannot run is a cell with its reason.
No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ditbench.method.artifact import Need, find
from ditbench.method.dependencies import depends_on
from ditbench.method.needs import needs_of
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack
from ditbench.method.traits import FAMILY_NEEDS, lacking
from ditbench.models.family import family_named
from ditbench.models.own import register_own, with_lora
from ditbench.models.placement import encodes_once
from ditbench.models.prompts import load_prompts
from ditbench.models.requests import takes_prompts
from ditbench.models.sampling import Sampling, count_for, sampling_of
from ditbench.models.table import Model, select
from ditbench.models.weights import check_folder, locate
from ditbench.models.workload import with_workload
from ditbench.runner.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model under one stack."""

    model: Model
    stack: Stack
    spec: Spec
    refusal: str
    """Why it cannot run, empty when it can as far as is known without loading anything."""
    needs: tuple[Need, ...] = ()
    """What its methods must have been prepared for."""
    requested: str = ""
    """The stack that was asked for, as text."""
    note: str = ""
    """What runs in place of what was asked for, and why; empty where it is what was asked for."""
    depends: dict[str, Any] = field(default_factory=dict)
    """What its samples depend on besides the settings of the run, by content (see `ditbench.method.dependencies`); empty
    when it is refused."""

    @property
    def key(self) -> str:
        """Folder name: readable, and different whenever anything that changes the samples or their
        timing differs."""
        identity = {
            "model": self.model.name,
            "stack": str(self.stack),
            **self.own.of_key(),
            "depends": self.depends,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", str(self.stack).lower()).strip("-")[:60]
        return f"{self.model.name}--{slug}-{digest}"

    @property
    def own(self) -> Spec:
        """The spec with the batch size that was chosen for the model, where none was requested."""
        return self.spec.of_model(self.model.name)

    @property
    def sampling(self) -> Sampling:
        """The model's sampling as the stack adapts it."""
        return self.stack.adapt(sampling_of(self.model))

    @property
    def num_samples(self) -> int:
        """Samples of this cell."""
        return count_for(self.model, self.spec.num_samples)

    @property
    def batch_size(self) -> int:
        """Samples a pipeline call."""
        return min(self.num_samples, count_for(self.model, self.own.batch_size))

    @property
    def encodes_once(self) -> bool:
        """Whether its text is encoded before the pipeline is called for samples."""
        return encodes_once(self.spec.text_encoding, self.model)

    @property
    def wants_device(self) -> bool:
        """Whether nothing keeps it from running but that this machine lacks the device."""
        reasons = (
            missing_device(self.spec.device),
            too_slow(self.model, self.spec.device),
        )
        return bool(self.refusal) and self.refusal in reasons

    @property
    def label(self) -> str:
        """`model stack`, for people."""
        return f"{self.model.name} {self.stack}"


def plan(spec: Spec) -> list[Cell]:
    """Every cell of a run in table order, the baseline of each model first.

    Raises ValueError for an unknown model, method or knob, for a stack that does not parse, and for
    prompts that are not available or that a model would not read. A stack that parses but cannot run is
    a cell with a refusal.
    """
    _load_plugins(spec)
    rows = {model.name: model for text in spec.models for model in select(text)}
    models = [_as_requested(model, spec) for model in rows.values()]
    if spec.prompts:
        load_prompts(spec.prompts)
        if not_reading := [model.name for model in models if not takes_prompts(model)]:
            raise ValueError(
                f"prompts: {', '.join(not_reading)} would not read them: a world's models are asked for "
                "its scenes, DiT for classes"
            )
    stacks = with_baselines([Stack.parse(text) for text in spec.methods])
    cells = [_cell(model, stack, spec) for model in models for stack in stacks]
    return list({cell.key: cell for cell in cells}.values())


def with_baselines(stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks and before them what they are compared with: `none`, and of those that are compiled
    what compiles them, alone."""
    alone = (stack.compiled_alone() for stack in stacks)
    return list(dict.fromkeys([Stack(), *filter(None, alone), *stacks]))


def rebuild(spec: Spec, model: str, stack: str) -> Cell:
    """A cell from its names, for the process that runs it."""
    _load_plugins(spec)
    return _cell(_as_requested(select(model)[0], spec), Stack.parse(stack), spec)


def _as_requested(model: Model, spec: Spec) -> Model:
    return with_lora(with_workload(model, spec.requested()), spec.lora)


def _prepared(model: Model, stack: Stack, spec: Spec) -> tuple[Stack, str]:
    """The stack with what runs in place of methods that have not been prepared for the model, where
    they have such a thing; and a note of it."""
    sentences = []
    for i, m in enumerate(stack.methods):
        if m.recipe() is None or (other := m.instead(model)) is None:
            continue
        needs = needs_of(model, stack, spec.weights, spec.plugins, preparing=spec.preparing)
        need = next(need for need in needs if need.method == m.name)
        if find(need) is None:
            stack = Stack((*stack.methods[:i], other, *stack.methods[i + 1 :]))
            sentences.append(f"{Stack((other,))} runs in its place: {need.sentence}")
    return stack, "; ".join(sentences)


def _cell(model: Model, stack: Stack, spec: Spec) -> Cell:
    refusal, note, requested = _refusal(model, stack, spec), "", str(stack)
    if not refusal:
        try:
            stack, note = _prepared(model, stack, spec)
        except ValueError as error:
            refusal = str(error)
    needs: tuple[Need, ...] = ()
    depends: dict[str, Any] = {}
    if not refusal:
        try:
            needs = tuple(
                needs_of(model, stack, spec.weights, spec.plugins, preparing=spec.preparing)
            )
            refusal = next((need.sentence for need in needs if find(need) is None), "")
            refusal = refusal or _unfit(model, stack)
            depends = (
                {}
                if refusal
                else depends_on(model, stack, needs, weights=spec.weights, prompts=spec.prompts)
            )
        except ValueError as error:
            refusal = str(error)
    # its key is the same where it can run
    refusal = refusal or _machine_refusal(model, stack, spec)
    return Cell(
        model=model, stack=stack, spec=spec, refusal=refusal, needs=needs, note=note,
        requested=requested, depends=depends,
    )  # fmt: skip


def _unfit(model: Model, stack: Stack) -> str:
    """Why a method cannot work with the stack's sampling, "" when all can. Another sampler than the
    model's own may make more steps than it is asked for, and is not judged."""
    if model.scheduler:
        return ""
    sampling = stack.adapt(sampling_of(model))
    reasons = ((m.name, m.unfit(sampling)) for m in stack.methods)
    return next((f"{name}: {reason}" for name, reason in reasons if reason), "")


def _load_plugins(spec: Spec) -> None:
    for plugin in spec.plugins:
        load_plugin(plugin)
    for text in spec.own_models:
        register_own(text)


def _refusal(model: Model, stack: Stack, spec: Spec) -> str:
    """What is known without loading the model, and holds on every machine."""
    if problems := stack.problems(model.family):
        return "; ".join(problems)
    for method in stack.methods:
        for need in sorted(n for n in method.traits.needs if n.startswith(FAMILY_NEEDS)):
            if lack := lacking(need, model.family, spec.device):
                return f"{method.name}: {lack}"
    try:
        if spec.weights == "hub" and not model.hub and not model.folder:
            raise ValueError(f"{model.name} is not on the hub; it is bundled")
        if spec.weights not in ("hub", "random") or (model.folder and spec.weights == "hub"):
            check_folder(locate(model, spec.weights), family_named(model.family).pipeline)
        stack.adapt(sampling_of(model))
    except ValueError as error:
        return str(error)
    return stack.kept_away(spec.offload)


def _machine_refusal(model: Model, stack: Stack, spec: Spec) -> str:
    """What this machine lacks: packages, the device, or what the methods need of it."""
    if reason := too_slow(model, spec.device):
        return reason
    absent = missing_device(spec.device)
    for method in stack.methods:
        for need in sorted(method.traits.needs):
            if absent and need.startswith(("cuda", "sm>=")):
                continue
            if lack := lacking(need, model.family, spec.device):
                return f"{method.name}: {lack}"
    return absent


def too_slow(model: Model, device: str) -> str:
    """Why a published full-size model is not begun on a CPU, "" where it may be begun."""
    if model.group == "full" and model.hub and device == "cpu":
        return "full-size models run on a GPU only: give --device cuda"
    return ""


def missing_device(device: str) -> str:
    """Why torch cannot use a device here, "" when it can. Imports torch for a GPU only."""
    if device == "cpu":
        return ""
    import torch

    if not torch.cuda.is_available():
        return f"this machine has no GPU that torch can use, and the device is {device}"
    count = torch.cuda.device_count()
    return (
        ""
        if int(device.partition(":")[2] or 0) < count
        else f"this machine has {count} GPUs, and no {device}"
    )


def describe(
    cells: list[Cell], needs: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The plan as rows for a table; `needs` adds columns by the key of a cell, and to `reason` their
    `note`. What only wants the device that this machine lacks (`lacks`) is planned."""
    needs = needs or {}
    refusals = ["" if cell.wants_device else cell.refusal for cell in cells]
    return [
        {
            "model": cell.model.name,
            "stack": str(cell.stack),
            "samples": cell.num_samples,
            "batch": cell.batch_size,
            "steps": None if refusal else cell.sampling.steps,
            "rounds": cell.spec.rounds,
            "status": "refused" if refusal else "planned",
            **{name: value for name, value in needs.get(cell.key, {}).items() if name != "note"},
            "reason": _joined(refusal or cell.note, needs.get(cell.key, {}).get("note", "")),
            "lacks": cell.refusal if cell.wants_device else "",
            "key": cell.key,
        }
        for cell, refusal in zip(cells, refusals, strict=True)
    ]


def _joined(reason: str, note: str) -> str:
    """Both, or what is in both once."""
    return reason if reason and reason in note else "; ".join(filter(None, [reason, note]))
