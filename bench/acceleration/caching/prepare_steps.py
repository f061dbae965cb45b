"""Prepares a fixed schedule: tries schedules on training requests by the latents they end at, or
measures how far the blocks' output moves. And the file that schedules are kept in.

T steps, N samples, D width of a token.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.acceleration.caching.between_steps import Between, compute_at
from ditbench.acceleration.caching.fixed_steps import (
    Steps,
    by_rule,
    count_of,
    text_of,
    written,
)
from ditbench.acceleration.caching.passes import reroute_passes
from ditbench.acceleration.caching.search_steps import FINALISTS, Trials, least_error, search
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.blocks import Streams
    from ditbench.models.sampling import Request

FILE, FORMAT = "steps.json", "ditbench steps 1"
REQUESTS, HELD_OUT = 16, 32
"""Training requests that schedules are tried on (arXiv:2609.39343: 8; with eight of ours one request
could decide), and others that decide between finalists (50)."""
GENERATION = 10
"""Requests of the generation that errors are measured in (CEM: about ten)."""


def write_steps(folder: Path, schedules: Sequence[Steps], steps: int) -> None:
    """Write the computed steps of each guidance pass, or of all alike, of T."""
    document = {"format": FORMAT, "steps": steps, "computed": [text_of(s) for s in schedules]}
    (folder / FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def read_steps(folder: Path) -> tuple[list[Steps], int]:
    """What `write_steps` wrote: schedules and T. ValueError, naming the file, for anything else."""
    path = folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        schedules = [written(text) for text in document["computed"]]
        if not schedules or None in schedules:
            raise ValueError("a schedule is no list of steps")
        return [chosen for chosen in schedules if chosen is not None], int(document["steps"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no schedule ({error})") from None


class _Finished(Exception):
    """Carries the latents of the last step out of the pipeline: nothing is decoded."""


class _Scheduled(Trainee):
    """Computes the steps it is set to, all at first, and stops where the decoder would begin."""

    def __init__(self, between: Between, order: int | None) -> None:
        self.between, self.order = between, order
        self.chosen: frozenset[int] | None = None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute all passes, and watch the sampler."""

        @functools.wraps(pipeline.scheduler.step)  # pipelines look at the signature
        def stepped(*args: Any, **kwargs: Any) -> Any:
            out = step(*args, **kwargs)
            if at.now.step == at.now.num_steps - 1:
                raise _Finished(out[0] if isinstance(out, tuple) else out.prev_sample)
            return out

        compute_at(
            pipeline, at, lambda step, branch: self.chosen is None or step in self.chosen,
            self.between, self.order,
        )  # fmt: skip
        step = at.patch(pipeline.scheduler, "step", stepped)


def prepare_steps(
    folder: Path,
    room: Workroom,
    *,
    search: str,
    computed: int | float,
    between: Between,
    order: int | None,
    trials: int,
) -> dict[str, Any]:
    """Search for a schedule by `search`, and write it; returns notes for the manifest."""
    steps = room.calls
    count = count_of(computed, steps)
    if search == "dp":
        chosen = least_error(measured_errors(room), count)
        notes: dict[str, Any] = {"samples": GENERATION, "steps": text_of(chosen)}
        room.tell({"done": 1, "of": 1})
    else:
        chosen, notes = _tried(folder, room, search, count, between, order, trials)
    write_steps(folder, [chosen], steps)
    return notes


