"""Times of blocks of a transformer and of their sub-layers by level, what schedules take by them, and
their file.

J sub-layers of a block, L of the transformer, S levels, T steps. A sub-layer's time at a level is
what it adds to a block all of whose sub-layers are reused: its norm, modulation, ranking and writing
of rows are in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.knapsack import Weights
from ditbench.acceleration.caching.schedule import LEVELS

FORMAT = "ditbench level times 1"
Clock = Literal["seconds", "host", "device"]
"""A time of `Work`."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call takes: the least time of some calls, and what it computes and moves."""

    seconds: float
    flops: int
    """Of products and attention (`profiling.flop_counter`)."""
    moved: int
    """Bytes that operations read and write, each tensor as often as one does."""
    host: float | None = None
    """Seconds in which the host launches it; None where the device is the host."""
    device: float | None = None
    """Seconds in which the device does it when the host is ahead; None likewise, and where the host
    could not get ahead."""

    def since(self, base: Work) -> Work:
        """What it takes more than `base`."""

        def more(one: float | None, other: float | None) -> float | None:
            return None if one is None or other is None else one - other

        return Work(
            seconds=self.seconds - base.seconds, flops=self.flops - base.flops,
            moved=self.moved - base.moved, host=more(self.host, base.host),
            device=more(self.device, base.device),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BlockTimes:
    """One kind of block."""

    name: str
    """The list of blocks it is in, such as `single_transformer_blocks`."""
    kinds: tuple[str, ...]
    """Of its sub-layers, in their order."""
    whole: Mapping[str, Work]
    """The block by what it does: `plain` (nothing attached), `dense` (everything computed, and kept),
    `reused`, and `compiled` (plain, by torch.compile) where that was asked for."""
    levels: Mapping[tuple[str, float], Work]
    """What a sub-layer adds to a reused block, by kind and level above 0."""

    def added(self, kind: str, clock: Clock = "seconds") -> list[float]:
        """[S]: seconds by level, none at 0; never less than none, whatever the noise."""
        times = [getattr(self.levels[kind, level], clock) for level in LEVELS[1:]]
        return [0.0, *(max(0.0, t) for t in times)]

    @property
    def apart(self) -> bool:
        """Whether the times of host and device are known."""
        known = [*(self.whole.get(how) for how in ("plain", "reused")), *self.levels.values()]
        return all(w is not None and None not in (w.host, w.device) for w in known)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of a transformer call on one device, from which those of a schedule follow."""

    blocks: tuple[BlockTimes, ...]
    rest: float
    """Seconds of a call outside of its blocks: embedders, and the last projection."""
    about: Mapping[str, Any]
    """Model, device, dtype, batch and such, for people."""
    rest_apart: tuple[float, float] | None = None
    """The same of the host and of the device, where they were timed apart."""

    @property
    def clocks(self) -> tuple[Clock, ...]:
        """What a schedule's time goes by: that of a call is the longest of them. A block called alone
        waits for its launches; in a whole run the host is ahead where the device takes longer."""
        apart = self.rest_apart is not None and all(block.apart for block in self.blocks)
        return ("host", "device") if apart else ("seconds",)

    def table(
        self, names: Sequence[str], lists: Sequence[str], clock: Clock = "seconds"
    ) -> Weights:
        """[L,S]: nanoseconds of each level of a transformer's sub-layers, as weights for the
        programme. `names` such as `3.self`; `lists` [L], the list of blocks each is in. ValueError
        for a sub-layer that was not measured."""
        by_name = {block.name: block for block in self.blocks}
        rows = []
        for name, where in zip(names, lists, strict=True):
            kind = name.partition(".")[2]
            if where not in by_name or kind not in by_name[where].kinds:
                raise ValueError(f"the times hold no {kind!r} of {where}, so {name} has none")
            rows.append([round(1e9 * seconds) for seconds in by_name[where].added(kind, clock)])
        return np.array(rows, dtype=np.int64)

    def predicted(
        self, chosen: NDArray[np.int64], names: Sequence[str], lists: Sequence[str], calls: int = 1
    ) -> float:
        """Seconds of the transformer's calls under levels [T,L], `calls` a step."""
        by_clock = []
        for clock in self.clocks:
            table = self.table(names, lists, clock)
            spent = np.take_along_axis(table[None], chosen[..., None], 2).sum(axis=(1, 2)) / 1e9
            by_clock.append(self._empty("reused", names, lists, clock) + spent)  # [T]
        return calls * float(np.max(by_clock, axis=0).sum())

    def plain(self, names: Sequence[str], lists: Sequence[str]) -> float:
        """Seconds of a transformer call with nothing attached: not what dense sub-layers add up to
        where the host is slower than the device, since each is timed with its own waiting."""
        return max(self._empty("plain", names, lists, clock) for clock in self.clocks)

    def _empty(self, how: str, names: Sequence[str], lists: Sequence[str], clock: Clock) -> float:
        """Seconds of a call all of whose blocks are `how`."""
        where = dict(zip((n.partition(".")[0] for n in names), lists, strict=True)).values()
        by_name = {block.name: getattr(block.whole[how], clock) for block in self.blocks}
        rest = dict(zip(("host", "device"), self.rest_apart or (), strict=False))
        inside: float = sum(by_name[name] for name in where)
        return rest.get(clock, self.rest) + inside

    def write(self, path: Path) -> None:
        """A JSON file, for `diffsparse(times=FILE)` and `sparsecast(times=FILE)`."""
        blocks = [
            {
                "name": block.name, "reused": block.whole["reused"].seconds,
                "added": {kind: block.added(kind) for kind in block.kinds},
            }
            for block in self.blocks
        ]  # fmt: skip
        document = {
            "format": FORMAT, "levels": list(LEVELS), "about": dict(self.about),
            "rest": self.rest, "blocks": blocks,
        }  # fmt: skip
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Times:
        """What `write` wrote; ValueError in one sentence, naming the file, for anything else."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"there are no times {path}; python run_bench.py blocks --out makes them"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} holds no times: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"{path} holds no times: its format is not {FORMAT!r}")
        try:
            if tuple(document["levels"]) != LEVELS:
                raise ValueError(f"its levels are not {LEVELS}")
            blocks = tuple(_block_of(block) for block in document["blocks"])
            return cls(blocks=blocks, rest=_time(document["rest"]), about=dict(document["about"]))
        except KeyError as error:
            raise ValueError(f"{path} holds no whole times: {error} is missing") from None
        except ValueError as error:
            raise ValueError(f"{path} holds no whole times: {error}") from None
        except (TypeError, AttributeError):
            raise ValueError(
                f"{path} holds no whole times: a list, a table or a number is not where one belongs"
            ) from None


def _time(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _block_of(block: Mapping[str, Any]) -> BlockTimes:
    levels = {}
    for kind, times in block["added"].items():
        if len(times) != len(LEVELS):
            raise ValueError(f"{len(times)} levels of {kind}")
        for level, seconds in zip(LEVELS[1:], times[1:], strict=True):
            levels[str(kind), level] = Work(seconds=_time(seconds), flops=0, moved=0)
    reused = Work(seconds=_time(block["reused"]), flops=0, moved=0)
    return BlockTimes(
        name=str(block["name"]),
        kinds=tuple(block["added"]),
        whole={"reused": reused},
        levels=levels,
    )


def spent_share(chosen: NDArray[np.int64], table: Weights) -> float:
    """Share of the sub-layers' dense cost that levels [T,L] spend by a table [L,S]."""
    spent = np.take_along_axis(table[None], chosen[..., None], 2).sum()
    return float(spent / (table[:, DENSE].sum() * len(chosen)))
