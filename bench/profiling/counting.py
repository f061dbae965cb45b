"""FLOPs of a pipeline's real sampler loop: measured while it runs, or counted on the meta device at
any size without weights.

FLOPs = 2 MACs. Attention and every guidance pass are included; text encoder and decoder are counted
separately. What is counted and how is in `flop_counter.py`. Imports torch only inside
functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ditbench.models.family import family_named, no_single_step
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.profiling.flops import DECODER, ELSEWHERE, TEXT, Flops, alike_every_call

if TYPE_CHECKING:
    from ditbench.method.stack import Stack
    from ditbench.models.table import Model


def count_generation(
    pipe: Any, call: Callable[[], object], *, alike: bool = False, allow_uncounted: bool = False
) -> Flops:
    """FLOPs of `call()`, which runs the pipeline once, by what is really executed: skipped and
    partial work counts as it is.

    `alike`: calls of the transformer that are seen to do what an earlier one did
    (`repeated_calls.kind_of_call`) are counted and not run, so that the samples are worth nothing. Never
    time it: counting is slow. Raises ValueError when the transformer ran a product that has no
    formula, unless allowed.
    """
    from ditbench.profiling.flop_counter import Counter
    from ditbench.profiling.repeated_calls import run_once

    counter = Counter()
    once = run_once(pipe, counter) if alike else nullcontext()
    with counter.following(pipe), once, counter.counting():
        call()
    total: Flops = counter.result()
    if not allow_uncounted:
        refuse_uncounted(total)
    return total


def refuse_uncounted(total: Flops) -> None:
    """Raise ValueError when the transformer ran a product that has no formula."""
    if mine := {
        name: n
        for name, n in total.uncounted.items()
        if not name.startswith((TEXT, DECODER, ELSEWHERE))
    }:
        products = ", ".join(f"{name} ({n} times)" for name, n in mine.items())
        raise ValueError(f"the FLOPs are not complete: no formula is known for {products}")


def count_model(
    model: Model,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
    text_tokens: int | None = None,
    stack: Stack | None = None,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """FLOPs of one sample of `model` under `stack`, as a row: the real pipeline runs its real
    sampler loop on the meta device.

    None means the model's own size. `frames` matters to video and `text_tokens` to text models
    only. `changes` overrides sizes of the architecture, as `part.key`. Calls that are seen to be
    alike are run once and counted each time. `status` is `ok`, `refused` where the pipeline refuses
    the stack or the meta device cannot tell (it has no values), or `failed` where the method or the
    pipeline broke down; the last two have no numbers, and the reason as their note. `work` is what
    conventions need that go by sub-layers. Raises ValueError for a size the model cannot make.
    """
    from ditbench.method.stack import Stack

    stack = stack or Stack()
    sizes = {
        "height": height,
        "width": width,
        "frames": frames if model.frames > 1 else None,
        "steps": steps,
    }
    sizes["text_tokens"] = text_tokens if model.text_tokens else None
    sampling = replace(sampling_of(model), **{k: v for k, v in sizes.items() if v is not None})
    # a size it cannot make is the caller's mistake, not the stack's
    _resized(model, sampling, changes)
    try:
        sampling = stack.adapt(sampling)
        total, work = _count_on_meta(model, sampling, stack, changes)
    except _CannotSay as reason:
        return _uncounted(model, sampling, stack, "refused", str(reason))
    except Exception as error:  # of a method or of the pipeline: the other rows are still wanted
        return _uncounted(
            model, sampling, stack, "failed", f"{type(error).__name__}: {first_line(error)}"
        )
    row = _row(model, sampling, stack) | {
        "forwards": total.forwards,
        "passes": total.passes,
        "flops": total.flops,
    }
    row |= {
        f"macs_{kind}": getattr(total, f"{kind}_macs") for kind in ("linear", "attention", "conv")
    }
    row["macs_per_pass"] = total.flops // 2 // total.passes
    products = "; ".join(f"{name} x{n}" for name, n in total.uncounted.items())
    return row | {
        "not_counted": products or "text encoder, decoder",
        "status": "ok",
        "note": "",
        "work": work,
    }


_NUMBERS = (
    "forwards",
    "passes",
    "flops",
    "macs_linear",
    "macs_attention",
    "macs_conv",
    "macs_per_pass",
)


def count_table(
    models: Sequence[Model],
    stacks: Sequence[Stack],
    progress: Callable[[str, int, int], None] | None = None,
    **sizes: Any,
) -> list[dict[str, Any]]:
    """A row of `count_model` for every model and stack, in that order; `sizes` as there. `progress`
    is told which row is next, how many there are, and of how many.

    A size that one model cannot make is a refused row of that model; ValueError where no model can
    make it.
    """
    from ditbench.quiet import quiet

    rows: list[dict[str, Any]] = []
    errors: list[ValueError] = []
    with quiet():
        for model in models:
            for stack in stacks:
                if progress:
                    progress(f"{model.name} {stack}", len(rows), len(models) * len(stacks))
                counted = stack.instead(model)
                try:
                    row = count_model(model, stack=counted, **sizes)
                except ValueError as error:
                    errors.append(error)
                    row = _uncounted(model, sampling_of(model), counted, "refused", str(error))
                if counted != stack and not row["note"]:
                    row["note"] = f"in place of {stack}, which is prepared for tiny models only"
                rows.append(row)
    if errors and len(errors) == len(rows):
        raise errors[0]
    return rows


def _row(model: Model, sampling: Sampling, stack: Stack) -> dict[str, Any]:
    size = f"{sampling.height}x{sampling.width}" + (
        f"x{sampling.frames}" if sampling.frames > 1 else ""
    )
    row = {"model": model.name, "stack": str(stack), "size": size}
    return row | {"steps": sampling.steps, "text_tokens": sampling.text_tokens}


def _uncounted(
    model: Model, sampling: Sampling, stack: Stack, status: str, why: str
) -> dict[str, Any]:
    numbers = dict.fromkeys(_NUMBERS)
    return (
        _row(model, sampling, stack)
        | numbers
        | {"not_counted": "", "status": status, "note": why, "work": None}
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).strip().splitlines()), "")


class _CannotSay(Exception):
    """A stack whose FLOPs the meta device cannot tell, and why."""


def _count_on_meta(
    model: Model, sampling: Sampling, stack: Stack, changes: dict[str, Any] | None
) -> tuple[Flops, dict[str, Any] | None]:
    """FLOPs, and what was computed: shares [T,L] and sizes; None of a stack that does not say."""
    import torch

    from ditbench.method.stack import Stack
    from ditbench.models.architecture import build
    from ditbench.models.sublayers import call_sizes, sublayers
    from ditbench.profiling.flop_counter import Counter
    from ditbench.profiling.repeated_calls import Calls, run_once

    grid, changes = _resized(model, sampling, changes)
    pipe = build(model, device="meta", parts=("transformer", "vae", "scheduler"), changes=changes)
    if hasattr(pipe.scheduler, "index_for_timestep"):
        # found by value, of which the meta device has none: sampling begins at the first
        pipe.scheduler.index_for_timestep = lambda timestep, schedule_timesteps=None: 0
    # launches are no FLOPs, and what decides on them needs a device to launch on
    stack = Stack(
        tuple(m for m in stack.methods if not (m.traits.needs and "launches" in m.traits.claims))
    )
    if reason := stack.refusal(pipe):
        raise _CannotSay(reason)
    for m in stack.methods:
        if m.recipe() is not None:
            raise _CannotSay(
                f"{m.name} has to be prepared, and what is prepared is not counted without weights: "
                "count it with knobs that need nothing, or in a run"
            )
    seen: list[Any] = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(call_sizes(m, args, kwargs, grid)), with_kwargs=True
    )
    counter = Counter()
    try:
        with torch.inference_mode(), stack.attached(pipe) as attached:
            attached.grid = grid
            attached.start(sampling.steps, 1)
            if sampling.steps == 1 and (reason := no_single_step(pipe)):
                own = [m.name for m in stack.methods if "scheduler" in m.traits.claims]
                raise _CannotSay(
                    "".join(f"without weights {name}'s sampler is not there, and " for name in own)
                    + reason
                )
            once = run_once(pipe, counter) if alike_every_call(stack) else nullcontext(Calls())
            with counter.following(pipe), once as calls, counter.counting():
                pipe(**_call_on_meta(model, sampling, pipe))
            parts = sublayers(pipe.transformer)
    except (NotImplementedError, RuntimeError) as error:
        if not stack.methods:
            raise
        why = f"it goes by values, of which the meta device has none, or does what has no meta kernel ({first_line(error)})"
        raise _CannotSay(f"{why}: count it in a run") from error
    total: Flops = counter.result()
    refuse_uncounted(total)
    names = [s.name for s in parts]
    whole = (
        {"sublayers": names, "keep": [[1.0] * len(names)] * sampling.steps} if calls.same else None
    )
    if (shares := attached.schedule() or whole) is None:
        return total, None
    first, (_, _, text) = parts[0], seen[0]
    sizes = {
        "family": model.family, "width": first.linears[0].in_features,
        "heads": pipe.transformer.config.num_attention_heads,
        "image": math.prod(grid), "text": text, "passes": total.passes // sampling.steps,
    }  # fmt: skip
    return total, shares | sizes


def _resized(
    model: Model, sampling: Sampling, changes: dict[str, Any] | None
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """(Frames, rows, columns) of image tokens; and `changes` with those the family makes for a
    size.

    ValueError for a size that cannot be made.
    """
    from ditbench.models.architecture import describe

    family, parts = family_named(model.family), describe(model, changes)
    grid = family.grid(model.name, parts, sampling)
    return grid, {**(changes or {}), **family.resize(model.name, parts, sampling)}


def _call_on_meta(model: Model, sampling: Sampling, pipe: Any) -> dict[str, Any]:
    """Call arguments of one sample with a prompt that is encoded already."""
    import torch

    def empty(*shape: int) -> Any:
        return torch.empty(1, *shape, device="meta")

    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        **family_named(model.family).meta_call(sampling, pipe.transformer.config, empty),
    }
