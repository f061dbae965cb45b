"""What a cell's samples depend on besides the settings of its run, by content: it is in the cell's
key, and in its record. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ditbench.method.artifact import Need
from ditbench.method.needs import inputs_of, others_of, prepared_sha256, sources_of
from ditbench.method.plugins import module_sha256
from ditbench.method.stack import Stack
from ditbench.models.family import REGISTRY as FAMILIES
from ditbench.models.prompts import find_prompts
from ditbench.models.requests import takes_prompts
from ditbench.models.sampling import sampling_of
from ditbench.models.table import REGISTRY as MODELS
from ditbench.models.table import Model
from ditbench.models.weights import weights_sha256
from ditbench.models.workload import sampler_of
from ditbench.records.files import file_sha256


def depends_on(
    model: Model, stack: Stack, needs: Sequence[Need], *, weights: str, prompts: str
) -> dict[str, Any]:
    """`sampling` as the stack adapts it; sha256 of `weights` (with configurations and tokenizers),
    of the file of `prompts`, and by method of `inputs` (files that knobs name) and `sources` (files
    of plug-ins); `prepared`, key and sha256 of each artefact; `others`, sha256 of the weights of
    models that methods run besides.

    Weights of the hub are left out: they may not have been fetched yet. A record has their hash,
    and is not taken up under another. ValueError for a file that cannot be read, a damaged
    artefact, and weights that cannot be found. Low-rank updates are in `weights`, or where that is
    left out in `lora`.
    """
    sampling = asdict(stack.adapt(sampling_of(model))) | sampler_of(model)
    parts_of_key: dict[str, Any] = {"sampling": sampling}
    if weights != "hub" or model.folder:
        parts_of_key["weights"] = weights_sha256(model, weights)
    elif model.lora:
        parts_of_key["lora"] = [lora.content for lora in model.lora]
    if takes_prompts(model):
        parts_of_key["prompts"] = file_sha256(find_prompts(prompts))
    parts = {"inputs": inputs_of(stack), "sources": sources_of(stack) | _declarations_of(model)}
    parts["others"] = others_of(model, stack, weights)
    parts["prepared"] = {need.method: [need.key, prepared_sha256(need)] for need in needs}
    return parts_of_key | {name: content for name, content in parts.items() if content}


def _declarations_of(model: Model) -> dict[str, str]:
    """sha256 of the files that a model and its family are declared in, of those that do not come
    with ditbench."""
    modules = {
        f"model {model.name}": MODELS.module_of(model.name),
        f"family {model.family}": FAMILIES.module_of(model.family),
    }
    return {name: sha256 for name, module in modules.items() if (sha256 := module_sha256(module))}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two cells of the same model and stack depend on and is not the same, by name."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
