"""Decisions carried out for each sample of a batch: some keep the output they have, some reuse, and
those that are computed run as a sub-batch for each level.

B rows of the batch (of all guidance passes), n samples, C channels of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ditbench.acceleration.caching.calls import as_wide
from ditbench.acceleration.policies import ATTENTION, CACHE, RATIO, SKIP
from ditbench.acceleration.policies.heads import on_grid
from ditbench.models.calls import each_tensor, put_rows

if TYPE_CHECKING:
    from ditbench.acceleration.policies.deciding import Action, Decider
    from ditbench.method.attachment import Attachment


class Times(Sequence[float]):
    """The sampler's timesteps with 0 after the last, read when one is asked for: on a GPU the host
    waits for that once in a generation, and a fixed rule asks for none."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler, self._read = scheduler, list[float]()

    def clear(self) -> None:
        """Another generation begins."""
        self._read.clear()

    def __len__(self) -> int:
        return len(self._scheduler.timesteps) + 1

    @overload
    def __getitem__(self, step: int) -> float: ...
    @overload
    def __getitem__(self, step: slice) -> list[float]: ...
    def __getitem__(self, step: int | slice) -> float | list[float]:
        if not self._read:
            self._read = [*map(float, self._scheduler.timesteps.tolist()), 0.0]
        return self._read[step]


Around = Callable[[int, Sequence[int]], AbstractContextManager[object]]
"""f(level, samples) -> what is entered round the transformer's run for them."""


def _plainly(level: int, samples: Sequence[int]) -> AbstractContextManager[object]:
    return nullcontext()


