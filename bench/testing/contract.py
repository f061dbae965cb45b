"""The contract every method keeps, clause by clause; for our methods and for strangers'.

`check_method("fora(interval=2)", tiny("flux"))` tries one on an untrained pipeline of `KINDS`;
`ditbench.testing.trained.check_models` on trained ones.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditbench.method.attached import Attached
from ditbench.method.knobs import build
from ditbench.method.stack import Stack
from ditbench.method.traces import (
    changed_weights,
    difference,
    settings_of_process,
    trace_of,
    weights_of,
)
from ditbench.models.sublayers import sublayers
from ditbench.profiling import counting
from ditbench.profiling.flops import alike_every_call
from ditbench.testing import captured
from ditbench.testing.dials import turns
from ditbench.testing.kept import left_alive
from ditbench.testing.subjects import KINDS, Subject, tiny

__all__ = ["KINDS", "Check", "Subject", "check_method", "tiny"]

TOLERANCE = 1e-3
"""Largest relative difference (of norms) between a sample in a batch of two and alone: other
kernels round otherwise."""
SHAKEN = 3.0
"""A sample may differ so many times as much as it does where the last bits of the transformer's input
are changed: a method that rounds enlarges them, for a value that rounds to the next number differs
by a whole unit."""
LAST_BITS = 2e-7
"""Relative size of such a change: between one and two units of float32's last place."""

OFF = "knobs at off change nothing"
DIAL = "its dial can be turned"


class Check(NamedTuple):
    """One clause of the contract."""

    name: str
    passed: bool
    note: str = ""


class _Stop(Exception):
    """Raised inside a block on purpose."""


def check_method(
    text: str, subject: Subject, artifacts: Mapping[str, Path] | None = None
) -> list[Check]:
    """Try a method, or a stack, on a pipeline, and say clause by clause whether it keeps the
    contract.

    `artifacts`: folders of what was prepared, by method; without them a method that has to be
    prepared is refused.

    A stack this pipeline refuses has the single clause `refused`, passed, with the reason. An error
    of the method fails the clause that was being tried, with the error and the line it came from as
    its note; clauses that need what it would have given are left out. ValueError for a text that is
    no stack; an error of the pipeline without any method comes through.
    """
    stack, pipeline, checks = Stack.parse(text), subject.pipeline, _Checks()
    with checks.naming("text and JSON read back as the same stack"):
        checks.append(_round_trip(stack))
    with checks.naming("it says what it can run on"):
        if reason := _refusal(stack, pipeline, artifacts or {}):
            checks.append(Check("refused", True, reason))
            return list(checks)
    # before the trace: a first run leaves diffusers' own traces
    plain = subject.generate(subject.sampling, [0])
    trace, weights = trace_of(pipeline) | settings_of_process(), weights_of(pipeline)
    with checks.naming("it runs"):
        _try_runs(checks, stack, subject, artifacts, plain)
    left = difference(trace, trace_of(pipeline) | settings_of_process())
    changed = changed_weights(weights, weights_of(pipeline))
    name = "detached, the samples are bit-identical"
    with checks.naming(name):
        detached = subject.generate(subject.sampling, [0])
        checks.append(
            Check(name, torch.equal(detached, plain), f"relative {_relative(detached, plain):.1e}")
        )
    with checks.naming(OFF):
        checks.append(_off(stack, subject))
    with checks.naming(DIAL):
        checks.append(Check(DIAL, *turns(stack, subject)))
    return [
        *checks,
        Check("detached, the weights are bit-identical", not changed, ", ".join(changed[:3])),
        Check("detached, nothing stays behind", not left, ", ".join(left[:3])),
    ]


class _Checks(list[Check]):
    """The clauses tried so far."""

    @contextmanager
    def naming(self, clause: str) -> Iterator[None]:
        """Fail `clause` by whatever error is raised inside, and go on."""
        try:
            yield
        except Exception as error:
            self.append(Check(clause, False, error_text(error)))


def error_text(error: Exception) -> str:
    """An error in a line, and the line of code outside libraries it came from."""
    text = next(iter(str(error).strip().splitlines()), "")
    said = (
        text
        if isinstance(error, ValueError) and text
        else f"{type(error).__name__}: {text}".rstrip(": ")
    )
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
    ]
    where = [f for f in frames if Path(f.filename).resolve() != Path(__file__).resolve()][-1:]
    return said + "".join(f" ({Path(f.filename).name}, line {f.lineno})" for f in where)


def _refusal(stack: Stack, pipeline: Any, artifacts: Mapping[str, Path]) -> str | None:
    if reason := stack.refusal(pipeline):
        return reason
    unprepared = [
        m.name for m in stack.methods if m.recipe() is not None and m.name not in artifacts
    ]
    return f"{unprepared[0]} has not been prepared for this pipeline" if unprepared else None


