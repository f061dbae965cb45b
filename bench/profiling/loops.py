"""The sampler loop of stacks timed in turn in one process, beside the FLOPs they execute (`speed`).

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
    """`ok`, `inert` where its methods did nothing, `refused` where the stack cannot be used here,
    `failed` where it broke down."""
    reason: str = ""
    """Of another status; or what is to be known of a stack that was timed."""

    @property
    def timed(self) -> bool:
        """Whether it was, in every round."""
        return self.status in ("ok", "inert") and bool(self.seconds)

    def remark(self, text: str) -> None:
        """Add to the reason what is not there yet."""
        if text not in self.reason:
            self.reason = f"{self.reason}; {text}" if self.reason else text

    def ends(self, status: str, reason: str) -> None:
        """It is timed no further, and what was is not shown."""
        self.status, self.reason, self.flops = status, reason, 0
        self.seconds.clear()


def time_loops(
    model: Model, stacks: Sequence[Stack], *, device: str, dtype: str, batch: int, rounds: int,
    depth: int | None = None, plugins: Sequence[str] = (), tell: Tell = lambda *_: None,
) -> list[Loop]:  # fmt: skip
    """The stacks timed `rounds` times, each in turn. In the first round a loop that counts FLOPs and
    one that warms up go before; in a stack that compiles, as many as it compiles in, in every round.

    Methods that would have to be prepared for a full-size model are replaced by what stands for them
    (`Stack.instead`). `depth`: blocks of each list of a full-size model. What goes wrong under a stack
    is its `reason`, as is, of all, why the model cannot be built. A stack that leaves something behind
    fails, and the others go on with a pipeline built anew.
    """
    import torch

    loops = [Loop(stack.instead(model)) for stack in stacks]
    for loop, stack in zip(loops, stacks, strict=True):
        if loop.stack != stack:
            loop.reason = f"in place of {stack}, which is prepared for smaller models only"
    try:
        bench = _Bench(model, device, dtype, batch, depth, tuple(plugins))
    except Exception as error:
        for loop in loops:
            loop.ends(*_wrong(error))
        return loops
    with torch.inference_mode():
        for loop in loops:
            _check(bench, loop)
        for i in range(rounds):
            for n, loop in enumerate(loops):
                if loop.status not in ("ok", "inert"):
                    continue
                tell(f"{model.name} {loop.stack}", i * len(loops) + n, rounds * len(loops))
                try:
                    _round(bench, loop, first=not i)
                except Exception as error:
                    loop.ends("failed", f"{type(error).__name__}: {first_line(error)}")
                if names := bench.left():
                    loop.ends(
                        "failed", f"taken off, it left a changed {', '.join(names[:3])} behind"
                    )
                    bench.build()
    return loops


def weights_of(model: Model) -> str:
    """Full-size models have random weights here, the others their own."""
    return "random" if model.group == "full" else "bundled"


def _wrong(error: Exception) -> tuple[str, str]:
    """Status and reason of what was not begun."""
    if isinstance(error, ValueError):
        return "refused", first_line(error)
    return "failed", f"{type(error).__name__}: {first_line(error)}"


class _Bench:
    """A pipeline, and what every loop on it is called with."""

    def __init__(
        self, model: Model, device: str, dtype: str, batch: int, depth: int | None,
        plugins: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.model, self.device, self.dtype = model, device, dtype
        self.batch, self.depth, self.plugins = batch, depth, plugins
        self.build()

    def build(self) -> None:
        """A pipeline that no stack was attached to."""
        import torch

        from ditbench.method.traces import Unchanged
        from ditbench.models.encoderless import build_encoderless
        from ditbench.models.loading import load

        weights, model = weights_of(self.model), self.model
        self.pipe: Any = None  # before there are two
        self._unchanged: Any = None
        with torch.inference_mode(False):  # or torch does not count what is written to weights
            if weights == "random":
                self.pipe = build_encoderless(model, self.device, self.dtype, self.depth)
            else:
                self.pipe = load(model, weights=weights, device=self.device, dtype=self.dtype)
        with torch.inference_mode():  # as loops are run
            self._unchanged = Unchanged(self.pipe)

    def left(self) -> list[str]:
        """What a stack left behind that was taken off again."""
        names: list[str] = self._unchanged.left()
        return names

    def prepared(self, stack: Stack) -> Mapping[str, Path]:
        """Folders of what the stack needs; ValueError where it is not there."""
        from ditbench.method.needs import resolve

        artifacts = resolve(self.model, stack, weights_of(self.model), self.plugins)
        return {name: artifact.folder for name, artifact in artifacts.items()}


def _check(bench: _Bench, loop: Loop) -> None:
    """Refuse a stack that cannot be used here, or not beside others."""
    stack, model = loop.stack, bench.model
    try:
        reason = next(iter(stack.problems(model.family)), None) or stack.refusal(bench.pipe)
        lasting = [m.name for m in stack.methods if not m.traits.reversible]
        if lasting and not reason:
            reason = f"{lasting[0]}: cannot be taken off again, for which run has other processes"
        sampling = stack.adapt(sampling_of(model))
        unfit = ((m.name, m.unfit(sampling)) for m in stack.methods)
        reason = reason or next((f"{name}: {why}" for name, why in unfit if why), None)
        if reason:
            raise ValueError(reason)
        bench.prepared(stack)
    except Exception as error:
        loop.ends(*_wrong(error))


def _round(bench: _Bench, loop: Loop, *, first: bool) -> None:
    pipe, stack, model = bench.pipe, loop.stack, bench.model
    sampling = stack.adapt(sampling_of(model))
    arguments = _arguments(model, pipe, sampling, bench.batch)
    with stack.attached(pipe, bench.prepared(stack)) as attached, _not_decoding(pipe) as decoded:

        def once() -> float:
            return _seconds(pipe, attached, sampling, arguments, bench.batch, bench.device)

        if first:
            alike = alike_every_call(stack)
            with attached.inspected():
                loop.flops = count_generation(pipe, once, alike=alike).flops
        for _ in range(max([int(first), *(m.first_calls for m in stack.compiling)])):
            once()
        loop.seconds.append(once())
        if idle := stack.idle(sampling_of(model), attached):
            loop.status = "inert"
            loop.remark(f"{' and '.join(idle)} changed nothing and counted no event")
        if not decoded.finite:
            if weights_of(model) != "random":
                raise ValueError("the latents are not finite numbers")
            loop.remark("latents of random weights that are not finite numbers")


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


class _Decoded:
    """Whether the latents that came to the decoder were finite numbers."""

    finite = True


@contextmanager
def _not_decoding(pipe: Any) -> Iterator[_Decoded]:
    """Black pixels in place of what the decoder would make."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    decoded = _Decoded()

    def decode(latents: Any, return_dict: bool = True, **_: Any) -> Any:
        decoded.finite = decoded.finite and bool(latents.isfinite().all())
        blank = latents.new_zeros(len(latents), 3, *[1] * (latents.ndim - 4), 8, 8)
        return DecoderOutput(sample=blank) if return_dict else (blank,)

    pipe.vae.decode = decode
    try:
        yield decoded
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
        base = None if other is None else by_name.get(str(other.instead(model)))
        compared = base is not None and base.timed and base is not loop and base is not loops[0]
        rows.append(
            {
                "model": model.name, "stack": str(loop.stack), "gflop": loop.flops / 1e9 or None,
                "loop_s": min(loop.seconds) if loop.timed else None,
                "rounds_s": list(loop.seconds),
                **_compared(loop, loops[0]),
                "against": str(base.stack) if base is not None and compared else None,
                **{
                    f"{name}_against": value
                    for name, value in _compared(loop, base if compared else None).items()
                    if name in ("speedup", "realised")
                },
                "status": loop.status, "reason": loop.reason,
            }
        )  # fmt: skip
    return rows


def _compared(loop: Loop, base: Loop | None) -> dict[str, float | None]:
    names = ("flops_ratio", "speedup", "lowest", "highest", "realised")
    if base is None or not (base.timed and loop.timed):
        return dict.fromkeys(names)
    ratios = [one / mine for one, mine in zip(base.seconds, loop.seconds, strict=True)]
    speedup = statistics.median(ratios)
    fewer = base.flops / loop.flops if loop.flops else None
    ends = (min(ratios), max(ratios)) if len(ratios) > 1 else (None, None)
    values = (fewer, speedup, *ends, speedup / fewer if fewer else None)
    return dict(zip(names, values, strict=True))


def least_seconds(
    model: Model, stacks: int, batch: int, rounds: int, depth: int | None, rate: float
) -> float:
    """Seconds that products of the un-accelerated model take at `rate` FLOPs a second in as many
    loops as `time_loops` makes."""
    from ditbench.models.encoderless import changes_of

    changes = changes_of(model, depth) if weights_of(model) == "random" else None
    flops = count_model(model, steps=sampling_of(model).steps, changes=changes)["flops"] or 0
    return float(flops * batch * stacks * (rounds + 2) / rate)
