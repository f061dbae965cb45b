"""How long a block takes on the device at hand: dense, reused, and each of its sub-layers at each level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.acceleration.caching.block_times import BlockTimes, Times, Work
from ditbench.acceleration.caching.budget import DENSE, kept_rows
from ditbench.acceleration.caching.knapsack import Weights
from ditbench.acceleration.caching.schedule import LEVELS
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from ditbench.method.attached import Attached
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Sublayer


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


def lists_of(transformer: Any, sublayers: Sequence[Sublayer]) -> list[str]:
    """[L]: the list of blocks that each sub-layer is in."""
    from ditbench.models.family import family_of

    where = [name for name, _ in family_of(transformer).stacks for _ in getattr(transformer, name)]
    return [where[s.block] for s in sublayers]


def weights_in_time(path: str, transformer: Any, listed: Sequence[Sublayer]) -> tuple[Weights, str]:
    """[L,S]: nanoseconds of the levels of a transformer's sub-layers by a file that `blocks --out`
    wrote, and where they are from. ValueError for another file, for one of other sub-layers, and where
    dense sub-layers take no time, of which there is no share to spend."""
    times = Times.read(Path(path))
    try:
        table = times.table([s.name for s in listed], lists_of(transformer, listed))
    except ValueError as error:
        measured = times.about.get("model", "an unnamed model")
        raise ValueError(f"{path}, measured on {measured}: {error}") from None
    if not table[:, DENSE].any():
        raise ValueError(f"{path} holds no times: all sub-layers take 0 seconds")
    return table, ", ".join(f"{name} {value}" for name, value in times.about.items())


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
            (kind, level): done[where, kind, level].since(base)
            for kind in kinds
            for level in LEVELS[1:]
        }
        whole = {how: w for (at, how, _), w in done.items() if at == where and how in WHOLE}
        blocks.append(BlockTimes(name=where, kinds=kinds, whole=whole, levels=levels))
    outside = done["", "call", 0.0]
    for where in number:
        outside = outside.since(done[where, "reused", 0.0])
    apart = None
    if outside.host is not None and outside.device is not None:
        apart = max(0.0, outside.host), max(0.0, outside.device)
    return Times(
        blocks=tuple(blocks), rest=max(0.0, outside.seconds), about=dict(about), rest_apart=apart
    )


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
    taken = least_times(runs, repeats, str(transformer.device))
    done = {}
    for key, run in runs.items():
        least = taken[key]
        flops, moved = (0, 0) if key[1] in ("compiled", "call") else work_of(run)
        done[key] = Work(
            seconds=least.seconds, flops=flops, moved=moved, host=least.host, device=least.device
        )
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
