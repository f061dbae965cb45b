"""One generation on the simulated device: the real pipeline call, from the prompt to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy
import torch

from ditbench.method.stack import Stack
from ditbench.models.architecture import build
from ditbench.models.blocks import blocks
from ditbench.models.family import grid_of
from ditbench.models.placement import decode_in_parts, text_encoders
from ditbench.models.precision import step_in_float32
from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import Sampling
from ditbench.models.sublayers import sublayers
from ditbench.models.table import Model
from ditbench.profiling.memory import tensors_of
from ditbench.simulation.costs import (
    DECODE,
    DECODER,
    DENOISE,
    ENCODER,
    TEXT,
    TRANSFORMER,
)
from ditbench.simulation.device import NAME, Device, GoesByValues, OutOfTime, Work
from ditbench.simulation.replay import Replay

PARTS = {"transformer": TRANSFORMER, "text_encoder": ENCODER, "vae": DECODER}
"""Component of a pipeline, by how its name begins -> what its weights are called in the ledger."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage took."""

    work: Work
    peak: int
    """Bytes."""
    at_peak: dict[str, int]
    """What the peak consists of, bytes: weights by part, kept outputs, ranking, activations."""


@dataclass(kw_only=True)
class Rehearsal:
    """What one generation took."""

    stages: dict[str, Stage] = field(default_factory=dict)
    calls: int = 0
    """Of the transformer."""

    @property
    def peak(self) -> int:
        """Bytes, over all stages."""
        return max(stage.peak for stage in self.stages.values())


class Stand:
    """A model's whole pipeline on the device, with random weights of its published sizes."""

    def __init__(
        self,
        device: Device,
        model: Model,
        dtype: str,
        changes: dict[str, Any] | None = None,
        *,
        once: bool = False,
        offload: str = "none",
        vae: str = "whole",
    ) -> None:
        """`changes` overrides sizes of the architecture, as `part.key`. `once`: text is encoded
        ahead; `offload` (none, text or model) and `vae` as in `records.settings`. What waits in
        host memory is not counted; the time it takes to come and go is not known."""
        self.device, self.model = device, model
        self.once, self.offload = once, offload
        self.pipe = build(model, device=NAME, dtype=getattr(torch, dtype), changes=changes)
        step_in_float32(self.pipe.scheduler)
        decode_in_parts(self.pipe, vae)
        if hasattr(self.pipe.scheduler, "index_for_timestep"):
            # found by value, of which the device has none: sampling begins at the first
            self.pipe.scheduler.index_for_timestep = lambda timestep, schedule_timesteps=None: 0
        self._beside = Replay(device)  # text encoders and decoder: no stack changes them

    def rehearse(
        self,
        stack: Stack,
        sampling: Sampling,
        requests: Sequence[Request],
        *,
        prepared: dict[str, Any] | None = None,
        reads: bool = False,
    ) -> Rehearsal:
        """Run the pipeline under a stack.

        Raises `device.GoesByValues` where values of the device decide what runs, as far as is seen:
        where the sampler loop reads any (with `reads` that is let be: they read as zeros), or a
        shape depends on some; and what the pipeline raises.
        """
        arguments = call_arguments(self.model, sampling, requests)
        rehearsal = Rehearsal()
        with (
            torch.no_grad(), self._replaying(), _videos_not_copied(),
            stack.attached(self.pipe, prepared) as attached,
        ):  # fmt: skip
            self.device.ledger.method_tensors = attached.method_tensors
            attached.grid = grid_of(self.pipe, sampling)
            attached.start(sampling.steps, len(requests))
            self._name_weights()
            for network in attached.networks():
                for tensor in tensors_of(network):
                    self.device.ledger.rename(tensor, TRANSFORMER)
            before = self.device.work.syncs.copy()
            try:
                with _stages(self.pipe, self.device, rehearsal, self._bring):
                    self.pipe(**arguments, output_type="np")
            except (GoesByValues, OutOfTime):
                raise
            except Exception as error:  # the zeros it read in place of values may be the reason
                _refuse_reads(self.device.work.syncs - before, error)
                raise
            finally:
                self.device.ledger.method_tensors = tuple
        if not reads:
            _refuse_reads(rehearsal.stages[DENOISE].work.syncs)
        return rehearsal

    def _bring(self, stage: str) -> None:
        """Have on the device what a stage needs; "": everything."""
        pipe = self.pipe
        encoders, others = text_encoders(pipe), {DENOISE: pipe.transformer, DECODE: pipe.vae}
        away: list[Any] = []
        if stage in (DENOISE, DECODE) and (self.once or self.offload in ("text", "model")):
            away += encoders
        if stage == TEXT and self.once and self.offload == "text":
            away += [pipe.transformer, pipe.vae]
        if stage and self.offload == "model":
            away += [part for name, part in others.items() if name != stage]
        for part in (*encoders, *others.values()):
            waits = any(part is one for one in away)
            for tensor in tensors_of(part):
                (self.device.ledger.release if waits else self.device.ledger.take_back)(tensor)

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        """Replay blocks and sub-layers that are alike, and the parts beside the transformer."""
        transformer, parts = self.pipe.transformer, self.pipe.components
        listed = sublayers(transformer)
        inner = [m for s in listed for m in (*s.modules, *([s.norm] if s.norm else []))]
        encoders = [m for name, m in parts.items() if name.startswith("text_encoder") and m]
        modules = dict.fromkeys([*(b.module for b in blocks(transformer)), *inner])
        with (
            Replay(self.device).over(modules),
            self._beside.over(encoders),
            self._beside.over([self.pipe.vae], "decode"),
        ):
            yield

    def _name_weights(self) -> None:
        for name, part in self.pipe.components.items():
            purpose = next((what for start, what in PARTS.items() if name.startswith(start)), name)
            for tensor in tensors_of(part) if hasattr(part, "parameters") else ():
                self.device.ledger.rename(tensor, purpose)


