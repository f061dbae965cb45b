"""The sampler loop of stacks timed in turn in one process, beside the FLOPs they execute (`speed`):
what share of the FLOPs saved arrives as seconds.

Text is encoded beforehand (or is random, for full-size models) and nothing is decoded: a loop is all
from the first call of the transformer to the decoder.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditbench.method.stack import Stack
from ditbench.models.family import family_of, grid_of
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.profiling.counting import count_generation, count_model, first_line
from ditbench.profiling.flops import alike_every_call
from ditbench.profiling.latency import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from ditbench.method.attached import Attached
    from ditbench.models.table import Model

SEED = 0
"""Of the requests, and of the noise."""
Tell = Callable[[str, int, int], None]
"""f(what is done next, steps done, of how many)."""


@dataclass
class Loop:
    """What was measured of one stack."""

    stack: Stack
    flops: int = 0
    """Executed by one loop."""
    seconds: list[float] = field(default_factory=list)
    """Of each round."""
    status: str = "ok"
    """`ok`, `refused` where the stack cannot be used here, `failed` where it broke down."""
    reason: str = ""


def time_loops(
    model: Model, stacks: Sequence[Stack], *, device: str, dtype: str, batch: int, rounds: int,
    depth: int | None = None, plugins: Sequence[str] = (), tell: Tell = lambda *_: None,
) -> list[Loop]:  # fmt: skip
    """The stacks timed `rounds` times, each in turn; a loop that counts FLOPs goes before, and in a
    stack that compiles as many loops as it compiles in, at the beginning of each round.

    `depth`: blocks of each list of a full-size model. What goes wrong under a stack is its `reason`,
    as is, of all, why the model cannot be built.
    """
    import torch

    from ditbench.models.encoderless import build_encoderless
    from ditbench.models.loading import load

    loops = [Loop(stack) for stack in stacks]
    try:
        if weights_of(model) == "random":
            pipe = build_encoderless(model, device, dtype, depth)
        else:
            pipe = load(model, weights=weights_of(model), device=device, dtype=dtype)
    except ValueError as error:
        for loop in loops:
            loop.status, loop.reason = "refused", first_line(error)
        return loops
    with torch.inference_mode():
        for loop in loops:
            with _noted(loop):
                _check(model, loop, pipe)
        for i in range(rounds):
            for n, loop in enumerate(loops):
                if loop.status != "ok":
                    continue
                tell(f"{model.name} {loop.stack}", i * len(loops) + n, rounds * len(loops))
                with _noted(loop):
                    _round(model, pipe, loop, device, batch, plugins, first=not i)
    return loops


def weights_of(model: Model) -> str:
    """Full-size models have random weights here, the others their own."""
    return "random" if model.group == "full" else "bundled"


@contextmanager
def _noted(loop: Loop) -> Iterator[None]:
    """What goes wrong inside ends this stack and no other."""
    try:
        yield
    except ValueError as error:
        loop.status, loop.reason = "refused", first_line(error)
    except Exception as error:
        loop.status, loop.reason = "failed", f"{type(error).__name__}: {first_line(error)}"


def _check(model: Model, loop: Loop, pipe: Any) -> None:
    problems = loop.stack.problems(model.family)
    if reason := next(iter(problems), None) or loop.stack.refusal(pipe):
        raise ValueError(reason)


def _round(
    model: Model, pipe: Any, loop: Loop, device: str, batch: int, plugins: Sequence[str], *,
    first: bool,
) -> None:  # fmt: skip
    from ditbench.method.needs import resolve

    prepared: Mapping[str, Path] = {
        name: artifact.folder
        for name, artifact in resolve(model, loop.stack, weights_of(model), plugins).items()
    }
    sampling = loop.stack.adapt(sampling_of(model))
    arguments = _arguments(model, pipe, sampling, batch)
    with loop.stack.attached(pipe, prepared) as attached, _not_decoding(pipe):

        def once() -> float:
            return _seconds(pipe, attached, sampling, arguments, batch, device)

        if first:
            alike = alike_every_call(loop.stack)
            with attached.inspected():
                loop.flops = count_generation(pipe, once, alike=alike).flops
        for _ in range(max((m.first_calls for m in loop.stack.compiling), default=0)):
            once()
        loop.seconds.append(once())


def _arguments(model: Model, pipe: Any, sampling: Sampling, batch: int) -> dict[str, Any]:
    from ditbench.models.encoderless import call_encoderless
    from ditbench.models.requests import call_arguments, make_requests

    if weights_of(model) == "random":
        return call_encoderless(model, pipe, sampling, batch)
    return call_arguments(model, sampling, make_requests(model, num=batch, seed=SEED))


def _seconds(
    pipe: Any, attached: Attached, sampling: Sampling, arguments: Mapping[str, Any], batch: int,
    device: str,
) -> float:  # fmt: skip
    """Of the loop of one call, with the same noise each time."""
    import torch

    if family_of(pipe.transformer).grid_by_value:
        attached.grid = grid_of(pipe, sampling)
    attached.start(sampling.steps, batch)
    clock = Clock(device)
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: clock.mark("begin"))
    decode = pipe.vae.decode

    def marked(latents: Any, *args: Any, **kwargs: Any) -> Any:
        clock.mark("end")
        return decode(latents, *args, **kwargs)

    pipe.vae.decode = marked
    try:
        noise = {"generator": [torch.Generator("cpu").manual_seed(SEED + i) for i in range(batch)]}
        clock.settle()
        pipe(**{**arguments, **noise, "output_type": "np"})
        clock.settle()
    finally:
        hook.remove()
        pipe.vae.decode = decode
    return clock.between("begin", "end")


@contextmanager
def _not_decoding(pipe: Any) -> Iterator[None]:
    """Black pixels in place of what the decoder would make."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    def decode(latents: Any, return_dict: bool = True, **_: Any) -> Any:
        blank = latents.new_zeros(len(latents), 3, *[1] * (latents.ndim - 4), 8, 8)
        return DecoderOutput(sample=blank) if return_dict else (blank,)

    pipe.vae.decode = decode
    try:
        yield
    finally:
        del pipe.vae.decode


