"""What students are distilled from: the teacher's own sampling recorded, and its transformer asked
at any state. No data set is needed.

The conditioning a transformer is called with is taken from the pipeline's own calls, so that
prompts, labels, positions and embedded guidance are the pipeline's business for any architecture.

N recordings, T steps of the teacher, B rows of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditbench.acceleration.distillation.noise_process import Process, wide
from ditbench.models.calls import each_tensor
from ditbench.models.family import families, family_of
from ditbench.records.files import replacing

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

CHUNK = 64
"""Requests recorded at once."""

Conditioning = dict[str, Any]
"""Keyword arguments of the transformer, besides state and time."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The teacher's sampling of N requests."""

    states: Tensor
    """[N,T+1,...]: the flow's states, from noise to the clean sample; half precision."""
    levels: Tensor
    """[T+1]: their levels s, from nearly 1 to 0."""
    timesteps: Tensor
    """[T]: what the transformer was told."""
    asked: Conditioning
    """As the pipeline without guidance asks."""
    guided: tuple[Conditioning, ...]
    """As with guidance: with the text or label, and without; only the first where guidance is
    embedded."""


class Denoiser:
    """A transformer as the flow's velocity. What it is given and gives lies on the CPU, in float32,
    wherever the transformer is and whatever its number format: recordings of a full-size model do
    not fit beside it, and what is computed of states is little."""

    def __init__(self, transformer: Any, process: Process) -> None:
        self.transformer, self.process, self.family = transformer, process, family_of(transformer)

    def __call__(self, x: Tensor, s: Tensor, timestep: Tensor, asked: Conditioning) -> Tensor:
        """v at states x [B,...] of levels s [B] that the transformer is told are at `timestep`
        [B]."""
        s, transformer = wide(s, x), self.transformer
        out = transformer(
            hidden_states=self.process.own(x, s).to(transformer.device, transformer.dtype),
            timestep=self.family.transformer_time(timestep).to(transformer.device),
            return_dict=False,
            **{name: _moved(value, transformer) for name, value in asked.items()},
        )[0].to(x)
        if out.dim() == 4 and out.shape[1] == 2 * x.shape[1]:
            out = out.chunk(2, dim=1)[0]  # the learned variance is left alone
        return self.process.velocity(out, x, s)

    def guided(
        self, x: Tensor, s: Tensor, timestep: Tensor, asked: tuple[Conditioning, ...], scale: float
    ) -> Tensor:
        """The same with classifier-free guidance, where there are two passes."""
        v = self(x, s, timestep, asked[0])
        if len(asked) == 1:
            return v
        without = self(x, s, timestep, asked[1])
        return without + scale * (v - without)


