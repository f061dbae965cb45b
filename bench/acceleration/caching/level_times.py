"""How long a block takes on the device at hand: dense, reused, and each of its sub-layers at each level.

J sub-layers of a block, L of the transformer, S levels, T steps. A sub-layer's time at a level is
what it adds to a block all of whose sub-layers are reused: its norm, modulation, ranking and writing
of rows are in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.acceleration.caching.budget import DENSE, kept_rows
from ditbench.acceleration.caching.knapsack import Weights
from ditbench.acceleration.caching.schedule import LEVELS
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from ditbench.method.attached import Attached
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Sublayer

FORMAT = "ditbench level times 1"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call takes: the least time of some calls, and what it computes and moves."""

    seconds: float
    flops: int
    """Of products and attention (`profiling.flop_counter`)."""
    moved: int
    """Bytes that operations read and write, each tensor as often as one does."""


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

    def added(self, kind: str) -> list[float]:
        """[S]: seconds by level, none at 0; never less than none, whatever the clock."""
        times = [self.levels[kind, level].seconds for level in LEVELS[1:]]
        return [0.0, *(max(0.0, t) for t in times)]


class LevelProbe(Trainee):
    """Runs every sub-layer at the level that it is told, as DiffSparse does."""

    def __init__(self, selector: str) -> None:
        self.selector = selector
        self.level: Callable[[int, int], float] = lambda step, index: 1.0
        """f(step, sub-layer) -> share of rows."""
        self.cache: Any = None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through a token cache."""
        from ditbench.acceleration.caching.token_cache import TokenCache
        from ditbench.acceleration.caching.token_settings import DIFFSPARSE
        from ditbench.models.family import family_of

        rules = DIFFSPARSE[family_of(pipeline.transformer).name]
        cache = self.cache = TokenCache(at, self.selector, rules)

        def dense(sublayer: Sublayer) -> bool:
            return self.level(at.now.step, sublayer.index) == 1 or sublayer not in cache

        def idle(sublayer: Sublayer) -> bool:
            return not self.level(at.now.step, sublayer.index) and sublayer in cache

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Any, hidden: Any) -> Any:
                share = self.level(at.now.step, sublayer.index)
                if dense(sublayer):
                    return cache.compute(sublayer, run, hidden)
                if not share:
                    return cache.reuse(sublayer)
                return cache.refresh(sublayer, run, hidden, kept_rows(share, hidden.shape[1]))

            return route

        for sublayer in at.sublayers:
            known, nothing = partial(dense, sublayer), partial(idle, sublayer)
            outputs = partial(cache.goes_by_output, sublayer)
            at.reroute_deferred(sublayer, at_sublayer(sublayer), known, nothing, outputs)


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of a transformer call on one device, from which those of a schedule follow."""

    blocks: tuple[BlockTimes, ...]
    rest: float
    """Seconds of a call outside of its blocks: embedders, and the last projection."""
    about: Mapping[str, Any]
    """Model, device, dtype, batch and such, for people."""

    def table(self, names: Sequence[str], lists: Sequence[str]) -> Weights:
        """[L,S]: nanoseconds of each level of a transformer's sub-layers, as weights for the
        programme. `names` such as `3.self`; `lists` [L], the list of blocks each is in. ValueError
        for a sub-layer that was not measured."""
        by_name = {block.name: block for block in self.blocks}
        rows = []
        for name, where in zip(names, lists, strict=True):
            kind = name.partition(".")[2]
            if where not in by_name or kind not in by_name[where].kinds:
                raise ValueError(f"the times hold no {kind!r} of {where}, so {name} has none")
            rows.append([round(1e9 * seconds) for seconds in by_name[where].added(kind)])
        return np.array(rows, dtype=np.int64)

    def predicted(
        self, chosen: NDArray[np.int64], names: Sequence[str], lists: Sequence[str], calls: int = 1
    ) -> float:
        """Seconds of the transformer's calls under levels [T,L], `calls` a step."""
        table, by_name = self.table(names, lists), {block.name: block for block in self.blocks}
        number = {n.partition(".")[0]: where for n, where in zip(names, lists, strict=True)}
        empty = self.rest + sum(by_name[where].whole["reused"].seconds for where in number.values())
        spent = np.take_along_axis(table[None], chosen[..., None], 2).sum() / 1e9
        return calls * (len(chosen) * empty + float(spent))

    def plain(self, names: Sequence[str], lists: Sequence[str]) -> float:
        """Seconds of a transformer call with nothing attached: not what dense sub-layers add up to
        where the host is slower than the device, since each is timed with its own waiting."""
        where = dict(zip((n.partition(".")[0] for n in names), lists, strict=True)).values()
        by_name = {block.name: block.whole["plain"].seconds for block in self.blocks}
        return self.rest + sum(by_name[name] for name in where)

    def write(self, path: Path) -> None:
        """A JSON file, for `diffsparse(times=FILE)`."""
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path} holds no whole times: {type(error).__name__} {error}"
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


def lists_of(transformer: Any, sublayers: Sequence[Sublayer]) -> list[str]:
    """[L]: the list of blocks that each sub-layer is in."""
    from ditbench.models.family import family_of

    where = [name for name, _ in family_of(transformer).stacks for _ in getattr(transformer, name)]
    return [where[s.block] for s in sublayers]