class PerSample:
    """A transformer whose calls are made for the samples that want them.

    Of two separate guidance passes the conditional one, which comes first, decides for both; of
    passes that share a batch its rows do.
    """

    def __init__(
        self, pipeline: Any, at: Attachment, decider: Decider, around: Around = _plainly,
        first_level: int | None = None,
    ) -> None:  # fmt: skip
        """`first_level`: that of samples of which nothing is kept, which are not asked; None: they
        are."""
        self.pipeline, self.at, self.decider, self.around = pipeline, at, decider, around
        self.first_level = first_level
        self.history: dict[int, list[Action]] = {}
        """What each sample did in this generation."""
        self._to: dict[int, int] = {}
        """Where samples go next."""
        self._groups: dict[int, list[int]] = {}
        """The samples that are computed at this step, by level."""
        self._reusing: list[int] = []
        self._times = Times(pipeline.scheduler)
        self._outputs: dict[int, Any] = {}
        self._inputs: dict[int, Tensor] = {}
        """[B,...] by guidance pass: what each sample's last computed call was given."""
        self._added: dict[int, Tensor] = {}
        """[B,...] its output less that."""

    def install(self) -> None:
        """Patch the transformer's forward."""
        at = self.at
        for store in (self._outputs, self._inputs, self._added):
            at.keeps(store)
        at.on_start(self._begin)
        self._run = at.patch(self.pipeline.transformer, "forward", self._forward)

    def mean(self, values: Sequence[float]) -> float:
        """Of the samples that are computed at this step, by their levels."""
        sizes = {level: len(samples) for level, samples in self._groups.items()}
        return sum(values[level] * n for level, n in sizes.items()) / sum(sizes.values())

    def _begin(self) -> None:
        """Know nothing. Where a method beside it has it start anew, what was done stays noted."""
        self._to.clear()
        self._groups.clear()
        self._times.clear()
        if not self.at.now.step:
            self.history.clear()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        at, branch = self.at, self.at.now.branch
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        num = at.now.batch // at.now.passes
        if branch == 0:
            landed = self._plan(hidden, num)
        out = self._outputs.get(branch)
        if self._reusing:
            out = self._reuse(hidden, branch, out)
        for level, samples in sorted(self._groups.items()):
            with self.around(level, samples):
                part = at.run_samples(self._run, samples, args, kwargs)
            out = self._put(hidden, branch, samples, part, out)
        self._count(num)
        if self.decider.heads & {SKIP, CACHE}:
            self._outputs[branch] = out
        if branch == 0:
            self._land(landed, hidden, out)
        return out

    def _plan(self, hidden: Tensor, num: int) -> dict[int, list[bool | int]]:
        """Who reuses and who is computed at this step, as [reuses, level] by sample."""
        at, decider = self.at, self.decider
        step, heads = at.now.step, decider.heads
        landed = [i for i in range(num) if self._to.get(i, step) <= step]
        # a guidance pass that comes back may find samples of which nothing is kept
        bare = SKIP in heads and 0 not in self._outputs
        landed = list(range(num)) if bare else landed
        latents = on_grid(hidden[at.now.conditional], at.now.grid)
        does: dict[int, list[bool | int]] = {i: [False, 0] for i in landed}
        if CACHE in heads and landed and 0 in self._inputs:
            kept = on_grid(self._inputs[0][at.now.conditional], at.now.grid)[landed]
            change = latents[landed] - kept
            for i, reuses in zip(
                landed, decider.reuses(landed, step, self._times, change, kept), strict=True
            ):
                does[i][0] = reuses
        computed = [i for i in landed if not does[i][0]]
        if heads & {ATTENTION, RATIO} and computed:
            levels = [self.first_level or 0] * len(computed)
            if self.first_level is None or any(i in self._to for i in computed):
                levels = decider.levels(computed, step, self._times, latents[computed])
            for i, level in zip(computed, levels, strict=True):
                does[i][1] = level
        self._reusing = [i for i in landed if does[i][0]]
        self._groups.clear()
        for i in computed:
            self._groups.setdefault(int(does[i][1]), []).append(i)
        return does

    def _land(self, does: dict[int, list[bool | int]], hidden: Tensor, out: Any) -> None:
        """Where the samples that did something at this step go next."""
        at, landed = self.at, list(does)
        to = [at.now.step + 1] * len(landed)
        if SKIP in self.decider.heads and landed:
            seen = on_grid(_tensor(out)[at.now.conditional], at.now.grid)[landed]
            channels = hidden.shape[-1 if hidden.dim() == 3 else 1]
            to = self.decider.lands(landed, at.now.step, self._times, seen[:, :channels])
        for i, there in zip(landed, to, strict=True):
            self._to[i] = there
            reused, level = does[i]
            self.history.setdefault(i, []).append((at.now.step, bool(reused), int(level), there))

    def _reuse(self, hidden: Tensor, branch: int, out: Any) -> Any:
        rows = self.at.now.rows_of(self._reusing)
        added = self._added[branch][rows]
        new = added + as_wide(hidden[rows], added)
        return each_tensor(lambda into: _copied(into, rows, new), out)

    def _put(self, hidden: Tensor, branch: int, samples: Sequence[int], part: Any, out: Any) -> Any:
        """The whole output with the rows of the samples that were computed."""
        rows = self.at.now.rows_of(samples)
        batch = self.at.now.batch
        whole = len(rows) == batch
        if CACHE in self.decider.heads:
            given, made = hidden[rows], _tensor(part)
            for store, value in (
                (self._inputs, given), (self._added, made - as_wide(given, made))
            ):  # fmt: skip
                store[branch] = (
                    value
                    if whole
                    else _copied(
                        _wide(value, batch) if branch not in store else store[branch], rows, value
                    )
                )
        if whole:
            return part
        into = each_tensor(lambda t: _wide(t, batch), part) if out is None else out
        return put_rows(into, rows, part)

    def _count(self, num: int) -> None:
        at, computed = self.at, sum(map(len, self._groups.values()))
        sparse = computed - len(self._groups.get(0, ()))
        at.count("passes_computed" if computed else "passes_reused", idle=bool(computed))
        at.count("samples_computed", computed, idle=True)
        at.count("sub_batches", len(self._groups), idle=True)
        at.count("samples_reused", len(self._reusing))
        at.count("samples_skipped", num - computed - len(self._reusing))
        at.count("samples_sparse", sparse)
        if computed and RATIO not in self.decider.heads:
            for sublayer in at.sublayers:
                at.computes(sublayer, computed / num)


def _tensor(out: Any) -> Tensor:
    tensor: Tensor = out[0] if isinstance(out, tuple) else out.sample
    return tensor


def _copied(into: Tensor, rows: Sequence[int], new: Tensor) -> Tensor:
    return into.index_copy(0, torch.tensor(rows, device=into.device), new)


def _wide(part: Tensor, batch: int) -> Tensor:
    """Zeros for a whole batch, where nothing is there yet."""
    return part.new_zeros((batch, *part.shape[1:]))
