"""The contract every method keeps, clause by clause; for our methods and for strangers'.

`check_method("fora(interval=2)", tiny("flux"))` tries one on an untrained pipeline of `KINDS`; `check_models` on trained ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ditbench.anatomy import sublayers
from ditbench.artifact import resolve
from ditbench.quiet import quiet
from ditbench.stack import Attached, Stack
from ditbench.tiny import KINDS, OUTPUT, Subject, tiny
from ditbench.workload import Sampling, call_arguments, make_requests, sampling_of

if TYPE_CHECKING:
    from ditbench.models import Model

__all__ = ["KINDS", "Check", "Subject", "check_method", "check_models", "tiny"]

TOLERANCE = 1e-3
"""Largest relative difference (of norms) between a sample in a batch of two and alone: other kernels round otherwise."""
TOLERANCE_ROUNDED = 5e-2
"""The same where a method claims the linear layers' precision: a value that rounds to the next integer differs by a whole unit."""


class Check(NamedTuple):
    """One clause of the contract."""

    name: str
    passed: bool
    note: str = ""


class _Stop(Exception):
    """Raised inside a block on purpose."""


def check_method(text: str, subject: Subject, artifacts: Mapping[str, Path] | None = None) -> list[Check]:
    """Try a method, or a stack, on a pipeline, and say clause by clause whether it keeps the contract.

    `artifacts`: folders of what was prepared, by method; without them a method that has to be prepared is refused.

    A stack this pipeline refuses has the single clause `refused`, passed, with the reason. ValueError for a text that is no stack.
    """
    stack, pipeline = Stack.parse(text), subject.pipeline
    if reason := stack.refusal(pipeline):
        return [_round_trip(stack), Check("refused", True, reason)]
    for m in stack.methods:
        if m.recipe() is not None and m.name not in (artifacts or {}):
            return [_round_trip(stack), Check("refused", True, f"{m.name} has not been prepared for this pipeline")]
    sampling = stack.adapt(subject.sampling)

    def generate(attached: Attached, *which: int) -> Tensor:
        attached.start(sampling.steps, len(which))
        samples: Tensor = subject.generate(sampling, which)
        return samples

    plain = subject.generate(subject.sampling, [0])  # before the trace: a first run leaves diffusers' own traces
    trace, weights = _trace(pipeline), _weights(pipeline)
    with stack.attached(pipeline, artifacts) as attached:
        first = generate(attached, 0)
        idle = stack.idle(subject.sampling, attached)
    with stack.attached(pipeline, artifacts) as attached:
        pair = generate(attached, 0, 0) if _per_batch(stack) else generate(attached, 0, 1)
        again = generate(attached, 0)
        other = again if _per_batch(stack) else generate(attached, 1)
        stopped = _stops_inside(pipeline, lambda: generate(attached, 0), late=sampling.steps > 1)
        after_error = generate(attached, 0)
    left = _difference(trace, _trace(pipeline))
    changed = [
        name
        for name, weight in _weights(pipeline).items()
        if name not in weights or not torch.equal(weight, weights[name])
    ]
    detached = subject.generate(subject.sampling, [0])
    tolerance = TOLERANCE_ROUNDED if any("linear-precision" in m.traits.claims for m in stack.methods) else TOLERANCE
    apart = max(_relative(pair[:1], again), _relative(pair[1:], other))
    engaged = not idle or not torch.equal(first, plain)
    return [
        _round_trip(stack),
        Check("it engages", engaged, f"{' and '.join(idle)} did nothing" if not engaged else _counts(attached)),
        Check("a generation leaves nothing for the next", torch.equal(first, again), f"relative {_relative(first, again):.1e}"),
        Check(
            "a batch of two is two of one", apart <= tolerance,
            f"relative {apart:.1e}" + (", the same sample twice, for it decides per batch" if _per_batch(stack) else ""),
        ),
        _off(stack, subject),
        Check(
            "an error inside a block spoils nothing", stopped and torch.equal(after_error, first),
            "" if stopped else "the error did not come through",
        ),
        Check("detached, the weights are bit-identical", not changed, ", ".join(changed[:3])),
        Check("detached, the samples are bit-identical", torch.equal(detached, plain), f"relative {_relative(detached, plain):.1e}"),
        Check("detached, nothing stays behind", not left, ", ".join(left[:3])),
    ]  # fmt: skip