def _refuse_reads(syncs: Mapping[str, int], error: Exception | None = None) -> None:
    if syncs:
        lines = ", ".join(f"{line} ({n} times)" for line, n in sorted(syncs.items()))
        why = f"what runs goes by values, which are read from the device at {lines}"
        raise GoesByValues(why, syncs) from error


class _Numpy:
    """numpy, but a video of no values is not copied frame by frame, which takes seconds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)

    @staticmethod
    def stack(videos: Sequence[Any], *_: Any, **__: Any) -> Any:
        """The first."""
        return videos[0]


def _videos_not_copied() -> Any:
    from diffusers import video_processor

    return mock.patch.object(video_processor, "np", _Numpy())


@contextmanager
def _stages(
    pipe: Any, device: Device, rehearsal: Rehearsal, bring: Callable[[str], None]
) -> Iterator[None]:
    """Note work and memory by stage, and leave no trace; `bring` moves weights for a stage."""
    ledger = device.ledger
    bring(TEXT)
    now, began = TEXT, device.work.copy()
    ledger.mark()

    def enter(stage: str) -> None:
        nonlocal now, began
        peak, at_peak = ledger.close()
        rehearsal.stages[now] = Stage(work=device.work.minus(began), peak=peak, at_peak=at_peak)
        now, began = stage, device.work.copy()
        bring(stage)
        ledger.mark()

    def called(*_: Any) -> None:
        if now == TEXT:
            enter(DENOISE)
        rehearsal.calls += 1

    def decoding(*args: Any, **kwargs: Any) -> Any:
        enter(DECODE)
        return decode(*args, **kwargs)

    decode = pipe.vae.decode
    with ExitStack() as undo:
        undo.callback(bring, "")
        undo.callback(pipe.transformer.register_forward_pre_hook(called).remove)
        undo.callback(setattr, pipe.vae, "decode", decode)
        pipe.vae.decode = decoding
        yield
        enter("")
