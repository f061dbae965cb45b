"""Count the FLOPs of everything that runs, by part of the pipeline and kind of product. The public
side is `counting.py`.

One FLOP is half a multiply-accumulate: FLOPs = 2 MACs. Matrix products, attention and convolutions
are counted, with the shapes they are executed with; norms, activations, softmax, rotary embeddings
and the sampler's arithmetic are not. A mask that torch's attention is given, and causality, do not
lower a count: sparse attention is an operation of its own, whose formula goes by the mask
(`acceleration/attention/operator.py`). The formulas are
PyTorch's (`torch.utils.flop_counter`), and those it lacks are added here: attention on the CPU and
eight-bit products above all, for which PyTorch 2.13 silently counts nothing. A product without a
formula is an error, never a zero.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ditbench.profiling.flops import DECODER, ELSEWHERE, TEXT, TRANSFORMER, Flops
from ditbench.profiling.meta_operations import decomposes, description, empty_of, signature

LINEAR, ATTENTION, CONV = "linear", "attention", "conv"


def _sdpa(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))


def _product(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """[..., k] times [k, n] or [k]."""
    return int(2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1))


def _packed(a: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """[m, k] times packed weights, of which only the result [m, n] tells n."""
    return int(2 * a.numel() * out_val.shape[-1])


def _added_batches(_: Any, a: Any, b: Any, **kwargs: Any) -> int:
    """Sum over [b, m, k] times [b, k, n]."""
    return int(2 * a.numel() * b.shape[-1])


_MORE: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "_scaled_dot_product_efficient_attention": _sdpa,
    "_scaled_dot_product_flash_attention": _sdpa,
    "_scaled_dot_product_cudnn_attention": _sdpa,
    "_scaled_dot_product_fused_attention_overrideable": _sdpa,
    "_scaled_dot_product_attention_math": _sdpa,
    "_scaled_dot_product_attention_math_for_mps": _sdpa,
    "_int_mm": _product,
    "mv": _product,
    "dot": _product,
    "vdot": _product,
    "addmv": lambda _, a, b, **kwargs: _product(a, b),
    "addbmm": _added_batches,
    "_weight_int8pack_mm": _packed,
    "_weight_int4pack_mm": _packed,
    "_weight_int4pack_mm_for_cpu": _packed,
}
_PRODUCT = re.compile(
    r"(?!co)\w*mm|f[48]f[48]\w*|\w*gemm|\w*matmul|q?linear|einsum|(add)?mv|v?dot|conv\d?d?|convolution|attention|attn|fmha|sdpa"
)


def formulas() -> Mapping[Any, Callable[..., int]]:
    """Operation -> FLOPs of (its arguments, `out_val`): PyTorch's formulas with those that were
    registered there, up to now or later, and ours where it has none."""
    ours = {
        getattr(torch.ops.aten, name): f
        for name, f in _MORE.items()
        if hasattr(torch.ops.aten, name)
    }
    return ChainMap(flop_registry, ours)


def looks_like_a_product(name: str) -> bool:
    """Whether an operation of this name multiplies matrices, judged by the words in it."""
    words = name.rpartition("::")[2].strip("_").split("_")
    return not name.startswith("upsample") and any(_PRODUCT.fullmatch(word) for word in words)


_ASIDE: list[None] = []


@contextmanager
def aside() -> Iterator[None]:
    """What runs inside is the harness's own work, a comparison say, and no counter adds it up."""
    _ASIDE.append(None)
    try:
        yield
    finally:
        _ASIDE.pop()


class _Linears(TorchFunctionMode):
    """Knows when a product is part of a linear layer, whatever operation it is carried out by."""

    inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        linear = func is torch.nn.functional.linear
        self.inside += linear
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside -= linear


