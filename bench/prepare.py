"""`prepare`: train or calibrate what the methods of a stack need, for each model, once. Torch is imported only when something is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.artifact import OWN, create, find, needs_of
from ditbench.models import Model, load
from ditbench.stack import Stack
from ditbench.workload import Sampling, call_arguments, sampling_of, training_requests

if TYPE_CHECKING:
    from ditbench.artifact import Need

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
    tell: Tell
    """Hears of progress: rows with at least `done` and `of`."""

    def draw(self, seed: int, num: int) -> dict[str, Any]:
        """Call arguments of `num` training requests."""
        return call_arguments(self.model, self.sampling, training_requests(self.model, num, seed))


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
        for need in needs:
            artifact, made = find(need), False
            if artifact is None:
                method = next(m for m in stack.methods if m.name == need.method)
                below = Stack(stack.methods[: stack.methods.index(method)])
                pipe = load(model, weights=weights, device="cpu", dtype="float32")
                room = Workroom(
                    pipe=pipe, model=model, below=below, sampling=below.adapt(sampling_of(model)), tell=tell(need)
                )  # fmt: skip
                artifact, made = create(need, lambda folder, m=method, r=room: m.prepare(folder, r), root), True  # type: ignore[misc]
            rows.append({
                "model": model.name, "method": need.method, "below": need.below, "steps": need.steps, "made": made,
                "seconds": artifact.manifest["seconds"], "folder": str(artifact.folder), **artifact.manifest["notes"],
            })  # fmt: skip
    return rows
