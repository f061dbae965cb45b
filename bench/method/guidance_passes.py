"""The unconditional guidance pass, left out at the steps at which a method says so, on every
guidance layout.

B samples of a generation; predictions are [B,...], of one guidance pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ditbench.method.attachment import Attachment, LeftOut
from ditbench.method.generation import Now, conditional_rows


class GuidancePasses:
    """Which guidance passes of a generation are computed."""

    def __init__(
        self, now: Now, attachments: Mapping[str, Attachment], note_bytes: Callable[[], None]
    ) -> None:
        """`note_bytes` is called before methods let go of what they keep."""
        self.calls = 0
        """Transformer calls so far in this step."""
        self._now, self._attachments, self._note_bytes = now, attachments, note_bytes
        self._chosen: LeftOut | None = None
        """What holds at this step; None where the pass is computed."""
        self._conditional: list[Any] = []
        """The output of this step's first call, where each pass is a call."""
        self._paired = False
        """Whether a second call was made or left out in this generation, where each pass is a
        call."""

    def start(self) -> None:
        """A generation begins."""
        self.calls, self._chosen, self._paired = 0, None, False
        self._conditional.clear()

    def stepped(self) -> None:
        """A sampler step is done."""
        self.calls = 0
        self._conditional.clear()

    def install(self, transformer: Any, at: Attachment) -> None:
        """Patch the transformer's calls, where a method leaves passes out or compares them: a call
        for the unconditional pass is not made, and of a shared batch the conditional rows alone go
        on."""
        from ditbench.models.family import family_of

        methods = self._attachments.values()
        comparisons = [compare for method in methods for compare in method.comparisons]
        if not comparisons and not any(method.left_out for method in methods):
            return
        # not `forward`: hooks on the transformer shall not see calls that are not made
        name = "_compiled_call_impl" if transformer._compiled_call_impl else "_call_impl"
        run, guidance = getattr(transformer, name), family_of(transformer).guidance

        def call(*args: Any, **kwargs: Any) -> Any:
            if guidance == "embedded":
                return run(*args, **kwargs)
            if guidance == "two calls":
                return self._one_of_two(run, args, kwargs)
            return self._batched(transformer, run, guidance, args, kwargs)

        if comparisons:
            # what a comparison finds may decide what is computed: counting has to see whose it is
            call.__wrapped__ = comparisons[0]  # type: ignore[attr-defined]
        at.patch(transformer, name, call)

    def _one_of_two(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        from ditbench.models.calls import each_tensor

        if not self.calls:
            self._decide(self._paired)
            self._conditional[:] = [run(*args, **kwargs)]
            return self._conditional[0]
        self._paired, conditional = True, self._conditional.pop()
        if self._chosen is not None:
            self._count(self._now.batch)
            return each_tensor(self._chosen.stand_in, conditional)
        return each_tensor(self._compared, conditional, run(*args, **kwargs))

    def _batched(
        self, transformer: Any, run: Callable[..., Any], guidance: str, args: Any, kwargs: Any
    ) -> Any:
        import torch

        from ditbench.models.calls import batch_of, each_tensor, take_rows

        now, batch = self._now, batch_of(args, kwargs)
        passes = max(1, batch // now.samples) if now.samples else 0  # 0: nobody said
        if not self.calls:
            self._decide(passes > 1, batch)
            if passes:
                now.passes = 1 if self._chosen is not None else passes
        if self._chosen is None and not any(m.comparisons for m in self._methods):
            return run(*args, **kwargs)
        now.known_samples()
        if passes == 1:
            return run(*args, **kwargs)
        rows = conditional_rows(guidance, batch, passes)

        def joined(conditional: Any, other: Any) -> Any:
            others = [other] * (passes - 1)
            first = guidance.endswith("first")
            return torch.cat([conditional, *others] if first else [*others, conditional])

        if self._chosen is not None:
            args, kwargs = take_rows(transformer, args, kwargs, rows)
            self._count(batch - batch // passes)
            out = run(*args, **kwargs)
            return each_tensor(joined, out, each_tensor(self._chosen.stand_in, out))

        def compared(whole: Any) -> Any:
            size = batch // passes
            other = slice(size, 2 * size) if rows.start == 0 else slice(0, size)
            return joined(whole[rows], self._compared(whole[rows], whole[other]))

        return each_tensor(compared, run(*args, **kwargs))

    def _compared(self, conditional: Any, unconditional: Any) -> Any:
        for method in self._methods:
            for compare in method.comparisons:
                other = compare(conditional, unconditional)
                unconditional = unconditional if other is None else other
        return unconditional

    def _decide(self, guided: bool, batch: int = 0) -> None:
        """At the first call of a step, of `batch` rows where passes share them: `guided`, whether
        there are two passes as far as is known."""
        now = self._now
        before = self._chosen
        if before is not None and before.for_good:
            return
        rules = (rule for method in self._methods for rule in method.left_out)
        self._chosen = next((rule for rule in rules if rule.when()), None)
        now.unguided = self._chosen is not None
        if before is None and now.unguided and guided and batch:
            self._note_bytes()
            for method in self._methods:
                method.narrow(now.conditional, now.batch)
        elif before is not None and not now.unguided and guided:
            # what was kept knows nothing of the steps that the pass was away
            self._note_bytes()
            for method in self._methods:
                if not method.left_out:
                    method.start_anew()

    @property
    def _methods(self) -> list[Attachment]:
        return list(self._attachments.values())

    def _count(self, rows: int) -> None:
        for method in self._methods:
            if method.left_out:
                method.count("guidance_passes_dropped", rows)