class Counter(TorchDispatchMode):
    """Adds up FLOPs of everything that runs inside it, by part of the pipeline and kind of product.

    Unlike `FlopCounterMode` it looks inside tensor subclasses, as quantised weights are, and notes
    products it cannot count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = ELSEWHERE
        self.flops: Tally[tuple[str, str]] = Tally()
        """FLOPs by (part, kind)."""
        self.uncounted: Tally[str] = Tally()
        self.forwards = self.passes = 0
        self._linears = _Linears()
        self.formulas = formulas()
        self._products: list[tuple[Any, int | None]] = []
        """Kind and FLOPs of each product of the operation under way, or its name and None."""
        self._operations: dict[Any, tuple[Any, list[tuple[Any, int | None]]]] = {}
        """On the meta device, by operation and shapes: what it returns and the products in it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if set(types) - {
            torch.Tensor,
            torch.nn.Parameter,
        }:  # a subclass comes back with the tensors it is made of
            return NotImplemented
        if _ASIDE:
            return self._run(func, args, kwargs)
        given = signature((func, args, kwargs, self._linears.inside > 0))
        if given in self._operations:
            made, products = self._operations[given]
            self._add(products)
            return empty_of(made)
        first = len(self._products)
        out = self._run(func, args, kwargs)
        if given is not None and (made := description(out, (args, kwargs))) is not None:
            self._operations[given] = made, self._products[first:]
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation itself, or the ones it is made of, each of which comes back here."""
        if func is not torch.ops.prim.device.default and decomposes(func):
            # or _Linears would send each operation round again
            with self, torch._C.DisableTorchFunction():
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if _ASIDE:
            return out
        packet = func._overloadpacket
        if packet in self.formulas:
            flops = self.formulas[packet](*args, **kwargs, out_val=out)
            self._add([(self._kind(packet), flops)])
        elif looks_like_a_product(str(packet).partition(".")[2]):
            self._add([(packet, None)])
        return out

    def _add(self, products: Sequence[tuple[Any, int | None]]) -> None:
        """Add products to the part that runs now."""
        for what, flops in products:
            if flops is not None:
                self.flops[self.part, what] += flops
            else:
                self.uncounted[
                    str(what) if self.part == TRANSFORMER else f"{self.part}: {what}"
                ] += 1
        self._products += products

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs inside."""
        with self._linears, self:
            yield

    def _kind(self, packet: Any) -> str:
        name = str(packet)
        if "attention" in name:
            return ATTENTION
        if "conv" in name:
            return CONV
        return ATTENTION if "bmm" in name and not self._linears.inside else LINEAR

    def of(self, part: str, kind: str | None = None) -> int:
        """FLOPs of a part so far, of one kind or of all."""
        return sum(n for (p, k), n in self.flops.items() if p == part and kind in (None, k))

    @contextmanager
    def following(self, pipe: Any) -> Iterator[None]:
        """Know which part of the pipeline runs, and leave no trace."""
        parts = [(pipe.transformer, TRANSFORMER)]
        parts += [
            (m, TEXT)
            for name, m in pipe.components.items()
            if name.startswith("text_encoder") and m is not None
        ]
        parts += [(m, DECODER) for m in (pipe.vae.children() if pipe.vae is not None else ())]
        with ExitStack() as undo:
            for module, part in parts:
                undo.callback(
                    module.register_forward_pre_hook(self._entered(part), with_kwargs=True).remove
                )
                undo.callback(
                    module.register_forward_hook(self._left(part), always_call=True).remove
                )
            yield

    def _entered(self, part: str) -> Callable[..., None]:
        def entered(_module: Any, args: Any, kwargs: Any) -> None:
            self._before, self.part = self.of(TRANSFORMER), part
            if part == TRANSFORMER:
                self._rows = (args[0] if args else kwargs["hidden_states"]).shape[0]

        return entered

    def _left(self, part: str) -> Callable[..., None]:
        def left(_module: Any, _args: Any, _out: Any) -> None:
            if part == TRANSFORMER and self.of(TRANSFORMER) > self._before:
                self.forwards += 1
                self.passes += self._rows
            self.part = ELSEWHERE

        return left

    def result(self) -> Flops:
        """What was counted."""
        return Flops(
            flops=self.of(TRANSFORMER),
            linear_macs=self.of(TRANSFORMER, LINEAR) // 2,
            attention_macs=self.of(TRANSFORMER, ATTENTION) // 2,
            conv_macs=self.of(TRANSFORMER, CONV) // 2,
            forwards=self.forwards,
            passes=self.passes,
            text_flops=self.of(TEXT),
            decoder_flops=self.of(DECODER),
            uncounted=dict(self.uncounted),
        )
