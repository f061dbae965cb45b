"""What a method may do to a pipeline, with every change undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.generation import Now

if TYPE_CHECKING:
    from ditbench.models.blocks import Block, BlockRoute
    from ditbench.models.sublayers import Route, Sublayer

_MISSING = object()
Prediction = Any
"""A tensor [B,...]: what the transformer returned for one guidance pass."""


def _itself(conditional: Prediction) -> Prediction:
    return conditional


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """When the unconditional pass is left out, and what stands for its prediction."""

    when: Callable[[], bool]
    stand_in: Callable[[Prediction], Prediction] = _itself
    for_good: bool = False
    """Whether it stays left out to the end of the generation."""


Comparison = Callable[[Prediction, Prediction], "Prediction | None"]
"""f(conditional, unconditional) -> what stands for the unconditional prediction; None: itself."""


class Attachment:
    """One method's hold on one pipeline: what it changed, and how to take it back."""

    def __init__(self, pipeline: Any, now: Now, stack: ExitStack) -> None:
        self.now = now
        self.counters: dict[str, int] = {}
        """Events since the stack was attached, by name."""
        self.notes: dict[str, float | str] = {}
        """Facts found while running, by name, for the record: finite numbers, of Python, numpy or
        torch, and texts."""
        self.engaged = False
        """Whether any counted event was the method at work (`count(..., idle=True)` is not)."""
        self.starts: list[Callable[[], object]] = []
        self.ends: list[Callable[[], object]] = []
        self.inspections: list[Callable[[ExitStack], object]] = []
        self.held: list[Callable[[], Iterable[Any]]] = []
        self.stores: list[dict[Any, Any]] = []
        self.emptied: list[dict[Any, Any]] = []
        self.networks: list[Any] = []
        self.starts_anew = False
        """Whether tensors are held whose rows nobody described."""
        self.left_out: list[LeftOut] = []
        self.comparisons: list[Comparison] = []
        self.shares: dict[tuple[int, int], float] = {}
        """Share of its tokens a sub-layer computed, by (step, sub-layer), in the generation under
        way or the last one."""
        self.is_captured = False
        """Whether the transformer's calls are captured and replayed (`cudagraph`): what is made once for
        a size, from the host, is then to stay, for a graph copies nothing from there."""
        self.beside: Mapping[str, Attachment] = {}
        """Those of all methods of the stack, this one too, by method."""
        self.artifact: Path | None = None
        """Folder of what was prepared for this method (see `artifact`)."""
        self.artifacts: Mapping[str, Path] = {}
        """Folders of what was prepared for the methods of the stack, by method."""
        self._pipeline = pipeline
        self._stack = stack

    @cached_property
    def sublayers(self) -> list[Sublayer]:
        """The transformer's sub-layers, in the order they run."""
        from ditbench.models.sublayers import sublayers

        listed: list[Sublayer] = sublayers(self._pipeline.transformer)
        return listed

    @cached_property
    def blocks(self) -> list[Block]:
        """The transformer's blocks, in the order they run."""
        from ditbench.models.blocks import blocks

        listed: list[Block] = blocks(self._pipeline.transformer)
        return listed

    def patch(self, owner: Any, name: str, value: Any) -> Any:
        """Set `owner.name` until detached, and return what it was (None when there was nothing)."""
        if name.startswith("__"):
            raise ValueError(
                f"{name} on an instance is never called: Python looks dunder methods up on the "
                "class"
            )
        inside = [
            vars(owner),
            *(vars(owner).get(store, {}) for store in ("_parameters", "_buffers", "_modules")),
        ]
        before = next((store[name] for store in inside if name in store), _MISSING)
        previous = getattr(owner, name, None)
        if before is _MISSING:
            self.undo(lambda: vars(owner).pop(name, None))
        else:
            self.undo(setattr, owner, name, before)
        setattr(owner, name, value)
        return previous

    def reroute(self, part: Sublayer | Block, route: Route | BlockRoute) -> None:
        """Send the calls of a sub-layer (see `ditbench.models.sublayers`) or of a whole block (see `blocks`) through
        `route` until detached."""
        part.reroute(route, self.patch)  # type: ignore[arg-type]

    def reroute_deferred(
        self,
        sublayer: Sublayer,
        route: Route,
        dense: Callable[[], bool] | None = None,
        idle: Callable[[], bool] | None = None,
        outputs_only: Callable[[], bool] | None = None,
    ) -> bool:
        """As `reroute`, where norm and modulation of the sub-layer are not worked out unless it is
        run: `route` is given its input as `pending.Pending`, which becomes a tensor when its values
        are used. Returns whether they wait: not in a block that somebody else has replaced.

        `dense()`, where a method knows it when the block begins: whether the route will compute all
        of the sub-layer by one `run()` and return what that gave. A block all of whose sub-layers do
        runs as it is, which saves the host the time to note what waits; the values are the same.

        `idle()`, likewise: whether the route will compute nothing of the sub-layer; it is then asked
        before the block's other sub-layers are run, and looks neither at `run` nor at its input. Where
        all routes of a block say so, or have a `dense` too, what the block does round the sub-layers
        that are run is repeated from a list of operations (`models.recorded`), and its Python is not
        run; the values are the same.

        `outputs_only()`, likewise: whether a route that is `dense` goes by what `run()` gives alone. It
        looks neither at its input nor at what goes on inside `run` (attention, say), and runs no half of
        it. Where all of a block's say so, `compile` computes the block by one graph, and asks the routes
        afterwards; RuntimeError then for a route that does otherwise.
        """
        return sublayer.reroute(
            route, self.patch, deferred=True, dense=dense, idle=idle, outputs_only=outputs_only
        )

    def replace(self, tensor: Any, value: Any) -> None:
        """Give a parameter or buffer other data until detached. What it held waits in host memory,
        so that the device's memory is what it would be without."""
        device = tensor.device
        before = tensor.data if device.type == "cpu" else tensor.data.cpu()

        def back() -> None:
            tensor.data = before.to(device)

        self.undo(back)
        tensor.data = value.to(device, tensor.dtype)

    def guard(self, *owners: Any) -> None:
        """Put the attributes of objects, classes and modules back to what they are now when detached,
        a module's parts too: for libraries that leave some behind."""

        def stores(owner: Any) -> list[dict[str, Any]]:
            own = vars(owner)
            parts = (own.get(name, {}) for name in ("_parameters", "_buffers", "_modules"))
            return [dict(own), *map(dict, parts)]

        def back(owner: Any, before: list[dict[str, Any]]) -> None:
            for now, earlier in zip(stores(owner), before, strict=True):
                for name in now.keys() - earlier.keys():
                    delattr(owner, name)
                for name, value in earlier.items():
                    if now.get(name, _MISSING) is not value:
                        setattr(owner, name, value)

        for owner in owners:
            self.undo(back, owner, stores(owner))

    def undo(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` when detached; the last registered is called first."""
        self._stack.callback(callback, *args)

    def on_start(self, reset: Callable[[], object]) -> None:
        """Call `reset` before every generation, so that nothing leaks from one to the next."""
        self.starts.append(reset)

    def on_end(self, done: Callable[[], object]) -> None:
        """Call `done` after the last sampler step of every generation that comes so far."""
        self.ends.append(done)

    def on_inspection(self, watch: Callable[[ExitStack], object]) -> None:
        """Call `watch(undo)` before the one generation that is counted and neither timed nor
        weighed: what costs time or memory to find out for the record belongs there. What it hooks
        in, `undo` takes away."""
        self.inspections.append(watch)

    def count(self, event: str, by: int = 1, *, idle: bool = False) -> None:
        """Count an event. `idle` events are bookkeeping: they do not show that the method did
        anything."""
        self.counters[event] = self.counters.get(event, 0) + by
        self.engaged |= bool(by > 0) and not idle

    def computes(self, sublayer: Sublayer, share: float) -> None:
        """Note that the sub-layer computes `share` of its tokens, 0..1, at this step: for the
        schedule in the record."""
        self.shares[self.now.step, sublayer.index] = share

    def holds(self, tensors: Callable[[], Iterable[Any]]) -> None:
        """Name the tensors the method keeps from step to step (tuples of tensors will do): they
        enter the memory ledger. Where guidance is dropped, and after the last step, a method that
        holds tensors in another way than `keeps` has its `on_start` called, and starts anew."""
        self.held.append(tensors)
        self.starts_anew = True

    def keeps(self, store: dict[Any, Any], *, rows: bool = True) -> None:
        """Keep tensors from step to step in `store`: it is emptied before every generation and after
        its last step (so that the decoder has the memory) and enters the memory ledger, and where
        guidance is dropped the rows of the conditional pass stay.

        Its values are tensors [B,...], B the rows of the batch, tuples and transformer outputs of
        them, or no tensors; with `rows=False` its tensors are anything else, and stay as they are.
        """
        self.on_start(store.clear)
        self.emptied.append(store)
        self.held.append(store.values)
        if rows:
            self.stores.append(store)

    def runs(self, network: Any) -> None:
        """Name a network that the method runs beside the pipeline's own: its parameters and buffers
        enter the memory ledger as weights."""
        self.networks.append(network)

    def release(self) -> None:
        """The sampler loop has ended: let go of what `keeps` named. A method that `holds` others
        starts anew."""
        for store in self.emptied:
            store.clear()
        if self.starts_anew:
            self.start_anew()
        for done in self.ends:
            done()

    def start_anew(self) -> None:
        """Have the method forget what it knows of this generation."""
        for reset in self.starts:
            reset()

    def narrow(self, rows: slice, batch: int) -> None:
        """Only `rows` of a batch of `batch` rows go on: slice what `keeps` named. A method that
        `holds` others starts anew."""
        if self.starts_anew:
            self.start_anew()
        if not any(self.stores):
            return
        from ditbench.models.calls import each_tensor

        def narrowed(tensor: Any) -> Any:
            return tensor[rows] if tensor.dim() and len(tensor) == batch else tensor

        for store in self.stores:
            store.update({key: each_tensor(narrowed, value) for key, value in store.items()})

    def drop_guidance(self, when: Callable[[], bool]) -> None:
        """Compute the conditional pass alone from the first step on at which `when()` is true, to
        the end of the generation; its prediction stands for the guided one.

        `when` is asked before the first transformer call of each step, with `now.step` and
        `now.num_steps` set. The method has to claim `guidance`. Dropped rows are counted as
        `guidance_passes_dropped`.
        """
        self.left_out.append(LeftOut(when=when, for_good=True))

    def leave_out_guidance(
        self, when: Callable[[], bool], stand_in: Callable[[Prediction], Prediction] | None = None
    ) -> None:
        """Leave the unconditional pass out at every step at which `when()` is true, and compute it
        at the others.

        `stand_in` is given the conditional prediction [B,...], B the samples, and returns what
        stands for the unconditional one; None: the conditional one, which then stands for the
        guided one. When and how `when` is asked, claim and counter are as in `drop_guidance`. Where
        the pass comes back, the other methods' `on_start` is called: what they keep of it is of
        steps ago, so that they compute everything anew.
        """
        self.left_out.append(
            LeftOut(when=when) if stand_in is None else LeftOut(when=when, stand_in=stand_in)
        )

    def compare_passes(self, compare: Comparison) -> None:
        """Call `compare(conditional, unconditional)` with the predictions [B,...] of every step
        whose two passes are computed, B the samples. What it returns stands for the unconditional
        prediction, and None leaves it as it is. The method has to claim `guidance`."""
        self.comparisons.append(compare)

    def run_samples(
        self,
        run: Callable[..., Any],
        samples: Sequence[int],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        into: Any = None,
    ) -> Any:
        """The output of a transformer call for some samples alone, in all guidance passes of the call
        (`now.rows_of`).

        `run` is the transformer's forward, `args` and `kwargs` what it was called with, `samples`
        numbers from 0. With `into`, an output for the whole batch, it is that output with these
        samples' rows replaced; for no samples it is `into` itself. ValueError for no samples
        without `into`.
        """
        from ditbench.models.calls import put_rows, take_rows

        if not len(samples):
            if into is None:
                raise ValueError(
                    "no samples to run the transformer for, and nothing to put them in"
                )
            return into
        now, rows = self.now, self.now.rows_of(samples)
        if rows == list(range(now.batch)):
            return run(*args, **kwargs)
        positional, named = take_rows(self._pipeline.transformer, args, kwargs, rows)
        before = now.samples, now.batch
        now.samples, now.batch = len(samples), len(rows)
        try:
            out = run(*positional, **named)
        finally:
            now.samples, now.batch = before
        return out if into is None else put_rows(into, rows, out)
