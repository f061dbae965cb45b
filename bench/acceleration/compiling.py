"""Regions of blocks (`models.regions`) by `torch.compile`: whole blocks where nothing is rerouted
inside or everything is computed (`models.block_region`), else each sub-layer, and norm and modulation
before it.

A region is compiled once for all blocks of its class, and for each of the few shapes it is called
with. It never breaks into several graphs: what torch cannot take whole is run as it is, and noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from ditbench.models import fusing
from ditbench.models.pending import Pending, real
from ditbench.models.regions import Function, compute_by

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

LIMIT = 64
"""Graphs of one function: kinds of modules of its class, times shapes. Torch's own limit, 8, is met
by few sizes of a batch and of chosen rows, and an error above it."""
EAGER = "left_uncompiled"
"""Note in the record: regions that torch could not compile whole, with its reason."""


class Compiler:
    """Compiled regions of one pipeline."""

    def __init__(self, at: Attachment, options: Mapping[str, Any], *, copies: bool) -> None:
        """`options` of torch.compile. `copies`: hand out copies of what a region gives, which stands
        in memory of a CUDA graph that the next call writes to."""
        self.at, self.copies, self._options = at, copies, dict(options)
        self._compiled: dict[Function, Function] = {}

    def install(self) -> None:
        """Compile what no method has replaced: called when all others are attached."""
        self.at.undo(stop_workers)
        config = torch._dynamo.config
        for name, value in (
            ("recompile_limit", max(LIMIT, config.recompile_limit)),
            # else a graph made before a hook was put on, or with that of another block, is used
            ("skip_nnmodule_hook_guards", False),
        ):
            self.at.undo(setattr, config, name, getattr(config, name))
            setattr(config, name, value)
        inside = {block.module: Regions(self, block.module) for block in self.at.blocks}
        for block, regions in inside.items():
            self.at.undo(compute_by(block, regions))
            if regions.whole and "forward" not in vars(block):
                self.at.patch(block, "forward", regions.of(block))
        for sublayer in self.at.sublayers:
            # not rerouted, in a block where another is, or which somebody runs in another way
            block, module = sublayer.owner, sublayer.module
            if module is not block and not {"forward"} & {*vars(module)}:
                self.at.patch(module, "forward", inside[block].of(module))

    def __call__(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """A region's output, compiled; what cannot be compiled whole is run as it is."""
        compiled = self._compiled.get(function)
        if compiled is None:
            compiled = self._compiled[function] = torch.compile(function, **self._options)
        if compiled is function:
            return function(*args, **kwargs)
        self.at.count("regions")
        if self.copies:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            out = compiled(*args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._compiled[function] = function
            self._note(function, error)
            return function(*args, **kwargs)
        return copied(out) if self.copies else out

    def _note(self, function: Function, error: Exception) -> None:
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        sentence = f"{getattr(function, '__qualname__', function)}: {text}"
        before = self.at.notes.get(EAGER)
        self.at.notes[EAGER] = f"{before}; {sentence}" if before else sentence


class Regions:
    """The regions of one block (`models.regions.Computer`)."""

    def __init__(self, compiler: Compiler, block: nn.Module) -> None:
        self._compiler, self._block = compiler, block
        self._replaced = {
            module
            for module in block.modules()
            if module is not block and "forward" in vars(module)
        }
        self.whole = not self._replaced
        """Whether the block is a region: nobody has replaced anything inside."""
        self._hooks = [
            store
            for module in block.modules()
            for store in (module._forward_pre_hooks, module._forward_hooks)
        ]
        self._expected = self._count_hooks()

    def __call__(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Compiled, unless somebody watches the operations or the modules: counts of FLOPs, a
        simulated device, attention that is replaced while a route runs, gradients, and hooks that
        were not there when this was attached."""
        if watched() or self._count_hooks() != self._expected:
            return function(*args, **kwargs)
        if not self.whole and function is type(self._block).forward:
            return function(*args, **kwargs)  # its parts are regions
        named = {name: by_row(value) for name, value in kwargs.items()}
        return self._compiler(function, *map(by_row, args), **named)

    def work_out(self, pending: Pending) -> Tensor:
        """By one region, where that is several operations."""
        return fusing.work_out(pending, lambda function, given: self(function, *given))

    def takes_block(self, routed: frozenset[nn.Module]) -> bool:
        """Where nothing else is replaced, nor watched, as in a call."""
        return self._replaced <= routed and not watched() and self._count_hooks() == self._expected

    def of(self, module: nn.Module) -> Callable[..., Any]:
        """The forward of a module's class as a region."""
        function = type(module).forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # inside of the block's own region
                return function(module, *args, **kwargs)
            return self(function, module, *real(args), **real(kwargs))

        return forward

    def _count_hooks(self) -> int:
        return sum(map(len, self._hooks))


def watched() -> bool:
    """Whether operations are somebody's to see, one by one."""
    return bool(
        torch.is_grad_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


def by_row(given: Any) -> Any:
    """A stream whose rows stand across in memory, as patch embedders give it to the first block, in
    the order of all others: or there would be two graphs of every region that takes it."""
    across = isinstance(given, Tensor) and given.ndim == 3 and given.stride(-1) != 1
    return given.contiguous() if across else given


def stop_workers() -> None:
    """End the threads that inductor compiles with, which it keeps for the next compilation: a process
    that takes this stack off is to be as it was. They begin anew when they are needed."""
    from torch._inductor.async_compile import AsyncCompile

    made = AsyncCompile.pool
    if made.cache_info().currsize:
        made().shutdown()
        made.cache_clear()


def copied(output: Any) -> Any:
    """Its tensors in memory of their own."""
    if isinstance(output, tuple):
        return tuple(map(copied, output))
    return output.clone() if isinstance(output, Tensor) else output


def no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device here, in one sentence; None where it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton, which does not work here"
    if device.type != "cpu":  # simulated: nothing is compiled
        return None
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler (g++ or clang++), and there is none"
    return None
