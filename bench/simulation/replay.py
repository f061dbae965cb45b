"""Modules that need not be run again on the simulated device: those of which it can be seen that
they do what an earlier call did, such as the blocks of a transformer that are all alike.

A call is replayed where nothing but library code runs inside a module (no method has rerouted a
part of it, no hook of one watches it), and where the settings of its parts and the shapes it is
given are those of a call that was run. Its work is added again, its moment of most memory too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from ditbench.models.deferred import TRANSPARENT
from ditbench.models.pending import Pending
from ditbench.profiling.repeated_calls import PLAIN, from_library, shapes_of
from ditbench.simulation.device import NAME, Device, Work, on_device
from ditbench.simulation.ledger import ACTIVATIONS


@dataclass(frozen=True)
class _Call:
    """What a call did."""

    work: Work
    above: int
    """Bytes that were live at its most, above those when it began."""
    storages: tuple[tuple[int, torch.dtype], ...]
    """Numbers and type of each storage that it returned."""
    outputs: tuple[Any, ...]
    """Leaves of what it returned: place of the storage, shape, stride and offset; None as it is."""
    spec: TreeSpec


class Replay:
    """Runs one call of each kind, and replays the others."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.replayed = 0
        """Calls that were not run."""
        self._calls: dict[Any, _Call | None] = {}
        self._forwards: dict[int, Any] = {}  # by module, what this class put in its place
        self._modes = len(_get_current_function_mode_stack())

    @contextmanager
    def over(self, modules: Iterable[nn.Module], name: str = "forward") -> Iterator[None]:
        """Replay what can be of the calls of these modules' methods of that name, until left."""
        changed = [module for module in modules if name not in vars(module)]
        for module in changed:
            replaying = self._replaying(module, name, getattr(module, name))
            self._forwards[id(module)] = replaying
            setattr(module, name, replaying)
        try:
            yield
        finally:
            for module in changed:
                vars(module).pop(name, None)

    def _replaying(self, module: nn.Module, name: str, forward: Any) -> Any:
        def replaying(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, Pending) for leaf in tree_leaves((args, kwargs))):
                return forward(*args, **kwargs)  # which may never be worked out
            kind = self._kind(module, name, args, kwargs)
            if kind is None or (call := self._calls.get(kind, ...)) is None:
                return forward(*args, **kwargs)
            if call is not ...:
                return self._again(call)
            ledger, before = self.device.ledger, self.device.work.copy()
            peak, live = ledger.begin()
            out = forward(*args, **kwargs)
            above = ledger.end(peak) - live
            self._calls[kind] = self._noted(
                self.device.work.minus(before), above, args, kwargs, out
            )
            return out

        TRANSPARENT.add(replaying)
        return replaying

    def _noted(self, work: Work, above: int, args: Any, kwargs: Any, out: Any) -> _Call | None:
        """None where what it returned cannot be made anew: part of what it was given, or no tensor
        of the device."""
        leaves, spec = tree_flatten(out)
        given = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if _is(t)}
        storages: dict[int, int] = {}  # -> place in `sizes`
        sizes: list[tuple[int, torch.dtype]] = []
        outputs: list[Any] = []
        for leaf in leaves:
            if leaf is None:
                outputs.append(None)
                continue
            if not _is(leaf) or not on_device(leaf):
                return None
            storage = leaf.untyped_storage()
            if storage._cdata in given:
                return None
            if storage._cdata not in storages:
                storages[storage._cdata] = len(sizes)
                sizes.append((storage.nbytes() // leaf.element_size(), leaf.dtype))
            place = storages[storage._cdata]
            if sizes[place][1] != leaf.dtype:
                return None
            outputs.append((place, leaf.shape, leaf.stride(), leaf.storage_offset()))
        return _Call(work, above, tuple(sizes), tuple(outputs), spec)

    def _again(self, call: _Call) -> Any:
        self.replayed += 1
        self.device.work.plus(call.work)
        self.device.ledger.passes(call.above)
        self.device.purpose = ACTIVATIONS
        storages = [torch.empty(size, dtype=dtype, device=NAME) for size, dtype in call.storages]
        leaves = [leaf and storages[leaf[0]].as_strided(*leaf[1:]) for leaf in call.outputs]
        self.device.purpose = ""
        return tree_unflatten(leaves, call.spec)

    def _kind(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> Any:
        """What decides what a call does; None where something else may: a method's code inside
        the module, or watching what runs."""
        if len(_get_current_function_mode_stack()) != self._modes:
            return None
        parts = []
        for path, part in module.named_modules():
            own = vars(part)
            forward = own.get("forward")
            ours = forward is None or forward is self._forwards.get(id(part))
            if part is not module and not ours:
                return None
            hooks = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
            if not all(map(from_library, hooks)):
                return None
            tensors = tuple(
                (type(t), t.shape, t.dtype)
                for t in (*own["_parameters"].values(), *own["_buffers"].values())
                if t is not None
            )
            settings = tuple((key, v) for key, v in own.items() if isinstance(v, PLAIN))
            parts.append((path, type(part), settings, tensors))
        fused = torch.backends.cuda.flash_sdp_enabled()
        return name, shapes_of((args, kwargs)), tuple(parts), fused


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
