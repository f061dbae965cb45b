"""What CUDA graphs do, on a CPU: the operations of a capture, done again in the same memory."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditbench.models.operation_list import HOST_READS

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""What a CUDA graph cannot have in it: the host would wait for a number."""


class OperationCapture:
    """As `call_graphs.Capture`."""

    def __call__(self, run):
        noted = _Noted()
        with noted, _Waits():
            out = run()
        return out, noted.again


class _Noted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError(f"{func} while capturing")
        out = func(*args, **kwargs)
        given = {id(t.untyped_storage()._cdata) for t in _tensors((args, kwargs))}
        given |= {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        views = [t.untyped_storage()._cdata in given for t in _tensors(out)]
        if func._schema.is_mutable or not all(views):
            self.lines.append((func, args, kwargs, out))
        return out

    def again(self):
        for func, args, kwargs, out in self.lines:
            new = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for stays, value in zip(_tensors(out), _tensors(new), strict=True):
                    stays.copy_(value)


class _Waits(TorchFunctionMode):
    """Refuses what reads numbers without an operation, as `item` does in inference mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in HOST_READS:
            raise RuntimeError(f"{func.__name__} while capturing")
        return func(*args, **(kwargs or {}))


def _tensors(given):
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