def _tried(
    folder: Path, room: Workroom, how: str, count: int, between: Between, order: int | None,
    most: int,
) -> tuple[Steps, dict[str, Any]]:  # fmt: skip
    """The schedule that is best on the held-out requests, of the finalists of a search and the two
    schedules it starts from; and what is to be noted."""
    import torch

    from ditbench.models.requests import training_requests

    steps, rng = room.calls, np.random.default_rng(room.training)
    starts = [by_rule(rule, count, steps) for rule in ("geometric", "uniform")]
    scheduled = _Scheduled(between, order)
    of = most + 1
    if not room.model.world:
        looks = most * REQUESTS + (FINALISTS + 2) * HELD_OUT
        note = f"{room.model.name}: as long as {looks} samplings of one request with {count} of {steps} steps computed"
        room.tell({"done": 0, "of": of, "note": note})
    with room.attached(scheduled) as attached, torch.no_grad():

        def loss_on(seed: int, num: int) -> Callable[[Steps], float]:
            requests = training_requests(room.model, num, seed, room.training, room.prompts)
            scheduled.chosen = None
            dense = _latents(room, attached, requests)

            def loss(chosen: Steps) -> float:
                scheduled.chosen = frozenset(chosen)
                return decibels(_latents(room, attached, requests), dense)

            return loss

        measure = loss_on(0, REQUESTS)

        def tried(chosen: Steps) -> float:
            room.tell({"done": min(len(trials.losses), most), "of": of})
            return measure(chosen)

        trials = Trials(tried, most)
        ends = search(trials, how, starts, steps, rng)
        held_out = loss_on(1, HELD_OUT)
        losses = {chosen: held_out(chosen) for chosen in dict.fromkeys((*ends, *starts))}
    best = min(losses, key=losses.__getitem__)
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["iteration", "steps", "loss"])
        writer.writeheader()
        for i, (chosen, loss) in enumerate(trials.losses.items()):
            writer.writerow({"iteration": i, "steps": text_of(chosen), "loss": 10 ** (loss / 10)})
    room.tell({"done": of, "of": of})
    return best, {
        "steps": text_of(best), "samples": REQUESTS, "held_out": HELD_OUT,
        "loss": "mean squared difference of the final latents, dB, mean over requests",
        "loss_tried": round(trials.losses[best], 2),
        "loss_held_out": round(losses[best], 2),
        "loss_held_out_least_tried": round(losses[ends[0]], 2),
        **{
            f"loss_held_out_{rule}": round(losses[start], 2)
            for rule, start in zip(("geometric", "uniform"), starts, strict=True)
        },
    }  # fmt: skip


def decibels(latents: Tensor, dense: Tensor) -> float:
    """10 log10 of the mean squared difference of each sample [N,...], the mean over samples: minus
    their peak signal-to-noise ratio, but for a constant."""
    each = (latents.double() - dense.double()).square().flatten(1).mean(1)
    return float(10 * each.clamp(min=1e-20).log10().mean())


def _latents(room: Workroom, attached: Any, requests: Sequence[Request]) -> Tensor:
    """The latents that the sampler ends at, [N,...] on the host."""
    import torch

    from ditbench.models.family import family_named
    from ditbench.models.requests import batches, call_arguments

    parts = []
    for batch in batches(requests, room.at_once(len(requests))):
        attached.start(room.sampling.steps, len(batch))
        arguments = call_arguments(room.model, room.sampling, batch)
        try:
            room.pipe(**arguments, output_type=family_named(room.model.family).raw_output)
        except _Finished as finished:
            parts.append(finished.args[0].cpu())
    return torch.cat(parts)


class _Watched(Trainee):
    """Computes everything, and keeps the blocks' output of every step, the mean over tokens."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[Tensor]] = {}
        """By guidance pass: [B,D] for each step."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Watch all passes."""

        def observe(_streams: Streams, output: Streams) -> None:
            self.outputs.setdefault(at.now.branch, []).append(output[0].float().mean(1).cpu())

        reroute_passes(at, lambda run, streams: None, observe)


def measured_errors(room: Workroom) -> NDArray[np.float64]:
    """[T,T]: at n, t the cosine distance between the output of the last block (mean over tokens) at
    step t and at n steps before, the mean over samples and guidance passes of an un-accelerated
    generation; 0 where t < n (CEM, arXiv:2512.23258)."""
    import torch

    watched, steps = _Watched(), room.calls
    room.generate(watched, room.at_once(GENERATION))
    error = np.zeros((steps, steps))
    rows = torch.cat([torch.stack(outputs) for outputs in watched.outputs.values()], 1)
    unit = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # [T,B,D]
    for n in range(1, steps):
        cosine = (unit[n:] * unit[:-n]).sum(-1).mean(1)
        error[n, n:] = 1 - cosine.double().numpy()
    return error