def loop_rows(
    model: Model, loops: Sequence[Loop], against: Stack | None = None
) -> list[dict[str, Any]]:
    """A row for each stack. `speedup` is the median of the rounds' ratios to the un-accelerated model
    of the same round, which is the first of `loops`, `lowest` and `highest` their range; `realised`
    the speed-up by the ratio of FLOPs. The same is said of the stack `against`, or where that is None
    of what compiles in the stack, alone (`Stack.compiled_alone`), where it was timed."""
    by_name = {str(loop.stack): loop for loop in loops}
    rows = []
    for loop in loops:
        other = against or loop.stack.compiled_alone()
        base = by_name.get(str(other)) if other is not None else None
        compared = base is not None and base is not loop
        rows.append(
            {
                "model": model.name, "stack": str(loop.stack), "gflop": loop.flops / 1e9 or None,
                "loop_s": min(loop.seconds) if _whole(loop) else None,
                **_compared(loop, loops[0]),
                "against": str(other) if compared else None,
                **{
                    f"{name}_against": value
                    for name, value in _compared(loop, base if compared else None).items()
                    if name in ("speedup", "realised")
                },
                "status": loop.status, "reason": loop.reason,
            }
        )  # fmt: skip
    return rows


def _whole(loop: Loop | None) -> bool:
    return loop is not None and loop.status == "ok" and bool(loop.seconds)


def _compared(loop: Loop, base: Loop | None) -> dict[str, float | None]:
    names = ("flops_ratio", "speedup", "lowest", "highest", "realised")
    if base is None or not _whole(base) or not _whole(loop):
        return dict.fromkeys(names)
    ratios = [one / mine for one, mine in zip(base.seconds, loop.seconds, strict=True)]
    speedup = statistics.median(ratios)
    fewer = base.flops / loop.flops if loop.flops else None
    values = (fewer, speedup, min(ratios), max(ratios), speedup / fewer if fewer else None)
    return dict(zip(names, values, strict=True))


def least_seconds(
    model: Model, stacks: int, batch: int, rounds: int, depth: int | None, rate: float
) -> float:
    """Seconds that products of the un-accelerated model take at `rate` FLOPs a second in as many
    loops as `time_loops` makes."""
    from ditbench.models.encoderless import changes_of

    changes = changes_of(model, depth) if weights_of(model) == "random" else None
    flops = count_model(model, steps=sampling_of(model).steps, changes=changes)["flops"] or 0
    return float(flops * batch * stacks * (rounds + 1) / rate)
