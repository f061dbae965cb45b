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
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ditbench.models.calls import each_tensor
from ditbench.models.encoded_text import AHEAD, EncodedText
from ditbench.models.placement import text_encoders
from ditbench.models.requests import Request


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
        encoded: EncodedText | None = None,
        waiting: bool = False,
    ) -> None:
        """`arguments` of the pipeline's call for a batch; with `once` text is encoded ahead. The
        encoders then wait in host memory, as with the `offload` `text`, unless diffusers moves
        them; with both the rest waits there while they run. `encoded`: what was encoded by this
        pipeline before, and is added to. `waiting`: the encoders are in host memory already, and stay
        there in the end."""
        self.pipe, self.device, self.arguments = pipe, device, arguments
        self._able = bool(text_encoders(pipe)) and hasattr(pipe, "encode_prompt")
        self.once = once and self._able
        self.batches: list[list[Request]] = []
        """The coming calls, in order."""
        self.seconds, self.requests = 0.0, 0
        """What encoding ahead took, also where that was for an earlier cell, and of how many
        requests."""
        moves = {"none": self.once, "text": self._able}  # else diffusers moves them
        self._away = moves.get(offload, False)
        self._home = "cpu" if offload == "text" or waiting else device
        self._swaps = self.once and offload == "text"
        self.encoded = encoded or EncodedText()
        self._ready: dict[tuple[str, ...], list[str]] = {}
        """Arguments of `encode_prompt` by the requests of a call that was encoded ahead."""
        self._storing: list[str] | None = None
        """Those of the call that is being encoded ahead."""
        self._size = 0
        """Requests of that call."""
        self._brought = False
        """Whether the encoders were brought for calls that are encoded ahead."""
        self._until_all_are = ExitStack()

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
        began, before = time.perf_counter(), set(self.encoded.outputs)
        self._ready.clear()
        with ExitStack() as until_all_are:
            self._until_all_are = until_all_are
            for coming in self._from(list(batch)):
                self._store(coming)
        self._brought = False
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        self.encoded.spent(time.perf_counter() - began, set(self.encoded.outputs) - before)
        wanted = {key for keys in self._ready.values() for key in keys}
        self.seconds += sum(self.encoded.seconds.get(key, 0.0) for key in wanted)

    @contextmanager
    def every_call(self) -> Iterator[None]:
        """Encode in every call again, so that its operations can be counted."""
        once, self.once = self.once, False
        try:
            yield
        finally:
            self.once = once

    def counted(self, batches: Sequence[Sequence[Request]], count: Callable[[], Any]) -> Any:
        """The `profiling.flops.Flops` that `count()` has of calls for `batches`, with those of their
        text: it is encoded again in every call, unless an earlier count of the same text is known."""
        arguments = self._arguments_of(batches)
        if arguments in self.encoded.flops:
            return replace(count(), text_flops=self.encoded.flops[arguments])
        with self.every_call():
            flops = count()
        if arguments:
            self.encoded.flops[arguments] = flops.text_flops
        return flops

    def _arguments_of(self, batches: Sequence[Sequence[Request]]) -> tuple[str, ...]:
        """Of `encode_prompt` in calls that were all encoded ahead, else none."""
        known = [self._ready.get(_ids(batch)) for batch in batches]
        return () if None in known else tuple(key for keys in known for key in keys or ())

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
        self._storing, self._size = [], len(batch)
        try:
            self.pipe(**self.arguments(batch))
        except _Encoded:
            pass
        finally:
            keys, self._storing = self._storing, None
        self._ready[_ids(batch)] = keys
        self.requests += len(batch)

    def _given(self, *args: Any, **kwargs: Any) -> Any:
        """In place of `encode_prompt`."""
        named = inspect.signature(self._encode).bind(*args, **kwargs).arguments
        key = repr(sorted(named.items()))
        if any(isinstance(value, torch.Tensor) for value in named.values()) or not self.once:
            with self._there():
                return self._encode(*args, **kwargs)
        if self._storing is not None:
            self._storing.append(key)
        if key not in self.encoded.outputs:
            with self._there():
                out = self._encode(*args, **kwargs)
            wanted = {key for keys in self._ready.values() for key in keys}
            self.encoded.add(key, each_tensor(lambda t: t.cpu(), out), self._size, wanted)
        if self._storing is not None:
            raise _Encoded
        # copies: a pipeline may write into what it is given
        return each_tensor(lambda t: t.to(self.device, copy=True), self.encoded.outputs[key])

    @contextmanager
    def _there(self) -> Iterator[None]:
        """With the encoders on the device; for calls that are encoded ahead, until all of them are."""
        if self._storing is not None:
            if not self._brought:
                self._brought, storing, self._storing = True, self._storing, None
                self._until_all_are.enter_context(self._there())
                self._storing = storing
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
