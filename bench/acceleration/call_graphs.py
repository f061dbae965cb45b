"""A generation's calls of the transformer, each captured once with all that the methods do in it, and
replayed in the generations that follow: as CUDA graphs, which the host launches at once.

What is called at a step, with which shapes, and what is computed of it has to be the same in every
generation: methods that decide by numbers cannot be captured. What they keep from step to step stays
in the memory of the graphs, which write it again in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ditbench.acceleration.call_forms import form_of, put, without_kept_casts
from ditbench.acceleration.compiling import watched
from ditbench.models.calls import each_tensor
from ditbench.models.recorded import lists_of

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

MOST_PLANS = 4
"""Kinds of generations whose graphs are kept; of more, the oldest go."""
Run = Callable[[], Any]
Where = tuple[int, int]
"""Step, and call of the step."""


class CannotCaptureError(RuntimeError):
    """A call that cannot be captured, or cannot be replayed as it was."""


class Capture(Protocol):
    """Graphs that share their memory, in the order in which they are captured."""

    def __call__(self, run: Run) -> tuple[Any, Run]:
        """What `run()` returns, in memory that stays, and what computes it again in its place from
        the tensors that `run` read."""


class CudaCapture:
    """CUDA graphs in one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> tuple[Any, Run]:
        """As `Capture`. CannotCaptureError for what CUDA cannot capture, such as waiting for a number; what
        else is raised inside comes through."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        failed: BaseException | None = None
        try:
            # other threads may go on with what they do
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                try:
                    out = run()
                except BaseException as error:
                    failed = error
                    raise
        except BaseException as error:
            # where a capture was broken off torch fails to end it, and stays on its stream
            torch.cuda.set_stream(stream)
            cause = error if failed is None else failed
            if isinstance(cause, getattr(torch, "AcceleratorError", ())):
                first = next(iter(str(cause).strip().splitlines()), "")
                raise CannotCaptureError(
                    "a call of the transformer cannot be captured as a CUDA graph: something in it waits "
                    f"for the GPU, compiles, or moves tensors from the host ({first})"
                ) from cause
            raise cause from None
        graph.replay()  # capturing computes nothing
        return out, graph.replay


@dataclass(frozen=True, eq=False)
class Call:
    """A captured call."""

    where: Where
    form: Any
    inputs: list[Tensor]
    """Where its tensors are read from."""
    output: Any
    replay: Run
    counted: list[tuple[Attachment, dict[str, int], dict[Where, float]]]
    """Events and shares of tokens that methods noted in it."""
    held: list[Tensor]
    """For the memory ledger: what methods keep after it, without values."""


@dataclass(eq=False)
class Plan:
    """The calls of one kind of generation."""

    is_warm: bool = False
    """Whether a whole generation ran without being captured, in which kernels are compiled and
    chosen, and what is kept for good is made."""
    is_whole: bool = False
    """Whether the calls of a whole generation are captured."""
    calls: list[Call] = field(default_factory=list)
    sources: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Arguments of the calls that are captured, by their identity, and where graphs read them from. An
    argument of several calls is one tensor for all of them, as it is without graphs; others have a
    place for each call, for a method may keep what a call was given."""
    capture: Capture | None = None
    outside: set[int] = field(default_factory=set)
    """Where what methods keep lay before the first call."""
    memory: set[int] = field(default_factory=set)
    """Where what methods keep lay after the last call."""
    constants: dict[int, object] = field(default_factory=dict)
    """Lists of operations (`models.recorded`) whose constants graphs may read, by identity: they are
    not to go before the graphs."""
    inside: set[int] = field(default_factory=set)
    """What of it is in the memory of graphs."""

    def forget(self) -> None:
        """Let go of what is captured."""
        self.calls, self.sources, self.capture = [], {}, None
        self.outside, self.memory, self.inside, self.constants = set(), set(), set(), {}


def capture_calls(pipeline: Any, at: Attachment, make: Callable[[], Capture]) -> None:
    """Have the calls of a pipeline's transformer captured by what `make` makes, and replayed, until `at`
    is detached."""
    transformer = pipeline.transformer
    graphs = CallGraphs(
        at, transformer.forward, make,
        lambda: getattr(pipeline, "do_classifier_free_guidance", None),
        [part for part in transformer.modules() if part is not transformer],
    )  # fmt: skip
    for other in at.beside.values():
        other.is_captured = True
    at.on_start(graphs.start)
    at.on_end(graphs.end)
    at.held.append(graphs.held)
    at.undo(graphs.forget)
    at.patch(transformer, "forward", graphs)