def measure(
    pipe: Any, call: tuple[Any, Any], batch: int, selector: str, repeats: int,
    about: Mapping[str, Any], *, compiled: bool = False,
) -> Times:  # fmt: skip
    """Times of the first block of each list, with the arguments it has in a call of the transformer;
    `call` holds that call's (args, kwargs), for `batch` samples. Every time is the least of `repeats`
    calls that are taken in turn with all the others. ValueError where a block cannot be compiled."""
    import copy

    import torch

    from ditbench.method.stack import Stack

    transformer, probe = pipe.transformer, LevelProbe(selector)
    with torch.inference_mode():
        given = block_calls(transformer, call)
        # copies, since what is timed beside them has its own forward
        plain = {where: copy.deepcopy(getattr(transformer, where)[0]) for where in given}
        ways = {(where, "plain", 1.0): block for where, block in plain.items()}
        if compiled:
            for where, block in plain.items():
                ways[where, "compiled", 1.0] = _compiled(block, where, given[where])
        with Stack((probe,)).attached(pipe) as attached:
            attached.start(2, batch)
            done, number, sublayers = _measured(
                transformer, call, given, ways, attached, probe, repeats
            )
    blocks = []
    for where in given:
        base, kinds = done[where, "reused", 0.0], sublayers[where]
        levels = {
            (kind, level): Work(
                seconds=(work := done[where, kind, level]).seconds - base.seconds,
                flops=work.flops - base.flops, moved=work.moved - base.moved,
            )
            for kind in kinds
            for level in LEVELS[1:]
        }  # fmt: skip
        whole = {how: w for (at, how, _), w in done.items() if at == where and how in WHOLE}
        blocks.append(BlockTimes(name=where, kinds=kinds, whole=whole, levels=levels))
    inside = sum(done[where, "reused", 0.0].seconds for where in number)
    rest = max(0.0, done["", "call", 0.0].seconds - inside)
    return Times(blocks=tuple(blocks), rest=rest, about=dict(about))


WHOLE = ("plain", "compiled", "dense", "reused")
Run = Callable[[], Any]


def _measured(
    transformer: Any, call: tuple[Any, Any], given: Mapping[str, tuple[Any, Any]],
    ways: Mapping[tuple[str, str, float], Any], attached: Attached, probe: LevelProbe, repeats: int,
) -> tuple[dict[tuple[str, str, float], Work], list[str], dict[str, tuple[str, ...]]]:  # fmt: skip
    """What each run takes, the list of each block, and the kinds of sub-layers by list."""
    from ditbench.acceleration.caching.timing import least_times, work_of

    at = attached.attachments[probe.name]
    transformer(*call[0], **call[1])  # everything is computed and kept
    state = probe.cache.state()
    # a dense run whose attention no ranking will look at is not watched
    probe.cache.notes = lambda sublayer: False

    def under(level: Callable[[int, int], float], module: Any, given: Any) -> Callable[[], Run]:
        def prepared() -> Run:
            attached.passes.calls = attached.now.branch = 0  # the pass whose outputs are kept
            probe.cache.restore(state)
            probe.level = level
            return lambda: module(*given[0], **given[1])

        return prepared

    def only(index: int, level: float) -> Callable[[int, int], float]:
        return lambda _, i: level if i == index else 0.0

    lists = lists_of(transformer, at.sublayers)
    runs = {key: under(only(-1, 0.0), module, given[key[0]]) for key, module in ways.items()}
    kinds = {}
    for where, arguments in given.items():
        first = at.sublayers[lists.index(where)].block
        own = [s for s in at.sublayers if s.block == first]
        block = at.blocks[first].module
        runs[where, "dense", 1.0] = under(lambda *_: 1.0, block, arguments)
        runs[where, "reused", 0.0] = under(lambda *_: 0.0, block, arguments)
        for s in own:
            for level in LEVELS[1:]:
                runs[where, s.kind, level] = under(only(s.index, level), block, arguments)
        kinds[where] = tuple(s.kind for s in own)
    runs["", "call", 0.0] = under(lambda *_: 0.0, transformer, call)
    seconds = least_times(runs, repeats, str(transformer.device))
    done = {}
    for key, run in runs.items():
        flops, moved = (0, 0) if key[1] in ("compiled", "call") else work_of(run)
        done[key] = Work(seconds=seconds[key], flops=flops, moved=moved)
    number = [lists[[s.block for s in at.sublayers].index(b.index)] for b in at.blocks]
    return done, number, kinds


def _compiled(block: Any, where: str, given: tuple[Any, Any]) -> Any:
    import torch

    made = torch.compile(block)
    try:
        made(*given[0], **given[1])
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"--compile: torch cannot compile {where} here: {reason}") from error
    return made


def block_calls(transformer: Any, call: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
    """(args, kwargs) of the first block of each list in a call of the transformer, which is run."""
    from ditbench.models.family import family_of

    given: dict[str, tuple[Any, Any]] = {}
    hooks = [
        getattr(transformer, where)[0].register_forward_pre_hook(
            lambda _, args, kwargs, where=where: given.update({where: (args, dict(kwargs))}),
            with_kwargs=True,
        )
        for where, _ in family_of(transformer).stacks
        if len(getattr(transformer, where))
    ]
    try:
        transformer(*call[0], **call[1])
    finally:
        for hook in hooks:
            hook.remove()
    return given


def spent_share(chosen: NDArray[np.int64], table: Weights) -> float:
    """Share of the sub-layers' dense cost that levels [T,L] spend by a table [L,S]."""
    spent = np.take_along_axis(table[None], chosen[..., None], 2).sum()
    return float(spent / (table[:, DENSE].sum() * len(chosen)))
