"""What a stack could leave behind: in a pipeline (weights, attributes, hooks, patched functions) and
in its process (settings of torch, threads), before and after. Imports torch only inside functions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED = 64
"""Values of a parameter that are looked at after every stack, evenly spread."""
PLAIN = (bool, int, float, str, bytes, type(None))
"""Types of attributes that are compared by value."""
FLAGS = (
    "cuda.matmul.allow_tf32", "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction", "cudnn.enabled", "cudnn.benchmark",
    "cudnn.deterministic", "cudnn.allow_tf32", "mkldnn.enabled",
)  # fmt: skip
"""Settings under `torch.backends`."""
ATTENTION = ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
"""Kernels of attention that `torch.backends.cuda` can turn off."""


class Unchanged:
    """A pipeline and its process as they were before a stack was attached, for a process that takes
    one stack off and attaches the next.

    Cheap at 12 billion parameters: every parameter and buffer is added up once, when this is made,
    and again only where torch says that it was written to (`Tensor._version`, which inference
    tensors lack: those are taken for written to). Of the others `SAMPLED` values are compared, and
    of all their object, dtype and shape. What is not seen: a change by `tensor.data` of values that
    are not sampled, one whose sum over 64-bit words is the same, values of parameters that are not
    there (`meta`, as in sequential offloading) or are of a class of their own, what containers and
    objects that cannot be called hold, attributes that a module did not have before and that are
    numbers, texts or lists (a first call leaves such), attributes of samplers that are no
    functions, memory that is kept elsewhere, daemon threads, environment variables, and settings of
    other libraries than torch.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.trace = trace_of(pipeline)
        self.settings = settings_of_process()
        self.contents = {name: _Content(t) for name, t in _tensors(pipeline)}
        self.sampled = _sampled(pipeline)

    def left(self) -> list[str]:
        """What is not as it was, by name, sorted: `transformer.blocks.0._forward_hooks`,
        `torch.get_default_dtype`. Empty after a stack that left nothing."""
        now, sampled = dict(_tensors(self.pipeline)), _sampled(self.pipeline)
        trace = trace_of(self.pipeline)
        names = {
            name for name in difference(self.trace, trace)
            if name in self.trace or not isinstance(trace[name], _Value)
        }  # fmt: skip
        names |= {*difference(self.settings, settings_of_process())}
        names |= {
            name for name in sampled.keys() & self.sampled.keys()
            if sampled[name] != self.sampled[name]
        }  # fmt: skip
        names |= {
            name for name, content in self.contents.items()
            if name in now and content.differs(now[name])
        }  # fmt: skip
        return sorted(names)


class _Value(NamedTuple):
    """An attribute that is a number, a text or a list."""

    value: Any


class _Content:
    """What a tensor held, added up."""

    def __init__(self, tensor: Tensor) -> None:
        self.version, self.total = _version(tensor), _total(tensor)

    def differs(self, tensor: Tensor) -> bool:
        """Whether the tensor was written to since, and holds something else than before."""
        version = _version(tensor)
        return (version is None or version != self.version) and _total(tensor) != self.total


def _version(tensor: Tensor) -> int | None:
    """How often torch saw it written to; None where it does not count (inference tensors)."""
    return None if tensor.is_inference() else int(tensor._version)


def _total(tensor: Tensor) -> int | None:
    """The sum of its bytes as 64-bit words, without carry, and of what is left over; None where its
    bytes cannot be read."""
    import torch

    if not _readable(tensor):
        return None
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    words = int(flat[:whole].view(torch.int64).sum()) if whole else 0
    rest = flat[whole:].tolist()  # always at the same place
    return int(words + sum(byte << (8 * i) for i, byte in enumerate(rest)))


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and not hasattr(tensor, "__tensor_flatten__")