class CallGraphs:
    """The transformer's forward: the first whole generation of a kind runs as it is, the second is
    captured, all others are replayed."""

    def __init__(
        self,
        at: Attachment,
        forward: Callable[..., Any],
        make: Callable[[], Capture],
        guided: Callable[[], Any] = lambda: None,
        parts: Iterable[nn.Module] = (),
    ) -> None:
        """`make` makes what captures, for each kind of generation. `guided()`: what the pipeline says
        of the guidance of the generation under way, whose second pass may be a call of its own;
        `parts`: modules inside of the transformer, whose hooks a graph does not call."""
        self._at, self._forward, self._make, self._guided = at, forward, make, guided
        self._hooks = [
            store for part in parts for store in (part._forward_pre_hooks, part._forward_hooks)
        ]
        self._expected = self._count_hooks()
        self._plans: dict[Any, Plan] = {}
        self._plan: Plan | None = None
        """Of the generation under way; None where it runs as it is."""
        self._begun = False
        self._place = 0
        """Calls so far in the generation."""

    def start(self) -> None:
        """A generation begins, or, in its middle, methods are to start anew."""
        if self._at.now.step:
            return
        if self._plan is not None and not self._plan.is_whole:
            self._plan.forget()  # it ended early
        self._plan, self._begun, self._place = None, False, 0

    def end(self) -> None:
        """The last step of a generation is done."""
        if (plan := self._plan) is not None:
            plan.is_warm, plan.is_whole, plan.sources = True, bool(plan.calls), {}

    def forget(self) -> None:
        """Let go of all graphs."""
        self._plan = None
        self._plans.clear()

    def held(self) -> list[Tensor]:
        """Tensors like those that methods keep after the call that was replayed last."""
        plan = self._plan
        replays = plan is not None and plan.is_whole and self._place
        return plan.calls[self._place - 1].held if plan and replays else []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward. CannotCaptureError where a call is another than the one that was captured."""
        now = self._at.now
        where = now.step, now.branch
        leaves, tree = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        form = None if watched() else form_of(leaves, tree)
        if not self._begun:
            self._begun = True
            if form is not None and where == (0, 0) and self._count_hooks() == self._expected:
                sizes = now.num_steps, now.samples, now.passes, now.grid, now.text_tokens
                self._plan = self._plan_for((form, sizes, self._guided()))
        plan = self._plan
        if plan is None:
            return self._forward(*args, **kwargs)
        if not plan.is_warm:
            with without_kept_casts():
                return self._forward(*args, **kwargs)
        self._place += 1
        if plan.is_whole:
            return self._replayed(plan, where, form, tensors)
        return self._captured(plan, where, form, leaves, tree)

    def _count_hooks(self) -> int:
        return sum(map(len, self._hooks))

    def _plan_for(self, key: Any) -> Plan:
        if key not in self._plans:
            while len(self._plans) >= MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = Plan()
        return self._plans[key]

    def _captured(self, plan: Plan, where: Where, form: Any, leaves: list[Any], tree: Any) -> Any:
        if form is None:
            raise CannotCaptureError(
                f"the call at step {where[0]} has arguments that cannot be captured"
            )
        inputs: list[Tensor] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                if id(leaf) not in plan.sources:
                    plan.sources[id(leaf)] = (
                        leaf,
                        torch.empty_strided(
                            leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device
                        ),
                    )
                inputs.append(plan.sources[id(leaf)][1])
                put(inputs[-1], leaf)
        given = iter(inputs)
        read = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(read, tree)
        if plan.capture is None:
            plan.capture = self._make()
        before = [(at, dict(at.counters), dict(at.shares)) for at in self._at.beside.values()]
        earlier = set(map(_place, self._held_by_others()))
        if plan.calls:
            self._check_between(plan)
        else:
            plan.outside = earlier
        with without_kept_casts():
            output, replay = plan.capture(lambda: self._forward(*args, **kwargs))
        counted = [
            (at, _more(at.counters, counters), _changed(at.shares, shares))
            for at, counters, shares in before
        ]
        for block in self._at.blocks:
            plan.constants |= {id(one): one for one in lists_of(block.module)}
        held = self._held_by_others()
        plan.memory = set(map(_place, held))
        plan.inside |= plan.memory - earlier
        inside = [tensor for tensor in held if _place(tensor) in plan.inside]
        kept = [torch.empty_like(tensor, device="meta") for tensor in inside]
        plan.calls.append(Call(where, form, inputs, output, replay, counted, kept))
        self._at.count("captured")
        return each_tensor(Tensor.clone, output)

    def _held_by_others(self) -> list[Tensor]:
        others = (at for at in self._at.beside.values() if at is not self._at)
        return [*{id(tensor): tensor for at in others for tensor in _held_by(at)}.values()]

    def _check_between(self, plan: Plan) -> None:
        """CannotCaptureError for a method that keeps a tensor made between the calls: a graph reads the one
        of the generation in which it was captured. What goes by predictions (guidance) is computed
        outside of the graphs."""
        for name, at in self._at.beside.items():
            if at is self._at or at.comparisons or at.left_out:
                continue
            if any(_place(tensor) not in plan.memory for tensor in _held_by(at)):
                raise CannotCaptureError(
                    f"{name} keeps tensors that are made between the calls of the transformer, which "
                    "no graph would read anew"
                )

    def _replayed(self, plan: Plan, where: Where, form: Any, tensors: list[Tensor]) -> Any:
        call = plan.calls[self._place - 1] if self._place <= len(plan.calls) else None
        if call is None or call.where != where or call.form != form:
            plan.forget()  # so that the next generation can be another
            plan.is_warm = plan.is_whole = False
            raise CannotCaptureError(
                f"the call {where[1]} of step {where[0]} is another than when its graph was captured: "
                "something decides by numbers, or watches from the middle of a generation on"
            )
        if self._place == 1 and not plan.outside <= set(map(_place, self._held_by_others())):
            raise CannotCaptureError(
                "a method keeps tensors that are made anew before every generation, which no graph "
                "would read"
            )
        for stays, given in zip(call.inputs, tensors, strict=True):
            put(stays, given)
        call.replay()
        for at, counters, shares in call.counted:
            for event, by in counters.items():
                at.counters[event] = at.counters.get(event, 0) + by
            at.shares.update(shares)
        self._at.count("replayed")
        # the memory of a graph's output is written again by later ones
        return each_tensor(Tensor.clone, call.output)


def _held_by(at: Attachment) -> list[Tensor]:
    leaves = (leaf for store in at.held for leaf in tree_flatten(list(store()))[0])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    """Of its memory, whatever part of it a tensor shows."""
    return tensor.untyped_storage().data_ptr()


def _more(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {
        event: n - before.get(event, 0) for event, n in after.items() if n != before.get(event, 0)
    }


def _changed(after: Mapping[Where, float], before: Mapping[Where, float]) -> dict[Where, float]:
    return {key: share for key, share in after.items() if before.get(key) != share}
