"""`prepare`: train or calibrate what the methods of a stack need, for each model, once. Torch is
imported only when something is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.artifact import OWN, create, find, quoted
from ditbench.method.half_done import half_done
from ditbench.method.needs import below_of, needs_of, resolve, training_of
from ditbench.method.preparing import PLAINLY, Preparing
from ditbench.method.stack import Stack
from ditbench.models.family import family_named, family_of, grid_of
from ditbench.models.loading import load
from ditbench.models.prompts import check_apart
from ditbench.models.requests import call_arguments, takes_prompts, training_requests
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.models.table import Model
from ditbench.quiet import quiet

if TYPE_CHECKING:
    from ditbench.method.artifact import Need
    from ditbench.method.attached import Attached

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
    training: int = 0
    """Which training of the recipe: each has requests and random numbers of its own."""
    prepared_for: Callable[[Any], Path | None] = lambda method: None
    """Folder of what another method was prepared with, were it in this one's place; None where it
    was not."""
    prompts: str = ""
    """File or set that full-size text models are asked for; "": the captions that come along."""
    tell: Tell
    """Hears of progress: rows with at least `done` and `of`; `note`, a line to be shown."""
    half_done: Path | None = None
    """Folder for what a killed preparation is to go on from; None: nothing is kept."""

    @property
    def device(self) -> Any:
        """torch's device of the transformer: where tensors that meet its own have to be."""
        return self.pipe.transformer.device

    def at_once(self, num: int, pixels: int = 1 << 22) -> int:
        """How many of `num` requests to sample together: as many as `pixels` hold, frames counted,
        one at least. Of the models whose artefacts come along it is `num`."""
        m = self.model
        return max(1, min(num, pixels // (m.height * m.width * m.frames)))

    @cached_property
    def calls(self) -> int:
        """Sampler steps of one generation, as many as the scheduler makes of those asked for:
        Heun's 2 N - 1 of N. Tables have so many rows."""
        import torch

        def stop(*_: Any) -> None:
            raise _Enough

        # a student below brings its own sampler
        with (
            self.below.attached(self.pipe, self.prepared),
            torch.no_grad(),
        ):
            hook = self.pipe.transformer.register_forward_pre_hook(stop)
            try:
                self.pipe(**self.draw(0, 1))
            except _Enough:
                return len(self.pipe.scheduler.timesteps)
            finally:
                hook.remove()
        raise AssertionError("a generation ran without its transformer")

    @cached_property
    def grid(self) -> tuple[int, int, int] | None:
        """Of image tokens, where it would have to be read from a GPU."""
        by_value = family_of(self.pipe.transformer).grid_by_value
        return grid_of(self.pipe, self.sampling) if by_value else None

    @contextmanager
    def attached(self, trainee: Any) -> Iterator[Attached]:
        """The pipeline with the stack below and `trainee` on top, as `Stack.attached` gives it."""
        with Stack((*self.below.methods, trainee)).attached(self.pipe, self.prepared) as attached:
            attached.grid = self.grid
            yield attached

    def generate(self, trainee: Any, num: int, seed: int = 0) -> Attached:
        """Sample `num` training requests with `trainee` on top, and return what was attached, to be
        asked what it counted."""
        import torch

        with self.attached(trainee) as attached, torch.no_grad():
            attached.start(self.sampling.steps, num)
            self.pipe(
                **self.draw(seed, num) | {"output_type": family_named(self.model.family).raw_output}
            )
        return attached

    def draw(self, seed: int, num: int, **other: Any) -> dict[str, Any]:
        """Call arguments of `num` training requests; `other` sampling than the stack below wants,
        if any."""
        return call_arguments(
            self.model,
            replace(self.sampling, **other),
            training_requests(self.model, num, seed, self.training, self.prompts),
        )


def unprepared(method: Any) -> ValueError:
    """What a method raises that is attached without the artefact it needs."""
    stack = quoted(str(Stack((method,))))
    return ValueError(
        f"{method.name} has not been prepared for this model; python run_bench.py prepare {stack} "
        "does it"
    )


class _Enough(Exception):
    """The scheduler has set its steps, which is all that was wanted."""


def prepare(
    models: Sequence[Model], stack: Stack, weights: str, tell: Callable[[Need], Tell],
    root: Path = OWN,
    plugins: Sequence[str] = (),
    preparing: Preparing = PLAINLY,
) -> list[dict[str, Any]]:  # fmt: skip
    """Make what is missing, and return a row per method and model. What is there already is left
    alone. `plugins`: files that were loaded for the stack, for the commands in messages.

    Raises ValueError when no method of the stack needs anything, for a stack that could not be run
    with the model, when something cannot be made or was half made with another device or dtype, for
    weights and prompts that cannot be found, for prompts that some of the models would not read,
    and for training prompts that are evaluated on.
    """
    if preparing.prompts:
        check_apart(preparing.prompts)
        if deaf := [model.name for model in models if not takes_prompts(model)]:
            raise ValueError(
                f"prompts: {', '.join(deaf)} would not read them: a world's models are asked for "
                "its scenes, DiT for classes"
            )
    rows = []
    for model in models:
        wanted = [m for m in stack.methods if m.recipe() is not None]
        if not wanted:
            raise ValueError(f"nothing in {stack} has to be prepared")
        if problems := stack.problems(model.family):
            raise ValueError(problems[0])
        for method in wanted:
            below = below_of(stack, method)
            # Looked up one by one: the key of what is on top holds the content of what is below.
            stacked = Stack((*below.methods, method))
            if preparing.autocast and not method.autocasts:
                raise ValueError(
                    f"{method.name} cannot be prepared with autocast; leave --autocast out"
                )
            need = needs_of(model, stacked, weights, plugins, root, preparing)[-1]
            artifact, made = find(need, root), False
            if artifact is None:
                if need.hopeless:
                    raise ValueError(need.sentence)
                prepared = {
                    name: a.folder
                    for name, a in resolve(model, below, weights, plugins, root, preparing).items()
                }
                above = partial(_prepared_for, model, below, weights, plugins, root, preparing)
                pipe = load(model, weights=weights, device=preparing.device, dtype=preparing.dtype)
                # a GPU's method may be prepared without one
                if refusal := stacked.refusal(pipe, ("cuda", "sm")):
                    raise ValueError(f"{model.name}: {refusal}")
                made_with: dict[str, Any] = {
                    "device": preparing.device, "dtype": preparing.dtype
                }  # fmt: skip
                if preparing.autocast:
                    made_with["autocast"] = "bfloat16"
                with (
                    half_done(root / need.folder, preparing.arithmetic) as own,
                    preparing.context(),
                ):
                    room = Workroom(
                        pipe=pipe, model=model, below=below,
                        sampling=below.adapt(sampling_of(model)),
                        tell=own.listening(tell(need)), prepared_for=above, half_done=own.folder,
                        training=training_of(method), prepared=prepared, prompts=preparing.prompts,
                    )  # fmt: skip
                    if own.commands:
                        made_with |= {"interrupted": own.commands}
                    maker = _maker(method, room, made_with)
                    # another command may have ended since it was looked for
                    if (artifact := find(need, root)) is None:
                        artifact, made = create(need, maker, root, own.earlier), True
            rows.append({
                "model": model.name, "method": need.method, "below": need.below,
                "steps": need.steps, "made": made,
                "seconds": artifact.manifest["seconds"], "folder": str(artifact.folder),
                **artifact.manifest["notes"],
            })  # fmt: skip
    return rows


def _prepared_for(
    model: Model, below: Stack, weights: str, plugins: Sequence[str], root: Path,
    preparing: Preparing, method: Any,
) -> Path | None:  # fmt: skip
    stack = Stack((*below.methods, method))
    artifact = find(needs_of(model, stack, weights, plugins, root, preparing)[-1], root)
    return artifact.folder if artifact else None


def _maker(
    method: Any, room: Workroom, made_with: dict[str, Any]
) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        with quiet():
            return {**method.prepare(folder, room), **made_with}

    return make
