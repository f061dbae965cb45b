"""What a method could leave behind in a pipeline: weights, attributes, hooks and patched functions,
before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    """A copy of every parameter and buffer of every part."""
    modules = {
        name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)
    }
    return {
        f"{name}.{key}": value.clone()
        for name, part in modules.items()
        for key, value in part.state_dict().items()
    }


def trace_of(pipeline: Any) -> dict[str, Any]:
    """What a method could leave behind: attributes, hooks and patched functions of every module and
    of the scheduler."""
    trace: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        trace[name] = id(part)
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                own = vars(module)
                trace |= {
                    f"{name}.{path}.{key}": _identity(value)
                    for key, value in own.items()
                    if not _is_plain(value)
                }
                trace |= {
                    f"{name}.{path}.{key}": id(value)
                    for key, value in own["_parameters"].items()
                    if value is not None
                }
        else:
            trace |= {
                f"{name}.{key}": _identity(value)
                for key, value in getattr(part, "__dict__", {}).items()
                if callable(value)
            }
    return trace


def _is_plain(value: Any) -> bool:
    """Whether an attribute is no trace: a registry of diffusers without hooks, which any cache
    context makes."""
    return type(value).__name__ == "HookRegistry" and not value.hooks


def _identity(value: Any) -> Any:
    """What tells one attribute value from another: the size of containers (hooks), the object where
    it can be called."""
    if callable(value):
        return id(value)
    return (
        len(value)
        if hasattr(value, "__len__") and not isinstance(value, Tensor)
        else type(value).__name__
    )


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not the same in two traces, sorted."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def changed_weights(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of parameters and buffers that are not bit for bit what they were."""
    return [
        name
        for name, weight in after.items()
        if name not in before or not torch.equal(weight, before[name])
    ]