def _sampled(pipeline: Any) -> dict[str, bytes]:
    """Some values of every parameter and buffer: one copy to the host for each device."""
    import torch

    pieces: dict[Any, list[tuple[str, Tensor]]] = {}
    for name, tensor in _tensors(pipeline):
        if _readable(tensor) and tensor.numel():
            flat = tensor.detach().reshape(-1)
            piece = flat[:: max(1, flat.numel() // SAMPLED)][: SAMPLED + 1].contiguous()
            pieces.setdefault(tensor.device, []).append((name, piece.view(torch.uint8)))
    values: dict[str, bytes] = {}
    for of_device in pieces.values():
        joined = torch.cat([piece for _, piece in of_device]).cpu().numpy().tobytes()
        start = 0
        for name, piece in of_device:
            values[name] = joined[start : start + piece.numel()]
            start += piece.numel()
    return values


def _modules(pipeline: Any) -> dict[str, Any]:
    from torch import nn

    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _tensors(pipeline: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by its name, those that are no part of a state dict too."""
    for name, part in _modules(pipeline).items():
        for key, value in (*part.named_parameters(), *part.named_buffers()):
            yield f"{name}.{key}", value


def settings_of_process() -> dict[str, Any]:
    """Settings of torch that change what is computed or how fast, its global hooks, and threads
    that outlive what started them."""
    import torch
    import torch.nn.functional as F
    from torch.nn.modules import module

    state: dict[str, Any] = {
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_default_device": torch.get_default_device(),
        "torch.are_deterministic_algorithms_enabled": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled": torch.is_inference_mode_enabled(),
        "torch.is_anomaly_enabled": torch.is_anomaly_enabled(),
        "torch.overrides modes": len(torch.overrides._get_current_function_mode_stack()),
    }
    for name in FLAGS:
        value: Any = torch.backends
        for part in name.split("."):
            value = getattr(value, part, None)
        state[f"torch.backends.{name}"] = value
    for name in ATTENTION:
        if ask := getattr(torch.backends.cuda, f"{name}_enabled", None):
            state[f"torch.backends.cuda.{name}_enabled"] = ask()
    state |= {
        f"torch.nn.modules.module.{name}": len(value)
        for name, value in vars(module).items()
        if name.startswith("_global_") and hasattr(value, "__len__")
    }
    # patched by methods that would replace attention or linear layers everywhere
    state |= {
        f"torch.nn.functional.{name}": id(value)
        for name, value in vars(F).items()
        if callable(value)
    }
    threads = [t for t in threading.enumerate() if not t.daemon and t.is_alive()]
    return state | {"threads": sorted(t.ident or 0 for t in threads)}


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of every part."""
    return {
        f"{name}.{key}": value.clone()
        for name, part in _modules(pipeline).items()
        for key, value in part.state_dict().items()
    }


def trace_of(pipeline: Any) -> dict[str, Any]:
    """What a method could leave behind in a pipeline: attributes, hooks, patched functions, parts
    and their classes, of every module and of the scheduler, and of the pipeline itself."""
    trace: dict[str, Any] = _functions("pipeline", pipeline)
    classes: set[type] = {type(pipeline)}
    modules = _modules(pipeline)
    for name, part in pipeline.components.items():
        trace[name] = id(part)
        classes.add(type(part))
        if name not in modules:
            trace |= _functions(name, part)
            continue
        for path, module in part.named_modules():
            classes.add(type(module))
            trace |= _attributes(f"{name}.{path}" if path else name, module)
    for cls in classes:
        trace |= _functions(f"class {cls.__name__}", cls)
    return trace


def _functions(name: str, owner: Any) -> dict[str, Any]:
    """The attributes of an object, or of a class, that can be called."""
    return {
        f"{name}.{key}": id(value)
        for key, value in getattr(owner, "__dict__", {}).items()
        if callable(value)
    }


def _attributes(path: str, module: Any) -> dict[str, Any]:
    own = vars(module)
    trace: dict[str, Any] = {path: (id(module), type(module))}
    for key, value in own.items():
        if not _is_plain(value):
            trace[f"{path}.{key}"] = _identity(value)
    offloaded = "_hf_hook" in own  # accelerate puts other parameters in their place at every call
    for store in ("_parameters", "_buffers"):
        for key, value in own[store].items():
            if value is not None:
                kind = (value.dtype, tuple(value.shape), value.requires_grad, value.grad is None)
                of = id(value) if store == "_parameters" and not offloaded else None
                trace[f"{path}.{key}"] = (of, kind)
    return trace


def _is_plain(value: Any) -> bool:
    """Whether an attribute is no trace: a registry of diffusers without hooks, which any cache
    context makes."""
    return type(value).__name__ == "HookRegistry" and not value.hooks


def _identity(value: Any) -> Any:
    """What tells one attribute value from another: which hooks there are, the size of other
    containers, the object where it can be called, numbers and texts by what they are."""
    from torch import Tensor

    if callable(value):
        return id(value)
    if isinstance(value, OrderedDict):  # of hooks
        return sorted(key for key, hook in value.items() if not _of_transformers(hook))
    if type(value) in PLAIN:
        return _Value(value)
    if isinstance(value, list):
        return _Value(len(value))
    return (
        len(value)
        if hasattr(value, "__len__") and not isinstance(value, Tensor)
        else type(value).__name__
    )


def _of_transformers(hook: Any) -> bool:
    """Whether a hook is one that text encoders of the library transformers put on themselves in their
    first call, for good."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two traces, sorted; of `threads`, only where there are
    others than before."""
    names = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    # threads that ended are nothing left behind: libraries load weights by some, and do not wait
    if "threads" in names and not {*after.get("threads", ())} - {*before.get("threads", ())}:
        names.remove("threads")
    return sorted(names)


def changed_weights(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of parameters and buffers that are not bit for bit what they were."""
    import torch

    return [
        name
        for name, weight in after.items()
        if name not in before or not torch.equal(weight, before[name])
    ]
