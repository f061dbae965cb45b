"""The simulated device `gpu`: tensors with shapes and no values on torch's CPU build, at any size.

What lies on the device is a fake tensor; the host's tensors are real, so that tokenizers, time
steps and sigmas have their values. Noted are kernels with their work, bytes, copies between host
and device, and reads that make the host wait, by source line. Tensors on different devices in one
operation raise as on a GPU. What comes back from the device has no values: it reads as zeros.

One operation of torch is one kernel, after torch's own decomposition; attention and RMS norm are
one each, as a GPU has them. The device's name is registered with torch once and stays (a process
cannot take it back).
"""

from __future__ import annotations

import math
import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch._higher_order_ops.out_dtype import out_dtype
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import sdpa_flop_count

from ditbench.models.fused_rows import ROWS_READ
from ditbench.profiling.flop_counter import formulas
from ditbench.simulation import operations
from ditbench.simulation.costs import Kernel
from ditbench.simulation.ledger import ACTIVATIONS, RANKING, Ledger
from ditbench.simulation.source_lines import frame, source_line

NAME = "gpu"
aten = torch.ops.aten
_NO_KERNEL = frozenset(
    {
        aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided,
        aten.detach, aten.lift_fresh, aten._unsafe_view, aten.set_, aten.resize_, aten.alias,
    }
)  # fmt: skip
_ROWS_READ = ROWS_READ | {aten.embedding, aten.index_select, aten.index, aten.gather}
"""Operations that read of their first argument only what they give."""
_DEVICE_OF = torch.ops.prim.device.default
_COPIES = frozenset({aten._to_copy, aten.copy_})
_VALUES = frozenset({aten._local_scalar_dense, aten.equal, aten.is_nonzero})


class GoesByValues(RuntimeError):
    """What runs depends on values of the device, of which there are none here."""

    def __init__(self, why: str, syncs: Mapping[str, int] | None = None) -> None:
        """`syncs`: reads of values in the sampler loop by source line, where that is the reason."""
        super().__init__(why)
        self.syncs = dict(syncs or {})


class OutOfTime(Exception):
    """The simulation took longer than it may."""


@dataclass
class Work:
    """What ran on the device, or between it and the host."""

    kernels: Tally[Kernel] = field(default_factory=Tally)
    syncs: Tally[str] = field(default_factory=Tally)
    """Reads of the device's values, which make the host wait for it: how often, by source line."""
    copies: Tally[str] = field(default_factory=Tally)
    """Blocking copies from the host, which wait for the device too: how often, by source line."""

    def minus(self, before: Work) -> Work:
        """What was added since."""
        return Work(
            self.kernels - before.kernels, self.syncs - before.syncs, self.copies - before.copies
        )

    def plus(self, more: Work, times: int = 1) -> None:
        """Add work, several times over."""
        for mine, other in ((self.kernels, more.kernels), (self.syncs, more.syncs)):
            for key, n in other.items():  # type: ignore[attr-defined]
                mine[key] += n * times  # type: ignore[index]
        for line, n in more.copies.items():
            self.copies[line] += n * times

    def copy(self) -> Work:
        """As it is now."""
        return Work(self.kernels.copy(), self.syncs.copy(), self.copies.copy())


class Device(TorchDispatchMode):
    """The device while it is there (`simulated`)."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        _register()
        self.ledger = Ledger()
        self.work = Work()
        self.purpose = ""
        """What tensors made now are for, in the ledger; "": by the line that makes them."""
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.formulas = formulas()
        self.deadline = math.inf
        """When to give up, by `time.monotonic`."""
        self._outcomes: dict[Any, operations.Outcome | None] = {}
        self._here = torch.device(NAME, 0)

    def launch(self, name: str, flops: int, tensors: list[Tensor], dtype: torch.dtype) -> Kernel:
        """Note one kernel that reads and writes these tensors."""
        kind = str(dtype).removeprefix("torch.")
        kernel = Kernel(name, kind, flops, sum(map(_bytes, tensors)))
        self.work.kernels[kernel] += 1
        return kernel

    def reads(self) -> None:
        """Note that the host waits for a value of the device here."""
        self.work.syncs[source_line()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF and type(args[0]) is FakeTensor:
            return args[0].fake_device
        kwargs = kwargs or {}
        if func is out_dtype:  # an integer product, as torchao asks for it
            return torch._int_mm(*args[2:])
        if set(types) - {Tensor, torch.nn.Parameter, FakeTensor}:
            return NotImplemented  # a quantised tensor comes back with the tensors it is made of
        with torch._C.DisableTorchFunction():
            known = operations.signature(func, args, kwargs, NAME)
            if known is not None and (before := self._outcomes.get(known)) is not None:
                return self._again(before, func, args, kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        fake = any(isinstance(t, FakeTensor) for t in given)
        target = kwargs.get("device")
        if not fake and (target is None or torch.device(target).type != NAME):
            return func(*args, **kwargs)
        self._in_time()
        packet = func.overloadpacket
        here = any(on_device(t) for t in given)
        if packet in _VALUES:
            if here:
                self.reads()
            scalar = packet is aten._local_scalar_dense
            return torch.zeros((), dtype=given[0].dtype).item() if scalar else True
        try:
            out = self._run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise GoesByValues(f"{func} at {source_line()} goes by values") from error
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        sides = {on_device(t) for t in (*given, *made)}
        kernel = None
        if packet in _COPIES and len(sides) == 2:
            self._copied(given[-1], kwargs)
        elif True in sides and not (
            func.is_view or packet in _NO_KERNEL or packet._qualified_op_name.startswith("prim")
        ):
            kernel = self._launched(packet, args, kwargs, given, made, out)
        purpose = self.purpose
        for tensor in made:
            if on_device(tensor):
                purpose = purpose or _purpose()
                self.ledger.hold(tensor, purpose)
        if known is not None:
            with torch._C.DisableTorchFunction():
                self._outcomes[known] = operations.outcome(func, out, args, kernel, NAME)
        return out

    def _again(self, what: operations.Outcome, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation that was run before on tensors alike."""
        self._in_time()
        out = operations.again(what, self.fakes, self._here, func, args, kwargs)
        if what.kernel is not None:
            self.work.kernels[what.kernel] += 1
        if what.kind == operations.NEW:
            purpose = self.purpose or _purpose()
            for tensor in out if what.packed else (out,):
                self.ledger.hold(tensor, purpose)
        return out

    def _in_time(self) -> None:
        """Raise `OutOfTime`; never for the host's tensors, which modules make when imported."""
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation on shapes alone: the host's tensors are given without their values too."""

        def shape_of(leaf: Any) -> Any:
            real = isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
            return self.fakes.from_tensor(leaf) if real else leaf

        if not all(isinstance(leaf, FakeTensor) for leaf in args):
            args, kwargs = tree_map(shape_of, (args, kwargs))
        with self.fakes:
            return func(*args, **kwargs)

    def _copied(self, source: Tensor, kwargs: Any) -> None:
        """A copy to the host is waited for; one from the host too, unless it is told not to be."""
        if on_device(source):
            self.reads()
        elif not kwargs.get("non_blocking"):
            self.work.copies[source_line()] += 1

    def _launched(
        self, packet: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor], out: Any
    ) -> Kernel:
        count = self.formulas.get(packet)
        flops = int(count(*args, **kwargs, out_val=out)) if count else 0
        if packet in _ROWS_READ:
            given = [*made, *given[1:]]
        product = next((t for t in given if t.dim() > 1), None) if flops else None
        dtype = (product if product is not None else (made or given)[0]).dtype
        tensors = [t for t in (*given, *made) if on_device(t)]
        return self.launch(str(packet).removeprefix("aten."), flops, tensors, dtype)


