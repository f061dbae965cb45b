"""`prepare`: train or calibrate what the methods of a stack need, for each model, once. Torch is imported only when something is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.artifact import OWN, below_of, create, find, needs_of
from ditbench.models import Model, load
from ditbench.stack import Stack
from ditbench.workload import Sampling, call_arguments, sampling_of, training_requests

if TYPE_CHECKING:
    from ditbench.artifact import Need
    from ditbench.stack import Attached

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Workroom:
    """What a method is prepared with."""

    pipe: Any
    """The model's pipeline, with nothing attached."""
    model: Model
    below: Stack
    """What is to be attached first: the method is prepared on top of it."""
    sampling: Sampling
    """As the stack below adapts it."""
    prepared: Mapping[str, Path] = field(default_factory=dict)
    """Folders of what the methods below were prepared with, by method."""
    tell: Tell
    """Hears of progress: rows with at least `done` and `of`."""

    def attached(self, trainee: Any) -> Any:
        """The pipeline with the stack below and `trainee` on top, as `Stack.attached` gives it."""
        return Stack((*self.below.methods, trainee)).attached(self.pipe, self.prepared)

    def generate(self, trainee: Any, num: int, seed: int = 0) -> Attached:
        """Sample `num` training requests with `trainee` on top, and return what was attached, to be asked what it counted."""
        import torch

        with self.attached(trainee) as attached, torch.no_grad():
            attached.start(self.sampling.steps, num)
            self.pipe(**self.draw(seed, num) | {"output_type": "np" if self.model.family == "dit" else "latent"})
        return attached  # type: ignore[no-any-return]

    def draw(self, seed: int, num: int, **other: Any) -> dict[str, Any]:
        """Call arguments of `num` training requests; `other` sampling than the stack below wants, if any."""
        return call_arguments(self.model, replace(self.sampling, **other), training_requests(self.model, num, seed))


def prepare(
    models: Sequence[Model], stack: Stack, weights: str, tell: Callable[[Need], Tell], root: Path = OWN
) -> list[dict[str, Any]]:
    """Make what is missing, and return a row per method and model. What is there already is left alone.

    Raises ValueError when no method of the stack needs anything, and for weights that cannot be found.
    """
    rows = []
    for model in models:
        needs = needs_of(model, stack, weights)
        if not needs:
            raise ValueError(f"nothing in {stack} has to be prepared")
        prepared: dict[str, Path] = {}
        for need in needs:
            artifact, made = find(need), False
            if artifact is None:
                method = next(m for m in stack.methods if m.name == need.method)
                below = below_of(stack, method)
                pipe = load(model, weights=weights, device="cpu", dtype="float32")
                room = Workroom(
                    pipe=pipe, model=model, below=below, sampling=below.adapt(sampling_of(model)), tell=tell(need),
                    prepared={m.name: prepared[m.name] for m in below.methods if m.name in prepared},
                )  # fmt: skip
                artifact, made = create(need, lambda folder, m=method, r=room: m.prepare(folder, r), root), True  # type: ignore[misc]
            prepared[need.method] = artifact.folder
            rows.append({
                "model": model.name, "method": need.method, "below": need.below, "steps": need.steps, "made": made,
                "seconds": artifact.manifest["seconds"], "folder": str(artifact.folder), **artifact.manifest["notes"],
            })  # fmt: skip
    return rows
