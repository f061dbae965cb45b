"""What a method may do to a pipeline, with every change undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.method.generation import Now

if TYPE_CHECKING:
    from ditbench.models.blocks import Block, BlockRoute
    from ditbench.models.sublayers import Route, Sublayer

_MISSING = object()


class Attachment:
    """One method's hold on one pipeline: what it changed, and how to take it back."""

    def __init__(self, pipeline: Any, now: Now, stack: ExitStack) -> None:
        self.now = now
        self.counters: dict[str, int] = {}
        """Events since the stack was attached, by name."""
        self.notes: dict[str, float] = {}
        """Facts found while running, by name, for the record: finite numbers, of Python, numpy or
        torch, and texts."""
        self.engaged = False
        """Whether any counted event was the method at work (`count(..., idle=True)` is not)."""
        self.starts: list[Callable[[], object]] = []
        self.inspections: list[Callable[[ExitStack], object]] = []
        self.held: list[Callable[[], Iterable[Any]]] = []
        self.shares: dict[tuple[int, int], float] = {}
        """Share of its tokens a sub-layer computed, by (step, sub-layer), in the generation under
        way or the last one."""
        self.artifact: Path | None = None
        """Folder of what was prepared for this method (see `artifact`)."""
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

    def replace(self, tensor: Any, value: Any) -> None:
        """Give a parameter or buffer other data until detached. What it held waits in host memory,
        so that the device's memory is what it would be without."""
        device = tensor.device
        before = tensor.data if device.type == "cpu" else tensor.data.cpu()

        def back() -> None:
            tensor.data = before.to(device)

        self.undo(back)
        tensor.data = value.to(device, tensor.dtype)

    def undo(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` when detached; the last registered is called first."""
        self._stack.callback(callback, *args)

    def on_start(self, reset: Callable[[], object]) -> None:
        """Call `reset` before every generation, so that nothing leaks from one to the next."""
        self.starts.append(reset)

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
        enter the memory ledger."""
        self.held.append(tensors)
