"""A stack: several methods attached to one pipeline, in one agreed order. Never imports torch by
itself.

Written `fora(interval=4)+int8`; `none` is the empty stack. The canonical text sorts by stage and
leaves defaults out, so that every spelling of a stack is one key.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.attached import Attached
from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.knobs import build, values
from ditbench.method.registry import Method, find
from ditbench.method.traits import Stage, unmet

if TYPE_CHECKING:
    from ditbench.models.sampling import Sampling
    from ditbench.models.table import Model


@dataclass(frozen=True)
class Stack:
    """Methods in canonical order. Make one with `parse` or `of`."""

    methods: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Stack:
        """Read a stack; ValueError with one sentence for anything that is not one. Claims are not
        looked at (see `problems`)."""
        if text.strip() == "none":
            return cls()
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"cannot read the stack {text!r}; write it like fora(interval=3)+int8, or none"
            ) from None
        try:
            return cls.of(*(_build(term) for term in _terms(tree)))
        except ValueError as error:
            raise ValueError(f"in the stack {text!r}: {error}") from None

    @classmethod
    def of(cls, *methods: Method) -> Stack:
        """A stack of methods given in any order; ValueError when one appears twice."""
        for name, times in Counter(m.name for m in methods).items():
            if times > 1:
                raise ValueError(f"{name} appears {times} times, but a method is used once")
        return cls(tuple(sorted(methods, key=lambda m: (m.traits.stage, m.name))))

    def __str__(self) -> str:
        return "+".join(_show(m) for m in self.methods) or "none"

    def describe(self) -> list[dict[str, Any]]:
        """The methods as a record holds them, every knob spelled out."""
        return [
            {"name": m.name, "knobs": values(m), "family": m.traits.family, "stage": m.traits.stage.name.lower(), "paper": m.traits.paper}
            | ({"label": m.label} if m.label else {})
            for m in self.methods
        ]  # fmt: skip

    @classmethod
    def restore(cls, described: list[dict[str, Any]]) -> Stack:
        """The stack `describe` described."""
        return cls.of(*(build(find(d["name"]), d["knobs"]) for d in described))

    def instead(self, model: Model) -> Stack:
        """The stack with what runs in place of methods that would have to be prepared for a
        model, where they have such a thing."""
        return Stack(
            tuple((m.instead(model) or m) if m.recipe() is not None else m for m in self.methods)
        )

    def problems(self, family: str = "") -> list[str]:
        """Why these methods cannot be used together, a sentence each; empty when they can. `family`:
        the model's, "" where it is not known yet: what a method relies on depends on it."""
        problems = []
        for a, b in combinations(self.methods, 2):
            if shared := a.traits.claims & b.traits.claims:
                problems.append(f"{a.name} and {b.name} both claim {' and '.join(sorted(shared))}")
            elif b.name in a.traits.conflicts or a.name in b.traits.conflicts:
                problems.append(f"{a.name} and {b.name} are declared incompatible")
        for a, b in permutations(self.methods, 2) if family else ():
            for claim, why in a.relies_on(family).items():
                if claim in b.traits.claims and claim not in a.traits.claims:
                    problems.append(f"{b.name} claims {claim}, but {a.name} {why}")
        for i, m in enumerate(self.methods):
            # what is trained in a method's place has no such part
            lacks = getattr(m, "lacks", lambda beside: None)
            if lack := lacks((*self.methods[:i], *self.methods[i + 1 :])):
                problems.append(f"{m.name}: {lack}")
        return problems

    def refusal(self, pipeline: Any, besides: tuple[str, ...] = ()) -> str | None:
        """Why this pipeline cannot take the stack, in one sentence; None when it can. `besides`: how
        needs begin that are not looked at."""
        if problems := self.problems(_family(pipeline) if len(self.methods) > 1 else ""):
            return problems[0]
        for m in self.methods:
            needs = [need for need in sorted(m.traits.needs) if not need.startswith(besides)]
            reason = next(filter(None, (unmet(need, pipeline) for need in needs)), None)
            if reason := reason or m.check(pipeline):
                return f"{m.name}: {reason}"
        return None

    def kept_away(self, offload: str) -> str:
        """Why a method cannot work while weights wait in host memory as the setting `offload` has
        it, in one sentence; "" when all can."""
        away = {"model": (Stage.PRECISION,), "sequential": (Stage.WEIGHTS, Stage.PRECISION)}
        for m in self.methods:
            if "launches" in m.traits.claims and m.traits.needs and offload in away:
                return (
                    f"{m.name}: its graphs look for the transformer's weights on the GPU, where --offload "
                    f"{offload} does not leave them; use --offload text"
                )
            if m.traits.stage in away.get(offload, ()):
                return (
                    f"{m.name}: it changes the transformer's weights on the GPU, where --offload "
                    f"{offload} does not leave them; use --offload text"
                )
        return ""

    def adapt(self, sampling: Sampling) -> Sampling:
        """The sampling all methods of the stack want."""
        from ditbench.models.sampling import Sampling

        for m in self.methods:
            adapted = m.adapt(sampling)
            if not isinstance(adapted, Sampling):
                raise ValueError(
                    f"{m.name}: adapt returns a {type(adapted).__name__}, and should a Sampling"
                )
            sampling = adapted
        return sampling

    @property
    def compiling(self) -> tuple[Any, ...]:
        """The methods of the stack that compile or capture, in whose first calls that is done; not
        controls, which claim everything so as to stand alone."""
        return tuple(
            m for m in self.methods
            if {"compile", "launches"} & m.traits.claims and m.traits.family != "control"
        )  # fmt: skip

    def compiled_alone(self) -> Stack | None:
        """What compiles in the stack, alone: what a compiled stack is compared with besides the
        un-accelerated model. None where nothing is compiled, or nothing else is done."""
        alone = self.compiling
        return Stack(alone) if alone and len(self.methods) > 1 else None

    def idle(self, sampling: Sampling, attached: Attached) -> list[str]:
        """The methods that did nothing: they changed nothing of `sampling` and counted no event of
        being at work."""
        idle = []
        for m in self.methods:
            adapted = m.adapt(sampling)
            if adapted == sampling and not attached.attachments[m.name].engaged:
                idle.append(m.name)
            sampling = adapted
        return idle

    @contextmanager
    def attached(
        self, pipeline: Any, artifacts: Mapping[str, Path] | None = None
    ) -> Iterator[Attached]:
        """Attach every method in order, and take everything back at the end, last in first out,
        whatever happens.

        `artifacts`: folders of what was prepared, by method. Raises ValueError when the methods
        cannot be used together. The empty stack leaves the pipeline untouched.
        """
        if problems := self.problems():
            raise ValueError(f"cannot attach {self}: {'; '.join(problems)}")
        with ExitStack() as undo:
            now = Now()
            attached = Attached(now, {})
            for m in self.methods:
                at = attached.attachments[m.name] = Attachment(pipeline, now, undo)
                at.artifacts, at.beside = artifacts or {}, attached.attachments
                at.artifact = at.artifacts.get(m.name)
                m.attach(pipeline, at)
                if (at.left_out or at.comparisons) and "guidance" not in m.traits.claims:
                    raise ValueError(f"{m.name} drops guidance, so it has to claim 'guidance'")
            if self.methods:
                attached.follow(pipeline, Attachment(pipeline, now, undo))
            yield attached


