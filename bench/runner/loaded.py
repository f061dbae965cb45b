"""The pipeline of a process and the GPU it is on, before, while and after cells use them. Imports
torch only inside functions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ditbench.method.traces import Unchanged
from ditbench.models.encoded_text import EncodedText
from ditbench.models.placement import to_host
from ditbench.records import gpu_state
from ditbench.records.allocator import give_back_freed_memory, keep_freed_memory
from ditbench.runner.failures import out_of_memory
from ditbench.runner.plan import Cell

if TYPE_CHECKING:
    from ditbench.method.attached import Attached

NAMED = 12
"""Names in a record of what a stack left behind."""


def shortened(names: Sequence[str]) -> list[str]:
    """The first `NAMED` names, and how many more there are."""
    more = len(names) - NAMED
    return [*names[:NAMED], *([f"{more} more"] if more > 0 else [])]


class Loaded:
    """The pipeline of a process, loaded when it is first wanted."""

    def __init__(self) -> None:
        self.pipe: Any = None
        self.seconds = 0.0
        self.gpu: Watched | None = None
        self.attached: Attached | None = None
        self.ledger: dict[str, Any] = {}
        """What was held where memory ran out."""
        self.warm = False
        """Whether a whole call was made with it before."""
        self.threads = 0
        """Threads of torch before any cell."""
        self.spoiled = False
        """Whether a stack left something behind, so that nothing more may be measured here."""
        self.text = EncodedText()
        """What its encoders gave, for all cells."""
        self.encoders_wait = False
        """Whether they are in host memory between cells."""
        self.unchanged: Unchanged | None = None
        """What the pipeline and the process were like before any stack."""

    def load(self, cell: Cell) -> Any:
        """The pipeline of the cell's model, which is that of all cells of the process; threads and
        random numbers are as in a fresh one."""
        import torch

        from ditbench.models.loading import load

        self.threads = self.threads or torch.get_num_threads()
        torch.set_num_threads(cell.spec.threads or self.threads)
        _release(cell.spec.device)
        if self.pipe is None and cell.spec.device.startswith("cuda"):
            self.gpu = Watched(cell.spec.device, cell.spec.dtype)
        if self.pipe is None and not cell.spec.device.startswith("cuda"):
            keep_freed_memory()
        if self.pipe is None:
            began, spec = time.monotonic(), cell.spec
            with torch.inference_mode(False):  # or torch does not count what is written to weights
                self.pipe = load(
                    cell.model, weights=spec.weights, device=spec.device, dtype=spec.dtype,
                    offload=spec.offload, vae=spec.vae,
                )  # fmt: skip
                self.encoders_wait = cell.encodes_once and spec.offload == "none"
                if self.encoders_wait:
                    to_host(self.pipe)
            self.text = EncodedText()
            self.seconds = time.monotonic() - began
            self.unchanged = Unchanged(self.pipe)
            give_back_freed_memory()
        seed_everything()
        return self.pipe

    def left_by(self, cell: Cell) -> list[str]:
        """What a cell's stack left behind that was taken off again, or refused."""
        import torch

        if self.unchanged is None or not all(m.traits.reversible for m in cell.stack.methods):
            return []
        with torch.inference_mode():
            names = self.unchanged.left()
        self.spoiled = self.spoiled or bool(names)
        return names

    @contextmanager
    def watching(self, cell: Cell) -> Iterator[None]:
        """Note what is held where memory runs out, in attaching a stack or with it attached."""
        from ditbench.profiling.memory import ledger

        try:
            yield
        except BaseException as error:
            if out_of_memory(error):
                self.ledger = ledger(self.pipe, self.attached, cell.spec.device)
            raise
        finally:
            self.attached = None


class Watched:
    """A GPU before, while and after a process uses it."""

    def __init__(self, device: str, dtype: str) -> None:
        import torch

        from ditbench.profiling.probe import probe

        index = torch.device(device).index or 0
        uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
        self.uuid = f"GPU-{uuid}" if uuid and not uuid.startswith("GPU-") else uuid
        self.settings, self.before = gpu_state.read(self.uuid)
        self.dtype, self.probe = dtype, probe(device, dtype)

    def now(self) -> dict[str, Any]:
        """Its probe and state at the start, and its state by now."""
        after = gpu_state.read(self.uuid)[1]
        return {"dtype": self.dtype, "probe": self.probe, "before": self.before, "after": after}


def seed_everything() -> None:
    """Random numbers that nobody seeds are the same in every cell, whatever ran before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _release(device: str) -> None:
    """Give back what earlier cells of the process left, so that no peak holds it."""
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