def check_models(stack: Stack, models: Sequence[Model], plugins: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The contract on the bundled models, as rows of a table; `result` is `passed`, `failed` or `refused`. `plugins`: files that were
    loaded for the stack, for the commands in notes.

    A model whose weights are absent or damaged is a refused row with that reason, and the others are still tried.
    """
    rows = []
    for model in models:
        try:
            subject = _bundled(model)
            prepared = {name: a.folder for name, a in resolve(model, stack, "bundled", plugins).items()}
        except ValueError as error:
            rows.append({"model": model.name, "clause": "its files are there", "result": "refused", "note": str(error)})
            continue
        with quiet():
            checks = check_method(str(stack), subject, prepared)
        for check in checks:
            result = "failed" if not check.passed else "refused" if check.name == "refused" else "passed"
            clause = "runs on this model" if result == "refused" else check.name
            rows.append({"model": model.name, "clause": clause, "result": result, "note": check.note})
    return rows


def _bundled(model: Model) -> Subject:
    from ditbench.models import load

    requests = make_requests(model, 2, seed=0)

    def arguments(sampling: Sampling, which: Sequence[int]) -> dict[str, Any]:
        asked: dict[str, Any] = call_arguments(model, sampling, [requests[i] for i in which])
        return asked | {"output_type": OUTPUT[model.family]}

    pipeline = load(model, weights="bundled", device="cpu", dtype="float32")
    return Subject(pipeline=pipeline, sampling=sampling_of(model), arguments=arguments)


def _round_trip(stack: Stack) -> Check:
    restored = Stack.restore(json.loads(json.dumps(stack.describe())))
    return Check("text and JSON read back as the same stack", Stack.parse(str(stack)) == restored == stack, str(stack))


def _off(stack: Stack, subject: Subject) -> Check:
    """With every method's knobs at what it declares as `off`, samples are those of the plain pipeline."""
    name = "knobs at off change nothing"
    without = [m.name for m in stack.methods if not getattr(m, "off", None)]
    if without:
        return Check(name, True, f"{' and '.join(without)} cannot be turned off by a knob")
    off = Stack.of(*(type(m)(**m.off) for m in stack.methods))
    plain = subject.generate(subject.sampling, [0])
    sampling = off.adapt(subject.sampling)
    with off.attached(subject.pipeline) as attached:
        attached.start(sampling.steps, 1)
        same = torch.equal(subject.generate(sampling, [0]), plain)
        idle = len(off.idle(subject.sampling, attached)) == len(off.methods)
    return Check(
        name,
        same and idle,
        "" if same and idle else f"{off} changed the samples" if not same else f"{off} says it did something",
    )


def _per_batch(stack: Stack) -> bool:
    return any(m.traits.decides_per_batch for m in stack.methods)


def _counts(attached: Attached) -> str:
    return ", ".join(f"{event} {n}" for event, n in attached.counters().items())


def _stops_inside(pipeline: Any, generate: Callable[[], object], *, late: bool) -> bool:
    """Whether an error raised in the first block, at its second run where there is one, reaches the caller."""
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > int(late):
            raise _Stop

    hook = sublayers(pipeline.transformer)[0].modules[0].register_forward_pre_hook(stop)
    try:
        generate()
    except _Stop:
        return True
    finally:
        hook.remove()
    return False


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _weights(pipeline: Any) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of every part."""
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{key}": value.clone() for name, part in modules.items() for key, value in part.state_dict().items()
    }


def _trace(pipeline: Any) -> dict[str, Any]:
    """What a method could leave behind: attributes, hooks and patched functions of every module and of the scheduler."""
    found: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        found[name] = id(part)
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                own = vars(module)
                found |= {
                    f"{name}.{path}.{key}": _identity(value) for key, value in own.items() if not _is_plain(value)
                }
                found |= {
                    f"{name}.{path}.{key}": id(value) for key, value in own["_parameters"].items() if value is not None
                }
        else:
            found |= {
                f"{name}.{key}": _identity(value)
                for key, value in getattr(part, "__dict__", {}).items()
                if callable(value)
            }
    return found


def _is_plain(value: Any) -> bool:
    """Whether an attribute is no trace: a registry of diffusers without hooks, which any cache context makes."""
    return type(value).__name__ == "HookRegistry" and not value.hooks


def _identity(value: Any) -> Any:
    """What tells one attribute value from another: the size of containers (hooks), the object where it can be called."""
    if callable(value):
        return id(value)
    return len(value) if hasattr(value, "__len__") and not isinstance(value, Tensor) else type(value).__name__


def _difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
