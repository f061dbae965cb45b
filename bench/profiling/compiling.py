"""What compiling costs, apart from the calls that are timed: seconds, and graphs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ditbench.method.stack import Stack
from ditbench.models.requests import Request
from ditbench.profiling.latency import Sampler, Timing


def compiled_graphs() -> int:
    """Graphs that torch.compile has taken in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


class Compilation:
    """The first calls of each size of a batch, in which a compiled stack compiles."""

    def __init__(
        self, sampler: Sampler, batches: Sequence[Sequence[Request]], stack: Stack
    ) -> None:
        """Make as many calls of each size as the stack compiles in; their samples are not kept."""
        calls = max(m.first_calls for m in stack.compiling)
        before, first = compiled_graphs(), {len(batch): batch for batch in reversed(batches)}
        self._calls = [
            sampler(batch)[1] for batch in reversed(first.values()) for _ in range(calls)
        ]
        self._before, self._after = before, compiled_graphs()

    def as_dict(self, later: Sequence[Timing]) -> dict[str, Any]:
        """For the record, `later` being all calls since: `seconds`, what the first calls of each size
        took longer than the fastest later one of that size, with which there has to be one;
        `graphs`, compiled in those first calls; `later_graphs`, compiled in later ones, whose times
        have that in them."""
        fastest = [min(t.call_s for t in later if t.size == call.size) for call in self._calls]
        pairs = zip(self._calls, fastest, strict=True)
        return {
            "seconds": sum(max(0.0, call.call_s - least) for call, least in pairs),
            "graphs": self._after - self._before,
            "later_graphs": compiled_graphs() - self._after,
        }