def _try_runs(
    checks: _Checks,
    stack: Stack,
    subject: Subject,
    artifacts: Mapping[str, Path] | None,
    plain: Tensor,
) -> None:
    """The clauses about generations with the stack attached, twice; `plain` is sample 0 without
    it."""
    pipeline, sampling, per_batch = (
        subject.pipeline,
        stack.adapt(subject.sampling),
        _per_batch(stack),
    )

    def generate(attached: Attached, *which: int) -> Tensor:
        attached.start(sampling.steps, len(which))
        samples: Tensor = subject.generate(sampling, which)
        return samples

    with stack.attached(pipeline, artifacts) as attached:
        first = generate(attached, 0)
        idle = stack.idle(subject.sampling, attached)
    engaged = not idle or not torch.equal(first, plain)
    note = f"{' and '.join(idle)} did nothing" if not engaged else _counts(attached)
    checks.append(Check("it engages", engaged, note))
    with stack.attached(pipeline, artifacts) as attached:
        name = "a batch of two is two of one"
        with checks.naming(name):
            pair = generate(attached, 0, 0) if per_batch else generate(attached, 0, 1)
            again = generate(attached, 0)
            other = again if per_batch else generate(attached, 1)
            apart = max(_relative(pair[:1], again), _relative(pair[1:], other))
            note = f"relative {apart:.1e}" + (
                ", the same sample twice, for it decides per batch" if per_batch else ""
            )
            allowed = TOLERANCE
            if apart > TOLERANCE:
                with _shaken(pipeline.transformer):
                    moved = _relative(generate(attached, 0), again)
                allowed = max(TOLERANCE, SHAKEN * moved)
                note += f"; last bits of its input move a sample by {moved:.1e}"
            checks.append(Check(name, apart <= allowed, note))
        name = "a generation leaves nothing for the next"
        with checks.naming(name):
            again = generate(attached, 0)
            checks.append(
                Check(name, torch.equal(first, again), f"relative {_relative(first, again):.1e}")
            )
        name = "nothing it keeps outlives the generation"
        with checks.naming(name):
            left = left_alive(pipeline, lambda: generate(attached, 0))
            checks.append(Check(name, not left, _kept(left)))
        name = "the shortcut count equals the full count"
        with checks.naming(name):
            checks.append(Check(name, *_counted(stack, pipeline, lambda: generate(attached, 0))))
        name = "an error inside a block spoils nothing"
        with checks.naming(name):
            swallowed = _swallows_error(pipeline, lambda: generate(attached, 0))
            same = torch.equal(generate(attached, 0), first)
            checks.append(Check(name, not swallowed and same, swallowed))
    name = "captured calls give the same samples"
    with checks.naming(name):
        checks.append(
            Check(name, *captured.gives_the_same(stack, pipeline, artifacts, generate, first))
        )


def _counted(stack: Stack, pipeline: Any, generate: Callable[[], object]) -> tuple[bool, str]:
    """Whether a count that leaves out calls which look alike finds what a count of all calls does,
    and how much it finds."""
    if not alike_every_call(stack):
        return True, "no call is left out"
    short, whole = (
        counting.count_generation(pipeline, generate, alike=alike, allow_uncounted=True)
        for alike in (True, False)
    )
    return short == whole, f"{short.flops:.4g} and {whole.flops:.4g} FLOPs"


def _round_trip(stack: Stack) -> Check:
    restored = Stack.restore(json.loads(json.dumps(stack.describe())))
    return Check(
        "text and JSON read back as the same stack",
        Stack.parse(str(stack)) == restored == stack,
        str(stack),
    )


def _off(stack: Stack, subject: Subject) -> Check:
    """With every method's knobs at what it declares as `off`, samples are those of the plain
    pipeline."""
    without = [m.name for m in stack.methods if not getattr(m, "off", None)]
    if without:
        return Check(OFF, True, f"{' and '.join(without)} cannot be turned off by a knob")
    off = Stack.of(*(build(type(m), m.off) for m in stack.methods))
    plain = subject.generate(subject.sampling, [0])
    sampling = off.adapt(subject.sampling)
    with off.attached(subject.pipeline) as attached:
        attached.start(sampling.steps, 1)
        same = torch.equal(subject.generate(sampling, [0]), plain)
        idle = len(off.idle(subject.sampling, attached)) == len(off.methods)
    note = (
        ""
        if same and idle
        else f"{off} changed the samples"
        if not same
        else f"{off} says it did something"
    )
    return Check(OFF, same and idle, note)


def _per_batch(stack: Stack) -> bool:
    return any(m.traits.decides_per_batch for m in stack.methods)


def _counts(attached: Attached) -> str:
    return ", ".join(f"{event} {n}" for event, n in attached.counters().items())


def _kept(left: Sequence[Tensor]) -> str:
    if not left:
        return ""
    sizes = ", ".join(f"{list(tensor.shape)}" for tensor in left[:3])
    return f"tensors {sizes} are still there: declare what keeps them with at.keeps or at.holds"


def _swallows_error(pipeline: Any, generate: Callable[[], object]) -> str:
    """Why an error raised in the first block does not reach the caller, "" when it does: raised at
    the block's second run, where a cache holds something, or at the only one that a stack leaves it."""
    block = sublayers(pipeline.transformer)[0].modules[0]
    for run in (2, 1):
        runs = 0

        def stop(*_: Any, at: int = run) -> None:
            nonlocal runs
            runs += 1
            if runs == at:
                raise _Stop

        hook = block.register_forward_pre_hook(stop)
        try:
            generate()
        except _Stop:
            return ""
        finally:
            hook.remove()
        if runs >= run:
            return "the error did not come through"
    return "no error could be raised: the first block never ran"


@contextmanager
def _shaken(transformer: Any) -> Iterator[None]:
    """Change the last bits of what the transformer is given, in every call by other noise."""
    generator = torch.Generator().manual_seed(0)

    def shake(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2):
            return value
        noise = torch.rand(value.shape, generator=generator).to(value.device, value.dtype)
        return value * (1 + LAST_BITS * (2 * noise - 1))

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        hidden = {name: shake(x) for name, x in kwargs.items() if name == "hidden_states"}
        return (*map(shake, args[:1]), *args[1:]), kwargs | hidden

    hook = transformer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
