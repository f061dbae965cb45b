"""A stack while it is attached to a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.guidance_passes import GuidancePasses
from ditbench.records.facts import plain


class Attached:
    """A stack while it is attached: told before every generation, asked for its counts after."""

    def __init__(self, now: Now, attachments: dict[str, Attachment]) -> None:
        self.now = now
        self.attachments = attachments
        self.grid: tuple[int, int, int] | None = None
        """(Frames, rows, columns) of image tokens where whoever generates knows them (see
        `models.sublayers.call_sizes`)."""
        self.passes = GuidancePasses(now, attachments, self._note_bytes)
        self._cache_bytes = self._bytes_at_drop = 0

    def start(self, num_steps: int, samples: int = 0) -> None:
        """Forget the last generation. `num_steps` are the steps asked for: where the scheduler sets
        another number, that is put in their place before the first. A generation begun without a
        start is noticed then too; how many `samples` it makes, and so which rows of a batch are
        guidance passes, is not known of it."""
        now, self._bytes_at_drop = self.now, 0
        now.step, now.branch, now.num_steps, now.samples = 0, 0, num_steps, samples
        now.passes, now.batch, now.unguided = 1, 0, False
        self.passes.start()
        for at in self.attachments.values():
            at.shares.clear()
            for reset in at.starts:
                reset()

    def counters(self) -> dict[str, int]:
        """Events since the stack was attached, as `method.event`; ValueError naming one that is no
        finite number."""
        return {
            f"{name}.{event}": plain(f"the counter {name}.{event}", n)
            for name, at in self.attachments.items()
            for event, n in at.counters.items()
        }

    def notes(self) -> dict[str, float | str]:
        """What the methods found out, as `method.fact`; ValueError naming one that is no finite
        number, nor a text."""
        return {
            f"{name}.{fact}": plain(f"the note {name}.{fact}", value)
            for name, at in self.attachments.items()
            for fact, value in at.notes.items()
        }

    @contextmanager
    def inspected(self) -> Iterator[None]:
        """Let the methods watch what runs inside, for their notes (see
        `Attachment.on_inspection`)."""
        with ExitStack() as undo:
            for at in self.attachments.values():
                for watch in at.inspections:
                    watch(undo)
            yield

    def schedule(self) -> dict[str, Any] | None:
        """What share of its tokens each sub-layer computed at each step of the last generation, as
        the method noted; None if none did. `skipped`, where there are any: (step, sub-layer) that
        were not reached, their blocks' modulation neither. ValueError naming a share that is no
        finite number.
        """
        noted = next((at for at in self.attachments.values() if at.shares), None)
        if noted is None:
            return None
        names = [s.name for s in noted.sublayers]
        last = max(step for step, _ in noted.shares)
        steps = max(self.now.num_steps, 1 + last)  # a last step that is skipped notes nothing
        shares = {
            (t, i): float(plain(f"the share of {names[i]} computed at step {t}", share)) for (t, i),
            share in noted.shares.items()
        }  # fmt: skip
        keep = [
            [round(shares.get((t, i), 0.0), 4) for i in range(len(names))] for t in range(steps)
        ]
        skipped = [
            [t, i] for t in range(steps) for i in range(len(names)) if (t, i) not in noted.shares
        ]
        return {"sublayers": names, "keep": keep} | ({"skipped": skipped} if skipped else {})

    def cache_bytes(self) -> int:
        """Bytes of the tensors the methods keep: now, or at the last step of the last whole
        generation where that was more."""
        return max(self._cache_bytes, self._held_bytes())

    def follow(self, pipeline: Any, at: Attachment) -> None:
        """Keep `now` true: every transformer call is the next branch, every scheduler step the next
        step."""
        from ditbench.models.calls import batch_of
        from ditbench.models.family import family_of

        scheduler = pipeline.scheduler
        step, set_timesteps = scheduler.step, scheduler.set_timesteps

        def called(transformer: Any, args: Any, kwargs: Any) -> None:
            now = self.now
            now.batch = batch_of(args, kwargs)
            if not now.step and not self.passes.calls:
                from ditbench.models.sublayers import call_sizes

                _, now.grid, now.text_tokens = call_sizes(transformer, args, kwargs, self.grid)
                now.passes = max(1, now.batch // now.samples) if now.samples else 1
                now.guidance = family_of(transformer).guidance
            now.branch = self.passes.calls
            self.passes.calls += 1

        @functools.wraps(step)  # pipelines look at the signature
        def stepped(*args: Any, **kwargs: Any) -> Any:
            out = step(*args, **kwargs)
            self.now.step += 1
            self.passes.stepped()
            if self.now.step == self.now.num_steps:
                # where guidance was dropped, the most was kept just before
                self._cache_bytes = max(self._held_bytes(), self._bytes_at_drop)
                for other in self.attachments.values():  # the decoder needs the memory
                    other.release()
            return out

        @functools.wraps(set_timesteps)
        def begun(*args: Any, **kwargs: Any) -> Any:
            out, now = set_timesteps(*args, **kwargs), self.now
            made = len(scheduler.timesteps)  # Heun's makes 2 N - 1 of the N steps it is asked for
            if not now.num_steps or now.step or self.passes.calls:
                self.start(made)
            elif made != now.num_steps:
                self.start(made, now.samples)
            return out

        at.undo(pipeline.transformer.register_forward_pre_hook(called, with_kwargs=True).remove)
        at.patch(scheduler, "step", stepped)
        at.patch(scheduler, "set_timesteps", begun)
        self.passes.install(pipeline.transformer, at)

    def _note_bytes(self) -> None:
        """Remember what is kept now, where that is more than before: some of it is about to be let
        go."""
        self._bytes_at_drop = max(self._bytes_at_drop, self._held_bytes())

    def method_tensors(self) -> Iterator[Any]:
        """The tensors that methods keep from step to step; one that is in two places comes twice."""
        for at in self.attachments.values():
            for values in at.held:
                yield from _tensors(values())

    def networks(self) -> list[Any]:
        """The networks that methods run beside the pipeline's own."""
        return [network for at in self.attachments.values() for network in at.networks]

    def _held_bytes(self) -> int:
        sizes = {id(t): t.element_size() * t.nelement() for t in self.method_tensors()}
        return sum(sizes.values())


def _tensors(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif hasattr(value, "element_size"):  # flags and numbers beside tensors weigh nothing
            yield value
