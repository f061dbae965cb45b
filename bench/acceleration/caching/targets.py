"""What a cache of whole passes keeps of a computed one and reuses at the next: what the blocks added,
or the prediction said as noise, clean sample or velocity, or what the sampler makes of it
(AutoTarget, arXiv:2610.03577).

Said otherwise, a prediction that is reused at another state and noise level is another prediction:
with y the model's state, D the sampler's denoised sample and x0, e, v the clean sample, the noise and
the velocity that a prediction at y stands for, keeping x0 holds the sample still, keeping D - y holds
the way to it still.

B rows of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ditbench.acceleration.caching.passes import reroute_passes, reuse_residual

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.blocks import RunBlock, Streams

Target = Literal["residual", "epsilon", "x0", "v", "denoised", "denoised_residual"]
"""`residual`: what all blocks (or, of `easycache`, the transformer) add to their input. `v` is the
flow's velocity of a flow model and the v-prediction of a model of noise. `denoised` is what the
sampler takes for the clean sample, and differs from `x0` where it weighs it with the state, as LCM's
does."""
TargetOrAuto = Literal["residual", "epsilon", "x0", "v", "denoised", "denoised_residual", "auto"]
"""`auto`: the one that `prepare` chose."""
SAME = 1e-3
"""Of the least risk: targets whose samples are no further apart make the same."""
CHOSEN, MARGIN, SAMPLES = "target.json", 1.10, 16
"""File of the choice; how many times the least risk the next one has to be for it to be chosen (the
authors'); training requests that risks are measured on (ours: they take a few)."""


def why_no_target(pipeline: Any, target: TargetOrAuto) -> str | None:
    """Why a pipeline's predictions cannot be said otherwise, in one sentence; None where they
    can."""
    from ditbench.acceleration.distillation.noise_process import process_of

    if target == "residual":
        return None
    try:
        process_of(pipeline.scheduler)
    except ValueError:
        kind = pipeline.scheduler.config.get("prediction_type")
        return f"target={target!r} is known of models of noise and of flows, not of {kind}"
    return None


@dataclass(frozen=True)
class Codec:
    """Predictions at one state and noise level, said as a target and back."""

    state: Tensor
    """y, [B,...]: the model's own state, as the transformer is given it."""
    level: float
    """s of the flow's state (`noise_process`)."""
    noise: bool
    """Whether the model predicts noise, else the flow's velocity."""
    skip: float = 0.0
    """The sampler's D = out x0 + skip y."""
    out: float = 1.0

    @property
    def _shares(self) -> tuple[float, float]:
        """a and b of y = a x0 + b e."""
        s = self.level
        n = (s**2 + (1 - s) ** 2) ** 0.5 if self.noise else 1.0
        return (1 - s) / n, s / n

    def said(self, prediction: Tensor, target: Target) -> Tensor:
        """What is kept of a prediction, float32."""
        y, (a, b), p = self.state.float(), self._shares, prediction.float()
        if target == ("epsilon" if self.noise else "v"):
            return p
        clean = (y - b * p) / a if self.noise else y - b * p
        if target == "x0":
            return clean
        noise = p if self.noise else clean + p
        if target == "epsilon":
            return noise
        if target == "v":
            return a * noise - b * clean
        denoised = self.out * clean + self.skip * y
        return denoised if target == "denoised" else denoised - y

    def prediction(self, kept: Tensor, target: Target) -> Tensor:
        """The prediction at this state that stands for what was kept, float32."""
        y, (a, b) = self.state.float(), self._shares
        if target == ("epsilon" if self.noise else "v"):
            return kept
        if target == "epsilon":
            return (kept - y) / (1 - b)
        if target == "v":
            return b * y + a * kept
        clean = kept
        if target in ("denoised", "denoised_residual"):
            denoised = kept if target == "denoised" else kept + y
            clean = (denoised - self.skip * y) / self.out
        return (y - a * clean) / b if self.noise else (y - clean) / b


def codec_at(scheduler: Any, step: int, state: Tensor) -> Codec:
    """The codec of a sampler step, counted from 0."""
    from ditbench.acceleration.distillation.noise_process import level_of_step, process_of

    boundary = getattr(scheduler, "get_scalings_for_boundary_condition_discrete", None)
    skip, out = map(float, boundary(scheduler.timesteps[step])) if boundary else (0.0, 1.0)
    level = level_of_step(scheduler, step)
    return Codec(state, level, process_of(scheduler).noise, skip, out)


class Keeper:
    """What was kept of each guidance pass, and predictions made of it."""

    def __init__(self, pipeline: Any, at: Attachment, target: Target) -> None:
        self.pipeline, self.at, self.target = pipeline, at, target
        self.kept: dict[int, Tensor] = {}
        at.keeps(self.kept)

    def keep(self, hidden: Tensor, output: Tensor) -> None:
        """Keep what the transformer gave for `hidden`. The channels of a learned variance, which the
        state does not have, are kept as they are."""
        mine, rest = _apart(hidden, output)
        said = self._codec(hidden).said(mine, self.target) if _has_values(hidden) else mine
        self.kept[self.at.now.branch] = _joined(said, rest, hidden)

    def made(self, hidden: Tensor, dtype: Any) -> Tensor:
        """The output that stands for what was kept at `hidden`."""
        mine, rest = _apart(hidden, self.kept[self.at.now.branch])
        made = self._codec(hidden).prediction(mine, self.target) if _has_values(hidden) else mine
        return _joined(made, rest, hidden).to(dtype)

    def _codec(self, hidden: Tensor) -> Codec:
        now = self.at.now
        # guidance passes that share a batch have one level
        return codec_at(self.pipeline.scheduler, now.step, hidden)


def reuse(
    pipeline: Any, at: Attachment, skips: Callable[[RunBlock, Streams], bool], target: Target
) -> None:
    """Where `skips(run, streams)`, the last computed pass of the generation stands for this one by
    what `target` names; a pass that has not been computed yet is, and is asked about all the same.
    Counts `passes_reused` and `passes_computed`."""
    if target == "residual":
        reuse_residual(at, skips)
        return
    keeper = Keeper(pipeline, at, target)
    reused: dict[int, bool] = {}
    at.on_start(reused.clear)

    def replace(run: RunBlock, streams: Streams) -> Streams | None:
        branch = at.now.branch
        reused[branch] = skips(run, streams) and branch in keeper.kept
        return streams if reused[branch] else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        result = run(*args, **kwargs)
        if not reused[at.now.branch]:
            keeper.keep(hidden, result[0])
            return result
        made = keeper.made(hidden, result[0].dtype)
        return (made, *result[1:]) if isinstance(result, tuple) else type(result)(sample=made)

    reroute_passes(at, replace, lambda streams, output: None)
    run = at.patch(pipeline.transformer, "forward", forward)


def chosen(folder: Path | None) -> Target:
    """The target that `choose` wrote; ValueError, naming the file, where there is none."""
    path = (folder or Path()) / CHOSEN
    try:
        target: Target = json.loads(path.read_text(encoding="utf-8"))["target"]
        if target not in get_args(Target):
            raise ValueError(f"{target!r} is no target")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no target ({error})") from None
    return target


def choose(folder: Path, room: Workroom, of: Callable[[Target], Any]) -> dict[str, Any]:
    """Choose the target of the method `of(target)` on the stack below, write it, and return notes.

    The risk of a target is the mean squared error of decoded pixels against the stack below without
    the cache, on the same training requests; the least is decided on where the next that makes other
    samples is at least `MARGIN` times as large (the authors' rule). Undecided, it is `residual`, or
    the least where that of `residual` is `MARGIN` times as large (ours). Between two steps along a
    straight line, Euler's on a flow or DDIM's, `epsilon`, `x0` and `v` are the same.
    """
    import torch

    from ditbench.models.differentiable import paint

    num, steps = room.at_once(SAMPLES), room.sampling.steps

    def pixels(attached: Any) -> Tensor:
        attached.grid = room.grid
        attached.start(steps, num)
        with torch.no_grad():
            return paint(room.pipe, room.draw(0, num))

    with room.below.attached(room.pipe, room.prepared) as attached:
        plain = pixels(attached)
        weighs = hasattr(room.pipe.scheduler, "get_scalings_for_boundary_condition_discrete")
    risks: dict[Target, float] = {}
    made: dict[Target, Tensor] = {}
    # where the sampler takes x0 for the clean sample, denoised is the same
    candidates = [target for target in get_args(Target) if weighs or target != "denoised"]
    for number, candidate in enumerate(candidates):
        with room.attached(of(candidate)) as attached:
            made[candidate] = pixels(attached)
            risks[candidate] = float((made[candidate] - plain).square().mean())
        room.tell({"done": number + 1, "of": len(candidates)})
    first, *others = sorted(risks, key=lambda name: risks[name])
    different = [
        name
        for name in others
        if float((made[name] - made[first]).square().mean()) > SAME * risks[first]
    ]
    decided = bool(different) and risks[different[0]] >= MARGIN * risks[first]
    better = risks["residual"] >= MARGIN * risks[first] and risks["residual"] > 0
    target: Target = first if better else "residual"
    document = {"target": target, "decided": decided, "risks": risks}
    (folder / CHOSEN).write_text(json.dumps(document) + "\n", encoding="utf-8")
    risks_text = ", ".join(f"{name} {risk:.3g}" for name, risk in risks.items())
    return {"target": target, "decided": decided, "risks": risks_text, "samples": num}


def _has_values(x: Tensor) -> bool:
    """False on torch's meta device and on the simulated one."""
    return x.device.type not in ("meta", "gpu")


def _axis(hidden: Tensor) -> int:
    """Of the channels: hidden states are [B,C,...] or [B,N,C]."""
    return 1 if hidden.dim() > 3 else 2


def _apart(hidden: Tensor, output: Tensor) -> tuple[Tensor, Tensor | None]:
    axis = _axis(hidden)
    own = hidden.shape[axis]
    if output.shape[axis] == own:
        return output, None
    return output.narrow(axis, 0, own), output.narrow(axis, own, output.shape[axis] - own)


def _joined(own: Tensor, rest: Tensor | None, hidden: Tensor) -> Tensor:
    import torch

    return own if rest is None else torch.cat([own, rest.to(own.dtype)], _axis(hidden))
