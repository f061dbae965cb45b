"""The device `card` with values, on torch's CPU build: what meets the host's tensors there fails as
on a GPU.

A tensor on it wraps one of the host's, on which every operation runs; so trainings and calibrations
run, which read values, as those of `ditbench.simulation.device` cannot. What CUDA allows is
allowed: numbers of the host (tensors without dimensions) in pointwise operations, the host's
indices, copies. Anything else of two devices raises `DevicesMeet`, and so does a random operation
on the device with a generator of the host.

It is not a GPU: kernels and rounding are the CPU's, nothing waits, `flex_attention` and what asks
for the device type `cuda` are not run. The name is registered with torch once and stays, and torch
has room for one: a process has this device or the simulated one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "card"
"""Not `gpu`: where tensors lie on that one, methods do not look at values."""
aten = torch.ops.aten
_COPIES = frozenset({aten._to_copy, aten.copy_, aten.copy})
_INDEXED = frozenset(
    {
        aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
        aten._unsafe_index_put,
    }
)  # fmt: skip
_WITH_NUMBERS = _INDEXED | {
    aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.lerp, aten.lerp_,
}  # fmt: skip
"""Operations that take a number of the host, besides pointwise ones."""


class DevicesMeet(RuntimeError):
    """An operation of tensors, or of a tensor and a generator, on two devices."""


class _OnDevice(Tensor):
    """A tensor on the device: `on_host` holds its values."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _OnDevice:
        """Wrap a tensor of the host."""
        out: _OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        out.on_host = inner
        return out

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """As torch writes it, with the device."""
        return f"{self.on_host!r} on {NAME}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch does not hand on to operations."""
        kwargs = kwargs or {}
        if set(types) - _KNOWN:
            return NotImplemented  # a quantised tensor's own product comes first
        if func is Tensor.tolist:
            return args[0].detach().cpu().tolist()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"a tensor on {NAME} is no array of NumPy's; copy it to the host first")
        if func in (Tensor.untyped_storage, Tensor.data_ptr):
            return func(args[0].on_host)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].on_host = args[1].on_host
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """An operation on tensors of the device."""
        return _run(func, types, args, kwargs or {})


_KNOWN = {Tensor, nn.Parameter, _OnDevice}


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any,
) -> Tensor:  # fmt: skip
    """By products: torch knows no kernel of the device."""
    if isinstance(attn_mask, Tensor) and not isinstance(attn_mask, _OnDevice):
        raise DevicesMeet(f"attention on {NAME} under a mask of the host")
    out: Tensor = aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, **more
    )[0]
    return out


def _run(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """An operation, on the values; its tensors stay on the device where it does not name another."""
    if set(types) - _KNOWN:
        return NotImplemented
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, _OnDevice) for t in given)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not here and target != NAME:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet is aten._has_compatible_shallow_copy_type:
        return all(isinstance(t, _OnDevice) for t in given)
    _check(func, args, kwargs)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    if target == NAME:
        inner_kwargs["device"] = "cpu"
    out = func(*inner_args, **inner_kwargs)
    if target not in (None, NAME):
        return out.clone() if any(out is _inner(t) for t in given) else out
    written = any(
        a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments
    )
    own = {id(_inner(t)): t for t in given} if written else {}

    def wrapped(value: Any) -> Any:
        plain = isinstance(value, Tensor) and not isinstance(value, _OnDevice)
        if not plain:
            return value
        return own[id(value)] if id(value) in own else _OnDevice(value)

    return tree_map(wrapped, out)


def _inner(value: Any) -> Any:
    return value.on_host if isinstance(value, _OnDevice) else value


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise `DevicesMeet` where CUDA does not allow the operation."""
    leaves, packet = tree_leaves((args, kwargs)), func.overloadpacket
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise DevicesMeet(f"{func} on {NAME} with a generator of the host")
    if packet in _COPIES:
        return
    indexed = packet in _INDEXED and isinstance(args[0], _OnDevice)
    looked_at = tree_leaves((args[2:], kwargs)) if indexed else leaves
    hosts = [t for t in looked_at if isinstance(t, Tensor) and not isinstance(t, _OnDevice)]
    foreach = packet._qualified_op_name.startswith("aten::_foreach_")
    numbers = torch.Tag.pointwise in func.tags or foreach or packet in _WITH_NUMBERS
    writes = [a.alias_info and a.alias_info.is_write for a in func._schema.arguments[:1]]
    into_host = any(writes) and any(t is args[0] for t in hosts)
    if any(t.dim() or not numbers for t in hosts) or into_host:
        shapes = ", ".join(f"{list(t.shape)} {t.dtype}" for t in hosts)
        raise DevicesMeet(f"{func} of tensors on {NAME} and on the host: {shapes}")


class _Operations(TorchDispatchMode):
    """Brings tensors to the device, and makes new ones there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, types, args, kwargs or {})


class _Exchanges(TorchFunctionMode):
    """`tensor.data = value` of another device, which torch allows between the CPU and CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            tensor, value = args
            if isinstance(tensor, _OnDevice) != isinstance(value, _OnDevice):
                made = value.detach()
                if isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made, requires_grad=tensor.requires_grad)
                return torch.utils.swap_tensors(tensor, made)
        return func(*args, **(kwargs or {}))


@contextmanager
def with_values() -> Iterator[None]:
    """The device is there: `tensor.to("card")`, `torch.zeros(3, device="card")`. RuntimeError where
    torch has the simulated device's name already."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        registration._setup_privateuseone_for_python_backend(NAME)
        # asked for when activations are checkpointed
        getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Operations(), _Exchanges():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
