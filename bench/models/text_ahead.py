"""Text encoded ahead of the calls that need it, so that the encoders are not in the peak of the
sampler loop.

Works on every pipeline that encodes its text by a method `encode_prompt`: what that gave for a
batch, it gives again when it is called alike. Batches are encoded as they are sampled, so that
samples are the same to the last bit.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ditbench.models.calls import each_tensor
from ditbench.models.placement import text_encoders
from ditbench.models.requests import Request

AHEAD = 512
"""Requests whose text waits in host memory at once: of Wan's guided ones, 8 MB each, 4 GB."""


class _Encoded(Exception):
    """The pipeline need not go on."""


class TextAhead:
    """The encoded text of a pipeline's coming calls."""

    def __init__(
        self,
        pipe: Any,
        device: str,
        arguments: Callable[[Sequence[Request]], dict[str, Any]],
        *,
        once: bool,
        offload: str = "none",
    ) -> None:
        """`arguments` of the pipeline's call for a batch; with `once` text is encoded ahead. The
        encoders then wait in host memory, as with the `offload` `text`, unless diffusers moves
        them; with both the rest waits there while they run."""
        self.pipe, self.device, self.arguments = pipe, device, arguments
        self._able = bool(text_encoders(pipe)) and hasattr(pipe, "encode_prompt")
        self.once = once and self._able
        self.batches: list[list[Request]] = []
        """The coming calls, in order."""
        self.seconds, self.requests = 0.0, 0
        """What encoding ahead took, and of how many requests."""
        moves = {"none": self.once, "text": self._able}  # else diffusers moves them
        self._away = moves.get(offload, False)
        self._home = "cpu" if offload == "text" else device
        self._swaps = self.once and offload == "text"
        self._outputs: dict[str, Any] = {}
        self._ready: set[tuple[str, ...]] = set()
        self._storing = False

    @contextmanager
    def attached(self) -> Iterator[TextAhead]:
        """Stand in for the pipeline's own encoding until the end."""
        if not (self.once or self._away):
            yield self
            return
        self._encode = self.pipe.encode_prompt
        self.pipe.encode_prompt = self._given
        self._move("cpu")
        try:
            yield self
        finally:
            del self.pipe.encode_prompt
            self._move(self._home)

    def encode(self, batch: Sequence[Request]) -> None:
        """Encode the text of a call for `batch`, and of the coming ones after it, unless that was
        done."""
        if not self.once or _ids(batch) in self._ready:
            return
        began = time.perf_counter()
        self._outputs.clear()
        self._ready.clear()
        with self._there():
            for coming in self._from(list(batch)):
                self._store(coming)
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - began

    @contextmanager
    def every_call(self) -> Iterator[None]:
        """Encode in every call again, so that its operations can be counted."""
        once, self.once = self.once, False
        try:
            yield
        finally:
            self.once = once

    def as_dict(self) -> dict[str, Any]:
        """When text was encoded, for the record, where there is any; and where it was ahead, what it
        took."""
        if not self._able:
            return {}
        if not self.once:
            return {"text_encoding": "call"}
        return {
            "text_encoding": "once",
            "text_encoding_s": self.seconds,
            "text_encoding_requests": self.requests,
        }

    def _from(self, batch: list[Request]) -> list[list[Request]]:
        if batch not in self.batches:
            return [batch]
        coming = self.batches[self.batches.index(batch) :]
        return coming[: max(1, AHEAD // len(batch))]

    def _store(self, batch: list[Request]) -> None:
        self._storing = True
        try:
            self.pipe(**self.arguments(batch))
        except _Encoded:
            pass
        finally:
            self._storing = False
        self._ready.add(_ids(batch))
        self.requests += len(batch)

    def _given(self, *args: Any, **kwargs: Any) -> Any:
        """In place of `encode_prompt`."""
        named = inspect.signature(self._encode).bind(*args, **kwargs).arguments
        key = repr(sorted(named.items()))
        if any(isinstance(value, torch.Tensor) for value in named.values()) or not self.once:
            with self._there():
                return self._encode(*args, **kwargs)
        if key not in self._outputs:
            with self._there():
                out = self._encode(*args, **kwargs)
            self._outputs[key] = each_tensor(lambda t: t.cpu(), out)
        if self._storing:
            raise _Encoded
        # copies: a pipeline may write into what it is given
        return each_tensor(lambda t: t.to(self.device, copy=True), self._outputs[key])

    @contextmanager
    def _there(self) -> Iterator[None]:
        """With the encoders on the device."""
        if self._storing:  # they are there for all batches
            yield
            return
        swapped = [self.pipe.transformer, self.pipe.vae] if self._swaps and self.once else []
        self._move("cpu", swapped)
        self._move(self.device)
        try:
            yield
        finally:
            self._move("cpu")
            self._move(self.device, swapped)

    def _move(self, device: str, parts: Sequence[Any] | None = None) -> None:
        """Move the encoders, where they are to be moved, or other parts."""
        if parts is None:
            parts = text_encoders(self.pipe) if self._away else []
        with torch.inference_mode(False):  # or parameters would be what only inference can use
            for part in parts:
                part.to(device)
        if parts and device == "cpu" and self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _ids(batch: Sequence[Request]) -> tuple[str, ...]:
    return tuple(request.id for request in batch)