def _family(pipeline: Any) -> str:
    from ditbench.models.family import family_of

    name: str = family_of(pipeline.transformer).name
    return name


def split_stacks(text: str) -> list[str]:
    """The stacks of a comma-separated list; commas inside parentheses belong to their stack.
    ValueError for an empty one."""
    parts, depth = [""], 0
    for mark in text:
        depth += (mark in "([{") - (mark in ")]}")
        if mark == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += mark
    if depth:
        raise ValueError(f"the parentheses in {text!r} do not match")
    if not all(parts := [part.strip() for part in parts]):
        raise ValueError(
            f"there is an empty stack in {text!r}; the un-accelerated model is called none"
        )
    return parts


def _terms(tree: ast.expr) -> Iterator[ast.expr]:
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        if isinstance(tree.right, ast.BinOp):
            raise ValueError("only + joins methods, and it needs no parentheses")
        yield tree.right
        tree = tree.left
    yield tree


def _build(term: ast.expr) -> Any:
    name, given = (term.func, term.keywords) if isinstance(term, ast.Call) else (term, [])
    if not isinstance(name, ast.Name):
        raise ValueError(f"expected a method's name, but got {ast.unparse(term)!r}")
    if name.id == "none":
        raise ValueError("none is the empty stack: it has no knobs and joins with nothing")
    cls = find(name.id)
    if isinstance(term, ast.Call) and term.args:
        raise ValueError(
            f"knobs are given by name, as in {name.id}(knob=value), not {ast.unparse(term)!r}"
        )
    knobs: dict[str, Any] = {}
    for k in given:
        if k.arg is None or k.arg in knobs:
            raise ValueError(f"each knob of {name.id} is given once, by name")
        try:
            knobs[k.arg] = ast.literal_eval(k.value)
        except (ValueError, TypeError, SyntaxError):
            given_text = ast.unparse(k.value)
            raise ValueError(
                f"{name.id}: {k.arg} must be a plain value, not {given_text!r}"
                + _quotes(name.id, k.arg, given_text)
            ) from None
    return build(cls, knobs)


def _quotes(name: str, knob: str, given: str) -> str:
    """How a word is given as a text, where a shell may have taken its quotes."""
    if not given.isidentifier():
        return ""
    return (
        f"; a text has quotes of its own, inside those of the shell: \"{name}({knob}='{given}')\""
    )


def _show(m: Any) -> str:
    changed = [
        f"{f.name}={getattr(m, f.name)!r}" for f in fields(m) if getattr(m, f.name) != f.default
    ]
    return f"{m.name}({', '.join(changed)})" if changed else str(m.name)