class _Fused(TorchFunctionMode):
    """What is one kernel on a GPU, though torch decomposes it here; and reads of values that no
    operation shows."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, FakeTensor):
            if func == Tensor.data.__set__:  # type: ignore[attr-defined]
                return self._exchange(func, *args)
            if func is F.scaled_dot_product_attention and torch.backends.cuda.flash_sdp_enabled():
                return self._attention(*args, **kwargs)
            if func is F.rms_norm and on_device(first):
                return self._rms_norm(*args, **kwargs)
            if func in (Tensor.__repr__, Tensor.numpy, Tensor.__array__):
                return self._values(func, first)
            own = next((t for t in types if t not in (FakeTensor, torch.nn.Parameter)), None)
            if func is F.linear and own is not None and not self._inside:
                return self._quantised(own, func, types, args, kwargs)
        return func(*args, **kwargs)

    def _quantised(self, own: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """A linear layer whose weights are a tensor type of their own: what it calls is looked at
        too, as torch does not by itself."""
        self._inside = True
        try:
            with self:
                return own.__torch_function__(func, types, args, kwargs)
        finally:
            self._inside = False

    def _exchange(self, func: Any, tensor: Tensor, value: Tensor) -> None:
        """`tensor.data = value`; where that moves it to the host, it is counted there."""
        if on_device(tensor) and not on_device(value):
            return self.device.ledger.release(tensor)
        func(tensor, value)
        return self.device.ledger.take_back(tensor)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        """[B,H,N,d], [B,H,M,d], [B,H,M,e] -> [B,H,N,e], without a map."""
        for other in (key, value, *([] if attn_mask is None else [attn_mask])):
            if on_device(other) != on_device(query):
                raise RuntimeError(f"attention over {query.device} and {other.device}")
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        tensors = [query, key, value, out, *([] if attn_mask is None else [attn_mask])]
        flops = int(sdpa_flop_count(query.shape, key.shape, value.shape))
        self.device.launch("scaled_dot_product_attention", flops, tensors, query.dtype)
        return out

    def _rms_norm(
        self, hidden: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None
    ) -> Tensor:
        out = torch.empty_like(hidden)
        self.device.launch(
            "rms_norm", 0, [hidden, out, *([] if weight is None else [weight])], hidden.dtype
        )
        return out

    def _values(self, func: Any, tensor: Tensor) -> Any:
        if on_device(tensor):
            self.device.reads()
        if func is Tensor.__repr__:  # torchao looks for the name of the class in it
            return f"tensor(..., device='{NAME}', size={tuple(tensor.shape)}, dtype={tensor.dtype})"
        zero = torch.zeros((), dtype=tensor.dtype)
        return np.broadcast_to(zero.numpy(), tuple(tensor.shape))


def _register() -> None:
    """Let torch know the device's name."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    registration._setup_privateuseone_for_python_backend(NAME)
    # torch asks the device there is, simulated or not, when it checkpoints activations
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


@contextmanager
def simulated(device: Device | None = None) -> Iterator[Device]:
    """The device, a new one or one that was left: tensors made on `gpu` inside are on it."""
    device = device or Device()
    # or `torch.tensor(values, device="gpu")` would want memory of a device that is not there
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with device, _Fused(device):
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor lies on the simulated device."""
    return tensor.device.type == NAME


def _purpose() -> str:
    """What a tensor made now is for: a method's own arithmetic, or the model's."""
    ours = frame()[0].startswith(("ditbench.methods", "ditbench.acceleration"))
    return RANKING if ours else ACTIVATIONS


def _bytes(tensor: Tensor) -> int:
    """Bytes that reading or writing a tensor moves; of an expanded one what it is expanded from."""
    lengths = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(lengths) * tensor.element_size() if tensor.numel() else 0
