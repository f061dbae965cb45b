"""Where the time of the sampler loop goes, by kind of operation: from one profiled call, which is
neither timed nor weighed. Imports torch only inside functions.

On the CPU an operation's time is its own (without those it calls); on a GPU it is that of the kernels
it launches. What remains of the loop's wall time is the host's: Python, dispatch, views, and on a GPU
every gap in which no kernel runs. The profiler itself takes time, about a microsecond an operation,
which falls to the host: shares of the host are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter as now
from typing import Any

KINDS = ("products", "attention", "convolutions", "elementwise", "copies", "host")
"""Matrix products; attention; convolutions; norms, activations, sums and all else that works on
values; gathers, scatters and copies; the host."""
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addbmm", "matmul", "linear", "_mm", "einsum")
"""How names of products end."""
COPIES = (
    "copy", "cat", "stack", "gather", "scatter", "index", "take", "clone", "fill", "zero", "repeat",
    "roll", "where", "masked", "pad", "embedding", "sort", "topk",
)  # fmt: skip
"""What names of copies, and of what chooses rows, hold."""
VIEWS = {
    "as_strided", "t", "expand", "expand_as", "transpose", "permute", "empty", "empty_strided",
    "empty_like", "select", "slice", "narrow", "to", "_to_copy", "view", "view_as",
    "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "split", "split_with_sizes",
    "chunk", "reshape", "resize_", "resolve_conj", "resolve_neg", "detach", "detach_", "alias",
    "item", "_local_scalar_dense", "is_nonzero", "lift_fresh", "unbind", "unflatten", "flatten",
    "contiguous", "result_type", "linear", "matmul", "einsum", "layer_norm", "group_norm",
    "scaled_dot_product_attention", "conv2d", "conv3d", "convolution", "_convolution",
    "embedding", "stack", "where", "index_select_backward", "numpy_T", "size", "stride",
}  # fmt: skip
"""Operations that touch no values themselves: views, allocations, and those that call others."""


def kind_of(name: str) -> str:
    """The kind of an operation by its name, as the profiler has it (`aten::addmm`)."""
    library, _, own = name.rpartition("::")
    if not library or (library == "aten" and own in VIEWS):
        return "host"
    if "attention" in own or "flash" in own:
        return "attention"
    if "conv" in own and "convert" not in own:
        return "convolutions"
    if own.endswith(PRODUCTS) or "_mm_" in own or "linear" in own:
        return "products"
    if any(word in own for word in COPIES):
        return "copies"
    return "elementwise"


def profile_loop(pipe: Any, call: Callable[[], object], device: str) -> dict[str, float]:
    """Seconds of the sampler loop of `call()`, which runs the pipeline once: `wall_s`, and by kind
    `products_s`, `attention_s` ... `host_s`, which add up to it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    profiler, span = profile(activities=activities), [0.0, 0.0]

    def settle() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        return now()

    def begin() -> None:
        profiler.start()
        span[0] = settle()

    def end() -> None:
        span[1] = settle()
        profiler.stop()

    with _around_loop(pipe, begin, end):
        call()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        its = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[kind_of(event.key)] += its / 1e6
    wall = span[1] - span[0]
    spent["host"] = max(0.0, wall - sum(s for kind, s in spent.items() if kind != "host"))
    return {"wall_s": wall} | {f"{kind}_s": seconds for kind, seconds in spent.items()}


@contextmanager
def _around_loop(pipe: Any, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call `begin` before the transformer's first run and `end` before the decoder, or when the call
    is over, once each."""
    state = "before"

    def first(*_: Any) -> None:
        nonlocal state
        if state == "before":
            state = "inside"
            begin()

    def over() -> None:
        nonlocal state
        if state == "inside":
            state = "after"
            end()

    own, decode = vars(pipe.vae).get("decode"), pipe.vae.decode

    def decoding(*args: Any, **kwargs: Any) -> Any:
        over()
        return decode(*args, **kwargs)

    hook = pipe.transformer.register_forward_pre_hook(first)
    pipe.vae.decode = decoding
    try:
        yield
    finally:
        vars(pipe.vae).pop("decode", None)  # what was called inside may have taken it off
        if own is not None:
            pipe.vae.decode = own
        hook.remove()
        over()
