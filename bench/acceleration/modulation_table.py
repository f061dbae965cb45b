"""Has a transformer look the modulation of its blocks up, in a table that is filled at the first call of a
generation (`models.modulation`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ditbench.acceleration.distillation.interval_embedding import NAME
from ditbench.models.family import family_of
from ditbench.models.modulation import Looked, Passed, Table, modulating_norms

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

UNKNOWN = (
    "modulation_ahead: the transformer was called with a time or a condition that was not there when "
    "the generation began, so that these samples are wrong; leave modulation_ahead out"
)


def look_modulation_up(pipeline: Any, at: Attachment) -> None:
    """Have the blocks of a pipeline's transformer look their modulation up until `at` is detached.
    ValueError for a family whose blocks make none (`Family.modulation`)."""
    Lookup(pipeline, at)


class Lookup:
    """The transformer's forward while it does."""

    def __init__(self, pipeline: Any, at: Attachment) -> None:
        self._pipeline, self._at = pipeline, at
        transformer = self._transformer = pipeline.transformer
        self._family = family_of(transformer)
        if (made_of := self._family.modulation) is None:
            raise ValueError(f"{self._family.title} has one modulation for all blocks")
        self._made_of = made_of
        self._signature = inspect.signature(type(transformer).forward)
        self._norms: list[Any] = modulating_norms(transformer)
        self._widths: list[int] = [norm.linear.out_features for norm in self._norms]
        self._own: list[tuple[Any, Any, Any]] = [
            (getattr(norm, "emb", None), norm.silu, norm.linear) for norm in self._norms
        ]
        self._tables: dict[Any, Table] = {}
        self._out: dict[Any, Tensor] = {}
        self._times: dict[int, Tensor] = {}
        """What the scheduler has set, by how many."""
        self._of_call: dict[Any, Table] = {}
        """Of the generation under way, by which call of a step it is for, and the types of its time and
        stream, which autocast changes after the first step."""
        self._read: Tensor | None = None
        """Where the norms read now."""
        self._is_begun = False
        self._stand_ins = [*self._put_in()]
        at.on_start(self._start)
        at.on_end(self._check)
        at.held.append(
            lambda: [*(table.rows for table in self._tables.values()), *self._out.values()]
        )
        at.undo(transformer.register_forward_pre_hook(self._called, with_kwargs=True).remove)
        self._forward = at.patch(transformer, "forward", self)

    def _put_in(self) -> Iterator[Any]:
        first = self._norms[0]  # whose embedding DiT's last layer uses too
        for norm, (embedding, silu, linear) in zip(self._norms, self._own, strict=True):
            parts = [("silu", Looked(silu)), ("linear", Passed(linear))]
            if embedding is not None and norm is not first:
                parts.append(("emb", Passed(embedding)))
            for name, part in parts:
                self._at.patch(norm, name, part.train(norm.training))
                yield part

    def _start(self) -> None:
        if not self._at.now.step:  # or methods are to start anew in the middle
            self._let_go()  # of a generation that was broken off
            self._is_begun = True

    def _check(self) -> None:
        """The last step is done: the decoder needs the memory."""
        found = [table.unknown for table in self._tables.values() if _has_values(table.unknown)]
        wrong = any(map(bool, found))
        self._let_go()
        if wrong:
            raise RuntimeError(UNKNOWN)

    def _let_go(self) -> None:
        self._of_call, self._is_begun = {}, False
        self._set(False)
        if self._at.is_captured:  # graphs read the rest
            for table in self._tables.values():
                table.unknown.zero_()
            return
        self._tables, self._out, self._times, self._read = {}, {}, {}, None
        for part in self._stand_ins:
            if isinstance(part, Looked):
                part.row = None

    def _called(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Before every call, also of one that is replayed from a graph."""
        if self._at.now.step:
            return
        if not isinstance(time := self._given(args, kwargs).get("timestep"), Tensor):
            return
        times, device = self._pipeline.scheduler.timesteps, time.device
        with torch.inference_mode(False):
            if len(times) not in self._times:
                self._times[len(times)] = torch.empty(len(times), dtype=times.dtype, device=device)
            self._times[len(times)].copy_(times)

    def _given(self, args: Any, kwargs: Any) -> Mapping[str, Any]:
        return self._signature.bind(None, *args, **kwargs).arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward."""
        given = self._given(args, kwargs)
        time = given.get("timestep")
        live = (
            self._is_begun
            and isinstance(time, Tensor)
            and time.ndim == 1
            and not torch.is_grad_enabled()
            and all(isinstance(one, Tensor) for one in self._conditions(given))
        )
        self._set(live)
        if live:
            self._look_up(given)
        return self._forward(*args, **kwargs)

    def _set(self, live: bool) -> None:
        if self._stand_ins and self._stand_ins[0].live != live:
            for part in self._stand_ins:
                part.live = live

    def _conditions(self, given: Mapping[str, Any]) -> list[Any]:
        names = self._made_of.conditions
        return [given[name] for name in names if given.get(name) is not None]

    def _look_up(self, given: Mapping[str, Any]) -> None:
        time, hidden, conditions = (
            given["timestep"],
            given["hidden_states"],
            self._conditions(given),
        )
        with torch.no_grad():
            call = self._at.now.branch, time.dtype, hidden.dtype
            table = self._of_call.get(call)
            if table is None or table.count < len(hidden):  # or guidance begins in the middle
                table = self._of_call[call] = self._filled(given, conditions)
            out = self._row_of(len(hidden), hidden)
            table.look_up(time.expand(len(hidden)), conditions, out)
        self._at.count("steps_looked_up")

    def _filled(self, given: Mapping[str, Any], conditions: list[Tensor]) -> Table:
        """A table for the generation that begins, in the memory of an earlier one of its sizes."""
        time, hidden, count = given["timestep"], given["hidden_states"], len(given["hidden_states"])
        times = self._times[len(self._pipeline.scheduler.timesteps)]
        key = (
            self._at.now.branch,
            len(times),
            count,
            time.dtype,
            hidden.dtype,
            hidden.device,
            len(conditions),
        )
        if key not in self._tables:
            self._tables[key] = self._empty(time, len(times), conditions, hidden)
        table = self._tables[key]
        table.times.copy_(self._family.transformer_time(times.to(time.dtype)))
        for before, now in zip(table.conditions, conditions, strict=True):
            before.copy_(now)
        steps = len(times)
        repeated = {
            name: value.repeat(steps, *[1] * (value.ndim - 1))
            for name, value in given.items()
            if any(value is one for one in conditions)
        }
        # MeanFlow's students have a second time, which the transformer is not given
        intervals = getattr(self._transformer, NAME, None)
        with nullcontext() if intervals is None else intervals.at_all_steps(count):
            embedding_for = self._made_of.embeddings(
                self._transformer, table.times.repeat_interleave(count), repeated, hidden.dtype
            )
            parts = zip(self._own, table.rows.split(self._widths, 1), strict=True)
            for (embedding, silu, linear), into in parts:
                into.copy_(linear(silu(embedding_for(embedding))))
        return table

    def _empty(self, time: Tensor, steps: int, conditions: list[Tensor], hidden: Tensor) -> Table:
        with torch.inference_mode(False):
            return Table(
                torch.empty(steps, dtype=time.dtype, device=time.device),
                [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in conditions],
                torch.empty(
                    steps * len(hidden), sum(self._widths), dtype=hidden.dtype,
                    device=hidden.device,
                ),
                torch.zeros(1, dtype=torch.bool, device=hidden.device),
            )  # fmt: skip

    def _row_of(self, count: int, hidden: Tensor) -> Tensor:
        """Where the norms read, [B,W], one for each size."""
        key = count, hidden.dtype, hidden.device
        if key not in self._out:
            with torch.inference_mode(False):
                self._out[key] = torch.empty(
                    count, sum(self._widths), dtype=hidden.dtype, device=hidden.device
                )
        if (out := self._out[key]) is not self._read:
            looked = [part for part in self._stand_ins if isinstance(part, Looked)]
            for part, row in zip(looked, out.split(self._widths, 1), strict=True):
                part.row = row
            self._read = out
        return out


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)
