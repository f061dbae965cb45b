"""Latency by stage, memory and FLOPs of a loaded pipeline under a stack: each in its own pass,
never one under another's counter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.models.family import family_of, grid_of
from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import Sampling

if TYPE_CHECKING:
    from ditbench.method.attached import Attached
    from ditbench.models.table import Model
    from ditbench.models.text_ahead import TextAhead


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One timed call of the pipeline, seconds; the three stages add up to the call."""

    size: int
    """Samples in the batch."""
    call_s: float
    text_s: float
    """From the call to the first transformer run: prompt encoding, noise, time steps."""
    denoise_s: float
    """From the first transformer run to the decoder: the sampler loop."""
    decode_s: float
    """Latents to pixels."""


@dataclass
class Clock:
    """Marks points of a call; on a GPU by events, so that nothing waits for the device inside the
    call."""

    device: str
    marks: dict[str, Any] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Note the time, the first time `name` comes by."""
        if name in self.marks:
            return
        if self.device.startswith("cuda"):
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks[name] = event
        else:
            self.marks[name] = time.perf_counter()

    def between(self, first: str, last: str) -> float:
        """Seconds from one mark to another; call after `settle`."""
        a, b = self.marks[first], self.marks[last]
        return float(a.elapsed_time(b) / 1000) if self.device.startswith("cuda") else float(b - a)

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


class Sampler:
    """A pipeline with a stack attached, ready to be asked for samples."""

    def __init__(
        self,
        pipe: Any,
        model: Model,
        sampling: Sampling,
        attached: Attached,
        device: str,
        text: TextAhead | None = None,
    ) -> None:
        """`text`: where text is encoded ahead of the calls, which do not time it then."""
        self.text = text
        self.pipe, self.model, self.sampling, self.attached, self.device = (
            pipe,
            model,
            sampling,
            attached,
            device,
        )
        if family_of(pipe.transformer).grid_by_value:
            attached.grid = grid_of(pipe, sampling)

    def __call__(self, requests: Sequence[Request]) -> tuple[np.ndarray, Timing]:
        """Samples of a batch, uint8 [n, H, W, 3] or [n, T, H, W, 3], and how long the call took."""
        if self.text is not None:
            self.text.encode(requests)
        self.attached.start(self.sampling.steps, len(requests))
        clock = Clock(self.device)
        with _stages(self.pipe, clock):
            arguments = call_arguments(self.model, self.sampling, requests)
            clock.settle()
            clock.mark("start")
            output = self.pipe(**arguments, output_type="np")
            clock.mark("end")
            clock.settle()
        pixels = output.frames if self.sampling.frames > 1 else output.images
        timing = Timing(
            size=len(requests),
            call_s=clock.between("start", "end"),
            text_s=clock.between("start", "denoise"),
            denoise_s=clock.between("denoise", "decode"),
            decode_s=clock.between("decode", "end"),
        )
        return to_bytes(pixels), timing

    def warm_up(self, requests: Sequence[Request], steps: int) -> None:
        """The first steps of a call and no decoder, for what is loaded or compiled when it is first
        used; only where a whole call was made before in the same process."""
        if self.text is not None:
            self.text.encode(requests)
        scheduler, made = self.pipe.scheduler, 0
        replaced, step = vars(scheduler).get("step"), scheduler.step

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == steps:
                raise _Enough
            return step(*args, **kwargs)

        scheduler.step = counting
        self.attached.start(self.sampling.steps, len(requests))
        try:
            self.pipe(**call_arguments(self.model, self.sampling, requests), output_type="np")
        except _Enough:
            pass
        finally:
            if replaced is None:
                del scheduler.step
            else:
                scheduler.step = replaced


class _Enough(Exception):
    """Ends a warming call."""


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """0..1 floats to uint8, rounded; ValueError when any is not finite."""
    pixels = np.asarray(pixels)
    if not np.isfinite(pixels).all():
        raise ValueError("the pipeline returned pixels that are not finite numbers")
    return np.round(pixels.clip(0, 1) * 255).astype(np.uint8)


@contextmanager
def _stages(pipe: Any, clock: Clock) -> Iterator[None]:
    """Mark the transformer's first run and the decoder's start, and leave no trace."""
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: clock.mark("denoise"))
    decode = pipe.vae.decode

    def marked(*args: Any, **kwargs: Any) -> Any:
        clock.mark("decode")
        return decode(*args, **kwargs)

    pipe.vae.decode = marked
    try:
        yield
    finally:
        del pipe.vae.decode
        hook.remove()