def _moved(value: Any, transformer: Any) -> Any:
    """On the transformer's device, and in its number format where it is a float."""
    if isinstance(value, Mapping):
        return {k: _moved(v, transformer) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    dtype = transformer.dtype if value.is_floating_point() else value.dtype
    return value.to(transformer.device, dtype)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _on_cpu(v) for k, v in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value


def rows(asked: Conditioning, which: Tensor) -> Conditioning:
    """The conditioning of some rows, int64 [K] or a slice; there is no state in it by whose length
    `models.calls.take_rows` could tell which tensors have rows."""
    shared = _shared()
    return {
        k: v if k in shared else each_tensor(lambda tensor: tensor[which], v)
        for k, v in asked.items()
    }


def _shared() -> set[str]:
    """Arguments of transformers that are the same for every row."""
    return {name for family in families().values() for name in family.shared_arguments}


@torch.no_grad()
def record(
    room: Workroom, num: int, seed: int, steps: int | None = None, folder: Path | None = None
) -> Recorded:
    """Let the pipeline sample `num` training requests in `steps` steps, and keep every state.
    They are sampled as many at once as `Workroom.at_once` says, `CHUNK` at most; what is left over
    is not recorded. What an earlier command recorded in `folder` is not sampled again."""
    kept: list[Tensor] = []
    asked: list[Conditioning] = []
    guided: list[tuple[Conditioning, ...]] = []
    pipe = room.pipe
    process, chunk = Process.of(pipe.scheduler), min(num, room.at_once(CHUNK))
    levels = timesteps = torch.empty(0)
    more = {} if steps is None else {"steps": steps}
    for part in range(num // chunk):
        file = folder / f"{part:05d}.safetensors" if folder else None
        if file and file.exists():
            stored = load_file(file)
        else:
            with _watching(pipe, chunk) as (seen, _):
                _sample(pipe, room.draw(seed + part, chunk, **more))
            levels, timesteps = _grid(pipe.scheduler, process)
            states = [
                process.state(y.cpu().float(), s) for y, s in zip(seen, levels.float(), strict=True)
            ]
            stored = {"states": torch.stack(states, 1).half()}
            stored |= {"levels": levels, "timesteps": timesteps}
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as partial:
                    save_file(stored, partial)
        kept.append(stored["states"])
        levels, timesteps = stored["levels"], stored["timesteps"]
        asked.append(_calls(pipe, room.draw(seed + part, chunk, guidance=1.0, **more))[0])
        guided.append(_passes(pipe, _calls(pipe, room.draw(seed + part, chunk, **more))))
        room.tell({"done": part + 1, "of": num // chunk})
    together = tuple(joined([g[i] for g in guided]) for i in range(len(guided[0])))
    with torch.autocast("cpu", enabled=False):  # which refuses half precision
        return Recorded(torch.cat(kept), levels.float(), timesteps.float(), joined(asked), together)


def _sample(pipe: Any, told: dict[str, Any]) -> None:
    """All of a sampling but the decoding, which DiT's pipeline cannot leave out."""

    def decode(*_: Any, **__: Any) -> Any:
        raise _Enough

    pipe.vae.decode = decode
    try:
        with suppress(_Enough):
            pipe(**told)
    finally:
        del pipe.vae.decode


class _Enough(Exception):
    """All that was wanted of a pipeline call has been seen."""


@contextmanager
def _watching(
    pipe: Any, batch: int, stop: bool = False
) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
    """States before every step and after the last, without the copies guidance makes; arguments of
    the transformer's calls."""
    states: list[Tensor] = []
    calls: list[dict[str, Any]] = []
    step = pipe.scheduler.step

    @functools.wraps(step)  # pipelines look at the signature
    def stepped(output: Any, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if stop:
            raise _Enough
        found = step(output, t, sample, *args, **kwargs)
        if not states:
            states.append(sample[:batch])
        states.append((found[0] if isinstance(found, tuple) else found.prev_sample)[:batch])
        return found

    def called(_module: Any, _args: Any, kwargs: Any) -> None:
        calls.append(dict(kwargs))

    hook = pipe.transformer.register_forward_pre_hook(called, with_kwargs=True)
    pipe.scheduler.step = stepped
    try:
        yield states, calls
    finally:
        del pipe.scheduler.step
        hook.remove()


def _calls(pipe: Any, told: dict[str, Any]) -> list[Conditioning]:
    """How the transformer is called in the first step."""
    with _watching(pipe, 0, stop=True) as (_, calls), suppress(_Enough):
        pipe(**told)
    drop = (
        "hidden_states",
        "timestep",
        "return_dict",
        "attention_kwargs",
        "joint_attention_kwargs",
    )
    return [{k: _on_cpu(v) for k, v in call.items() if k not in drop} for call in calls]


def guided_of(pipe: Any, arguments: dict[str, Any]) -> tuple[Conditioning, ...]:
    """How a pipeline call with these arguments asks the transformer: with the text first, then
    without; only the first where guidance is embedded."""
    return _passes(pipe, _calls(pipe, arguments))


def levels_of(room: Workroom) -> Tensor:
    """[T+1] levels of the states of a sampling, from nearly 1 to 0."""
    with _watching(room.pipe, 0, stop=True), suppress(_Enough):
        room.pipe(**room.draw(0, 1))
    return _grid(room.pipe.scheduler, Process.of(room.pipe.scheduler))[0].float()


def _passes(pipe: Any, calls: list[Conditioning]) -> tuple[Conditioning, ...]:
    """The guidance passes: with the text first, then without."""
    family = family_of(pipe.transformer)
    if not family.batched:
        return tuple(calls)
    halves = [rows(calls[0], part) for part in torch.arange(_length(calls[0])).chunk(2)]
    return tuple(halves if family.guidance == "batched, conditional first" else halves[::-1])


def _length(asked: Conditioning) -> int:
    shared = _shared()
    return next(len(v) for k, v in asked.items() if isinstance(v, Tensor) and k not in shared)


def joined(parts: list[Conditioning]) -> Conditioning:
    """The conditionings of several chunks as one."""
    first, shared = parts[0], _shared()
    return {
        k: v if k in shared else each_tensor(lambda *rows: torch.cat(rows), *(p[k] for p in parts))
        for k, v in first.items()
    }


def _grid(scheduler: Any, process: Process) -> tuple[Tensor, Tensor]:
    """Levels [T+1] of the states of the sampling just done, and its timesteps [T]."""
    timesteps = torch.as_tensor(scheduler.timesteps).cpu().double()
    levels = (
        process.level(timesteps)
        if process.noise
        else torch.as_tensor(scheduler.sigmas).cpu().double()[: len(timesteps)]
    )
    return torch.cat([levels, torch.zeros(1, dtype=levels.dtype)]), timesteps
